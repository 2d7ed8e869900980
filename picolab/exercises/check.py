"""From a learner's function to a verdict.

The function travels into fresh ranks, once for each case, and the exercise's judge calls it there.
What can happen, in the order in which it is asked:

    it is still the stub         NotImplementedError: todo, no failure (so a whole notebook runs)
    it raises, exits, dies       its own traceback, of the rank that is the cause
    nobody moves any more        who waits for whom, and in which collective
    it runs on and on            ended after `DEADLINE_S`
    the judge found something    the sentences, rank by rank
    none of these                it passes, and the budget is shown beside what was used

The package's own version of what is asked must not be what is judged: it is refused as an argument,
and blocked in the ranks (`Exercise.blocked`), so that calling it from inside the learner's function
ends in a sentence as well. The expected result is computed by the judge, densely, never by the
solution.
"""

import functools
import html
import inspect
import pkgutil
import re
import threading
from collections.abc import Callable
from typing import Literal, Protocol

from picolab import launch
from picolab.exercises.case import Case
from picolab.launch.failures import RankFailure, RankHang, Stopped
from picolab.show.table import Table
from picolab.specs import Layout


class Judged(Protocol):
    """What has to be known of an exercise to judge an answer to it; see definition.Exercise."""

    id: str
    title: str
    stub_function: Callable
    judge: Callable
    cases: tuple[Case, ...]
    blocked: tuple[str, ...]
    timeout: float


Status = Literal["todo", "pass", "fail"]
DEADLINE_S = 60.0  # for one case; the slowest solution takes two


class CheckResult:
    """A verdict: `.status` ("todo", "pass", "fail"), `.text`, `.counted`; true if it passes."""

    def __init__(
        self,
        exercise: Judged,
        status: Status,
        headline: str,
        rows: list[tuple[str, str]] = (),
        details: str = "",
        counted: Table | None = None,
    ):
        self.exercise_id, self.status, self.headline = exercise.id, status, headline
        self.rows, self.details, self.counted = list(rows), details, counted
        self.next_step = {
            "todo": "Write it in place of `raise NotImplementedError`, then run both cells again.",
            "fail": f'Stuck? `pico.exercise("{exercise.id}").hint()`',
            "pass": f'Compare with `pico.exercise("{exercise.id}").solution()`',
        }[status]

    def __bool__(self) -> bool:
        return self.status == "pass"

    @property
    def text(self) -> str:
        """All that it says."""
        parts = [f"{_WORDS[self.status]}: {self.headline}"]
        parts += [f"  {where}: {what}" for where, what in self.rows]
        parts += [self.details] if self.details else []
        parts += [repr(self.counted)] if self.counted is not None else []
        return "\n".join([*parts, self.next_step])

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        mark, colour = _MARKS[self.status]
        rows = "".join(
            f"<li><b>{html.escape(where)}</b>: {_with_code(what)}</li>" for where, what in self.rows
        )
        details = (
            '<details open style="margin-bottom:4px"><summary>where</summary>'
            f'<pre style="{_WRAPPED}">'
            f"{html.escape(self.details)}</pre></details>"
        )
        counted = self.counted._repr_html_() if self.counted is not None else ""
        return (
            f'<div style="border-left:4px solid {colour};padding:2px 10px;margin:4px 0">'
            f"<b>{mark} {_WORDS[self.status]}</b>: {_with_code(self.headline)}"
            f"{f'<ul style=margin:4px>{rows}</ul>' if rows else ''}"
            f"{details if self.details else ''}{counted}"
            f'<div style="opacity:.75">{_with_code(self.next_step)}</div></div>'
        )


def _with_code(text: str) -> str:
    """As HTML; what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


# Wrapped between words: JupyterLab's own style breaks inside them.
_WRAPPED = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"
_WORDS = {"todo": "Not written yet", "pass": "Right", "fail": "Not yet"}
_MARKS = {"todo": ("○", "#888888"), "pass": ("✓", "#009E73"), "fail": ("✗", "#D55E00")}


def check(exercise: Judged, fn: Callable) -> CheckResult:
    """See `Exercise.check`."""
    refuse_what_is_no_answer(exercise, fn)
    return judged(exercise, fn)


def refuse_what_is_no_answer(exercise: Judged, fn: Callable) -> None:
    """ValueError for what is not a function, is the package's, or cannot be called as asked."""
    if not callable(fn):
        raise ValueError(
            f"check takes your function itself, as in .check({exercise.stub_function.__name__}), "
            f"not {fn!r}"
        )
    inner = fn
    while isinstance(inner, functools.partial) or hasattr(inner, "__wrapped__"):
        inner = inner.func if isinstance(inner, functools.partial) else inner.__wrapped__
    if (getattr(inner, "__module__", None) or "").split(".")[0] == "picolab":
        raise ValueError(
            f"{getattr(inner, '__name__', inner)} is picolab's own; the exercise is to write it: "
            "give check the function that you wrote"
        )
    wanted = list(inspect.signature(exercise.stub_function).parameters)
    try:
        inspect.signature(fn).bind(*wanted)
    except TypeError as error:
        raise ValueError(
            f"it is called with {_count(len(wanted), 'argument')}, ({', '.join(wanted)}), "
            f"and yours takes {inspect.signature(fn)}: {error}"
        ) from None


def judged(exercise: Judged, fn: Callable) -> CheckResult:
    """The verdict on fn, whoever wrote it: the exercise's tests judge its own solution here."""
    counted: list = []
    for case in exercise.cases:
        layout = Layout.parse(case.layout)
        where = _where(layout.world, case.about)
        try:
            reports = _run(exercise, case, fn, layout.world)
        except RankHang as hang:
            headline, rows, details = _stuck(where, hang)
            return CheckResult(exercise, "fail", headline, _likely(case) + rows, details)
        except RankFailure as failure:
            return CheckResult(exercise, "fail", *_failed(where, case, failure))
        except Stopped:
            headline = f"{where}, it was still running after {DEADLINE_S:.0f} s and was ended"
            return CheckResult(exercise, "fail", headline)
        if any(report["todo"] for report in reports):
            return CheckResult(exercise, "todo", exercise.title)
        first = min(reports, key=lambda report: report["setting"])
        where = _where(layout.world, first["about"])
        wrong = {
            rank: r["problems"]
            for rank, r in enumerate(reports)
            if r["problems"] and r["setting"] == first["setting"]
        }
        if wrong:
            return CheckResult(exercise, "fail", where, _rows(wrong, len(reports)))
        counted += [[where, *line] for line in _most(reports)]
    worlds = sorted({Layout.parse(case.layout).world for case in exercise.cases})
    ranks = re.sub(", ([0-9]+)$", r" and \1", ", ".join(map(str, worlds)))
    headline = f"{exercise.title}, on {ranks} ranks"
    rows, said = [], ""
    for where, what, unit, used, most, *least in counted:
        what += f", {unit}" if unit else ""
        rows.append([where if where != said else "", what, *(least or [0]), used, most])
        said = where
    table = Table(["", "", "at least", "used", "budget"], rows) if rows else None
    return CheckResult(exercise, "pass", headline, counted=table)


def _run(exercise: Judged, case: Case, fn: Callable, world: int) -> list[dict]:
    job = launch.run(
        _in_a_rank,
        exercise.judge,
        exercise.blocked,
        case,
        fn,
        world_size=world,
        backend="gloo",
        timeout=exercise.timeout,
        wait=False,
        name="exercise",
    )
    # Output counts as progress, so what prints for ever is no hang.
    alarm = threading.Timer(DEADLINE_S, job.stop)
    alarm.daemon = True
    alarm.start()
    try:
        return list(job.result())
    finally:
        alarm.cancel()


def _in_a_rank(judge: Callable, blocked: tuple[str, ...], case: Case, fn: Callable) -> dict:
    import torch

    from picolab import comm
    from picolab.exercises.attempt import Attempt

    comm.build_mesh(case.layout)
    torch.manual_seed(0)
    for name in blocked:
        _block(name)
    attempt = Attempt(case)
    try:
        judge(fn, attempt)
    except NotImplementedError:
        return {"todo": True}
    return {"todo": False, **attempt.report()}


def _block(name: str) -> None:
    """Whoever holds this function, under whatever name, finds it refusing: only in this rank.

    Its code is exchanged, not the name: a learner may have imported it before.
    """
    function = pkgutil.resolve_name(name)
    namespace: dict = {}
    sentence = f"{name} is what this exercise asks you to write"
    exec(f"def refuse(*_, **__):\n    raise RuntimeError({sentence!r})", namespace)
    function.__code__ = namespace["refuse"].__code__
    function.__defaults__, function.__kwdefaults__ = None, None


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _rows(wrong: dict[int, list[str]], ranks: int) -> list[tuple[str, str]]:
    """(who, what): ranks that have the same to say are one line; three lines a rank are enough."""
    told: dict[str, list[int]] = {}
    for rank, problems in wrong.items():
        for problem in problems[:3]:
            told.setdefault(problem, []).append(rank)
    rows = []
    for problem, who in told.items():
        if len(who) == ranks:
            rows.append(("every rank", problem))
        else:
            rows.append((f"rank{'s' if len(who) > 1 else ''} {', '.join(map(str, who))}", problem))
    return rows[:8]


def _most(reports: list[dict]) -> list[tuple]:
    """For each budget the rank that used most."""
    return [max(lines, key=lambda line: line[2]) for lines in zip(*(r["counted"] for r in reports))]


def _where(world: int, about: str) -> str:
    return f"on {world} ranks" + (f", {about}" if about else "")


def _failed(where: str, case: Case, failure: RankFailure) -> tuple:
    """Headline, rows and details; the learner's own code is a part of the details.

    Where the ranks disagree about a collective, who entered which is all there is to know: what
    gloo prints of it, in bytes, and the rank whose process it then ended, are consequences.
    """
    if failure.kind != "mismatch":
        own = _own_part(str(failure).removeprefix(failure.headline()))
        return f"{where}, {failure.headline()}", [], own
    rows = re.findall(r"^  (rank \d+): (.*)$", failure.notes, re.MULTILINE)
    headline = failure.headline().split("; rank")[0]
    return f"{where}, {headline}", _likely(case) + rows, _own_part(failure.traceback)


def _likely(case: Case) -> list[tuple[str, str]]:
    return [("perhaps", case.if_apart)] if case.if_apart else []


def _stuck(where: str, hang: RankHang) -> tuple[str, list[tuple[str, str]], str]:
    """Headline, (rank, where it is) for each rank, and the learner's lines they are in."""
    rows = []
    for line in hang.what.splitlines()[1:]:
        who, colon, what = line.partition(": ")
        if colon and who.startswith("rank ") and who[5:].isdigit():
            rows.append((who, what))
    waits = any(what.startswith("inside ") for _, what in rows)
    own = {n: _own_part(text) for n, text in sorted(hang.stacks.items())}
    stacks = [f"rank {n}:\n{text}" for n, text in own.items() if text]
    details = "\n".join([hang.notes, *stacks] if hang.notes else stacks)
    return f"{where}, {'they wait for ever' if waits else 'it never returns'}", rows, details


def _own_part(text: str) -> str:
    """Without the lines of picolab's and torch's own files: what is left is the learner's."""
    kept, skip = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("File "):
            skip = "/picolab/" in line or "/torch/" in line or "/site-packages/" in line
        elif not line.startswith("    "):
            skip = False
        if not skip:
            kept.append(line)
    return "\n".join(kept).strip()
