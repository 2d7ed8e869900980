"""The mechanisms that stand in chapter 3 compute what the package computes, and send what it sends.

Cells are found by their ids and executed as they are saved; their functions then run on real ranks
beside the package's. The mutants are edits of the cells' own text.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm
from picolab.chapters.c03_3d_parallel.slow_run import RANK
from picolab.model import Transformer, initialise
from picolab.parallel import zero
from picolab.parallel.split_backward import LaterWeightGradients, compute
from picolab.specs import ModelConfig

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "03_3d_parallel.ipynb"
EXACT = 1e-13  # fp64, relative: the sums of both have the same order, or differ by a few eps


def source(cell_id: str) -> str:
    cells = json.loads(CHAPTER.read_text("utf-8"))["cells"]
    [cell] = [cell for cell in cells if cell["id"] == cell_id]
    return "".join(cell["source"])


def lesson(cell_id: str, mutant: tuple[str, str] | None = None) -> dict:
    """The names that a cell defines, with one edit of its text if a mutant is asked for."""
    text = source(cell_id)
    if mutant is not None:
        assert mutant[0] in text, f"the lesson no longer says {mutant[0]!r}: renew the mutant"
        text = text.replace(*mutant, 1)
    # As in the notebook, whatever is defined belongs to __main__ and travels to a rank by value.
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist}
    exec(compile(text, "lesson", "exec"), names)
    return names


def apart(found, expected) -> float:
    pairs = list(zip(found, expected, strict=True))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


# --- ZeRO-1 -----------------------------------------------------------------------------------


def zero_steps(lesson_zero):
    """Parameters after two steps, and bytes sent: the lesson's and the package's stage 1."""
    comm.build_mesh(pico.Layout(dp=dist.get_world_size()))
    config = ModelConfig.preset("tiny").replace(layers=1, hidden=32, ffn=64, heads=2, kv_heads=2)
    draw = torch.Generator().manual_seed(dist.get_rank())
    batches = torch.randint(256, (2, 2, 9), generator=draw)
    found = []
    for whose in ("lesson", "package"):
        model = initialise(Transformer(config, dtype=torch.float64), 0)
        before = len(comm.ledger().kept)
        if whose == "lesson":
            optimizer = lesson_zero(model, lr=1e-2)
        else:
            sharded = zero.ZeroOptimizer(model, stage=1)
            optimizer = torch.optim.AdamW(sharded.parameters([]), lr=1e-2)
        for batch in batches:
            model.loss(batch[:, :-1], batch[:, 1:]).backward()
            if whose == "package":
                sharded.finish()
            optimizer.step()
            if whose == "package":
                sharded.after_step()
                sharded.zero_grad()
        sent = sum(entry.ring_bytes for entry in comm.ledger().kept[before:])
        found.append(([p.detach().clone() for p in model.parameters()], sent))
    (mine, sent), (right, packages) = found
    return apart(mine, right), sent, packages


ZERO_MUTANTS = {
    "keeps its own gradient": (
        'pico.comm.reduce_scatter(whole.grad, self.axis, "zero: gradient")',
        "whole.grad.chunk(pico.comm.mesh().size(self.axis))[pico.comm.mesh().rank(self.axis)]",
    ),
    "gathers nothing": ("whole.data.copy_(pico.comm.all_gather", "(pico.comm.all_gather"),
    "adds to old gradients": ("whole.grad = None", "pass"),
    "shards are copies": (".chunk(n)[me] for", ".chunk(n)[0] for"),
}


@pytest.mark.parametrize("world", [2, 4])
def test_zero_1_is_the_packages(world):
    for off, sent, packages in pico.run(
        zero_steps, lesson("zero-by-hand")["Zero1"], world_size=world
    ):
        assert off < EXACT and sent == packages


@pytest.mark.parametrize("mutant", ZERO_MUTANTS.values(), ids=ZERO_MUTANTS)
def test_a_wrong_zero_1_is_told_apart(mutant):
    found = pico.run(zero_steps, lesson("zero-by-hand", mutant)["Zero1"], world_size=2)
    assert any(off > EXACT or sent != packages for off, sent, packages in found)


# --- stage 3 ----------------------------------------------------------------------------------


def gathered_layers(gathered):
    """How far gradients are from dense ones, and bytes of wholes between the passes."""
    comm.build_mesh(pico.Layout(dp=dist.get_world_size()))
    n, me = dist.get_world_size(), dist.get_rank()
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 8, 8, dtype=torch.float64, generator=draw).unbind()
    inputs = torch.randn(n, 3, 8, dtype=torch.float64, generator=draw)
    layers = [gathered(w.chunk(n)[me].clone()) for w in weights]
    y = inputs[me]
    for layer in layers:
        y = torch.tanh(layer.linear(y))
    between = sum(layer.whole.untyped_storage().nbytes() for layer in layers)
    y.square().sum().backward()
    after = sum(layer.whole.untyped_storage().nbytes() for layer in layers)
    leaves, y = [w.clone().requires_grad_() for w in weights], inputs
    for leaf in leaves:
        y = torch.tanh(y @ leaf.T)
    y.square().sum().backward()
    right = [leaf.grad.chunk(n)[me] for leaf in leaves]
    return apart([layer.rows.grad for layer in layers], right), between, after


def test_a_gathered_matrix_is_right_and_freed():
    found = pico.run(gathered_layers, lesson("zero-three")["Gathered"], world_size=2)
    assert all(off < EXACT and between == after == 0 for off, between, after in found)


GATHERED_MUTANTS = {
    "not freed after forward": (
        "y = x @ self.whole.T\n        self.free()",
        "y = x @ self.whole.T",
    ),
    "not freed after backward": ("self.whole.grad = None\n        self.free()", "pass"),
    "own gradient": (
        'pico.comm.reduce_scatter(self.whole.grad, self.axis, "zero: gradient")',
        "self.whole.grad.chunk(2)[pico.comm.mesh().rank(self.axis)].clone()",
    ),
}


@pytest.mark.parametrize("mutant", GATHERED_MUTANTS.values(), ids=GATHERED_MUTANTS)
def test_a_wrong_gathered_matrix_is_told_apart(mutant):
    found = pico.run(gathered_layers, lesson("zero-three", mutant)["Gathered"], world_size=2)
    assert any(off > EXACT or between or after for off, between, after in found)


# --- the split backward -----------------------------------------------------------------------


def split_gradients(names) -> float:
    """B and W of the lesson against the package's, which splits autograd's products."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(5, 5, dtype=torch.float64, generator=draw) for _ in range(3)]
    mine = [w.clone() for w in weights]
    leaves = [torch.nn.Parameter(w.clone()) for w in weights]
    later, dxs, left = LaterWeightGradients(), [], []
    for x in torch.randn(2, 4, 5, dtype=torch.float64, generator=draw):
        y, kept = names["forward"](mine, x)
        dx, rest = names["backward_inputs"](mine, kept, torch.ones_like(y))
        left.append(rest)
        x = x.clone().requires_grad_()
        y = x
        for leaf in leaves:
            y = later.product(torch.tanh(y), leaf)
        y.sum().backward()
        dxs.append((dx, x.grad))
    for rest in reversed(left):
        names["backward_weights"](rest)
    compute(later.take())
    pairs = [*dxs, *((a.grad, b.grad) for a, b in zip(mine, leaves))]
    return apart(*zip(*pairs))


SPLIT_MUTANTS = {
    "forgets tanh": (" * (1 - h * h)", ""),
    "overwrites": ("dw if w.grad is None else w.grad + dw", "dw"),
    "wrong way round": ("zip(reversed(weights), reversed(kept))", "zip(weights, kept)"),
}


def test_the_split_backward_is_the_packages():
    assert split_gradients(lesson("zoo-split")) < EXACT


@pytest.mark.parametrize("mutant", SPLIT_MUTANTS.values(), ids=SPLIT_MUTANTS)
def test_a_wrong_split_is_told_apart(mutant):
    assert split_gradients(lesson("zoo-split", mutant)) > EXACT


# --- the slow run -----------------------------------------------------------------------------


def quietest(run):
    names: dict = {}
    exec(source("slow-compare").partition("\n\n\nexplained =")[0], names)
    return names["quietest"](run)


def test_the_patient_is_explained_by_its_slow_rank():
    """Sleeping stages, so that a busy machine changes little; mended, it is another cause's. A step
    may be disturbed all the same: three tries."""
    sick = dict(model="tiny", layout="dp2pp2", layers=4, hidden=64, ffn=128, seq=32, steps=4)
    sick |= dict(micro_batch=1, accumulate=6, stage_cost_s=(0.02, 0.04), progress=False)
    for left in (2, 1, 0):
        slow = quietest(pico.train(observers=[pico.chapters.c03_3d_parallel.patient()], **sick))
        named = [cause for cause in slow.causes if cause.name != "cores"]
        if not left or (named and named[0].rank == RANK):
            break
    assert (named[0].name, named[0].rank) == ("slow rank", RANK)
    well = quietest(pico.train(**sick))
    assert "slow rank" not in [cause.name for cause in well.causes[:1]]
    assert well.step_s < slow.step_s
