"""Wrong answers to interview.moe.room, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c02_moe.interview_room import solution


def _counts(asked, axis):
    return comm.all_gather(asked.sum(0).unsqueeze(0), axis, "rows for each expert")


def _me(axis):
    return comm.mesh().rank(axis)


def _admit(asked, offset, limit):
    return asked & (offset + asked.cumsum(0) <= limit)


def starts_at_zero(asked, limit, axis):
    _counts(asked, axis)
    return _admit(asked, 0, limit)


def has_a_share(asked, limit, axis):
    _counts(asked, axis)
    return _admit(asked, 0, limit // comm.mesh().size(axis))


def counts_itself_twice(asked, limit, axis):
    return _admit(asked, _counts(asked, axis)[: _me(axis) + 1].sum(0), limit)


def takes_the_total(asked, limit, axis):
    return _admit(asked, _counts(asked, axis).sum(0), limit)


def begins_at_the_end(asked, limit, axis):
    return _admit(asked, _counts(asked, axis)[_me(axis) + 1 :].sum(0), limit)


def looks_at_its_neighbour(asked, limit, axis):
    counts, me = _counts(asked, axis), _me(axis)
    return _admit(asked, counts[me - 1] if me else 0, limit)


def is_one_short(asked, limit, axis):
    return solution(asked, limit - 1, axis)


def mixes_experts(asked, limit, axis):
    return _admit(asked, _counts(asked, axis)[: _me(axis)].sum(), limit)


def takes_all_or_nothing(asked, limit, axis):
    counts, me = _counts(asked, axis), _me(axis)
    return asked & (counts[: me + 1].sum(0) <= limit)


def turns_its_rows(asked, limit, axis):
    return solution(asked.flip(0), limit, axis).flip(0)


def admits_everything(asked, limit, axis):
    _counts(asked, axis)
    return asked.clone()


def counts_along_experts(asked, limit, axis):
    before = _counts(asked, axis)[: _me(axis)].sum(0)
    return asked & (before + asked.cumsum(1) <= limit)


def marks_what_is_dropped(asked, limit, axis):
    return asked & ~solution(asked, limit, axis)


def gathers_tokens(asked, limit, axis):
    import torch.distributed as dist

    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, asked)
    return solution(asked, limit, axis)


def reduces_in_a_table(asked, limit, axis):
    table = torch.zeros(comm.mesh().size(axis), asked.shape[1], dtype=torch.int64)
    table[_me(axis)] = asked.sum(0)
    table = comm.all_reduce(table, axis, "table")
    return _admit(asked, table[: _me(axis)].sum(0), limit)


def gathers_twice(asked, limit, axis):
    _counts(asked, axis)
    return solution(asked, limit, axis)


def sends_more(asked, limit, axis):
    rows = comm.all_gather(torch.stack([asked.sum(0)] * 4), axis, "rows")[::4]
    return _admit(asked, rows[: _me(axis)].sum(0), limit)


def asks_the_world(asked, limit, axis):
    return solution(asked, limit, "world")


def returns_numbers_of_rows(asked, limit, axis):
    return solution(asked, limit, axis).sum(0)


def returns_nothing(asked, limit, axis):
    solution(asked, limit, axis)


def writes_into_what_was_asked(asked, limit, axis):
    asked &= solution(asked, limit, axis)
    return asked


def counts_room_that_is_left(asked, limit, axis):
    counts = comm.all_gather(asked.sum(0, dtype=torch.int32)[None], axis, "rows")
    left = (limit - counts[: _me(axis)].sum(0)).clamp(min=0)
    return asked & (asked.cumsum(0) <= left)


def walks_over_tokens(asked, limit, axis):
    seen = _counts(asked, axis)[: _me(axis)].sum(0).tolist()
    admitted = torch.zeros_like(asked)
    for token, expert in asked.nonzero().tolist():
        admitted[token, expert] = seen[expert] < limit
        seen[expert] += 1
    return admitted


MUTANTS = {
    starts_at_zero: "rows of the ranks before are not counted",
    takes_the_total: "the offset is of all ranks",
    has_a_share: "each rank has a share of the limit",
    counts_itself_twice: "this rank's own rows are in the offset",
    begins_at_the_end: "rows of the ranks behind come first",
    looks_at_its_neighbour: "only the rank just before is counted",
    is_one_short: "row number `limit` is still in",
    mixes_experts: "each expert has its own room",
    takes_all_or_nothing: "are admitted together or not at all",
    turns_its_rows: "within the rank the last rows come first",
    admits_everything: "everything is admitted that was asked",
    counts_along_experts: "the running count goes along the experts",
    marks_what_is_dropped: "rows beyond the limit are marked",
    gathers_tokens: "it uses `all_gather_object`",
    reduces_in_a_table: "it uses all-reduces",
    gathers_twice: "it takes 2 all-gathers",
    sends_more: "its all-gathers carry",
    asks_the_world: "it communicates over the ranks",
    returns_numbers_of_rows: "the mask has the shape",
    returns_nothing: "the mask is None",
    writes_into_what_was_asked: "it changed its input `asked`",
}
RIGHT = (counts_room_that_is_left, walks_over_tokens)
