"""Wrong answers to 4d.tp.vocab-loss, what each author must be told, and right ones."""

import torch
import torch.nn.functional as F

from picolab import comm
from picolab.chapters.c01_4d_basics.vocab_loss import IGNORED, solution


def _columns(logits, targets, start):
    """Which column to look at, whether it is this rank's, and whether the token is counted."""
    mine = (targets >= start) & (targets < start + logits.shape[1])
    return torch.where(mine, targets - start, 0).unsqueeze(1), mine, targets != IGNORED


def _shifted(logits):
    return logits - comm.all_reduce(logits.amax(1), "tp", "maximum", op="max").unsqueeze(1)


def _at(x, column):
    return x.gather(1, column).squeeze(1)


def _summed(x, label, axis="tp"):
    return comm.all_reduce(torch.stack((x.exp().sum(1), label)), axis, "sums")


def _gradient(x, total, column, mine, counted):
    onehot = torch.zeros_like(x).scatter_(1, column, mine.to(x.dtype).unsqueeze(1))
    return (x.exp() / total.unsqueeze(1) - onehot) * counted.unsqueeze(1)


def _both(x, column, mine, counted, label, axis="tp"):
    """Right, if what it is given is."""
    total, label = _summed(x, label, axis)
    loss = ((total.log() - label) * counted).sum()
    return loss, _gradient(x, total, column, mine, counted)


def own_maximum(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = logits - logits.amax(1, keepdim=True)
    return _both(x, column, mine, counted, _at(x, column) * mine)


def own_maximum_put_back(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    largest = logits.amax(1)
    x = logits - largest.unsqueeze(1)
    total, label = _summed(x, _at(logits, column) * mine)
    loss = ((total.log() + largest - label) * counted).sum()
    return loss, _gradient(x, total, column, mine, counted)


def no_maximum(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    return _both(logits, column, mine, counted, _at(logits, column) * mine)


def one_maximum_for_all_tokens(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = logits - comm.all_reduce(logits.max(), "tp", "maximum", op="max")
    return _both(x, column, mine, counted, _at(x, column) * mine)


def maximum_in_one_term(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    return _both(_shifted(logits), column, mine, counted, _at(logits, column) * mine)


def does_not_mask(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    return _both(x, column, mine, counted, _at(x, column))


def index_is_clamped(logits, targets, start):
    _, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    column = (targets - start).clamp(0, x.shape[1] - 1).unsqueeze(1)
    return _both(x, column, mine, counted, _at(x, column))


def index_wraps_round(logits, targets, start):
    _, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    column = ((targets - start) % x.shape[1]).unsqueeze(1)
    return _both(x, column, mine, counted, _at(x, column))


def index_is_not_shifted(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    return _both(x, column, mine, counted, x[torch.arange(len(x)), targets.clamp(min=0)] * mine)


def last_one_is_the_neighbours(logits, targets, start):
    mine = (targets >= start) & (targets <= start + logits.shape[1])
    column = torch.where(mine, targets - start, 0).unsqueeze(1)
    x = _shifted(logits)
    return _both(x, column, mine, targets != IGNORED, _at(x, column) * mine)


def ignored_tokens_count(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    return _both(x, column, mine, torch.ones_like(counted), _at(x, column) * mine)


def ignored_tokens_have_a_gradient(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    total, label = _summed(x, _at(x, column) * mine)
    everywhere = torch.ones_like(counted)
    loss = ((total.log() - label) * counted).sum()
    return loss, _gradient(x, total, column, mine, everywhere)


def mean(logits, targets, start):
    loss, dlogits = solution(logits, targets, start)
    count = (targets != IGNORED).sum()
    return loss / count, dlogits / count


def sum_over_its_own_share(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    label = comm.all_reduce(_at(x, column) * mine, "tp", "label")
    total = x.exp().sum(1)
    return ((total.log() - label) * counted).sum(), _gradient(x, total, column, mine, counted)


def target_stays_on_its_rank(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    total = comm.all_reduce(x.exp().sum(1), "tp", "sum")
    loss = ((total.log() - _at(x, column) * mine) * counted).sum()
    return loss, _gradient(x, total, column, mine, counted)


def softmax_of_its_share(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    loss, _ = solution(logits, targets, start)
    return loss, _gradient(logits, logits.exp().sum(1), column, mine, counted)


def softmax_alone(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    total, label = _summed(x, _at(x, column) * mine)
    loss = ((total.log() - label) * counted).sum()
    return loss, _gradient(x, total, column, torch.zeros_like(mine), counted)


def one_off_on_every_rank(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    total, label = _summed(x, _at(x, column) * mine)
    loss = ((total.log() - label) * counted).sum()
    return loss, _gradient(x, total, column, torch.ones_like(mine), counted)


def sums_over_the_world(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    return _both(x, column, mine, counted, _at(x, column) * mine, "world")


def gathers_the_logits(logits, targets, start):
    whole = comm.all_gather(logits, "tp", "logits", dim=1).requires_grad_()
    loss = F.cross_entropy(whole, targets, ignore_index=IGNORED, reduction="sum")
    loss.backward()
    return loss.detach(), whole.grad[:, start : start + logits.shape[1]]


def gathers_by_all_reduce(logits, targets, start):
    n = comm.mesh().size("tp")
    whole = logits.new_zeros(len(logits), n * logits.shape[1])
    whole[:, start : start + logits.shape[1]] = logits
    comm.all_reduce(whole, "tp", "logits")
    whole.requires_grad_()
    loss = F.cross_entropy(whole, targets, ignore_index=IGNORED, reduction="sum")
    loss.backward()
    return loss.detach(), whole.grad[:, start : start + logits.shape[1]]


def exp_in_place(logits, targets, start):
    result = solution(logits, targets, start)
    logits.exp_()
    return result


def calls_the_packages(logits, targets, start):
    from picolab.parallel.vocabulary import VocabularyParallelLoss

    x = logits.requires_grad_()
    loss = VocabularyParallelLoss(8, start, start + x.shape[1])(x, targets)
    loss.backward()
    return loss.detach(), x.grad


def gathers_objects(logits, targets, start):
    import torch.distributed as dist

    m = comm.mesh()
    shares = [None] * m.size("tp")
    dist.all_gather_object(shares, logits, group=m.group("tp"))
    whole = torch.cat(shares, 1).requires_grad_()
    loss = F.cross_entropy(whole, targets, ignore_index=IGNORED, reduction="sum")
    loss.backward()
    return loss.detach(), whole.grad[:, start : start + logits.shape[1]]


def begins_at_rank_times_width(logits, targets, start):
    return solution(logits, targets, comm.mesh().rank("tp") * logits.shape[1])


def takes_the_token_before(logits, targets, start):
    column, mine, _ = _columns(logits, targets - 1, start)
    x = _shifted(logits)
    return _both(x, column, mine, targets != IGNORED, _at(x, column) * mine)


def takes_the_token_behind(logits, targets, start):
    column, mine, _ = _columns(logits, targets + 1, start)
    x = _shifted(logits)
    return _both(x, column, mine, targets != IGNORED, _at(x, column) * mine)


def takes_one_off_beside_the_target(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    loss, _ = solution(logits, targets, start)
    x = _shifted(logits)
    total = comm.all_reduce(x.exp().sum(1), "tp", "sum")
    beside = (column + 1) % x.shape[1]
    return loss, _gradient(x, total, beside, mine, counted)


def has_the_sign_wrong(logits, targets, start):
    loss, dlogits = solution(logits, targets, start)
    return -loss, -dlogits


def divides_the_gradient_alone(logits, targets, start):
    loss, dlogits = solution(logits, targets, start)
    return loss, dlogits / (targets != IGNORED).sum().clamp(min=1)


def works_in_fp32(logits, targets, start):
    return solution(logits.float(), targets, start)


def adds_an_epsilon(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    x = _shifted(logits)
    total, label = _summed(x, _at(x, column) * mine)
    loss = (((total + 1e-6).log() - label) * counted).sum()
    return loss, _gradient(x, total, column, mine, counted)


def adds_up_local_losses(logits, targets, start):
    column, mine, counted = _columns(logits, targets, start)
    logp = logits.log_softmax(1)
    loss = comm.all_reduce(-(_at(logp, column) * mine * counted).sum(), "tp", "losses")
    return loss, _gradient(logits, logits.exp().sum(1), column, mine, counted)


def sums_over_the_replicas(logits, targets, start):
    loss, dlogits = solution(logits, targets, start)
    return comm.all_reduce(loss, "dp", "loss"), dlogits


def returns_the_gradient_first(logits, targets, start):
    return solution(logits, targets, start)[::-1]


def keeps_a_dim(logits, targets, start):
    loss, dlogits = solution(logits, targets, start)
    return loss.unsqueeze(0), dlogits


def sums_the_labels_at_once(logits, targets, start):
    import torch.distributed as dist

    group = comm.mesh().group("tp")
    inside, valid = (targets >= start) & (targets < start + logits.shape[1]), targets.ge(0)
    top = logits.max(1).values
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - top[:, None]
    label = sum((shifted[i, targets[i] - start] for i in range(len(targets)) if inside[i]), 0.0)
    sums = torch.cat((shifted.exp().sum(1), torch.as_tensor(label, dtype=logits.dtype).view(1)))
    dist.all_reduce(sums, group=group)
    loss = sums[:-1].log()[valid].sum() - sums[-1]
    gradient = shifted.exp() / sums[:-1, None]
    gradient[inside.nonzero().squeeze(1), targets[inside] - start] -= 1
    gradient[~valid] = 0
    return loss, gradient


def compares_with_all_tokens(logits, targets, start):
    tokens = torch.arange(start, start + logits.shape[1])
    hot = (targets[:, None] == tokens).double()
    m = comm.all_reduce(logits.amax(1), "tp", "m", op="max")[:, None]
    total = comm.all_reduce((logits - m).exp().sum(1), "tp", "z")[:, None]
    label = comm.all_reduce((logits * hot).sum(1), "tp", "label")[:, None]
    keep = (targets != IGNORED)[:, None]
    loss = torch.where(keep, m + total.log() - label, 0.0).sum()
    return loss, ((logits - m - total.log()).exp() - hot) * keep


MUTANTS = {
    own_maximum: "each rank subtracted a maximum of its own",
    own_maximum_put_back: "each rank subtracted a maximum of its own",
    no_maximum: "Subtract from each token's logits their own maximum first",
    one_maximum_for_all_tokens: "is log(0)",
    maximum_in_one_term: "the maximum is subtracted in one of its two terms only",
    does_not_mask: "every rank added a logit for each target",
    index_is_clamped: "every rank added a logit for each target",
    index_wraps_round: "every rank added a logit for each target",
    index_is_not_shifted: "is out of bounds for dimension 1 with size 4",
    last_one_is_the_neighbours: "index 4 is out of bounds",
    ignored_tokens_count: "tokens with the label -100 are counted",
    ignored_tokens_have_a_gradient: "tokens with the label -100 have a gradient",
    mean: "it is the mean over the tokens",
    sum_over_its_own_share: "the sum of exponentials is over this rank's share only",
    target_stays_on_its_rank: "where another rank has the target, its logit is missing",
    softmax_of_its_share: "it is a softmax over this rank's share",
    softmax_alone: "it is the softmax alone",
    one_off_on_every_rank: "1 is taken off on every rank",
    sums_over_the_world: "it communicates over the ranks (0, 1, 2, 3)",
    gathers_the_logits: "it uses all-gathers; allowed are all-reduces",
    gathers_by_all_reduce: "its all-reduces carry",
    exp_in_place: "it changed its input `logits`",
    calls_the_packages: "is what this exercise asks you to write",
    gathers_objects: "it uses `all_gather_object`",
    begins_at_rank_times_width: "do not begin at r times its own width",
    takes_the_token_before: "it takes the logit of the token before the target",
    takes_the_token_behind: "it takes the logit of the token behind the target",
    takes_one_off_beside_the_target: "1 is taken off beside the target",
    has_the_sign_wrong: "its sign is wrong",
    divides_the_gradient_alone: "it is that of the mean; asked for is that of the sum",
    works_in_fp32: "the loss is in torch.float32",
    adds_an_epsilon: "or an epsilon added",
    adds_up_local_losses: "the softmax is over each rank's share",
    sums_over_the_replicas: "it communicates over the ranks (0, 2)",
    returns_the_gradient_first: "it returns dlogits first",
    keeps_a_dim: "its numbers are right, and only the shape is not",
}
RIGHT = (sums_the_labels_at_once, compares_with_all_tokens)
