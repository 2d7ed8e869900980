"""Exercise: in which order a pipeline stage does its forwards and backwards (chapter 1, section 5).

The judge here does communicate, once it knows that every rank has the same list for every stage
and that the lists go together: then nobody can be left waiting.
"""

import itertools
import re
import zlib

import torch

from picolab import comm, schedules
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.model import Transformer, initialise, slices
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.specs import ModelConfig

FORWARD, BACKWARD = 1, 2  # time units
_MICRO_BATCHES = (1, 2, 3, 5, 7, 9, 12, 17)


def my_order(stage, stages, micro_batches):
    raise NotImplementedError('return a list like ["F0", "F1", "B0", "B1"]')


def solution(stage, stages, micro_batches):
    warm_up = min(stages - 1 - stage, micro_batches)
    order = [f"F{i}" for i in range(warm_up)]
    for i in range(warm_up, micro_batches):  # one forward, one backward
        order += [f"F{i}", f"B{i - warm_up}"]
    return order + [f"B{i}" for i in range(micro_batches - warm_up, micro_batches)]


def judge(learner, attempt: Attempt) -> None:
    stages, said, orders = comm.mesh().size("pp"), [], {}
    # Those that are trained, and, as asking costs nothing, many more.
    wanted = [(stages, m) for m in range(1, attempt.case.values["up_to"] + 1)]
    more = itertools.product(attempt.case.values.get("stages", ()), _MICRO_BATCHES)
    for p, m in [*wanted, *more]:
        rows = [
            attempt.call(learner, {"stage": s, "stages": p, "micro_batches": m}) for s in range(p)
        ]
        said.append(rows)
        schedule = _read(attempt, rows, m)
        if schedule is None or not _is_1f1b(attempt, schedule):
            break
        if p == stages and m <= attempt.case.values["up_to"]:
            orders[m] = schedule
    attempt.only()
    if _all_ranks_agree(attempt, said) and not attempt.problems:
        _train(attempt, orders)
        _count(attempt, orders[max(orders)])


def _read(attempt: Attempt, rows: list, m: int) -> schedules.Schedule | None:
    """The lists as a schedule, or None if they are none."""
    actions = []
    for stage, row in enumerate(rows):
        call = f"my_order({stage}, {len(rows)}, {m})"
        if not isinstance(row, list | tuple):
            kind = "None" if row is None else f"a {type(row).__name__}"
            attempt.wrong(f'{call} returns {kind}; asked for is a list like ["F0", "B0"]')
            return None
        found = [re.fullmatch(r"([FB])(\d{1,9})", str(action)) for action in row]
        if None in found:
            strange = row[found.index(None)]
            attempt.wrong(f'{call} has {strange!r} in it; an action is written "F0" or "B0"')
            return None
        actions.append([schedules.Action(one[1], stage, int(one[2])) for one in found])
    return schedules.Schedule("yours", len(rows), m, actions)


def _is_1f1b(attempt: Attempt, schedule: schedules.Schedule) -> bool:
    """It can work, holds no more than 1F1B does, and takes no longer."""
    stages, m = schedule.stages, schedule.micro_batches
    case = f"{stages} stages, {m} micro-batch{'es' * (m > 1)}"
    try:
        schedules.validate(schedule)
    except schedules.ScheduleError as error:
        return attempt.require(False, f"{case}: {error.action}: {error.reason}")
    try:
        schedules.validate(schedule, [stages - stage for stage in range(stages)])
    except schedules.ScheduleError as error:
        stage = error.action.stage
        return attempt.require(
            False,
            f"{case}: at {error.action}, the activations of {stages - stage + 1} micro-batches "
            f"would be held, and {stages - stage} is the budget there: a backward has to come "
            "first",
        )
    timeline, best = _clock(schedule), _least_time(schedule)
    return attempt.require(
        timeline.makespan <= best,
        f"{case}: it takes {timeline.makespan} time units, and {best} are enough. "
        f"{_needless_wait(timeline)}",
    )


def _clock(schedule: schedules.Schedule) -> schedules.Simulation:
    return schedules.simulate(schedule, forward=FORWARD, backward_input=1, backward_weight=1)


def _least_time(schedule: schedules.Schedule) -> int:
    """(m + p - 1)(F + B); see costs.bubbles."""
    return (schedule.micro_batches + schedule.stages - 1) * (FORWARD + BACKWARD)


def _needless_wait(timeline: schedules.Simulation) -> str:
    """The first wait of a stage that had a forward to do, and room for it."""
    end = {span.action: span.end for span in timeline.spans}
    found = []
    for stage in range(timeline.ranks):
        spans = [span for span in timeline.spans if span.rank == stage]
        for i in range(1, len(spans)):
            since, until = spans[i - 1].end, spans[i].start
            kinds = [span.action.kind for span in spans[:i]]
            room = kinds.count("F") - kinds.count("B") < timeline.ranks - stage
            later = next((span.action for span in spans[i:] if span.action.kind == "F"), None)
            if later in (None, spans[i].action) or not room:
                continue
            ready = end.get(timeline.schedule.needs(later), 0)
            if max(since, ready) + FORWARD <= until:
                needs = timeline.schedule.needs(spans[i].action)
                found.append(
                    (
                        since,
                        f"Stage {stage} does nothing from {since} to {until}, when it waits for "
                        f"{needs}; it could do F{later.micro_batch} meanwhile",
                    )
                )
    return min(found)[1] if found else "Draw it: in which wait has a stage something to do?"


def _all_ranks_agree(attempt: Attempt, said: list) -> bool:
    """Asked before anything is sent: a rank with a list of its own would leave others waiting."""
    mine = zlib.crc32(repr((said, bool(attempt.problems))).encode())
    everyones = comm.all_gather(torch.tensor([mine]), "pp", "exercise: does every rank agree")
    agree = len(set(everyones.tolist())) == 1
    if not agree:
        attempt.problems.insert(
            0,
            "the ranks got different lists for the same arguments: what `my_order` returns may "
            "depend on `stage`, and not on the rank it runs in",
        )
    return agree


def _train(attempt: Attempt, orders: dict[int, schedules.Schedule]) -> None:
    """Real forwards and backwards in this order; the stage's gradient is one process's."""
    config = ModelConfig.preset("tiny").replace(
        hidden=16, ffn=16, layers=4, heads=2, kv_heads=1, vocab=11, seq=6
    )
    draw = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(0, 11, (2, max(orders), 1, 6), generator=draw)
    whole = initialise(Transformer(config, dtype=torch.float64), 0)
    for m, schedule in orders.items():
        # Gradients add up: after micro-batch m - 1, `whole` has those of the first m.
        whole.loss(tokens[m - 1], labels[m - 1]).backward()
        stage = Transformer(config, dtype=torch.float64)
        pipeline = PipelineParallelOptimizer(stage)
        initialise(stage, 0)
        pipeline.run(schedule, tokens[:m], labels[:m], 1)
        expected, got = _gradients(whole), _gradients(stage)
        attempt.equal(
            f"the stage's gradient, trained in your order with {m} micro-batches",
            torch.cat(list(got.values())),
            torch.cat([expected[name] for name in got]),
        )


def _gradients(model: Transformer) -> dict[str, torch.Tensor]:
    return {
        piece.name: gradient.flatten()
        for parameter in model.parameters()
        for piece, gradient in slices(parameter, parameter.grad)
    }


def _count(attempt: Attempt, schedule: schedules.Schedule) -> None:
    timeline, m, stages = _clock(schedule), schedule.micro_batches, schedule.stages
    what = f"time units, {m} micro-batches"
    attempt.counts(what, timeline.makespan, _least_time(schedule))
    for stage, held in enumerate(timeline.peak_in_flight):
        what = f"micro-batches held by stage {stage}, of {m}"
        attempt.counts(what, held, stages - stage)


EXERCISE = Exercise(
    id="4d.pp.1f1b",
    goal="Write down in which order a stage does the forwards and backwards of its micro-batches, "
    "so that the pipeline is as fast as it can be *and* stage s never holds the activations of "
    "more than stages - s micro-batches. The ranks then train a small transformer in your order.",
    interface='`my_order(stage, stages, micro_batches)` returns a list such as `["F0", "F1", "B0", '
    '"B1"]`: F the forward and B the backward of the micro-batch with that number, from 0, each '
    "once. Stage s is on rank s, from 0; F needs the F of the stage before, B its own F and the B "
    "of the stage behind. There may be fewer micro-batches than stages. Nothing is sent by your "
    "function.",
    budget="With F = 1 and B = 2 time units: (micro_batches + stages - 1) * 3 time units until the "
    "last backward ends, and activations of at most stages - s micro-batches in flight on stage s "
    "(from the start of F to the end of B).",
    hints=(
        "On paper, with 3 stages: the last one can do B0 right after F0. When can the stage before "
        "it do B0, and how many forwards has it time for until then?",
        "Three parts: a warm-up of forwards, then one forward and one backward in turn, then the "
        "backwards that are left. The warm-up is as long as the number of stages behind this one, "
        "and no longer than there are micro-batches.",
        "`warm_up = min(stages - 1 - stage, micro_batches)`. In the middle, F of micro-batch i is "
        "followed by B of micro-batch i - warm_up; warm_up backwards are left at the end.",
    ),
    stub_function=my_order,
    solution_function=solution,
    why="A stage with k stages behind it gets its first gradient back after k further forwards, "
    "so it does k forwards, not to stand idle, and no more, not to hold them. From then on each "
    "backward frees what the next forward takes. The bubble is GPipe's, (p-1)/(m+p-1) of the "
    "total: 1F1B saves memory, not time. GPipe holds m micro-batches, 1F1B p - s, however many "
    "there are, and that is why m can be made large, which does make the bubble small "
    "(arXiv 2104.04473, section 2.2).",
    judge=judge,
    cases=(
        Case("pp2", "1 to 8 micro-batches", {"up_to": 8}),
        Case("pp4", "1 to 8 micro-batches", {"up_to": 8}),
        Case(
            "pp3",
            "1 to 11 micro-batches, and lists for up to 9 stages and 17 micro-batches",
            {"up_to": 11, "stages": range(1, 10)},
        ),
    ),
    blocked=("picolab.schedules.generators.one_f_one_b",),
    timeout=5.0,
)
