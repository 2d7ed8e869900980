"""The two schedules every other one is measured against, GPipe and 1F1B, and interleaved 1F1B.

Both keep a rank idle for p - 1 micro-batches' worth of work, so their bubble is the same. They
differ in what has to be kept: a forward's activations are held until its backward.

    GPipe   all forwards, then all backwards        rank r holds m
    1F1B    a backward as soon as there is one      rank r holds min(p - r, m)

Interleaved 1F1B cuts the model finer, v stages a rank, round and round: to fill the pipe takes a
v-th of the time, and each boundary between stages costs its message v times.

In all three, B is the whole backward. Those that split it are in split_generators.py.
"""

from picolab.schedules.ir import Action, Schedule, check_sizes
from picolab.specs.schedule_name import ScheduleName


def gpipe(stages: int, micro_batches: int) -> Schedule:
    """All forwards, then all backwards, both in the order of the micro-batches.

    The paper draws the backwards in reverse order; neither bubble nor memory depends on it. Any
    m >= 1 works. Source: arXiv 1811.06965, section 2.3. Twin in torch: ScheduleGPipe, compared in
    tests/distributed/schedules/test_torch_order.py.
    """
    check_sizes(stages, micro_batches)
    rows = [
        [Action(kind, stage, i) for kind in "FB" for i in range(micro_batches)]
        for stage in range(stages)
    ]
    return Schedule("gpipe", stages, micro_batches, rows)


def one_f_one_b(stages: int, micro_batches: int) -> Schedule:
    """One forward, one backward, after a warm-up of p - 1 - r forwards.

    The last stage can run a micro-batch's backward right after its forward. The stage k before it
    starts with k forwards, which is how long the first gradient takes to come back, and then
    alternates: each backward frees what the next forward will hold. Any m >= 1 works; with fewer
    micro-batches than stages nobody's warm-up is longer than m, and the order is GPipe's on the
    ranks before p - m. (torch asks for m >= p.)

    Source: arXiv 2104.04473, section 2.2 (PipeDream-Flush). Twin in torch: Schedule1F1B, compared
    in tests/distributed/schedules/test_torch_order.py. Its *runtime loop*, that is: what torch
    2.13 prints as its order counts the forwards from 1 on the last rank.
    """
    check_sizes(stages, micro_batches)
    rows = []
    for stage in range(stages):
        warmup = min(stages - 1 - stage, micro_batches)
        row = [Action("F", stage, i) for i in range(warmup)]
        for i in range(warmup, micro_batches):
            row += [Action("F", stage, i), Action("B", stage, i - warmup)]
        row += [Action("B", stage, i) for i in range(micro_batches - warmup, micro_batches)]
        rows.append(row)
    return Schedule("1f1b", stages, micro_batches, rows)


def interleaved(ranks: int, micro_batches: int, stages_a_rank: int = 2) -> Schedule:
    """1F1B with v stages a rank: stage s is on rank s % p.

    A rank takes the micro-batches in rounds of p: p of them through its first stage, the same p
    through its second, and so on, then the next p. Backwards go the same way from the last stage
    on. The warm-up of rank r is (v - 1) p forwards, until the round is at its last stage, and
    2 (p - 1 - r) more: one for each stage that the first gradient has yet to come through, and one
    for each that its forward has. m must be a multiple of p.

    Source: arXiv 2104.04473, section 2.2 ("schedule with interleaved stages"). Twin in torch:
    ScheduleInterleaved1F1B, compared in tests/unit/schedules/test_torchs_orders.py.
    """
    check_sizes(ranks, micro_batches)
    name = ScheduleName("interleaved", stages_a_rank)
    name.check_micro_batches(ranks, micro_batches)
    total, rows = stages_a_rank * micro_batches, []
    for rank in range(ranks):

        def action(kind: str, k: int, rank: int = rank) -> Action:
            """The k-th of that kind."""
            turn, place = divmod(k, ranks * stages_a_rank)
            chunk, i = divmod(place, ranks)
            chunk = chunk if kind == "F" else stages_a_rank - 1 - chunk
            return Action(kind, chunk * ranks + rank, turn * ranks + i)

        warmup = min((stages_a_rank - 1) * ranks + 2 * (ranks - 1 - rank), total)
        row = [action("F", k) for k in range(warmup)]
        for k in range(warmup, total):
            row += [action("F", k), action("B", k - warmup)]
        rows.append(row + [action("B", k) for k in range(total - warmup, total)])
    return Schedule(str(name), stages_a_rank * ranks, micro_batches, rows, name.stage_ranks(ranks))
