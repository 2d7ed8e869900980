"""Run and Stop, pressed while a run is about to start.

The wrong version looks at the job without the lock under which a run starts: while there is none
yet, or only the last one, nothing is running for it, and the run that was stopped goes on.
"""

import threading

from picolab.lab.run_panel import RunPanel
from picolab.monitoring import History


class Job:
    """A run that goes on until it is stopped."""

    world_size = 1

    def __init__(self):
        self.events, self.done, self.stopped = History(), False, threading.Event()

    def on_event(self, callback):
        return lambda: None

    def stop(self):
        self.done = True
        self.stopped.set()


class Panel(RunPanel):
    def __init__(self):
        super().__init__({})
        self.asked, self.may_start = threading.Event(), threading.Event()
        self._train = self._start

    def _start(self, **settings):
        self.asked.set()
        assert self.may_start.wait(10)
        return Job()

    def _begin(self):
        return "starting"

    def _given(self):
        return {}

    def _going(self):
        return "dp1 is running"


def started(panel):
    """In a thread, as far as to where the job is made."""
    panel.asked.clear()
    thread = threading.Thread(target=panel.run)
    thread.start()
    assert panel.asked.wait(10)
    return thread


def test_stop_ends_a_run_that_is_about_to_start():
    panel = Panel()
    assert panel.stop() == "nothing is running"
    thread = started(panel)
    assert panel.stop() == "stopping"
    assert panel.run() == "dp1 is running; press Stop to end it"
    panel.may_start.set()
    thread.join(10)
    first = panel.job
    assert first.stopped.wait(10)
    panel._leave("stopped")  # as its follower does
    assert panel.stop() == "nothing is running"

    panel.may_start.clear()  # the next one, while the last one's job is still there
    thread = started(panel)
    assert panel.job is first and panel.stop() == "stopping"
    panel.may_start.set()
    thread.join(10)
    assert panel.job is not first and panel.job.stopped.wait(10)
    panel._leave("stopped")


def test_a_stop_is_of_one_run():
    panel = Panel()
    panel.may_start.set()
    panel.run()
    assert panel.stop() == "stopping" and panel.job.stopped.wait(10)
    panel._leave("stopped")
    panel.run()
    assert not panel.job.stopped.wait(0.2)


def test_a_run_that_could_not_start_leaves_nothing_to_stop():
    panel = Panel()
    panel._train = lambda **settings: 1 / 0
    assert panel.run().startswith("could not start")
    assert panel.stop() == "nothing is running"
