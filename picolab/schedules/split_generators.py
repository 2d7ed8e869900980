"""The schedules that split the backward: ZB-H1, ZB-V, DualPipeV.

What the stage before waits for is the gradient of its output, B. The gradient of the weights, W,
nobody waits for until the optimizer does. So a schedule may do B at once, W when there is nothing
else to do, and the gaps of 1F1B are filled with W:

    zb-h1        1F1B's order, with W later by as many micro-batches as the rank has before it:
                 no rank holds more than 1F1B's first, and the bubble is (p-1)(F+B-W)
    zb-v         two stages a rank, there and back: the last stage is where the first is, so that
                 the first gradients come early on rank 0 too. With F = B = W no rank is idle
                 between its first action and its last
    dualpipe-v   the same placement, fed so that a forward of one stage and a backward of the other
                 meet on the rank in the long middle, where a real one overlaps what they send

B is the input's gradient alone in all of them. A whole backward is a B with its W right after it.
"""

from collections import deque

from picolab.schedules.generators import one_f_one_b
from picolab.schedules.ir import Action, Schedule, check_sizes
from picolab.specs.schedule_name import ScheduleName


def zb_h1(ranks: int, micro_batches: int) -> Schedule:
    """1F1B with W split off and put off: rank r does the W of a micro-batch r backwards later.

    Rank 0, for which the last gradients come late, has W's to do between them; the last rank, which
    would be done first, has p - 1 W's left for the end. Each rank holds at most p micro-batches:
    p - r on their way to B, as in 1F1B, and r that wait for W.

    Source: arXiv 2401.10241, section 2.2 and figure 2. Twin in torch: ScheduleInterleavedZeroBubble
    with one stage a rank.
    """
    rows = []
    for rank, row in enumerate(one_f_one_b(ranks, micro_batches).actions):
        later = []
        for action in row:
            later.append(action)
            if action.kind == "B" and action.micro_batch >= rank:
                later.append(Action("W", rank, action.micro_batch - rank))
        left = range(max(0, micro_batches - rank), micro_batches)
        rows.append(later + [Action("W", rank, i) for i in left])
    return Schedule("zb-h1", ranks, micro_batches, rows)


class _Row:
    """A rank's actions as they are written down: each kind of each stage in the order of the
    micro-batches. What is asked beyond the last micro-batch is left out."""

    def __init__(self, rank: int, ranks: int, micro_batches: int):
        self.there, self.back = rank, 2 * ranks - 1 - rank  # the rank's two stages
        self.micro_batches = micro_batches
        self.count: dict[tuple[str, int], int] = {}
        self.actions: list[Action] = []
        self.waiting: deque[int] = deque()  # stages whose W's were put off

    def do(self, kinds: str, stage: int) -> None:
        for kind in kinds:
            i = self.count.get((kind, stage), 0)
            self.count[kind, stage] = i + 1
            if i < self.micro_batches:
                self.actions.append(Action(kind, stage, i))

    def put_off(self, stage: int) -> None:
        """B now, and W at some later `caught_up`."""
        self.do("B", stage)
        self.waiting.append(stage)

    def caught_up(self) -> None:
        self.do("W", self.waiting.popleft())


def zb_v(ranks: int, micro_batches: int) -> Schedule:
    """Forwards until the pipe is full; then F, B and W of either stage in turn.

    Rank r starts with 2(p - r) - 1 forwards of its first stage: so long its second has to wait. A
    rank holds at most 2p stages' micro-batches, p in micro-batches of a whole rank, as rank 0 does
    under 1F1B. With fewer than 2p - 1 micro-batches the pipe is never full, and what a larger step
    would have between is left out.

    Source: arXiv 2401.10241, section 6 and figure 6. Twin in torch: ScheduleZBVZeroBubble, compared
    in tests/unit/schedules/test_torchs_orders.py.
    """
    check_sizes(ranks, micro_batches)
    rows = []
    for rank in range(ranks):
        row = _Row(rank, ranks, micro_batches)
        there, back, m = row.there, row.back, max(2 * ranks - 1, micro_batches)
        for _ in range(2 * (ranks - rank) - 1):
            row.do("F", there)
        for _ in range(rank):
            row.do("F", back)
            row.do("F", there)
        for _ in range(ranks - rank):
            row.do("FBW", back)
        while row.count["F", back] < m:
            if row.count["F", there] < m:
                row.do("F", there)
            row.do("BW", there)
            row.do("FBW", back)
        for _ in range(rank):  # no forward is left to fill the gaps: W is kept for the end
            row.do("B", there)
            row.do("B", back)
        for _ in range(ranks - rank):
            row.do("BW", there)
        for stage in (back, there):
            while row.count.get(("W", stage), 0) < m:
                row.do("W", stage)
        rows.append(row.actions)
    return Schedule("zb-v", 2 * ranks, micro_batches, rows, _there_and_back("zb-v", ranks))


def dualpipe_v(ranks: int, micro_batches: int) -> Schedule:
    """Both stages of a rank are kept busy at once: a forward of one beside a backward of the other.

    Here one rank does one thing at a time, so such a pair is written F, B, W. At the start and at
    the end there is nothing to pair with, and there W is put off as in zb-v. Needs 2p
    micro-batches.

    Source: DeepSeek's DualPipe (arXiv 2412.19437, section 3.2.1) cut in half, dualpipev.py of
    github.com/deepseek-ai/DualPipe. Twin in torch: ScheduleDualPipeV, compared in
    tests/unit/schedules/test_torchs_orders.py.
    """
    check_sizes(ranks, micro_batches)
    ScheduleName.parse("dualpipe-v").check_micro_batches(ranks, micro_batches)
    rows = []
    for rank in range(ranks):
        row, behind = _Row(rank, ranks, micro_batches), ranks - 1 - rank
        there, back = row.there, row.back
        for _ in range(2 * behind):
            row.do("F", there)
        for _ in range(rank + 1):
            row.do("F", there)
            row.do("F", back)
        for _ in range(behind):
            row.put_off(back)
            row.caught_up()
            row.do("F", back)
        for _ in range(micro_batches - 2 * ranks + rank + 1):  # the long middle
            row.do("F", there)
            row.do("BW", back)
            row.do("F", back)
            row.do("BW", there)
        for _ in range(behind):
            row.do("BW", back)
            row.do("F", back)
            row.do("BW", there)
        for i in range(2 * (rank + 1)):  # backwards alone; from half on W is put off
            stage = there if i % 2 else back
            row.put_off(stage)
            if i < rank + 1:
                row.caught_up()
        for _ in range(behind):
            row.caught_up()
            row.put_off(there)
        while row.waiting:
            row.caught_up()
        rows.append(row.actions)
    return Schedule(
        "dualpipe-v", 2 * ranks, micro_batches, rows, _there_and_back("dualpipe-v", ranks)
    )


def _there_and_back(name: str, ranks: int) -> tuple[int, ...]:
    return ScheduleName.parse(name).stage_ranks(ranks)
