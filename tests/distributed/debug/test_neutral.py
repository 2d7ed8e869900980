"""A diagnosis says less where it knows less: what no rule matches exactly gets a neutral sentence.

Each case was once given a cause that it had not. Where the old rule can be put back, it is, over
the same evidence, and names the wrong one again.
"""

from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import torch
import torch.distributed as dist

from picolab import comm
from picolab.debug import diagnosis, inside_model, verify
from picolab.debug.diagnosis import likely_cause
from picolab.debug.faults import Fault
from picolab.debug.oracle import verify_each
from picolab.model import parameters
from picolab.model.transformer import Attention
from picolab.training.eager_adamw import EagerAdamW

KEYS = "cp: gradients of keys and values"


def own_fault(patch):
    return Fault(patch.__name__, "a mistake of this test", "here", "any", contextmanager(patch))


def numbers(verdict):
    return likely_cause(verdict.evidence, ledger=False)


def entering_qkv(layout):
    """The gradient that leaves qkv towards its input is half as large again, whatever cp does."""
    real = Attention.forward

    def forward(self, x_BSD, tables):
        x_BSD = x_BSD.clone()
        x_BSD.register_hook(lambda gradient: 1.5 * gradient)
        return real(self, x_BSD, tables)

    Attention.forward = forward
    yield
    Attention.forward = real


def test_a_wrong_gradient_entering_qkv_is_not_blamed_on_keys_and_values(monkeypatch):
    verdict = verify("cp2", fault=own_fault(entering_qkv), steps=2)
    cause = numbers(verdict)
    assert (cause.where, cause.what) == ("layers.1.attention_norm", "backward")
    assert "3/2 x the right one" in cause.seen
    old = lambda evidence, point: evidence.size("cp") > 1  # noqa: E731
    monkeypatch.setattr(inside_model, "_only_keys", old)
    assert numbers(verdict).where == KEYS


def averaged(reason):
    def patch(layout):
        real = comm.reduce_scatter

        def reduce_scatter(x, axis, why, *rest, **more):
            return real(x / 2 if why == reason else x, axis, why, *rest, **more)

        comm.reduce_scatter = reduce_scatter
        yield
        comm.reduce_scatter = real

    return own_fault(patch)


def test_an_averaged_reduce_scatter_has_the_name_of_sp(monkeypatch):
    reasons = ["sp: embedding output", "sp: scatter output", "sp: scatter input gradient"]
    verdicts = verify_each("tp2sp", [averaged(reason) for reason in reasons], steps=2)
    for reason, verdict in zip(reasons, verdicts, strict=True):
        assert (numbers(verdict).where, numbers(verdict).what) == (reason, "averaged")
    of_tp = "tp: row-parallel output"
    monkeypatch.setitem(inside_model._FORWARD, "attention", (of_tp, of_tp))
    assert numbers(verdicts[1]).where == of_tp


def drifts_after(step):
    """One number of rank 1's parameters is changed by what follows the update of a step."""

    def patch(layout):
        real, taken = EagerAdamW.step, [0]

        def step_(self, *rest):
            real(self, *rest)
            taken[0] += 1
            if taken[0] == step and dist.get_rank() == 1:
                self.param_groups[0]["params"][0].data.view(-1)[0] += 1e-3

        EagerAdamW.step = step_
        yield
        EagerAdamW.step = real

    return own_fault(patch)


def rounded_on_the_wire(layout):
    real = comm.all_reduce

    def all_reduce(x, axis, why, *rest, **more):
        if why == "dp: gradient bucket":
            x.copy_(x.bfloat16())
        return real(x, axis, why, *rest, **more)

    comm.all_reduce = all_reduce
    yield
    comm.all_reduce = real


@cache
def of_dp2():
    faults = [drifts_after(1), drifts_after(2), own_fault(rounded_on_the_wire), None]
    return verify_each("dp2", faults, steps=3)


def test_replicas_that_drift_are_told_with_the_one_that_did():
    for step, verdict in zip((1, 2), of_dp2()):
        cause = numbers(verdict)
        assert (cause.where, cause.what) == ("the update", "replicas drift")
        assert cause.seen.endswith(f"embed.weight after the update of step {step}, on rank 1")


def test_bf16_on_the_wire_is_all_parameters():
    cause = numbers(of_dp2()[2])
    assert cause.text == "the gradients of all parameters are wrong" and "all 2" in cause.seen
    assert "of their norm at most" in cause.seen


def test_the_first_wrong_number_is_the_first():
    evidence = deepcopy(of_dp2()[3].evidence)
    for seen in evidence.ranks:
        seen.losses[2] *= 2
    assert likely_cause(evidence).seen.endswith("the loss of step 3 on ranks 0, 1")
    evidence.ranks[1].norms[1] *= 2
    assert likely_cause(evidence).seen.endswith("the gradient norm of step 2 on rank 1")


def doubled_on_every_rank(layout):
    real = parameters.draw
    parameters.draw = lambda piece, seed: real(piece, seed) * (1 + (piece.init == "normal"))
    yield
    parameters.draw = real


def test_shards_of_replicas_differ_and_that_says_nothing(monkeypatch):
    """ZeRO's ranks hold other rows: not the same numbers, and yet no replicas that differ."""
    verdict = verify("dp2zero1", fault=own_fault(doubled_on_every_rank), steps=1)
    assert numbers(verdict).what == "other"
    monkeypatch.setattr(diagnosis, "_copies_differ", any_two_differ)
    assert numbers(verdict).what == "replicas differ"


def any_two_differ(evidence, held, names):
    return not torch.equal(*(of[names[0]][1].flatten()[:9] for of in held))


def test_weights_averaged_under_pp_is_told_too():
    cause = verify("dp2pp2", fault="dp-weights-averaged", steps=2).cause
    assert (cause.where, cause.what) == ("dp: gradient bucket", "weights")
