"""Wrong answers to moe.placement.move, what each author must be told, and right ones."""

import torch
from torch import nn

from picolab import comm
from picolab.chapters.c02_moe.moving_experts import solution


def _plan(order, axis):
    """What leaves and comes, by rank; where I am, and how many experts a rank has."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    each = len(order) // n
    by_rank = [order[r * each : (r + 1) * each] for r in range(n)]
    leaving = [[e for e in theirs if e // each == me] for theirs in by_rank]
    coming = [[e for e in by_rank[me] if e // each == r] for r in range(n)]
    return leaving, coming, by_rank[me], me, each


def _came(tensor, order, axis, arrange=True):
    leaving, coming, mine, me, each = _plan(order, axis)
    rows = torch.tensor([e - me * each for of in leaving for e in of], dtype=torch.int64)
    sizes = [len(of) for of in coming], [len(of) for of in leaving]
    came = comm.all_to_all(tensor[rows], axis, "move", *sizes)
    arrived = [e for of in coming for e in of]
    places = [arrived.index(e) for e in mine] if arrange else list(range(each))
    return came[torch.tensor(places, dtype=torch.int64)]


def _moments(parameter, optimizer):
    state = optimizer.state.get(parameter, {}).values()
    return [t for t in state if torch.is_tensor(t) and t.shape == parameter.shape]


@torch.no_grad()
def _answer(
    experts,
    router,
    optimizer,
    order,
    axis,
    *,
    moments=_moments,
    came=_came,
    of_router=lambda order: order,
    router_moments=_moments,
):
    """The solution, with one thing to be done otherwise."""
    for parameter in experts:
        for tensor in (parameter.data, *moments(parameter, optimizer)):
            tensor.copy_(came(tensor, order, axis))
    rows = of_router(order)
    for tensor in (router.data, *router_moments(router, optimizer)):
        tensor.copy_(tensor[torch.tensor(rows)])


def weights_alone(experts, router, optimizer, order, axis):
    _answer(
        experts, router, optimizer, order, axis,
        moments=lambda *_: [], router_moments=lambda *_: [],
    )  # fmt: skip


def the_router_stays(experts, router, optimizer, order, axis):
    _answer(
        experts, router, optimizer, order, axis, of_router=lambda order: list(range(len(order)))
    )


def routers_moments_stay(experts, router, optimizer, order, axis):
    _answer(experts, router, optimizer, order, axis, router_moments=lambda *_: [])


def first_moment_alone(experts, router, optimizer, order, axis):
    _answer(
        experts, router, optimizer, order, axis,
        moments=lambda p, optimizer: _moments(p, optimizer)[:1],
    )  # fmt: skip


def moments_by_name(experts, router, optimizer, order, axis):
    """AdamW's, as they are called there, and no other optimizer's."""

    def named(parameter, optimizer):
        state = optimizer.state.get(parameter, {})
        return [state[key] for key in ("exp_avg", "exp_avg_sq") if key in state]

    _answer(experts, router, optimizer, order, axis, moments=named, router_moments=named)


def _inverse(order):
    return [order.index(e) for e in range(len(order))]


def the_other_way(experts, router, optimizer, order, axis):
    """order[e] taken as where expert e goes."""
    solution(experts, router, optimizer, _inverse(order), axis)


def the_router_the_other_way(experts, router, optimizer, order, axis):
    _answer(experts, router, optimizer, order, axis, of_router=_inverse)


def in_the_order_of_ranks(experts, router, optimizer, order, axis):
    """As they arrived."""
    _answer(
        experts, router, optimizer, order, axis,
        came=lambda tensor, order, axis: _came(tensor, order, axis, arrange=False),
    )  # fmt: skip


def state_thrown_away(experts, router, optimizer, order, axis):
    solution(experts, router, optimizer, order, axis)
    optimizer.state.clear()


def moments_at_zero(experts, router, optimizer, order, axis):
    solution(experts, router, optimizer, order, axis)
    for parameter in (*experts, router):
        for tensor in _moments(parameter, optimizer):
            tensor.zero_()


def new_parameters(experts, router, optimizer, order, axis):
    """A list of its own is filled; the optimizer never hears of them."""
    solution(experts, router, optimizer, list(range(len(order))), axis)
    for index, parameter in enumerate(experts):
        experts[index] = nn.Parameter(_came(parameter.detach(), order, axis))


def nothing_moves(experts, router, optimizer, order, axis):
    """Everything is sent, and nothing is kept."""
    for parameter in experts:
        for tensor in (parameter.data, *_moments(parameter, optimizer)):
            _came(tensor, order, axis)


def autograd_follows(experts, router, optimizer, order, axis):
    for parameter in experts:
        parameter.copy_(_came(parameter.detach(), order, axis))


def makes_state(experts, router, optimizer, order, axis):
    """Zeros where there is nothing yet."""
    for parameter in (*experts, router):
        state = optimizer.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
    _answer(experts, router, optimizer, order, axis)


def wants_a_state(experts, router, optimizer, order, axis):
    def named(parameter, optimizer):
        state = optimizer.state[parameter]
        return [state["exp_avg"], state["exp_avg_sq"]]

    _answer(experts, router, optimizer, order, axis, moments=named, router_moments=named)


def gathers_everything(experts, router, optimizer, order, axis):
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    each = len(order) // n

    def came(tensor, order, axis):
        return comm.all_gather(tensor, axis, "all experts")[order[me * each : (me + 1) * each]]

    _answer(experts, router, optimizer, order, axis, came=came)


def to_everybody(experts, router, optimizer, order, axis):
    """Every rank's experts to every rank, by all-to-all."""
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    each = len(order) // n

    def came(tensor, order, axis):
        everybodys = comm.all_to_all(tensor.repeat(n, *[1] * (tensor.dim() - 1)), axis, "move")
        return everybodys[order[me * each : (me + 1) * each]]

    _answer(experts, router, optimizer, order, axis, came=came)


def even_blocks(experts, router, optimizer, order, axis):
    """As if as many experts went to each rank."""
    n = comm.mesh().size(axis)

    def came(tensor, order, axis):
        if len(tensor) % n:
            return _came(tensor, order, axis)
        leaving, _, _, me, each = _plan(order, axis)
        rows = torch.tensor([e - me * each for of in leaving for e in of], dtype=torch.int64)
        return comm.all_to_all(tensor[rows], axis, "move")

    _answer(experts, router, optimizer, order, axis, came=came)


def one_expert_a_message(experts, router, optimizer, order, axis):
    _, _, mine, me, each = _plan(order, axis)
    n = comm.mesh().size(axis)

    def came(tensor, order, axis):
        found = tensor.clone()
        for place, e in enumerate(order):
            sent, came = [0] * n, [0] * n
            if e // each == me:
                sent[place // each] = 1
            if place // each == me:
                came[e // each] = 1
            rows = tensor[e % each : e % each + sum(sent)]
            got = comm.all_to_all(rows, axis, "move", came, sent)
            if place // each == me:
                found[place % each] = got[0]
        return found

    del mine
    _answer(experts, router, optimizer, order, axis, came=came)


def the_router_is_sent(experts, router, optimizer, order, axis):
    solution(experts, router, optimizer, order, axis)
    comm.broadcast(router.data, axis, "router")


def moves_the_step_too(experts, router, optimizer, order, axis):
    """The counter of steps is set back."""
    solution(experts, router, optimizer, order, axis)
    for parameter in experts:
        if "step" in optimizer.state.get(parameter, {}):
            optimizer.state[parameter]["step"].zero_()


def matrices_alone(experts, router, optimizer, order, axis):
    """flatten(1), and so no parameter of one number an expert."""

    def came(tensor, order, axis):
        return _came(tensor.flatten(1), order, axis).view(tensor.shape)

    _answer(experts, router, optimizer, order, axis, came=came)


def only_the_first_parameter(experts, router, optimizer, order, axis):
    _answer(experts[:1], router, optimizer, order, axis)


def swaps_moments(experts, router, optimizer, order, axis):
    """The second moment where the first was."""
    solution(experts, router, optimizer, order, axis)
    for parameter in experts:
        moments = _moments(parameter, optimizer)
        if len(moments) > 1:
            first = moments[0].clone()
            moments[0].copy_(moments[1])
            moments[1].copy_(first)


def over_the_world(experts, router, optimizer, order, axis):
    comm.all_to_all(torch.zeros(comm.mesh().size("world")), "world", "counts")
    solution(experts, router, optimizer, order, axis)


def the_router_by_ranks(experts, router, optimizer, order, axis):
    """Each rank puts the rows of its own experts in order, and leaves the others."""
    _, _, mine, me, each = _plan(order, axis)

    def of_router(order):
        rows = list(range(len(order)))
        rows[me * each : (me + 1) * each] = mine
        return rows

    _answer(experts, router, optimizer, order, axis, of_router=of_router)


def in_bf16(experts, router, optimizer, order, axis):
    def came(tensor, order, axis):
        return _came(tensor.bfloat16(), order, axis).double()

    _answer(experts, router, optimizer, order, axis, came=came)


def by_messages(experts, router, optimizer, order, axis):
    """send and receive, where an all-to-all is allowed."""
    import torch.distributed as dist

    solution(experts, router, optimizer, order, axis)
    n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
    ranks = comm.mesh().ranks(axis)
    works = [
        dist.isend(torch.ones(2), ranks[(me + 1) % n]),
        dist.irecv(torch.ones(2), ranks[(me - 1) % n]),
    ]
    for work in works:
        work.wait()


def moments_in_fp32(experts, router, optimizer, order, axis):
    solution(experts, router, optimizer, order, axis)
    for parameter in experts:
        for tensor in _moments(parameter, optimizer):
            tensor.copy_(tensor.float())


def a_state_of_its_own(experts, router, optimizer, order, axis):
    """New dicts with the moments, and without the number of steps."""
    solution(experts, router, optimizer, order, axis)
    for parameter in (*experts, router):
        state = optimizer.state.get(parameter, {})
        if state:
            optimizer.state[parameter] = {k: v for k, v in state.items() if v.dim()}


def swaps_pairs(experts, router, optimizer, order, axis):
    """As if each order were a number of exchanges of two."""
    pairs = list(range(len(order)))
    for place, e in enumerate(order):
        if e > place:
            pairs[place], pairs[e] = pairs[e], pairs[place]
    _answer(experts, router, optimizer, pairs, axis)


def the_router_twice(experts, router, optimizer, order, axis):
    """On top of a router that has been put in order."""
    solution(experts, router, optimizer, order, axis)
    with torch.no_grad():
        router.copy_(router[torch.tensor(order)])


def columns_of_the_router(experts, router, optimizer, order, axis):
    solution(experts, router, optimizer, order, axis)
    back = torch.tensor(_inverse(order))
    with torch.no_grad():
        router.copy_(router[back].flip(1))


def moves_within_ranks_alone(experts, router, optimizer, order, axis):
    """Nothing is sent: experts of other ranks are taken from the own places."""
    _, _, mine, me, each = _plan(order, axis)

    def came(tensor, order, axis):
        rows = [e % each if e // each == me else p for p, e in enumerate(mine)]
        return tensor[torch.tensor(rows)]

    _answer(experts, router, optimizer, order, axis, came=came)


def scaled_moments(experts, router, optimizer, order, axis):
    """The second moment is halved, as after a restart."""
    solution(experts, router, optimizer, order, axis)
    for parameter in experts:
        for tensor in _moments(parameter, optimizer)[1:]:
            tensor.mul_(0.5)


def halves_the_rate(experts, router, optimizer, order, axis):
    """What belongs to no expert is changed."""
    solution(experts, router, optimizer, order, axis)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["lr"]


def stays_away_when_its_own_stay(experts, router, optimizer, order, axis):
    """Another rank's experts change places, and it waits for this one."""
    _, _, mine, me, each = _plan(order, axis)

    def came(tensor, order, axis):
        stay = mine == list(range(me * each, (me + 1) * each))
        return tensor.clone() if stay else _came(tensor, order, axis)

    _answer(experts, router, optimizer, order, axis, came=came)


def all_that_has_rows(experts, router, optimizer, order, axis):
    """Whatever tensor of the state has a dim, whether it is the experts' or not."""

    def moments(parameter, optimizer):
        state = optimizer.state.get(parameter, {}).values()
        return [t for t in state if torch.is_tensor(t) and t.dim()]

    _answer(experts, router, optimizer, order, axis, moments=moments)


MUTANTS = {
    weights_alone: "it stayed where it was, and belongs to the expert that went away",
    the_router_stays: "the router is wrong: nothing moved",
    routers_moments_stay: "of the router is wrong: it stayed where it was",
    first_moment_alone: "`exp_avg_sq` of experts' `up` is wrong: it stayed",
    moments_by_name: "`momentum_buffer` of experts' `up` is wrong: it stayed",
    the_other_way: "it is the inverse order",
    the_router_the_other_way: "the router is wrong: it is the inverse order",
    in_the_order_of_ranks: "in the order of the ranks they came from",
    state_thrown_away: "is gone",
    moments_at_zero: "it begins at zero again",
    new_parameters: "make no new one",
    nothing_moves: "nothing moved",
    autograd_follows: "a leaf Variable that requires grad",
    makes_state: "and had none before the move",
    wants_a_state: "exp_avg",
    gathers_everything: "it uses all-gathers; allowed are all-to-alls",
    to_everybody: "and the budget is",
    even_blocks: "experts' `up`",
    one_expert_a_message: "all-to-alls, and the budget is",
    the_router_is_sent: "it uses broadcasts",
    moves_the_step_too: "it begins at zero again",
    matrices_alone: "Dimension out of range",
    only_the_first_parameter: "experts' `down` is wrong: nothing moved",
    swaps_moments: "the optimizer's `exp_avg` of experts' `up` is wrong",
    over_the_world: "all-to-alls, and the budget is 9",
    the_router_by_ranks: "only this rank's experts had moved",
    in_bf16: "bf16",
    by_messages: "allowed are all-to-alls",
    moments_in_fp32: "fp32",
    a_state_of_its_own: "`step` of experts",
    swaps_pairs: "is wrong",
    the_router_twice: "its rows were moved twice",
    columns_of_the_router: "the router is wrong",
    moves_within_ranks_alone: "those of other ranks did not come",
    scaled_moments: "times what it should be",
    halves_the_rate: "steps after the move",
    stays_away_when_its_own_stay: "still wait for it in all_to_all",
    all_that_has_rows: "stays as it is",
}


def everything_in_one_message(experts, router, optimizer, order, axis):
    """All that belongs to an expert, flat, one behind the other."""
    tensors = [t for p in experts for t in (p.data, *_moments(p, optimizer))]
    flat = torch.cat([t.reshape(len(t), -1) for t in tensors], 1)
    came = _came(flat, order, axis)
    widths = [t[0].numel() for t in tensors]
    with torch.no_grad():
        for tensor, part in zip(tensors, came.split(widths, 1)):
            tensor.copy_(part.reshape(tensor.shape))
        for tensor in (router, *_moments(router, optimizer)):
            tensor[:] = tensor.clone()[order]


def in_raw_torch(experts, router, optimizer, order, axis):
    import torch.distributed as dist

    leaving, coming, mine, me, each = _plan(order, axis)
    sizes = [len(of) for of in coming], [len(of) for of in leaving]
    arrived = [e for of in coming for e in of]
    for parameter in experts:
        state = optimizer.state.get(parameter, {})
        keys = [
            key for key, of in state.items() if torch.is_tensor(of) and of.shape == parameter.shape
        ]
        for tensor in (parameter.detach(), *(state[key] for key in keys)):
            rows = torch.stack([tensor[e % each] for of in leaving for e in of])
            out = torch.empty_like(tensor)
            dist.all_to_all_single(out, rows, *sizes, group=comm.mesh().group(axis))
            for place, e in enumerate(mine):
                tensor[place] = out[arrived.index(e)]
    del me
    with torch.no_grad():
        for tensor in (router, *_moments(router, optimizer)):
            tensor.copy_(torch.stack([tensor[e] for e in order]))  # fmt: skip


RIGHT = (everything_in_one_message, in_raw_torch)
