"""`torchrun ... -m picolab train` is the notebook's run: same losses, same run directory.

The wrong versions this file catches: a command that starts ranks of its own inside each rank; JSON
from every rank, or progress within it; ranks that record into folders of their own; a sentence said
by every rank, or by none because the others ended first; a resumed run that begins again.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import picolab as pico
from picolab.launch import rundirs

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
    repeated, and all that it reports is what the notebook gets from the same checkpoint."""
    folder, then, run_dir = tmp_path / "checkpoints", tmp_path / "then", tmp_path / "run"
    settings = dict(steps=150, data="random", seed=3, clip=0.5, warmup=2, eps=1e-6)
    saved = dict(checkpoint=folder, save_every=10)
    process = torchrun("dp2", **settings, **saved)
    deadline = time.monotonic() + 120
    while not (folder / "step-20").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, finished(process)
        time.sleep(0.01)
    worker(process, 1).send_signal(signal.SIGKILL)
    stdout, _ = finished(process)
    assert process.returncode != 0 and stdout == ""
    shutil.copytree(folder, then)

    again = torchrun("dp2", **settings, **saved, resume=folder, run_dir=run_dir)
    stdout, stderr = finished(again)
    assert again.returncode == 0, stderr
    away, whole = json.loads(stdout), home("dp2", **settings)
    first = away["first_step"]
    assert 20 <= first < 150 and away["losses"] == whole.losses[first:]
    assert {path.name for path in folder.iterdir()} == {"step-140", "step-150"}
    here = home("dp2", **settings, resume=then)
    assert away["losses"] == here.losses and away["grad_norms"] == here.grad_norms
    told = json.loads(here.to_json())
    assert {**away, "step_s": 0}.keys() == told.keys() and away["ledger"] == told["ledger"]
    assert away["run_dir"] == str(run_dir) and len(away["step_s"]) == len(here.losses)
    assert "150/150" in stderr and stderr.count("backend gloo") == 1
    # The run directory is one of ours: for the dashboard, for `picolab runs`, for collect.
    assert rundirs.describe(run_dir)["state"] == "done"
    ranks = pico.launch.collect(run_dir)
    assert len(ranks) == 2 and ranks[1].losses == here.losses
    for rank in (0, 1):
        of_rank = [e.data["loss"] for e in ranks.events if e.kind == "step" and e.rank == rank]
        assert of_rank == here.losses
    # And at home, in another layout, from a checkpoint that torchrun's ranks wrote.
    other = home("tp2", **settings, resume=folder / "step-140", micro_batch=8)
    assert other.losses == pytest.approx(whole.losses[140:], rel=1e-4)
