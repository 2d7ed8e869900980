"""Wrong answers to 4d.dp.buckets, and what each author must be told."""

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


MUTANTS = {
    one_all_reduce_a_gradient: "it takes 6 all-reduces, and the budget is 3",
    averages: "it is the mean over the 2 ranks",
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
}
