"""The scheduler: as good as the best of all plans, for every budget; and executed, gradients equal
those of a run that keeps everything, to the last bit.

Wrong versions kept below: the cheapest seconds for each block by itself (greedy), plans compared by
their time only, blocks behind counted in place of those before, a product that is computed again.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from picolab import moe
from picolab.memory import (
    BlockRunner,
    MemoryPool,
    MemoryScheduler,
    Offload,
    far_file,
    manager,
    scheduler,
)
from picolab.memory import offload as offload_module
from picolab.memory.scheduler import CHOICES, Cost, Measured
from picolab.model import Transformer
from picolab.specs import ModelConfig

COSTS = st.builds(Cost, st.integers(0, 20), st.integers(0, 40), st.integers(0, 9).map(float))
BLOCKS = st.dictionaries(st.sampled_from(CHOICES), COSTS, min_size=1)


def measured(blocks):
    return st.builds(
        Measured, blocks=blocks, end=st.integers(0, 40), ends=st.integers(0, 9),
        rest=st.integers(0, 60), pool=st.integers(0, 30), in_flight=st.integers(1, 3),
    )  # fmt: skip


def all_plans(of: Measured):
    for choices in itertools.product(*of.blocks):
        yield of.peak(choices), of.seconds(choices)


def check_best(of: Measured, frontier):
    """For every budget at which anything changes."""
    plans = list(all_plans(of))
    assert min(plan.peak for plan in frontier) == min(peak for peak, _ in plans)
    for budget in {peak for peak, _ in plans}:
        best = min(seconds for peak, seconds in plans if peak <= budget)
        found = [plan for plan in frontier if plan.peak <= budget][-1]
        assert found.seconds == best
        assert of.peak(found.choices) == found.peak <= budget


@given(measured(st.lists(BLOCKS, min_size=1, max_size=5).map(tuple)))
@settings(max_examples=150, deadline=None)
def test_as_good_as_the_best_of_all_plans(of):
    check_best(of, MemoryScheduler(of).frontier)


def ten_blocks():
    return Measured(
        blocks=tuple(
            {
                "keep": Cost(100 + i, 130 + i, 0.0),
                "recompute": Cost(10, 120 + i, 3.0 + i % 3),
                "offload": Cost(0, 40, 2.0 + i % 4),
            }
            for i in range(10)
        ),
        end=60, rest=90, pool=150,
    )  # fmt: skip


def test_so_it_is_for_ten_blocks():
    check_best(ten_blocks(), MemoryScheduler(ten_blocks()).frontier)


def greedy(of: Measured):
    """Every block on its own: as it was before anybody looked at sums."""
    found = []
    for weight in (0.0, 0.01, 0.1, 1.0):
        choices = tuple(
            min(one, key=lambda c: one[c].seconds + weight * one[c].kept) for one in of.blocks
        )
        found.append(scheduler.MemoryPlan(choices, of.peak(choices), of.seconds(choices)))
    return sorted(found, key=lambda plan: plan.peak)


def test_mutant_greedy():
    with pytest.raises(AssertionError):
        check_best(ten_blocks(), greedy(ten_blocks()))


def test_mutant_partial_plans_compared_by_time(monkeypatch):
    monkeypatch.setattr(
        scheduler._Partial, "beats", lambda self, other: self.seconds <= other.seconds
    )
    with pytest.raises(AssertionError):
        check_best(ten_blocks(), MemoryScheduler(ten_blocks()).frontier)


def test_the_curve_is_monotone_and_too_small_a_budget_is_told_the_least():
    made = MemoryScheduler(ten_blocks())
    peaks, seconds = zip(*((plan.peak, plan.seconds) for plan in made.frontier))
    assert list(peaks) == sorted(set(peaks))
    assert list(seconds) == sorted(set(seconds), reverse=True)
    assert made.choose(10**9).choices == ("keep",) * 10
    with pytest.raises(ValueError, match=rf"the least that works is .*\({made.least:,} bytes\)"):
        made.choose(made.least - 1)


def test_a_budget_that_one_stage_of_a_pipeline_cannot_keep_is_told_which():
    stages = [
        MemoryScheduler(Measured(({"keep": Cost(work // 2, work, 0.0)},)))
        for work in (3_000_000, 1_000_000)
    ]
    with pytest.raises(ValueError, match="on stage 0 of the pipeline"):
        manager.check_possible(stages, 2_000_000)
    with pytest.raises(ValueError, match=r"on every stage .*3,000,000 bytes"):
        manager.check_possible(stages, 500_000)
    manager.check_possible(stages, 3_000_000)


# -- executed

CONFIG = ModelConfig(hidden=32, ffn=48, layers=4, heads=4, kv_heads=2, vocab=97, seq=24)


def gradients(choices, dtype=torch.float32, passes=2, patch=None, experts=False):
    if experts:
        config = CONFIG.replace(experts=4, experts_per_token=2, expert_ffn=24, aux_loss=0.01)
        model = Transformer(config, device="cpu", dtype=dtype, feed_forward=moe.feed_forward)
    else:
        model = Transformer(CONFIG, device="cpu", dtype=dtype)
    offload = Offload(far_file(1 << 30), MemoryPool(1 << 30), model.parameters())
    contexts = moe.saved_choices if experts else scheduler.whole_block
    model.run_block = BlockRunner(model, choices, contexts=contexts, offload=offload)
    if patch:
        patch(offload, model)
    generator = torch.Generator().manual_seed(3)
    for _ in range(passes):  # the second is added to the first, by other buffers
        tokens = torch.randint(97, (2, 25), generator=generator)
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    offload.close()
    return [parameter.grad for parameter in model.parameters()], offload


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_choice_gives_the_same_gradients_to_the_last_bit(dtype):
    kept, _ = gradients(["keep"] * 4, dtype)
    plans = [[choice] * 4 for choice in CHOICES[1:]]
    plans += [list(p) for p in itertools.permutations(CHOICES, 4)][::9]
    for plan in plans[: 8 if dtype == torch.float64 else None]:
        assert equal(gradients(plan, dtype)[0], kept), plan


def test_so_it_does_with_experts():
    kept, _ = gradients(["keep"] * 4, experts=True)
    for plan in (["mlp"] * 4, ["selective", "mlp", "recompute", "offload"]):
        assert equal(gradients(plan, experts=True)[0], kept), plan


class Products(TorchDispatchMode):
    """Counts products that are really computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in scheduler.DEAR
        return func(*args, **(kwargs or {}))


def products_in_backward(choice):
    model = Transformer(CONFIG, device="cpu")
    model.run_block = BlockRunner(model, [choice] * 4)
    tokens = torch.randint(97, (2, 25), generator=torch.Generator().manual_seed(3))
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    with Products() as products:
        loss.backward()
    return products.count


def test_selectively_no_product_is_computed_again(monkeypatch):
    """Not the last one either, whose result is not kept. Wrong: another one's is not."""
    plain = products_in_backward("keep")
    assert products_in_backward("selective") == plain < products_in_backward("recompute")
    assert products_in_backward("mlp") == plain + 4  # gate and up are one
    monkeypatch.setattr(scheduler, "_last_product", lambda block: block.mlp.gate_up)
    assert products_in_backward("selective") > plain


def test_offloaded_bytes_are_those_that_backward_needs_once_each():
    """The saved bytes of the list, less the parameters: q, k and v share a storage, and so do the
    norm's result and the input of the product."""
    _, offload = gradients(["keep", "offload", "keep", "keep"], passes=1)
    tokens, h = 2 * 24, CONFIG.hidden
    n, k, e, f = CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim, CONFIG.ffn
    # (two sums: the block's input and that between its halves)
    per_token = 2 * (h * 3) + (n + 2 * k) * e + (2 * n + k) * e + 4 * f
    small = tokens * (n + 2) * 4  # log-sum-exps, and the norms' statistics below a KiB
    moved = offload.moved - tokens * per_token * 4
    assert 0 <= moved <= small
    assert offload.near.wanted == offload.far.wanted == 0  # and all of it was given back
    assert offload.near.made <= offload.near.lent


def test_so_it_is_without_a_pool():
    def fresh(offload, model):
        offload.near = None

    kept, _ = gradients(["keep"] * 4)
    assert equal(gradients(["offload"] * 4, patch=fresh)[0], kept)


def with_cap(cap, count):
    def patch(offload, model):
        offload.near = MemoryPool(cap)
        fresh = offload._fresh
        offload._fresh = lambda entry: count.append(entry) or fresh(entry)

    return patch


@pytest.mark.parametrize("cap, enough", [(4096, False), (30_000, False), (60_000, True)])
def test_a_near_pool_that_is_too_small_ends_no_backward(cap, enough):
    """A block needs some 100 KB, the last of it first, and its operators up to 50 KB at a time.
    What no pool of 4 KiB ever holds is taken beside it."""
    beside = []
    found, offload = gradients(["offload"] * 4, patch=with_cap(cap, beside))
    assert equal(found, gradients(["keep"] * 4)[0])
    assert offload.near.held <= cap and bool(beside) != enough


def test_mutant_fetched_in_the_order_of_forward(monkeypatch):
    monkeypatch.setattr(offload_module, "reversed", iter, raising=False)
    beside = []
    gradients(["offload"] * 4, patch=with_cap(60_000, beside))
    assert beside


def test_so_it_is_where_no_file_can_be_reserved_without_writing_it(monkeypatch):
    monkeypatch.delattr(offload_module.os, "posix_fallocate")  # macOS
    assert equal(gradients(["offload"] * 4)[0], gradients(["keep"] * 4)[0])


def test_a_second_step_takes_no_new_buffers():
    _, one = gradients(["offload"] * 4, passes=1)
    _, four = gradients(["offload"] * 4, passes=4)
    assert four.near.made == one.near.made and four.far.made == one.far.made
    assert four.near.lent == 4 * one.near.lent


def views_again(offload, model):
    """As if each view were a memory of its own."""
    entry = offload._entry
    offload._entry = lambda storage, known, parcel: entry(storage, {}, parcel)


def parameters_too(offload, model):
    offload._stays = ()


@pytest.mark.parametrize("wrong", [views_again, parameters_too])
def test_mutant_more_travels_than_has_to(wrong):
    right, much = (
        gradients(["offload"] * 4, passes=1, patch=patch)[1].moved for patch in (None, wrong)
    )
    assert much > 1.1 * right


def late(offload, model):
    """A buffer goes back when the next block is begun, also if somebody still reads it."""
    lend = offload.near.lend

    def short(nbytes):
        tensor = lend(nbytes)
        slab_again = lend(nbytes)
        del slab_again
        return tensor

    offload.near.lend = short
    copy = offload._unpack

    def unpack(view):
        made = copy(view)
        if not isinstance(view, torch.Tensor) and view.entry.nbytes > 4096:
            view.entry.near.fill_(0)  # somebody else's copy
        return made

    offload._unpack = unpack


def test_mutant_a_buffer_that_is_anothers_while_it_is_read():
    kept, _ = gradients(["keep"] * 4)
    assert not equal(gradients(["offload"] * 4, patch=late)[0], kept)


def test_a_full_disk_is_an_error_of_one_call(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    made = Offload(far_file(1 << 30, tmp_path), MemoryPool(1 << 30))
    model = Transformer(CONFIG, device="cpu")
    model.run_block = BlockRunner(model, ["keep", "keep", "offload", "keep"], offload=made)
    tokens = torch.zeros((1, 24), dtype=torch.int64)
    monkeypatch.setattr(offload_module.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="the far memory is full: 0 bytes of activations"):
        model.loss(tokens, tokens)
    monkeypatch.undo()
    model.loss(tokens, tokens).backward()  # and nothing is broken


def test_bad_plans_get_a_sentence():
    model = Transformer(CONFIG, device="cpu")
    with pytest.raises(ValueError, match="there are 4 blocks here, and of each one of keep"):
        BlockRunner(model, ["keep"])
    with pytest.raises(ValueError, match="there is no Offload to do it"):
        BlockRunner(model, ["offload"] * 4)
