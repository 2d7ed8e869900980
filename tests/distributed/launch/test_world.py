"""A world that stays: the same processes, state between calls, no life after a failure.

Wrong versions these catch: a pool that is poisoned by a failure and hangs at the next call; an
idle world declared hung."""

import os
import time

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.launch import World


def remember(value):
    from picolab.launch.world import state

    state["value"] = value + dist.get_rank()
    return os.getpid()


def recall():
    from picolab.launch.world import state

    x = torch.tensor([state["value"]])
    dist.all_reduce(x)
    return os.getpid(), x.item()


def fail():
    if dist.get_rank() == 1:
        raise ValueError("enough")
    dist.all_reduce(torch.ones(1))


def test_calls_share_processes_and_state_and_an_idle_world_is_not_hung():
    with World(3, timeout=1.0, quiet=True) as world:
        first = world.run(remember, 10)
        time.sleep(1.6)  # longer than the timeout: nothing was asked, so nothing hangs
        second = world.run(recall)
        assert [pid for pid, _ in second] == list(first)
        assert [total for _, total in second] == [33, 33, 33]
        assert second.ledger.total().count == 3  # of this call only
        assert "running" in repr(world)
    assert world.job.state == "stopped"
    world.close()  # a second time changes nothing
    with pytest.raises(ValueError, match="this world has ended"):
        world.run(recall)


def test_a_failure_ends_the_world():
    world = World(2, quiet=True)
    with pytest.raises(pico.RankFailure, match="rank 1 failed: ValueError: enough"):
        world.run(fail)
    with pytest.raises(ValueError, match="does not outlive a failure"):
        world.run(remember, 1)


def test_a_call_that_hangs_is_reported():
    with World(2, timeout=1.0, quiet=True) as world:
        world.run(remember, 0)
        with pytest.raises(pico.RankHang, match="no rank made progress"):
            world.run(lambda: time.sleep(60))
