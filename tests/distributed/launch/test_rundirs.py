"""Run directories: one place, the newest 20 kept, a running one never removed, a place that
cannot be written refused.

Wrong versions these catch: pruning by count alone (it would delete a running job's directory),
half-written run.json."""

import json
import os
import subprocess
import sys
import time

import pytest

import picolab as pico
from picolab.launch import rundirs


@pytest.fixture(autouse=True)
def own_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_newest_twenty_are_kept_and_a_running_one_always():
    running = rundirs.create("still-going", {"state": "running"})
    old = [rundirs.create(f"run {i}", {"state": "done"}) for i in range(25)]
    assert running.exists() and old[-1].exists() and not old[0].exists()
    kept = rundirs.ls()
    assert len(kept) == rundirs.KEEP + 1 and kept[0] == running  # the running one on top of twenty
    # Mutant: `runs[:-KEEP]` deleted without asking whether it runs would have taken it first.
    assert sorted(rundirs.ls())[0] == running


def test_a_run_whose_process_is_gone_does_not_count_as_running():
    directory = rundirs.create("dead", {"state": "running"})
    assert rundirs.is_running(directory)
    os.close(rundirs._held.pop(directory))  # as the system does when a process ends
    assert not rundirs.is_running(directory)
    # Where there are no locks, the process's number has to do.
    about = json.loads((directory / "run.json").read_text()) | {"held": False}
    (directory / "run.json").write_text(json.dumps(about))
    assert rundirs.is_running(directory)
    (directory / "run.json").write_text(json.dumps({**about, "pid": 2**22 + 1}))
    assert not rundirs.is_running(directory)


def test_remove_names_what_is_not_there_and_what_still_runs():
    gone = rundirs.create("a", {"state": "done"})
    busy = rundirs.create("b", {"state": "running"})
    with pytest.raises(ValueError, match="there is no run 'nonsense'"):
        rundirs.remove([gone.name, "nonsense"])
    assert gone.exists()
    with pytest.raises(ValueError, match="is still running"):
        rundirs.remove([busy.name])
    assert rundirs.remove([gone.name]) == [gone] and not gone.exists()


def test_a_place_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        pico.launch.RunDirectoryError, match=r"cannot write the run directory in .*Choose another"
    ):
        pico.run(print, world_size=1)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux"
)
def test_a_full_disk_is_one_sentence(monkeypatch, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        monkeypatch.setenv("XDG_STATE_HOME", str(disk))
        with pytest.raises(OSError, match="No space left"):
            for i in range(100):
                (disk / f"filler{i}").write_bytes(b"x" * 4096)
        with pytest.raises(pico.launch.RunDirectoryError, match="No space left on device"):
            pico.run(print, world_size=1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_finished_run_says_how_it_ended_and_drops_its_temporary_files():
    result = pico.run(lambda: time.sleep(0.01), world_size=2)
    about = rundirs.describe(result.run_dir)
    assert (
        about["state"] == "done" and about["world_size"] == 2 and about["ended"] >= about["started"]
    )
    left = {path.name for path in result.run_dir.iterdir()}
    assert left == {
        f"{n}.{r}.{e}" for r in (0, 1) for n, e in (("events", "jsonl"), ("rank", "log"))
    } | {"run.json"}
