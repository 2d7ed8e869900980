"""Wrong answers to interview.moe.global-loss, what each author must be told, and right ones."""

import torch

from picolab import comm
from picolab.chapters.c02_moe.interview_global_loss import solution


def _sum(counts, axis):
    return comm.all_reduce(counts, axis, "choices")


def stays_at_home(p, chosen, each, axis):
    counts = chosen.sum(0).double()
    tokens = max(1, len(p))
    return len(counts) * (counts / (tokens * each) * p.sum(0)).sum() / tokens


def exchanges_only_tokens(p, chosen, each, axis):
    tokens = _sum(torch.tensor([len(p)]), axis)
    f = chosen.sum(0).double() / max(1, len(p) * each)
    return len(f) * (f * p.sum(0)).sum() / tokens.squeeze()


def takes_its_own_mean(p, chosen, each, axis):
    counts = _sum(chosen.sum(0), axis).double()
    return len(counts) * (counts / counts.sum() * p.sum(0)).sum() / max(1, len(p))


def forgets_the_experts(p, chosen, each, axis):
    return solution(p, chosen, each, axis) / p.shape[1]


def lets_f_add_up_to_the_choices(p, chosen, each, axis):
    return each * solution(p, chosen, each, axis)


def averages(p, chosen, each, axis):
    return solution(p, chosen, each, axis) / comm.mesh().size(axis)


def gives_the_whole(p, chosen, each, axis):
    both = _sum(torch.cat((chosen.sum(0).double(), p.detach().sum(0))), axis)
    counts, sums = both.chunk(2)
    tokens = counts.sum() / each
    return len(counts) * (counts / counts.sum() * (sums + 0 * p.sum(0))).sum() / tokens


def counts_softly(p, chosen, each, axis):
    both = _sum(torch.cat((p.detach().sum(0), p.new_full((1,), len(p)))), axis)
    f, tokens = both[:-1] / both[-1], both[-1]
    return len(f) * (f * p.sum(0)).sum() / tokens


def takes_ranks_to_be_alike(p, chosen, each, axis):
    counts = _sum(chosen.sum(0), axis).double()
    tokens = max(1, len(p) * comm.mesh().size(axis))
    return len(counts) * (counts / (tokens * each) * p.sum(0)).sum() / tokens


def cuts_it_off(p, chosen, each, axis):
    return solution(p, chosen, each, axis).detach()


def takes_an_item(p, chosen, each, axis):
    return torch.tensor(solution(p, chosen, each, axis).item(), dtype=p.dtype)


def doubles_the_gradient_by_the_ranks(p, chosen, each, axis):
    loss = solution(p, chosen, each, axis)
    n = comm.mesh().size(axis)
    return n * loss - (n - 1) * loss.detach()


def gathers_counts(p, chosen, each, axis):
    everyones = comm.all_gather(chosen.sum(0).unsqueeze(0), axis, "choices")
    counts = everyones.sum(0).double()
    return len(counts) * (counts / counts.sum() * p.sum(0)).sum() * each / counts.sum()


def exchanges_twice(p, chosen, each, axis):
    counts = _sum(chosen.sum(0), axis).double()
    tokens = _sum(torch.tensor([len(p)]), axis).squeeze()
    return len(counts) * (counts / counts.sum() * p.sum(0)).sum() / tokens


def sends_more(p, chosen, each, axis):
    counts = _sum(torch.stack([chosen.sum(0)] * 3), axis)[0].double()
    return len(counts) * (counts / counts.sum() * p.sum(0)).sum() * each / counts.sum()


def asks_the_world(p, chosen, each, axis):
    return solution(p, chosen, each, "world")


def works_in_fp32(p, chosen, each, axis):
    return solution(p.float(), chosen, each, axis)


def returns_a_row(p, chosen, each, axis):
    return solution(p, chosen, each, axis).view(1)


def returns_nothing(p, chosen, each, axis):
    solution(p, chosen, each, axis)


def empties_the_mask(p, chosen, each, axis):
    loss = solution(p, chosen, each, axis)
    chosen.zero_()
    return loss


def gathers_objects(p, chosen, each, axis):
    import torch.distributed as dist

    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, chosen.sum(0))
    return solution(p, chosen, each, axis)


def sends_tokens_too(p, chosen, each, axis):
    both = comm.all_reduce(
        torch.cat((chosen.sum(0), torch.tensor([len(chosen)]))), axis, "counts and tokens"
    ).double()
    counts, tokens = both[:-1], both[-1]
    return torch.einsum("e,te->", counts, p) * p.shape[1] / (each * tokens * tokens)


def counts_in_floats(p, chosen, each, axis):
    counts = chosen.double().sum(0)
    counts = comm.all_reduce(counts, axis, "counts", async_op=True).wait()
    weights = p.shape[1] * each * counts / counts.sum() ** 2
    return (p * weights).sum()


MUTANTS = {
    stays_at_home: "it is the loss of this rank's own tokens",
    takes_its_own_mean: "divided by this rank's tokens",
    exchanges_only_tokens: "the shares of choices are this rank's own",
    forgets_the_experts: "the factor E, the number of experts, is missing",
    lets_f_add_up_to_the_choices: "it is a share of all choices and adds up to 1",
    averages: "it is divided by the number of ranks",
    gives_the_whole: "it is the loss of all tokens",
    counts_softly: "f is made of probabilities",
    takes_ranks_to_be_alike: "ranks have different numbers",
    cuts_it_off: "cut off from the probabilities",
    takes_an_item: "cut off from the probabilities",
    doubles_the_gradient_by_the_ranks: "it is the ranks' number times too large",
    gathers_counts: "it uses all-gathers",
    exchanges_twice: "it takes 2 all-reduces",
    sends_more: "its all-reduces carry",
    asks_the_world: "it communicates over the ranks",
    works_in_fp32: "is in torch.float32",
    returns_a_row: "has the shape (1,)",
    returns_nothing: "is None",
    empties_the_mask: "it changed its input `chosen`",
    gathers_objects: "it uses `all_gather_object`",
}
RIGHT = (sends_tokens_too, counts_in_floats)
