"""Exercise: the order of interleaved 1F1B (chapter 3, section 2).

As in chapter 1's exercise on 1F1B the judge does communicate, once it knows that every rank has the
same lists and that they go together.
"""

import itertools
import re
import zlib

import torch

from picolab import comm, costs, schedules
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.model import Transformer, initialise, slices
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.specs import ModelConfig

FORWARD, BACKWARD = 1, 2  # time units of a stage


def my_interleaved_order(rank, ranks, micro_batches, v):
    raise NotImplementedError(f'a list like ["{rank}F0", "{rank + ranks}F0", "{rank}B0"]')


def solution(rank, ranks, micro_batches, v):
    def action(kind, k):  # the k-th of that kind on this rank
        turn, place = divmod(k, ranks * v)
        chunk, i = divmod(place, ranks)
        if kind == "B":
            chunk = v - 1 - chunk
        return f"{chunk * ranks + rank}{kind}{turn * ranks + i}"

    total = v * micro_batches
    warm_up = min((v - 1) * ranks + 2 * (ranks - 1 - rank), total)
    order = [action("F", k) for k in range(warm_up)]
    for k in range(warm_up, total):
        order += [action("F", k), action("B", k - warm_up)]
    return order + [action("B", k) for k in range(total - warm_up, total)]


def judge(learner, attempt: Attempt) -> None:
    ranks, v = comm.mesh().size("pp"), attempt.case.values["v"]
    rounds = attempt.case.values["rounds"]
    wanted = [(ranks, v, r * ranks) for r in range(1, rounds + 1)]
    more = itertools.product(attempt.case.values.get("ranks", ()), (2, 3, 4), (1, 3))
    said, orders = [], {}
    for p, chunks, m in [*wanted, *((p, w, r * p) for p, w, r in more)]:
        rows = [
            attempt.call(learner, {"rank": r, "ranks": p, "micro_batches": m, "v": chunks})
            for r in range(p)
        ]
        said.append(rows)
        schedule = _read(attempt, rows, m, chunks)
        if schedule is None or not _is_interleaved(attempt, schedule, p, chunks):
            break
        if (p, chunks) == (ranks, v) and m <= rounds * ranks:
            orders[m] = schedule
    attempt.only()
    if _all_ranks_agree(attempt, said) and not attempt.problems:
        _train(attempt, orders, v)
        _count(attempt, orders[max(orders)], ranks, v)


def _read(attempt: Attempt, rows: list, m: int, v: int) -> schedules.Schedule | None:
    """The lists as a schedule, or None if they are none."""
    actions, p = [], len(rows)
    for rank, row in enumerate(rows):
        call = f"my_interleaved_order({rank}, {p}, {m}, {v})"
        if not isinstance(row, list | tuple):
            kind = "None" if row is None else f"a {type(row).__name__}"
            attempt.wrong(f'{call} returns {kind}; asked for is a list like ["{rank}F0"]')
            return None
        found = [re.fullmatch(r"(\d{1,9})([FB])(\d{1,9})", str(action)) for action in row]
        if None in found:
            strange = row[found.index(None)]
            attempt.wrong(
                f"{call} has {strange!r} in it; an action is stage, F or B, micro-batch: "
                f'"{rank + p}F0"'
            )
            return None
        actions.append([schedules.Action(one[2], int(one[1]), int(one[3])) for one in found])
    return schedules.Schedule("yours", v * p, m, actions, tuple(range(p)) * v)


def _is_interleaved(attempt: Attempt, schedule: schedules.Schedule, p: int, v: int) -> bool:
    """It can work, takes no longer and holds no more than interleaved 1F1B."""
    m = schedule.micro_batches
    case = f"{p} ranks, {v} stages each, {m} micro-batches"
    try:
        schedules.validate(schedule)
    except schedules.ScheduleError as error:
        return attempt.require(False, f"{case}: rank {error.rank}, {error.action}: {error.reason}")
    limits = [costs.in_flight(f"interleaved-v{v}", p, m, rank) for rank in range(p)]
    timeline = schedules.simulate(schedule, forward=FORWARD, backward_input=1, backward_weight=1)
    most = timeline.peak_in_flight
    worst = max(range(p), key=lambda rank: most[rank] - limits[rank])
    if most[worst] > limits[worst]:
        return attempt.require(
            False,
            f"{case}: rank {worst} holds {most[worst]} stages' micro-batches at once, and "
            f"{limits[worst]} is the budget there: a backward has to come first",
        )
    best = _least_time(p, m, v)
    plain = (m + p - 1) * v * (FORWARD + BACKWARD)
    why = " That is what 1F1B with thick stages takes." if timeline.makespan == plain else ""
    return attempt.require(
        timeline.makespan <= best,
        f"{case}: it takes {timeline.makespan} time units, and {best} are enough.{why}"
        + _longest_wait(timeline),
    )


def _longest_wait(timeline: schedules.Simulation) -> str:
    """After a rank's first action: at the start somebody has to wait."""
    begins = {
        rank: min(s.start for s in timeline.spans if s.rank == rank)
        for rank in range(timeline.ranks)
    }
    waits = [w for w in timeline.waits() if w.action and w.start >= begins[w.rank]]
    if not waits:
        return ""
    wait = max(waits, key=lambda wait: wait.end - wait.start)
    return (
        f" The longest wait: rank {wait.rank}, {wait.end - wait.start} units, until rank "
        f"{wait.source} has done {wait.action}."
    )


def _least_time(p: int, m: int, v: int) -> int:
    """(v m + p - 1)(F + B) of a stage; see costs.bubbles."""
    return (v * m + p - 1) * (FORWARD + BACKWARD)


def _all_ranks_agree(attempt: Attempt, said: list) -> bool:
    mine = zlib.crc32(repr((said, bool(attempt.problems))).encode())
    everyones = comm.all_gather(torch.tensor([mine]), "pp", "exercise: does every rank agree")
    agree = len(set(everyones.tolist())) == 1
    if not agree:
        attempt.problems.insert(
            0,
            "the ranks got different lists for the same arguments: what `my_interleaved_order` "
            "returns may depend on its argument `rank`, and not on the rank it runs in",
        )
    return agree


def _train(attempt: Attempt, orders: dict[int, schedules.Schedule], v: int) -> None:
    """Real forwards and backwards in this order; gradients are one process's."""
    ranks = comm.mesh().size("pp")
    config = ModelConfig.preset("tiny").replace(
        hidden=16, ffn=16, layers=v * ranks, heads=2, kv_heads=1, vocab=11, seq=6
    )
    draw = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(0, 11, (2, max(orders), 1, 6), generator=draw)
    for m, schedule in orders.items():
        whole = initialise(Transformer(config, dtype=torch.float64), 0)
        for i in range(m):
            whole.loss(tokens[i], labels[i]).backward()
        mine = Transformer(config, dtype=torch.float64)
        pipeline = PipelineParallelOptimizer(mine, schedule=f"interleaved-v{v}")
        initialise(mine, 0)
        pipeline.run(schedule, tokens[:m], labels[:m], 1)
        expected, got = _gradients(whole), _gradients(mine)
        attempt.equal(
            f"this rank's gradient, trained in your order with {m} micro-batches",
            torch.cat(list(got.values())),
            torch.cat([expected[name] for name in got]),
        )


def _gradients(model: Transformer) -> dict[str, torch.Tensor]:
    return {
        piece.name: gradient.flatten()
        for parameter in model.parameters()
        for piece, gradient in slices(parameter, parameter.grad)
    }


def _count(attempt: Attempt, schedule: schedules.Schedule, p: int, v: int) -> None:
    m = schedule.micro_batches
    timeline = schedules.simulate(schedule, forward=FORWARD, backward_input=1, backward_weight=1)
    attempt.counts(f"time units, {m} micro-batches", timeline.makespan, _least_time(p, m, v))
    for rank, held in enumerate(timeline.peak_in_flight):
        limit = costs.in_flight(f"interleaved-v{v}", p, m, rank)
        attempt.counts(f"held by rank {rank}, of {v * m} stages' micro-batches", held, limit)


EXERCISE = Exercise(
    id="3d.pp.interleaved",
    goal="A rank has v thin stages instead of one thick: stage s is on rank s % ranks, round and "
    "round. Write down in which order a rank does its forwards and backwards, so that the pipeline "
    "is as fast as it can be and no rank holds more than the budget. The ranks then train a small "
    "transformer in your order.",
    interface="`my_interleaved_order(rank, ranks, micro_batches, v)` returns a list such as "
    '`["0F0", "0F1", "2F0"]`: stage, F (forward) or B (backward), micro-batch, all from 0, each '
    "stage of this rank with each micro-batch once. F of stage s needs the F of stage s - 1, B the "
    "B of stage s + 1 and its own F. `micro_batches` is a multiple of `ranks`. Nothing is sent by "
    "your function.",
    budget="With F = 1 and B = 2 time units of a thin stage: (v * micro_batches + ranks - 1) * 3 "
    "until the last backward ends. Activations of at most (v-1) * ranks + 2 * (ranks-1-rank) + 1 "
    "pairs of a stage and a micro-batch on a rank, from F to B (never more than there are).",
    hints=(
        "On paper, 2 ranks, v = 2, 4 micro-batches: when can rank 0 do 2F0, and what else can it "
        "do until then? In rounds of as many micro-batches as there are ranks.",
        "The k-th forward of a rank: `ranks` micro-batches through its first stage, the same "
        "through its second, up to its v-th, then the next `ranks`. The k-th backward the same, "
        "from the last stage on. Then warm-up, one forward and one backward in turn, and the rest.",
        "`turn, place = divmod(k, ranks * v)`; `chunk, i = divmod(place, ranks)`; the stage is "
        "`chunk * ranks + rank` (backward: with v - 1 - chunk), the micro-batch turn * ranks + i. "
        "The warm-up is (v-1) * ranks + 2 * (ranks-1-rank) forwards, or all there are.",
    ),
    stub_function=my_interleaved_order,
    solution_function=solution,
    why="A thin stage takes a v-th of the time, so the pipe is full a v-th as late, and the bubble "
    "is a v-th. The warm-up has two parts: (v-1) * ranks forwards until the round is at the rank's "
    "last stage, and 2 (ranks-1-rank) more, one for each stage that the micro-batch has yet to go "
    "down and one for each that its gradient has to come up. (Half of that second part would do as "
    "long as links cost nothing, and holds less; the whole of it is there when messages take their "
    "time.) Prices: v times the messages, and a "
    "longer warm-up holds more. (arXiv 2104.04473, section 2.2.2; Megatron-LM's "
    "`--num-layers-per-virtual-pipeline-stage`.)",
    judge=judge,
    cases=(
        Case("pp2", "2 to 8 micro-batches, 2 stages each", {"v": 2, "rounds": 4}),
        Case(
            "pp3",
            "3 and 6 micro-batches, and lists for up to 6 ranks and 4 stages each",
            {"v": 2, "rounds": 2, "ranks": range(1, 7)},
        ),
    ),
    blocked=("picolab.schedules.generators.interleaved",),
    timeout=20.0,  # the lists of up to 6 ranks are simulated without a word to the others
)
