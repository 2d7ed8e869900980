"""The looks at a mystery run: each puts the run beside a right one.

    loss, norm    beside one process; and beside them, how far a right run of the layout is from it
    ledger        beside the formula (`costs.step_ledger`), which a right run equals to the byte
    shards        beside a right run: are copies equal, and do shards differ?
    spans         beside a right run: where each rank's mean step went
    loads         where there are experts, beside one process: how many tokens each had
    scale         where the loss is scaled, beside one process: by what, and which steps are skipped
    memory        where it is asked, beside a right run: bytes alive after each step
    lines         the same: which lines made what outlives its step, and who holds it
    own           where the run is watched, beside a right run: each rank's own loss and norm
    work          the same: what each rank did outside of collectives, in seconds
    calls         the same: how many collectives each rank has entered by the end of each step

A look says what was measured, and leaves the judgement to the reader. `found` makes it, for the
explanation of a closed case: which looks differ from the right run by more than rounding.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import inf, isfinite, log2
from statistics import median
from typing import NamedTuple

from picolab import costs
from picolab.exercises.mystery_case import LOADS, LOOKS, MEMORY, SCALES, WATCHED
from picolab.exercises.mystery_runs import Held, RankRecord, Recording
from picolab.monitoring.anomalies import work_of
from picolab.show.table import Table

# Right layouts of these runs differ from one process by a few units of roundoff (6e-8 in fp32): by
# up to 4e-7. Of the suspects that show in a look, each does so by 5e-5 or more.
ROUNDING = 2e-6
MOVED = 1e-4  # of all choices, on another expert than in one process: rounding may flip one
ALIKE = 0.1  # shards of independent random numbers differ by sqrt(2) of their norm
# In fp16 a difference of rounding in the weights turns roundings of the products. Right ones: up
# to 1e-9, since products are rounded alike; what changes only the length of a gradient that is
# clipped: up to 3e-5; suspects that show: 5e-3 or more.
HALF_ROUNDING = 2e-4
HEAVIER = 0.01  # of a right run's bytes: what a loss or two weighs is far less
TIMED = ("spans", "work")
_ROWS = 9  # steps in a table


@dataclass
class Trial:
    """Three recordings: the run in question, the same layout done right, and one process."""

    this: Recording
    right: Recording
    one: Recording

    @property
    def layout(self) -> str:
        return str(self.this.config.layout)

    @cached_property
    def copies(self) -> tuple[list["Pair"], list["Pair"]]:
        return pairs(self.this.ranks), pairs(self.right.ranks)

    @cached_property
    def collectives(self) -> list["Line"]:
        return lines(self.this)


def look(trial: Trial, name: str) -> Table:
    looks = {"loss": _loss, "norm": _norm, "ledger": _ledger, "shards": _shards, "spans": _spans}
    more = {"loads": _loads, "scale": _scale, "memory": _memory, "lines": _lines}
    watched = {"own": _own, "work": _work, "calls": _calls}
    return {**looks, **more, **watched}[name](trial)


def found(trial: Trial) -> set[str]:
    """The looks that show more than rounding. Of those at time nothing is said: it is noisy."""
    scales = SCALES if trial.this.ranks[0].scales else ()
    memory = MEMORY if trial.this.ranks[0].memory else ()
    watched = WATCHED if trial.this.told[0][0]["own_grad_norm"] is not None else ()
    looks = [*LOOKS, *(LOADS if trial.this.loads else ()), *scales, *memory, *watched]
    return {name for name in looks if name not in TIMED and _shows(trial, name)}


def summary(trial: Trial, name: str) -> str:
    """What a look has to show, in a sentence."""
    if name in ("loss", "norm"):
        this, right, one = series(trial, name)
        ratios = [a / b for a, b in zip(this, one) if isfinite(a) and isfinite(b)]
        text = f"off by up to {_off(max(relative(this, one)))}"
        constant = bool(ratios) and max(ratios) - min(ratios) < 1e-4 * max(ratios)
        constant = constant and abs(ratios[0] - 1) > 1e-2
        times = f", {ratios[0]:.4g} times one process's in every step" if constant else ""
        return f"{text}{times} (a right {trial.layout}: {_off(max(relative(right, one)))})"
    if name == "ledger":
        wrong = [line for line in trial.collectives if line.differs]
        if not wrong:
            return "equal to the formula in count and bytes"
        return "; ".join(
            f"{line.reason} ({line.op}): {line.count} for {line.formula_count}, "
            f"{line.bytes:,} bytes for {line.formula_bytes:,}"
            for line in wrong
        )
    if name == "shards":
        wrong = [pair for pair in trial.copies[0] if pair.wrong]
        if not trial.copies[0]:
            return "no parameter is on two ranks"
        if not wrong:
            return "copies are equal, and shards differ"
        return "; ".join(
            f"{pair.group}, {pair.kind}: {_off(pair.start)} apart at the start, "
            f"{_off(pair.end)} at the end"
            for pair in wrong
        )
    if name == "loads":
        return f"{_moved(trial.this, trial.one):.1%} of all choices are other experts'"
    if name == "scale":
        wrong = [rank for rank, of in enumerate(trial.this.ranks) if _apart_in_scale(of, trial)]
        if not wrong:
            return "every rank has one process's scales, and skips the same steps"
        return f"scales or skipped steps are not one process's on the ranks {wrong}"
    if name == "memory":
        more = _grown(trial)
        first, last = next((i for i, of in enumerate(more) if of), 0), more[-1]
        if not last:
            return f"after each step as many bytes as in a right {trial.layout}"
        return f"{last:,} bytes more than a right {trial.layout} in the end, from step {first} on"
    if name == "lines":
        remains = trial.this.ranks[0].remains
        if not remains:
            return "nothing outlives its step"
        nbytes, numbers = (sum(one[i] for one in remains) for i in (2, 3))
        return (
            f"{len(remains)} line{'s' * (len(remains) > 1)} left {nbytes:,} bytes, and the "
            f"tensors over it have {numbers:,} bytes of numbers"
        )
    if name == "own":
        wrong = [rank for rank, of in enumerate(_own_apart(trial)) if of > rounding(trial)]
        if not wrong:
            return f"every rank's own numbers are those of a right {trial.layout}"
        first = min(_first_apart(trial, rank) for rank in wrong)
        at_first = [rank for rank in wrong if _first_apart(trial, rank) == first]
        who = f"rank{'s' * (len(at_first) > 1)} {', '.join(map(str, at_first))}"
        return f"{who} had other numbers of their own first, in step {first + 1}"
    if name == "work":
        return "; ".join(
            f"rank {rank} waits {1e3 * batch:.0f} ms for its batch in the middle step, and works "
            f"{1e3 * rest:.0f} ms"
            for rank, (batch, rest) in enumerate(_middle(trial.this))
        )
    if name == "calls":
        this, right = calls(trial.this), calls(trial.right)
        wrong = [step + 1 for step, of in enumerate(this) if of != right[step]]
        if not wrong:
            return f"after each step every rank has entered as many as in a right {trial.layout}"
        return f"first in step {wrong[0]} not as many as in a right {trial.layout}"
    parts = [
        f"rank {rank} computes {1e3 * of.compute_s:.0f} ms a step and waits "
        f"{1e3 * of.held_up_s:.0f} ms"
        for rank, of in trial.this.split.items()
    ]
    return "; ".join(parts)


def _shows(trial: Trial, name: str) -> bool:
    if name in ("loss", "norm"):
        this, _, one = series(trial, name)
        return max(relative(this, one)) > rounding(trial)
    if name == "ledger":
        return any(line.differs for line in trial.collectives)
    if name == "loads":
        return _moved(trial.this, trial.one) > MOVED
    if name == "scale":
        return any(_apart_in_scale(of, trial) for of in trial.this.ranks)
    if name == "memory":
        right = trial.right.ranks[0].memory[-1]["total"]
        return max(map(abs, _grown(trial))) > HEAVIER * right
    if name == "lines":
        return any(rank.remains for rank in trial.this.ranks)
    if name == "own":
        return max(_own_apart(trial)) > rounding(trial)
    if name == "calls":
        return calls(trial.this) != calls(trial.right)
    return any(pair.wrong for pair in trial.copies[0])


# -- loss and norm


def series(trial: Trial, name: str) -> tuple[list[float], list[float], list[float]]:
    """Of this run, of the right one, of one process."""
    kind = {"loss": "losses", "norm": "norms"}[name]
    return tuple(getattr(run, kind) for run in (trial.this, trial.right, trial.one))


def relative(values: list[float], right: list[float]) -> list[float]:
    """Of a step that is skipped in both, for norms that are not finite, nothing can be said: 0."""
    neither = [not isfinite(a) and not isfinite(b) for a, b in zip(values, right)]
    apart = [abs(a - b) / abs(b) if isfinite(a - b) else inf for a, b in zip(values, right)]
    return [0.0 if none else of for none, of in zip(neither, apart)]


def rounding(trial: Trial) -> float:
    """By how much a right run may be off."""
    return HALF_ROUNDING if trial.this.config.numbers.scaled else ROUNDING


def _off(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _loss(trial: Trial) -> Table:
    return _steps_table(
        trial,
        "loss",
        f"Loss (nats a token). Compare how far this run is from one process, relatively, with how "
        f"far a right {trial.layout} is: that much is rounding. Step 1 is before any update.",
    )


def _norm(trial: Trial) -> Table:
    return _steps_table(
        trial,
        "norm",
        f"Gradient norm, before clipping. Compare how far this run is from one process, "
        f"relatively, with how far a right {trial.layout} is; is 'this / one' the same throughout?",
    )


def _steps_table(trial: Trial, name: str, title: str) -> Table:
    this, right, one = series(trial, name)
    off, usual = relative(this, one), relative(right, one)
    last = len(one) - 1
    chosen = sorted({round(i * last / (_ROWS - 1)) for i in range(_ROWS)})
    columns = ["step", "this run", "one process"]
    columns += ["this / one"] if name == "norm" else []
    columns += ["this run is off by", f"a right {trial.layout} is off by"]
    rows = []
    for i in chosen:
        row = [i + 1, f"{this[i]:.8f}", f"{one[i]:.8f}"]
        row += [f"{this[i] / one[i]:.4f}"] if name == "norm" else []
        rows.append([*row, _off(off[i]), _off(usual[i])])
    return Table(columns, rows, title)


# -- ledger


class Line(NamedTuple):
    """One kind of collective of one rank in one step: expected and done."""

    op: str
    reason: str
    formula_count: int
    count: int
    formula_bytes: int
    bytes: int

    @property
    def differs(self) -> bool:
        return (self.formula_count, self.formula_bytes) != (self.count, self.bytes)


def lines(run: Recording) -> list[Line]:
    """Of the first rank and step that differ from the formula, or else of the first that has it."""
    kept: dict[tuple, Line] = {}
    config = run.config
    for rank in range(config.layout.world):
        entries, formula = run.ledger.rank(rank), {}
        for step in range(config.steps):
            if not formula or config.model.experts:  # rows to experts: every step others
                formula = costs.step_ledger(
                    config.model,
                    config.layout,
                    micro_batch=config.micro_batch,
                    accumulate=config.accumulate,
                    precision=config.precision,
                    bucket_bytes=config.bucket_bytes,
                    rank=rank,
                    routed=[of.rows[step] for of in run.ranks] if config.model.experts else None,
                )
            done = entries.step(step).by("op", "axis", "reason")
            for key in dict.fromkeys([*formula, *done]):
                expected = tuple(formula.get(key, (0, 0)))[:2]
                was = tuple(done.get(key, (0, 0)))[:2]
                line = Line(key[0], key[2], expected[0], was[0], expected[1], was[1])
                if key not in kept or (line.differs and not kept[key].differs):
                    kept[key] = line
    return sorted(kept.values(), key=lambda line: -max(line.bytes, line.formula_bytes))


def _ledger(trial: Trial) -> Table:
    rows = [
        [line.reason, line.op, *line[2:], "NO" if line.differs else "yes"]
        for line in trial.collectives
    ]
    return Table(
        [
            "reason",
            "operation",
            "formula: count",
            "this run: count",
            "formula: bytes",
            "this run: bytes",
            "equal?",
        ],
        rows,
        f"The collectives of one rank in one step. Compare the formula with this run; in a right "
        f"{trial.layout} they are equal, to the byte.",
        [number for number, line in enumerate(trial.collectives) if line.differs],
    )


# -- shards


class Pair(NamedTuple):
    """Tensors of one group of parameters on ranks that differ in one axis only.

    Of copies the largest difference over all tensors and pairs of ranks, of shards the smallest,
    as a part of their norm.
    """

    group: str
    kind: str  # "copies over dp"
    start: float
    end: float

    @property
    def wrong(self) -> bool:
        if self.kind.startswith("copies"):
            return max(self.start, self.end) > ROUNDING
        return min(self.start, self.end) < ALIKE


def pairs(ranks: list[RankRecord]) -> list[Pair]:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for a, b in combinations(ranks, 2):
        axes = [axis for axis in a.place if a.place[axis] != b.place[axis]]
        if len(axes) != 1:
            continue
        for name, are_copies in _shared(a.start, b.start):
            kind = f"{'copies' if are_copies else 'shards'} over {axes[0]}"
            both = _apart(a.start, b.start, name), _apart(a.end, b.end, name)
            found.setdefault((_group(name), kind), []).append(both)
    return [
        Pair(group, kind, *map(max if kind.startswith("copies") else min, zip(*values)))
        for (group, kind), values in found.items()
    ]


def _shared(a: Held, b: Held) -> Iterator[tuple[str, bool]]:
    """Names of which both hold something, and whether it is the same slice. Left out are slices of
    different sizes, which cannot be alike, and those of norms, which are alike in a right run:
    their weights all start as ones."""
    for name in a:
        if name in b:
            same = a[name][0].ranges == b[name][0].ranges
            differ = a[name][1].shape == b[name][1].shape and _group(name) != "norms"
            if same or differ:
                yield name, same


def _apart(a: Held, b: Held, name: str) -> float:
    one, other = a[name][1].double(), b[name][1].double()
    return float((one - other).norm() / other.norm())


def _group(name: str) -> str:
    """ "layers.0.attention.q.weight" -> "attention"."""
    parts = name.split(".")
    part = parts[2] if parts[0] == "layers" else parts[0]
    return (
        "norms" if part.endswith("norm") else {"embed": "embedding", "mlp": "MLP"}.get(part, part)
    )


def _shards(trial: Trial) -> Table:
    this, right = trial.copies
    usual = {(pair.group, pair.kind): pair for pair in right}
    rows = []
    for pair in this:
        same = usual[pair.group, pair.kind]
        should = "equal" if pair.kind.startswith("copies") else "different"
        rows.append([pair.group, pair.kind, should, pair.start, pair.end, same.start, same.end])
    if not rows:  # stages of a pipeline, without a matrix that two of them have
        rows = [["none is on two ranks", *[""] * 6]]
    return Table(
        [
            "parameters",
            "held as",
            "should be",
            "this run: start",
            "this run: end",
            f"a right {trial.layout}: start",
            f"a right {trial.layout}: end",
        ],
        rows,
        f"What the ranks hold: how far two ranks' tensors are apart, relatively (of copies the "
        f"largest difference, of shards the smallest). Compare with what it should be, and with a "
        f"right {trial.layout}. Equal is 0; independent random numbers are 1.4 apart.",
    )


# -- loads


def _moved(this: Recording, one: Recording) -> float:
    """The share of all choices that fell on other experts than in one process, at least."""
    pairs = [(a, b) for mine, right in zip(this.loads, one.loads) for a, b in zip(mine, right)]
    return sum(abs(a - b) for a, b in pairs) / 2 / sum(b for _, b in pairs)


def _loads(trial: Trial) -> Table:
    this, one = trial.this.loads, trial.one.loads
    last = len(one) - 1
    rows = []
    for step in sorted({round(i * last / 5) for i in range(6)}):
        for name, loads in (("this run", this), ("one process", one)):
            mean = sum(loads[step]) / len(loads[step])
            rows.append([step + 1, name, *loads[step], f"{max(loads[step]) / mean:.2f}"])
    experts = [str(e) for e in range(len(one[0]))]
    return Table(
        ["step", "run", *experts, "largest / mean"],
        rows,
        "Tokens of each expert (0, 1, ...), over all layers and ranks. Compare this run with one "
        f"process, which a right {trial.layout} equals, step by step.",
    )


# -- scale


def _apart_in_scale(rank: RankRecord, trial: Trial) -> bool:
    one = trial.one.ranks[0]
    return (rank.scales, rank.skipped) != (one.scales, one.skipped)


def _scale(trial: Trial) -> Table:
    ranks = [*trial.this.ranks, trial.one.ranks[0]]
    rows = [
        [step + 1, *(_said(rank, step) for rank in ranks)] for step in range(len(ranks[0].scales))
    ]
    return Table(
        ["step", *(f"this run: rank {i}" for i in range(len(ranks) - 1)), "one process"],
        rows,
        "By what the loss was multiplied, and whether the step was then skipped. Compare the ranks "
        f"with each other, and with one process, which a right {trial.layout} equals, step by "
        "step.",
    )


def _said(rank: RankRecord, step: int) -> str:
    return f"2^{log2(rank.scales[step]):.0f}" + (", skipped" if step in rank.skipped else "")


# -- memory


def _grown(trial: Trial) -> list[int]:
    """By how many bytes rank 0 has more than in a right run, before the first step and after each
    one."""
    both = zip(trial.this.ranks[0].memory, trial.right.ranks[0].memory)
    return [mine["total"] - right["total"] for mine, right in both]


_SHOWN = ("parameters", "gradients", "optimizer", "activations")


def _memory(trial: Trial) -> Table:
    rows = []
    steps = range(len(trial.this.ranks[0].memory))
    for step in steps:
        for name, run in (("this run", trial.this), ("right", trial.right)):
            of = run.ranks[0].memory[step]
            shown = [of.get(category, 0) for category in _SHOWN]
            rest = of["total"] - sum(shown)
            row = [step or "before", name, *(f"{n:,}" for n in (*shown, rest, of["total"]))]
            rows.append(row)
    return Table(
        ["after step", "run", *_SHOWN, "other", "total"],
        rows,
        f"Bytes of tensors that are alive on rank 0 when a step is over. Compare this run with a "
        f"right {trial.layout}, and each step with the one before it: what grows, since when, and "
        "does it stop?",
    )


def _lines(trial: Trial) -> Table:
    rows = [
        [
            one.where,
            one.function,
            f"{one.nbytes:,}",
            f"{one.numbers:,}",
            "a circle of objects" if one.circle else "somebody" if one.numbers else "autograd",
        ]
        for one in trial.this.ranks[0].remains
    ] or [["nothing is left", *[""] * 4]]
    return Table(
        ["made in", "function", "bytes left", "of which tensors have", "held by"],
        rows,
        "What was made in one step and is alive after the next one, on rank 0, by the line that "
        "made it. Compare the memory that is left with the numbers in those tensors over it that "
        f"something in Python holds; in a right {trial.layout} nothing is left.",
    )


# -- own


_OWN = ("own_loss", "own_grad_norm")


def _steps_apart(trial: Trial, rank: int) -> list[float]:
    """By how much this rank's own numbers are off from those in a right run, step by step."""
    this, right = trial.this.told[rank], trial.right.told[rank]
    of_each = [
        relative([told[name] for told in this], [told[name] for told in right]) for name in _OWN
    ]
    return [max(both) for both in zip(*of_each)]


def _own_apart(trial: Trial) -> list[float]:
    return [max(_steps_apart(trial, rank)) for rank in range(len(trial.this.ranks))]


def _first_apart(trial: Trial, rank: int) -> int:
    return next(i for i, off in enumerate(_steps_apart(trial, rank)) if off > rounding(trial))


def _own(trial: Trial) -> Table:
    ranks = range(len(trial.this.ranks))
    columns = [f"rank {rank}: {what}" for rank in ranks for what in ("loss", "norm")]
    rows = [
        [step + 1]
        + [
            f"{this[step][name]:.3f} ({right[step][name]:.3f})"
            for this, right in zip(trial.this.told, trial.right.told)
            for name in _OWN
        ]
        for step in range(trial.this.config.steps)
    ]
    return Table(
        ["step", *columns],
        rows,
        "Each rank's own loss (of its own tokens) and gradient norm, before anything is summed; "
        f"in brackets those of a right {trial.layout}. Compare with these, and the ranks with each "
        "other.",
    )


# -- work


def _work_of_steps(run: Recording) -> list[list[tuple[float, float]]]:
    """Of each rank and step the seconds until its batch was there, and of its own work since."""
    found = []
    for rank, steps in enumerate(run.told):
        entries = run.ledger.rank(rank)
        done = [work_of(told, list(entries.step(told["step"]))) for told in steps]
        found.append([(of.data, of.own - of.data) for of in done])
    return found


def _middle(run: Recording) -> list[tuple[float, float]]:
    """Of each rank the median of either; without the first step, which is warm-up."""
    return [tuple(map(median, zip(*steps[1:]))) for steps in _work_of_steps(run)]


def _work(trial: Trial) -> Table:
    ranks = range(len(trial.this.ranks))
    columns = [f"rank {rank}: {what} ms" for rank in ranks for what in ("batch", "rest")]

    def row(about, of_ranks) -> list:
        return [about, *(round(1e3 * part, 1) for of in of_ranks for part in of)]

    rows = [row(step + 1, of) for step, of in enumerate(zip(*_work_of_steps(trial.this)))]
    rows.append(row("median", _middle(trial.this)))
    rows.append(row(f"median of a right {trial.layout}", _middle(trial.right)))
    return Table(
        ["step", *columns],
        rows,
        "What each rank did itself: until its batch was there, and the rest of the step outside of "
        "collectives; without what it waited for a core. Compare the ranks with each other, and "
        f"with a right {trial.layout}: the medians of both are the last rows. Some ms are noise.",
    )


# -- calls


def calls(run: Recording) -> list[dict[str, list[int]]]:
    """After each step: axis -> how many collectives and messages over it each rank has entered."""
    found, so_far = [], [Counter() for _ in run.ranks]
    of_ranks = [run.ledger.rank(rank) for rank in range(len(run.ranks))]
    for step in range(run.config.steps):
        for counts, entries in zip(so_far, of_ranks):
            counts.update(entry.axis for entry in entries.step(step))
        axes = sorted(set().union(*so_far))
        found.append({axis: [counts[axis] for counts in so_far] for axis in axes})
    return found


def _calls(trial: Trial) -> Table:
    this, right = calls(trial.this), calls(trial.right)
    axes = sorted({*this[-1], *right[-1]})
    columns = [f"over {axis}{of}" for axis in axes for of in ("", f", a right {trial.layout}")]
    rows = [
        [step + 1]
        + [
            " ".join(map(str, of[step].get(axis, [0] * len(trial.this.ranks))))
            for axis in axes
            for of in (this, right)
        ]
        for step in range(trial.this.config.steps)
    ]
    return Table(
        ["after step", *columns],
        rows,
        "How many collectives (and messages) the ranks 0, 1, ... have entered since the run began, "
        f"by axis. Compare the ranks of a step with each other, and with a right {trial.layout}.",
    )


# -- spans


def _spans(trial: Trial) -> Table:
    rows = [
        [run, f"rank {rank}", *(round(1e3 * part, 1) for part in parts)]
        for run, recording in (("this run", trial.this), (f"a right {trial.layout}", trial.right))
        for rank, parts in recording.split.items()
    ]
    return Table(
        ["run", "rank", "computing ms", "communicating ms", "waiting ms", "bubble ms"],
        rows,
        f"Where each rank's mean step went. Compare the ranks with each other, and this run with "
        f"a right {trial.layout}. Waiting is for the last rank to arrive; over pp it is called the "
        f"bubble. Some ms are noise.",
    )
