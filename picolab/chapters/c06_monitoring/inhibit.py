"""Exercise: from conditions to messages: for, resolve, one key one message, inhibition (chapter 6).

Scripts of a few steps come first, each with one difficulty, then dozens of random ones; messages
are compared one by one. A known mistake is the same machine with one rule changed.
"""

import functools
import random

from picolab.chapters.c06_monitoring.known_mistakes import judge_each
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_messages(steps, hold, quiet, hides):
    raise NotImplementedError("return the messages, as (step, 'firing' or 'resolved', name, rank)")


def solution(steps, hold, quiet, hides):
    in_a_row, last, firing, told, messages = {}, {}, set(), set(), []
    for step, true in enumerate(steps):
        in_a_row = {key: in_a_row.get(key, 0) + 1 for key in true}
        last |= dict.fromkeys(true, step)
        firing |= {key for key in true if in_a_row[key] >= hold}
        over = {key for key in firing if step - last[key] >= quiet}
        firing -= over
        for name, rank in sorted(over & told):
            messages.append((step, "resolved", name, rank))
        told -= over
        for name, rank in sorted(firing - told):
            if not any(name in hides.get(cause, ()) and rank in (of, -1) for cause, of in firing):
                told.add((name, rank))
                messages.append((step, "firing", name, rank))
    return messages


def judge(learner, attempt: Attempt) -> None:
    questions = [(about, _arguments(*rest)) for about, *rest in [*_small(), *_random()]]
    judge_each(learner, attempt, questions, _wrong, _MISTAKES, _alike, _messages)


def _arguments(steps, hold, quiet, hides) -> dict:
    return {"steps": steps, "hold": hold, "quiet": quiet, "hides": hides}


_HIDES = {"dead": ("hang", "slow"), "hang": ("slow", "throughput"), "slow": ("throughput",)}
_HIDES["wire"] = ("slow",)  # (a cause whose name comes after its symptom's)


def _script(rows: dict[tuple[str, int], str]) -> list[list[tuple[str, int]]]:
    """From "..xx.": the conditions that are true, step by step."""
    length = max(map(len, rows.values()), default=0)
    return [
        [key for key, row in rows.items() if row[step : step + 1] == "x"] for step in range(length)
    ]


def _small():
    slow, run = ("slow", 2), ("throughput", -1)
    three, two = (3, 4), (2, 2)
    for about, rows, limits in (
        ("one condition, long enough", {slow: "..xxxxxx......"}, three),
        ("one that is too short", {slow: "..xx......"}, three),
        ("one that is interrupted before it fires", {slow: "xx.xx.xx......"}, three),
        ("one that is interrupted while it fires", {slow: "xxx.xx..xxx......"}, three),
        ("one that is true to the end", {slow: "xxxxxxxx"}, three),
        ("twice, with a long pause", {slow: "xxx......xxx......"}, three),
        ("at once", {slow: "x..x....x"}, (1, 2)),
        ("two ranks", {slow: "xxxx.....", ("slow", 5): ".xxxx....."}, (2, 3)),
        ("a symptom and its cause, together", {slow: "xxxxxx....", run: "xxxxxx...."}, two),
        ("a cause last by its name", {("wire", 2): "xxxxxx....", slow: "xxxxxx...."}, two),
        ("a symptom after its cause", {slow: "xxxxxxx....", run: "...xxxx...."}, two),
        ("a symptom before its cause", {run: "xxxxxxx.....", slow: "...xxxx....."}, two),
        ("a symptom that outlasts its cause", {slow: "xxxx......", run: "xxxxxxxxxx...."}, two),
        ("a symptom over before its cause", {slow: "xxxxxxxxxx....", run: ".xxxx..."}, two),
        ("a dead rank beside another that is slow", {("dead", 1): "xxxxx....", slow: "xxxxx"}, two),
        ("a dead rank that was slow", {("dead", 2): "..xxxxx....", slow: "..xxxxx...."}, two),
        (
            "a chain of causes, of which the middle one is hidden itself",
            {("dead", 1): "xxxxx......", ("hang", -1): "xxxxx......", run: "xxxxx......"},
            two,
        ),
        (
            "a hang of the whole job beside a slow rank",
            {("hang", -1): "xxxx....", slow: "xxxx"},
            two,
        ),
        ("a cause that is pending only", {slow: "x.x.x.x...", run: "xxxxxxx..."}, two),
        ("nothing at all", {}, two),
    ):
        hold, quiet = limits
        yield about, _script(rows), hold, quiet, _HIDES


def _random():
    draw = random.Random(0)
    keys = [("dead", 0), ("slow", 0), ("slow", 1), ("hang", -1), ("throughput", -1), ("other", 1)]
    for number in range(50):
        rows = {}
        for key in draw.sample(keys, draw.randint(1, 6)):
            row, so = "", False
            while len(row) < 60:
                row += ("x" if so else ".") * draw.randint(1, 12)
                so = not so
            rows[key] = row[:60]
        hold, quiet = draw.randint(1, 5), draw.randint(1, 6)
        yield f"random script {number + 1}", _script(rows), hold, quiet, _HIDES


def _messages(
    steps, hold, quiet, hides, *, gaps=False, repeats=False, same_rank=True, everywhere=True,
    hidden_hide=True, pending_hide=False, sooner=0, later=0, lost=False, tells_all=False,
    hides_resolved=False, order_matters=False, ends_at_once=False, hides_nothing=False,
    takes_back=False, one_by_one=False,
) -> list[tuple]:  # fmt: skip
    """The machine, or one with a mistake."""
    row, last, firing, told, dropped, found = {}, {}, set(), set(), set(), []
    for step, true in enumerate(steps):
        waiting = {k: n for k, n in row.items() if gaps and k not in true}
        row = {k: row.get(k, 0) + 1 for k in true} | waiting
        last |= dict.fromkeys(true, step)
        new = {k for k in true if row[k] >= hold + sooner}
        before = set(firing)
        firing |= new
        wait = 1 if ends_at_once else quiet + later
        over = {k for k in firing if step - last[k] >= wait}
        firing -= over
        row = {k: n for k, n in row.items() if k not in over} if gaps else row
        for k in sorted(over & told if not tells_all else over):
            if not (hides_resolved and _hidden(k, firing, hides, same_rank, everywhere)):
                found.append((step, "resolved", *k))
        told -= over
        dropped -= over
        causes = set(row) if pending_hide else before if order_matters else firing
        if not hidden_hide:
            causes = {
                k for k in firing if k in told or not _hidden(k, firing, hides, same_rank, True)
            }
        for k in sorted(firing - dropped if repeats else firing - told - dropped):
            if k in told and k not in true:
                continue
            by_now = {c for c in causes if c in before or c <= k} if one_by_one else causes
            if not hides_nothing and _hidden(k, by_now, hides, same_rank, everywhere):
                dropped |= {k} if lost else set()
                continue
            told.add(k)
            found.append((step, "firing", *k))
        if takes_back:
            for k in sorted(told):
                if _hidden(k, firing, hides, same_rank, everywhere):
                    told.discard(k)
                    found.append((step, "resolved", *k))
    return found


def _hidden(key, causes, hides, same_rank: bool, everywhere: bool) -> bool:
    name, rank = key
    return any(
        name in hides.get(cause, ())
        and (not same_rank or rank == of or (everywhere and rank == -1))
        for cause, of in causes
    )


def _with(**change):
    return functools.partial(_messages, **change)


_MISTAKES = {
    "an alert that fires is told once, and not in each step": _with(repeats=True),
    "a condition that is interrupted while it is pending begins anew": _with(gaps=True),
    "it fires in the step in which it has been true `hold` times in a row, not one later": _with(
        sooner=1
    ),
    "it fires before it was true `hold` times in a row": _with(sooner=-1),
    "it is over when it has not been true for `quiet` steps, and not one later": _with(later=1),
    "it is over too soon: it has to be quiet for `quiet` steps": _with(later=-1),
    "one step without it is no end; it has to be quiet for `quiet` steps": _with(ends_at_once=True),
    "nothing is hidden": _with(hides_nothing=True),
    "a cause hides what it causes on its own rank and of the whole job (-1), not on other ranks": (
        _with(same_rank=False)
    ),
    "a symptom of the whole job (rank -1) is hidden by a cause on any rank": _with(
        everywhere=False
    ),
    "a cause that is hidden itself still hides": _with(hidden_hide=False),
    "a cause hides from when it fires; pending is not enough": _with(pending_hide=True),
    "a cause that begins to fire in the same step hides already": _with(order_matters=True),
    "all that begins in a step fires first; one by one, a symptom goes out before its cause": (
        _with(one_by_one=True)
    ),
    "what was hidden and still fires when its cause is over has to be told then": _with(lost=True),
    "an end is told of what was told; this one was hidden all the time": _with(tells_all=True),
    "an end of what was told is told, whatever fires meanwhile": _with(hides_resolved=True),
    "what was told before its cause fired is not taken back": _with(takes_back=True),
}


def _wrong(got, given) -> str | None:
    right = _messages(**given)
    if not isinstance(got, list | tuple) or not all(
        isinstance(one, list | tuple) and len(one) == 4 for one in got
    ):
        return "asked for is a list of (step, 'firing' or 'resolved', name, rank)"
    if _alike(got, right):
        return None
    got = [tuple(one) for one in got]
    missing = [one for one in right if one not in got]
    more = [one for one in got if one not in right]
    if more:
        return f"it tells {more[0]}, and should not"
    if missing:
        return f"it does not tell {missing[0]}"
    if len(got) > len(right):
        return f"it tells {len(got)} messages, {len(right)} of them once"
    return (
        f"in a step ends come first, and then each kind in the order of names and ranks: it tells "
        f"{got[:3]}"
    )


def _alike(got, right) -> bool:
    return (
        isinstance(got, list | tuple)
        and [tuple(one) if isinstance(one, list | tuple) else one for one in got] == right
    )


EXERCISE = Exercise(
    id="monitoring.alerts.inhibit",
    goal="From the conditions that are true in each step make the messages that somebody should "
    "get: each alert once when it begins and once when it ends, and what a firing cause explains "
    "not at all.",
    interface="`my_messages(steps, hold, quiet, hides)` returns a list of tuples (step, 'firing' "
    "or 'resolved', name, rank). `steps[i]` are the conditions that are true in step i, as (name, "
    "rank); rank -1 is the whole job. A condition fires in the step in which it has been true "
    "`hold` times in a row, and goes on until it has not been true for `quiet` steps in a row. "
    "While (cause, r) fires, told or not, alerts whose name is in `hides[cause]` and whose rank is "
    "r or -1 are hidden: not told, unless they had been told before. What still fires when nothing "
    "hides it any more is told then. Ends are told of what was told. In a step ends come first; "
    "then each kind in the order of (name, rank).",
    budget="No communication.",
    hints=(
        "Which sets of (name, rank) have to be remembered from step to step?",
        "How often in a row, when last, which fire, which were told. First bring `firing` up to "
        "date, ends and beginnings, for all; only then ask what is hidden.",
        "Told are `firing - told` for which no (cause, of) in `firing` has the name in "
        "`hides[cause]` and `rank in (of, -1)`.",
    ),
    stub_function=my_messages,
    solution_function=solution,
    why="Three sets keep it in order: what fires, what was told, and, made anew each step, what is "
    "hidden. Firing is brought up to date for all before anything is told, so that a symptom does "
    "not go out a line before its cause. A hidden cause still hides, or a chain of three would be "
    "told in the middle. Hidden is not lost: as soon as nothing hides it, it is told, since a "
    "second fault may stand behind the first. And whoever was told of a beginning is told of the "
    "end, or a message is open for ever.",
    judge=judge,
    cases=(Case("dp1"),),
    blocked=("picolab.monitoring.alerts.AlertManager.observe",),
)
