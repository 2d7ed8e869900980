"""`pico.dashboard(job)`: watch a run. Also of a result, or of a run directory.

    job = pico.train(layout="dp2tp2", steps=50, wait=False)
    pico.dashboard(job)                                   # draws while the ranks run
    result = job.result()                                 # next cell
    pico.dashboard(result, other)                         # loss and speed of two runs

In a front end, a live figure is painted at most twice a second from one background thread, can be
paused (the run goes on), keeps what a reader has zoomed into, and is
replaced by a light static figure when the run ends, so that the saved notebook keeps a picture;
a page may be loaded again at any time.
Headless (papermill, nbval), no widget is made: the cell shows what is there, does not wait, and the
picture of the whole run takes its place when the run ends, before `job.result()` returns.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from picolab.lab import guesses
from picolab.lab.follower import Follower, RunDirectory, state_of
from picolab.monitoring.figures import LabFigure, activity_figure, run_state, training_figure
from picolab.monitoring.overlay_figure import overlay_figure
from picolab.monitoring.run_state import ENDED, RunState
from picolab.show.front_end import Message, Shown, has_front_end


def dashboard(
    source,
    *others,
    covers: str | Sequence[str] = (),
    beside: Mapping[str, object] | None = None,
    live: bool | None = None,
    watch: bool = False,
    peak_flops: float | None = None,
) -> "Dashboard | Overlay":
    """Show loss, tokens/s, where a step goes, and what travels.

    source   a Job (live while it runs), a result (at once), or a run directory, also one that
             torchrun or Slurm writes to
    others   more of them: then loss and tokens/s of all, one over the other, and nothing else. All
             have to have ended: of one that goes on it is a ValueError, which names it. A run
             that has told no step is named as one, and has no line
    covers   the id of a question, or several: where a step goes and what travels stay covered, in
             picture and text, until each has a guess or was skipped
    beside   {name: result}: the losses of earlier runs, in grey behind those of this one
    live     True or False instead of finding out whether there is a front end with widgets
    watch    also what somebody looks at who watches a run: who comes late, the gradient's norm, the
             processes' memory, the loss scale, what was found, with marks on the loss
    peak_flops   of one rank's device, a second, such as `pico.training.measure(...).peak_flops`:
             for the MFU beside the tokens/s

    Returns a `Dashboard`, of several runs an `Overlay`, which has shown itself; its `.figure` can
    be saved.
    """
    ids = [covers] if isinstance(covers, str) else list(covers)
    if others:
        if ids or beside or watch:
            raise ValueError(
                "covers, beside and watch are for the dashboard of one run; leave them out for "
                "several"
            )
        return Overlay([source, *others])
    if isinstance(source, str | Path):
        source = RunDirectory(source)
        follows = (source.is_running and has_front_end()) if live is None else live
        follows, live = follows and source.state not in ENDED, follows
    else:
        _require_run(source)
        follows = hasattr(source, "on_event") and not source.done
        live = has_front_end() if live is None else live
    return Dashboard(source, follows, live, ids, beside, watch, peak_flops)


class Dashboard(Shown):
    """What `pico.dashboard` shows. Printed, it is a text with the same numbers."""

    def __init__(
        self,
        source,
        follows: bool,
        live: bool,
        covers: Sequence[str] = (),
        beside: Mapping[str, object] | None = None,
        watch: bool = False,
        peak_flops: float | None = None,
    ):
        self._watch, self._peak_flops = watch, peak_flops
        self._view = self._follower = None
        self._covers = covers
        self._beside = {name: run_state(run).losses for name, run in (beside or {}).items()}
        if follows:
            if live:
                from picolab.lab.live_view import LiveView

                self._view = LiveView(_starting(source), watch, self._paint_again)
                if has_front_end() and hasattr(source, "hold"):
                    source.hold(self._view.stands)
            self.show(self._view.box if live else Message(_going(source)))
            paint = self._paint if live else None
            self._follower = Follower(source, paint, self._end, self._begin)
            self._state = self._follower.state
        else:
            self._state = state_of(source, watch)
            self._state.peak_flops = peak_flops
            self.show()
        for id in [id for id in covers if not guesses.given(id)]:
            guesses.once_given(id, self._uncover)

    def _begin(self) -> RunState:
        state = RunState(watch=self._watch)
        state.peak_flops = self._peak_flops
        return state

    def _paint_again(self) -> None:
        if self._follower is not None:
            self._follower.paint_again()

    @property
    def state(self) -> RunState:
        """What the run has said so far."""
        return self._state

    @property
    def figure(self) -> LabFigure:
        """The panels as they are now: a static figure, with `.save(path)`. Of a run with a
        pipeline there are five: the newest step in time, with its messages, is below the four. Of a
        model with experts come three more: who is asked, what is dropped, what it costs; of a run
        with adaptive precision two: each layer's format, and what it saves; of one whose memory is
        looked at two: the bytes of a step in time, and of each rank at its peak."""
        return training_figure(self._state, self._cover(), self._beside)

    def activity(self, step: int | None = None) -> LabFigure:
        """What every rank did when in one of the newest 50 steps (None: the last that all ranks
        have told), of any layout and also while the run goes on; with `.save(path)`."""
        found = self._state.activity(step)
        if found is None:
            steps = self._state.complete_steps()
            there = f"there are {steps[0]} to {steps[-1]}" if steps else "no step is complete yet"
            raise ValueError(f"of step {step} nothing can be drawn: {there}")
        return activity_figure(found)

    def close(self) -> None:
        """Stop following, and leave the static picture of what there was."""
        if self._follower is not None:
            self._follower.close()
            self._end(self._follower.state)

    def _cover(self) -> str:
        """What the lower panels say as long as they would give an answer away; "" after that."""
        asked = [id for id in self._covers if not guesses.given(id)]
        return f"covered until you guess, or skip: {', '.join(asked)}" if asked else ""

    def _paint(self, state: RunState) -> bool:
        return self._view.paint(state, self._cover(), self._beside)

    def _uncover(self) -> None:
        """There is a guess: while the run goes on, the next paint shows what it covered."""
        if self._view is None and not (self._follower and self._follower.going):
            self.replace()

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


class Overlay(Shown):
    """What `pico.dashboard(a, b)` shows: runs that have ended, one over the other."""

    def __init__(self, sources: Sequence):
        self.states = [_ended(source) for source in sources]
        self.show()

    @property
    def figure(self) -> LabFigure:
        """Loss and tokens/s of all runs, with `.save(path)`."""
        return overlay_figure(self.states)

    def content(self) -> LabFigure:
        return self.figure

    def __repr__(self) -> str:
        return repr(self.figure)


def _ended(source) -> RunState:
    if isinstance(source, str | Path):
        source = RunDirectory(source)
        going = source.state not in ENDED and source.is_running
    else:
        _require_run(source)
        going = not getattr(source, "done", True)
    if going:
        raise ValueError(
            f"{getattr(source, 'name', source)!s} is running, and several runs are laid over one "
            "another when all have ended: wait for it (job.result()), or show it alone"
        )
    return run_state(source)


def _require_run(source) -> None:
    if not hasattr(source, "events"):
        raise ValueError(f"a dashboard shows a job, a result or a run directory, not {source!r}")


def _starting(source) -> str:
    world = getattr(source, "world_size", None)
    return f"starting {world} rank{'s' * (world > 1)} ..." if world else "waiting for ranks ..."


def _going(source) -> str:
    name = getattr(source, "name", None) or getattr(source, "run_dir", "")
    return f"{name}: running; its picture comes here when it ends"
