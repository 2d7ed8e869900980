"""The mechanisms that stand in chapter 2 compute what the package computes.

Cells are found by their ids and executed as they are saved, beside the package's. The mutants are
edits of the cells' own text.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.model import initialise
from picolab.moe import ExpertLayer
from picolab.specs import ModelConfig

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "02_moe.ipynb"
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
    exec(compile(text.partition("\n\n\nmatrix =")[0], "lesson", "exec"), names)
    return names


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


# --- the router -------------------------------------------------------------------------------


def routed(names: dict) -> float:
    """Output and the router's gradient: the lesson's, token by token, and the package's layer."""
    config = ModelConfig.preset("tiny-moe").replace(
        layers=1, hidden=16, heads=2, kv_heads=2, experts=4, experts_per_token=1, expert_ffn=8,
        router_renormalise=False, aux_loss=0.0,
    )  # fmt: skip
    layer = initialise(ExpertLayer(config, 0, torch.float64), 0)
    x = torch.randn(1, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right = layer(x)
    right.square().sum().backward()

    def expert(index: int):
        def one(token):
            rows = [int(index == e) for e in range(4)]
            return layer.experts(token.unsqueeze(0), rows)[0]

        return one

    with torch.no_grad():
        y, kept = names["forward"](x[0], layer.router.weight, [expert(e) for e in range(4)])
        gradient = names["router_gradient"](kept, 2 * y)
    return max(apart(y, right[0]), apart(gradient, layer.router.weight.grad))


ROUTER_MUTANTS = {
    "forgets the probability": ("y.append(p[chosen] * out)", "y.append(out)"),
    "goes to the second": ("int(p.argmax())", "int(p.topk(2).indices[1])"),
    "only the chosen logit": ("dlogits = -dp * p[chosen] * p", "dlogits = torch.zeros_like(p)"),
    "no softmax's own": ("-dp * p[chosen] * p", "-dp * p"),
    "no chosen term": ("dlogits[chosen] += dp * p[chosen]", "pass"),
}


def test_the_router_by_hand_is_the_packages():
    assert routed(lesson("route-by-hand")) < EXACT


@pytest.mark.parametrize("mutant", ROUTER_MUTANTS.values(), ids=ROUTER_MUTANTS)
def test_a_wrong_router_is_told_apart(mutant):
    assert routed(lesson("route-by-hand", mutant)) > 1e-3


# --- the exchange in raw torch ----------------------------------------------------------------

EXCHANGE_MUTANTS = {
    "the counts of the sender": ("coming.tolist(), to.tolist()", "to.tolist(), to.tolist()"),
    "no counts first": ("dist.all_to_all_single(coming, to)  #", "coming.copy_(to)  #"),
}


def test_rows_come_where_they_should():
    matrix = list(pico.run(lesson("a2a-raw")["exchange"], world_size=2, backend="gloo"))
    assert len(matrix) == 2 and all(len(row) == 2 for row in matrix)
    assert sum(map(sum, matrix)) > 0


@pytest.mark.parametrize("mutant", EXCHANGE_MUTANTS.values(), ids=EXCHANGE_MUTANTS)
def test_a_wrong_exchange_fails(mutant):
    with pytest.raises(pico.RankFailure):
        exchange = lesson("a2a-raw", mutant)["exchange"]
        pico.run(exchange, world_size=2, backend="gloo", timeout=2, quiet=True)
