"""Exercise: find a good layout with few questions (chapter 3, section 5).

The planner's own search looks at every layout; here it may be asked about forty. So the learner has
to know which axes matter: that is what is judged, on several models and numbers of devices.
"""

import importlib
from contextlib import ExitStack
from dataclasses import dataclass

from picolab.debug.faults import patched
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

QUESTIONS = 40
WITHIN = 1.05  # of the best step of all layouts


@dataclass(frozen=True)
class Answer:
    """What `ask` says of a layout."""

    fits: bool
    step_s: float | None
    """seconds of a step; None if it does not fit"""
    memory_bytes: float | None
    """on the fullest device; None where it cannot work at all"""
    why: str
    """what kills it, or what it loses most to"""


def my_plan(gpus, node, ask):
    raise NotImplementedError(f"ask(f'dp{gpus}zero3'), and forty layouts at most")


def solution(gpus, node, ask):
    def text(tp, pp, cp, zero, schedule):
        dp = gpus // (tp * pp * cp)
        axes = (("dp", dp), ("tp", tp), ("pp", pp), ("cp", cp))
        name = "".join(f"{axis}{size}" for axis, size in axes if size > 1) or "dp1"
        name += "sp" if tp > 1 else ""
        name += f"zero{zero}" if dp * cp > 1 else ""
        return name + (f":{schedule}" if pp > 1 else "")

    known = {}

    def step(*choice):
        name = text(*choice)
        if name not in known and len(known) < 40:
            answer = ask(name)
            known[name] = answer.step_s if answer.fits else float("inf")
        return known.get(name, float("inf"))

    # How the model is cut decides most: tp inside the node, few stages, the rest is dp.
    cuts = [
        (tp, pp, 1, zero, "zb-v")
        for tp in (1, 2, 4, 8)
        for pp in (1, 2, 4, 8)
        for zero in ([3] if pp == 1 else [2])
        if tp <= node and gpus % (tp * pp) == 0
    ]
    best = min(cuts, key=lambda cut: step(*cut))
    # Then the details, one at a time, while anything helps.
    while True:
        tp, pp, cp, zero, schedule = best
        near = [(tp, pp, cp, z, schedule) for z in (1, 2, 3) if z != zero]
        near += [(tp, pp, c, zero, schedule) for c in (cp * 2, cp // 2) if c >= 1]
        near += [(tp, pp, cp, zero, s) for s in ("interleaved", "zb-h1", "1f1b") if pp > 1]
        near += [(tp // 2, pp, cp * 2, zero, schedule)] if tp > 1 else []
        near = [one for one in near if gpus % (one[0] * one[1] * one[2]) == 0]
        found = min([best, *near], key=lambda one: step(*one))
        if found == best:
            return text(*best)
        best = found


def judge(learner, attempt: Attempt) -> None:
    from picolab.planner.costing import Costing
    from picolab.planner.request import Request
    from picolab.planner.search import search

    for model, gpus, batch in attempt.case.values["jobs"]:
        attempt.budget(count=0)
        attempt.setting(f"{model} on {gpus} H100 in nodes of 8, {batch} sequences a step")
        request = Request(model=model, gpus=gpus, hardware="h100", global_batch=batch)
        best, costing = search(request).best[0].step_s, Costing(request)
        asked: list[str] = []
        given = {"gpus": gpus, "node": 8, "ask": _ask(costing, gpus, asked)}
        with _only_by_asking():
            said = attempt.call(learner, given)
        if not _is_good(attempt, costing, gpus, said, best, asked):
            return
    attempt.only()
    attempt.budget(count=0)


def _ask(costing, gpus: int, asked: list[str]):
    from picolab.planner.verdict import judge as verdict_on

    def ask(layout: str) -> Answer:
        """The planner's verdict on a layout of all the devices."""
        asked.append(str(layout))
        if len(asked) > QUESTIONS:
            raise RuntimeError(f"that was question {len(asked)}, and there are {QUESTIONS}")
        found = verdict_on(costing, _parsed(layout, gpus))
        memory = found.memory_bytes if found.memory else None
        if not found.fits:
            return Answer(False, None, memory, found.killed_by.sentence)
        return Answer(True, found.step_s, memory, f"loses most to {found.lost_to}")

    return ask


def _parsed(layout: str, gpus: int):
    from picolab.specs import Layout

    parsed = Layout.parse(layout)
    parsed.check_world(gpus)
    return parsed


def _only_by_asking() -> ExitStack:
    """While the learner's code runs, the planner itself refuses."""
    # By import_module: as an attribute of the room `plan` is the function.
    plan, search, verdict = (
        importlib.import_module(f"picolab.planner.{name}") for name in ("plan", "search", "verdict")
    )

    def refuses(*args, **kwargs):
        raise RuntimeError("here the planner answers through `ask` alone")

    stack = ExitStack()
    for module, name in (
        (plan, "search"),
        (plan, "judge"),
        (search, "search"),
        (search, "judge"),
        (verdict, "judge"),
    ):
        stack.enter_context(patched(module, name, refuses))
    return stack


def _is_good(attempt: Attempt, costing, gpus: int, said, best: float, asked: list[str]) -> bool:
    from picolab.planner.verdict import judge as verdict_on

    kind = "None" if said is None else f"a {type(said).__name__}"
    if not attempt.require(
        isinstance(said, str), f'it returns {kind}; asked for is a layout as text: "dp{gpus}zero3"'
    ):
        return False
    try:
        layout = _parsed(said, gpus)
    except ValueError as error:
        return attempt.require(False, f"{said!r} is no layout of {gpus} ranks: {error}")
    found = verdict_on(costing, layout)
    if not found.fits:
        return attempt.require(False, f"{said} does not live: {found.killed_by.sentence}")
    attempt.counts(f"questions, {attempt.about}", len(asked), QUESTIONS)
    return attempt.require(
        found.step_s <= best * WITHIN,
        f"{found.candidate}: {found.step_s:.2f} s a step, {100 * (found.step_s / best - 1):.0f} % "
        f"more than the best; {100 * (WITHIN - 1):.0f} % are allowed. It loses most to "
        f"{found.lost_to}",
    )


EXERCISE = Exercise(
    id="3d.plan.budget",
    goal=f"Find a layout whose step takes at most {round(100 * (WITHIN - 1))} % longer than that "
    "of the best of all layouts, by the planner's estimate, and ask the planner about "
    f"{QUESTIONS} layouts at most. There are hundreds. The same function is tried on several "
    "models and numbers of devices, which it is not told: only what it asks.",
    interface='`my_plan(gpus, node, ask)` returns a layout as text, such as `"dp8tp4spzero2pp2:'
    'zb-v"`, of exactly `gpus` ranks; `node` is how many devices NVLink connects. `ask(layout)` '
    "takes such a text and returns an answer with `.fits`, `.step_s` (seconds, with the best "
    "micro-batch and recomputation that fit; None if nothing fits), `.memory_bytes` of the fullest "
    "device, and `.why`, what kills it or what it loses most to. A text that is no layout of so "
    "many ranks is refused with a ValueError, and counts. Nothing is sent.",
    budget=f"{QUESTIONS} questions for each job.",
    hints=(
        "Which choice changes the step most: how the model is cut (tp, pp), what is sharded, or "
        "the schedule? Ask about the coarse choice first, over its whole range.",
        "tp in 1, 2, 4, 8 (inside the node) times pp in 1, 2, 4, 8, each with the ZeRO stage that "
        "such a cut usually has (3 without a pipeline, 2 with one): sixteen questions. Then "
        "change one thing of the best at a time, as long as it gets better.",
        "Things to change: ZeRO's stage; the schedule (zb-v, interleaved, zb-h1); cp doubled and "
        "dp halved; tp halved and cp doubled. Remember what you have asked, and write sp wherever "
        "tp is more than 1.",
    ),
    stub_function=my_plan,
    solution_function=solution,
    why="A step's time is nearly a sum of terms, each of which depends on few choices: tp's "
    "collectives on tp, the bubble on pp and the schedule, recomputation on what memory is left. "
    "So coordinate by coordinate is a good search here, once it begins in the right cut; it "
    "begins wrong if a cut is judged with a ZeRO stage under which it dies. Real searches add "
    "bounds (no layout of this cut can beat what is known), and short real runs of the last few, "
    "since an estimate is off by some per cent.",
    judge=judge,
    cases=(
        Case(
            "dp1",
            "three jobs",
            {
                "jobs": (
                    ("llama-3-8b", 16, 64),
                    ("llama-3-70b", 64, 256),
                    ("llama-3-70b", 256, 1024),
                )
            },
        ),
    ),
    timeout=30.0,
)
