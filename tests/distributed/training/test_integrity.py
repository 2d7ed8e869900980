"""Every byte of a checkpoint is the one that was written, or it is said before a number is used.

Catches one flipped bit in any file (weights, the pickle in .metadata, checkpoint.json itself), an
empty or half step-99 that hides a whole step-4 or outlives it, and a damaged newest that ends a
run. Checkpoints of format 1 (sizes only) must go on being read. The mutants look at sizes only, or
believe checkpoint.json as it stands.
"""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import picolab as pico
from picolab.cli import main
from picolab.training import Checkpoints, TrainConfig, checkpoint, integrity
from picolab.training.text import open_text

SHAPE = dict(hidden=8, ffn=8, layers=1, heads=2, kv_heads=2, vocab=16, seq=8)
RUN = dict(data="random", dtype="fp64", lr=1e-2, eps=1e-5, warmup=1, micro_batch=2, accumulate=2)
OLD = Path(__file__).parent / "old_checkpoint" / "format-1.tar.xz"


@pytest.fixture(scope="module", autouse=True)
def own_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def train(layout, **more):
    return pico.train(layout=layout, progress=False, **{**SHAPE, **RUN, "steps": 4, **more})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The checkpoints step-1 ... step-4 of a run on tp2, and the run."""
    folder = tmp_path_factory.mktemp("written") / "ck"
    return folder, train("tp2", checkpoint=folder, save_every=1, keep=9)


@pytest.fixture
def copied(written, tmp_path):
    return Path(shutil.copytree(written[0], tmp_path / "ck"))


def flip(path, where, bit):
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1 << bit
    path.write_bytes(raw)


def resolve(path):
    config = TrainConfig(model=pico.ModelConfig(**SHAPE), layout="tp2", **RUN, steps=4)
    return Checkpoints(resume=path).resolve(config, open_text(config))


# -- a flipped bit --


def no_contents(path):
    """Mutant: sizes are all that is looked at."""
    return json.loads((path.parent / integrity.ABOUT).read_text())["hashes"][path.name]


FILES = [".metadata", "__0_0.distcp", "__1_0.distcp", integrity.ABOUT]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_noticed_before_a_number_is_used(name, data, written, monkeypatch):
    path = written[0] / "step-2"
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    intact = (path / name).read_bytes()
    where = data.draw(st.integers(0, len(intact) - 1), label="byte")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.dcp, "FileSystemReader", None)  # nobody gets as far as reading
        try:
            flip(path / name, where, data.draw(st.integers(0, 7), label="bit"))
            for read in (resolve, checkpoint.state_dict):
                with pytest.raises(integrity.Damaged, match=f"its {name}") as error:
                    read(path)
                assert "\n" not in str(error.value)
            if name != integrity.ABOUT:
                patch.setattr(integrity, "digest", no_contents)
                resolve(path)  # the mutant goes on with it
        finally:
            (path / name).write_bytes(intact)
    resolve(path)


def test_sizes_alone_let_another_weight_pass(copied, monkeypatch):
    """What the hash is for: the wrong number is a number."""
    step = copied / "step-2"
    intact = checkpoint.state_dict(step)
    path = step / "__1_0.distcp"
    value = next(tensor for name, tensor in intact.items() if "norm" in name)
    where = path.read_bytes().find(value.numpy().tobytes())
    if where < 0:  # rank 0 wrote this one
        path = step / "__0_0.distcp"
        where = path.read_bytes().find(value.numpy().tobytes())
    flip(path, where + 5, 3)
    monkeypatch.setattr(integrity, "digest", no_contents)
    found = checkpoint.state_dict(step)
    assert not all(torch.equal(found[name], tensor) for name, tensor in intact.items())
    monkeypatch.undo()
    with pytest.raises(integrity.Damaged, match="other bytes than were written"):
        checkpoint.state_dict(step)


def test_a_changed_setting_breaks_the_seal(copied, monkeypatch):
    path = copied / "step-2" / integrity.ABOUT
    path.write_text(path.read_text().replace('"lr": 0.01', '"lr": 0.02'))
    with pytest.raises(integrity.Damaged, match=r"its checkpoint\.json holds other bytes"):
        resolve(copied / "step-2")
    believed = json.loads(path.read_text())
    monkeypatch.setattr(integrity, "seal", lambda about: path.read_text())  # the mutant
    assert resolve(copied / "step-2")[1].notes and believed["config"]["lr"] == 0.02


def test_the_hashes_are_those_of_sha256sum(copied):
    about = checkpoint.describe(copied / "step-4")
    assert about["hashes"].keys() == about["files"].keys() == set(FILES) - {integrity.ABOUT}
    for name, found in about["hashes"].items():
        assert found == integrity.digest(copied / "step-4" / name)


def test_a_disk_that_cannot_read_is_damage(copied, monkeypatch):
    real = integrity.digest

    def digest(path):
        if path.match("step-4/__0_0.distcp"):
            raise OSError(5, os.strerror(5))
        return real(path)

    monkeypatch.setattr(integrity, "digest", digest)
    found = checkpoint.choose(copied)
    assert found.path.name == "step-3" and "(Input/output error)" in found.notes[0]


# -- the last good one --


def test_a_damaged_newest_is_passed_over_and_said(written, copied, capsys):
    """The run goes on from the last good one, says so once, and puts a whole one in its place."""
    _, whole = written
    flip(copied / "step-4" / "__0_0.distcp", 1000, 0)
    again = train("tp2", resume=copied, checkpoint=copied, save_every=1, keep=9)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "step-4 is passed over, because its __0_0.distcp holds other bytes" in said
    assert "step-3 is the newest that is whole" in said
    assert (again.first_step, again.losses) == (3, whole.losses[3:])
    (event,) = [event for event in again.events if event.kind == "resume"]
    assert event.data == {"step": 3, "notes": [said.rstrip("\n")]}
    assert main(["checkpoint", "verify", str(copied)]) == 0


@pytest.mark.parametrize("half", ["empty", "without its list", "without a file"])
def test_an_empty_or_half_step_hides_nothing(half, copied, capsys):
    if half == "empty":
        (copied / "step-99").mkdir()
    else:
        shutil.copytree(copied / "step-4", copied / "step-99")
        lost = integrity.ABOUT if half == "without its list" else "__1_0.distcp"
        (copied / "step-99" / lost).unlink()
    assert checkpoint.find(copied) == copied / "step-4"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "step-99 is passed over, because its" in said
    again = train("tp2", resume=copied, checkpoint=copied, steps=6, save_every=1, keep=2)
    assert again.first_step == 4
    # Nor is it one of the two that are kept.
    assert sorted(path.name for path in copied.iterdir()) == ["step-5", "step-6", "step-99"]
    with pytest.raises(integrity.Damaged, match="step-99 is damaged: its"):
        train("tp2", resume=copied / "step-99", steps=120)


def test_a_half_step_does_not_forbid_to_go_on_from_a_named_one(copied):
    (copied / "step-99").mkdir()
    again = train("tp2", resume=copied / "step-4", checkpoint=copied, steps=5)
    assert again.first_step == 4


def test_none_is_whole(copied):
    for path in copied.iterdir():
        flip(path / ".metadata", 7, 7)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: step-4's \.metadata hold"):
        train("tp2", resume=copied, steps=5)


# -- the command --


def test_the_command_says_of_each_file(copied, capsys):
    assert main(["checkpoint", "verify", str(copied / "step-4")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("ok       step-4/") for line in lines)
    flip(copied / "step-4" / ".metadata", 50, 1)
    shutil.rmtree(copied / "step-1")
    (copied / "step-1").mkdir()
    assert main(["checkpoint", "verify", str(copied)]) == 1
    damaged = [s for s in capsys.readouterr().out.splitlines() if not s.startswith("ok ")]
    assert damaged == [
        "damaged  step-1/checkpoint.json is missing, so it is not complete",
        "damaged  step-4/.metadata holds other bytes than were written",
    ]
    assert main(["checkpoint", "verify", str(copied), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["checkpoints"]
    assert found[-1]["files"][".metadata"] == "holds other bytes than were written"
    assert main(["checkpoint", "ls", str(copied)]) == 0
    listed = capsys.readouterr().out.splitlines()[-4:]
    assert "checkpoint.json is missing, so it is not complete" in listed[0]
    assert listed[1].split()[:3] == ["step-2", "2", "tp2"] and listed[1].endswith("complete")
    for action in ("verify", "ls"):
        assert main(["checkpoint", action, str(copied / "nothing")]) == 2
        assert "there is no checkpoint in" in capsys.readouterr().err


# -- format 1 --


@pytest.fixture
def old(tmp_path):
    """What picolab 0.1.0 wrote before there were hashes: step 2 of 4, on tp2, with SHAPE and RUN;
    and the losses of that run."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "step-2", json.loads((tmp_path / "losses.json").read_text())


@pytest.mark.parametrize("layout", ["tp2", "dp2", "dp1"])
def test_a_checkpoint_of_format_1_goes_on(layout, old, capsys):
    path, losses = old
    found = train(layout, resume=path, accumulate=1 if layout == "dp2" else 2)
    assert found.first_step == 2
    for ours, then in zip(found.losses, losses[2:], strict=True):
        assert abs(ours - then) < 1e-12 * then
    assert "step-2 is of an older picolab and has no hashes: sizes only" in capsys.readouterr().err


def test_a_checkpoint_of_format_1_is_checked_by_size(old, capsys):
    path, _ = old
    assert main(["checkpoint", "verify", str(path)]) == 0
    assert "no hashes: sizes only" in capsys.readouterr().out
    os.truncate(path / ".metadata", 100)
    with pytest.raises(integrity.Damaged, match=r"its \.metadata has 100 bytes of"):
        train("dp1", resume=path)
