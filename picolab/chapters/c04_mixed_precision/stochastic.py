"""Exercise: stochastic rounding to bf16 (chapter 4, section 3).

Millions of numbers, so that a probability can be told from another: every count is compared with
its binomial distribution, six standard deviations wide, which right code leaves once in 5e8 tries
(and the seeds are fixed).
"""

import math

import torch

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

SIGMAS = 6.0
LARGE = 1000  # numbers, from which on they are counted
ENOUGH = 30.0  # a variance from which on a count is about normally distributed
MANY = 2**22  # of the smallest rest, 2^-16, 64 are expected to go up


def my_stochastic(x, generator):
    raise NotImplementedError(f"{x.numel()} numbers to bf16, each up or down by chance")


def solution(x, generator):
    import torch

    bits = x.view(torch.int32)
    chance = torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)
    moved = (bits + chance) & -0x10000  # up if what is left over and the chance make a carry
    moved = torch.where(x.isfinite(), moved, bits)
    return moved.view(torch.float32).to(torch.bfloat16)  # exact: the lower half is 0


def judge(learner, attempt: Attempt) -> None:
    deviations: list[float] = []
    for about, x in _questions(attempt):
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        generator = torch.Generator().manual_seed(len(about))
        before, default = generator.get_state(), torch.get_rng_state()
        got = attempt.call(learner, {"x": x, "generator": generator})
        if not _neighbours(attempt, got, x) or not _chances(attempt, got, x):
            return
        deviations += _deviation(got, x)
        if not torch.equal(default, torch.get_rng_state()):
            attempt.wrong("it takes random numbers from torch's own generator, not from the given")
            return
        if not _again(attempt, learner, got, x, generator, before):
            return
    # For 20 numbers of variance 1 the sum of squares is below 2 once in ten million times.
    if len(deviations) >= 20 and not attempt.require(
        sum(one**2 for one in deviations) >= len(deviations) / 10,
        "as many go up as should, and again and again nearly exactly so many: chances were dealt "
        "out evenly, and each number needs one of its own, independent of all others",
    ):
        return
    attempt.setting("the same weights, 64 updates of 1/64 of an ulp")
    if _many_steps(attempt, learner):
        attempt.only()
        attempt.budget(count=0)


def _questions(attempt: Attempt):
    few = torch.tensor([1.0, -2.5, 0.0, 3.140625, -0.0, 2.0**-130, 2.0**100, -(2.0**-133)])
    yield "numbers that bf16 has", few
    yield "normal numbers", attempt.tensor(5, 40, dtype=torch.float32)
    special = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    yield "infinities and a NaN", special
    payload = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    yield "NaNs with bits of all kinds", payload.view(torch.float32)
    yield "one number alone", torch.tensor(0.1)
    yield "no numbers", torch.zeros(0, 3)
    yield "of shape (3, 1, 7, 2)", attempt.tensor(3, 1, 7, 2, dtype=torch.float32)
    yield "a million times a number that bf16 has", torch.full((2**20,), -1.5)
    # Parts of the way that eight bits of chance get right, too: then the smallest part tells.
    for value in (1.0, -1.0, 1.9921875, 1e30, -(2.0**-128)):
        for rest in (16384, 32768, 49920, 768):
            yield _of(value, rest), _with_rest(value, rest, (256, 256))
    yield _of(1.0, 1), _with_rest(1.0, 1, (MANY,))
    above = torch.full((4, 4096), 2.0**-140)  # of 2^-133, the smallest number, a part of 1/128
    yield "far below the smallest number of bf16", above
    largest = torch.full((256, 256), 3.392e38)
    yield "numbers near the largest of bf16", largest


def _of(value: float, rest: int) -> str:
    return f"{value:g} and {rest}/65536 of the way to the next"


def _with_rest(value: float, rest: int, shape) -> torch.Tensor:
    bits = torch.tensor([value]).view(torch.int32) & -0x10000
    return (bits | rest).view(torch.float32).expand(shape).contiguous()


def _bounds(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The neighbour towards zero, the one away from it, and the probability of the latter."""
    bits = x.view(torch.int32)
    low, rest = bits & -0x10000, bits & 0xFFFF
    high = torch.where(rest > 0, low + 0x10000, low)
    return low.view(torch.float32), high.view(torch.float32), rest.double() / 65536


def _between(x: torch.Tensor) -> torch.Tensor:
    """Which numbers have a choice."""
    return (x.view(torch.int32) & 0xFFFF > 0) & x.isfinite()


def _neighbours(attempt: Attempt, got, x: torch.Tensor) -> bool:
    """Each number is one of the two that it may be."""
    if not isinstance(got, torch.Tensor) or got.shape != x.shape or got.dtype != torch.bfloat16:
        return attempt.equal("the result", got, x.to(torch.bfloat16))
    low, high, _ = _bounds(x)
    mine = got.float()
    right = ((mine == low) | (mine == high)) & (mine.signbit() == x.signbit())
    right = torch.where(x.isnan(), mine.isnan(), right)
    if right.all():
        return True
    kinds = (
        (x.isnan(), "a NaN stays a NaN"),
        (x.isinf(), "infinity stays infinity"),
        (low == high, "bf16 has this number, and it must stay, always"),
        (mine.isnan() | mine.isinf(), "it is finite, and so are its neighbours"),
        (mine.abs() < low.abs(), "that is further down than its neighbour towards zero"),
        (mine.abs() > high.abs(), "that is further up than its neighbour away from zero"),
    )
    places = ((~right & where, why) for where, why in kinds)
    found = next((one for one in places if one[0].any()), (~right, "its sign is another"))
    at, why = tuple(found[0].nonzero()[0].tolist()), found[1]
    return attempt.require(
        False,
        f"{x[at].item():.9g} becomes {mine[at].item():.9g}; it lies between {low[at].item():.9g} "
        f"and {high[at].item():.9g}: {why}",
    )


def _chances(attempt: Attempt, got: torch.Tensor, x: torch.Tensor) -> bool:
    """How many went up, of all numbers, of each row and of each column, and who with whom."""
    asks = _between(x)
    if int(asks.sum()) < LARGE:
        return True
    low, _, chance = _bounds(x)
    up, p = (got.float() != low).double(), chance.where(asks, 0.0)
    for dim, what in ((0, "column"), (1, "row")) if x.dim() == 2 else ():
        mean = up.mean(dim)
        if ((mean == 0) | (mean == 1)).all() and 0 < up.mean() < 1:
            return attempt.require(
                False, f"all numbers of a {what} go the same way: each needs a chance of its own"
            )
    if not _as_expected(up.sum(), p.sum(), (p * (1 - p)).sum()):
        share, asked = up.sum().item() / len(up.view(-1)), p.mean().item()
        return attempt.require(False, _share_says(share, asked, bool((x < 0).all())))
    variance = p * (1 - p)
    for dim, what in ((0, "column"), (1, "row")) if x.dim() == 2 else ():
        if variance.sum(dim).min() >= ENOUGH and not _as_expected(
            up.sum(dim), p.sum(dim), variance.sum(dim)
        ):
            return attempt.require(
                False,
                f"on the whole as many go up as should, and in single {what}s far too many or too "
                "few: each number needs a chance of its own",
            )
    if x.numel() == MANY:  # (so few go up that nothing can be said)
        return True
    found, spread = (_with_those_apart(of.flatten()) for of in (up - p, variance))
    off = found.abs() / spread.clamp(min=ENOUGH).sqrt() * (spread >= ENOUGH)
    apart = int(off.argmax())
    return attempt.require(
        off[apart].item() <= SIGMAS + 1,  # (of so many distances)
        f"as many go up as should, but numbers that stand {apart + 1} apart go the same way (or "
        "opposite ways) too often: each needs a chance of its own",
    )


def _with_those_apart(of: torch.Tensor) -> torch.Tensor:
    """For each distance, from 1 on, the sum of of[i] * of[i + distance]: by a Fourier transform."""
    spectrum = torch.fft.rfft(of, 2 * len(of))
    return torch.fft.irfft(spectrum.abs() ** 2, 2 * len(of))[1 : len(of)]


def _deviation(got: torch.Tensor, x: torch.Tensor) -> list[float]:
    """How far the count is from its mean, in standard deviations; nothing where few could go up."""
    p = _bounds(x)[2].where(_between(x), 0.0)
    variance = (p * (1 - p)).sum().item()
    if variance < LARGE / 2:
        return []
    up = (got.float() != _bounds(x)[0]) & _between(x)
    return [(up.sum() - p.sum()).item() / math.sqrt(variance)]


def _as_expected(found, mean, variance) -> bool:
    found, variance = torch.as_tensor(found), torch.as_tensor(variance)
    return bool(((found - mean).abs() <= SIGMAS * variance.sqrt() + 1e-9).all())


def _share_says(share: float, asked: float, negative: bool) -> str:
    text = f"{share:.4%} of them go up, away from zero; the probability is {asked:.4%}"
    if share == 0.0 and asked < 0.001:
        return f"{text}: the random numbers have too few bits for so small a rest, or it was lost"
    if share == 0.0:
        return f"{text}: it is cut off{', or rounded to the nearest' if asked < 0.5 else ''}"
    if share == 1.0:
        return f"{text}: whatever is left over goes up"
    if negative and abs(share - (1 - asked)) < 0.01:
        return f"{text}: of a negative number, up and down are the wrong way round"
    if abs(share - 0.5) < 0.01:
        return f"{text}: that is a fair coin, and what is left over should decide"
    if abs(share - (1 - asked)) < 0.01:
        return f"{text}: that is the probability of going down"
    return f"{text}: the mean is not what came in"


def _again(attempt: Attempt, learner, got, x, generator, before) -> bool:
    """All chance is the generator's: the same from the same state, other from another."""
    asks = _between(x)
    if int(asks.sum()) < LARGE or x.numel() == MANY:
        return True
    if torch.equal(generator.get_state(), before):
        return attempt.require(False, "it draws nothing from `generator`, whose chance it is")
    second = attempt.call(learner, {"x": x, "generator": generator})
    if not _neighbours(attempt, second, x) or not _chances(attempt, second, x):
        return False
    if torch.equal(second[asks], got[asks]):
        return attempt.require(
            False,
            "a second call with the same numbers goes the same ways: the generator was begun anew, "
            "or something is kept between calls",
        )
    low, _, p = _bounds(x)
    first, then = ((of.float() != low).double().where(asks, 0.0) - p for of in (got, second))
    spread = ((p * (1 - p)) ** 2).sum()
    if spread >= ENOUGH and not _as_expected((first * then).sum(), 0.0, spread):
        return attempt.require(
            False,
            "what goes up in one call goes up (or down) too often in the next one: each call needs "
            "chances of its own",
        )
    generator.set_state(before)
    third = attempt.call(learner, {"x": x, "generator": generator})
    return attempt.require(
        isinstance(third, torch.Tensor) and torch.equal(third[asks], got[asks]),
        "from the same state of `generator` it goes other ways: chance is from elsewhere, too, or "
        "something is kept between calls",
    )


def _many_steps(attempt: Attempt, learner) -> bool:
    """Weights in bf16 that are moved by much less than a step of theirs."""
    steps, ulp, generator = 64, 2.0**-7, torch.Generator().manual_seed(5)
    weights = torch.ones(4096, dtype=torch.bfloat16)
    for _ in range(steps):
        moved = weights.float() + ulp / steps
        weights = attempt.call(learner, {"x": moved, "generator": generator})
        if not _neighbours(attempt, weights, moved):
            return False
    # Each step adds a variance of at most f (1 - f) ulp^2, f = 1/64.
    off = weights.double().mean().item() - 1 - ulp
    allowed = SIGMAS * ulp * math.sqrt(steps * (1 / steps) * (1 - 1 / steps) / len(weights))
    return attempt.require(
        abs(off) <= allowed,
        f"on average the weights moved by {(off + ulp) / ulp:.3f} ulp, and should by 1",
    )


EXERCISE = Exercise(
    id="precision.format.stochastic",
    goal="Round fp32 to bf16 by chance, so that nothing is lost on average: a number between two "
    "of bf16 goes to the one away from zero with the probability of the part of the way that it "
    "has come, else to the one towards zero. What bf16 has stays, always.",
    interface="`my_stochastic(x, generator)` returns a torch.bfloat16 tensor like x. x: fp32, any "
    "shape, perhaps empty. Chance is a `torch.Generator`'s: all random numbers are drawn from it "
    "(`generator=generator`), and it is not seeded anew. Each number has a chance of its own, "
    "independent of all others and of other calls. Subnormal numbers of bf16 are numbers as all "
    "others. Between its largest number and 2^128 infinity counts as the upper neighbour. NaN "
    "stays NaN, infinities stay, and so does the sign.",
    budget="Nothing is sent. Millions of numbers: the smallest rest that fp32 can leave, 2^-16 of "
    "the way, must go up once in 65,536 times. Counts may be off by six standard deviations.",
    hints=(
        "bf16 is the upper half of fp32's bits. What is left over is an integer from 0 to 65535. "
        "How does one go up with the probability rest / 65536, with an integer that is drawn?",
        "Add a random integer from 0 to 65535 to the bits and cut the lower half off: a carry "
        "comes in rest of 65536 cases. Why is it right for negative numbers too, and what does it "
        "do to a NaN?",
        "`bits = x.view(torch.int32)`, `torch.randint(0, 2**16, x.shape, dtype=torch.int32, "
        "generator=generator)`, `& -0x10000`, back by `view(torch.float32)`; what is not finite "
        "is left as it was. The cast to bf16 is exact then.",
    ),
    stub_function=my_stochastic,
    solution_function=solution,
    why="An update of less than half an ulp is lost by rounding to nearest, each time anew, and a "
    "bf16 weight of 1 has an ulp of 0.0078: with a learning rate of 1e-3 AdamW moves it by "
    "nothing. Stochastic rounding moves one weight in eight by a whole ulp instead, and the sum of "
    "many steps is right on average; its variance per step is f (1 - f) ulp². That saves the fp32 "
    "masters, 4 of some 16 bytes a parameter. The bits are sign and size, so a carry moves "
    "away from zero for both signs. Replicas that draw other numbers drift apart: they need the "
    "same generator's state (with ZeRO, one owner draws). Sources: arXiv 1502.02551, 2010.06192.",
    judge=judge,
    cases=(Case("dp1", "counts of millions"),),
    blocked=("picolab.precision.formats.round_to",),
    timeout=30.0,
)
