"""From wrong numbers to the mistake that makes them.

Only what holds for any exercise: a factor, a sign, a transposition, rows in another order or moved
by one, rounding, places that are wrong alone, a sum that lacks a rank's part. What one exercise
alone knows is its judge's, see `Attempt.equal(mistakes=...)`. Each guess is *checked*: a sentence
is said only if the numbers are, all of them, what that mistake gives.
"""

import itertools

import torch

Axes = dict[str, tuple[int, int]]
"""axis -> (this rank's index along it, how many ranks it has)"""

_SAME = 1e-9  # of the largest number: what two fp64 computations of one thing may differ by
_LOW = ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32"))


def near(got: torch.Tensor, expected: torch.Tensor, rtol: float) -> bool:
    """The same numbers, up to rtol of the largest finite one; infinities exactly, and no nan."""
    if expected.numel() == 0 or got.shape != expected.shape:
        return got.shape == expected.shape
    got, expected = got.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(got[~finite], expected[~finite]) or not got[finite].isfinite().all():
        return False
    if not finite.any():
        return True
    scale = max(expected[finite].abs().max().item(), 1e-300)
    return (got - expected)[finite].abs().max().item() <= rtol * scale


def shape_says(got: torch.Tensor, expected: torch.Tensor) -> str:
    """What to add to two shapes that differ, or ""."""
    if got.dim() == 2 and near(got.T, expected, _SAME):
        return ": its numbers are right, and transposed"
    if got.numel() == expected.numel() and near(got.reshape(expected.shape), expected, _SAME):
        return ": its numbers are right, and only the shape is not"
    return ""


def not_finite_says(got: torch.Tensor, expected: torch.Tensor) -> str | None:
    """If the finite and the infinite do not stand where they should."""
    bad = ~got.isfinite() & ~((got == expected) & expected.isinf())
    if bad.any():
        kinds = " and ".join(
            word
            for word, has in (("nan", got.isnan()), ("infinite", got.isinf()))
            if has[bad].any()
        )
        return f"has {int(bad.sum())} entries that are not finite ({kinds}){_at(bad)}"
    bad = ~expected.isfinite() & got.isfinite()
    if bad.any():
        first = _first(bad)
        return (
            f"is wrong{_at(bad)}: it is {got[first].item():.6g}, and should be "
            f"{expected[first].item():.6g}; so in {int(bad.sum())} of {got.numel()} places"
        )
    return None


def says(
    got: torch.Tensor,
    expected: torch.Tensor,
    axes: Axes,
    parts: dict[str, torch.Tensor] | None = None,
) -> str:
    """What is wrong with these numbers, in words; both fp64, of one shape.

    parts: axis -> (ranks of the axis, *shape), what each rank adds to what is asked for.
    """
    finite = expected.isfinite()
    got, expected = got.where(finite, 0), expected.where(finite, 0)
    for axis, ranks_parts in (parts or {}).items():
        each = ranks_parts.double().where(finite, 0)
        found = _of_parts(got, expected, axis, axes[axis][0], each)
        if found:
            return f"{found} ({_worst(got, expected)})"
    found = _zero(got) or _rounded(got, expected) or _factor(got, expected, axes)
    for look in (_only_at_zeros, _transposed, _order, _moved, _missing):
        found = found or (expected.numel() > 1 and look(got, expected))
    if found:
        return f"{found} ({_worst(got, expected)})"
    return _worst(got, expected) + _where(got, expected)


def weights(got: torch.Tensor, parts: torch.Tensor) -> list[float] | None:
    """How often each of the parts, (n, *shape), is in got; None if it is no sum of multiples of
    them, or if that many numbers do not tell.
    """
    columns, x = parts.double().flatten(1).T, got.double().flatten()
    if len(x) < len(parts) or not columns.any():
        return None
    found = torch.linalg.lstsq(columns, x.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    if not near(columns @ found, x, 1e-8):
        return None
    # With as many unknowns as numbers anything is such a sum: only simple multiples are evidence.
    for scale in (1, len(parts)):
        whole = (found * scale).round()
        if (found * scale - whole).abs().max() < 1e-6 and whole.abs().max() <= 2 * len(parts):
            return (whole / scale + 0.0).tolist()  # no minus 0
    return None


def ranges(numbers: list[int]) -> str:
    """0, 1, 2, 9 -> "0-2, 9"; whatever does not go up by one is a range of its own."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _of_parts(got, expected, axis: str, me: int, parts) -> str | None:
    counted, wanted, n = weights(got, parts), weights(expected, parts), len(parts)
    if counted is not None and wanted is not None and counted != wanted:
        own = [float(rank == me) for rank in range(n)]
        if counted == own:
            return f"it is this rank's own part alone: nobody added up the ranks' over {axis}"
        if counted == [one / n for one in wanted] and all(wanted):
            return f"it is the mean over the {n} ranks of {axis}, and asked for is the sum"
        times = ", ".join(f"{one:.3g}" for one in counted)
        should = ", ".join(f"{one:.3g}" for one in wanted)
        return (
            f"the parts of the ranks 0 to {n - 1} of {axis} are in it {times} times, and should be "
            f"{should} times"
        )
    for word, other in (("largest", parts.amax(0)), ("smallest", parts.amin(0))):
        if n > 1 and near(got, other, _SAME):
            return f"it is the {word} of the ranks' parts over {axis}, and asked for is their sum"
    return None


def _zero(got) -> str | None:
    return None if got.any() else "all of it is zero"


def _factor(got, expected, axes: Axes) -> str | None:
    big = expected.abs() > 1e-6 * expected.abs().max()
    if not big.any():
        return None
    ratio = got[big] / expected[big]
    if not near(got, ratio[0] * expected, 1e-6):
        return None
    factor = ratio[0].item()
    if expected.numel() == 1 and not _simple(factor):
        return None
    if abs(factor + 1) < 1e-6:
        return "it has the wrong sign throughout"
    text = f"all of it is {factor:.4g} times what it should be"
    for _, n in axes.values():
        if n > 1 and abs(factor * n - 1) < 1e-6:
            return f"{text}: divided by the {n} ranks, as a mean is and a sum is not?"
        if n > 1 and abs(factor - n) < 1e-6:
            return f"{text}: summed over {n} ranks once too often, or not divided by them?"
    return text


def _simple(factor: float) -> bool:
    """A ratio of small whole numbers; a single number has some ratio to any other."""
    return (
        any(abs(factor * n - round(factor * n)) < 1e-7 for n in range(1, 9))
        and 0.05 < abs(factor) < 20
    )


def _only_at_zeros(got, expected) -> str | None:
    zero = expected == 0
    if not zero.any() or zero.all() or not near(got[~zero], expected[~zero], _SAME):
        return None
    wrong = int((got[zero] != 0).sum())
    return (
        f"it is right wherever it is not 0, and {wrong} of {int(zero.sum())} places that should "
        "be 0 are not"
    )


def _transposed(got, expected) -> str | None:
    square = got.dim() >= 2 and got.shape[-1] == got.shape[-2]
    return "it is transposed" if square and near(got.mT, expected, _SAME) else None


def _order(got, expected) -> str | None:
    """The slices along a dim are all there, in another order."""
    for dim in range(got.dim()):
        order = []
        for mine in got.unbind(dim):
            same = [i for i, one in enumerate(expected.unbind(dim)) if near(mine, one, _SAME)]
            if len(same) != 1:
                break
            order += same
        if len(order) == len(set(order)) == got.shape[dim] > 1:
            return f"its numbers are right and in another order: along dim {dim} {ranges(order)}"
    return None


def _moved(got, expected) -> str | None:
    for dim, by in itertools.product(range(got.dim()), (1, -1, 2, -2)):
        left = got.shape[dim] - abs(by)
        if left < 2 or left * (got.numel() // got.shape[dim]) < 4:
            continue
        mine = got.narrow(dim, max(by, 0), left)
        theirs = expected.narrow(dim, max(-by, 0), left)
        if near(mine, theirs, _SAME) and mine.any():
            return f"its numbers are moved by {by} along dim {dim}"
    return None


def _rounded(got, expected) -> str | None:
    off = ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()
    if off > 0.02:
        return None
    for dtype, name in _LOW:
        if torch.equal(got.to(dtype).double(), got):
            return f"it is nearly right, and its numbers are {name} ones: was it rounded on the way"
    if off < 2e-6:
        return (
            f"it is nearly right, off by {off:.1g} of the largest: is something kept in fp32 on "
            "the way (a new tensor is, unless you give it a dtype), or an epsilon added?"
        )
    return None


def _missing(got, expected) -> str | None:
    wrong = (got - expected).abs() > _SAME * expected.abs().max()
    if wrong.any() and not got[wrong].any():
        return f"{int(wrong.sum())} of {got.numel()} numbers are 0 and should not be"
    return None


def _where(got, expected) -> str:
    """Which rows are wrong, if some are right; else how many numbers are."""
    if expected.numel() == 1:
        return ""
    wrong = (got - expected).abs() > _SAME * expected.abs().max()
    for dim in range(got.dim()):
        others = [other for other in range(got.dim()) if other != dim]
        rows = wrong.any(others) if others else wrong
        if rows.any() and not rows.all() and int(rows.sum()) * 2 <= len(rows):
            found = ranges(rows.nonzero().flatten().tolist())
            return f"; wrong only at {found} along dim {dim}, of {len(rows)}"
    return f"; {int((~wrong).sum())} of {expected.numel()} numbers are right"


def _worst(got, expected) -> str:
    worst = int((got - expected).abs().argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape)]
    place = f"at {index} " if index else ""
    return f"{place}it is {got.flatten()[worst]:.6g}, and should be {expected.flatten()[worst]:.6g}"


def _first(mask) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def _at(mask) -> str:
    return f" at {list(_first(mask))}" if mask.dim() else ""
