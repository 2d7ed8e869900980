"""The same function under torchrun: same values, same events, failures attributed as at home.

Wrong versions these catch: a payload that only the notebook's launcher can start; elastic's own
attribution, which names the rank whose connection was closed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import picolab as pico


def torchrun(run_dir, ranks=2) -> subprocess.CompletedProcess:
    root = Path(pico.__file__).resolve().parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", "picolab.launch.worker", str(run_dir)]
    environment = {**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_a_cells_function_runs_under_torchrun_as_at_home(tmp_path):
    scale = 3

    def lesson(offset):
        x = torch.tensor([dist.get_rank() * scale + offset], dtype=torch.float64)
        pico.emit(before=x.item())
        dist.all_reduce(x)
        return x.item()

    command = pico.launch.export(lesson, tmp_path / "run", 1.5)
    assert f"-m picolab.launch.worker {tmp_path / 'run'}" in command
    with pytest.raises(ValueError, match="no rank has started"):
        pico.launch.collect(tmp_path / "run")
    done = torchrun(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    away = pico.launch.collect(tmp_path / "run")
    home = pico.run(lesson, 1.5, world_size=2)
    assert list(away) == list(home) == [6.0, 6.0]
    for run in (away, home):
        before = {e.rank: e.data["before"] for e in run.events if e.kind == "values"}
        assert before == {0: 1.5, 1: 4.5}
    assert away.ledger.total().count == home.ledger.total().count == 2
    assert away.ledger.entries[0].ranks == (0, 1)


def test_the_cause_is_named_and_not_the_rank_whose_connection_closed(tmp_path):
    def fails():
        if dist.get_rank() == 1:
            raise ZeroDivisionError("the cause")
        dist.all_reduce(torch.ones(10))

    pico.launch.export(fails, tmp_path)
    done = torchrun(tmp_path)
    assert done.returncode != 0
    with pytest.raises(pico.RankFailure, match="rank 1 failed: ZeroDivisionError: the cause") as e:
        pico.launch.collect(tmp_path)
    assert e.value.rank == 1 and "raise ZeroDivisionError" in e.value.traceback


def test_a_worker_without_a_payload_or_a_launcher_says_so(tmp_path, capsys):
    from picolab.launch import worker

    assert worker.main([]) == 2 and "there is no payload" in capsys.readouterr().err
    pico.launch.export(print, tmp_path)
    assert worker.main([str(tmp_path)]) == 2 and "torchrun" in capsys.readouterr().err


def test_an_exported_payload_does_not_hold_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PICOLAB_TEST_TOKEN", "hunter2")
    pico.launch.export(print, tmp_path)
    assert b"hunter2" not in (tmp_path / "payload.pkl").read_bytes()
