"""Wrong answers to 4d.pp.executor, and what each author must be told."""

import torch

from picolab import comm


def _executor(order, forward, shape, **how):
    """An executor with one thing wrong."""
    stage, last = comm.mesh().rank("pp"), comm.mesh().size("pp") - 1
    stash, sending, axis = {}, [], "pp"
    for action in order:
        kind, i = action[0], int(action[1:])
        if kind == "F":
            x = None
            if stage > 0:
                x = comm.recv(torch.empty(shape, dtype=torch.float64), stage - 1, axis, "x")
                x = x if how.get("no_grad") else x.requires_grad_()
            y = forward(i, x)
            stash[i] = x, y
            if stage < last:
                _send(sending, y.detach(), stage + 1, axis, how)
        else:
            dy = None
            if stage < last:
                dy = comm.recv(torch.empty(shape, dtype=torch.float64), stage + 1, axis, "dy")
            at = min(stash) if how.get("oldest") else i
            x, y = stash.pop(at)
            if how.get("last_only"):
                how["last_only"].zero()
            torch.autograd.backward(y, dy, retain_graph=how.get("retain", False))
            if how.get("keeps"):
                stash[-1 - i] = x, y
            if stage > 0:
                dx = x.grad / how.get("divide", 1)
                _send(sending, dx, stage - 1, axis, how)
    for pending in sending:
        pending.wait()


def _send(sending, x, to, axis, how):
    pending = comm.send(x, to, axis, "sent", async_op=not how.get("blocking"))
    if not how.get("blocking"):
        sending.append(pending)
        if how.get("waits"):
            pending.wait()
            sending.pop()


def all_forwards_first(order, forward, shape):
    m = len(order) // 2
    gpipe = [f"F{i}" for i in range(m)] + [f"B{i}" for i in range(m)]
    return _executor(gpipe, forward, shape)


def sends_and_waits(order, forward, shape):
    return _executor(order, forward, shape, blocking=True)


def waits_for_each_send(order, forward, shape):
    return _executor(order, forward, shape, waits=True)


def takes_the_oldest_back(order, forward, shape):
    return _executor(order, forward, shape, oldest=True)


def keeps_the_graphs(order, forward, shape):
    return _executor(order, forward, shape, retain=True, keeps=True)


def forgets_that_x_is_a_leaf(order, forward, shape):
    return _executor(order, forward, shape, no_grad=True)


def divides_by_the_number_of_stages(order, forward, shape):
    return _executor(order, forward, shape, divide=comm.mesh().size("pp"))


def forgets_the_backwards(order, forward, shape):
    return _executor([action for action in order if action[0] == "F"], forward, shape)


def runs_backward_without_the_neighbours_gradient(order, forward, shape):
    stage, last = comm.mesh().rank("pp"), comm.mesh().size("pp") - 1
    stash, sending = {}, []
    for action in order:
        kind, i = action[0], int(action[1:])
        if kind == "F":
            x = None
            if stage > 0:
                x = comm.recv(torch.empty(shape, dtype=torch.float64), stage - 1, "pp", "x")
                x.requires_grad_()
            stash[i] = forward(i, x)
            if stage < last:
                _send(sending, stash[i].detach(), stage + 1, "pp", {})
        else:
            stash.pop(i).sum().backward()
    for pending in sending:
        pending.wait()


def takes_the_gradients_of_the_last_micro_batch(order, forward, shape):
    class Weight:
        held = None

        def zero(self):
            if self.held is not None:
                self.held.grad = None

    weight = Weight()

    def watching(i, x):
        y = forward(i, x)
        todo = [y.grad_fn]
        while todo:
            node = todo.pop()
            variable = getattr(node, "variable", None)
            if variable is not None and variable is not x:
                weight.held = variable
            todo += [one for one, _ in node.next_functions if one is not None]
        return y

    return _executor(order, watching, shape, last_only=weight)


MUTANTS = {
    all_forwards_first: "its order asks for",
    sends_and_waits: "they wait for ever",
    waits_for_each_send: "they wait for ever",
    takes_the_oldest_back: "its order asks for",
    keeps_the_graphs: "after a backward, nothing of its micro-batch is needed",
    forgets_that_x_is_a_leaf: "NoneType",
    divides_by_the_number_of_stages: "times what it should be",
    forgets_the_backwards: "its order asks for",
    runs_backward_without_the_neighbours_gradient: "the gradient of this stage's weight is wrong",
    takes_the_gradients_of_the_last_micro_batch: "that of the last micro-batch alone",
}
