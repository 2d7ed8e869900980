"""Wrong answers to interview.4d.embedding, and what each author must be told."""

import torch

from picolab import comm, costs


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis, in_backward):
        ctx.axis, ctx.in_backward = axis, in_backward
        return comm.all_reduce(x.clone(), axis, "embedding output")

    @staticmethod
    def backward(ctx, dy):
        if ctx.in_backward:
            dy = comm.all_reduce(dy.clone(), ctx.axis, "embedding gradient")
        return dy, None, None


def _look_up(tokens, table, vocab, start=None, mask=True):
    """This rank's summand, with places to go wrong in."""
    rows = costs.even_slices(vocab, comm.mesh().size("tp"))[comm.mesh().rank("tp")]
    start = rows.start if start is None else start
    mine = (tokens >= start) & (tokens < start + len(table))
    x = torch.nn.functional.embedding((tokens - start).clamp(0, len(table) - 1), table)
    return x.masked_fill(~mine.unsqueeze(-1), 0) if mask else x


def nobody_sums(tokens, table, vocab):
    return _look_up(tokens, table, vocab)


def clamps_and_does_not_mask(tokens, table, vocab):
    return _Sum.apply(_look_up(tokens, table, vocab, mask=False), "tp", False)


def negative_rows_wrap(tokens, table, vocab):
    rows = costs.even_slices(vocab, comm.mesh().size("tp"))[comm.mesh().rank("tp")]
    return _Sum.apply(table[(tokens - rows.start) % len(table)], "tp", False)


def zeroes_the_index_only(tokens, table, vocab):
    rows = costs.even_slices(vocab, comm.mesh().size("tp"))[comm.mesh().rank("tp")]
    mine = (tokens >= rows.start) & (tokens < rows.stop)
    row = (tokens - rows.start).masked_fill(~mine, 0)
    return _Sum.apply(torch.nn.functional.embedding(row, table), "tp", False)


def begins_at_rank_times_rows(tokens, table, vocab):
    start = comm.mesh().rank("tp") * len(table)
    return _Sum.apply(_look_up(tokens, table, vocab, start), "tp", False)


def sums_in_backward_too(tokens, table, vocab):
    return _Sum.apply(_look_up(tokens, table, vocab), "tp", True)


def averages(tokens, table, vocab):
    return _Sum.apply(_look_up(tokens, table, vocab), "tp", False) / comm.mesh().size("tp")


def sums_over_everybody(tokens, table, vocab):
    return _Sum.apply(_look_up(tokens, table, vocab), "world", False)


def gathers_the_table(tokens, table, vocab):
    n, most = comm.mesh().size("tp"), -(-vocab // comm.mesh().size("tp"))
    padded = torch.nn.functional.pad(table.detach(), (0, 0, 0, most - len(table)))
    gathered = comm.all_gather(padded, "tp", "the whole table").split(most)
    rows = costs.even_slices(vocab, n)
    whole = torch.cat([piece[: len(row)] for piece, row in zip(gathered, rows)])
    whole = whole.requires_grad_()
    return whole[tokens] + 0 * table.sum()


def is_cut_off(tokens, table, vocab):
    return comm.all_reduce(_look_up(tokens, table.detach(), vocab), "tp", "embedding output")


MUTANTS = {
    nobody_sums: "nobody sums over tp",
    clamps_and_does_not_mask: "yours are given the rank's first or last row",
    negative_rows_wrap: "for instance by a negative index",
    zeroes_the_index_only: "yours are given the rank's row 0",
    begins_at_rank_times_rows: "the shards are uneven",
    sums_in_backward_too: "adds the ranks' up again",
    averages: "it is the mean over the 2 ranks",
    sums_over_everybody: "it communicates over the ranks (0, 1, 2, 3)",
    gathers_the_table: "it uses all-gathers; allowed are all-reduces",
    is_cut_off: "no gradient reaches the table",
}
