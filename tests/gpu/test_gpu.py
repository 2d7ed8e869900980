"""The same code on GPUs: NCCL is chosen, losses are those of the CPU, the ring's kernels agree.

These have not been run on the machine where picolab was first written, which has no GPU; they
skip there, and say so."""

import pytest
import torch

import picolab as pico

gpus = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpus == 0, reason="needs a GPU, and there is none here"),
]


def where_am_i():
    import torch.distributed as dist

    x = torch.ones(1, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(x)
    return dist.get_backend(), x.item()


def test_nccl_is_chosen_where_each_rank_has_a_gpu():
    assert list(pico.run(where_am_i, world_size=gpus)) == [("nccl", float(gpus))] * gpus
    # One rank more than GPUs: they compute on the CPU, and the reason is printed.
    assert pico.run(where_am_i, world_size=gpus + 1)[0] == ("gloo", float(gpus + 1))


def test_losses_on_a_gpu_are_those_of_the_cpu():
    settings = {"steps": 5, "eps": 1e-5, "progress": False}
    cpu = pico.train(backend="gloo", **settings)
    gpu = pico.train(backend="nccl", **settings)
    assert gpu.losses == pytest.approx(cpu.losses, rel=1e-4)


@pytest.mark.skipif(gpus < 2, reason="needs two GPUs")
@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2", "cp2"])
def test_two_gpus_equal_one_process(layout):
    verdict = pico.verify(layout, backend="nccl")
    assert verdict.ok, verdict
