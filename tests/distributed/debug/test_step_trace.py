"""One step, module by module: a planted difference is named by the first module that has it, and
runs without one are the same to the last bit.

Mutants: a comparison that names the last module that differs, and one that leaves out a rank.
"""

import dataclasses

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.debug import StepTrace, step_trace
from picolab.specs import assemble
from picolab.training import train_rank

SMALL = dict(hidden=32, ffn=48, layers=5, heads=4, kv_heads=2, vocab=256, seq=32, data="random")


class Perturbed(pico.Observer):
    """Before the first step, one number of one weight of layer 3 is a little off, on one rank."""

    def __init__(self, rank, part="mlp", by=1e-4):
        self.rank, self.part, self.by = rank, part, by

    @torch.no_grad()
    def start(self, run):
        if dist.get_rank() == self.rank:
            layer = run.model.layers[3]
            weight = {"mlp": lambda: layer.mlp.down, "norm": lambda: layer.mlp_norm}[self.part]()
            weight.weight.view(-1)[7] += self.by


class Scaled(pico.Observer):
    """Attention of layer 2 is scaled a little wrong, on every rank."""

    def start(self, run):
        attention = run.model.layers[2].attention
        real = attention.attend
        attention.attend = lambda q, k, v: real(q * 1.0001, k, v)


def run(layout, *observers, at=0, **settings):
    config = assemble(layout=layout, steps=2, micro_batch=2, **SMALL, **settings)
    observers = [*observers, pico.trace_step(at)]
    world = config.layout.world
    return pico.run(train_rank, config, None, observers, world_size=world, quiet=True)


@pytest.fixture(scope="module")
def clean():
    return run("dp2tp2", at=1)


def test_ranks_that_agree(clean):
    found = pico.compare_steps(clean)
    assert found and found.module is None and found.rank is None
    assert found.modules == 5 * 4 + 3  # embed, norm and head beside the layers' parts
    assert found.verdict.startswith("the ranks of dp2tp2 in step 1: the same in all 23 modules (")
    assert "the same in all" in repr(found) and "<b>" in found._repr_html_()


def test_the_same_run_twice_is_the_same_to_the_last_bit(clean):
    again = pico.compare_steps(clean, run("dp2tp2", at=1))
    assert again and "the two runs in step 1: the same in all 23 modules" in again.verdict
    from_disk = pico.compare_steps(clean.run_dir, clean)
    assert from_disk and from_disk.compared == again.compared


def without(trace, rank):
    points = {r: of for r, of in trace.points.items() if r != rank}
    return dataclasses.replace(trace, points=points)


def test_one_weight_of_one_replica():
    """Three replicas: two of them tell who is the odd one. (Of layers before and of activations,
    which are of other samples, nothing is to be said.)"""
    trace = StepTrace.of(run("dp3", Perturbed(rank=1)))
    found = pico.compare_steps(trace)
    assert (found.module, found.rank) == ("layers.3.mlp", 1)
    assert "layers.3.mlp, in the parameter layers.3.mlp.down.weight" in found.verdict
    assert len(found.differing) == 1  # gradients are summed: all have the same
    # Mutant: a rank that is left out.
    assert pico.compare_steps(without(trace, 1)) and not pico.compare_steps(without(trace, 0))


def test_what_one_rank_of_tp_computes_otherwise():
    """A norm's weight, which both hold: the parameter first, then all that comes of it."""
    found = pico.compare_steps(run("tp2", Perturbed(rank=1, part="norm")))
    assert found.module == "layers.3.mlp_norm" and found.first.point.kind == "parameter"
    assert found.rank is None and "rank 0 has" in found.verdict and "rank 1 has" in found.verdict
    kinds = [(d.point.module, d.point.kind) for d in found.differing]
    assert kinds[1] == ("layers.3.mlp_norm", "output")
    last = kinds[-1][0]  # Mutant: the last that differs, in place of the first
    assert last != "layers.3.mlp_norm"


def test_a_wrong_scale_in_the_second_run():
    a, b = run("dp1", accumulate=2), run("dp1", Scaled(), accumulate=2)
    found = pico.compare_steps(a, b)
    assert found.module == "layers.2.attention" and found.first.point.kind == "output"
    assert "rank 0 of a has" in found.verdict and "rank 0 of b has" in found.verdict
    assert found.first.point.call == 0 and {d.point.call for d in found.differing} == {0, 1}
    assert pico.compare_steps(a, b, tolerance=0.5)
    # Mutants: by the order of the names, and the last one.
    assert min(found.differing, key=lambda d: d.point.module).point.module == "embed"
    assert found.differing[-1].point.module != "layers.2.attention"


@pytest.mark.parametrize(
    "layout", ["pp2", "dp2zero1", "dp2zero3", pytest.param("tp2sp", marks=pytest.mark.weekly)]
)
def test_the_same_in_other_layouts(layout):
    accumulate = {"accumulate": 2} if "pp" in layout else {}
    traces = [StepTrace.of(run(layout, **accumulate)) for _ in range(2)]
    found = pico.compare_steps(*traces)
    assert found, found.verdict
    assert found.modules == 23
    assert {p.kind for of in traces[0].points.values() for p in of} == set(step_trace.KINDS)
    if layout in ("pp2", "dp2zero3"):
        with pytest.raises(ValueError, match="no two ranks hold the same slice"):
            pico.compare_steps(traces[0])
    else:
        assert pico.compare_steps(traces[0])


def test_what_cannot_be_compared(clean):
    with pytest.raises(ValueError, match="step is -1; it is the number of a step"):
        pico.trace_step(-1)
    plain = pico.run(print, world_size=1, quiet=True)
    with pytest.raises(ValueError, match=r"noted no step: give it observers=\[pico.trace_step"):
        pico.compare_steps(plain)
    trace = StepTrace.of(clean)
    for change, says in (
        ({"step": 0}, "one run noted step 1, the other step 0"),
        ({"layout": pico.Layout(dp=4)}, "the runs have other layouts, dp2tp2 and dp4"),
        ({"points": {0: trace.points[0][1:]}}, "only run a has"),
    ):
        with pytest.raises(ValueError, match=says):
            pico.compare_steps(trace, dataclasses.replace(trace, **change))
