"""Wrong answers to 3d.zero.ranges, what each author must be told, and right ones."""

import itertools

import torch
from torch.nn.functional import pad

from picolab import comm, costs
from picolab.chapters.c03_3d_parallel.zero_ranges import solution


def _answer(
    parameters,
    gradients,
    axis,
    step,
    *,
    share=lambda total, n: -(-total // n),
    local=lambda start, begins, first: start - begins,
    which=lambda index: index,
    scale=lambda gradient, n: gradient,
    old=lambda p: p,
):
    """The solution, with one thing to be done otherwise."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    size = share(len(flat), n)
    gradient = scale(comm.reduce_scatter(pad(flat, (0, n * size - len(flat))), axis, "g"), n)
    mine, first, begins = torch.zeros_like(gradient), me * size, 0
    for index, p in enumerate(parameters):
        ends = begins + p.numel()
        start, stop = max(begins, first), min(ends, first + size)
        if start < stop:
            here = slice(start - first, stop - first)
            values = old(p).reshape(-1)[start - begins : stop - begins]
            told = local(start, begins, first)
            mine[here] = step(which(index), told, values, gradient[here])
        begins = ends
    whole = comm.all_gather(mine, axis, "p")[: len(flat)]
    pieces = whole.split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters)]


def forgets_that_ranges_cut_parameters(parameters, gradients, axis, step):
    """Whole parameters are dealt out, as torch's ZeroRedundancyOptimizer does."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    found = []
    for index, (p, g) in enumerate(zip(parameters, gradients)):
        total = comm.all_reduce(g.clone(), axis, "g")
        new = step(index, 0, p.reshape(-1), total.reshape(-1)) if index % n == me else p.reshape(-1)
        comm.broadcast(new, axis, "p", source=index % n)
        found.append(new.view_as(p))
    return found


def rows_of_every_parameter(parameters, gradients, axis, step):
    """The chapter's own: rows, for sizes that n divides."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    found = []
    for index, (p, g) in enumerate(zip(parameters, gradients)):
        gradient = comm.reduce_scatter(g, axis, "g")
        rows = p.chunk(n)[me]
        new = step(index, 0, rows.reshape(-1), gradient.reshape(-1))
        found.append(comm.all_gather(new, axis, "p").view_as(p))
    return found


def steps_everything(parameters, gradients, axis, step):
    n = comm.mesh().size(axis)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    padded = pad(flat, (0, -len(flat) % n))
    mine = comm.reduce_scatter(padded, axis, "g")
    total = comm.all_gather(mine, axis, "g")[: len(flat)]
    pieces = total.split([p.numel() for p in parameters])
    return [
        step(i, 0, p.reshape(-1), g).view_as(p) for i, (p, g) in enumerate(zip(parameters, pieces))
    ]


def averages(parameters, gradients, axis, step):
    return _answer(parameters, gradients, axis, step, scale=lambda g, n: g / n)


def rounds_down(parameters, gradients, axis, step):
    return _answer(parameters, gradients, axis, step, share=lambda total, n: total // n)


def counts_in_the_buffer(parameters, gradients, axis, step):
    return _answer(parameters, gradients, axis, step, local=lambda start, begins, first: start)


def always_tells_zero(parameters, gradients, axis, step):
    return _answer(parameters, gradients, axis, step, local=lambda *_: 0)


def tells_the_wrong_parameter(parameters, gradients, axis, step):
    last = len(parameters) - 1
    return _answer(parameters, gradients, axis, step, which=lambda index: min(index + 1, last))


def steps_the_gradient_alone(parameters, gradients, axis, step):
    return _answer(parameters, gradients, axis, step, old=torch.zeros_like)


def forgets_to_return(parameters, gradients, axis, step):
    solution(parameters, gradients, axis, step)


def returns_the_buffer(parameters, gradients, axis, step):
    found = solution(parameters, gradients, axis, step)
    return torch.cat([one.reshape(-1) for one in found])


def returns_them_flat(parameters, gradients, axis, step):
    return [one.reshape(-1) for one in solution(parameters, gradients, axis, step)]


def returns_the_old(parameters, gradients, axis, step):
    solution(parameters, gradients, axis, step)
    return [p.clone() for p in parameters]


def changes_them_in_place(parameters, gradients, axis, step):
    found = solution(parameters, gradients, axis, step)
    for p, new in zip(parameters, found):
        p.copy_(new)
    return found


def all_reduces(parameters, gradients, axis, step):
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    total = [comm.all_reduce(g.clone(), axis, "g") for g in gradients]
    zeros = [g if me == 0 else torch.zeros_like(g) for g in total]
    assert n
    return solution(parameters, zeros, axis, step)


def over_all_ranks(parameters, gradients, axis, step):
    return solution(parameters, gradients, "world", step)


def a_gather_for_each_parameter(parameters, gradients, axis, step):
    whole = solution(parameters, gradients, axis, step)
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    for one in whole:
        padded = pad(one.reshape(-1), (0, -one.numel() % n))
        comm.all_gather(padded.chunk(n)[me].clone(), axis, "again")
    return whole


def gathers_objects(parameters, gradients, axis, step):
    import torch.distributed as dist

    group, n = comm.mesh().group(axis), comm.mesh().size(axis)
    everyones = [None] * n
    dist.all_gather_object(everyones, gradients, group=group)
    total = [sum(one[i] for one in everyones) for i in range(len(gradients))]
    found = solution(parameters, gradients, axis, step)
    assert len(total) == len(found)
    return found


def own_gradient(parameters, gradients, axis, step):
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    share = -(-len(flat) // n)
    padded = pad(flat, (0, n * share - len(flat)))
    comm.reduce_scatter(padded, axis, "g")
    own, mine, first, begins = padded.chunk(n)[me], None, me * share, 0
    mine = torch.zeros_like(own)
    for index, p in enumerate(parameters):
        ends = begins + p.numel()
        start, stop = max(begins, first), min(ends, first + share)
        if start < stop:
            here = slice(start - first, stop - first)
            old = p.reshape(-1)[start - begins : stop - begins]
            mine[here] = step(index, start - begins, old, own[here])
        begins = ends
    whole = comm.all_gather(mine, axis, "p")[: len(flat)]
    return [x.view_as(p) for x, p in zip(whole.split([p.numel() for p in parameters]), parameters)]


def counts_in_its_range(parameters, gradients, axis, step):
    return _answer(
        parameters, gradients, axis, step, local=lambda start, begins, first: start - first
    )


def swaps_weight_and_gradient(parameters, gradients, axis, step):
    def swapped(index, start, weight, gradient):
        return step(index, start, gradient, weight)

    return solution(parameters, gradients, axis, swapped)


def numbers_its_own_pieces(parameters, gradients, axis, step):
    pieces = itertools.count()
    return _answer(parameters, gradients, axis, step, which=lambda index: next(pieces))


def sends_bf16(parameters, gradients, axis, step):
    old = parameters[0].dtype
    low = [g.bfloat16() for g in gradients]
    return _answer(parameters, low, axis, step, scale=lambda gradient, n: gradient.to(old))


def zeroes_gradients(parameters, gradients, axis, step):
    """As an optimizer's zero_grad(set_to_none=False) does."""
    found = solution(parameters, gradients, axis, step)
    for gradient in gradients:
        gradient.zero_()
    return found


def _over_ranges(parameters, gradients, axis, step, ranges, length):
    """Each rank steps its one of these ranges of a buffer that is padded to a length; all travel
    in shares of one size."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    flat, weights = (torch.cat([t.reshape(-1) for t in of]) for of in (gradients, parameters))
    flat, weights = (pad(t, (0, max(0, length - len(t)))) for t in (flat, weights))
    size = max(map(len, ranges))
    lines = [pad(flat[r.start : r.stop], (0, size - len(r))) for r in ranges]
    gradient, first = comm.reduce_scatter(torch.cat(lines), axis, "g"), ranges[me].start
    mine, begins = torch.zeros_like(gradient), 0
    for index, p in enumerate(parameters):
        longer = len(weights) - sum(p.numel() for p in parameters)
        ends = begins + p.numel() + (longer if index == len(parameters) - 1 else 0)
        start, stop = max(begins, first), min(ends, ranges[me].stop)
        if start < stop:
            here = slice(start - first, stop - first)
            mine[here] = step(index, start - begins, weights[start:stop], gradient[here])
        begins = ends
    lines = comm.all_gather(mine, axis, "p").view(n, size)
    whole = torch.cat([*(line[: len(r)] for line, r in zip(lines, ranges))])
    whole = torch.cat([whole, weights[len(whole) :]])
    pieces = whole[: sum(p.numel() for p in parameters)].split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters)]


def steps_padding(parameters, gradients, axis, step):
    n, total = comm.mesh().size(axis), sum(p.numel() for p in parameters)
    share = -(-total // n)
    ranges = [range(r * share, (r + 1) * share) for r in range(n)]
    return _over_ranges(parameters, gradients, axis, step, ranges, n * share)


def ranges_as_even_as_they_go(parameters, gradients, axis, step):
    total = sum(p.numel() for p in parameters)
    ranges = costs.even_slices(total, comm.mesh().size(axis))
    return _over_ranges(parameters, gradients, axis, step, ranges, total)


def leaves_the_rest_alone(parameters, gradients, axis, step):
    """total // n numbers a rank; the last total % n are nobody's."""
    n, total = comm.mesh().size(axis), sum(p.numel() for p in parameters)
    ranges = [range(r * (total // n), (r + 1) * (total // n)) for r in range(n)]
    return _over_ranges(parameters, gradients, axis, step, ranges, total)


def parameter_by_parameter(parameters, gradients, axis, step):
    """A share of ceil(size / n) numbers of each, and two collectives for each."""
    found = []
    for index, (p, g) in enumerate(zip(parameters, gradients)):

        def told(_, start, weight, gradient, index=index):
            return step(index, start, weight, gradient)

        found += _answer([p], [g], axis, told)
    return found


MUTANTS = {
    rows_of_every_parameter: "reduce_scatter",
    averages: "mean of the gradients",
    forgets_that_ranges_cut_parameters: "it uses all-reduces",
    steps_everything: "of other ranks' ranges",
    rounds_down: "RuntimeError",
    counts_in_the_buffer: "`start` was counted in the buffer",
    always_tells_zero: "`start` is always 0",
    tells_the_wrong_parameter: "as another parameter",
    steps_the_gradient_alone: "zeros for the weight",
    forgets_to_return: "it returns None",
    returns_the_buffer: "asked for is a list of the 5 updated parameters",
    returns_them_flat: "only the shape is not",
    returns_the_old: "it is the old one",
    changes_them_in_place: "it changed its input `parameters`",
    all_reduces: "it uses all-reduces",
    over_all_ranks: "it communicates over the ranks",
    a_gather_for_each_parameter: "all-gathers, and the budget is 1",
    gathers_objects: "all_gather_object",
    own_gradient: "each rank stepped its range with its own gradient",
    counts_in_its_range: "`start` was counted in the range",
    swaps_weight_and_gradient: "the gradient as the weight",
    numbers_its_own_pieces: "and they are of [2, 3, 4]",
    sends_bf16: "rounded on the way",
    zeroes_gradients: "it changed its input `gradients`",
    steps_padding: "padding is nobody's number",
    ranges_as_even_as_they_go: "18 of the 19 numbers of its range",
    leaves_the_rest_alone: "of other ranks' ranges; its own are 28 to 54",
    parameter_by_parameter: "5 reduce-scatters, and the budget is 1",
}


def number_by_number(parameters, gradients, axis, step):
    """The owner of each number from a list, and one call of step a number."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    places = [(i, k) for i, p in enumerate(parameters) for k in range(p.numel())]
    share = -(-len(places) // n)
    flat = torch.zeros(n * share, dtype=parameters[0].dtype)
    for at, (i, k) in enumerate(places):
        flat[at] = gradients[i].flatten()[k]
    mine = comm.reduce_scatter(flat, axis, "g")
    new = torch.zeros_like(mine)
    for j, (i, k) in enumerate(places[me * share : (me + 1) * share]):
        new[j : j + 1] = step(i, k, parameters[i].flatten()[k : k + 1], mine[j : j + 1])
    whole = comm.all_gather(new, axis, "p")
    found = [torch.empty_like(p) for p in parameters]
    for at, (i, k) in enumerate(places):
        found[i].view(-1)[k] = whole[at]
    return found


def in_raw_torch(parameters, gradients, axis, step):
    import torch.distributed as dist

    group = comm.mesh().group(axis)
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    flat = torch.cat([g.flatten() for g in gradients])
    share = -(-len(flat) // n)
    mine = flat.new_empty(share)
    dist.reduce_scatter_tensor(mine, pad(flat, (0, n * share - len(flat))), group=group)
    ends = torch.tensor([0, *(p.numel() for p in parameters)]).cumsum(0).tolist()
    parts, weights = [], torch.cat([p.flatten() for p in parameters])
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        lo, hi = max(begin, me * share), min(end, (me + 1) * share)
        if lo < hi:
            parts.append(
                step(i, lo - begin, weights[lo:hi], mine[lo - me * share : hi - me * share])
            )
    new = torch.cat([*parts, flat.new_zeros(share - sum(map(len, parts)))])
    whole = flat.new_empty(n * share)
    dist.all_gather_into_tensor(whole, new, group=group)
    return [whole[a:b].view(p.shape) for p, a, b in zip(parameters, ends, ends[1:])]


def with_empty_pieces_too(parameters, gradients, axis, step):
    """Every parameter is stepped, also where the rank has nothing of it."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    flat = torch.nn.utils.parameters_to_vector(gradients)
    share = -(-len(flat) // n)
    mine = comm.reduce_scatter(pad(flat, (0, n * share - len(flat))), axis, "g")
    found, begins = [], 0
    for index, p in enumerate(parameters):
        a, b = (min(max(edge * share - begins, 0), p.numel()) for edge in (me, me + 1))
        at = begins + a - me * share
        gradient = mine[at : at + b - a] if a < b else mine[:0]
        found.append(step(index, a, p.reshape(-1)[a:b], gradient))
        begins += p.numel()
    new = torch.cat(found)
    whole = comm.all_gather(pad(new, (0, share - len(new))), axis, "p")[: len(flat)]
    pieces = whole.split([p.numel() for p in parameters])
    return [piece.reshape(p.shape) for piece, p in zip(pieces, parameters)]


RIGHT = (number_by_number, in_raw_torch, with_empty_pieces_too)
