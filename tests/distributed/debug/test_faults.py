"""Every fault of the catalogue is caught and given its right cause; so are mistakes outside it.

The diagnosis is not told which fault is at work, which is tested in three ways: it cannot import
the catalogue (tests/unit/debug), the name of the fault is nowhere in the evidence, and the verdict
over evidence that went through pickle is the same. EXPECTED says what each must be called; where
the ledger gives it away, the numbers alone must too.
"""

import json
import pickle
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch

from picolab import comm
from picolab.debug import CATALOGUE, Fault, verify
from picolab.debug.diagnosis import likely_cause
from picolab.debug.oracle import verify_each
from picolab.training.eager_adamw import EagerAdamW

BUCKET, COUNT, LOSS = "dp: gradient bucket", "dp: count of valid tokens", "dp: loss"
ROW, COLUMN = "tp: row-parallel output", "tp: column-parallel input gradient"
EMBEDDING, MAXIMUM, SUMS = (
    "tp: embedding output",
    "tp: cross entropy maximum",
    "tp: cross entropy sums",
)
NORM, START, MEMBERS = "tp: gradient norm", "the initial values", "the members of the gradient norm"
SCATTER, UPDATED = "zero: gradient bucket", "zero: updated parameters"
NORMS, STAGES = "sp: gradients of the norms", "pp: gradient norm"
EXPERTS = "ep: gradient bucket"

# fault -> the layout it is tried in, and what it must be called.
EXPECTED = {
    "dp-gradients-missing": ("dp2", BUCKET, "missing"),
    "dp-gradients-doubled": ("dp2tp2", BUCKET, "doubled"),
    "dp-gradients-averaged": ("dp4", BUCKET, "averaged"),
    "dp-count-missing": ("dp2", COUNT, "missing"),
    "dp-count-doubled": ("dp2", COUNT, "doubled"),
    "dp-loss-missing": ("dp2", LOSS, "missing"),
    "dp-loss-doubled": ("dp2cp2", LOSS, "doubled"),
    "dp-loss-averaged": ("dp2", LOSS, "averaged"),
    "dp-mean-of-means": ("dp2", COUNT, "local"),
    "dp-same-data": ("dp2", "the data", "repeated"),
    "dp-replicas-differ": ("dp2tp2", START, "replicas differ"),
    "dp-weights-averaged": ("dp2", BUCKET, "weights"),
    "dp-every-micro-batch": ("dp4", BUCKET, "every micro-batch"),
    "micro-batches-not-scaled": ("dp2", "the scale of the loss", "micro-batches"),
    "micro-batches-forgotten": ("dp1", "the weights of the samples", "forgotten"),
    "tp-row-output-missing": ("tp2", ROW, "missing"),
    "tp-row-output-doubled": ("tp4", ROW, "doubled"),
    "tp-row-output-averaged": ("tp2", ROW, "averaged"),
    "tp-input-gradient-missing": ("dp2tp2", COLUMN, "missing"),
    "tp-input-gradient-doubled": ("tp2", COLUMN, "doubled"),
    "tp-input-gradient-averaged": ("tp2", COLUMN, "averaged"),
    "tp-embedding-missing": ("tp2", EMBEDDING, "missing"),
    "tp-embedding-doubled": ("tp2", EMBEDDING, "doubled"),
    "tp-embedding-averaged": ("tp2", EMBEDDING, "averaged"),
    "tp-loss-maximum-missing": ("tp2", MAXIMUM, "missing"),
    "tp-loss-sums-missing": ("tp4", SUMS, "missing"),
    "tp-loss-sums-doubled": ("tp2sp", SUMS, "doubled"),
    "tp-norm-missing": ("tp2", NORM, "missing"),
    "tp-norm-doubled": ("tp2", NORM, "doubled"),
    "tp-norm-averaged": ("tp2", NORM, "averaged"),
    "tp-norm-counts-replicas": ("tp2pp2", MEMBERS, "replicas"),
    "tp-shards-alike": ("tp2", START, "shards alike"),
    "sp-norm-gradients-missing": ("tp2sp", NORMS, "missing"),
    "sp-norm-gradients-doubled": ("tp2sp", NORMS, "doubled"),
    "sp-norm-gradients-averaged": ("tp2sp", NORMS, "averaged"),
    "pp-loss-missing": ("pp2", "pp: loss", "missing"),
    "pp-norm-missing": ("pp2", STAGES, "missing"),
    "pp-norm-doubled": ("pp2", STAGES, "doubled"),
    "pp-norm-averaged": ("pp2", STAGES, "averaged"),
    "pp-norm-counts-tied-twice": ("pp2", MEMBERS, "tied"),
    "pp-stages-alike": ("pp2", START, "stages alike"),
    "pp-tied-gradient-missing": ("pp4", "pp: tied embedding gradient", "missing"),
    "cp-not-synchronised": ("cp2", BUCKET, "missing"),
    "cp-positions-contiguous": ("cp2", "the positions", "contiguous"),
    "cp-labels-contiguous": ("cp2", "the labels", "other"),
    "large-reductions-doubled": ("dp2tp2", BUCKET, "number"),
    "pp-untied-head-frozen": ("pp2", "the gradients of parameters", "other"),
    "gathered-in-another-order": ("tp2", "gathering", "other"),
    "cp-key-gradients-lost": ("pp2cp2", "cp: gradients of keys and values", "other"),
    "zero-gradients-missing": ("dp3zero2", SCATTER, "missing"),
    "zero-gradients-averaged": ("dp2zero3", SCATTER, "averaged"),
    "zero-every-micro-batch": ("dp3zero2", SCATTER, "every micro-batch"),
    "zero-border-off-by-one": ("dp3zero2", "the gradients of parameters", "other"),
    "zero-parameters-missing": ("dp3zero2", UPDATED, "missing"),
    "zero-norm-missing": ("dp2zero3", "dp: gradient norm", "missing"),
    "zero-norm-counts-groups": ("dp4zero1shard2", "replica: gradient norm", "extra"),
    "ep-gradients-missing": ("dp4ep2", EXPERTS, "missing"),
    "ep-gradients-doubled": ("dp4ep2", EXPERTS, "doubled"),
    "ep-gradients-averaged": ("dp4ep2", EXPERTS, "averaged"),
    "tp-head-norms-missing": ("dp2tp2ep2", "tp: gradients of heads' norms", "missing"),
    "ep-gradients-undivided": ("dp2tp2ep2", EXPERTS, "times"),
    "ep-experts-over-all-replicas": ("dp4ep2", EXPERTS, "over all replicas"),
    "ep-balance-loss-times-tp": ("dp2tp2ep2", "the balance loss", "times"),
    "ep-choice-differs-over-tp": ("dp2tp2ep2", "the choice of experts", "differs over tp"),
    "ep-balance-loss-on-each-rank": ("cp2ep2", "the balance loss", "times"),
    "ep-pool-of-one-rank": ("cp2ep2", "the choice of experts", "pool"),
}


# Where the numbers alone cannot say which reduction it was: one gradient is wrong, and the other
# buckets, which are smaller, are right.
NUMBERS_ALONE = {
    "large-reductions-doubled": ("the gradients of parameters", "other"),
    # The first step is right, and what was not fetched is missed in the second.
    "zero-parameters-missing": ("the update", "other"),
    # Two groups of two: twice the squares may come from either.
    "zero-norm-counts-groups": ("shard: gradient norm", "doubled"),
}


def test_every_fault_of_the_catalogue_is_here():
    assert EXPECTED.keys() == CATALOGUE.keys()


@cache
def verdicts(layout):
    """Of every fault that is tried in this layout."""
    names = [name for name, (of, *_) in EXPECTED.items() if of == layout]
    return dict(zip(names, verify_each(layout, names, steps=2), strict=True))


# Those of one layout one after the other, since two workers may share the list.
@pytest.mark.parametrize("name", sorted(EXPECTED, key=lambda name: EXPECTED[name][0]))
def test_a_fault_is_caught_and_named(name):
    layout, where, what = EXPECTED[name]
    verdict = verdicts(layout)[name]
    assert not verdict.ok and not verdict.numbers_ok
    assert (verdict.cause.where, verdict.cause.what) == (where, what), str(verdict)
    numbers = likely_cause(verdict.evidence, ledger=False)
    told = NUMBERS_ALONE.get(name, (where, what))
    assert (numbers.where, numbers.what) == told, str(numbers)
    # What a person is told: the cause, and the first number that is wrong, with its ranks.
    assert f"most likely cause: {verdict.cause}" in str(verdict)
    assert verdict.first.ranks and verdict.worst.ranks
    # The diagnosis saw numbers only.
    written = pickle.dumps(verdict.evidence)
    assert name.encode() not in written
    assert likely_cause(pickle.loads(written)) == verdict.cause


def test_a_gradient_that_is_a_multiple_is_told_so():
    verdict = verify("dp2", fault="dp-gradients-doubled")
    rows = [row for row in verdict.rows if row.kind == "gradient"]
    assert {row.times for row in rows} == {"exactly 2 x"} and {row.ranks for row in rows} == {
        (0, 1)
    }
    assert "all 20 gradients, each exactly 2 x" in str(verdict)
    told = json.loads(verdict.to_json())
    assert told["ok"] is False and told["cause"]["what"] == "doubled"


def test_fp32_is_enough_to_name_a_cause():
    for name in ("tp-row-output-missing", "tp-loss-sums-doubled", "tp-norm-missing"):
        _, where, what = EXPECTED[name]
        cause = verify("tp2", precision="fp32", fault=name).cause
        assert (cause.where, cause.what) == (where, what)


# Mistakes that are not in the catalogue. Nested, so that they travel to the ranks by value.


def own_fault(name, patch):
    return Fault(name, "a mistake of this test", "here", "any", contextmanager(patch))


def test_a_reduction_too_many_that_changes_no_number_is_caught_by_the_ledger():
    def patch(layout):
        real = comm.all_reduce

        def all_reduce(x, axis, why, op="sum", async_op=False):
            if why == "tp: cross entropy maximum":  # the maximum of maxima is the maximum
                real(x, axis, why, op=op)
            return real(x, axis, why, op=op, async_op=async_op)

        comm.all_reduce = all_reduce
        yield
        comm.all_reduce = real

    verdict = verify("tp2", fault=own_fault("harmless", patch))
    assert verdict.numbers_ok and not verdict.ok and verdict.worst.ok
    assert "in its numbers, but NOT in its collectives" in str(verdict)
    assert (verdict.cause.where, verdict.cause.what) == (MAXIMUM, "doubled")


def test_one_layers_all_reduce_is_found_by_its_place():
    """Only the last layer's MLP forgets to sum: no rule knows of it, the place is found."""

    def patch(layout):
        real, calls = comm.all_reduce, [0]

        def all_reduce(x, axis, why, op="sum", async_op=False):
            if why == "tp: row-parallel output":
                calls[0] += 1
                if calls[0] % 4 == 0:  # two layers, two sums each
                    return x
            return real(x, axis, why, op=op, async_op=async_op)

        comm.all_reduce = all_reduce
        yield
        comm.all_reduce = real

    verdict = verify("tp2", fault=own_fault("one layer", patch))
    assert (verdict.cause.where, verdict.cause.what) == (ROW, "number")
    numbers = likely_cause(verdict.evidence, ledger=False)
    assert (numbers.where, numbers.what) == (ROW, "missing")
    assert "layers.1.mlp" in numbers.seen


def test_one_wrong_parameter_is_named():
    def patch(layout):
        from picolab.parallel import three_d

        real = three_d.ThreeDParallelOptimizer.finish_gradients

        def finish_gradients(self):
            real(self)
            self.model.layers[1].mlp.down.weight.grad.mul_(3)

        three_d.ThreeDParallelOptimizer.finish_gradients = finish_gradients
        yield
        three_d.ThreeDParallelOptimizer.finish_gradients = real

    verdict = verify("dp2", fault=own_fault("one parameter", patch))
    wrong = [row for row in verdict.rows if row.kind == "gradient" and not row.ok]
    assert [(row.name, row.times) for row in wrong] == [("layers.1.mlp.down.weight", "exactly 3 x")]
    assert verdict.cause.where == "the gradients of parameters"
    assert "layers.1.mlp.down.weight" in verdict.cause.seen


def test_a_mistake_in_the_update_is_told_from_one_in_the_gradients():
    def patch(layout):
        real = EagerAdamW.step

        def step(self, *rest):
            self.param_groups[0]["weight_decay"] = 0.5
            return real(self, *rest)

        EagerAdamW.step = step
        yield
        EagerAdamW.step = real

    verdict = verify("tp2", fault=own_fault("decay", patch))
    assert not verdict.ok and verdict.cause.where == "the update"
    assert "after the update of step 1, on ranks 0, 1" in verdict.cause.seen


def test_one_rank_of_a_replica_with_other_weights_is_told_by_its_number():
    def patch(layout):
        from picolab.model import parameters

        real = parameters.draw

        def draw(piece, seed):
            whole = real(piece, seed)
            wrong = comm.mesh().ranks("world").index(torch.distributed.get_rank()) == 1
            return whole * 2 if wrong and piece.name == "layers.0.mlp.up.weight" else whole

        parameters.draw = draw
        yield
        parameters.draw = real

    verdict = verify("dp2", fault=own_fault("rank 1", patch))
    assert verdict.first.name == "layers.0.mlp.up.weight" and verdict.first.ranks == (1,)
    assert verdict.first.times == "exactly 2 x"
    assert verdict.cause.what == "replicas differ" and "on rank 1" in verdict.cause.seen


def test_the_name_of_a_fault_does_not_help():
    """The same patch under another's name is still called by what it does."""
    impostor = replace(CATALOGUE["dp-gradients-averaged"], name="dp-gradients-doubled")
    cause = verify("dp2", fault=impostor).cause
    assert (cause.where, cause.what) == (BUCKET, "averaged")
