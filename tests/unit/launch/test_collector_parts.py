"""The collector's ear and its clock. Wrong versions these catch: a message that is waited for while
its sender is stopped, and time in which nobody could look counted as idle.
"""

import os
import pickle
import random
from multiprocessing import Pipe

from picolab.launch import collector
from picolab.launch.collector import _Clock, _Inbox


def test_messages_come_out_whole_however_they_come_in():
    ours, theirs = Pipe()
    sent = [b"", b"x", pickle.dumps(list(range(1000))), b"y" * 30_000]
    for message in sent:
        theirs.send_bytes(message)
    theirs.close()
    stream = b""
    while data := os.read(ours.fileno(), 65_536):
        stream += data
    draw = random.Random(0)
    for _ in range(20):
        inbox, got, at = _Inbox(), [], 0
        while at < len(stream):
            step = draw.choice([1, 3, 100, 40_000])
            inbox.feed(stream[at : at + step])
            at += step
            got += inbox
        assert got == sent and list(inbox) == []


def test_a_long_message_has_a_long_length():
    inbox = _Inbox()
    inbox.feed((-1).to_bytes(4, "big", signed=True) + (5).to_bytes(8, "big") + b"hell")
    assert list(inbox) == []
    inbox.feed(b"o")
    assert list(inbox) == [b"hello"]


def test_a_suspended_kernel_counts_no_idle_time(monkeypatch):
    times = iter([0.0, 0.1, 0.2, 600.0, 600.1])
    monkeypatch.setattr(collector.time, "monotonic", lambda: next(times))
    clock = _Clock()
    for _ in range(4):
        clock.tick()
    assert abs(clock.now - (0.3 + _Clock.MOST_S)) < 1e-9
