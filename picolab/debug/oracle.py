"""The oracle: a layout computes what one process computes, or it is told why not.

    verdict = verify("dp2tp2")                                  # real ranks, a second or less
    verdict.ok
    verify("dp2tp2", fault="tp-row-output-missing").cause       # break it, and watch it be named

Two models and a batch, made to be awkward (awkward.py), are trained for some steps twice: by a
plain loop in this process, and by the package's own training run on the ranks of the layout. Then
everything is compared: the loss and the global gradient norm of each step on each rank, the initial
parameters, every gradient of the first step, every parameter after the last one, as held and as
gathered by `state_dict()`, and the count and the bytes of every kind of collective with the
formula's. Tensors are compared as the ranks hold them, each slice with the same slice of one
process's tensor, and all slices together must be the whole; so it is known which rank is wrong.

How equal is equal. Both sides add the same numbers in another order. Write u for the unit roundoff,
1.1e-16 in fp64 and 6.0e-8 in fp32. A sum of k terms, in whatever order, is off by about sqrt(k) u;
along the longest path of this model, some 15 products forward and 15 back with sums of 8 to 96
terms, independent errors add up to about sqrt(30 * 30) u = 30 u of one element, and to half of that
in a tensor's norm (measured: up to 16 u in a gradient). AdamW then divides by the size of each
element: its first update is lr * g / (|g| + eps), of slope lr / eps = 1e3 where g is near zero. The
clipped gradient has norm 0.1 over 14,000 elements, 8e-4 each; an error of 15 u of it is 0.012 u,
which becomes 12 u in the 1 % of elements that are within eps of zero and less elsewhere, so 1 to
2 u overall, against parameters of size 0.18: 10 u a step at the very most. (That is why the clip is
so low: at 0.5, the errors are five times as large against the same eps, and a parameter in fp32 was
off by 80 u.) Allowed are 2e-6 = 33 u in fp32 and 1e-12 = 9,000 u in fp64. The second could be
tighter and need not be: what fails in fp32 because of rounding shrinks by 2^29 in fp64, and a bug
stays as large as it is.

**In bf16 and fp16** both sides round, and one that is split rounds elsewhere: every activation and
every product's output, with u = 2^-8 or 2^-11. Of a rounding's error, at most u, the root mean
square is u / sqrt(3) at the lower end of a power of two and half of that at the upper, 0.4 u. Some
30 products, and a norm or an addition to the residual stream for each, are 60 roundings, and two
sides differ by sqrt(2 * 60) * 0.4 u = 4.4 u of an element (measured: up to 6 u in a gradient).
Three to four times that is allowed, 16 u: 6 % in bf16, 0.8 % in fp16, still far from what a
reduction makes that is missing.

With experts these numbers hold as long as a token goes to the same ones on both sides (measured: up
to 7 u, of 48 comparisons). A choice between two near scores is another one after a rounding, and no
tolerance is for that; so in bf16 and fp16 the numbers by which is chosen and dropped are planted,
the same for the same token (planted.py). Choices themselves are compared in fp64 and fp32, where
nothing is planted.

Leaves out: which ranks would be slow, or hang.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from picolab import launch
from picolab.debug import faults, planted
from picolab.debug.awkward import SHORT, Recipe
from picolab.debug.diagnosis import likely_cause
from picolab.debug.evidence import TOLERANCE, Evidence, difference, ratio, simple
from picolab.debug.observe import Held, Observation, observe, one_process
from picolab.debug.verdict import Row, Verdict
from picolab.model import Piece
from picolab.specs import Layout
from picolab.training.one_thread import one_thread

MOST_RANKS = 16
Compared = Literal["fp64", "fp32", "bf16", "fp16"]


def verify(
    layout: Layout | str,
    *,
    precision: Compared = "fp64",
    fault: str | faults.Fault | None = None,
    expert_copies: str | None = None,
    steps: int = 5,
    seed: int = 7,
    backend: launch.job.Backend = "gloo",
    timeout: float = 120,
) -> Verdict:
    """Does this layout compute what one process computes?

    fault: the name of an entry of `debug.faults` (or a `Fault` of your own), switched on in every
    rank. The diagnosis is not told; it sees what the ranks computed. expert_copies: as in
    TrainConfig. backend "gloo" compares on the CPU; with "nccl" both sides run on GPUs.

    Raises ValueError for a layout that cannot run here or cannot split the model, for a fault that
    does not exist or that this layout cannot have; RankFailure if a rank fails.
    """
    [verdict] = verify_each(
        layout,
        [fault],
        precision=precision,
        expert_copies=expert_copies,
        steps=steps,
        seed=seed,
        backend=backend,
        timeout=timeout,
    )
    return verdict


def verify_each(
    layout: Layout | str,
    each: Sequence[str | faults.Fault | None],
    *,
    precision: Compared = "fp64",
    expert_copies: str | None = None,
    steps: int = 5,
    seed: int = 7,
    backend: launch.job.Backend = "gloo",
    timeout: float = 120,
) -> list[Verdict]:
    """`verify` with one fault after the other, in the same ranks: a verdict for each. To start
    ranks takes longer than most of what is compared.
    """
    cases = [(layout, fault) for fault in each]
    return _verify_all(cases, precision, expert_copies, steps, seed, backend, timeout)


def verify_layouts(
    layouts: Sequence[Layout | str],
    *,
    precision: Compared = "fp64",
    expert_copies: str | None = None,
    steps: int = 5,
    seed: int = 7,
    backend: launch.job.Backend = "gloo",
    timeout: float = 120,
) -> list[Verdict]:
    """`verify` of one layout after the other, in the same ranks: all have as many."""
    layouts = [Layout.parse(layout) for layout in layouts]
    for layout in layouts:
        layout.check_world(layouts[0].world)
    cases = [(layout, None) for layout in layouts]
    return _verify_all(cases, precision, expert_copies, steps, seed, backend, timeout)


def _verify_all(
    cases: Sequence[tuple[Layout | str, str | faults.Fault | None]],
    precision: str,
    expert_copies: str | None,
    steps: int,
    seed: int,
    backend: launch.job.Backend,
    timeout: float,
) -> list[Verdict]:
    """A verdict for each layout and fault, all in one launch."""
    began = time.monotonic()
    parsed = []
    for text, name in cases:
        layout, fault = Layout.parse(text), faults.find(name) if name is not None else None
        recipes = _recipes(layout, precision, expert_copies, steps, seed)
        if fault is not None:
            fault.check(layout)
            if fault.needs == "norms of heads" and precision in SHORT:
                raise ValueError(
                    f"the fault {fault.name!r} needs norms of heads, which the oracle's model does "
                    f"not have in {precision} (their roundings do not average); compare in fp64"
                )
        parsed.append((recipes, fault))
    run = launch.run(
        _rank,
        parsed,
        world_size=layout.world,
        backend=backend,
        timeout=timeout,
        name="verify",
        quiet=True,
    )
    found = []
    for number, (recipes, _) in enumerate(parsed):
        verdicts = []
        for i, recipe in enumerate(recipes):
            ranks: list[Observation] = [of_rank[number][i] for of_rank in run]
            verdicts.append(judge(Evidence(recipe, one_process(recipe, ranks[0].device), ranks)))
        first = next((verdict for verdict in verdicts if not verdict.ok), verdicts[0])
        others = [verdict for verdict in verdicts if verdict is not first]
        found.append(replace(first, others=others, seconds=time.monotonic() - began))
    return found


@one_thread()
def judge(evidence: Evidence) -> Verdict:
    """The verdict over what was computed. It follows from the evidence alone."""
    rows, ledger = list(_compared(evidence)), evidence.ledger
    wrong = not all(part.ok for part in (*rows, *ledger))
    recipe = evidence.recipe
    config, counts = recipe.config, ", ".join(map(str, recipe.counts()))
    notes = [
        f"{recipe.steps} steps, {recipe.layout.world} rank(s); {config.layers} layers, "
        f"{config.heads} heads on {config.kv_heads} key-value heads, "
        f"{'tied' if recipe.tied else 'untied'} head, vocabulary {config.vocab}; "
        f"{recipe.accumulate} micro-batches, labels that count on each replica: {counts}",
        *recipe.layout.remarks,
    ]
    if planted.needed(recipe):
        notes.append(
            "each token's experts were given to both sides, since a rounding could change a choice;"
            " compare choices in fp64 or fp32"
        )
    return Verdict(
        evidence,
        rows,
        ledger,
        likely_cause(evidence) if wrong else None,
        notes=notes,
    )


def main_verify(
    layout: str,
    precision: str = "fp64",
    fault: str | None = None,
    as_json: bool = False,
    expert_copies: str | None = None,
) -> tuple[str, int]:
    """What `picolab verify` prints, and its exit status: 0 equal, 1 not."""
    verdict = verify(layout, precision=precision, fault=fault, expert_copies=expert_copies)
    return (verdict.to_json() if as_json else repr(verdict)), 0 if verdict.ok else 1


def _rank(cases: list[tuple[list[Recipe], faults.Fault | None]]) -> list[list[Observation]]:
    return [
        [observe(recipe, *([faults.Injection(fault)] if fault else [])) for recipe in recipes]
        for recipes, fault in cases
    ]


def _recipes(
    layout: Layout, precision: str, expert_copies: str | None, steps: int, seed: int
) -> list[Recipe]:
    if precision not in TOLERANCE:
        raise ValueError(
            f"precision is {precision!r}; the oracle compares in {' or '.join(TOLERANCE)}"
        )
    for name, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")
    if layout.world > MOST_RANKS:
        small = Layout(**{axis: min(size, 2) for axis, size in layout.axes.items()})
        raise ValueError(
            f"{layout} is {layout.world:,} ranks, and the oracle runs each as a process of this "
            f"machine, {MOST_RANKS} at most; two ranks an axis show every composition: {small}"
        )
    # The large table makes the second model dear, and its steps are alike.
    recipes = [
        Recipe(layout, precision, steps, seed, expert_copies=expert_copies),
        Recipe(layout, precision, min(steps, 2), seed, tied=False, expert_copies=expert_copies),
    ]
    for recipe in recipes:
        _ = recipe.training  # refuses here, before any rank is started, what cannot be trained
    return recipes


def _compared(evidence: Evidence) -> Iterable[Row]:
    """All comparisons, in the order in which a step computes."""
    reference, ranks = evidence.reference, evidence.ranks
    losses = list(_numbers("loss", evidence, [s.losses for s in ranks], reference.losses))
    norms = list(_numbers("gradient norm", evidence, [s.norms for s in ranks], reference.norms))
    yield from _tensors("start", evidence, [s.start for s in ranks], reference.start)
    yield from _copies("start", evidence, reference.start)
    yield losses[0]
    yield from _tensors("gradient", evidence, [s.gradients for s in ranks], reference.gradients)
    yield from _copies("gradient", evidence, reference.gradients)
    yield norms[0]
    for loss, norm in zip(losses[1:], norms[1:]):
        yield loss
        yield norm
    yield from _tensors("parameter", evidence, [s.end for s in ranks], reference.end)
    yield from _copies("parameter", evidence, reference.end)
    for name, right in reference.end.items():  # what `state_dict()` made of the ranks' slices
        found = {s.rank: s.state.get(name) for s in ranks if s.state is not None}
        missing = torch.empty(0)
        pairs = {r: (missing if state is None else state, right) for r, state in found.items()}
        yield _row("gathered", name, evidence, pairs)


def _numbers(
    kind: str, evidence: Evidence, found: list[list[float]], right: list[float]
) -> Iterable[Row]:
    for step, expected in enumerate(right):
        values = {
            rank: torch.tensor(of[step], dtype=torch.float64) for rank, of in enumerate(found)
        }
        whole = torch.tensor(expected, dtype=torch.float64)
        yield _row(kind, f"step {step + 1}", evidence, {r: (v, whole) for r, v in values.items()})


def _tensors(
    kind: str, evidence: Evidence, held: list[Held], right: dict[str, torch.Tensor]
) -> Iterable[Row]:
    for name, whole in right.items():
        pairs = {
            rank: (of[name][1], of[name][0].take(whole))
            for rank, of in enumerate(held)
            if name in of
        }
        if not _complete([of[name][0] for of in held if name in of]):
            missing = tuple(range(len(held)))
            yield Row(kind, name, float("inf"), evidence.tolerance, None, missing)
        else:
            yield _row(kind, name, evidence, pairs)


def _copies(kind: str, evidence: Evidence, right: dict[str, torch.Tensor]) -> Iterable[Row]:
    """Each copy on each rank, against the same slice: nobody gathers or counts it, and rows are
    computed with it."""
    pairs: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    for seen in evidence.ranks:
        for name, (piece, part) in seen.copies[kind].items():
            pairs.setdefault(name, {})[seen.rank] = part, piece.take(right[piece.name])
    for name, of_ranks in pairs.items():
        yield _row("copy", f"{name}, {kind}", evidence, of_ranks)


def _row(
    kind: str,
    name: str,
    evidence: Evidence,
    pairs: dict[int, tuple[torch.Tensor, torch.Tensor]],
) -> Row:
    differences = {rank: difference(*pair) for rank, pair in pairs.items()}
    wrong = [rank for rank, value in differences.items() if not value <= evidence.tolerance]
    ratios = [ratio(*pairs[rank], evidence.exact) for rank in wrong]
    alike = ratios and None not in ratios and max(ratios) - min(ratios) <= evidence.exact
    constant = ratios[0] if alike else None
    if constant is not None:
        round_one = simple(constant, evidence.exact)
        # Any two numbers have a ratio: of a loss or a norm only a round one says something.
        is_number = next(iter(pairs.values()))[0].dim() == 0
        constant = round_one if round_one or is_number or abs(constant - 1) < 0.01 else constant
    worst = max(differences.values())
    return Row(kind, name, worst, evidence.tolerance, constant, tuple(wrong))


def _complete(pieces: list[Piece]) -> bool:
    """Whether these slices, some held by several ranks, make up the whole tensor."""
    if not pieces:
        return False
    missing = torch.ones(pieces[0].shape, dtype=torch.bool)
    for piece in pieces:
        piece.take(missing).fill_(False)
    return not missing.any()
