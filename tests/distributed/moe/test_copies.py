"""Hot experts with copies train: as one process does, with copies that stay one expert, and with
the rows on the slowest rank that the plan predicted.

The wrong versions this file catches: gradients of copies that are not summed, or whose sum does not
come back; a norm that counts copies twice; a copy that starts otherwise; rows that all go to
one holder; slots that are filled anew without the moments.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest

import picolab as pico
from picolab import costs
from picolab.debug import verify
from picolab.debug.diagnosis import NORM_MEMBERS
from picolab.debug.faults import Fault, patched
from picolab.debug.oracle import verify_each, verify_layouts
from picolab.moe import LoadBalancer, copies, expert_layers, placement, strategy
from picolab.monitoring import events
from picolab.parallel import three_d
from picolab.parallel.same_start import checksum
from picolab.specs.expert_copies import copies_text

SETTINGS = dict(
    layers=2, seq=32, hidden=32, heads=4, kv_heads=2, experts=8, expert_ffn=16, ffn=32, steps=6,
    micro_batch=2, accumulate=2, dtype="fp64", eps=1e-5, aux_loss=0.0, progress=False,
)  # fmt: skip
HOT = 1  # half of all choices fall on it, in each layer


# One process, and the ledger to the byte: experts of 2 and of 4 ranks, copies on some and on all.
@pytest.mark.parametrize(
    ("layouts", "plan"),
    [
        (["dp4ep2", "dp2tp2ep2", "dp2pp2ep2"], "0@1 4@0 5@0"),
        pytest.param(["dp4ep4", "dp2cp2ep4"], "0@1 0@2 0@3 8@0 1:8@1 1:3@2"),
        pytest.param(["dp2ep2", "cp2ep2"], "0@1 1@1 2@1 3@0", marks=pytest.mark.weekly),
        pytest.param(["dp2tp2ep2sp", "dp2cp2ep2"], "1:1@1", marks=pytest.mark.weekly),
        pytest.param(["dp2tp2pp2ep2"], "2@1", marks=pytest.mark.weekly),
    ],
)
def test_a_layout_with_copies_equals_one_process(layouts, plan):
    for verdict in verify_layouts(layouts, expert_copies=plan, steps=3):
        assert verdict.ok and verdict.cause is None, str(verdict)
        assert verdict.worst.allowed == 1e-12
        told = {row.name.rsplit(", ")[-1] for row in verdict.rows if row.kind == "copy"}
        assert told == {"start", "gradient", "parameter"}
        sums = [line for line in verdict.ledger if line.reason == copies.SUMS]
        assert len(sums) == 1 and sums[0].expected[0] == 1


def test_in_fp32_too():
    assert verify("dp2ep2", expert_copies="0@1 4@0", precision="fp32", steps=2).ok


@contextmanager
def not_summed(layout):
    with patched(strategy, "sum_gradients", lambda layers, axis: None):
        yield


@contextmanager
def sums_do_not_come_back(layout):
    with patched(copies, "_put", lambda into, values: None):
        yield


@contextmanager
def starts_otherwise(layout):
    real = three_d.initialise

    def initialise(model, *rest):
        made = real(model, *rest)
        for parameter in made.parameters():
            for piece, part in pico.model.slices(parameter):
                if piece.copy:
                    part.mul_(1.001)
        return made

    with patched(three_d, "initialise", initialise):
        yield


@contextmanager
def counted_twice(layout):
    real = three_d.square_norm

    def square_norm(parameters):
        parameters = list(parameters)
        kept = [parameter.pieces for parameter in parameters]
        for parameter in parameters:
            parameter.pieces = tuple(replace(piece, copy=False) for piece in parameter.pieces)
        try:
            return real(parameters)
        finally:
            for parameter, pieces in zip(parameters, kept):
                parameter.pieces = pieces

    with patched(three_d, "square_norm", square_norm):
        yield


@contextmanager
def to_one_holder(layout):
    with patched(
        costs.ExpertSlots,
        "_share",
        staticmethod(lambda rows, holders, rank, _: range(rows if rank == holders[0] else 0)),
    ):
        yield


MUTANTS = [not_summed, sums_do_not_come_back, starts_otherwise, counted_twice]


def test_mutants_are_caught():
    faults = [
        Fault(f"mutant {wrong.__name__}", "kept here", "nowhere", "ep", wrong) for wrong in MUTANTS
    ]
    right, *verdicts = verify_each("dp2ep2", [None, *faults], expert_copies="0@1 4@0", steps=2)
    assert right.ok
    summed, returned, started, counted = verdicts
    for verdict in verdicts:
        assert not verdict.numbers_ok and verdict.cause is not None
    assert (summed.cause.where, summed.cause.what) == (copies.GRADIENTS, "missing")
    assert "the ranks that hold the expert" in str(summed)
    for verdict, which in ((returned, "gradient"), (started, "start")):
        wrong = {
            row.name.rsplit(", ")[-1] for row in verdict.rows if row.kind == "copy" and not row.ok
        }
        assert which in wrong
    assert (counted.cause.where, counted.cause.what) == (NORM_MEMBERS, "copies")
    kinds = {row.kind for row in counted.rows if not row.ok}
    assert "gradient norm" in kinds and "gradient" not in kinds


class Rows(pico.Observer):
    """One expert is asked for by most tokens. Tells how many rows each rank's experts had in a
    step, and at the end what every holder has of each copied expert."""

    def start(self, run):
        self.rows, self.layers = 0, expert_layers(run.model)
        for layer in self.layers:
            if run.first_step == 0:
                layer.router.bias[:4] = 0.3  # the hot one's neighbours are warm
                layer.router.bias[HOT] = 1.0
            layer.experts.register_forward_pre_hook(self._count)

    def _count(self, module, given):
        self.rows += sum(given[1])

    def step(self, run, report):
        events.write("rows", step=report.step, rows=self.rows)
        self.rows = 0

    def end(self, run):
        for layer in self.layers:
            slots = layer.communication.slots
            if slots is None:
                continue
            mine = slots.held[pico.comm.mesh().rank("ep")]
            found = {
                expert: [
                    checksum(tensor[place])
                    for parameter in layer.experts.parameters()
                    for tensor in placement.with_moments(parameter, run.optimizer)
                ]
                for place, expert in enumerate(mine)
                if len(slots.holders[expert]) > 1
            }
            events.write("held", layer=layer.number, found=found)


def trained(observers=(), layout="dp2ep2", **more):
    settings = {**SETTINGS, "router_bias": 1e-9, "router_score": "sigmoid", **more}
    return pico.train("tiny-moe", layout, **settings, observers=[Rows(), *observers])


def told(result, kind):
    return [(event.rank, event.data) for event in result.events if event.kind == kind]


def rows_by_rank(result, step):
    return [data["rows"] for _, data in sorted(told(result, "rows"), key=lambda of: of[0])
            if data["step"] == step]  # fmt: skip


def loads(result, step):
    """layer -> choices of each expert."""
    found = {}
    for event in result.events:
        if event.kind == "experts" and event.data["step"] == step:
            found |= event.data["loads"]
    return {int(layer): load for layer, load in found.items()}


@pytest.fixture(scope="module")
def plain():
    return trained()


@pytest.fixture(scope="module")
def plan(plain):
    """A slot on each rank, filled by the loads of the first step."""
    return {layer: placement.plan(load, [1, 1]) for layer, load in loads(plain, 0).items()}


@pytest.fixture(scope="module")
def copied(plan):
    return trained(expert_copies=copies_text(plan))


def predicted(of_step, plan, ranks=2):
    """Rows of each rank."""
    experts, none = SETTINGS["experts"], ((),) * ranks
    slots = {layer: costs.ExpertSlots(experts, plan.get(layer, none)) for layer in of_step}
    each = [slots[layer].rows_of_ranks(load) for layer, load in of_step.items()]
    return [sum(of_rank) for of_rank in zip(*each)]


def off_by(plan, exchanges, ranks=2):
    """Each sender's rows of an expert are shared out to within one, in each exchange."""
    return exchanges * ranks * sum(len(of) for of in plan)


def test_the_slowest_rank_has_fewer_rows_by_what_the_plan_predicted(plain, plan, copied):
    assert all(HOT in of[1] for of in plan.values())
    for step in range(SETTINGS["steps"]):
        of_step = loads(plain, step)
        before, after = (rows_by_rank(result, step) for result in (plain, copied))
        assert before == predicted(of_step, {})
        expected = predicted(of_step, plan)
        bound = sum(off_by(of, SETTINGS["accumulate"]) for of in plan.values())
        for found, right in zip(after, expected, strict=True):
            assert abs(found - right) <= bound
        fell = max(before) - max(after)
        assert abs(fell - (max(before) - max(expected))) <= bound < 0.2 * fell
        print(f"step {step}: slowest rank {max(before)} -> {max(after)}, predicted {max(expected)}")


def test_the_run_is_the_one_without_copies(plain, copied):
    assert copied.losses == pytest.approx(plain.losses, rel=1e-11)
    assert copied.grad_norms == pytest.approx(plain.grad_norms, rel=1e-11)
    one, other = plain.state_dict(), copied.state_dict()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert float((other[name] - tensor).norm()) <= 1e-10 * float(tensor.norm() + 1e-9), name


def bits(result):
    """layer and expert -> what its holders have, weights and moments."""
    found = {}
    for _, data in told(result, "held"):
        for expert, sums in data["found"].items():
            found.setdefault((data["layer"], int(expert)), []).append(tuple(sums))
    return found


def test_copies_and_their_moments_are_one_to_the_bit(copied):
    held = bits(copied)
    assert len(held) == 4  # two layers, a slot on each of two ranks
    for sums in held.values():
        assert len(sums) == 2 and len(set(sums)) == 1
        assert len(sums[0]) == 2 * 3  # two matrices, and two moments of each


def test_what_copies_take_is_the_formula_s(plain, copied):
    config, text = copied.config.model, copied.config.expert_copies
    for rank, memory in copied.memory.items():
        with_copies, without = (
            costs.rank_states(config, "dp2ep2", rank, dtype="fp64", expert_copies=copies)
            for copies in (text, None)
        )
        for name, size in with_copies.items():
            assert memory[name] - plain.memory[rank][name] == size - without[name] > 0


def test_mutant_rows_that_all_go_to_one_holder_are_no_fewer(plain, plan):
    class One(pico.Observer):
        def begin(self, run):
            run.until_end(to_one_holder(None))

    wrong = trained([One()], expert_copies=copies_text(plan), steps=1)
    assert max(rows_by_rank(wrong, 0)) >= max(rows_by_rank(plain, 0))


@pytest.mark.parametrize("forgotten", [False, True])
def test_slots_are_filled_anew_between_steps(plain, forgotten):
    """The plan is wrong at first. Mutant: what the optimizer keeps stays where it was."""

    class Balancer(LoadBalancer):
        def start(self, run):
            super().start(run)
            if forgotten:
                copies.with_moments = lambda parameter, optimizer: [parameter.data]

    result = trained([Balancer(every=2)], expert_copies="7@0 2@1")
    filled = [event.data for event in result.events if event.kind == "experts copied"]
    assert any(HOT in event["copies"][1] for event in filled)
    first = min(event["step"] for event in filled)
    off = max(abs(a - b) / b for a, b in zip(result.losses, plain.losses, strict=True))
    one = all(len(set(sums)) == 1 for sums in bits(result).values())
    if forgotten:
        assert off > 1e-7 and not one
        return
    assert off < 1e-11 and one
    last = SETTINGS["steps"] - 1
    assert max(rows_by_rank(result, last)) < 0.9 * max(rows_by_rank(plain, last))
    assert first < last


def test_a_checkpoint_has_each_expert_once(plain, plan, tmp_path):
    text = copies_text(plan)
    trained(expert_copies=text, checkpoint=tmp_path, save_every=3, steps=6, keep=5)
    whole = plain.state_dict()
    saved = pico.training.checkpoint.state_dict(tmp_path / "step-6")
    for name, tensor in saved.items():
        assert float((whole[name] - tensor).norm()) <= 1e-10 * float(tensor.norm() + 1e-9), name
    # Other copies in one run, none in the other.
    for more in (dict(expert_copies="6@0 0@1"), dict(layout="dp1", accumulate=4)):
        again = trained(**{**more, "resume": tmp_path / "step-3"})
        assert again.losses == pytest.approx(plain.losses[3:], rel=1e-11)
        for name, tensor in again.state_dict().items():
            assert float((whole[name] - tensor).norm()) <= 1e-10 * float(tensor.norm() + 1e-9)


def test_what_it_cannot_do_gets_a_sentence():
    with pytest.raises(ValueError, match="take dp2ep2zero1 without zero"):
        pico.train("tiny-moe", "dp2ep2zero1", steps=1, expert_copies="0@1", progress=False)
    with pytest.raises(ValueError, match="deals out no experts"):
        verify("dp2", expert_copies="0@1")
