"""A run that goes on is the same run: a step stays what it was, and what differs is said.

Catches a global batch that changes with dp, in silence (the mutant: settings taken as they are
given); another lr, betas, weight decay or schedule without a word; a corpus of the same size and
other content.
"""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import picolab as pico
from picolab.training import Checkpoints, TrainConfig, checkpoint, resume, trainer
from picolab.training.result import TrainResult
from picolab.training.text import open_text

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=16)
RUN = dict(dtype="fp64", steps=6, lr=1e-2, eps=1e-5, warmup=2, micro_batch=4)


@pytest.fixture(scope="module", autouse=True)
def own_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def train(layout, **more):
    return pico.train(layout=layout, progress=False, **{**SHAPE, **RUN, **more})


def config_of(layout, **more):
    return TrainConfig(model=pico.ModelConfig(**SHAPE), layout=layout, **{**RUN, **more})


@pytest.fixture(scope="module")
def of_dp2(tmp_path_factory):
    """dp2, micro_batch 4: eight sequences a step. Its checkpoints and the run."""
    folder = tmp_path_factory.mktemp("dp2") / "ck"
    return folder, train("dp2", checkpoint=folder, save_every=3, keep=5)


def differs(found, whole) -> float:
    pairs = zip(found.losses, whole.losses[found.first_step :], strict=True)
    return max(abs(a - b) / b for a, b in pairs)


def unadapted(config, checkpoints):
    """The mutant, in a rank: the batch follows dp, as if a step were nobody's business."""
    checkpoint.check = lambda *_: None
    return trainer.train_rank(config, checkpoints)


def test_a_step_stays_what_it_was_on_fewer_replicas(of_dp2, capsys):
    folder, whole = of_dp2
    found = train("dp1", resume=folder / "step-3")
    line = "resume: accumulate 1 -> 2, so that a step of dp1 stays 8 sequences (128 tokens)"
    assert capsys.readouterr().err == f"{line}\n"
    assert found.tokens == whole.tokens[3:] and found.config.accumulate == 2
    assert differs(found, whole) < 1e-12
    assert [e.data["notes"] for e in found.events if e.kind == "resume"] == [[line]]
    config, wrong = config_of("dp1"), Checkpoints(resume=folder / "step-3")
    ranks = pico.run(unadapted, config, wrong, world_size=1)
    assert differs(TrainResult.of(config, ranks), whole) > 1e-3
    # Ranks that are given such settings refuse them too.
    with pytest.raises(
        pico.RankFailure, match=r"8 sequences.* give micro_batch=4 and accumulate=2"
    ):
        pico.run(trainer.train_rank, config, wrong, world_size=1)


def test_a_step_stays_what_it_was_on_more_replicas(of_dp2, tmp_path):
    folder, whole = of_dp2
    one = train("dp1", resume=folder / "step-3", steps=5, checkpoint=tmp_path)
    assert one.config.accumulate == 2
    # Back to two; its steps are 6 again, so that the schedule is the first one's.
    with pytest.raises(ValueError, match="give micro_batch=2 and accumulate=1"):
        train("dp4", resume=folder / "step-3")
    found = train("dp4", resume=folder / "step-3", micro_batch=2)
    assert differs(found, whole) < 1e-12


@pytest.mark.parametrize(
    ("layout", "settings", "says"),
    [
        ("dp1", dict(micro_batch=3), "give micro_batch=2 and accumulate=4"),
        ("dp1", dict(micro_batch=99), "give micro_batch=8 and accumulate=1"),
        ("dp2", dict(micro_batch=3), "give micro_batch=2 and accumulate=2"),
        ("dp3", {}, "give a layout whose dp divides 8, such as dp2 or dp4"),
        ("dp16", dict(micro_batch=1), "give a layout whose dp divides 8, such as dp8"),
    ],
)
def test_what_makes_no_such_step_is_refused_with_what_would(layout, settings, says, of_dp2):
    config = config_of(layout, **settings)
    with pytest.raises(ValueError, match=says):
        Checkpoints(resume=of_dp2[0] / "step-3").resolve(config, open_text(config))


@settings(max_examples=200)
@given(*[st.integers(1, 8)] * 6)
def test_a_step_is_as_large_as_it_was_or_there_is_a_sentence(dp, size, times, dp2, size2, times2):
    before = config_of(f"dp{dp}", micro_batch=size, accumulate=times)
    about = {"step": 3, "config": resume.record(before)}
    config = config_of(f"dp{dp2}", micro_batch=size2, accumulate=times2)
    possible = before.sequences_per_step % dp2 == 0
    try:
        found, lines = resume.adapt("ck", about, config)
    except ValueError as error:
        assert before.sequences_per_step % (dp2 * size2) != 0
        advice = str(error).split("give ")[1]
        assert advice.startswith("micro_batch=") == possible
        if possible:  # and the advice is right
            words = (word.split("=") for word in advice.split(" and "))
            config = dataclasses.replace(config, **{name: int(n) for name, n in words})
            found, lines = resume.adapt("ck", about, config)
            assert not lines
    assert not possible or found.sequences_per_step == before.sequences_per_step
    assert possible or dp2 not in (1, dp)


def test_each_setting_that_differs_is_said_once(of_dp2, capsys):
    changed = dict(lr=1e-3, betas=(0.8, 0.95), weight_decay=0.0, clip=None, steps=8)
    found = train("dp2", resume=of_dp2[0] / "step-3", **changed)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "resume: betas [0.9, 0.95] -> [0.8, 0.95]",
        "resume: clip 1.0 -> None",
        "resume: lr 0.01 -> 0.001",
        "resume: steps 6 -> 8",
        "resume: weight_decay 0.1 -> 0.0",
        "resume: the learning rate of step 3 is 0.00094; by the settings of the checkpoint it is "
        "0.00868",
    ]
    assert found.learning_rates[0] == pytest.approx(9.4e-4, rel=1e-2)
    (event,) = [e for e in found.events if e.kind == "resume"]
    assert event.data["notes"] == lines


def test_another_stage_of_zero_is_a_sentence(of_dp2):
    about = checkpoint.describe(of_dp2[0] / "step-3")
    (said,) = resume.adapt("ck", about, config_of("dp2zero3"))[1]
    assert said == (
        "resume: the checkpoint is of dp2, with ZeRO 0, and this is dp2zero3, with 3: shards are "
        "cut anew, no number changes"
    )


def test_the_same_settings_need_no_words(of_dp2, capsys):
    """Nor does another way to cut the same step, which changes rounding only."""
    folder, whole = of_dp2
    found = train("dp2", resume=folder / "step-3")
    assert found.losses == whole.losses[3:]
    found = train("tp2", resume=folder / "step-3", micro_batch=2, accumulate=4, bucket_bytes=999)
    assert differs(found, whole) < 1e-12
    assert capsys.readouterr().err == ""


def test_a_setting_younger_than_the_checkpoint_had_its_default(of_dp2):
    about = checkpoint.describe(of_dp2[0] / "step-3")
    del about["config"]["clip"], about["config"]["model"]["qk_norm"]
    assert resume.adapt("ck", about, config_of("dp2"))[1] == []
    assert resume.adapt("ck", about, config_of("dp2", clip=2.0))[1] == ["resume: clip 1.0 -> 2.0"]


def test_another_text_of_the_same_size_is_refused(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(random.Random(0).randbytes(5000))
    train("dp1", data=corpus, checkpoint=tmp_path / "ck", steps=2)
    train("dp1", data=corpus, resume=tmp_path / "ck", steps=3)
    corpus.write_bytes(random.Random(1).randbytes(5000))
    with pytest.raises(ValueError, match="as many bytes as it had there, but other ones"):
        train("dp1", data=corpus, resume=tmp_path / "ck", steps=3)
    about = checkpoint.describe(tmp_path / "ck" / "step-2")
    assert len(about["text"]["hash"]) == 64
