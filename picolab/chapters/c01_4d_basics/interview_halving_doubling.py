"""Interview task (question 4d-004): an all-reduce in 2 log2(n) steps, without sending more bytes
than a ring.
"""

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_all_reduce(x):
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()  # n is a power of two
    flat = x.view(-1)  # a view: what you write into it is in x
    raise NotImplementedError(f"rank {me} of {n}: swap halves of {flat.numel()} numbers")


def solution(x):
    import torch
    import torch.distributed as dist

    import picolab as pico

    n, me = dist.get_world_size(), dist.get_rank()
    flat, start, stop = x.view(-1), 0, x.numel()
    steps, distance = [], n // 2
    while distance:  # halving: what I am responsible for becomes half as large
        partner, middle = me ^ distance, (start + stop) // 2
        lower, upper = flat[start:middle], flat[middle:stop]
        keep, give = (upper, lower) if me & distance else (lower, upper)
        arrived = torch.empty_like(keep)
        pico.comm.exchange(give, partner, arrived, partner, "world", "halving")
        keep += arrived
        start, stop = (middle, stop) if me & distance else (start, middle)
        steps.append((partner, keep, give))
        distance //= 2
    for partner, keep, give in reversed(steps):  # doubling: the same way back
        pico.comm.exchange(keep, partner, give, partner, "world", "doubling")


def judge(learner, attempt: Attempt) -> None:
    n, size = comm.mesh().size("world"), attempt.case.values["size"]
    everyones = attempt.tensor(n, size)
    everyones[:, ::4] = 0  # as gradients have them
    x = everyones[attempt.rank].clone()
    attempt.call(learner, {"x": x}, may_change=("x",))
    attempt.only("send", "recv")
    rounds = n.bit_length() - 1
    known, parts = _known(everyones, attempt.rank), {"world": everyones}
    if attempt.equal("x", x, everyones.sum(0), mistakes=known, parts=parts):
        # Empty halves need not be sent, and of two ranks each may send all of it at once.
        least = 2 * rounds if size >= n > 2 else 0
        attempt.budget("send", count=2 * rounds, at_least=least)
        # As of a ring: the largest of n shares, 2(n-1) times. Whole tensors are above it from n = 4
        share = -(-size // n)
        attempt.budget(
            "send",
            payload_bytes=2 * (n - 1) * share * x.element_size(),
            least_bytes=2 * (n - 1) * (size // n) * x.element_size(),
        )


def _known(everyones, rank: int) -> dict:
    """What typical mistakes leave in this rank's x."""
    own = everyones[rank]
    return {
        "it is still this rank's own: the sum has to be written into `x` itself": own,
        "only this rank's share is summed: the way back, on which the finished shares are "
        "exchanged, is missing": _dense(everyones, back=False)[rank],
        "on the way back the steps are in reverse: first the last partner, the smallest part": (
            _dense(everyones, turn=False)[rank]
        ),
        "on the way back what arrives is a finished sum and replaces what is there; yours adds "
        "it": _dense(everyones, add_back=True)[rank],
    }


def _dense(everyones, back=True, add_back=False, turn=True):
    """All ranks' x after the algorithm, or one of its wrong versions, in one process."""
    n, size = everyones.shape
    now, bounds, steps, distance = everyones.clone(), [(0, size)] * n, [], n // 2
    while distance:
        before, taken = now.clone(), []
        for me, (start, stop) in enumerate(bounds):
            halves = slice(start, (start + stop) // 2), slice((start + stop) // 2, stop)
            keep, give = halves[::-1] if me & distance else halves
            now[me, keep] += before[me ^ distance, keep]
            taken.append((keep, give))
        bounds = [(keep.start, keep.stop) for keep, _ in taken]
        steps.append((distance, taken))
        distance //= 2
    for distance, taken in steps[:: -1 if turn else 1] if back else ():
        before = now.clone()
        for me, (_, give) in enumerate(taken):
            arrives = before[me ^ distance, give]
            now[me, give] = now[me, give] + arrives if add_back else arrives
    return now


EXERCISE = Exercise(
    id="interview.4d.halving-doubling",
    goal="`x` ends as the sum of all ranks' `x`, in place, like a ring all-reduce and with as few "
    "bytes; but the number of steps one after the other grows with the logarithm of n.",
    interface="`my_all_reduce(x)`, x contiguous, of any size (also smaller than n); n is a power "
    "of two. You may use only `pico.comm.exchange(send, to, receive, source, axis, reason)`, which "
    "sends one tensor and receives another at the same time, also with one and the same rank, and "
    'also empty ones. The axis is `"world"`.',
    budget="2 log2(n) sends a rank, which carry 2(n-1)/n of the bytes of `x` together (up to "
    "rounding where n does not divide the size).",
    hints=(
        "A reduce-scatter and then an all-gather, as in the ring. But let two ranks split the work "
        "between them: each gives the other one half of the tensor and adds up the half it kept. "
        "With whom would each go on, and over which part?",
        "Partners differ in one bit: `me ^ distance`, with distance n/2, n/4, ..., 1. After a step "
        "you are responsible for half of what you had; the bit says which half. Remember partner, "
        "kept half and given half of each step: the way back needs them.",
        "Halving: `exchange(give, partner, arrived, partner, ...)`, then `keep += arrived`, and go "
        "on inside `keep`. Then, over the steps in *reverse* order: `exchange(keep, partner, give, "
        "partner, ...)`, which receives the partner's finished half into the half you gave away.",
    ),
    stub_function=my_all_reduce,
    solution_function=solution,
    why="After the k-th halving, the 2^k ranks that were joined by the partnerships so far share "
    "one summed tensor, 1/2^k of it each; after log2(n) of them each rank has 1/n of the sum over "
    "all. It has sent 1/2 + 1/4 + ... + 1/n = (n-1)/n of the tensor. The way back is the same "
    "exchanges in reverse, each with the finished half, so (n-1)/n once more. Rabenseifner's "
    "algorithm; Thakur, Rabenseifner and Gropp (2005) compare it with the ring. What it costs: "
    "partners are far apart, so on a real network every step may cross the slowest link, while a "
    "ring's neighbours can be chosen near.",
    judge=judge,
    cases=(
        Case("dp2", "5 numbers", {"size": 5}),
        Case("dp4", "17 numbers, which 4 does not divide", {"size": 17}),
        Case("dp4", "3 numbers: one rank's share is empty", {"size": 3}),
        Case("dp8", "45 numbers", {"size": 45}),
    ),
    blocked=("picolab.comm.ring.ring_all_reduce",),
    timeout=5.0,
)
