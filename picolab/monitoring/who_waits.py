"""Who waits for whom, and why: what is said of a run that hangs, parted ways or died.

    found = of_folder(RUN_DIRECTORY)
    found.verdict      # 'rank 2 never entered all_reduce #41 on dp (dp: loss), in which ranks
                       #  0, 1, 3 wait: it is in data loading, trainer.py:88 (next_batch)'
    found.rank, found.kind, found.rows, found.edges

It is put together from what is left in the run directory: where each rank was (standstill.py), and
every step's collectives (the events). Blame is blame.py's, as it is in a `RankHang`; here it gets
its reasons. In the order in which they speak:

    a difference in the newest calls   same group and number, and another operation, size, ...
    a difference in a step's ledgers   one rank did not do what the others did; nothing was raised
    how the run ended                  a rank died, raised, returned early
    who is not where the others wait   with its stack: what it does instead

Kinds: hang, desync (ranks did not do the same), mismatch (under one number another size or
operation), dead rank, exception, nothing (as far as the files tell), unknown (they do not tell).
"""

import html
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from picolab.monitoring import blame
from picolab.monitoring.anomalies import FAILURES, PATIENCE, Anomaly, desync
from picolab.monitoring.beacon import Call
from picolab.monitoring.event_files import RunFiles, event_files
from picolab.monitoring.events import Event
from picolab.monitoring.run_state import ENDED
from picolab.monitoring.standstill import OtherVersion, RankThen, Standstill, left_in, load
from picolab.show.files import private
from picolab.show.table import Table

LOOKS_S = 2.0  # that a run which goes on is given to move


@dataclass(frozen=True)
class RankRow:
    """One rank of the table."""

    rank: int
    state: str
    """stands in, has gone on from, returned after, gone after, stopped after"""
    call: str
    """Its last collective or message: "all_reduce #41 on dp"; "" if it entered none."""
    shape: str
    """dtype and shape of it."""
    reason: str
    step: int | None
    waits_for: tuple[int, ...]
    where: str
    """The line of its stack that says most: "trainer.py:88 (next_batch)"."""


@dataclass(repr=False)
class Diagnosis:
    verdict: str
    kind: str
    rank: int | None = None
    """The culprit; None if there is none, or it cannot be told."""
    rows: list[RankRow] = field(default_factory=list)
    stacks: dict[int, str] = field(default_factory=dict)
    difference: dict[int, Call] = field(default_factory=dict)
    """rank -> call, where ranks of a group parted ways within the newest calls."""
    since: int | None = None
    """The step in which that began to be so, where the ledgers show it."""

    @property
    def ok(self) -> bool:
        return self.kind == "nothing"

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(who, for whom), of all who wait."""
        return [(row.rank, other) for row in self.rows for other in row.waits_for]

    def table(self) -> Table:
        rows = [
            [
                row.rank,
                f"{row.state} {row.call}" if row.call else "has entered no collective",
                row.shape,
                row.reason,
                row.step,
                ", ".join(map(str, row.waits_for)),
                row.where,
            ]
            for row in self.rows
        ]
        columns = ["rank", "its last collective", "what", "why", "step", "waits for", "where it is"]
        wrong = [i for i, row in enumerate(self.rows) if row.rank == self.rank]
        return Table(columns, rows, "", wrong)

    def stacks_text(self) -> str:
        """Every rank's stack."""
        return "\n".join(f"rank {rank}:\n{text}" for rank, text in sorted(self.stacks.items()))

    def __repr__(self) -> str:
        return f"{self.verdict}\n\n{self.table()!r}" if self.rows else self.verdict

    def __rich__(self):
        from rich.console import Group

        return Group(self.verdict, "", self.table()) if self.rows else self.verdict

    def _repr_html_(self) -> str:
        table = self.table()._repr_html_() if self.rows else ""
        return f"<p><b>{html.escape(self.verdict)}</b></p>{table}"

    def as_dict(self) -> dict:
        return {
            "verdict": self.verdict,
            "kind": self.kind,
            "rank": self.rank,
            "rows": [asdict(row) for row in self.rows],
            "edges": self.edges,
            "since": self.since,
            "stacks": {str(rank): text for rank, text in self.stacks.items()},
        }


# -- where the evidence comes from --


def of_folder(run_dir: str | Path, going_on: bool = False) -> Diagnosis:
    """Of what is in a run directory. going_on: whether the run is alive; then it is looked at for
    `LOOKS_S`, and if something moves, nothing hangs. ValueError if there is no such directory."""
    run_dir = Path(run_dir).expanduser()
    if not run_dir.is_dir():
        raise ValueError(f"there is no run directory {run_dir}; `picolab runs ls` lists the runs")
    about, files = _about(run_dir), event_files(run_dir)
    world = about.get("world_size") or len(files)
    if not about and not files:
        return _unknown(
            f"there is nothing of a run in {run_dir}: no run.json and no events; `picolab runs ls` "
            "lists the runs"
        )
    try:
        found = load(run_dir)
    except OtherVersion as error:
        return _unknown(str(error))
    if found is None and going_on:
        return of_going_on(
            lambda ask: left_in(run_dir, world), lambda: Told.of(RunFiles(run_dir).poll(), world)
        )
    told, state = Told.of(RunFiles(run_dir).poll(), world), about.get("state")
    if found is not None:
        return of_standstill(found, told)
    if told.parted is not None:
        return _of_parted(told.parted, ", and no word of it was raised")
    if state == "failed":
        return _unknown(
            "this run failed, and where its ranks were was not kept: it is an older version's, or "
            f"the disk was full; {told}"
        )
    left = None if state in ENDED else left_in(run_dir, world)
    if left is not None:
        guess = of_standstill(left, told)
        text = f"the kernel of this run ended without a note; if it stood still: {guess.verdict}"
        return Diagnosis(text, "unknown", None, guess.rows)
    how = {"done": "it ended as it should", "stopped": "it was stopped while it moved"}
    known = how.get(state, "how it ended is not told")
    return Diagnosis(f"nothing is wrong as far as the files tell: {known}, and {told}", "nothing")


def of_going_on(look: Callable[[bool], Standstill | None], tell: Callable[[], "Told"]) -> Diagnosis:
    """Of a run that is alive: it is looked at until something moves, for `LOOKS_S` at most. look:
    takes whether ranks may be asked for their stacks."""
    first, until = look(False), time.monotonic() + LOOKS_S
    fine = "nothing is wrong as far as can be seen"
    if first is None or not any(then.calls for then in first.ranks.values()):
        return Diagnosis(f"{fine}: no rank has entered a collective yet", "nothing")
    while True:
        time.sleep(LOOKS_S / 8)
        last = time.monotonic() > until
        found = look(last)
        moved = found is None or any(
            found.ranks[rank].reading != then.reading for rank, then in first.ranks.items()
        )
        if not moved and not last:
            continue
        told = tell()
        if not moved:
            found.quiet_s = LOOKS_S
            return of_standstill(found, told)
        if told.parted is not None:
            return _of_parted(told.parted, ", and the run goes on all the same")
        return Diagnosis(f"{fine}: ranks move, and {told}", "nothing")


@dataclass
class Told:
    """What the ranks said of their steps."""

    steps: dict[int, int] = field(default_factory=dict)
    """rank -> how many it did."""
    parted: Anomaly | None = None
    """The first step in which they did not do the same collectives, of those that have told it."""

    @classmethod
    def of(cls, events: Iterable[Event], world: int) -> "Told":
        told = cls()
        entries: dict[int, dict[int, list]] = defaultdict(lambda: defaultdict(list))
        by: dict[int, set[int]] = defaultdict(set)
        for event in events:
            if event.kind == "ledger" and told.parted is None:
                for entry in event.data["entries"]:
                    if entry.step is not None:
                        entries[entry.step][event.rank].append(entry)
            elif event.kind == "step":
                step = event.data["step"]
                told.steps[event.rank] = step + 1
                if told.parted is not None:
                    continue
                by[step].add(event.rank)
                # A rank that tells nothing any more: the others are judged without it.
                over = step if len(by[step]) == world else min(by) if len(by) > PATIENCE else None
                if over is not None:
                    heard, of = by.pop(over), entries.pop(over, {})
                    found = desync(over, {rank: of.get(rank, ()) for rank in sorted(heard)})
                    told.parted = next((a for a in found if a.ranks), found[0] if found else None)
        return told

    def __str__(self) -> str:
        if not self.steps:
            return "no rank has told a step"
        few, most = min(self.steps.values()), max(self.steps.values())
        count = f"{few}" if few == most else f"{few} to {most}"
        return f"its {len(self.steps)} rank(s) did the same collectives in {count} step(s)"


def _about(run_dir: Path) -> dict:
    try:
        with open(run_dir / "run.json", opener=private) as file:
            about = json.load(file)
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _unknown(text: str) -> Diagnosis:
    return Diagnosis(text, "unknown")


def of_standstill(found: Standstill, told: Told | None = None) -> Diagnosis:
    """Of where ranks were, and what they told of their steps before."""
    at = found.ranks
    readings = {rank: then.reading for rank, then in at.items()}
    calls = {rank: then.calls for rank, then in at.items()}
    waits = {
        rank: tuple(sorted(blame.awaits(rank, readings, calls)))
        if then.reading.inside and then.state != "returned" and _waited(found, rank)
        else ()
        for rank, then in at.items()
    }
    difference = blame.first_difference(calls)
    if told is not None and told.parted is not None:
        ended = f"; {found.what}" if found.failure not in ("", "hang") else ""
        made = _of_parted(told.parted, ended)
        made.rank = found.rank if made.rank is None else made.rank
    elif difference is not None:
        made = _of_difference(difference)
    elif found.failure not in ("", "hang"):
        made = _of_failure(found, waits)
    else:
        made = _of_hang(found, waits)
    if not found.failure and found.quiet_s is not None:
        made.verdict += f" (nothing had moved for {found.quiet_s:.0f} s)"
    made.rows = [_row(rank, then, waits[rank]) for rank, then in sorted(at.items())]
    made.stacks = {rank: then.stack for rank, then in sorted(at.items()) if then.stack}
    made.difference = difference.calls if difference else {}
    return made


# -- the sentences --


def _of_parted(anomaly: Anomaly, how: str) -> Diagnosis:
    rank = anomaly.ranks[0] if len(anomaly.ranks) == 1 else None
    text = f"in step {anomaly.step} {anomaly.text}{how}"
    return Diagnosis(text, "desync", rank, since=anomaly.step)


def _of_difference(difference: blame.Difference) -> Diagnosis:
    """The sentence says what differs, and nothing else."""
    calls, rank = difference.calls, difference.rank
    senses: dict[tuple, list[int]] = defaultdict(list)
    for r, call in sorted(calls.items()):
        senses[blame.sense(call)].append(r)
    fields = [i for i, values in enumerate(zip(*senses)) if len(set(values)) > 1]
    in_step = fields == [4]
    first = next(iter(calls.values()))

    def did(call: Call) -> str:
        what = call.what
        if in_step:
            return f"in {_step(call.step)}"
        if fields == [0] or 0 in fields:
            return f"{what.op} {what.dtype}{what.shape} ({what.reason})"
        if 3 in fields:
            return f"for {what.reason!r} with {what.dtype}{what.shape}"
        return f"with {what.dtype}{what.shape}" + (f" in {_step(call.step)}" * (4 in fields))

    if 0 in fields:
        where = f"call #{first.number} on {first.what.axis or 'raw'}"
    else:
        where = f"{first.name}" + ("" if 3 in fields else f" ({first.what.reason})")
    each = [f"{blame.ranks(of)} {did(calls[of[0]])}" for of in senses.values()]
    if rank is not None:
        others = next(call for r, call in calls.items() if r != rank)
        text = f"rank {rank} entered {where} {did(calls[rank])}, the others {did(others)}"
        if 0 in fields:
            text = f"rank {rank}'s {where} is {did(calls[rank])}, the others' {did(others)}"
    else:
        text = f"ranks parted ways in {where}: {', '.join(each)}; no majority tells who is wrong"
    return Diagnosis(text, "desync" if in_step else "mismatch", rank)


def _of_failure(found: Standstill, waits: Mapping[int, tuple[int, ...]]) -> Diagnosis:
    kind = FAILURES.get(found.failure, found.failure)
    text, rank = found.what, found.rank
    if rank is None or (call := _missed(found, rank, waits)) is None:
        return Diagnosis(text, kind, rank)
    never, then = _never(rank, found, call, waits), found.ranks[rank]
    if kind == "mismatch" and then.standing is not None:  # what gloo calls another size
        at = place(then.stack)
        text = f"{never}: it stood in {_last(then)}" + (f", {at}" if at else "")
    else:
        text += f"; {never.replace(f'rank {rank}', 'it', 1)}"
    return Diagnosis(text, kind, rank)


def _of_hang(found: Standstill, waits: Mapping[int, tuple[int, ...]]) -> Diagnosis:
    blamed = found.blamed()
    rank = blamed.rank
    if rank is None:
        at_work = not found.failure and not any(t.reading.inside for t in found.ranks.values())
        return Diagnosis(_of_nobody(found, blamed), "unknown" if at_work else "hang", None)
    then, call = found.ranks.get(rank, RankThen()), _missed(found, rank, waits)
    text = _never(rank, found, call, waits) if call is not None else blamed.why
    if then.state == "stopped":
        did = f", and {text.removeprefix(f'rank {rank} ')}" if call is not None else ""
        return Diagnosis(f"rank {rank} is stopped by a signal (SIGSTOP){did}", "hang", rank)
    if then.state == "returned":
        return Diagnosis(f"{text}: it has returned", "hang", rank)
    if then.standing is not None:
        at = place(then.stack)
        text += f": it stands in {_last(then)}" + (f", {at}" if at else "")
    else:
        at, doing = place(then.stack), _doing(then.stack)
        if at or doing:
            text += ": it is " + ", ".join(filter(None, [doing and f"in {doing}", at]))
    return Diagnosis(text, "hang", rank)


def _of_nobody(found: Standstill, blamed: blame.Blame) -> str:
    """What can be said where nobody is to blame: they wait in a circle, or in the same call."""
    readings = {rank: then.reading for rank, then in found.ranks.items()}
    calls = {rank: then.calls for rank, then in found.ranks.items()}
    missing = {r: blame.missing(r, readings, calls) for r in readings if readings[r].inside}
    circle = _circle(missing)
    if circle:
        each = ", ".join(f"rank {r} stands in {_last(found.ranks[r])}" for r in circle)
        return f"{blame.ranks(circle)} wait for each other: {each}"
    if not any(reading.inside for reading in readings.values()):
        return "no rank waits for another: all are at work, or in loops of their own"
    stand = {r: then.standing for r, then in found.ranks.items() if then.standing is not None}
    if len(stand) == len(readings) and not any(missing.values()):
        names = sorted({call.name for call in stand.values()})
        return (
            f"every rank is in its collective ({', '.join(names)}), and nobody is missing from "
            "one: it is the transfer that does not end"
        )
    return blamed.why


def _waited(found: Standstill, rank: int) -> bool:
    """Not the one that died: it waits for nobody."""
    return rank != found.rank or found.ranks[rank].state != "gone"


def _missed(found: Standstill, rank: int, waits) -> Call | None:
    """The call in which others stand and wait for this rank."""
    standing = [
        then.standing for r, then in found.ranks.items() if rank in waits[r] and then.standing
    ]
    return min(standing, key=lambda call: (call.what.is_message, call.number), default=None)


def _never(rank: int, found: Standstill, call: Call, waits) -> str:
    """rank 2 never entered all_reduce #41 on dp (dp: loss), in which ranks 0, 1, 3 wait."""
    calls = {
        r: then.standing
        for r, then in found.ranks.items()
        if rank in waits[r] and then.standing is not None
    }
    past = all(found.ranks[r].state == "gone" for r in calls)
    if not call.what.is_message:
        here = [r for r, of in calls.items() if (of.group, of.number) == (call.group, call.number)]
        verb = "stood" if past else "waits" if len(here) == 1 else "wait"
        ranks = blame.ranks(here)
        return (
            f"rank {rank} never entered {call.name} ({call.what.reason}), in which {ranks} {verb}"
        )
    verb = "waited" if past else "waits" if len(calls) == 1 else "wait"
    each = [f"rank {r} ({of.what.op} #{of.number}, {of.what.reason})" for r, of in calls.items()]
    did = "sent" if call.what.source is not None else "took"
    axis = f" on {call.what.axis}" if call.what.axis else ""
    return f"rank {rank} never {did} the message{axis} for which {' and '.join(each)} {verb}"


def _circle(waits: Mapping[int, Collection[int]]) -> list[int]:
    """Ranks of which each waits for the next, and the last for the first; [] if there are none."""
    path: list[int] = []
    rank = next((r for r, others in waits.items() if others), None)
    while rank is not None and rank not in path:
        path.append(rank)
        rank = next((r for r in waits[rank] if waits.get(r)), None)
    return [] if rank is None else path[path.index(rank) :]


def _row(rank: int, then: RankThen, waits: tuple[int, ...]) -> RankRow:
    call = then.last
    state = {"running": "has gone on from", "stopped": "stopped after"}.get(
        then.state, f"{then.state} after"
    )
    if then.standing is not None and then.state != "returned":
        state = {"running": "stands in", "stopped": "stopped in", "gone": "gone in"}[then.state]
    if call is None:
        return RankRow(rank, then.state, "", "", "", None, waits, place(then.stack))
    what, at = call.what, place(then.stack)
    size = f"{what.dtype}{what.shape}"
    return RankRow(rank, state, call.name, size, what.reason, call.step, waits, at)


def _last(then: RankThen) -> str:
    return f"{then.last.name} ({then.last.what.reason})"


def _step(step: int | None) -> str:
    return "no step" if step is None else f"step {step}"


# -- stacks --

_FRAME = re.compile(r'^  (?:File "(?P<file>.+?)"|(?P<cell>Cell In\[\d+\])), line (?P<line>\d+), in '
                    r"(?P<name>.+)$", re.M)  # fmt: skip
_DOING = {
    "next_batch": "data loading",
    "forward_backward": "the forward and backward pass",
    "finish_gradients": "summing gradients",
    "clip": "the gradient norm",
    "grad_norm": "the gradient norm",
    "save": "saving",
    "restore": "reading a checkpoint",
}


def place(stack: str) -> str:
    """The innermost line that is no library's: "trainer.py:88 (next_batch)"."""
    frames = list(_FRAME.finditer(stack))
    own = [f for f in frames if f["cell"] or not _is_librarys(f["file"])]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    file = frame["cell"] or Path(frame["file"]).name
    return f"{file}:{frame['line']} ({frame['name']})"


def _is_librarys(file: str) -> bool:
    """Also of picolab what every call goes through."""
    if "/picolab/" in file:
        return "/picolab/comm/" in file or "/picolab/launch/" in file
    return "/lib/python" in file or "/site-packages/" in file or file.startswith("<")


def _doing(stack: str) -> str:
    """The part of a training step that a stack is in, from the outermost frame on."""
    names = [frame["name"] for frame in _FRAME.finditer(stack)]
    return next((_DOING[name] for name in names if name in _DOING), "")
