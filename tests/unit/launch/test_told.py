"""What a rank tells of a step: one line, for its file and for the kernel.

Wrong versions these catch: a step that is written out twice (and not the same), or that is cut off
elsewhere than the kernel expects, or taken for something packed; a file that may not grow any more
and ends the rank, or silences it, or is complained of at each step.
"""

import resource
import signal
import sys
from functools import partial
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

from picolab.launch.collector import Collector, Rank
from picolab.launch.rank import RankSpec, _Sender, recorded
from picolab.monitoring import Event, events
from picolab.monitoring.event_files import RunFiles


def heard_of(*message):
    """What the kernel makes of a message, over a connection as ranks have it."""
    heard, said = [], []
    ours, theirs = Pipe()
    ears = SimpleNamespace(_on_event=heard.append, _display=SimpleNamespace(say=said.append))
    ears._act, ears._clock = partial(Collector._act, ears), SimpleNamespace(now=0.0)
    with ours, theirs:
        _Sender(theirs)(*message)
        Collector._message(ears, Rank(1, None, ours, output=-1))
    return heard + said


def test_a_step_is_one_line_for_the_file_and_for_the_kernel(tmp_path):
    sent = []
    with recorded(RankSpec(1, 2, "gloo", tmp_path, run="a"), lambda *message: sent.append(message)):
        events.write("step", step=0, loss=float("nan"), layout="dp2", skipped=False)
        events.emit(loss=1.5)
    (kind, line), (other, _) = sent
    assert (kind, other) == ("line", "event")
    assert line in (tmp_path / "events.1.jsonl").read_bytes().splitlines(keepends=True)
    (step,), (values,) = heard_of(*sent[0]), heard_of(*sent[1])
    assert isinstance(step, Event) and (step.kind, step.rank, step.data["step"]) == ("step", 1, 0)
    assert step.data["loss"] != step.data["loss"] and step.data["skipped"] is False
    assert [values] == [e for e in RunFiles(tmp_path).poll() if e.kind == "values"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a file, as Linux does")
def test_a_file_that_may_not_grow_costs_the_file_and_nothing_else(tmp_path):
    """Its last line is torn where the limit is. The kernel hears every step all the same, and once
    of the file; a reader has what is whole; who begins there again loses that one line."""
    path, sent = tmp_path / "events.1.jsonl", []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    spec = RankSpec(1, 2, "gloo", tmp_path, run="a")
    try:
        with recorded(spec, lambda *message: sent.append(message)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 250, hard))
            for step in range(9):
                events.write("step", step=step, layout="dp2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    lines = [values for kind, *values in sent if kind == "line"]
    assert [heard_of("line", *of)[0].data["step"] for of in lines] == [*range(9)]
    (warning,) = [values for kind, *values in sent if kind == "warning"]
    assert "events are no longer written" in heard_of("warning", *warning)[0]
    left = path.read_bytes()
    assert not left.endswith(b"\n")
    whole = [event.data["step"] for event in RunFiles(tmp_path).poll()]
    assert whole and whole == [*range(len(whole))] and len(whole) < 9
    with recorded(spec, lambda *message: None):
        events.write("step", step=20, layout="dp2")
    again = RunFiles(tmp_path)
    assert [event.data["step"] for event in again.poll()][-1] == 20 and again.torn == 1
