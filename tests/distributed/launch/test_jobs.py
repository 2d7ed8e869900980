"""Runs in the background: state, stacks, stopping, waiting for a turn, and nothing left behind.

Wrong versions these catch: a stop that leaves ranks, a job that cannot be stopped while it waits,
launches that leak a descriptor each."""

import gc
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.launch import server
from picolab.launch.turns import Turns


def endless():
    step = 0
    while True:
        x = torch.ones(10)
        dist.all_reduce(x)
        pico.emit(step=step)
        step += 1
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_job_is_left():
    """A job that a failed test leaves running would make every later test wait for its turn."""
    yield
    for job in pico.jobs():
        job.stop()


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def rank_processes() -> list[psutil.Process]:
    pid = server.pid()
    return psutil.Process(pid).children() if pid and psutil.pid_exists(pid) else []


def test_a_background_job_runs_shows_where_it_is_and_stops():
    job = pico.run(endless, world_size=2, wait=False)
    wait_for(lambda: any(e.kind == "values" for e in job.events))
    assert job.state == "running" and not job.done and job in pico.jobs()
    assert "endless" in repr(job) and "running" in repr(pico.jobs())
    where = job.where()
    assert set(where.stacks) == {0, 1} and "in endless" in where.stacks[0]
    assert "all_reduce" in repr(where)
    assert job.stop().startswith(f"job {job.id} (endless) was stopped after")
    assert job.done and job.state == "stopped" and not rank_processes()
    assert job.stop() == f"job {job.id} (endless) has already ended: stopped"
    with pytest.raises(ValueError, match="no rank is left to ask"):
        job.where()
    with pytest.raises(RuntimeError, match="was stopped after"):
        job.result()


def test_observers_see_events_as_they_happen_and_can_leave():
    seen = []
    job = pico.run(endless, world_size=2, wait=False)
    leave = job.on_event(lambda e: seen.append(e.kind))
    wait_for(lambda: "values" in seen)
    leave()
    count = len(seen)
    time.sleep(0.3)
    assert len(seen) == count
    job.stop()


def test_a_second_job_waits_its_turn_and_says_so(capfd):
    world = max(2, (os.cpu_count() or 1))
    first = pico.run(endless, world_size=world, wait=False)
    wait_for(lambda: first.state == "running")
    second = pico.run(lambda: "my turn", world_size=2, wait=False)
    third = pico.run(lambda: "never", world_size=2, wait=False)
    time.sleep(0.5)
    assert second.state == "waiting" and third.state == "waiting"
    assert f"waiting for job {first.id} (endless" in capfd.readouterr().out
    third.stop()
    assert third.state == "stopped"
    first.stop()
    assert second.result()[0] == "my turn"


def test_turns_let_small_jobs_share_and_big_ones_wait():
    turns = Turns(cores=4)
    assert turns.take("a", 2, print, lambda: False) and turns.take("b", 2, print, lambda: False)
    assert not turns.take("c", 1, lambda others: None, lambda: True)  # no room: cancelled at once
    turns.give_back("a")
    assert turns.take("d", 2, print, lambda: False)
    # A world larger than the machine runs when nothing else does.
    turns.give_back("b"), turns.give_back("d")
    assert turns.take("e", 64, print, lambda: False)


def test_an_interrupt_stops_the_job_and_is_raised_again():
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pico.run(endless, world_size=2)
    assert time.monotonic() - start < 1.0 + 1.0 + 2.0 and not rank_processes()
    assert list(pico.run(lambda: 1, world_size=2)) == [1, 1]  # and the next one works


def test_a_rank_that_ignores_everything_is_still_stopped():
    def stubborn():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        pico.emit(ready=1)
        os.kill(os.getpid(), signal.SIGSTOP)

    job = pico.run(stubborn, world_size=2, wait=False)
    wait_for(lambda: sum(e.kind == "values" for e in job.events) == 2)
    job.stop()
    assert not rank_processes()


def test_fifty_launches_leak_nothing():
    def small():
        x = torch.ones(1)
        dist.all_reduce(x)
        return x.item()

    def failing():
        raise ValueError("on purpose")

    def census():
        gc.collect()  # what earlier tests let go of
        me = psutil.Process()
        temporary = len(list(Path(tempfile.gettempdir()).glob("pymp-*/*")))
        shared = len(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0
        return me.num_fds(), len(rank_processes()), len(me.children()), temporary, shared

    pico.run(small, world_size=2)
    threads = threading.active_count()
    before = census()
    for i in range(50):
        if i % 5 == 4:
            with pytest.raises(pico.RankFailure):
                pico.run(failing, world_size=2, quiet=True)
        else:
            assert pico.run(small, world_size=2, quiet=True)[0] == 2.0
    wait_for(lambda: threading.active_count() <= threads)
    after = census()
    assert all(now <= then for now, then in zip(after, before)), (before, after)


def tells_when() -> float:
    began = time.time()
    pico.emit(began=began)
    return began


@pytest.mark.parametrize("world_size", [1, 2])
def test_held_ranks_begin_when_the_view_is_ready(world_size):
    """The mutant, a job that nobody holds, begins at once."""
    ready = threading.Event()
    job = pico.run(tells_when, world_size=world_size, wait=False)
    job.hold(ready)
    time.sleep(1.5)
    said = time.time()
    ready.set()
    assert min(job.result()) >= said
    assert not (job.run_dir / "held").exists()
    free = pico.run(tells_when, world_size=world_size, wait=False)
    time.sleep(1.5)
    assert max(free.result()) < time.time() - 0.5


def test_held_ranks_wait_no_longer_than_the_bound():
    """With a view that never stands: nobody sets the event."""
    job = pico.run(tells_when, world_size=2, wait=False)
    job.hold(threading.Event())
    assert len(job.result()) == 2
    wait_for(lambda: not (job.run_dir / "held").exists())
