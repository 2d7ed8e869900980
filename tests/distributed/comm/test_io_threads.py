"""Gloo's reading threads run at a lower priority than everything else of a rank.

Wrong versions these catch: priorities set before the groups exist (their threads start later), only
the first group's thread found, the whole process made slow."""

import os
import sys

import pytest
import torch

import picolab as pico
from picolab import comm
from picolab.comm import io_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not list threads")


def priorities() -> dict[int, tuple[str, int]]:
    found = {}
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/comm") as file:
            found[int(thread)] = file.read().strip(), os.getpriority(os.PRIO_PROCESS, int(thread))
    return found


def test_all_reading_threads_give_way_and_nothing_else_does():
    def look():
        early = set(io_threads.give_way())  # mutant: before the mesh, whose groups start threads
        comm.build_mesh("dp2tp2")
        comm.all_reduce(torch.ones(4), "tp", "r")
        return early, priorities(), os.getpriority(os.PRIO_PROCESS, 0)

    for early, found, usual in pico.run(look, world_size=4):
        reading = {t: nice for t, (name, nice) in found.items() if name == "gloo_tcp_loop"}
        assert set(reading.values()) == {io_threads.NICE}
        assert len(reading) > len(early)  # so the mutant would have missed some
        others = [nice for name, nice in found.values() if name != "gloo_tcp_loop"]
        assert set(others) == {usual} and usual < io_threads.NICE


def test_a_sandbox_that_forbids_it_costs_speed_only(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    own = (io_threads._THREADS / str(os.getpid()) / "comm").read_text().strip()
    monkeypatch.setattr(io_threads, "_NAME", own)  # a thread that does exist here
    monkeypatch.setattr(os, "setpriority", refuse)
    assert io_threads.give_way() == []
