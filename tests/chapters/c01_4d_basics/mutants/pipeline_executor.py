"""Wrong answers to 4d.pp.executor, what each author must be told, and right ones."""

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
                dx = x.grad / how["divide"] if "divide" in how else x.grad
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


def waits_at_the_end(order, forward, shape):
    _by_hand(order, forward, shape)


def _same(tensor):
    return tensor


def _by_hand(order, forward, shape, dy_of=_same, again=False, dx_of=_same, late=False):
    mesh = comm.mesh()
    stage, last = mesh.rank("pp"), mesh.size("pp") - 1
    held, sent, kept = {}, [], []

    def receive(source, reason):
        return comm.recv(torch.empty(shape, dtype=torch.float64), source, "pp", reason)

    for action in order:
        i = int(action[1:])
        if action[0] == "F":
            x = receive(stage - 1, "x").requires_grad_() if stage else None
            held[i] = x, forward(i, x)
            if stage < last:
                y = held[i][1].detach()
                sent.append(comm.send(y, stage + 1, "pp", "y", async_op=True))
            continue
        x, y = held.pop(i)
        if again:
            y = forward(i, x)
        torch.autograd.backward(y, dy_of(receive(stage + 1, "dy")) if stage < last else None)
        if stage and late:
            kept.append(x)
        elif stage:
            sent.append(comm.send(dx_of(x.grad), stage - 1, "pp", "dx", async_op=True))
    for x in kept:
        sent.append(comm.send(x.grad, stage - 1, "pp", "dx", async_op=True))
    for work in sent:
        work.wait()


def one_generator_a_micro_batch(order, forward, shape):
    mesh = comm.mesh()
    stage, last = mesh.rank("pp"), mesh.size("pp") - 1
    flying = []

    def receive(source, reason):
        return comm.recv(torch.empty(*shape, dtype=torch.float64), source, "pp", reason)

    def life(i):
        x = receive(stage - 1, "activation").requires_grad_() if stage else None
        y, down = forward(i, x), None
        if stage < last:
            down = comm.send(y.detach(), stage + 1, "pp", "activation", async_op=True)
        yield
        if down is None:
            y.backward()
        else:
            dy = receive(stage + 1, "gradient")
            down.wait()
            y.backward(dy)
        if stage:
            flying.append(comm.send(x.grad, stage - 1, "pp", "gradient", async_op=True))
        yield

    lives = {}
    for action in order:
        i = int(action[1:])
        if action[0] == "F":
            lives[i] = life(i)
        next(lives[i])
        if action[0] == "B":
            lives.pop(i).close()
    for work in flying:
        work.wait()


def takes_ones_for_the_gradient(order, forward, shape):
    _by_hand(order, forward, shape, dy_of=torch.ones_like)


def runs_forward_twice(order, forward, shape):
    _by_hand(order, forward, shape, again=True)


def sends_the_negative_gradient(order, forward, shape):
    _by_hand(order, forward, shape, dx_of=torch.neg)


def sends_gradients_at_the_end(order, forward, shape):
    _by_hand(order, forward, shape, late=True)


MUTANTS = {
    all_forwards_first: "its order asks for",
    sends_and_waits: "they wait for ever",
    waits_for_each_send: "they wait for ever",
    takes_the_oldest_back: "its order asks for",
    keeps_the_graphs: "after a backward, nothing of its micro-batch is needed",
    forgets_that_x_is_a_leaf: "is it the .grad of a tensor that did not require one",
    divides_by_the_number_of_stages: "times what it should be",
    forgets_the_backwards: "its order asks for",
    runs_backward_without_the_neighbours_gradient: "the gradient of this stage's weight is wrong",
    takes_the_gradients_of_the_last_micro_batch: "that of the last micro-batch alone",
    takes_ones_for_the_gradient: "the gradient of this stage",
    runs_forward_twice: "F",
    sends_the_negative_gradient: "the gradient of this stage",
    sends_gradients_at_the_end: "they wait for ever",
}

RIGHT = (waits_at_the_end, one_generator_a_micro_batch)
