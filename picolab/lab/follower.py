"""Follow a run while it goes: paint now and then, and end in order.

Ranks say hundreds of things a second, and nobody reads more than a few pictures in that time. So
one thread looks twice a second whether there is news, and paints once for all of it; where `paint`
returns False (a page that is still drawing), once more at the next look. The end is different: it
is painted at once, in the thread that delivers it, before `job.result()` returns. So whoever waits
for the result finds the last picture in place, also headless.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from picolab.launch import rundirs
from picolab.monitoring.alert_history import HistoryTail, read_history
from picolab.monitoring.event_files import RunFiles, event_files
from picolab.monitoring.events import Event
from picolab.monitoring.figures import run_state
from picolab.monitoring.history import History
from picolab.monitoring.run_state import ENDED, RunState

PERIOD_S = 0.5


class Follower:
    """Feeds a RunState from a job or a run directory; calls `paint(state)` and, once,
    `end(state)`.
    """

    def __init__(
        self,
        source,
        paint: Callable[[RunState], bool | None] | None,
        end: Callable[[RunState], None],
        begin: Callable[[], RunState] = RunState,
    ):
        """begin: makes the state of a run of which nothing was heard yet."""
        self._source, self._paint, self._end = source, paint, end
        self._begin, self._due = begin, False
        self._start(source.events)
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._unregister = source.on_event(self._on_event)
        self._on_event(None)  # the end may have come before the registration
        if paint is not None and not self._ended.is_set():
            thread = threading.Thread(target=self._look, name="picolab-dashboard", daemon=True)
            thread.start()

    @property
    def going(self) -> bool:
        return not self._ended.is_set()

    def paint_again(self) -> None:
        """At the next look, whether or not there is news."""
        self._due = True

    def close(self) -> None:
        """Stop following; the run goes on."""
        self._unregister()
        self._ended.set()

    def _start(self, history: History) -> None:
        self._history, self.state = history, self._begin()
        self.state.world_size = getattr(self._source, "world_size", None)
        self._alerts = None
        if self.state.watch is not None and getattr(self._source, "run_dir", None) is not None:
            self._alerts = HistoryTail(self._source.run_dir)

    def _read(self) -> bool:
        """Take in what is new."""
        history = self._source.events
        if history is not self._history:
            self._start(history)
        fresh = history.tell(self.state)
        told = self._alerts.poll() if self._alerts is not None else []
        for transition in told:
            self.state.watch.alert(transition)
        return fresh or bool(told)

    def _on_event(self, event: Event | None) -> None:
        """In the thread that collects the ranks' events: it must not be held up, except by the
        end.
        """
        ended = event.kind == "state" and event.data.get("state") in ENDED if event else False
        if not ended and not (event is None and self._source.done):
            return
        with self._lock:
            if self._ended.is_set():
                return
            self._read()
            self.close()
            self._end(self.state)

    def _look(self) -> None:
        while not self._ended.wait(PERIOD_S):
            with self._lock:
                if self._ended.is_set():
                    return
                fresh = self._read()
                if self._source.done:
                    self.close()
                    self._end(self.state)
                elif fresh or self._due:
                    self._due = False  # before the paint: another thread may ask for one meanwhile
                    if self._paint(self.state) is False:
                        self._due = True


class RunDirectory:
    """A run directory with the face of a job: events that grow, and an end.

    Reads the ranks' `events.RANK.jsonl` (monitoring/event_files.py). This is also how a run that
    torchrun or Slurm started is seen: whoever writes these files is followed; if another run begins
    in the directory, that one from then on. `run.json` says how the run
    ended; where nobody writes that (a run of another machine), it is followed until it is closed.
    """

    def __init__(self, path: str | Path):
        self.run_dir = Path(path).expanduser()
        if not self.run_dir.is_dir():
            raise ValueError(
                f"there is no run directory {self.run_dir}; `picolab runs ls` lists the runs"
            )
        self._files = RunFiles(self.run_dir)
        self._history = History(self.run_dir, self._files.starts)
        self._end_told = False
        self.is_running = rundirs.is_running(self.run_dir)  # by a process of this machine

    @property
    def state(self) -> str:
        return self._about().get("state", "running")

    @property
    def world_size(self) -> int | None:
        return self._about().get("world_size") or len(event_files(self.run_dir)) or None

    @property
    def events(self) -> History:
        """All events so far, in the order in which they are found; another history as soon as
        another run has begun."""
        run, fresh = self._files.run, self._files.poll()
        if self._files.run != run:
            self._history = History(self.run_dir, self._files.starts)
            self._end_told = False
        for event in fresh:
            self._history.add(event)
        state = self._about().get("state")
        if state in ENDED and not self._end_told:
            self._end_told = True
            self._history.add(Event("state", -1, 0.0, {"state": state}))
        return self._history

    @property
    def done(self) -> bool:
        if self.is_running and not rundirs.is_running(self.run_dir):
            self.is_running = False
            return True
        return self._end_told

    def on_event(self, callback) -> Callable[[], None]:
        """Nobody calls from a directory: it has to be looked at."""
        return lambda: None

    def _about(self) -> dict:
        return rundirs.describe(self.run_dir)


def state_of(source, watch: bool = False) -> RunState:
    """Of a run that is not followed. To watch one it takes all of its events, and in memory are the
    newest of a long run: then its files are read once, from the beginning.

    ValueError for files that this version cannot read."""
    known = None
    if not isinstance(source, RunDirectory):
        known = run_state(source, watch)
        if not (watch and getattr(source.events, "older", 0)):
            return known
        source = RunDirectory(source.run_dir)
    elif not watch:
        return run_state(source)
    files, state = RunFiles(source.run_dir), RunState(world_size=source.world_size, watch=True)
    try:
        for event in files.poll():
            state.add(event)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the events in {source.run_dir} are not as this version of picolab writes them "
            f"({error!r}); read them with the version that has written them"
        ) from error
    if known is not None:
        state.state, state.error = known.state, known.error
    elif source.state in ENDED:
        state.add(Event("state", -1, 0.0, {"state": source.state}))
    for transition in read_history(source.run_dir):
        state.watch.alert(transition)
    return state
