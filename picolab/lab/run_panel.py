"""What the panels have in common: a run behind Run and Stop, and its picture under the panel.

No callback waits: a run is a background job, its end is reported by the thread that sees it, and
Stop asks in a thread of its own. While ranks run, the live figure is in the panel; when they end, a
light static one takes its place under the panel. Headless, no widget is made: with autorun=True the
panel runs once what it opens with.
"""

import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping

from picolab.lab.follower import Follower
from picolab.monitoring.figures import training_figure
from picolab.monitoring.run_state import RunState
from picolab.show.front_end import Message, Shown, has_front_end


class RunPanel(Shown, ABC):
    """A panel adds what is chosen, and of a run of it: what it is given (`_given`), and what is
    said when it starts (`_begin`), while it goes on (`_going`) and of its end (`_told`).

    Its widgets have `say(text)`, `begin()`, `paint(state)` and `end(state)`; None if it has none.
    """

    message = ""
    earlier: Mapping[str, Mapping[int, float]] = {}
    """name -> step -> loss: runs that are drawn in grey behind this one"""

    def __init__(self, settings: Mapping):
        from picolab.training import train

        self._train, self._settings = train, settings
        self.job = None
        self._busy, self._lock = False, threading.Lock()
        self._no_job_yet = self._unwanted = False  # it is about to start; it is to be stopped
        self._widgets = None

    def _open(self, widgets, autorun: bool) -> None:
        """Show the panel, and under it the place of a run's picture."""
        self._widgets = widgets
        self.show()
        self._picture = Shown()
        if widgets or autorun:
            self._picture.show()
        if autorun and not widgets:
            self.run()
            self.wait()

    # -- what the buttons do; also to be called in code --

    def run(self) -> str:
        """Start a run of what is chosen. While one is going, only says so."""
        with self._lock:
            if self._busy:
                return self._say(f"{self._going()}; press Stop to end it")
            self._busy = self._no_job_yet = True
            self._unwanted = False
            self._say(self._begin())
        try:
            settings = {**self._settings, **self._given()}
            job = self._train(**settings, wait=False, progress=False)
        except Exception as error:
            return self._leave(f"could not start: {error}")
        with self._lock:
            self.job, self._no_job_yet = job, False
            if self._unwanted:
                self._end_of(job)
        if self._widgets:
            self._picture.replace(Message(""))
            stands = self._widgets.begin()
            if has_front_end():
                self.job.hold(stands)
        Follower(self.job, self._paint if self._widgets else None, self._end)
        return self.message

    def stop(self) -> str:
        """End the run, also one that is about to start. With nothing to end, only says so."""
        with self._lock:
            if not self._busy:
                return self._say("nothing is running")
            self._say("stopping")
            self._unwanted = True
            if not self._no_job_yet:
                self._end_of(self.job)
            return self.message

    @staticmethod
    def _end_of(job) -> None:
        threading.Thread(target=job.stop, name="picolab-stop", daemon=True).start()

    def wait(self) -> None:
        """Until the run has ended, in whatever way; for code, not for callbacks."""
        if self.job is not None:
            try:
                self.job.result()
            except Exception:
                return  # the panel's message says what happened

    @property
    def result(self):
        """The last run's `TrainResult`; None if there is none (yet)."""
        return self.job.result() if self.job is not None and self.job.state == "done" else None

    # -- what a panel adds --

    @abstractmethod
    def _begin(self) -> str:
        """A run of what is chosen begins: remember what it is, and say so."""

    @abstractmethod
    def _given(self) -> dict:
        """What is chosen, as settings of `pico.train`."""

    @abstractmethod
    def _going(self) -> str:
        """That a run is going on, and of what."""

    def _told(self, said: str, state: RunState) -> str:
        """What is said of a run that has ended; said: how it ended."""
        return said

    def _measured_shown(self) -> None:
        """The picture of the last run stands: show in the panel, too, what it measured."""

    # -- in the threads of the run --

    def _paint(self, state: RunState) -> bool:
        return self._widgets.paint(state)

    def _end(self, state: RunState) -> None:
        said = state.sentence() + (f"\n{state.error}" if state.error else "")
        try:
            said = self._told(said, state)
            picture = Message(state.sentence())
            if not state.is_empty:
                picture = training_figure(state, beside=self.earlier)
            self._picture.replace(picture)
            if self._widgets:
                self._widgets.end(state)
            self._measured_shown()
        except Exception:
            said = f"the picture could not be drawn:\n{traceback.format_exc()}"
        self._leave(said)

    def _leave(self, said: str) -> str:
        """Say how a run ended, and let the next one begin. Together: whoever reads that it has
        ended can start one, and whoever finds that it does not run any more can read why."""
        with self._lock:
            self._say(said)
            self._busy = self._no_job_yet = False
        return said

    def _say(self, text: str) -> str:
        self.message = text
        if self._widgets:
            self._widgets.say(text)
        return text
