"""Wrong answers to precision.format.stochastic, what each author must be told, and right ones."""

import inspect

import torch

from picolab.chapters.c04_mixed_precision.stochastic import solution


def _answer(x, generator, *, chance=None, shape=lambda x: x.shape, keep=torch.isfinite):
    """The solution, with one thing to be done otherwise."""
    bits = x.view(torch.int32)
    if chance is None:
        drawn = torch.randint(0, 2**16, shape(x), dtype=torch.int32, generator=generator)
    else:
        drawn = chance(x, generator)
    moved = (bits + drawn) & -0x10000
    moved = torch.where(keep(x), moved, bits)
    return moved.view(torch.float32).to(torch.bfloat16)


def to_the_nearest(x, generator):
    torch.rand(1, generator=generator)
    return x.to(torch.bfloat16)


def cuts_off(x, generator):
    return _answer(x, generator, chance=lambda x, _: torch.zeros(x.shape, dtype=torch.int32))


def tosses_a_coin(x, generator):
    def chance(x, generator):
        return torch.randint(0, 2, x.shape, dtype=torch.int32, generator=generator) * 0xFFFF

    return _answer(x, generator, chance=chance)


def always_up(x, generator):
    return _answer(x, generator, chance=lambda x, _: torch.full(x.shape, 0xFFFF, dtype=torch.int32))


def one_chance_for_all(x, generator):
    return _answer(x, generator, shape=lambda x: ())


def one_chance_a_row(x, generator):
    return _answer(x, generator, shape=lambda x: (*x.shape[:-1], 1) if x.dim() else ())


def one_chance_a_column(x, generator):
    return _answer(x, generator, shape=lambda x: (1, *x.shape[1:]) if x.dim() > 1 else x.shape)


def pairs_of_opposites(x, generator):
    """u and 1 - u in turn, for a smaller variance of the sum."""

    def chance(x, generator):
        half = torch.randint(
            0, 2**16, ((x.numel() + 1) // 2,), dtype=torch.int32, generator=generator
        )
        both = torch.stack([half, 0xFFFF - half], 1).flatten()[: x.numel()]
        return both.view(x.shape)

    return _answer(x, generator, chance=chance)


def half_of_them_drawn(x, generator):
    """The second half has the first one's chances."""

    def chance(x, generator):
        half = torch.randint(
            0, 2**16, ((x.numel() + 1) // 2,), dtype=torch.int32, generator=generator
        )
        return torch.cat([half, half])[: x.numel()].view(x.shape)

    return _answer(x, generator, chance=chance)


def eight_bits_of_chance(x, generator):
    def chance(x, generator):
        return torch.randint(0, 2**8, x.shape, dtype=torch.int32, generator=generator) << 8

    return _answer(x, generator, chance=chance)


def one_too_few(x, generator):
    def chance(x, generator):
        return torch.randint(0, 2**16 - 1, x.shape, dtype=torch.int32, generator=generator)

    return _answer(x, generator, chance=chance)


def moves_what_is_exact(x, generator):
    """From 1 to 2^16 instead of from 0."""

    def chance(x, generator):
        return 1 + torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)

    return _answer(x, generator, chance=chance)


def noise_before_rounding(x, generator):
    """Noise of a whole ulp up or down, and then the nearest."""
    bits = x.view(torch.int32)
    noise = torch.randint(-(2**16), 2**16, x.shape, dtype=torch.int32, generator=generator)
    moved = torch.where(bits & 0xFFFF == 0, bits, bits + noise).view(torch.float32)
    return torch.where(x.isfinite() & (x != 0), moved, x).to(torch.bfloat16)


def carries_nan_away(x, generator):
    return _answer(x, generator, keep=lambda x: torch.ones_like(x, dtype=torch.bool))


def saturates_at_the_end(x, generator):
    return solution(x, generator).clamp(-3.3895313892515355e38, 3.3895313892515355e38)


def makes_nan_zero(x, generator):
    return solution(x, generator).nan_to_num(0.0)


def toward_plus_infinity(x, generator):
    """The probability of going up is taken for that of going away from zero."""
    bits = x.view(torch.int32)
    rest = bits & 0xFFFF
    rest = torch.where((bits < 0) & (rest > 0), 0x10000 - rest, rest)
    drawn = torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)
    moved = (bits & -0x10000) + ((rest + drawn) >> 16 << 16)
    return torch.where(x.isfinite(), moved, bits).view(torch.float32).to(torch.bfloat16)


def probability_of_going_down(x, generator):
    bits = x.view(torch.int32)
    rest = bits & 0xFFFF
    drawn = torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)
    moved = (bits & -0x10000) + (((rest > 0) & (drawn >= rest)).int() << 16)
    return torch.where(x.isfinite(), moved, bits).view(torch.float32).to(torch.bfloat16)


def flushes_subnormals(x, generator):
    found = solution(x, generator)
    return torch.where(x.abs() < 2.0**-126, torch.zeros_like(found), found)


def torchs_own_chance(x, generator):
    return _answer(
        x, generator, chance=lambda x, _: torch.randint(0, 2**16, x.shape, dtype=torch.int32)
    )


def both_chances(x, generator):
    """The generator's for what is left over, and torch's own to break it up."""
    own = torch.Generator()
    own.seed()

    def chance(x, generator):
        first = torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)
        return (first + torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=own)) % 2**16

    return _answer(x, generator, chance=chance)


def a_generator_of_its_own(x, generator):
    return solution(x, torch.Generator().manual_seed(0))


def seeded_anew(x, generator):
    return solution(x, generator.manual_seed(7))


_kept: dict = {}


def drawn_once(x, generator):
    """The chances of a shape are kept for the next call."""
    key = tuple(x.shape)
    if key not in _kept:
        _kept[key] = torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)
    torch.rand(1, generator=generator)
    return _answer(x, generator, chance=lambda x, _: _kept[key])


def by_its_seed(x, generator):
    """A generator of its own, begun with the given one's seed."""
    torch.rand(1, generator=generator)
    return solution(x, torch.Generator().manual_seed(generator.initial_seed()))


def opposite_calls(x, generator):
    """Every second call takes the opposites of the one before, for a smaller variance."""
    key = "opposite", tuple(x.shape)
    if key in _kept:
        chances = 0xFFFF - _kept.pop(key)
        torch.rand(1, generator=generator)
    else:
        chances = torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)
        _kept[key] = chances
    return _answer(x, generator, chance=lambda x, _: chances)


def in_fp32(x, generator):
    return solution(x, generator).float()


def in_fp16(x, generator):
    return solution(x, generator).half()


def changes_its_input(x, generator):
    found = solution(x, generator)
    x.copy_(found)
    return found


def in_its_input(x, generator):
    """The carry is made in the memory of the argument."""
    bits = x.view(torch.int32)
    chance = torch.randint(0, 2**16, x.shape, dtype=torch.int32, generator=generator)
    bits.copy_(torch.where(x.isfinite(), (bits + chance) & -0x10000, bits))
    return x.to(torch.bfloat16)


def normal_noise(x, generator):
    """Noise that is normal, not even: ends elsewhere, and by other probabilities."""
    rest = (x.view(torch.int32) & 0xFFFF).float() / 65536
    noise = 0.5 + 0.25 * torch.randn(x.shape, generator=generator)
    bits = x.view(torch.int32) & -0x10000
    up = (rest > 0) & (rest + noise >= 1)
    moved = torch.where(x.isfinite(), bits + (up.int() << 16), x.view(torch.int32))
    return moved.view(torch.float32).to(torch.bfloat16)


def of_the_package(x, generator):
    from picolab.precision import round_to

    return round_to(x, "bf16", stochastic=generator).to(torch.bfloat16)


def the_examples_alone(x, generator):
    """The judge's small tensors are right, and large ones to the nearest."""
    return solution(x, generator) if x.numel() < 1000 else to_the_nearest(x, generator)


def reads_the_judges_frames(x, generator):
    """The neighbours that the judge compares with, if they are there already."""
    for frame in inspect.stack():
        found = frame.frame.f_locals.get("low")
        if isinstance(found, torch.Tensor) and found.shape == x.shape:
            return found.to(torch.bfloat16)
    return to_the_nearest(x, generator)


def deals_out_evenly(x, generator):
    """Every chance from 0 to 65535 once, shuffled: no count is ever off."""

    def chance(x, generator):
        shuffled = torch.randperm(x.numel(), generator=generator)
        return (shuffled * 65536 // max(1, x.numel())).int().view(x.shape)

    return _answer(x, generator, chance=chance)


def draws_5000_for_all(x, generator):
    """And takes them again and again."""

    def chance(x, generator):
        drawn = torch.randint(0, 2**16, (5000,), dtype=torch.int32, generator=generator)
        return drawn.repeat(1 + x.numel() // 5000)[: x.numel()].view(x.shape)

    return _answer(x, generator, chance=chance)


MUTANTS = {
    one_chance_a_row: "go the same way: each needs a chance of its own",
    eight_bits_of_chance: "the random numbers have too few bits",
    to_the_nearest: "or rounded to the nearest",
    cuts_off: "it is cut off",
    tosses_a_coin: "that is a fair coin",
    always_up: "whatever is left over goes up",
    one_chance_for_all: "go up, away from zero",
    one_chance_a_column: "go the same way: each needs a chance of its own",
    pairs_of_opposites: "go the same way (or opposite ways) too often",
    half_of_them_drawn: "go the same way (or opposite ways) too often",
    one_too_few: "too few bits for so small a rest",
    moves_what_is_exact: "bf16 has this number, and it must stay",
    noise_before_rounding: "than its neighbour",
    carries_nan_away: "a NaN stays a NaN",
    saturates_at_the_end: "infinity stays infinity",
    makes_nan_zero: "a NaN stays a NaN",
    toward_plus_infinity: "of a negative number, up and down are the wrong way round",
    probability_of_going_down: "the probability of going down",
    flushes_subnormals: "and it must stay, always",
    torchs_own_chance: "from torch's own generator",
    both_chances: "from the same state of `generator` it goes other ways",
    a_generator_of_its_own: "it draws nothing from `generator`",
    seeded_anew: "goes the same ways: the generator was begun anew",
    drawn_once: "goes the same ways",
    by_its_seed: "goes the same ways",
    opposite_calls: "each call needs chances of its own",
    in_fp32: "is in torch.float32, and should be in torch.bfloat16",
    in_fp16: "is in torch.float16, and should be in torch.bfloat16",
    changes_its_input: "it changed its input `x`",
    in_its_input: "it changed its input `x`",
    normal_noise: "the mean is not what came in",
    of_the_package: "is what this exercise asks you to write",
    the_examples_alone: "or rounded to the nearest",
    reads_the_judges_frames: "or rounded to the nearest",
    deals_out_evenly: "dealt out evenly",
    draws_5000_for_all: "numbers that stand 5000 apart",
}


def by_real_numbers(x, generator):
    """In fp64: the part of the way, and a random number beside it."""
    size = x.double().abs()
    exponent = torch.frexp(size)[1].sub(1).clamp(min=-126)
    ulp = torch.ldexp(torch.ones_like(size), (exponent - 7).double())
    steps = size / ulp
    chance = torch.rand(x.shape, dtype=torch.float64, generator=generator)
    found = torch.copysign((steps + chance).floor() * ulp, x.double())
    return torch.where(x.isfinite(), found, x.double()).to(torch.bfloat16)


def by_a_toss(x, generator):
    """Both neighbours, and a toss that is loaded by what is left over."""
    low = (x.view(torch.int32) & -0x10000).view(torch.float32)
    rest = (x.view(torch.int32) & 0xFFFF).double() / 65536
    up = torch.bernoulli(rest.where(x.isfinite(), 0.0), generator=generator).bool()
    high = ((x.view(torch.int32) & -0x10000) + 0x10000).view(torch.float32)
    return torch.where(x.isfinite(), torch.where(up, high, low), x).to(torch.bfloat16)


RIGHT = (by_real_numbers, by_a_toss)
