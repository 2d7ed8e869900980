"""Wrong answers to interview.monitoring.desync, what each author must be told, and right ones."""

from collections import Counter

import torch

from picolab import comm
from picolab.chapters.c06_monitoring.interview_desync import solution


def _rows(calls, axis, pad=-1, dtype=torch.int64, over=None):
    n = comm.mesh().size(axis)
    longest = comm.all_reduce(torch.tensor([len(calls)]), axis, "longest", op="max")
    row = torch.full((int(longest) + 1,), pad, dtype=dtype)
    row[: len(calls)] = torch.tensor(calls, dtype=dtype)
    return comm.all_gather(row, axis, "lists").view(n, -1).tolist()


def _verdict(rows, odd=None):
    n = len(rows)
    for at, column in enumerate(zip(*rows)):
        if len(set(column)) > 1:
            return at, (odd or _odd)(column, n)
    return None, []


def _odd(column, n):
    common, count = Counter(column).most_common(1)[0]
    return [r for r in range(n) if column[r] != common] if 2 * count > n else []


def takes_rank_zero_for_right(calls, axis):
    rows = _rows(calls, axis)
    return _verdict(rows, lambda column, n: [r for r in range(n) if column[r] != column[0]])


def takes_the_last_rank_for_right(calls, axis):
    rows = _rows(calls, axis)
    return _verdict(rows, lambda column, n: [r for r in range(n) if column[r] != column[-1]])


def needs_no_majority(calls, axis):
    rows = _rows(calls, axis)

    def odd(column, n):
        common = Counter(column).most_common(1)[0][0]
        return [r for r in range(n) if column[r] != common]

    return _verdict(rows, odd)


def half_is_a_majority(calls, axis):
    rows = _rows(calls, axis)

    def odd(column, n):
        common, count = Counter(column).most_common(1)[0]
        return [r for r in range(n) if column[r] != common] if 2 * count >= n else []

    return _verdict(rows, odd)


def names_the_majority(calls, axis):
    rows = _rows(calls, axis)
    return _verdict(rows, lambda column, n: [r for r in range(n) if r not in _odd(column, n)])


def stops_at_the_shortest(calls, axis):
    n = comm.mesh().size(axis)
    shortest = int(comm.all_reduce(torch.tensor([len(calls)]), axis, "shortest", op="min"))
    row = torch.tensor(calls[:shortest] or [0], dtype=torch.int64)
    return _verdict(comm.all_gather(row, axis, "lists").view(n, -1).tolist())


def sends_floats(calls, axis):
    return _verdict(_rows(calls, axis, dtype=torch.float64))


def counts_from_one(calls, axis):
    at, odd = solution(calls, axis)
    return (None if at is None else at + 1), odd


def takes_the_last_difference(calls, axis):
    rows = _rows(calls, axis)
    shortest = min(sum(one >= 0 for one in row) for row in rows)
    columns = list(zip(*(row[:shortest] for row in rows)))
    for at in range(len(columns) - 1, -1, -1):
        if len(set(columns[at])) > 1:
            return at, _odd(columns[at], len(rows))
    return solution_of(rows)


def solution_of(rows):
    return _verdict(rows)


def says_zero(calls, axis):
    at, odd = solution(calls, axis)
    return (None if at is None else 0), odd


def says_zero_if_alike(calls, axis):
    at, odd = solution(calls, axis)
    return (at or 0), odd


def compares_the_whole_list(calls, axis):
    rows = [tuple(row) for row in _rows(calls, axis)]
    at, _ = _verdict(rows)
    return at, ([] if at is None else _odd(rows, len(rows)))


def names_only_one(calls, axis):
    at, odd = solution(calls, axis)
    return at, odd[:1] or ([0] if at is not None else [])


def gathers_objects(calls, axis):
    import torch.distributed as dist

    rows = [None] * comm.mesh().size("world")
    dist.all_gather_object(rows, calls)
    rows = [rows[r] for r in comm.mesh().ranks(axis)]
    length = max(map(len, rows)) + 1
    return _verdict([of + [-1] * (length - len(of)) for of in rows])


def over_the_world(calls, axis):
    return solution(calls, "world")


def gathers_one_by_one(calls, axis):
    n = comm.mesh().size(axis)
    longest = int(comm.all_reduce(torch.tensor([len(calls)]), axis, "longest", op="max"))
    for at in range(longest):
        mine = torch.tensor([calls[at] if at < len(calls) else -1])
        column = comm.all_gather(mine, axis, f"call {at}").tolist()
        if len(set(column)) > 1:
            return at, _odd(column, n)
    return None, []


def sends_long_rows(calls, axis):
    n = comm.mesh().size(axis)
    row = torch.full((100,), -1)
    row[: len(calls)] = torch.tensor(calls, dtype=torch.int64)
    return _verdict(comm.all_gather(row, axis, "lists").view(n, -1).tolist())


def returns_the_position_only(calls, axis):
    return solution(calls, axis)[0]


def returns_a_flag_for_odd(calls, axis):
    at, odd = solution(calls, axis)
    return at, comm.mesh().rank(axis) in odd


def returns_minus_one(calls, axis):
    at, odd = solution(calls, axis)
    return (-1 if at is None else at), odd


def changes_its_list(calls, axis):
    found = solution(calls, axis)
    calls.append(-1)
    return found


def by_tensors(calls, axis):
    n = comm.mesh().size(axis)
    lengths = comm.all_gather(torch.tensor([len(calls)]), axis, "lengths")
    row = torch.zeros(int(lengths.max()), dtype=torch.int64)
    if calls:
        row[: len(calls)] = torch.tensor(calls)
    if not len(row):
        return None, ()
    rows = comm.all_gather(row, axis, "rows").view(n, -1)
    parted = (rows != rows[:1]).any(0).nonzero().flatten()
    if not len(parted):
        return None, ()
    column = rows[:, parted[0]]
    alike = (column[:, None] == column).sum(1)
    best = alike.argmax()
    odd = (column != column[best]).nonzero().flatten() if 2 * alike[best] > n else column[:0]
    return int(parted[0]), odd


def by_strings(calls, axis):
    rows = _rows(calls, axis, pad=-5)
    n = len(rows)
    for at in range(len(rows[0])):
        seen = [str(row[at]) for row in rows]
        if seen.count(seen[0]) == n:
            continue
        right = [one for one in set(seen) if seen.count(one) > n / 2]
        return at, tuple(r for r in range(n) if right and seen[r] != right[0])
    return None, ()


def fills_with_a_fingerprint(calls, axis):
    return _verdict(_rows(calls, axis, pad=1))


def fills_with_its_last_call(calls, axis):
    return _verdict(_rows(calls, axis, pad=calls[-1] if calls else -1))


def keeps_31_bits(calls, axis):
    return _verdict(_rows([one % 2**31 for one in calls], axis))


MUTANTS = {
    takes_rank_zero_for_right: "it takes rank 0 for right",
    needs_no_majority: "nobody has a majority",
    takes_the_last_rank_for_right: "it names",
    half_is_a_majority: "nobody has a majority",
    names_the_majority: "it names the majority",
    stops_at_the_shortest: "that is a difference, too",
    sends_floats: "lost their digits",
    counts_from_one: "positions count from 0",
    takes_the_last_difference: "where they part last",
    says_zero: "it says 0, and the first",
    says_zero_if_alike: "all lists are alike",
    returns_minus_one: "all lists are alike",
    compares_the_whole_list: "odd",
    names_only_one: "nobody has a majority",
    gathers_objects: "all_gather_object",
    over_the_world: "over the ranks",
    gathers_one_by_one: "and the budget is 2",
    sends_long_rows: "carry",
    returns_the_position_only: "asked for is `return position, odd`",
    returns_a_flag_for_odd: "is no list of ranks",
    changes_its_list: "it changed its input `calls`",
    fills_with_a_fingerprint: "that is a difference, too",
    fills_with_its_last_call: "that is a difference, too",
    keeps_31_bits: "they part at",
}
RIGHT = (by_tensors, by_strings)
