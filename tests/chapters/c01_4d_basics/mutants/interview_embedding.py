"""Wrong answers to interview.4d.embedding, what each author must be told, and right ones."""

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


def _rows(vocab):
    return costs.even_slices(vocab, comm.mesh().size("tp"))[comm.mesh().rank("tp")]


def gathers_objects(tokens, table, vocab):
    import torch.distributed as dist

    m = comm.mesh()
    tables = [None] * m.size("tp")
    dist.all_gather_object(tables, table.detach(), group=m.group("tp"))
    tables[m.rank("tp")] = table
    return torch.cat(tables)[tokens]


def looks_one_row_further(tokens, table, vocab):
    start = _rows(vocab).start - 1
    mine = (tokens >= start) & (tokens < start + len(table))
    x = torch.nn.functional.embedding((tokens - start).clamp(0, len(table) - 1), table)
    return _Sum.apply(x.masked_fill(~mine.unsqueeze(-1), 0), "tp", False)


def forgets_where_its_rows_begin(tokens, table, vocab):
    rows = _rows(vocab)
    mine = (tokens >= rows.start) & (tokens < rows.stop)
    x = table[tokens.masked_fill(~mine, 0)]
    return _Sum.apply(x.masked_fill(~mine.unsqueeze(-1), 0), "tp", False)


def counts_the_first_of_the_next(tokens, table, vocab):
    rows = _rows(vocab)
    mine = (tokens >= rows.start) & (tokens <= rows.stop)
    x = table[(tokens - rows.start).masked_fill(~mine, 0)]
    return _Sum.apply(x.masked_fill(~mine.unsqueeze(-1), 0), "tp", False)


def sums_in_fp32(tokens, table, vocab):
    return _Sum.apply(_look_up(tokens, table, vocab).float(), "tp", False)


def leaves_without_tokens(tokens, table, vocab):
    rows = _rows(vocab)
    mine = (tokens >= rows.start) & (tokens < rows.stop)
    if not mine.any():
        return 0 * table.sum() + torch.zeros(*tokens.shape, table.shape[1], dtype=table.dtype)
    return _Sum.apply(_look_up(tokens, table, vocab), "tp", False)


def keeps_one_gradient_a_row(tokens, table, vocab):
    class Last(torch.autograd.Function):
        @staticmethod
        def forward(ctx, table):
            return comm.all_reduce(_look_up(tokens, table, vocab), "tp", "embedding")

        @staticmethod
        def backward(ctx, dy):
            rows, gradient = _rows(vocab), torch.zeros_like(table)
            for token, row in zip(tokens.flatten().tolist(), dy.flatten(0, 1)):
                if token in rows:
                    gradient[token - rows.start] = row
            return gradient

    return Last.apply(table)


def flattens_the_tokens(tokens, table, vocab):
    return _Sum.apply(_look_up(tokens.flatten(), table, vocab), "tp", False)


def reduces_and_broadcasts(tokens, table, vocab):
    import torch.distributed as dist

    x = _look_up(tokens, table, vocab)
    first, group = comm.mesh().ranks("tp")[0], comm.mesh().group("tp")
    y = x.detach().clone()
    dist.reduce(y, first, group=group)
    dist.broadcast(y, first, group=group)
    return x + (y - x.detach())


def sums_one_hot_twice(tokens, table, vocab):
    x = _Sum.apply(_look_up(tokens, table, vocab), "tp", False)
    return _Sum.apply(x, "tp", False)


def multiplies_by_one_hot(tokens, table, vocab):
    rows = _rows(vocab)
    hot = (tokens.unsqueeze(-1) == torch.arange(rows.start, rows.stop)).to(table.dtype)
    mine = hot @ table
    whole = comm.all_reduce(mine.detach().clone(), "tp", "embedding")
    return mine + (whole - mine.detach())


def looks_up_a_row_of_zeros(tokens, table, vocab):
    import torch.distributed as dist

    rows = _rows(vocab)
    longer = torch.nn.functional.pad(table, (0, 0, 0, 1))
    row = torch.where((tokens >= rows.start) & (tokens < rows.stop), tokens - rows.start, -1)
    out = longer[row]
    total = out.detach().clone()
    dist.all_reduce(total, group=comm.mesh().group("tp"))
    others = total - out.detach()
    return out + others


def sums_behind_autograds_back(tokens, table, vocab):
    return comm.all_reduce(_look_up(tokens, table, vocab), "tp", "embedding")


MUTANTS = {
    nobody_sums: "nobody sums over tp",
    sums_behind_autograds_back: "changes a tensor that autograd follows, in place",
    clamps_and_does_not_mask: "yours are given the rank's first or last row",
    negative_rows_wrap: "for instance by a negative index",
    zeroes_the_index_only: "yours are given the rank's row 0",
    begins_at_rank_times_rows: "the shards are uneven",
    sums_in_backward_too: "adds the ranks' up again",
    averages: "it is the mean over the 2 ranks",
    sums_over_everybody: "it communicates over the ranks (0, 1, 2, 3)",
    gathers_the_table: "it uses all-gathers; allowed are all-reduces",
    is_cut_off: "no gradient reaches the table",
    gathers_objects: "it uses `all_gather_object`",
    looks_one_row_further: "tokens are given the row beside theirs",
    forgets_where_its_rows_begin: "IndexError",
    counts_the_first_of_the_next: "IndexError",
    sums_in_fp32: "the output is in torch.float32",
    leaves_without_tokens: "rank 3 returned, and rank 2 still waits for it",
    keeps_one_gradient_a_row: "a token that stands there several times is in it once",
    flattens_the_tokens: "its numbers are right, and only the shape is not",
    reduces_and_broadcasts: "it uses reduces",
    sums_one_hot_twice: "are in it 2, 2 times",
}
RIGHT = (multiplies_by_one_hot, looks_up_a_row_of_zeros)
