"""Wrong answers to interview.memory.early_step, what each author must be told, and right ones."""

import torch

from picolab import comm


def _hooked(step, hook="register_post_accumulate_grad_hook"):
    """Hooks that all call step(parameter, mean of the gradient, lr, momentum, state)."""

    def answer(parameters, lr, momentum, axis):
        state = {}

        @torch.no_grad()
        def comes(parameter):
            step(parameter, _mean(parameter, axis), lr, momentum, state)
            parameter.grad = None

        for parameter in parameters:
            getattr(parameter, hook)(comes)

    return answer


def _mean(parameter, axis):
    return comm.all_reduce(parameter.grad, axis, "a gradient") / comm.mesh().size(axis)


def _sgd(parameter, grad, lr, momentum, state):
    state[parameter] = momentum * state.get(parameter, 0) + grad
    parameter -= lr * state[parameter]


def _named(name, step):
    answer = _hooked(step)
    answer.__name__ = name
    return answer


def steps_in_the_last_hook(parameters, lr, momentum, axis):
    """Collects, and steps when all have come."""
    state, came = {}, []

    @torch.no_grad()
    def comes(parameter):
        came.append(parameter)
        if parameter is parameters[0]:
            for one in came:
                _sgd(one, _mean(one, axis), lr, momentum, state)
                one.grad = None
            came.clear()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def does_nothing(parameters, lr, momentum, axis):
    pass


def holds_its_gradient(parameters, lr, momentum, axis):
    state = {}

    @torch.no_grad()
    def comes(parameter):
        _sgd(parameter, _mean(parameter, axis), lr, momentum, state)

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def zeroes_its_gradient(parameters, lr, momentum, axis):
    state = {}

    @torch.no_grad()
    def comes(parameter):
        _sgd(parameter, _mean(parameter, axis), lr, momentum, state)
        parameter.grad.zero_()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def sums(parameters, lr, momentum, axis):
    state = {}

    @torch.no_grad()
    def comes(parameter):
        grad = comm.all_reduce(parameter.grad, axis, "a gradient")
        _sgd(parameter, grad, lr, momentum, state)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def asks_nobody(parameters, lr, momentum, axis):
    state = {}

    @torch.no_grad()
    def comes(parameter):
        _sgd(parameter, parameter.grad, lr, momentum, state)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def asks_the_world(parameters, lr, momentum, axis):
    state = {}

    @torch.no_grad()
    def comes(parameter):
        _sgd(parameter, _mean(parameter, "world"), lr, momentum, state)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def _no_momentum(parameter, grad, lr, momentum, state):
    parameter -= lr * grad


def _mean_momentum(parameter, grad, lr, momentum, state):
    state[parameter] = momentum * state.get(parameter, 0) + (1 - momentum) * grad
    parameter -= lr * state[parameter]


def _undamped(parameter, grad, lr, momentum, state):
    state[parameter] = state.get(parameter, 0) + grad
    parameter -= lr * state[parameter]


def _uphill(parameter, grad, lr, momentum, state):
    _sgd(parameter, grad, -lr, momentum, state)


def _no_lr(parameter, grad, lr, momentum, state):
    _sgd(parameter, grad, 1.0, momentum, state)


def _nesterov(parameter, grad, lr, momentum, state):
    state[parameter] = momentum * state.get(parameter, 0) + grad
    parameter -= lr * (grad + momentum * state[parameter])


def _one_velocity(parameter, grad, lr, momentum, state):
    """By shape, so that two parameters of one shape would share it; here: by rank of the tensor."""
    old = state.get(parameter.dim(), 0)
    old = old if isinstance(old, torch.Tensor) and old.shape == grad.shape else 0
    state[parameter.dim()] = momentum * old + grad
    parameter -= lr * state[parameter.dim()]


def in_each_use(parameters, lr, momentum, axis):
    """A hook on the tensor: before `.grad` is written, so it steps by hand and keeps nothing; but
    what it returns is still accumulated."""
    state = {}

    def hook(parameter):
        @torch.no_grad()
        def comes(grad):
            grad = comm.all_reduce(grad, axis, "a gradient") / comm.mesh().size(axis)
            _sgd(parameter, grad, lr, momentum, state)

        return comes

    for parameter in parameters:
        parameter.register_hook(hook(parameter))


def decays_what_has_none(parameters, lr, momentum, axis):
    """All parameters whenever the first one comes: those without a gradient coast on."""
    state = {}

    @torch.no_grad()
    def comes(parameter):
        _sgd(parameter, _mean(parameter, axis), lr, momentum, state)
        parameter.grad = None
        seen.add(parameter)
        if len(seen) == 3 and parameters[2] not in seen and parameters[2] in state:
            parameters[2].sub_(lr * momentum * state[parameters[2]])
        if parameter is parameters[0]:
            seen.clear()

    seen = set()
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def divides_twice(parameters, lr, momentum, axis):
    state, n = {}, comm.mesh().size(axis)

    @torch.no_grad()
    def comes(parameter):
        _sgd(parameter, _mean(parameter, axis) / n, lr, momentum, state)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def sends_it_twice(parameters, lr, momentum, axis):
    state = {}

    @torch.no_grad()
    def comes(parameter):
        comm.all_reduce(parameter.grad.clone(), axis, "to be sure")
        _sgd(parameter, _mean(parameter, axis), lr, momentum, state)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def sends_velocities(parameters, lr, momentum, axis):
    """Velocities are averaged instead of gradients, and parameters are sent, to be sure."""
    state, n = {}, comm.mesh().size(axis)

    @torch.no_grad()
    def comes(parameter):
        velocity = momentum * state.get(parameter, 0) + parameter.grad
        comm.all_reduce(parameter.detach().clone(), axis, "to be sure")
        state[parameter] = comm.all_reduce(velocity, axis, "velocity") / n
        parameter -= lr * state[parameter]
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def with_torch_sgd(parameters, lr, momentum, axis):
    optimizers = {p: torch.optim.SGD([p], lr=lr, momentum=momentum) for p in parameters}

    def comes(parameter):
        parameter.grad = _mean(parameter, axis)
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


in_place = _hooked(_sgd)
in_place.__name__ = "in_place"


def hangs_it_elsewhere(parameters, lr, momentum, axis):
    """`.grad` is None, and the gradient is there."""
    state, last = {}, {}

    @torch.no_grad()
    def comes(parameter):
        _sgd(parameter, _mean(parameter, axis), lr, momentum, state)
        last[parameter], parameter.grad = parameter.grad, None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(comes)


def _by_shape(parameter, grad, lr, momentum, state):
    shape = parameter.shape
    state[shape] = momentum * state.get(shape, 0) + grad
    parameter -= lr * state[shape]


MUTANTS = {
    steps_in_the_last_hook: "there and then",
    does_nothing: "there and then",
    holds_its_gradient: "let go of it",
    zeroes_its_gradient: "let go of it",
    sums: "summed over the ranks",
    asks_nobody: "this rank's gradient alone",
    asks_the_world: "it is averaged over all ranks, and not over those of the axis",
    _named("no_momentum", _no_momentum): "momentum of earlier steps is missing",
    _named("mean_momentum", _mean_momentum): "(1 - momentum) before the gradient",
    _named("undamped", _undamped): "momentum is not multiplied",
    _named("uphill", _uphill): "up the gradient",
    _named("no_lr", _no_lr): "lr is missing",
    _named("nesterov", _nesterov): "Nesterov",
    _named("one_velocity", _one_velocity): "gain after step 1 is wrong",
    in_each_use: "let go of it",
    decays_what_has_none: "it has no gradient in this step",
    divides_twice: "divided by the ranks twice",
    sends_it_twice: "all-reduce",
    sends_velocities: "all-reduce",
    hangs_it_elsewhere: "hangs elsewhere",
    _named("a_velocity_for_each_shape", _by_shape): "gain after step 1 is wrong",
}
RIGHT = (with_torch_sgd, in_place)
