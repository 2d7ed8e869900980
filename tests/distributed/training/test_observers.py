"""Who listens to a run: when observers are called, what they see, and that a run is the same with
them. A step may be skipped. Evaluation is an observer too.

The wrong versions this file catches: gradients shown after clipping, an observer's collectives
booked as the step's, a context that stays open after a failure, ranks that do not agree on
skipping, and an evaluation that trains on what it evaluates or depends on the layout.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import picolab as pico
from picolab import comm
from picolab.model import Transformer
from picolab.training import Text, TrainConfig, precision, train_rank, trainer

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=16)
CONFIG = TrainConfig(
    model=pico.ModelConfig(**SHAPE), data="stdlib", steps=4, dtype="fp64", eps=1e-5, clip=0.1
)


def config(layout, **changes):
    """Of every layout the same global batch: 4 sequences, twice."""
    micro_batch = 4 // pico.Layout.parse(layout).dp
    return replace(CONFIG, layout=layout, micro_batch=micro_batch, accumulate=2, **changes)


class Diary(pico.Observer):
    def __init__(self):
        self.calls, self.norms, self.closed = [], [], False

    @contextmanager
    def open(self):
        yield
        self.closed = True

    def begin(self, run):
        self.calls.append("begin")
        assert comm.mesh().layout == run.config.layout and not hasattr(run, "model")
        run.until_end(self.open())

    def start(self, run):
        self.calls.append("start")
        assert isinstance(run.model, Transformer) and run.optimizer.state == {}

    def gradients(self, run):
        self.calls.append("gradients")
        self.norms.append(run.parallel.grad_norm())
        assert run.tokens_MBS.shape == run.labels_MBS.shape == (2, run.config.micro_batch, 16)

    def step(self, run, report):
        self.calls.append(("step", report.step))
        assert report.step == run.step and comm.ledger().step is None
        comm.all_reduce(torch.ones(1), "world", "diary: how are you?")
        assert report.grad_norm == pytest.approx(self.norms[-1], rel=1e-12)

    def end(self, run):
        self.calls.append("end")


def watched(config):
    diary = Diary()
    report = train_rank(config, observers=[diary])
    asked = comm.ledger().snapshot().where(reason="diary: how are you?")
    return report, diary.calls, diary.closed, {entry.step for entry in asked}


def test_observers_are_called_in_the_order_of_a_run_and_change_nothing():
    ranks = pico.run(watched, config("dp2tp2"), world_size=4)
    for report, calls, closed, steps in ranks:
        of_steps = [call for i in range(4) for call in ("gradients", ("step", i))]
        assert calls == ["begin", "start", *of_steps, "end"]
        assert closed and steps == {None}
        assert report.losses == ranks[0][0].losses and len(report.losses) == 4
    alone = pico.run(train_rank, config("dp2tp2"), world_size=4)
    assert alone[0].losses == ranks[0][0].losses


class Failing(pico.Observer):
    def __init__(self, path):
        self.path = path

    @contextmanager
    def left_open(self):
        try:
            yield
        finally:
            self.path.write_text("closed")

    def begin(self, run):
        run.until_end(self.left_open())

    def step(self, run, report):
        raise RuntimeError("the observer's own mistake")


def test_a_failing_observer_is_named_and_contexts_are_closed(tmp_path):
    with pytest.raises(pico.RankFailure, match="the observer's own mistake"):
        pico.run(train_rank, config("dp1"), None, [Failing(tmp_path / "note")], world_size=1)
    assert (tmp_path / "note").read_text() == "closed"


def test_a_reader_passes_an_observer_to_train():
    """One that exists in the caller's module only, as a class of a notebook does."""

    class Loudest(pico.Observer):
        def gradients(self, run):
            pico.emit(step=run.step, largest=max(float(p.grad.max()) for p in run.parameters))

    Loudest.__module__ = "__main__"
    with pytest.raises(pico.RankFailure, match="'Run' object has no attribute 'parameters'"):
        pico.train(config("dp1").model, steps=1, observers=[Loudest()], progress=False)

    class Emitting(pico.Observer):
        def gradients(self, run):
            pico.emit(
                step=run.step, largest=max(float(p.grad.max()) for p in run.model.parameters())
            )

    result = pico.train(
        CONFIG.model, "dp2", steps=3, micro_batch=1, observers=[Emitting()], progress=False
    )
    said = [(e.rank, e.data["step"]) for e in result.events if "largest" in e.data]
    assert sorted(said) == [(rank, step) for rank in (0, 1) for step in range(3)]
    with pytest.raises(ValueError, match=r"observers are pico\.Observer objects, and 3 is an int"):
        pico.train(observers=[3])


# -- a step that is skipped


class OneRankObjects(precision.Precision):
    def __init__(self, step, agree):
        self.at, self.agree, self.taken = step, agree, []

    def ready(self, parallel):
        mine = not (len(self.taken) == self.at and comm.mesh().rank("world") == 1)
        return precision.agreed(mine) if self.agree else mine

    def after_step(self, taken):
        self.taken.append(taken)


def with_objection(config, agree=True):
    return train_rank(config, precision=OneRankObjects(1, agree))


def test_a_skipped_step_is_skipped_by_all_and_ends_nothing():
    skipping = pico.run(with_objection, config("dp2"), world_size=2)
    whole = pico.run(train_rank, config("dp2"), world_size=2)
    for report in skipping:
        assert report.skipped == [1] and len(report.losses) == 4
        # Steps 0 and 1 are those of a run without it; step 2 begins from the same parameters as 1.
        assert report.losses[:2] == whole[0].losses[:2] and report.losses[2] != whole[0].losses[2]
        assert report.losses == skipping[0].losses
    result = pico.TrainResult.of(config("dp2"), skipping)
    assert result.skipped == [1]
    # Mutant: the rank that objects skips alone. Replicas drift apart, each has its own norm.
    apart = pico.run(with_objection, config("dp2"), False, world_size=2)
    assert [report.skipped for report in apart] == [[], [1]]


def overflowing(config):
    """A gradient that is not finite at step 1, in a step that is skipped and in one that is not."""

    class Overflow(pico.Observer):
        def gradients(self, run):
            if run.step == 1:
                next(run.model.parameters()).grad.fill_(torch.inf)

    report = train_rank(config, observers=[Overflow()], precision=OneRankObjects(1, agree=True))
    try:
        train_rank(config, observers=[Overflow()])
    except trainer.NonFiniteLoss as error:
        return report, str(error)


def test_an_overflow_in_a_skipped_step_is_no_end():
    for report, error in pico.run(overflowing, config("dp2"), world_size=2):
        assert report.skipped == [1] and report.grad_norms[1] == torch.inf
        assert all(map(torch.isfinite, torch.tensor(report.losses)))
        assert "the gradient norm is inf at step 1" in error


# -- evaluation


def test_evaluation_is_the_same_in_every_layout_and_trains_on_nothing():
    layouts = {"dp1": 1, "dp2": 2, "tp2": 2, "pp2": 2, "cp2": 2, "tp2sp": 2}
    reports = {
        layout: pico.run(train_rank, config(layout, eval_every=3), world_size=world)
        for layout, world in layouts.items()
    }
    right = reports["dp1"][0].eval_losses
    assert list(right) == [3, 4]  # every third step, and at the end
    for layout, ranks in reports.items():
        for report in ranks:
            assert report.eval_losses.keys() == right.keys(), layout
            for done, loss in right.items():
                assert report.eval_losses[done] == pytest.approx(loss, rel=1e-12), layout
    without = pico.run(train_rank, config("dp1"), world_size=1)[0]
    assert without.losses == reports["dp1"][0].losses and without.eval_losses == {}
    # It measures a model that learns: after the fourth step less than after the third.
    assert right[4] < right[3]


def test_held_out_losses_are_in_result_events_and_json():
    import json

    result = pico.train(CONFIG.model, "dp2", steps=2, micro_batch=1, eval_every=1, progress=False)
    told = {e.data["step"]: e.data["loss"] for e in result.events if e.kind == "eval"}
    assert told == result.eval_losses and list(told) == [1, 2]
    assert json.loads(result.to_json())["eval_losses"] == {"1": told[1], "2": told[2]}
    assert "held-out loss" in repr(result)
    # Mutant: an evaluation inside the step would be booked with it, and the formula would not hold.
    assert not result.ledger.where(step=None).entries


def test_too_little_text_to_hold_any_out(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match="63 sequences, and 64 of them would be held out"):
        pico.train(CONFIG.model, data=path, micro_batch=16, eval_every=1)


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_eval_every_is_a_number_of_steps(value):
    with pytest.raises(ValueError, match="eval_every is"):
        replace(CONFIG, eval_every=value)


def test_the_trained_text_is_never_the_held_out_one(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(torch.randint(0, 256, (1601,), dtype=torch.uint8).numpy().tobytes())
    rows = dict(dp_rank=0, dp_size=1, micro_batch=1)
    plain, text = Text(path, seq=16), Text(path, seq=16, held_out=10)
    held = text.held_out_batch(accumulate=10, **rows)[0].flatten(0, 1).tolist()
    first = text.batch(accumulate=90, **rows)[0].flatten(0, 1).tolist()
    assert first == plain.batch(accumulate=90, **rows)[0].flatten(0, 1).tolist()
    second = text.batch(accumulate=90, **rows)[0].flatten(0, 1).tolist()
    assert len({*map(tuple, held), *map(tuple, first)}) == 100
    assert sorted(first) == sorted(second) and first != second
    # A run that held nothing out and came so far has read some of what would be held out now.
    plain.position = 90
    text.load_state_dict(plain.state_dict())
    plain.position = 91
    with pytest.raises(ValueError, match="91 sequences are behind this position, with 0 held out"):
        text.load_state_dict(plain.state_dict())
    plain.position = 90
    # Mutant: without held_out, the last ten of the first shuffle are trained on next.
    assert sorted(plain.batch(accumulate=10, **rows)[0].flatten(0, 1).tolist()) == sorted(held)
