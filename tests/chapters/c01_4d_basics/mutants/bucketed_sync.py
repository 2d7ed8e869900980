"""Wrong answers to 4d.dp.buckets, what each author must be told, and right ones."""

import torch

from picolab import comm, costs


def _sync(parameters, axis, bucket_bytes, order=lambda buckets: buckets, back=True):
    """The solution, with places to go wrong in."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    under_way = []
    for bucket in order(costs.buckets(sizes, bucket_bytes)):
        grads = [parameters[index].grad for index in bucket]
        flat = torch.cat([grad.view(-1) for grad in grads])
        under_way.append((comm.all_reduce(flat, axis, "bucket", async_op=True), grads))
    for pending, grads in under_way:
        pieces = pending.wait().split([grad.numel() for grad in grads])
        for grad, piece in zip(grads, pieces):
            if back:
                grad.copy_(piece.view_as(grad))


def one_all_reduce_a_gradient(parameters, axis, bucket_bytes):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        comm.all_reduce(parameter.grad, axis, "gradient")


def averages(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes)
    for parameter in parameters:
        parameter.grad /= comm.mesh().size(axis)


def sum_is_not_written_back(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes, back=False)


def one_bucket_for_all(parameters, axis, bucket_bytes):
    _sync(parameters, axis, 2**30)


def bucket_bytes_taken_for_numbers(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes * parameters[0].element_size())


def skips_what_was_not_used(parameters, axis, bucket_bytes):
    _sync([p for p in parameters if p.grad is not None], axis, bucket_bytes)


def fills_buckets_as_gradients_arrived(parameters, axis, bucket_bytes):
    if comm.mesh().rank(axis) == 1:
        parameters = [parameters[index] for index in (0, 1, 3, 4, 2, 5)]
    _sync(parameters, axis, bucket_bytes)


def last_bucket_is_never_started(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes, order=lambda buckets: buckets[:-1])


def sums_the_weights(parameters, axis, bucket_bytes):
    flat = torch.cat([p.data.view(-1) for p in parameters])  # a hook's argument: the parameter
    comm.all_reduce(flat, axis, "what the hook was given")
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.data.copy_(piece.view_as(parameter))


def waits_for_each(parameters, axis, bucket_bytes):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    for bucket in costs.buckets(sizes, bucket_bytes):
        grads = [parameters[index].grad for index in bucket]
        flat = torch.cat([grad.view(-1) for grad in grads])
        comm.all_reduce(flat, axis, "bucket")
        for grad, piece in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(piece.view_as(grad))


def waits_for_none(parameters, axis, bucket_bytes):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    for bucket in costs.buckets(sizes, bucket_bytes):
        flat = torch.cat([parameters[index].grad.view(-1) for index in bucket])
        comm.all_reduce(flat, axis, "bucket", async_op=True)
        for index, piece in zip(bucket, flat.split([parameters[i].numel() for i in bucket])):
            parameters[index].grad = piece.view_as(parameters[index])


def takes_all_ranks(parameters, axis, bucket_bytes):
    _sync(parameters, "world", bucket_bytes)


def gathers_objects(parameters, axis, bucket_bytes):
    import torch.distributed as dist

    everyones = [None] * comm.mesh().size(axis)
    dist.all_gather_object(everyones, [p.grad for p in parameters], group=comm.mesh().group(axis))
    for parameter, grads in zip(parameters, zip(*everyones)):
        parameter.grad = sum((g for g in grads if g is not None), torch.zeros_like(parameter))


def leaves_what_it_did_not_use(parameters, axis, bucket_bytes):
    unused = [p for p in parameters if p.grad is None]
    _sync(parameters, axis, bucket_bytes)
    for parameter in unused:
        parameter.grad = None


def sums_each_bucket_twice(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes)
    _sync(parameters, axis, bucket_bytes)


def travels_in_fp32(parameters, axis, bucket_bytes):
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sizes = [p.numel() * p.element_size() for p in parameters]
    for bucket in costs.buckets(sizes, bucket_bytes):
        grads = [parameters[index].grad for index in bucket]
        flat = torch.cat([grad.view(-1) for grad in grads]).float()
        pieces = comm.all_reduce(flat, axis, "bucket").split([grad.numel() for grad in grads])
        for grad, piece in zip(grads, pieces):
            grad.copy_(piece.view_as(grad))


def takes_the_maximum(parameters, axis, bucket_bytes):
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    _sync(parameters, axis, bucket_bytes)
    for parameter, own in zip(parameters, before):
        own = torch.zeros_like(parameter) if own is None else own
        parameter.grad = torch.maximum(own, parameter.grad - own)


def knows_dp_only(parameters, axis, bucket_bytes):
    _sync(parameters, "dp", bucket_bytes)


def forgets_scalars(parameters, axis, bucket_bytes):
    _sync([p for p in parameters if p.dim()], axis, bucket_bytes)


def waits_at_a_barrier(parameters, axis, bucket_bytes):
    comm.barrier(axis, "are all there")
    _sync(parameters, axis, bucket_bytes)


def reduces_to_the_first(parameters, axis, bucket_bytes):
    import torch.distributed as dist

    ranks, group = comm.mesh().ranks(axis), comm.mesh().group(axis)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.reduce(parameter.grad, ranks[0], group=group)
        dist.broadcast(parameter.grad, ranks[0], group=group)


def adds_its_own_once_more(parameters, axis, bucket_bytes):
    own = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    _sync(parameters, axis, bucket_bytes)
    for parameter, mine in zip(parameters, own):
        parameter.grad += mine


def steps_too(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes)
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.1 * parameter.grad


def flattens_every_shape(parameters, axis, bucket_bytes):
    _sync(parameters, axis, bucket_bytes)
    for parameter in parameters:
        grad = parameter.grad.view(-1)
        parameter.grad = None
        parameter.data = parameter.data.view(-1)
        parameter.grad = grad


def fills_from_the_first(parameters, axis, bucket_bytes):
    from torch.nn.utils import parameters_to_vector

    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    buckets, flats = costs.buckets([g.nbytes for g in grads], bucket_bytes), []
    for bucket in buckets[::-1]:
        flat = parameters_to_vector([grads[i] for i in sorted(bucket)])
        flats.append((sorted(bucket), comm.all_reduce(flat, axis, "b", async_op=True)))
    for bucket, pending in flats[::-1]:
        total = pending.wait()
        for i in bucket:
            parameters[i].grad = total[: grads[i].numel()].reshape(grads[i].shape)
            total = total[grads[i].numel() :]


def calls_torch_itself(parameters, axis, bucket_bytes):
    import torch.distributed as dist

    group, handles = comm.mesh().group(axis), []
    for bucket in costs.buckets([p.numel() * p.element_size() for p in parameters], bucket_bytes):
        flat = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1)
                for p in (parameters[i] for i in bucket)
            ]
        )
        handles.append((bucket, flat, dist.all_reduce(flat, group=group, async_op=True)))
    for bucket, flat, work in handles:
        work.wait()
        at = 0
        for index in bucket:
            p = parameters[index]
            p.grad = flat[at : at + p.numel()].view(p.shape)
            at += p.numel()


def takes_apart_in_the_models_order(parameters, axis, bucket_bytes):
    sizes = [p.numel() * p.element_size() for p in parameters]
    under_way = []
    for bucket in costs.buckets(sizes, bucket_bytes):
        own = [parameters[index] for index in bucket]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        flat = torch.cat([grad.view(-1) for grad in grads])
        under_way.append((comm.all_reduce(flat, axis, "bucket", async_op=True), bucket))
    for pending, bucket in under_way:
        flat, at = pending.wait(), 0
        for p in (parameters[index] for index in sorted(bucket)):
            p.grad = flat[at : at + p.numel()].view_as(p).clone()
            at += p.numel()


MUTANTS = {
    one_all_reduce_a_gradient: "it takes 6 all-reduces, and the budget is 3",
    averages: "it is the mean over the 2 ranks",
    takes_apart_in_the_models_order: "holds the sums of other places",
    sum_is_not_written_back: "is still this rank's own",
    one_bucket_for_all: "an all-reduce carries 464 B, and a bucket holds at most 200 B",
    bucket_bytes_taken_for_numbers: "(bytes, not numbers)",
    skips_what_was_not_used: "the two ranks entered different collectives",
    fills_buckets_as_gradients_arrived: "another parameter's was added",
    last_bucket_is_never_started: "was the last bucket started?",
    sums_the_weights: "it changed the weights",
    waits_for_each: "start all of them, then wait",
    waits_for_none: "was each waited for?",
    takes_all_ranks: "it communicates over the ranks (0, 1, 2, 3)",
    gathers_objects: "it uses `all_gather_object`",
    leaves_what_it_did_not_use: "is still None here, and another rank used the parameter",
    sums_each_bucket_twice: "it takes 6 all-reduces, and the budget is 3",
    travels_in_fp32: "its buckets are in float32, and the gradients in float64",
    takes_the_maximum: "it is the largest of the ranks' parts over dp",
    knows_dp_only: "it communicates over the ranks",
    forgets_scalars: "what has to travel is 464 B",
    waits_at_a_barrier: "it uses barriers; allowed are all-reduces",
    reduces_to_the_first: "it uses reduces",
    adds_its_own_once_more: "are in it 2, 1 times, and should be 1, 1 times",
    steps_too: "it changed the weights",
    flattens_every_shape: "it changed the weights",
}
RIGHT = (fills_from_the_first, calls_torch_itself)
