"""Wrong answers to interview.3d.clock, what each author must be told, and right ones."""

from fractions import Fraction

from picolab import comm, schedules
from picolab.chapters.c03_3d_parallel.interview_clock import solution


def returns_ends(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    if starts is None:
        return None
    return [
        [t + (forward if a[0] == "F" else backward)[s] for t, a in zip(row, orders[s])]
        for s, row in enumerate(starts)
    ]


def forgets_hops(orders, forward, backward, hop):
    return solution(orders, forward, backward, 0)


def hops_twice(orders, forward, backward, hop):
    return solution(orders, forward, backward, 2 * hop)


def charges_the_rank(orders, forward, backward, hop):
    longer = [[one + hop for one in costs] for costs in (forward, backward)]
    return solution(orders, *longer, 0)


def exchanges_lengths(orders, forward, backward, hop):
    return solution(orders, backward, forward, hop)


def one_length_for_all(orders, forward, backward, hop):
    p = len(orders)
    return solution(orders, [forward[0]] * p, [backward[0]] * p, hop)


def backward_like_forward(orders, forward, backward, hop):
    return solution(orders, forward, forward, hop)


def twice_the_forward(orders, forward, backward, hop):
    return solution(orders, forward, [2 * one for one in forward], hop)


def never_gives_up(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    return starts if starts is not None else [[0] * len(row) for row in orders]


def gives_up_early(orders, forward, backward, hop):
    last = orders[-1]
    if any(last[k][0] == last[k + 1][0] for k in range(len(last) - 1)):
        return None
    return solution(orders, forward, backward, hop)


def raises_where_it_cannot_work(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    if starts is None:
        raise ValueError("deadlock")
    return starts


def returns_the_makespan(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    return None if starts is None else max(map(max, starts))


def sums_up_alone(orders, forward, backward, hop):
    """As if nobody waited."""
    starts = []
    for stage, row in enumerate(orders):
        now, found = 0, []
        for action in row:
            found.append(now)
            now += (forward if action[0] == "F" else backward)[stage]
        starts.append(found)
    return starts


def one_pass_only(orders, forward, backward, hop):
    """Down the stages for forwards; the backwards of those behind are not there yet."""
    ends, starts = {}, []
    for stage, row in enumerate(orders):
        now, found = 0, []
        for action in row:
            kind, i = action[0], action[1:]
            near = stage - 1 if kind == "F" else stage + 1
            now = max(now, ends.get((kind, near, i), -hop) + hop)
            found.append(now)
            now += (forward if kind == "F" else backward)[stage]
            ends[kind, stage, i] = now
        starts.append(found)
    return starts


def in_lock_step(orders, forward, backward, hop):
    """A global clock that ticks by the longest action."""
    starts = solution(orders, [1] * len(orders), [1] * len(orders), 0)
    if starts is None:
        return None
    tick = max(*forward, *backward) + hop
    return [[t * tick for t in row] for row in starts]


def keeps_to_the_order_of_messages(orders, forward, backward, hop):
    """A message waits for those that were sent before it."""
    schedule = schedules.Schedule(
        "x", len(orders), len(orders[0]) // 2,
        [[schedules.Action(a[0], s, int(a[1:])) for a in row] for s, row in enumerate(orders)],
    )  # fmt: skip
    try:
        schedules.validate(schedule)
    except schedules.ScheduleError:
        return None
    return solution(orders, forward, backward, hop)


def asks_the_package(orders, forward, backward, hop):
    rows = [[schedules.Action(a[0], s, int(a[1:])) for a in row] for s, row in enumerate(orders)]
    schedule = schedules.Schedule("x", len(orders), len(orders[0]) // 2, rows)
    done = schedules.simulate(
        schedule, forward=forward, backward_input=backward, backward_weight=0, latency=hop
    )
    start = {span.action: span.start for span in done.spans}
    return [[start[action] for action in row] for row in rows]


def makes_floats(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    return starts and [[int(t) for t in row] for row in starts]


def transposes(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    return starts and [list(row) for row in zip(*starts)]


def writes_strings(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    return starts and [[str(t) for t in row] for row in starts]


def forgets_its_own_forward(orders, forward, backward, hop):
    """So that a B before its F works on the last stage."""
    mended = [list(row) for row in orders]
    if mended[-1][0][0] == "B":
        return [[0] * len(row) for row in orders]
    return solution(mended, forward, backward, hop)


def pops_the_lists(orders, forward, backward, hop):
    starts = solution(orders, forward, backward, hop)
    for row in orders:
        row.clear()
    return starts


def asks_the_others(orders, forward, backward, hop):
    comm.barrier("dp", "together")
    return solution(orders, forward, backward, hop)


def walks_back(orders, forward, backward, hop):
    """Each start from its causes, remembered; a start that is asked for while it is worked out is
    its own cause."""
    last, lengths = len(orders) - 1, {"F": forward, "B": backward}
    index = {(s, a): k for s, row in enumerate(orders) for k, a in enumerate(row)}
    known, open_ = {}, set()

    def end(stage, action):
        return start(stage, action) + lengths[action[0]][stage]

    def start(stage, action):
        if (stage, action) in known:
            return known[stage, action]
        if (stage, action) in open_:
            raise RecursionError
        open_.add((stage, action))
        k, causes = index[stage, action], [0]
        if k:
            causes.append(end(stage, orders[stage][k - 1]))
        if action[0] == "F" and stage > 0:
            causes.append(end(stage - 1, action) + hop)
        if action[0] == "B":
            causes.append(end(stage, "F" + action[1:]))
            if stage < last:
                causes.append(end(stage + 1, action) + hop)
        known[stage, action] = max(causes)
        return known[stage, action]

    try:
        return [[start(s, a) for a in row] for s, row in enumerate(orders)]
    except RecursionError:
        return None


def earliest_first(orders, forward, backward, hop):
    """Always the action that can start earliest, of all stages' next ones."""
    position, free, ends = [0] * len(orders), [Fraction(0)] * len(orders), {}
    starts = [[] for _ in orders]
    for _ in range(sum(map(len, orders))):
        ready = []
        for s, row in enumerate(orders):
            if position[s] == len(row):
                continue
            kind, i = row[position[s]][0], row[position[s]][1:]
            needs = []
            if kind == "F" and s:
                needs.append((("F", s - 1, i), hop))
            if kind == "B":
                needs.append((("F", s, i), 0))
                if s + 1 < len(orders):
                    needs.append((("B", s + 1, i), hop))
            if all(need in ends for need, _ in needs):
                ready.append((max([free[s], *(ends[n] + h for n, h in needs)]), s))
        if not ready:
            return None
        at, s = min(ready)
        kind, i = orders[s][position[s]][0], orders[s][position[s]][1:]
        starts[s].append(at)
        free[s] = ends[kind, s, i] = at + (forward if kind == "F" else backward)[s]
        position[s] += 1
    return tuple(map(tuple, starts))


MUTANTS = {
    returns_ends: "these are the ends; asked for are the starts",
    forgets_hops: "the hops are missing",
    hops_twice: "there is a hop twice",
    charges_the_rank: "the hop is charged to the rank",
    exchanges_lengths: "forward and backward lengths are exchanged",
    one_length_for_all: "every stage has the first stage's lengths",
    backward_like_forward: "a backward takes as long as a forward there",
    twice_the_forward: "those that start before it are right",
    never_gives_up: "these orders cannot work",
    gives_up_early: "it returns None, and these orders work",
    raises_where_it_cannot_work: "ValueError: deadlock",
    returns_the_makespan: "asked for is a list for each stage",
    sums_up_alone: "these orders cannot work",
    one_pass_only: "these orders cannot work",
    in_lock_step: "forward and backward lengths are exchanged",
    keeps_to_the_order_of_messages: "it returns None, and these orders work",
    asks_the_package: "is what this exercise asks you to write",
    makes_floats: "those that start before it are right",
    transposes: "asked for is a list for each stage",
    writes_strings: "is no time",
    forgets_its_own_forward: "these orders cannot work",
    pops_the_lists: "it changed its input `orders`",
    asks_the_others: "it uses barriers; allowed are none at all",
}
RIGHT = (walks_back, earliest_first)
