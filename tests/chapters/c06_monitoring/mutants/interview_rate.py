"""Wrong answers to interview.monitoring.rate, what each author must be told, and right ones."""

from itertools import pairwise

import numpy as np
import torch

from picolab.chapters.c06_monitoring.interview_rate import solution


def _rows(readings, step, keep=lambda now: now is not None):
    grown = [0] * (len(readings[0]) - 1)
    for of_rank in readings:
        last = None
        for time, now in enumerate(of_rank):
            if keep(now):
                if last is not None:
                    grown[time - 1] += step(last, now)
                last = now
    return grown


def _step(last, now):
    return now - last if now >= last else now


def sums_first(readings):
    sums = [sum(now or 0 for now in at) for at in zip(*readings)]
    return [_step(a, b) for a, b in pairwise(sums)]


def drops_falls(readings):
    return _rows(readings, lambda last, now: max(0, now - last))


def counts_falls_as_negative(readings):
    return _rows(readings, lambda last, now: now - last)


def takes_the_size_of_a_fall(readings):
    return _rows(readings, lambda last, now: abs(now - last))


def fills_with_zero(readings):
    return solution([[now or 0 for now in of_rank] for of_rank in readings])


def takes_zero_for_missing(readings):
    return _rows(readings, _step, keep=bool)


def takes_equal_for_a_restart(readings):
    return _rows(readings, lambda last, now: now - last if now > last else now)


def needs_two_neighbours(readings):
    grown = [0] * (len(readings[0]) - 1)
    for of_rank in readings:
        for time, (last, now) in enumerate(pairwise(of_rank)):
            if last is not None and now is not None:
                grown[time] += _step(last, now)
    return grown


def spreads_over_a_gap(readings):
    grown = [0.0] * (len(readings[0]) - 1)
    for of_rank in readings:
        there = [(time, now) for time, now in enumerate(of_rank) if now is not None]
        for (a, last), (b, now) in pairwise(there):
            for time in range(a, b):
                grown[time] += _step(last, now) / (b - a)
    return grown


def gives_a_gap_to_its_beginning(readings):
    grown = [0] * (len(readings[0]) - 1)
    for of_rank in readings:
        there = [(time, now) for time, now in enumerate(of_rank) if now is not None]
        for (a, last), (_, now) in pairwise(there):
            grown[a] += _step(last, now)
    return grown


def counts_the_first_reading(readings):
    grown = [0] * (len(readings[0]) - 1)
    for of_rank in readings:
        last = of_rank[0]
        for time, now in enumerate(of_rank[1:]):
            if now is not None:
                grown[time] += _step(last or 0, now)
                last = now
    return grown


def averages_over_ranks(readings):
    return [one / len(readings) for one in solution(readings)]


def takes_the_largest(readings):
    return [max(at) for at in zip(*(solution([of_rank]) for of_rank in readings))]


def returns_totals(readings):
    return list(np.cumsum(solution(readings)).tolist())


def returns_one_number(readings):
    return sum(solution(readings))


def returns_rows(readings):
    return [solution([of_rank]) for of_rank in readings]


def returns_one_too_many(readings):
    return [0, *solution(readings)]


def fills_in_place(readings):
    for of_rank in readings:
        for time, now in enumerate(of_rank):
            if now is None and time:
                of_rank[time] = of_rank[time - 1]
    return solution(readings)


def counts_a_fall_twice(readings):
    return _rows(readings, lambda last, now: now - last if now >= last else now + last)


def returns_nothing(readings):
    solution(readings)


def with_numpy(readings):
    table = np.array([[np.nan if x is None else x for x in of] for of in readings], dtype=float)
    ranks, times = table.shape
    there = ~np.isnan(table)
    at = np.where(there, np.arange(times), -1)
    before = np.maximum.accumulate(at, axis=1)[:, :-1]
    last = np.where(before >= 0, table[np.arange(ranks)[:, None], before.clip(0)], np.nan)
    now = table[:, 1:]
    return np.nansum(np.where(now >= last, now - last, now + 0 * last), axis=0).tolist()


def with_offsets(readings):
    """Unroll each counter into one that never falls, then take differences."""
    total = [0.0] * (len(readings[0]) - 1)
    for of_rank in readings:
        offset, last, whole = 0.0, None, []
        for now in of_rank:
            if now is not None:
                offset += last if last is not None and now < last else 0.0
                last = now
            whole.append(None if last is None else offset + last)
        for time, (a, b) in enumerate(pairwise(whole)):
            total[time] += 0.0 if a is None else b - a
    return tuple(total)


def in_fp32(readings):
    return torch.tensor(solution(readings), dtype=torch.float32).tolist()


MUTANTS = {
    sums_first: "it was summed over ranks first",
    drops_falls: "a fall is counted as nothing",
    counts_falls_as_negative: "a fall is counted as negative growth",
    takes_the_size_of_a_fall: "a fall is counted by its size",
    fills_with_zero: "a missing reading was taken for 0",
    takes_zero_for_missing: "a reading of 0 was taken for a missing one",
    takes_equal_for_a_restart: "is no restart",
    needs_two_neighbours: "growth over a gap is missing",
    spreads_over_a_gap: "was spread",
    gives_a_gap_to_its_beginning: "went to its first interval",
    counts_the_first_reading: "a first reading is no growth",
    averages_over_ranks: "it is the mean over ranks",
    takes_the_largest: "it is the largest of the ranks",
    returns_totals: "these are running totals",
    returns_one_number: "it returns one number",
    returns_rows: "ranks are to be added up",
    returns_one_too_many: "intervals",
    fills_in_place: "it changed its input `readings`",
    counts_a_fall_twice: "and should",
    returns_nothing: "it returns nothing",
    in_fp32: "its digits are those of fp32",
}
RIGHT = (with_numpy, with_offsets)
