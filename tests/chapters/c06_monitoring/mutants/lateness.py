"""Wrong answers to monitoring.arrival.lateness, what each author must be told, and right ones."""

import statistics
from statistics import fmean, median

import numpy as np

from picolab.chapters.c06_monitoring.lateness import solution


def _on_one_clock(entered, left, ahead):
    def moved(table):
        return [[None if x is None else x - ahead[r] for r, x in enumerate(row)] for row in table]

    return moved(entered), moved(left)


def _again(entered, left, least, usual, ahead):
    """The solution, with the clocks lined up otherwise."""
    entered, left = _on_one_clock(entered, left, ahead)
    left = [[entered[0][0]] * len(left[0]), *left[1:]]  # (so that it does not move them again)
    return solution(entered, left, least, usual)


def trusts_the_clocks(entered, left, least, usual):
    return _again(entered, left, least, usual, [0.0] * len(left[0]))


def lines_up_by_entering(entered, left, least, usual):
    first = entered[0]
    return _again(entered, left, least, usual, [x - first[0] for x in first])


def adds_the_difference(entered, left, least, usual):
    first = left[0]
    return _again(entered, left, least, usual, [first[0] - x for x in first])


def counts_the_barrier(entered, left, least, usual):
    return solution([entered[0], *entered], [left[0], *left], least, usual)


def takes_durations_for_waiting(entered, left, least, usual):
    _, transfer, late, slow = solution(entered, left, least, usual)
    took = [
        [None if a is None else b - a for a, b in zip(into, out)]
        for into, out in zip(entered[1:], left[1:])
    ]
    return took, transfer, late, slow


def takes_lateness_for_waiting(entered, left, least, usual):
    waited, transfer, late, slow = solution(entered, left, least, usual)
    most = [max(x for x in row if x is not None) for row in waited]
    rows = [[None if x is None else m - x for x in row] for m, row in zip(most, waited)]
    return rows, transfer, late, slow


def _transfers(entered, left, until, since):
    ahead = [x - left[0][0] for x in left[0]]
    entered, left = _on_one_clock(entered, left, ahead)
    return [
        until(x for x in out if x is not None) - since(x for x in into if x is not None)
        for into, out in zip(entered[1:], left[1:])
    ]


def waits_for_the_last_to_leave(entered, left, least, usual):
    waited, _, late, _ = solution(entered, left, least, usual)
    transfer = _transfers(entered, left, max, max)
    return waited, transfer, late, median(transfer) > 3 * usual


def begins_with_the_first(entered, left, least, usual):
    waited, _, late, _ = solution(entered, left, least, usual)
    transfer = _transfers(entered, left, min, min)
    return waited, transfer, late, median(transfer) > 3 * usual


def takes_the_whole_call(entered, left, least, usual):
    waited, _, late, _ = solution(entered, left, least, usual)
    transfer = _transfers(entered, left, max, min)
    return waited, transfer, late, median(transfer) > 3 * usual


def _late(entered, left, least, of_calls, beside, both=False):
    ahead = [x - left[0][0] for x in left[0]]
    entered, _ = _on_one_clock(entered, left, ahead)
    found = []
    for r in range(len(ahead)):
        by = [row[r] - beside(row, r) for row in entered[1:] if row[r] is not None]
        middle = of_calls(by) if by else 0.0
        if (abs(middle) if both else middle) > least:
            found.append(r)
    return found


def _others(middle):
    return lambda row, r: middle([x for o, x in enumerate(row) if o != r and x is not None])


def _whole(middle):
    return lambda row, r: middle([x for x in row if x is not None])


def takes_means(entered, left, least, usual):
    waited, transfer, _, slow = solution(entered, left, least, usual)
    return waited, transfer, _late(entered, left, least, fmean, _others(fmean)), slow


def compares_with_all(entered, left, least, usual):
    waited, transfer, _, slow = solution(entered, left, least, usual)
    return waited, transfer, _late(entered, left, least, median, _whole(median)), slow


def compares_with_the_first(entered, left, least, usual):
    waited, transfer, _, slow = solution(entered, left, least, usual)
    return waited, transfer, _late(entered, left, least, median, _whole(min)), slow


def compares_with_the_mean(entered, left, least, usual):
    waited, transfer, _, slow = solution(entered, left, least, usual)
    return waited, transfer, _late(entered, left, least, median, _others(fmean)), slow


def calls_early_ones_late(entered, left, least, usual):
    waited, transfer, _, slow = solution(entered, left, least, usual)
    return waited, transfer, _late(entered, left, least, median, _others(median), both=True), slow


def blames_the_longest(entered, left, least, usual):
    waited, transfer, _, slow = solution(entered, left, least, usual)
    took = {}
    for into, out in zip(entered[1:], left[1:]):
        for r, (a, b) in enumerate(zip(into, out)):
            if a is not None:
                took.setdefault(r, []).append(b - a)
    middle = {r: median(of) for r, of in took.items()}
    return waited, transfer, [max(middle, key=middle.__getitem__)], slow


def blames_the_last(entered, left, least, usual):
    waited, transfer, _, slow = solution(entered, left, least, usual)
    count = [sum(row[r] == 0 for row in waited) for r in range(len(left[0]))]
    return waited, transfer, [r for r, n in enumerate(count) if n == max(count)], slow


def judges_the_link_by_its_mean(entered, left, least, usual):
    waited, transfer, late, _ = solution(entered, left, least, usual)
    return waited, transfer, late, fmean(transfer) > 3 * usual


def judges_the_link_by_its_worst(entered, left, least, usual):
    waited, transfer, late, _ = solution(entered, left, least, usual)
    return waited, transfer, late, max(transfer) > 3 * usual


def is_impatient(entered, left, least, usual):
    waited, transfer, late, _ = solution(entered, left, least, usual)
    return waited, transfer, late, median(transfer) > usual


def is_patient(entered, left, least, usual):
    return solution(entered, left, least, 4 / 3 * usual)


def blames_one_of_both(entered, left, least, usual):
    waited, transfer, late, slow = solution(entered, left, least, usual)
    return waited, transfer, late, slow and not late


def judges_the_link_by_calls(entered, left, least, usual):
    waited, transfer, late, _ = solution(entered, left, least, usual)
    return waited, transfer, late, median(_transfers(entered, left, min, min)) > 3 * usual


def forgets_the_link(entered, left, least, usual):
    return solution(entered, left, least, usual)[:3]


def in_numpy(entered, left, least, usual):
    table = [
        np.array([[np.nan if x is None else x for x in r] for r in t]) for t in (entered, left)
    ]
    came, gone = (of - (table[1][0] - table[1][0, 0]) for of in table)
    came, gone = came[1:], gone[1:]
    last = np.nanmax(came, axis=1)
    waits = [[None if np.isnan(x) else float(x) for x in row] for row in last[:, None] - came]
    transfer = (np.nanmin(gone, axis=1) - last).tolist()
    late = []
    for r in range(came.shape[1]):
        mine = came[~np.isnan(came[:, r])]
        if len(mine) and np.median(mine[:, r] - np.nanmedian(np.delete(mine, r, 1), 1)) > least:
            late.append(r)
    return waits, transfer, late, bool(np.median(transfer) > 3 * usual)


def in_arrays(entered, left, least, usual):
    waited, transfer, late, slow = solution(entered, left, least, usual)
    return waited, np.array(transfer), np.array(late, dtype=int), np.bool_(slow)


def rank_by_rank(entered, left, least, usual):
    """On every rank's clock by itself: what the others read is moved onto it."""
    base = left[0]
    n = len(base)
    calls = list(zip(entered, left))[1:]

    def on(r, o, reading):
        return reading - base[o] + base[r]

    waited = []
    for into, _ in calls:
        here = [o for o in range(n) if into[o] is not None]
        waited.append(
            tuple(
                max(on(r, o, into[o]) for o in here) - into[r] if r in here else None
                for r in range(n)
            )
        )
    transfer = []
    for into, out in calls:
        here = [o for o in range(n) if into[o] is not None]
        transfer.append(min(on(0, o, out[o]) for o in here) - max(on(0, o, into[o]) for o in here))
    late = []
    for r in range(n):
        by = []
        for into, _ in calls:
            rest = [on(r, o, into[o]) for o in range(n) if o != r and into[o] is not None]
            if into[r] is not None:
                by.append(into[r] - statistics.median(rest))
        if by and statistics.median(by) > least:
            late.append(r)
    return waited, tuple(transfer), tuple(late), statistics.median(transfer) / usual > 3


MUTANTS = {
    trusts_the_clocks: "are on different clocks",
    takes_durations_for_waiting: "that is how long the call took",
    lines_up_by_entering: "by when ranks entered the barrier",
    adds_the_difference: "has to be taken off",
    counts_the_barrier: "call 0 lines the clocks up, and does not count",
    takes_lateness_for_waiting: "that is how late a rank is",
    waits_for_the_last_to_leave: "it ends when the first one leaves",
    begins_with_the_first: "it begins when the last one has entered",
    takes_the_whole_call: "it begins when the last one has entered, and ends",
    takes_means: "one long pause makes a mean",
    compares_with_all: "it is among them itself",
    compares_with_the_first: "not beside the first",
    calls_early_ones_late: "who comes early is not late",
    blames_the_longest: "is the one that waits",
    blames_the_last: "somebody is always the last",
    judges_the_link_by_its_mean: "one long transfer makes a mean",
    judges_the_link_by_its_worst: "one long transfer is no slow link",
    compares_with_the_mean: "not beside their mean",
    is_impatient: "not above `usual` itself",
    is_patient: "above 3 times `usual` already",
    blames_one_of_both: "slow_link is False, and should be True",
    judges_the_link_by_calls: "it is asked of transfer",
    forgets_the_link: "asked for is `return waited, transfer, late, slow_link`",
}
RIGHT = (in_numpy, in_arrays, rank_by_rank)
