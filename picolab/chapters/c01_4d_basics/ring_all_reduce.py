"""Exercise: a ring all-reduce from sends and receives (chapter 1, section 2)."""

import math

from picolab import comm
from picolab.exercises import diagnosis
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_ring_all_reduce(x):
    import torch.distributed as dist

    n, me = dist.get_world_size(), dist.get_rank()
    right, left = (me + 1) % n, (me - 1) % n
    chunks = x.view(-1).tensor_split(n)  # views: what you write into a chunk is in x
    raise NotImplementedError(f"pass {len(chunks)} chunks on, from rank {left} to rank {right}")


def solution(x):
    import torch
    import torch.distributed as dist

    import picolab as pico

    n, me = dist.get_world_size(), dist.get_rank()
    right, left = (me + 1) % n, (me - 1) % n
    chunks = x.view(-1).tensor_split(n)
    for step in range(n - 1):  # reduce-scatter: add what comes from the left
        mine, theirs = chunks[(me - step) % n], chunks[(me - step - 1) % n]
        arrived = torch.empty_like(theirs)
        pico.comm.exchange(mine, right, arrived, left, "world", "ring: reduce-scatter half")
        theirs += arrived
    for step in range(n - 1):  # all-gather: keep what comes from the left
        mine, theirs = chunks[(me + 1 - step) % n], chunks[(me - step) % n]
        pico.comm.exchange(mine, right, theirs, left, "world", "ring: all-gather half")


def judge(learner, attempt: Attempt) -> None:
    n, shape = comm.mesh().size("world"), attempt.case.values["shape"]
    everyones, size = attempt.tensor(n, *shape), math.prod(shape)
    everyones.view(n, -1)[:, 0] = 0  # as gradients have them
    x = everyones[attempt.rank].clone()
    attempt.call(learner, {"x": x}, may_change=("x",))
    attempt.only("send", "recv")
    attempt.peers(1, "in a ring a rank gives to one neighbour and takes from the other")
    known = {
        "it is still this rank's own: the sum has to be written into `x` itself": (
            everyones[attempt.rank]
        ),
    }
    if not attempt.equal("x", x, everyones.sum(0), mistakes=known, parts={"world": everyones}):
        _tell_chunks(attempt, x.view(-1), everyones.view(n, -1))
    # A chunk may be empty, and need not be sent; the largest one may be the one that stays.
    empty, largest = max(0, n - size), -(-size // n)
    # Of two ranks, each may send all of it at once: as many bytes.
    attempt.budget("send", count=2 * (n - 1), at_least=2 * max(n - 1 - empty, 0) if n > 2 else 1)
    # The largest chunk, 2(n-1) times: only what is cut into n pieces stays below it.
    attempt.budget(
        "send",
        payload_bytes=2 * (n - 1) * largest * x.element_size(),
        least_bytes=2 * (size - largest) * x.element_size(),
    )


def _tell_chunks(attempt: Attempt, x, everyones) -> None:
    """Whose parts are in which chunk, where the chunks differ in it."""
    told = {}
    for c, (mine, theirs) in enumerate(
        zip(x.tensor_split(len(everyones)), everyones.tensor_split(len(everyones), dim=1))
    ):
        found = diagnosis.weights(mine, theirs)
        told[f"chunk {c}"] = ", ".join(f"{one:.3g}" for one in found) if found else "unclear"
    if len(set(told.values())) > 1 and "unclear" not in told.values():
        chunks = "; ".join(f"{chunk}: {times}" for chunk, times in told.items())
        attempt.wrong(f"how often the ranks' parts are in it, rank after rank: {chunks}")


EXERCISE = Exercise(
    id="4d.ring.all-reduce",
    goal="`x` ends as the sum of all ranks' `x`, in place.",
    interface="`my_ring_all_reduce(x)`, x a contiguous tensor of any shape, whose size n need not "
    "divide. You may use only `pico.comm.exchange(send, to, receive, source, axis, reason)`: it "
    "sends one tensor and receives another at the same time. (Were all ranks to wait for their "
    'left neighbour first, each would wait for one who waits too.) The axis is `"world"`.',
    budget="2(n-1) sends a rank, each of one chunk and to the same neighbour: 2(n-1)/n of the "
    "bytes of `x`, no more and no less.",
    hints=(
        "Two loops of n-1 steps. In the first, what arrives is *added*; in the second, it "
        "*replaces*. Write down for n = 3 which chunk each rank holds after each step.",
        "In step s of the first loop, rank r sends chunk r-s and adds what comes to chunk r-s-1, "
        "all modulo n. After n-1 steps, which chunk has rank r finished?",
        "It is chunk r+1. So in step s of the second loop rank r sends chunk r+1-s and receives "
        "into chunk r-s.",
    ),
    stub_function=my_ring_all_reduce,
    solution_function=solution,
    why="A chunk that travels collects one rank's part at each stop, so after n-1 stops it is the "
    "whole sum. It stops at rank r with chunk r+1, because chunk c starts at rank c. The second "
    "loop passes finished chunks on without adding. Each rank sends 2(n-1) chunks of 1/n: that is "
    "the 2(n-1)/n in every formula.",
    judge=judge,
    cases=(
        Case("dp2", "5 numbers", {"shape": (5,)}),
        Case("dp4", "17 numbers, which 4 does not divide", {"shape": (17,)}),
        Case("dp4", "3 numbers: one chunk is empty", {"shape": (3,)}),
        Case("dp3", "a matrix of 4 x 5", {"shape": (4, 5)}),
    ),
    blocked=("picolab.comm.ring.ring_all_reduce",),
    timeout=5.0,
)
