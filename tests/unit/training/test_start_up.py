"""What the first run of a notebook waits for: the kernel for no torch, a rank for no compiler.

Catches an import that crept in (a checkpoint's reader, a type of torch's), which costs seconds at
the one moment when somebody watches, and an optimizer that differs from torch's. Each check is
made in a fresh process, where nothing is loaded yet; the mutant is torch's own optimizer.
"""

import subprocess
import sys
import textwrap

import pytest
import torch

from picolab.training.eager_adamw import EagerAdamW

HEAVY = {"torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.tensor", "sympy"}
ONE_RANK = """
    import torch.distributed as dist
    from picolab.specs import assemble
    from picolab.training import trainer
    {change}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    report = trainer.train_rank(assemble(steps=2, layers=1, seq=32, micro_batch=1, accumulate=1))
    assert len(report.losses) == 2
    """
TORCHS_OWN = "import torch; trainer.EagerAdamW = torch.optim.AdamW"


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh Python has after this code."""
    code = textwrap.dedent(code) + "\nimport sys; print('loaded:', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.rpartition("loaded:")[2].split())


def test_the_kernel_starts_a_run_without_torch():
    loaded = loaded_by("from picolab.training import train")
    assert "picolab.training.start" in loaded and not {"torch", "numpy"} & loaded
    assert "torch" in loaded_by("from picolab.training import Checkpoints")


@pytest.mark.parametrize(("change", "there"), [("", set()), (TORCHS_OWN, {"torch._dynamo"})])
def test_a_rank_trains_without_a_compiler(change, there):
    loaded = loaded_by(ONE_RANK.format(change=change))
    assert there <= loaded if there else not HEAVY & loaded


@pytest.mark.parametrize("fused", [True, False])
def test_the_optimizer_is_torchs_to_the_bit(fused):
    def trained(kind):
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(7, 5, generator=draw).requires_grad_()
        optimizer = kind([weight], lr=1e-2, weight_decay=0.1, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            (weight @ torch.randn(5, 3, generator=draw)).square().sum().backward()
            optimizer.step()
        assert not optimizer.state[weight]["exp_avg"].requires_grad
        return weight

    assert torch.equal(trained(EagerAdamW), trained(torch.optim.AdamW))
