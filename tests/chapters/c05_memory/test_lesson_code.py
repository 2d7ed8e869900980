"""The mechanisms that stand in chapter 5 compute what the package, and torch, compute.

Cells are found by their ids and executed as they are saved. The mutants are edits of the cells' own
text.
"""

import gc
import json
import math
import weakref
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import picolab as pico
from picolab import costs
from picolab.chapters import c05_memory as chapter
from picolab.memory import MemoryScheduler, Watch

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "05_memory.ipynb"
CONFIG = pico.ModelConfig.preset("tiny").replace(
    layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, seq=16
)

ROUNDING = 1e-12  # of fp64


def lesson(cell_id: str, mutant: tuple[str, str] | None = None, until: str = "\n\n\n#", **known):
    """The names that a cell defines, with one edit of its text if a mutant is asked for. known:
    what cells before it have defined."""
    cells = json.loads(CHAPTER.read_text("utf-8"))["cells"]
    [text] = ["".join(cell["source"]) for cell in cells if cell["id"] == cell_id]
    if mutant is not None:
        assert mutant[0] in text, f"the lesson no longer says {mutant[0]!r}: renew the mutant"
        text = text.replace(*mutant, 1)
    names = {
        "__name__": "__main__", "pico": pico, "torch": torch, "math": math, "F": F,
        "weakref": weakref, "defaultdict": defaultdict, "tree_leaves": tree_leaves,
        "TorchDispatchMode": TorchDispatchMode, "chapter": chapter,
    }  # fmt: skip
    names |= known
    exec(compile(text.partition(until)[0], "lesson", "exec"), names)
    return names


def a_model(run_block=None, seed=0):
    model = pico.model.Transformer(CONFIG, device="cpu", seed=seed, dtype=torch.float64)
    if run_block is not None:
        model.run_block = run_block
    return model


def tokens():
    return torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))


def gradients_of(model):
    batch = tokens()
    model.loss(batch[:, :-1], batch[:, 1:]).backward()
    return [parameter.grad for parameter in model.parameters()]


def equal(some, others) -> bool:
    return all(a is not None and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def apart(some, others) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(some, others, strict=True))


# --- what is alive ------------------------------------------------------------------------------


def counted(names: dict) -> list[int]:
    """The lesson's count less the package's, after forward, at the most, and after backward."""
    model, batch = a_model(), tokens()
    gc.collect()
    with Watch() as watch, names["Live"]() as live:
        before = watch.live
        loss = model.loss(batch[:, :-1], batch[:, 1:])
        found = [live.now - (watch.live - before)]
        loss.backward()
        found += [live.most - (max(watch.totals) - before), live.now - (watch.live - before)]
    return found


LIVE_MUTANTS = {
    "a view counts": ("and key not in given", ""),
    "nothing dies": ("self.gone(*of)", "None"),
    "one result of several": ("tensors(out)", "tensors(out)[:1]"),
    "the most is the last": ("max(self.most, self.now)", "self.now"),
}


def test_the_count_by_hand_is_the_packages():
    assert counted(lesson("count-by-hand")) == [0, 0, 0]


@pytest.mark.parametrize("mutant", LIVE_MUTANTS.values(), ids=LIVE_MUTANTS)
def test_a_wrong_count_is_told_apart(mutant):
    assert counted(lesson("count-by-hand", mutant)) != [0, 0, 0]


def test_bytes_a_parameter_are_those_of_the_recipes():
    a_step = lesson("states-step", Live=lesson("count-by-hand")["Live"])["a_step"]
    bf16, fp32, fp16 = torch.bfloat16, torch.float32, torch.float16
    for recipe, found in (
        (costs.BYTES_16_FP32, a_step(fp32, fp32)),
        (costs.BYTES_16_BF16, a_step(bf16, bf16)),
        (costs.BYTES_18_FP32_GRADIENTS, a_step(bf16, fp32)),
        (costs.BYTES_20_FP16, a_step(fp16, fp16, wide_gradients=True)),
    ):
        assert found[0] == pytest.approx(sum(recipe.values()), rel=1e-5)
    assert a_step(bf16, bf16, master=bf16)[0] == pytest.approx(8, rel=1e-5)


# --- what backward needs ------------------------------------------------------------------------


def swiglu(names: dict) -> float:
    """How far the lesson's derivative is from torch's."""
    draw = torch.Generator().manual_seed(0)
    gate, up, dy = (torch.randn(7, 5, generator=draw, dtype=torch.float64) for _ in range(3))
    gate, up = gate.requires_grad_(), up.requires_grad_()
    mine = torch.autograd.grad(names["SwiGLU"].apply(gate, up), (gate, up), dy)
    theirs = torch.autograd.grad(F.silu(gate) * up, (gate, up), dy)
    return max((a - b).abs().max().item() for a, b in zip(mine, theirs))


SWIGLU_MUTANTS = {
    "silu's derivative is its sigmoid": ("(sigmoid + silu * (1 - sigmoid))", "sigmoid"),
    "up and silu exchanged": ("dy * silu\n", "dy * gate\n"),
    "sigmoid's own derivative": ("silu * (1 - sigmoid)", "sigmoid * (1 - sigmoid)"),
}


def by_hand(mutant=None):
    return lesson("swiglu-by-hand", mutant, until="\n\n\ndouble")


def test_the_operator_by_hand_has_the_right_derivative():
    assert swiglu(by_hand()) < 1e-14


@pytest.mark.parametrize("mutant", SWIGLU_MUTANTS.values(), ids=SWIGLU_MUTANTS)
def test_a_wrong_derivative_is_told_apart(mutant):
    text = (mutant[0].rstrip("\n"), mutant[1].rstrip("\n"))
    assert swiglu(by_hand(text)) > 1e-3


def test_one_operator_keeps_less_than_two():
    kept_by = lesson("saved-hooks")["kept_by"]
    gate, up = (torch.randn(4, 6, requires_grad=True) for _ in range(2))
    assert kept_by(lambda g, u: F.silu(g) * u, gate, up) == [24] * 3
    assert kept_by(by_hand()["SwiGLU"].apply, gate, up) == [24] * 2


# --- again --------------------------------------------------------------------------------------


def run_again(mutant=None) -> bool:
    again = lesson("again-by-hand", mutant)["again"]
    return equal(gradients_of(a_model(again)), gradients_of(a_model()))


AGAIN_MUTANTS = {
    "the gradient above is forgotten": (
        "torch.autograd.backward(y, dy)", "torch.autograd.backward(y, torch.ones_like(dy))"
    ),
    "nothing goes on to the block before": ("return None, x.grad", "return None, None"),
    "another input": ("ctx.saved_tensors[0].detach()", "ctx.saved_tensors[0].detach().neg()"),
}  # fmt: skip


def test_run_again_by_hand_gives_the_same_gradients():
    assert run_again()


@pytest.mark.parametrize("mutant", AGAIN_MUTANTS.values(), ids=AGAIN_MUTANTS)
def test_a_wrong_second_run_is_told_apart(mutant):
    assert not run_again(mutant)


def test_it_keeps_the_input_only_and_costs_a_third_more():
    live, again = lesson("count-by-hand")["Live"], lesson("again-by-hand")["again"]
    batch, kept = tokens(), []
    for layers in (2, 1):
        model = pico.model.Transformer(CONFIG.replace(layers=layers), device="cpu", seed=0)
        model.run_block = again
        with live() as counted:
            loss = model.loss(batch[:, :-1], batch[:, 1:])
            kept.append(counted.now)
        loss.backward()
    assert kept[0] - kept[1] == 2 * 16 * 32 * 4
    once = chapter.product_work(CONFIG, lambda block, x, tables: block(x, tables))
    assert chapter.product_work(CONFIG, again) * 3 == once * 4


# --- away ---------------------------------------------------------------------------------------


def sent_away(away: type, pool: object, steps: int = 3):
    mine, model, batch = away(pool), a_model(), tokens()
    for _ in range(steps):
        model.zero_grad()
        with mine.hooks():
            loss = model.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
    return mine, [parameter.grad for parameter in model.parameters()]


def lesson_away(mutant=None):
    return lesson("away-by-hand", mutant)["Away"]


def test_what_is_sent_away_comes_back_and_a_pool_takes_new_memory_once():
    pools, right = lesson("pool-by-hand"), gradients_of(a_model())
    for name, share in (("Fresh", 1), ("BySize", 3)):
        pool = pools[name]()
        away, found = sent_away(lesson_away(), pool)
        assert apart(found, right) < ROUNDING  # it does not keep strides: sums in another order
        assert pool.made * share == away.copies


AWAY_MUTANTS = {
    "the buffer itself, which is lent again": ("buffer.clone().view(dtype)", "buffer.view(dtype)"),
    "never given back": ("self.pool.give(buffer)", "pass"),
}


def lent_rightly(mutant=None) -> bool:
    """Whether what was fetched stays when its buffer is lent again, and whether it is."""
    pool = lesson("pool-by-hand")["BySize"]()
    away, sent = lesson_away(mutant)(pool), torch.randn(8, 8)
    fetched = away.unpack(away.pack(sent))
    away.pack(torch.zeros(8, 8))
    return torch.equal(fetched, sent) and pool.made == 1


def test_a_buffer_is_lent_again_when_it_is_nobodys():
    assert lent_rightly()
    assert not any(map(lent_rightly, AWAY_MUTANTS.values()))


def test_what_is_given_back_too_early_is_overwritten():
    pools, right = lesson("pool-by-hand"), gradients_of(a_model())
    early = lesson("lease-compare", until="\n\n\noff", Away=lesson_away())["TooEarly"]
    _, found = sent_away(early, pools["BySize"]())
    assert apart(found, right) > 0.01


# --- the plan -----------------------------------------------------------------------------------


def test_the_rule_keeps_the_budget_and_is_beaten():
    greedy, of = lesson("plan-greedy")["greedy"], chapter.example_blocks()
    best = MemoryScheduler(of).frontier
    slower = 0
    for plan in best:
        choices = greedy(of, plan.peak)
        assert of.peak(choices) <= plan.peak
        assert of.seconds(choices) >= plan.seconds - 1e-12
        slower += of.seconds(choices) > plan.seconds + 1e-12
    assert slower > len(best) / 2
    assert greedy(of, best[0].peak - 1) is None


def test_a_layer_keeps_what_the_table_in_print_says():
    live = lesson("count-by-hand")["Live"]
    for b, s, h, a in ((1, 64, 32, 4), (2, 48, 48, 6)):
        sizes = {"qkv": (h, 3 * h), "o": (h, h), "up": (h, 4 * h), "down": (4 * h, h)}
        weights = {
            name: torch.randn(size, dtype=torch.bfloat16, requires_grad=True)
            for name, size in sizes.items()
        }
        x = torch.randn(b, s, h, dtype=torch.bfloat16, requires_grad=True)
        with live() as counted:
            y = chapter.gpt_layer(2 * x, weights, a)
            kept = counted.now - y.nbytes
        statistics = 2 * 2 * b * s * 4
        assert kept - statistics == pytest.approx(s * b * h * (34 + 5 * a * s / h), rel=0.005)
