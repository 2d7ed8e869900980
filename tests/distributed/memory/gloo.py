"""gloo lets go of what it sent when its own thread has the time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def a_moment_for_gloo() -> Iterator[None]:
    """A thread of gloo lets go of what it sent a moment after it has woken whoever waits. On a busy
    machine that is late enough to be seen as kept, so each wait leaves it the core."""
    wait = dist.Work.wait

    def waited(work, *args, **kwargs):
        done = wait(work, *args, **kwargs)
        time.sleep(5e-4)
        return done

    dist.Work.wait = waited
    try:
        yield
    finally:
        dist.Work.wait = wait
