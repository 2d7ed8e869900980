"""`torchrun ... -m picolab train` is the notebook's run: same losses, same run directory.

The wrong versions this file catches: a command that starts ranks of its own inside each rank; JSON
from every rank, or progress within it; ranks that record into folders of their own; a sentence said
by every rank, or by none because the others ended first; a resumed run that begins again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import picolab as pico
from picolab.launch import rundirs
from picolab.training import is_rank

ROOT = Path(pico.__file__).resolve().parents[1]
SHAPE = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, seq=16)


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def torchrun(layout, *, ranks=2, **settings) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", "picolab", "train", "--json"]
    for name, value in {"layout": layout, **SHAPE, **settings}.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def finished(process) -> tuple[str, str]:
    try:
        return process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks
        raise


def home(layout, **settings):
    return pico.train(layout=layout, progress=False, **SHAPE, **settings)


def test_the_losses_of_the_notebook(tmp_path):
    settings = dict(steps=4, accumulate=2, seed=3, clip=0.5, warmup=2, eps=1e-6)
    process = torchrun("tp2", run_dir=tmp_path / "run", **settings)
    stdout, stderr = finished(process)
    assert process.returncode == 0, stderr
    away, here = json.loads(stdout), home("tp2", **settings)
    assert away["losses"] == here.losses and away["grad_norms"] == here.grad_norms
    assert away["run_dir"] == str(tmp_path / "run") and len(away["step_s"]) == 4
    assert {**away, "step_s": 0}.keys() == json.loads(here.to_json()).keys()
    assert away["ledger"] == json.loads(here.to_json())["ledger"]
    assert "4/4" in stderr and stderr.count("backend gloo") == 1
    # The run directory is one of ours: for the dashboard, for `picolab runs`, for collect.
    assert rundirs.describe(tmp_path / "run")["state"] == "done"
    ranks = pico.launch.collect(tmp_path / "run")
    assert len(ranks) == 2 and ranks[1].losses == here.losses
    for rank in (0, 1):
        told = [e.data["loss"] for e in ranks.events if e.kind == "step" and e.rank == rank]
        assert told == here.losses


def test_what_is_wrong_is_said_once():
    process = torchrun("dp4", steps=2)
    stdout, stderr = finished(process)
    assert process.returncode != 0 and stdout == ""
    said = [line for line in stderr.splitlines() if line.startswith("picolab:")]
    assert said == [
        "picolab: layout dp4 needs 4 ranks, and torchrun started 2; "
        "give --nproc-per-node 4, or another layout"
    ]
    assert rundirs.ls() == []


def worker(process, rank) -> psutil.Process:
    """The process that torchrun started as this rank."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no rank {rank} among the children of torchrun")


def test_a_killed_rank_and_the_same_command_again(tmp_path):
    """SIGKILL of a real rank in the middle; relaunched with --resume; nothing is lost or
    repeated."""
    folder = tmp_path / "checkpoints"
    settings = dict(steps=150, data="random")
    saved = dict(checkpoint=folder, save_every=10)
    process = torchrun("dp2", **settings, **saved)
    deadline = time.monotonic() + 120
    while not (folder / "step-20").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, finished(process)
        time.sleep(0.01)
    worker(process, 1).send_signal(signal.SIGKILL)
    stdout, _ = finished(process)
    assert process.returncode != 0 and stdout == ""

    again = torchrun("dp2", **settings, **saved, resume=folder)
    stdout, stderr = finished(again)
    assert again.returncode == 0, stderr
    rest, whole = json.loads(stdout), home("dp2", **settings)
    assert 20 <= rest["first_step"] < 150
    assert rest["losses"] == whole.losses[rest["first_step"] :]
    assert {path.name for path in folder.iterdir()} == {"step-140", "step-150"}
    # And at home, in another layout, from a checkpoint that torchrun's ranks wrote.
    fewer = home("tp2", **settings, resume=folder / "step-140", micro_batch=8)
    assert fewer.losses == pytest.approx(whole.losses[140:], rel=1e-4)


def test_is_rank():
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert is_rank(launcher) and not is_rank({}) and not is_rank({"WORLD_SIZE": "2"})
    assert not is_rank(os.environ), "tests are no rank"
