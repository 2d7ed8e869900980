"""Numbers of the bank on memory, held against something that does what the question tells: the
scheduler, the allocator of the coding task, a small simulation, autograd itself.

Wrong versions these catch: a formula of the bank that forgets what is there at the peak, a plan
that is not the fastest, a claim about what stays alive that torch does not share.
"""

import gc
import io
import random

import pytest
import torch
from torch import nn

from picolab.chapters.c05_memory.interview_allocator import solution as replay
from picolab.interview.bank import load
from picolab.memory import MemoryScheduler, Watch
from picolab.memory.pool import size_class
from picolab.memory.scheduler import Cost, Measured

BANK = load()
MIB = 1 << 20


def values(number: int) -> dict[str, float]:
    return BANK.find(f"mem-{number:03}").computed()


def test_the_best_segment_of_all():
    asked = values(3)
    peaks = {n: 96 / n * asked["entry"] + n * asked["layer"] for n in range(1, 97) if 96 % n == 0}
    assert min(peaks, key=peaks.get) == asked["n_best"] and min(peaks.values()) == asked["best"]
    assert (asked["layer"], asked["entry"]) == pytest.approx((0.857, 0.0503), rel=1e-3)  # as told


def test_what_the_allocator_reserves():
    asked = values(6)
    large = lambda events: replay(events, 512, 20 * MIB, 10 * MIB)[-1]  # noqa: E731
    _, reserved, _ = large([(str(i), 9_000_000) for i in range(100)])
    assert reserved / 1e6 == asked["many"]
    # (a segment of its own is a multiple of 2 MiB there, and of its size here)
    _, reserved, _ = replay([("own", 21_000_000)], 512, 2 * MIB, 2 * MIB)[-1]
    assert reserved / 1e6 == asked["own"]
    assert replay([("small", 12)], 512, 2 * MIB, MIB)[-1][:2] == (512, asked["small"])


def test_free_memory_in_pieces():
    """mem-018 and mem-024: half of it is free, and a quarter of a segment is the most."""
    blocks = [(str(i), 16) for i in range(8)]
    allocated, reserved, largest = replay(
        blocks + [(str(i), None) for i in (0, 2, 4, 6)], 4, 64, 40
    )[-1]
    assert (allocated, reserved, largest) == (64, 128, 16)
    # Lengths that change: what is allocated is bounded, and what is reserved climbs.
    draw, events, keeps = random.Random(0), [], 0
    for batch in range(40):
        size = draw.randrange(40, 200)
        events += [(f"a{batch}", size), (f"b{batch}", size // 3), (f"keeps{batch}", 2)]
        events += [(f"a{batch}", None), (f"b{batch}", None)]
        keeps += 4
    rows = replay(events, 4, 8, 8)
    allocated, reserved, largest = rows[-1]
    assert allocated == keeps and reserved > 2 * max(row[0] for row in rows[:60])
    assert largest < (reserved - allocated) / 2


def backward_ms(kept: set[int], blocks: int = 32, buffers: int = 2) -> float:
    """One link, so many buffers, blocks from the last to the first."""
    link = clock = 0.0
    free_again = [0.0] * buffers  # of the fetch that comes so many later
    for block in reversed(range(blocks)):
        if block in kept:
            clock += 6
            continue
        link = max(link, free_again.pop(0)) + 8
        clock = max(clock, link) + 6
        free_again.append(clock)
    return clock


def test_prefetch():
    asked = values(13)
    assert backward_ms(set(), buffers=1) == asked["serial"]
    assert backward_ms(set()) == backward_ms(set(), buffers=9) == asked["ahead"]

    def lost(every: int, buffers: int, blocks: int) -> float:
        kept = set(range(every - 1, blocks, every)) | {blocks - 1}
        return backward_ms(kept, blocks, buffers) - 6 * blocks

    assert asked["free"] == 32 * 3 / 4
    assert lost(4, 3, 32) == lost(4, 3, 320) == lost(4, 9, 320) == 6, "at the beginning only"
    assert lost(5, 9, 320) > lost(4, 9, 320) + 50, "four in five are too many"
    assert lost(4, 2, 320) > lost(4, 2, 32) + 50, "two buffers are not enough for that"
    assert lost(3, 2, 33) == lost(3, 2, 330) == 4
    assert backward_ms(set(range(24, 32)), buffers=3) > 6 * 32 + 20, "all at the end"


def test_size_classes():
    asked = values(14)
    idle = [1 - n / size_class(n) for n in range(1 << 20, 1 << 22, 997)]
    idle.append(1 - ((1 << 20) + 1) / size_class((1 << 20) + 1))
    assert max(idle) == pytest.approx(asked["quarter"] / 100, abs=1e-5)


def test_the_scheduler_finds_the_same_plan():
    asked = values(15)
    keep, cheap, only_input = (round(1e6 * asked[k]) for k in ("keep", "cheap", "only_input"))
    ways = {
        "keep": Cost(keep, keep, 0.0),
        "selective": Cost(cheap, keep, 1.5),
        "recompute": Cost(only_input, keep, 11.5),
    }
    plan = MemoryScheduler(Measured((ways,) * 32)).choose(20_000_000)
    first = int(asked["n_full"])
    assert plan.choices == (*["recompute"] * first, *["selective"] * (31 - first), "keep")
    assert plan.seconds == pytest.approx(asked["extra"]) and plan.peak == 1e6 * asked["peak"]
    for places in (range(31 - first, 31), range(0, 31, 4)):  # anywhere before the last block
        choices = ["recompute" if i in places else "selective" for i in range(31)] + ["keep"]
        assert choices.count("recompute") == first
        assert Measured((ways,) * 32).peak(choices) == plan.peak
    turned = Measured((ways,) * 32).peak(("selective",) * 24 + ("recompute",) * first)
    assert turned == pytest.approx(1e6 * asked["wrong_end"])
    without = MemoryScheduler(Measured(({k: ways[k] for k in ("keep", "recompute")},) * 32))
    assert without.choose(20_000_000).seconds == pytest.approx(asked["two_ways"])


def alive(work) -> int:
    """Bytes that are alive after it and were not before, with what it gives back held."""
    gc.collect()
    with Watch() as watch:
        before = watch.live
        kept = work()
        gc.collect()
        return watch.live - before if kept is not None else -1


def test_a_kept_entropy_holds_two_tensors_and_a_kept_loss_none():
    rows, vocab = 16, 1000
    head = torch.randn(vocab, 8, requires_grad=True)

    def step(keep):
        logits = torch.randn(rows, 8) @ head.T
        log_p, p = logits.log_softmax(1), logits.softmax(1)
        entropy, loss = -(p * log_p).sum(), logits.square().mean()
        loss.backward()
        head.grad = None
        return {"entropy": entropy, "number": entropy.item(), "loss": loss.detach_()}[keep]

    size = rows * vocab * 4
    assert alive(lambda: step("entropy")) == pytest.approx(2 * size, abs=200)
    assert alive(lambda: step("number")) < 200 and alive(lambda: step("loss")) < 200


def test_a_view_keeps_its_storage():
    asked, whole = values(19), (8, 64, 32)
    assert alive(lambda: torch.zeros(whole)[:, -1]) == 8 * 64 * 32 * 4
    assert alive(lambda: torch.zeros(whole)[:, -1].clone()) == 8 * 32 * 4
    hidden = torch.zeros(whole)
    assert hidden[-1].contiguous().untyped_storage().nbytes() == hidden.nbytes
    assert hidden[:, -1].contiguous().untyped_storage().nbytes() == 8 * 32 * 4
    assert hidden[range(8), [-1] * 8].untyped_storage().nbytes() == 8 * 32 * 4
    file = io.BytesIO()
    torch.save(hidden[:, -1], file)
    assert len(file.getvalue()) > hidden.nbytes
    assert asked["times"] == 4096


def test_a_leak_is_read_off_the_step_of_its_death():
    """mem-017 and mem-019: what the story tells gives the size, within the tolerance asked for."""
    kept, view = values(17), values(19)
    gone_in = kept["steps"]
    assert gone_in == 183 and abs(12e3 / gone_in / kept["each"] - 1) < 0.02
    assert view["seen"] == pytest.approx(view["whole"], rel=0.03)


def test_the_first_step_that_does_not_fit():
    """mem-021: not with half the batch either, and each of the two repairs lets it through."""
    asked = values(21)
    assert asked["half"] > 80 > max(asked["without"], asked["most"] - asked["held"])


def test_pauses_of_512_ranks():
    asked, draw = values(20), torch.Generator().manual_seed(0)
    pause = (torch.rand(10_000, 512, generator=draw) < 1 / 250).any(1).double().mean().item()
    assert 100 * pause == pytest.approx(asked["share"], abs=1.5)
    assert 400 * pause == pytest.approx(asked["cost"], rel=0.02)


@pytest.mark.parametrize("foreach", [True, False])
def test_what_the_first_step_of_adam_makes(foreach):
    n = 8
    parameters = [nn.Parameter(torch.randn(1000)) for _ in range(n)]
    for parameter in parameters:
        parameter.grad = torch.randn(1000)
    optimizer = torch.optim.AdamW(parameters, foreach=foreach)
    with Watch() as watch:
        before, begin = watch.live, len(watch.totals)
        optimizer.step()
        most, after = max(watch.totals[begin:]) - before, watch.live - before
    assert after == pytest.approx(2 * n * 4000, abs=100)  # moments, and counts of steps
    temporaries = (most - after) / 4000
    assert round(temporaries) == (n if foreach else 3), temporaries


def test_what_operators_keep():
    """mem-025."""
    x = torch.randn(4, 6, requires_grad=True)
    w = torch.randn(6, 5, requires_grad=True)

    def saved(y):
        names = [name for name in dir(y.grad_fn) if name.startswith("_saved_")]
        tensors = [getattr(y.grad_fn, name) for name in names]
        return {t.data_ptr() for t in tensors if isinstance(t, torch.Tensor) and t.numel() > 4}

    y = torch.softmax(x, 1)
    assert saved(y) == {y.data_ptr()}
    y = torch.relu(x)
    assert saved(y) == {y.data_ptr()}
    assert saved(x @ w) == {x.data_ptr(), w.data_ptr()}
    assert saved(x + x) == set() == saved((x * 1).reshape(24))
    assert saved(nn.functional.gelu(x)) == {x.data_ptr()}
    y = torch.log_softmax(x, 1)
    assert saved(y) == {y.data_ptr()}
    assert x.data_ptr() in saved(nn.functional.layer_norm(x, (6,)))
