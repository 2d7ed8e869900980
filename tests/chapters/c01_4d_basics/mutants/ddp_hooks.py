"""Wrong answers to 4d.dp.hooks, what each author must be told, and right ones."""

import torch

import picolab as pico


def _ddp(parameters, axis, bucket_bytes, *, mean=1, wait=False, ordered=True, again=True, **how):
    """DDP with one thing wrong."""
    n = pico.comm.mesh().size(axis)
    sizes = [p.numel() * p.element_size() for p in parameters]
    groups = how.get("groups") or pico.costs.buckets(sizes, bucket_bytes)
    buckets = [[parameters[i] for i in group] for group in groups]
    bucket_of = {p: k for k, bucket in enumerate(buckets) for p in bucket}
    missing, started, under_way = [len(bucket) for bucket in buckets], set(), []

    def start(k):
        started.add(k)
        for p in buckets[k]:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        what = [p.detach() if how.get("weights") else p.grad for p in buckets[k]]
        flat = torch.cat([one.flatten() for one in what])
        sent = pico.comm.all_reduce(flat, axis, "bucket", async_op=not wait)
        under_way.append((k, sent))

    def ready(p):
        k = bucket_of[p]
        missing[k] -= 1
        if how.get("lazy"):
            return
        if not ordered:
            if missing[k] == 0:
                start(k)
            return
        while len(started) < len(buckets) and missing[len(started)] <= 0:
            start(len(started))

    def finish():
        for k in range(len(buckets)):
            if k not in started and not (how.get("full_only") and missing[k]):
                start(k)
        for k, sent in under_way:
            flat = sent if wait else sent.wait()
            for p, piece in zip(buckets[k], flat.split([p.numel() for p in buckets[k]])):
                if not how.get("keeps"):
                    p.grad.copy_(piece.view_as(p) / n**mean)
        under_way.clear()
        if again:
            started.clear()
            missing[:] = [len(bucket) for bucket in buckets]

    for p in parameters:
        p.register_post_accumulate_grad_hook(ready)
    return finish


def sums_instead_of_averaging(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, mean=0)


def starts_all_in_finish(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, lazy=True)


def divides_twice(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, mean=2)


def waits_in_the_hook(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, wait=True)


def starts_what_is_full_first(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, ordered=False)


def works_for_one_step(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, again=False)


def one_bucket_for_each(parameters, axis, bucket_bytes):
    groups = [[i] for i in reversed(range(len(parameters)))]
    return _ddp(parameters, axis, bucket_bytes, groups=groups)


def one_bucket_for_all(parameters, axis, bucket_bytes):
    groups = [list(reversed(range(len(parameters))))]
    return _ddp(parameters, axis, bucket_bytes, groups=groups)


def reduces_the_argument(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, weights=True)


def does_not_write_back(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, keeps=True)


def reduces_the_weights_in_place(parameters, axis, bucket_bytes):
    def ready(p):
        pico.comm.all_reduce(p.data, axis, "the argument")

    for p in parameters:
        p.register_post_accumulate_grad_hook(ready)
    return lambda: None


def never_sends_what_is_not_full(parameters, axis, bucket_bytes):
    return _ddp(parameters, axis, bucket_bytes, full_only=True)


def returns_nothing(parameters, axis, bucket_bytes):
    _ddp(parameters, axis, bucket_bytes)


def over_the_whole_world(parameters, axis, bucket_bytes):
    return _ddp(parameters, "world", bucket_bytes)


def keeps_bins(parameters, axis, bucket_bytes):
    n = pico.comm.mesh().size(axis)

    class Bin:
        def __init__(self, members):
            self.members, self.there, self.work = [parameters[i] for i in members], 0, None

        def fire(self):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.members]
            flat = torch.cat([part.reshape(-1) for part in parts])
            self.work = pico.comm.all_reduce(flat, axis, "bin", async_op=True)

        def land(self):
            flat, at = self.work.wait() / n, 0
            for p in self.members:
                p.grad = flat[at : at + p.numel()].view_as(p)
                at += p.numel()
            self.there, self.work = 0, None

    sizes = [p.numel() * p.element_size() for p in parameters]
    bins = [Bin(members) for members in pico.costs.buckets(sizes, bucket_bytes)]
    home = {p: one for one in bins for p in one.members}

    def hook(p):
        home[p].there += 1
        for one in bins:
            if one.work is None:
                if one.there < len(one.members):
                    break
                one.fire()

    def finish():
        for one in bins:
            if one.work is None:
                one.fire()
        for one in bins:
            one.land()

    for p in parameters:
        p.register_post_accumulate_grad_hook(hook)
    return finish


def divides_before_it_sends(parameters, axis, bucket_bytes):
    n, left, sent = pico.comm.mesh().size(axis), [], []
    sizes = [p.numel() * p.element_size() for p in parameters]
    groups = [[parameters[i] for i in g] for g in pico.costs.buckets(sizes, bucket_bytes)]

    def go(last):
        while len(sent) < len(groups):
            group = groups[len(sent)]
            if not last and any(all(p is not q for q in left) for p in group):
                return
            parts = [torch.zeros_like(p) if p.grad is None else p.grad / n for p in group]
            flat = torch.cat([part.flatten() for part in parts])
            sent.append(pico.comm.all_reduce(flat, axis, "mean of a bucket", async_op=True))

    def hook(p):
        left.append(p)
        go(last=False)

    def finish():
        go(last=True)
        for group, work in zip(groups, sent):
            for p, part in zip(group, work.wait().split([p.numel() for p in group])):
                p.grad = part.view_as(p)
        left.clear(), sent.clear()

    for p in parameters:
        p.register_post_accumulate_grad_hook(hook)
    return finish


MUTANTS = {
    starts_all_in_finish: "was not started before the next gradient came",
    starts_what_is_full_first: "another parameter's was added",
    sums_instead_of_averaging: "it is the sum, and asked for is the mean",
    divides_twice: "divided by the number of ranks twice",
    waits_in_the_hook: "waited for while backward is still going on",
    works_for_one_step: "in the second step",
    one_bucket_for_each: "it takes 12 all-reduces, and the budget is 6",
    one_bucket_for_all: "had all its gradients and was not started",
    reduces_the_argument: "it is the mean of the weights",
    does_not_write_back: "it is this rank's own: was its bucket sent, and what came back written",
    reduces_the_weights_in_place: "the weights are changed",
    never_sends_what_is_not_full: "was its bucket sent",
    returns_nothing: "my_ddp returns no function",
    over_the_whole_world: "it communicates over the ranks",
}

RIGHT = (keeps_bins, divides_before_it_sends)
