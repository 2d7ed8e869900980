"""Wrong answers to moe.balance.bias, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c02_moe.selection_bias import solution


def _order(wanted, k):
    return wanted.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _share(own):
    return own / own.sum(-1, keepdim=True).clamp(min=1e-20)


def _answer(
    scores,
    bias,
    k,
    rate,
    axis,
    *,
    wanted=lambda of, bias: of + bias,
    order=_order,
    weigh=lambda of, bias, chosen: _share(of.gather(-1, chosen)),
    count=lambda of, bias, chosen: chosen.flatten().bincount(minlength=len(bias)),
    summed=lambda loads, axis: comm.all_reduce(loads, axis, "loads"),
    by=lambda loads: torch.sign(loads.mean() - loads),
    start=lambda bias: bias,
    finish=lambda moved: moved - moved.mean(),
):
    """The solution, with one thing to be done otherwise."""
    chosen = [order(wanted(of, bias), k) for of in scores]
    weights = [weigh(of, bias, one) for of, one in zip(scores, chosen)]
    loads = sum(count(of, bias, one) for of, one in zip(scores, chosen))
    loads = summed(loads, axis).double()
    return chosen, weights, finish(start(bias) + rate * by(loads))


def bias_in_the_weights(scores, bias, k, rate, axis):
    def weigh(of, bias, chosen):
        return _share((of + bias).gather(-1, chosen))

    return _answer(scores, bias, k, rate, axis, weigh=weigh)


def by_its_own_loads(scores, bias, k, rate, axis):
    def summed(loads, axis):
        comm.all_reduce(loads.clone(), axis, "loads")
        return loads

    return _answer(scores, bias, k, rate, axis, summed=summed)


def chooses_without_it(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, wanted=lambda of, bias: of)


def subtracts_it(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, wanted=lambda of, bias: of - bias)


def multiplies_by_it(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, wanted=lambda of, bias: of * bias)


def moves_the_wrong_way(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, by=lambda loads: torch.sign(loads - loads.mean()))


def moves_by_the_distance(scores, bias, k, rate, axis):
    return _answer(
        scores, bias, k, rate, axis, by=lambda loads: (loads.mean() - loads) / loads.mean()
    )


def keeps_the_mean(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, finish=lambda moved: moved)


def once_a_micro_batch(scores, bias, k, rate, axis):
    moved = bias
    for of in scores:
        loads = _order(of + bias, k).flatten().bincount(minlength=len(bias))
        loads = comm.all_reduce(loads, axis, "loads").double()
        moved = moved + rate * torch.sign(loads.mean() - loads)
        moved = moved - moved.mean()
    found = [_order(of + bias, k) for of in scores]
    return found, [_share(of.gather(-1, one)) for of, one in zip(scores, found)], moved


def within_the_step(scores, bias, k, rate, axis):
    """The second micro-batch already chooses by the moved bias."""
    chosen, weights = [], []
    for of in scores:
        order, weight, bias = (
            x[0] if isinstance(x, list) else x for x in solution([of], bias, k, rate, axis)
        )
        chosen.append(order)
        weights.append(weight)
    return chosen, weights, bias  # fmt: skip


def last_micro_batch_alone(scores, bias, k, rate, axis):
    """Counts are overwritten."""
    chosen, weights, _ = _answer(scores, bias, k, rate, axis, summed=lambda loads, axis: loads)
    loads = chosen[-1].flatten().bincount(minlength=len(bias))
    loads = comm.all_reduce(loads, axis, "loads").double()
    moved = bias + rate * torch.sign(loads.mean() - loads)
    return chosen, weights, moved - moved.mean()


def loads_without_the_bias(scores, bias, k, rate, axis):
    def count(of, bias, chosen):
        return _order(of, k).flatten().bincount(minlength=len(bias))

    return _answer(scores, bias, k, rate, axis, count=count)


def first_choices(scores, bias, k, rate, axis):
    def count(of, bias, chosen):
        return chosen[:, 0].bincount(minlength=len(bias))

    return _answer(scores, bias, k, rate, axis, count=count)


def sums_scores(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, count=lambda of, bias, chosen: of.sum(0))


def begins_at_zero(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, start=torch.zeros_like)


def never_moves(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, finish=lambda moved: bias)


def no_zero_of_sign(scores, bias, k, rate, axis):
    """A load that is the mean goes up."""
    return _answer(
        scores, bias, k, rate, axis, by=lambda loads: 1.0 - 2.0 * (loads > loads.mean()).double()
    )


def only_down(scores, bias, k, rate, axis):
    return _answer(
        scores, bias, k, rate, axis, by=lambda loads: -1.0 * (loads > loads.mean()).double()
    )


def the_median(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, by=lambda loads: torch.sign(loads.median() - loads))


def not_renormalised(scores, bias, k, rate, axis):
    def weigh(of, bias, chosen):
        return of.gather(-1, chosen)

    return _answer(scores, bias, k, rate, axis, weigh=weigh)


def softmax(scores, bias, k, rate, axis):
    def weigh(of, bias, chosen):
        return of.gather(-1, chosen).softmax(-1)

    return _answer(scores, bias, k, rate, axis, weigh=weigh)


def shares_of_all(scores, bias, k, rate, axis):
    def weigh(of, bias, chosen):
        return of.gather(-1, chosen) / of.sum(-1, keepdim=True).clamp(min=1e-20)

    return _answer(scores, bias, k, rate, axis, weigh=weigh)


def divides_by_zero(scores, bias, k, rate, axis):
    def weigh(of, bias, chosen):
        own = of.gather(-1, chosen)
        return own / own.sum(-1, keepdim=True)

    return _answer(scores, bias, k, rate, axis, weigh=weigh)


def weights_by_score(scores, bias, k, rate, axis):
    def weigh(of, bias, chosen):
        return _share(of.gather(-1, chosen).sort(dim=-1, descending=True).values)

    return _answer(scores, bias, k, rate, axis, weigh=weigh)


def by_number(scores, bias, k, rate, axis):
    return _answer(
        scores, bias, k, rate, axis, order=lambda wanted, k: _order(wanted, k).sort(-1).values
    )


def ties_to_the_last(scores, bias, k, rate, axis):
    def order(wanted, k):
        return wanted.shape[-1] - 1 - _order(wanted.flip(-1), k)

    return _answer(scores, bias, k, rate, axis, order=order)


def over_the_world(scores, bias, k, rate, axis):
    return solution(scores, bias, k, rate, "world")


def sends_the_scores(scores, bias, k, rate, axis):
    comm.all_gather(bias, axis, "biases")
    return solution(scores, bias, k, rate, axis)


def averages_the_biases(scores, bias, k, rate, axis):
    """Each replica moves its own, and they are averaged."""
    chosen, weights, _ = _answer(scores, bias, k, rate, axis, summed=lambda loads, axis: loads)
    loads = sum(one.flatten().bincount(minlength=len(bias)) for one in chosen).double()
    moved = bias + rate * torch.sign(loads.mean() - loads)
    moved = comm.all_reduce(moved - moved.mean(), axis, "bias") / comm.mesh().size(axis)
    return chosen, weights, moved


def in_place(scores, bias, k, rate, axis):
    chosen, weights, moved = solution(scores, bias, k, rate, axis)
    bias.copy_(moved)
    return chosen, weights, bias


def a_bias_for_each_token(scores, bias, k, rate, axis):
    chosen, weights, moved = solution(scores, bias, k, rate, axis)
    return chosen, weights, moved.expand(2, -1)


def one_tensor(scores, bias, k, rate, axis):
    chosen, weights, moved = solution(scores, bias, k, rate, axis)
    return torch.cat(chosen), torch.cat(weights), moved


def softmax_of_scores(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, wanted=lambda of, bias: of.softmax(-1) + bias)


def one_expert_more(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, order=lambda wanted, k: _order(wanted, k + 1))


def moved_before_the_choice(scores, bias, k, rate, axis):
    """This step already chooses by the bias of the next."""
    moved = solution(scores, bias, k, rate, axis)[2]
    chosen = [_order(of + moved, k) for of in scores]
    return chosen, [_share(of.gather(-1, one)) for of, one in zip(scores, chosen)], moved


def the_largest_of_the_replicas(scores, bias, k, rate, axis):
    return _answer(
        scores, bias, k, rate, axis,
        summed=lambda loads, axis: comm.all_reduce(loads, axis, "loads", op="max"),
    )  # fmt: skip


def twice_the_rate(scores, bias, k, rate, axis):
    return solution(scores, bias, k, 2 * rate, axis)


def kept_within_one(scores, bias, k, rate, axis):
    chosen, weights, moved = solution(scores, bias, k, rate, axis)
    return chosen, weights, moved.clamp(-1, 1)


def a_loss_in_its_place(scores, bias, k, rate, axis):
    """Softmax of the loads, so that it is smooth."""
    return _answer(scores, bias, k, rate, axis, by=lambda loads: torch.tanh(loads.mean() - loads))


def in_fp32(scores, bias, k, rate, axis):
    chosen, weights, moved = solution(scores, bias, k, rate, axis)
    return chosen, weights, moved.float()


def a_bias_only(scores, bias, k, rate, axis):
    return solution(scores, bias, k, rate, axis)[2]


def the_change_alone(scores, bias, k, rate, axis):
    chosen, weights, moved = solution(scores, bias, k, rate, axis)
    return chosen, weights, moved - bias


def mean_of_the_move(scores, bias, k, rate, axis):
    """The same while the bias that comes in has a mean of zero."""

    def by(loads):
        sign = torch.sign(loads.mean() - loads)
        return sign - sign.mean()

    return _answer(scores, bias, k, rate, axis, by=by, finish=lambda moved: moved)


def shares_of_micro_batches(scores, bias, k, rate, axis):
    def count(of, bias, chosen):
        return chosen.flatten().bincount(minlength=len(bias)).double() / max(len(of), 1)

    return _answer(scores, bias, k, rate, axis, count=count)


def a_whole_mean(scores, bias, k, rate, axis):
    """`//` where `/` is meant."""
    return _answer(
        scores, bias, k, rate, axis, by=lambda loads: torch.sign(loads.sum() // len(loads) - loads)
    )


def sends_nothing(scores, bias, k, rate, axis):
    return _answer(scores, bias, k, rate, axis, summed=lambda loads, axis: loads)


def without_empty_ones(scores, bias, k, rate, axis):
    chosen, weights, moved = solution(scores, bias, k, rate, axis)
    return [of for of in chosen if len(of)], [of for of in weights if len(of)], moved


MUTANTS = {
    bias_in_the_weights: "moves the choice only",
    by_its_own_loads: "replicas would choose by different biases",
    chooses_without_it: "chosen by the scores alone",
    subtracts_it: "chosen by scores minus bias",
    multiplies_by_it: "chosen by scores times bias",
    moves_the_wrong_way: "it moved the wrong way",
    moves_by_the_distance: "it moved by the distance to the mean",
    keeps_the_mean: "the mean was not taken off",
    once_a_micro_batch: "it moved once for each micro-batch",
    within_the_step: "micro-batch",
    last_micro_batch_alone: "the loads of the last micro-batch alone",
    loads_without_the_bias: "the loads of the choice without the bias",
    first_choices: "it moved by first choices alone",
    sums_scores: "it moved by sums of scores",
    begins_at_zero: "it is the change alone",
    never_moves: "it did not move",
    no_zero_of_sign: "sign(0) is 0",
    only_down: "those below do not raise it",
    the_median: "compared with their median",
    not_renormalised: "not renormalised",
    softmax: "a softmax was taken",
    shares_of_all: "shares of all experts' scores",
    divides_by_zero: "not finite",
    weights_by_score: "in the order of the scores",
    by_number: "the right experts in another order",
    ties_to_the_last: "of equal ones the lower number goes first",
    over_the_world: "it communicates over the ranks",
    sends_the_scores: "it uses all-gathers",
    averages_the_biases: "replicas moved their own biases",
    in_place: "it changed its input `bias`",
    a_bias_for_each_token: "has the shape",
    one_tensor: "asked for is a list",
    softmax_of_scores: "score + bias",
    one_expert_more: "has the shape",
    moved_before_the_choice: "the bias of the next step",
    the_largest_of_the_replicas: "the largest of the replicas",
    twice_the_rate: "bias is wrong",
    kept_within_one: "bias is wrong",
    a_loss_in_its_place: "bias is wrong",
    in_fp32: "torch.float32",
    a_bias_only: "it returns one thing",
    the_change_alone: "the change alone",
    mean_of_the_move: "the mean of the move alone was taken off",
    shares_of_micro_batches: "add up counts",
    a_whole_mean: "rounded to a whole number",
    sends_nothing: "of the others' a rank is only told",
    without_empty_ones: "experts is a list of 0",
}


def without_sorting(scores, bias, k, rate, axis):
    """The rank of an expert is how many stand before it."""
    chosen, weights = [], []
    packed = torch.zeros(len(bias))
    number = torch.arange(len(bias))
    for of in scores:
        wanted = of + bias
        a, b = wanted.unsqueeze(-1), wanted.unsqueeze(-2)
        ahead = (b > a) | ((b == a) & (number < number.unsqueeze(-1)))
        rank = ahead.sum(-1)
        one = torch.stack([(rank == nth).long().argmax(-1) for nth in range(k)], -1)
        asked = torch.zeros_like(of).scatter(-1, one, 1.0)
        packed += asked.sum(0).float()
        chosen.append(one)
        weights.append(
            (of * asked / (of * asked).sum(-1, keepdim=True).clamp(min=1e-20)).gather(-1, one)
        )
    import torch.distributed as dist

    dist.all_reduce(packed, group=comm.mesh().group(axis))
    total = packed.sum()
    over, under = packed * len(bias) > total, packed * len(bias) < total
    step = rate * (under.to(bias.dtype) - over.to(bias.dtype))
    return tuple(chosen), tuple(weights), bias + step - (bias + step).sum() / len(bias)  # fmt: skip


def token_by_token(scores, bias, k, rate, axis):
    loads = torch.zeros(len(bias), dtype=torch.int32)
    chosen, weights = [], []
    for of in scores:
        one = torch.zeros(len(of), k, dtype=torch.int64)
        for t, row in enumerate(of.tolist()):
            wanted = [s + b for s, b in zip(row, bias.tolist())]
            best = sorted(range(len(bias)), key=lambda e: (-wanted[e], e))[:k]
            one[t] = torch.tensor(best)
            for e in best:
                loads[e] += 1
        chosen.append(one)
        weights.append(_share(of.gather(-1, one)))
    loads = comm.all_reduce(loads, axis, "loads")
    moved = bias + rate * (loads.double().mean() - loads).sign()
    return chosen, weights, moved - moved.mean()


RIGHT = (without_sorting, token_by_token)
