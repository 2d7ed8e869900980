"""Wrong answers to interview.memory.chunked_loss, what each author must be told, and right ones."""

import torch
from torch.nn.functional import cross_entropy

from picolab import comm
from picolab.chapters.c05_memory.interview_chunked_loss import solution


def _count(labels, axis):
    return comm.all_reduce((labels != -100).sum().double(), axis, "tokens that count")


def _exact(hidden, head, labels, count):
    hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss = cross_entropy(hidden @ head.T, labels, reduction="sum") / count
    loss.backward()
    return loss.detach(), hidden.grad, head.grad


def all_at_once(hidden, head, labels, piece, axis):
    return _exact(hidden, head, labels, _count(labels, axis))


def pieces_that_autograd_keeps(hidden, head, labels, piece, axis):
    count = _count(labels, axis)
    hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss = sum(
        cross_entropy(hidden[b : b + piece] @ head.T, labels[b : b + piece], reduction="sum")
        for b in range(0, len(hidden), piece)
    )
    loss = loss / count
    loss.backward()
    return loss.detach(), hidden.grad, head.grad


def keeps_all_softmaxes(hidden, head, labels, piece, axis):
    result = solution(hidden, head, labels, piece, axis)
    kept = [(hidden[b : b + piece] @ head.T).softmax(1) for b in range(0, len(hidden), piece)]
    return result if kept else None


def _pieces(hidden, head, labels, piece):
    """As the solution, by autograd, and not divided yet."""
    whole = [torch.zeros(()).double(), torch.zeros_like(hidden), torch.zeros_like(head)]
    for b in range(0, len(hidden), piece):
        part = _exact(hidden[b : b + piece], head, labels[b : b + piece], 1.0)
        whole[0] += part[0]
        whole[1][b : b + piece] = part[1]
        whole[2] += part[2]
    return whole


def divides_by_its_own(hidden, head, labels, piece, axis):
    own = (labels != -100).sum().double()
    _count(labels, axis)
    return tuple(one / own for one in _pieces(hidden, head, labels, piece))


def divides_by_all_tokens(hidden, head, labels, piece, axis):
    _count(labels, axis)
    n = comm.mesh().size(axis) * len(labels)
    return tuple(one / n for one in _pieces(hidden, head, labels, piece))


def divides_by_nothing(hidden, head, labels, piece, axis):
    _count(labels, axis)
    return tuple(_pieces(hidden, head, labels, piece))


def averages_over_ranks_again(hidden, head, labels, piece, axis):
    n = comm.mesh().size(axis)
    return tuple(one / n for one in solution(hidden, head, labels, piece, axis))


def forgets_one_hot(hidden, head, labels, piece, axis):
    count = _count(labels, axis)
    loss = _pieces(hidden, head, labels, piece)[0] / count
    valid = (labels != -100)[:, None]
    dhidden, dhead = torch.zeros_like(hidden), torch.zeros_like(head)
    for b in range(0, len(hidden), piece):
        x = hidden[b : b + piece]
        p = (x @ head.T).softmax(1) * valid[b : b + piece] / count
        dhidden[b : b + piece] = p @ head
        dhead.addmm_(p.T, x)
    return loss, dhidden, dhead


def forgets_the_last_piece(hidden, head, labels, piece, axis):
    loss, dhidden, dhead = solution(hidden, head, labels, piece, axis)
    end = len(hidden) // piece * piece
    dhidden[end:] = 0
    return loss, dhidden, dhead


def last_piece_replaces(hidden, head, labels, piece, axis):
    count = _count(labels, axis)
    loss, dhidden, _ = _pieces(hidden, head, labels, piece)
    begin = (len(hidden) - 1) // piece * piece
    dhead = _exact(hidden[begin:], head, labels[begin:], count)[2]
    return loss / count, dhidden / count, dhead


def no_label_has_a_gradient(hidden, head, labels, piece, axis):
    count = _count(labels, axis)
    loss, _, dhead = (one / count for one in _pieces(hidden, head, labels, piece))
    dhidden = torch.zeros_like(hidden)
    for b in range(0, len(hidden), piece):
        y = labels[b : b + piece]
        p = (hidden[b : b + piece] @ head.T).softmax(1)
        p[range(len(y)), y.clamp(min=0)] -= (y != -100).double()
        dhidden[b : b + piece] = p @ head / count
    return loss, dhidden, dhead


def exponential_without_maximum(hidden, head, labels, piece, axis):
    count = _count(labels, axis)
    loss, dhidden, dhead = _pieces(hidden, head, labels, piece)
    for b in range(0, len(hidden), piece):
        y = labels[b : b + piece]
        if not (y != -100).any():
            continue
        p = (hidden[b : b + piece] @ head.T).exp_()
        p /= p.sum(1, keepdim=True)
        p[range(len(y)), y.clamp(min=0)] -= 1
        p[y == -100] = 0
        dhidden[b : b + piece] = p @ head
    return loss / count, dhidden / count, dhead / count


def reduces_the_loss(hidden, head, labels, piece, axis):
    loss, dhidden, dhead = solution(hidden, head, labels, piece, axis)
    return comm.all_reduce(loss, axis, "loss"), dhidden, dhead


def reduces_dhead(hidden, head, labels, piece, axis):
    loss, dhidden, dhead = solution(hidden, head, labels, piece, axis)
    return loss, dhidden, comm.all_reduce(dhead, axis, "dhead")


def counts_each_piece(hidden, head, labels, piece, axis):
    loss, dhidden, dhead = solution(hidden, head, labels, piece, axis)
    for b in range(piece, len(hidden), piece):
        _count(labels[b : b + piece], axis)
    return loss, dhidden, dhead


def counts_over_the_world(hidden, head, labels, piece, axis):
    return solution(hidden, head, labels, piece, "world")


def has_the_wrong_sign(hidden, head, labels, piece, axis):
    loss, dhidden, dhead = solution(hidden, head, labels, piece, axis)
    return loss, -dhidden, -dhead


def transposes_dhead(hidden, head, labels, piece, axis):
    loss, dhidden, dhead = solution(hidden, head, labels, piece, axis)
    return loss, dhidden, dhead.T.contiguous()


def forgets_dhead(hidden, head, labels, piece, axis):
    return solution(hidden, head, labels, piece, axis)[:2]


def by_autograd_piece_by_piece(hidden, head, labels, piece, axis):
    count = _count(labels, axis)
    return tuple(one / count for one in _pieces(hidden, head, labels, piece))


def by_logsumexp(hidden, head, labels, piece, axis):
    count = _count(labels, axis)
    loss, dhidden, dhead = 0.0, torch.zeros_like(hidden), torch.zeros_like(head)
    for b in range(0, len(hidden), piece):
        x, y = hidden[b : b + piece], labels[b : b + piece]
        keep, there = (y != -100).double()[:, None] / count, y.clamp(min=0)[:, None]
        logits = x @ head.T
        lse = logits.logsumexp(1, keepdim=True)
        loss = loss + ((lse - logits.gather(1, there)) * keep).sum()
        logits.sub_(lse).exp_().scatter_add_(1, there, -torch.ones_like(lse)).mul_(keep)
        dhidden[b : b + piece] = logits @ head
        dhead.addmm_(logits.T, x)
    return loss, dhidden, dhead


def no_label_of_0(hidden, head, labels, piece, axis):
    """`labels > 0`, for the number as for the mask."""
    return solution(hidden, head, labels.masked_fill(labels == 0, -100), piece, axis)


def mean_of_the_ranks(hidden, head, labels, piece, axis):
    """Each rank's own mean, over the number of ranks."""
    _count(labels, axis)
    own = (labels != -100).sum().clamp(min=1)
    over = own * comm.mesh().size(axis)
    return tuple(one / over for one in _pieces(hidden, head, labels, piece))


def ends_where_no_label_is(hidden, head, labels, piece, axis):
    """`break` at a piece without a label, where `continue` was meant."""
    count, end = _count(labels, axis), len(labels)
    for begin in range(0, len(labels), piece):
        if (labels[begin : begin + piece] == -100).all():
            end = begin
            break
    before = torch.where(torch.arange(len(labels)) < end, labels, -100)
    return tuple(one / count for one in _pieces(hidden, head, before, piece))


def minus_100_from_the_end(hidden, head, labels, piece, axis):
    """A label of -100 is a row of the vocabulary, from its end, and masked afterwards."""
    for begin in range(0, len(hidden), piece):
        part = labels[begin : begin + piece]
        torch.zeros(len(part), len(head))[torch.arange(len(part)), part]
    return solution(hidden, head, labels, piece, axis)


MUTANTS = {
    all_at_once: "bytes were alive at once",
    pieces_that_autograd_keeps: "bytes were alive at once",
    keeps_all_softmaxes: "bytes were alive at once",
    divides_by_its_own: "divided by this rank's number of valid tokens",
    divides_by_all_tokens: "divided by all tokens",
    divides_by_nothing: "not divided by the number of valid tokens",
    averages_over_ranks_again: "divide once, by the tokens of all",
    forgets_one_hot: "one-hot is missing",
    forgets_the_last_piece: "the last piece is missing",
    last_piece_replaces: "the last piece's alone",
    no_label_has_a_gradient: "tokens without a label have a gradient",
    exponential_without_maximum: "dhidden",
    reduces_the_loss: "this rank's share",
    reduces_dhead: "summed over ranks",
    counts_each_piece: "all-reduce",
    counts_over_the_world: "not of those of the axis",
    has_the_wrong_sign: "the sign is wrong",
    transposes_dhead: "has the shape",
    forgets_dhead: "asked for is `return loss, dhidden, dhead`",
    no_label_of_0: "a label of 0 counts, too",
    mean_of_the_ranks: "own mean is averaged over ranks",
    ends_where_no_label_is: "the first piece without a label",
    minus_100_from_the_end: "index -100 is out of bounds",
}
RIGHT = (by_autograd_piece_by_piece, by_logsumexp)
