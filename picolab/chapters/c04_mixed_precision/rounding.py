"""Exercise: rounding by integers, to any short format (chapter 4, section 1).

The bits of fp32 numbers come in and the bits of a short format go out. Everything on the way is
seen (torch's dispatcher), and an operator that gives floating-point numbers is refused: so no cast
of torch's does the rounding. The ways out of torch that end in floating-point numbers (numpy,
struct, ctypes, a memoryview's cast, frexp and ldexp of `math`) are seen by the interpreter's
profiler, and refused too. What is right is looked up in a table of all numbers that the format has.
"""

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_rounding(bits, exponent, mantissa):
    raise NotImplementedError(
        f"{bits.numel()} numbers of fp32, as integers, to {1 + exponent + mantissa} bits"
    )


def solution(bits, exponent, mantissa):
    import torch

    size = bits & 0x7FFFFFFF
    field = size >> 23
    whole = (size & 0x7FFFFF) | ((field > 0).int() << 23)  # with the 1 that is not written
    power, least = field.clamp(min=1) - 127, 2 - 2 ** (exponent - 1)
    # Subnormals lose more bits; beyond mantissa + 2 more of them nothing is left to round.
    drop = 23 - mantissa + (least - power).clamp(0, mantissa + 2)
    kept = whole >> drop
    rest, half = whole - (kept << drop), 1 << (drop - 1)
    kept += ((rest > half) | ((rest == half) & (kept & 1 == 1))).int()
    # A carry out of the mantissa goes into the exponent, and from the largest number to infinity.
    found = ((power.clamp(min=least) - least) << mantissa) + kept
    infinite = (2**exponent - 1) << mantissa
    found = found.clamp(max=infinite)
    found = torch.where(size > 0x7F800000, infinite | 1 << (mantissa - 1), found)
    return found | ((bits < 0).int() << (exponent + mantissa))


class _Floats(TorchDispatchMode):
    """The operators that gave floating-point numbers, while it is entered."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and (one.is_floating_point() or one.is_complex()):
                self.seen.append(func.overloadpacket.__name__.strip("_"))
        return out


# Functions written in C, by their module, through which bits become a number or a number bits.
_MODULES = {"numpy": "numpy", "_struct": "struct", "_ctypes": "ctypes"}
_NAMED_CALLS = {("math", "frexp"), ("math", "ldexp"), ("memoryview", "cast"), ("Tensor", "numpy")}


@contextmanager
def _calls_out() -> Iterator[list[str]]:
    """While open, the functions in C that were called and of which floating-point numbers come, in
    this thread and in those that are started."""
    seen: list[str] = []

    def listen(_, event: str, function) -> None:
        if event != "c_call":
            return
        owner = getattr(function, "__self__", None)
        kind = owner if isinstance(owner, type) else type(owner)
        module = function.__module__ or kind.__module__
        module = module if isinstance(module, str) else ""
        if (found := _MODULES.get(module.partition(".")[0])) is not None:
            seen.append(f"{found}'s {function.__name__}")
        elif (module, function.__name__) in _NAMED_CALLS:
            seen.append(f"{module}'s {function.__name__}")
        elif (kind.__name__, function.__name__) in _NAMED_CALLS:
            seen.append(f"{kind.__name__}'s {function.__name__}")

    before = sys.getprofile()
    threading.setprofile(listen)
    sys.setprofile(listen)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        threading.setprofile(before)


def judge(learner, attempt: Attempt) -> None:
    for about, bits, exponent, mantissa in _questions(attempt):
        attempt.only()
        attempt.budget(count=0)
        attempt.setting(about)
        floats = _Floats()
        given = {"bits": bits, "exponent": exponent, "mantissa": mantissa}
        with floats, _calls_out() as out:
            got = attempt.call(learner, given)
        if floats.seen:
            attempt.wrong(
                f"`{floats.seen[0]}` gives floating-point numbers: the rounding is to be done by "
                "integers alone, shifts, masks, comparisons and sums"
            )
            return
        if out:
            attempt.wrong(
                f"`{out[0]}` leads out of torch to where numbers are floating-point ones, and the "
                "judge does not see what rounds them: use integers of torch or Python's own"
            )
            return
        if not _compare(attempt, got, bits, exponent, mantissa):
            return
    attempt.only()
    attempt.budget(count=0)


_NAMED = {"bf16": (8, 7), "fp16": (5, 10), "e5m2": (5, 2)}
_OTHERS = ((4, 3), (3, 2), (2, 1), (8, 1), (6, 9), (8, 10), (2, 3), (7, 5))


def _questions(attempt: Attempt):
    """Easy ones first: what is told is of the first that is wrong."""
    few = torch.tensor([1.0, -2.7, 0.0, 3.14159, -1.1e-3, 97.3]).view(torch.int32)
    formats = [*_NAMED.items(), *((f"e{e}m{m}", (e, m)) for e, m in _OTHERS)]
    for name, (exponent, mantissa) in formats:
        yield f"6 numbers to {name}", few, exponent, mantissa
    for name, (exponent, mantissa) in formats:
        upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
        step = 1 if name == "bf16" else 37  # (all upper halves for one format)
        lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
        every = (upper[::step, None] | lower).contiguous()
        yield f"numbers of all sizes to {name}", every, exponent, mantissa
        yield f"halfway between two of {name}, and beside it", _halfway(exponent, mantissa), *(
            exponent, mantissa,
        )  # fmt: skip
    drawn = (attempt.tensor(4000) * 2.0**20).to(torch.int32) * 1021
    for name, shape in (("one alone", ()), ("none", (0,)), ("of shape (3, 5, 7)", (3, 5, 7))):
        yield f"{name} to bf16", drawn[: math.prod(shape)].view(shape), 8, 7
    yield "a transposed matrix to fp16", drawn.view(40, 100).T, 5, 10
    yield "random bits to e6m9", drawn, 6, 9


def _halfway(exponent: int, mantissa: int) -> torch.Tensor:
    """The middles between neighbours, and what lies one step of fp32 beside them; of both signs."""
    values = _values(exponent, mantissa)
    every = max(1, len(values) // 3000)
    last = torch.arange(max(0, len(values) - 9), len(values) - 1)
    at = torch.cat([torch.arange(0, len(values) - 1, every), last])
    middles = ((values[at] + values[at + 1]) / 2).float()
    middles = middles[middles.double() == (values[at] + values[at + 1]) / 2]  # (that fp32 has)
    bits = middles.view(torch.int32)
    bits = torch.cat([bits, bits + 1, bits - 1, values[at].float().view(torch.int32)])
    return torch.cat([bits, bits | -(2**31)])


def _values(exponent: int, mantissa: int) -> torch.Tensor:
    """What the patterns from 0 upwards stand for, and behind the largest number what would be the
    next one."""
    patterns = torch.arange(((2**exponent - 1) << mantissa) + 1)
    field, part = patterns >> mantissa, patterns & (2**mantissa - 1)
    part = torch.where(field > 0, part + 2**mantissa, part)
    least = 2 - 2 ** (exponent - 1)
    return torch.ldexp(part.double(), (field.clamp(min=1) - 1 + least - mantissa).double())


def _right(bits, exponent: int, mantissa: int, nearest=None) -> torch.Tensor:
    """The patterns, by searching the table. nearest: whether to go up, from (twice what is left
    over, the distance to the next, whether the lower one is odd)."""
    nearest = nearest or (lambda twice, gap, odd: (twice > gap) | ((twice == gap) & odd))
    values, x = _values(exponent, mantissa), bits.contiguous().view(torch.float32).double().abs()
    top = len(values) - 1
    low = (torch.searchsorted(values, x.nan_to_num(0.0), right=True) - 1).clamp(max=top - 1)
    twice, gap = 2 * (x - values[low]), values[low + 1] - values[low]
    found = low + nearest(twice, gap, low % 2 == 1).long()
    found = torch.where(x >= values[top], top, found)
    found = torch.where(x.isnan(), top + 1, found)
    return (found + (bits < 0).long() * 2 ** (exponent + mantissa)).to(torch.int32)


def _compare(attempt: Attempt, got, bits, exponent: int, mantissa: int) -> bool:
    if not isinstance(got, torch.Tensor) or got.shape != bits.shape or got.dtype != bits.dtype:
        right = _right(bits, exponent, mantissa)
        same = isinstance(got, torch.Tensor) and got.shape == right.shape
        if same and got.dtype != right.dtype:
            return attempt.require(
                False, f"the bits are in {got.dtype}; asked for are integers, torch.int32 as `bits`"
            )
        return attempt.equal("the result", got, right)
    right, width = _right(bits, exponent, mantissa), 1 + exponent + mantissa
    top, sign = (2**exponent - 1) << mantissa, 1 << (exponent + mantissa)
    x = bits.contiguous().view(torch.float32)
    is_nan = ((got & (sign - 1)) > top) & (got >= 0) & (got < 2 * sign)
    wrong = torch.where(x.isnan(), ~is_nan, got != right)
    if not wrong.any():
        return True
    if ((got < 0) | (got >= 2 * sign)).any():
        at = _first((got < 0) | (got >= 2 * sign))
        return attempt.require(
            False, f"{_hex(bits[at])} becomes {int(got[at])}, which is no pattern of {width} bits"
        )
    at, why = _why(got, right, wrong, x, exponent, mantissa)
    as_number = f"{x[at].item():.9g}, in bits {_hex(bits[at])}"
    given, asked = (_bits(int(of[at]), exponent, mantissa) for of in (got, right))
    return attempt.require(False, f"{as_number}: it becomes {given}, and should {asked}: {why}")


def _why(got, right, wrong, x, exponent: int, mantissa: int):
    """Where to look, and what is wrong there: the first kind that has mistakes."""
    bits, sign = x.view(torch.int32), 1 << (exponent + mantissa)
    top, least = (2**exponent - 1) << mantissa, 2.0 ** (2 - 2 ** (exponent - 1))
    size, asked, mine = x.double().abs(), right & (sign - 1), got & (sign - 1)
    values = _values(exponent, mantissa)
    low = (torch.searchsorted(values, size.nan_to_num(0.0), right=True) - 1).clamp(0, top - 1)
    half = (size * 2 == values[low] + values[low + 1]) & (size < values[top])
    inside = ~x.isnan() & (size < values[top]) & (size >= least) & (asked != top)
    rules = {
        "it is cut off, and should be rounded to the nearest": lambda t, g, o: t < 0,
        "what is halfway goes up always, and should go to the even one of the two": (
            lambda t, g, o: t >= g
        ),
        "what is halfway is cut off always, and should go to the even one of the two": (
            lambda t, g, o: t > g
        ),
        "it goes up whatever is left over, and should go to the nearest": lambda t, g, o: t > 0,
        "what is halfway goes to the odd one of the two": (
            lambda t, g, o: (t > g) | ((t == g) & ~o)
        ),
    }
    for why, rule in rules.items():
        other = _right(bits, exponent, mantissa, rule)
        if torch.equal(got[inside], other[inside]) and wrong[inside].any():
            return _first(wrong & inside), why
    same_size, step = mine == asked, 1 << mantissa
    tiny = ~x.isnan() & (size < least)
    for off in (step, -step):
        if inside.any() and (mine - asked == off)[inside & (size >= 2 * least)].all():
            return _first(wrong & inside), (
                "every exponent is off by 1: its bias is 2^(exponent-1) - 1"
            )
    if exponent < 8:
        first = (_right(bits, 8, mantissa).long() << (23 - mantissa)).to(torch.int32)
        if torch.equal(got[tiny], _right(first, exponent, mantissa)[tiny]) and wrong[tiny].any():
            return _first(wrong & tiny), (
                "below the smallest normal number it is rounded twice, first as a normal one: what "
                "is cut off in all decides, once"
            )
    kinds = (
        (x.isnan(), "a NaN must stay one: its bits may all be among those that are cut off, and "
         "a carry must not leave it"),
        (same_size, "the sign is another one; zeros have one too"),
        (~tiny & ((mine == asked - step) | (mine == asked - 2 * step)), "the carry out of the "
         "mantissa did not go into the exponent"),
        (x.isinf(), "infinity stays infinity, all ones and a mantissa of 0"),
        (tiny & (mine[tiny] == 0).all(), "it is below the smallest normal number, and flushed to "
         "zero: the format has subnormals there"),
        (tiny & half, "halfway between two subnormals, and the even one is asked for"),
        (tiny & (size > 0), "it is below the smallest normal number: there the distance between "
         "neighbours stays what it is, and more bits are cut off"),
        (size == 0, "zero stays zero"),
        ((asked == top) & (mine < top), "half a step beyond the largest number and more becomes "
         "infinity"),
        ((asked == top) & (mine > top), "it should be infinity, and is a NaN or beyond: a carry "
         "went too far"),
        ((asked < top) & (mine >= top), "it is less than half a step beyond the largest number, "
         "and rounded down to that"),
        (half, "it is halfway, and the even one of the two is asked for"),
    )  # fmt: skip
    for where, why in kinds:
        if (wrong & where).any():
            return _first(wrong & where), why
    return _first(wrong), "the nearest one is another"


def _first(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def _hex(bits: torch.Tensor) -> str:
    return f"0x{int(bits) & 0xFFFFFFFF:08X}"


def _bits(pattern: int, exponent: int, mantissa: int) -> str:
    """Sign, exponent and mantissa, apart."""
    text = f"{pattern:0{1 + exponent + mantissa}b}"
    return f"{text[0]} {text[1 : 1 + exponent]} {text[1 + exponent :]}"


EXERCISE = Exercise(
    id="precision.format.round",
    goal="Round fp32 numbers to a shorter format as a processor does it: with integers alone. The "
    "bits of numbers come in, the bits of the nearest numbers of the format go out, of two equally "
    "near ones the even one. One function for bf16 (8 exponent bits, 7 of mantissa), fp16 (5, 10), "
    "e5m2 (5, 2), and any other format of that kind.",
    interface="`my_rounding(bits, exponent, mantissa)` returns integers like `bits` (torch.int32, "
    "any shape, perhaps empty), from 0 to 2^(1 + exponent + mantissa) - 1. `bits` are those of "
    "fp32: a sign, 8 of exponent, 23 of mantissa; of a negative number the integer is negative. "
    "The format has a sign, 2 to 8 exponent bits with the bias 2^(exponent-1) - 1, 1 to 10 of "
    "mantissa, subnormals, and, where the exponent is all ones, infinity (mantissa 0) and NaN. "
    "From half a step beyond the largest number on comes infinity; below the smallest normal "
    "number the distance between neighbours stays what it is. A NaN becomes a NaN, any; the sign "
    "stays, of zero too.",
    budget="Nothing is sent, and no operator of torch may give a floating-point number: the judge "
    "sees each, so a cast is refused, and so is `view(torch.float32)`; so are numpy, struct and "
    "ctypes. All upper halves of fp32, and what is halfway between neighbours, for eleven formats.",
    hints=(
        "Take sign, exponent and mantissa apart. A number is a whole number (the mantissa, with "
        "the 1 that is not written) times a power of two. Which bits of that whole number does "
        "the format not have, of a normal number and of a subnormal one?",
        "`kept = whole >> drop` and what is left over decide: more than half of 1 << drop goes up, "
        "exactly half if `kept` is odd. Below the smallest normal number, 2^least, `drop` grows "
        "by least - power; shifts of 32 and more are undefined, so bound it.",
        "Patterns of positive numbers are in the order of the numbers. So ((power - least) << "
        "mantissa) + kept, with the written-out 1 in `kept`, is the pattern, and a carry does "
        "the right thing by itself: into the exponent, from subnormal to normal, and to infinity, "
        "where you bound it. NaN is put in at the end.",
    ),
    stub_function=my_rounding,
    solution_function=solution,
    why="Positive floating-point numbers are sorted like their patterns, so the next number is the "
    "next integer and a carry out of the mantissa is no special case. For bf16, which has fp32's "
    "exponents, `drop` is 16 throughout, and the whole becomes the well-known `(bits + 0x7FFF + "
    "((bits >> 16) & 1)) >> 16`, with NaN apart: 0x7FFFFFFF would carry into the sign, and a NaN "
    "whose bits are all low would become infinity. Ties to even matter because halfway is "
    "frequent in short formats: sums of two bf16 numbers have few bits, and a rule that always "
    "goes up would drift. `pico.precision.round_to` defines the same by real numbers, ulp(x) * "
    "nearest_even(x / ulp(x)); a test holds both equal.",
    judge=judge,
    cases=(Case("dp1", "eleven formats"),),
    timeout=30.0,
)
