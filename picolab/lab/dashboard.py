"""`pico.dashboard(job)`: watch a run. Also of a result, or of a run directory.

    job = pico.train(layout="dp2tp2", steps=50, wait=False)
    pico.dashboard(job)                                   # draws while the ranks run
    result = job.result()                                 # next cell

In a front end, a live figure is painted at most five times a second from one background thread,
and replaced by a light static figure when the run ends, so that the saved notebook keeps a picture;
a page may be loaded again at any time.
Headless (papermill, nbval), no widget is made: the cell shows what is there, does not wait, and the
picture of the whole run takes its place when the run ends, before `job.result()` returns.
"""

from pathlib import Path

from picolab.lab.follower import Follower, RunDirectory
from picolab.monitoring.figures import LabFigure, run_state, training_figure
from picolab.monitoring.run_state import ENDED, RunState
from picolab.show.front_end import Message, Shown, has_front_end


def dashboard(source, *, live: bool | None = None) -> "Dashboard":
    """Show loss, tokens/s, where a step goes, and what travels.

    source   a Job (live while it runs), a result (at once), or a run directory, also one that
             torchrun or Slurm writes to
    live     True or False instead of finding out whether there is a front end with widgets

    Returns a `Dashboard`, which has shown itself; its `.figure` can be saved.
    """
    if isinstance(source, str | Path):
        source = RunDirectory(source)
        follows = (source.is_running and has_front_end()) if live is None else live
        return Dashboard(source, follows and source.state not in ENDED, follows)
    if not hasattr(source, "events"):
        raise ValueError(f"a dashboard shows a job, a result or a run directory, not {source!r}")
    follows = hasattr(source, "on_event") and not source.done
    return Dashboard(source, follows, has_front_end() if live is None else live)


class Dashboard(Shown):
    """What `pico.dashboard` shows. Printed, it is a text with the same numbers."""

    def __init__(self, source, follows: bool, live: bool):
        self._view = self._follower = None
        if follows:
            if live:
                from picolab.lab.live_view import LiveView

                self._view = LiveView()
            self.show(self._view.box if live else Message(_going(source)))
            self._follower = Follower(source, self._view.paint if live else None, self._end)
            self._state = self._follower.state
        else:
            self._state = run_state(source)
            self.show()

    @property
    def state(self) -> RunState:
        """What the run has said so far."""
        return self._state

    @property
    def figure(self) -> LabFigure:
        """The four panels as they are now: a static figure, with `.save(path)`."""
        return training_figure(self._state)

    def close(self) -> None:
        """Stop following, and leave the static picture of what there was."""
        if self._follower is not None:
            self._follower.close()
            self._end(self._follower.state)

    def content(self):
        return Message(self._state.sentence()) if self._state.is_empty else self.figure

    def _end(self, state: RunState) -> None:
        self._state, view = state, self._view
        self._view = None
        self.replace()
        if view is not None:
            view.end(self.content())

    def __repr__(self) -> str:
        return repr(self.content())


def _going(source) -> str:
    name = getattr(source, "name", None) or getattr(source, "run_dir", "")
    return f"{name}: running; its picture comes here when it ends"
