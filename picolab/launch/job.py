"""From a notebook cell to N ranks and back: `run`, `Job`, `jobs`.

    result = pico.run(fn, world_size=4)              # fresh ranks, one call; blocks
    job = pico.run(fn, world_size=4, wait=False)     # returns at once; job.result(), job.where(),
                                                     job.stop()

Inside `fn`, torch.distributed is initialised, and the function gets its own arguments only: the
same function runs under torchrun. A blocking run is a job that is waited for, so there is one way
through this file."""

import atexit
import contextvars
import errno
import importlib.util
import multiprocessing
import os
import resource
import signal
import threading
import time
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Literal

from picolab.launch import payload, rundirs, server
from picolab.launch.collector import Collector
from picolab.launch.display import Display
from picolab.launch.failures import RankFailure, Stopped
from picolab.launch.rank import HELD
from picolab.launch.result import RunResult
from picolab.launch.surroundings import Surroundings, keep_standard_files
from picolab.launch.turns import Turns
from picolab.monitoring import Event, History, Table
from picolab.monitoring.event_files import lengths
from picolab.monitoring.standstill import Standstill
from picolab.show.files import private
from picolab.show.plain import put

State = Literal["waiting", "running", "done", "failed", "stopped"]
Backend = Literal["auto", "gloo", "nccl"]

_numbers = count(1)
_turns = Turns()
_jobs: list["Job"] = []  # that have not ended
_past: list["Past"] = []
_told: set = set()  # what is said once
_KEPT_JOBS = 20
FILES_A_RANK = 6


def run(
    fn: Callable,
    *args,
    world_size: int = 2,
    backend: Backend = "auto",
    timeout: float = 120,
    wait: bool = True,
    name: str | None = None,
    run_dir: str | Path | None = None,
    quiet: bool = False,
    progress: Callable[[Event], None] | None = None,
    transform: Callable[[RunResult], Any] | None = None,
    answers: Callable[[int, bytes], None] | None = None,
    pretend: int | None = None,
    **kwargs,
):
    """Call `fn(*args, **kwargs)` on `world_size` fresh ranks.

    fn          may be defined in a cell, close over notebook globals, come from a script or a test
    backend     "auto": NCCL where there is a GPU for each rank, else gloo, and the reason is
                printed once
    timeout     seconds without progress (no event, output or collective from any rank), after
                which the run is
                declared hung; a long run that moves is never cut off
    wait        False returns a `Job` at once
    quiet       True: what ranks print goes to the run directory only
    progress    called with each event, in the thread that collects them
    transform   makes the result out of a `RunResult`
    answers     used by `World`, whose ranks answer more than once
    pretend     used by `pico.dry_run`: one process that is rank 0 of so many

    Returns a `RunResult`. Raises RankFailure (the failing rank's own traceback), RankHang (every
    rank's stack), ValueError for arguments that cannot work, RunDirectoryError if nothing can be
    written."""
    _refuse_nonsense(fn, world_size, backend, timeout)
    call = object()
    try:
        job = Job(
            payload.pack(fn, args, kwargs),
            call=call,
            world_size=world_size,
            backend=backend,
            timeout=timeout,
            name=name or getattr(fn, "__name__", "run").strip("<>"),
            run_dir=run_dir,
            quiet=quiet,
            progress=progress,
            transform=transform,
            answers=answers,
            pretend=pretend,
        )
        return job.result() if wait else job
    except KeyboardInterrupt:
        # It may come when the job runs already and nobody has it in hand yet.
        for begun in [job for job in _jobs if job.call is call and not job._stop_asked]:
            begun._interrupted()
        raise
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        may, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise OSError(
            errno.EMFILE,
            f"this process may have {may} files open, which is too few for {world_size} ranks "
            f"(about {FILES_A_RANK} each); allow more before it starts: ulimit -n 1024",
        ) from error


def jobs() -> "JobList":
    """The jobs of this session, newest last: what runs, what waits, what has ended."""
    ended = [past.job() or past for past in _past]
    return JobList(sorted([*ended, *_jobs], key=lambda job: job.id))


class Job:
    """A run in the background. It ends with the kernel, whatever happens."""

    def __init__(
        self,
        blob,
        *,
        call,
        world_size,
        backend,
        timeout,
        name,
        run_dir,
        quiet,
        progress,
        transform,
        answers,
        pretend,
    ):
        self.id, self.name, self.world_size = next(_numbers), name, world_size
        self.call = call  # of `run`, whose it is
        self.state: State = "waiting"
        self.seconds = 0.0
        self._called = time.monotonic()
        keep_standard_files()
        surroundings = Surroundings.now()
        about = {"world_size": world_size, "backend": backend, "state": "waiting"}
        self.run_dir = rundirs.create(name, about, run_dir)
        try:
            self.events = History(self.run_dir, lengths(self.run_dir))
            self._collector = Collector(
                blob=blob,
                surroundings=surroundings,
                world_size=world_size,
                backend=backend,
                timeout=timeout,
                run_dir=self.run_dir,
                answers=answers,
                pretend=pretend,
            )
            self.backend = backend
            self._quiet, self._transform = quiet, transform
            self._callbacks: list[Callable[[Event], None]] = [progress] if progress else []
            self._outcome: RunResult | None = None
            self._transformed: Any = None
            self._error: BaseException | None = None
            self._stop_asked = False
            self._ended = threading.Event()
            # The context makes what the thread prints appear under the cell that started the job.
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run, args=(self._live,), name=f"picolab-job-{self.id}", daemon=True
            )
            _jobs.append(self)
            self._thread.start()
        except BaseException:
            # An interrupt, or no file left to open: a job that never lived holds nothing.
            if not hasattr(self, "_thread") or not self._thread.is_alive():
                rundirs.finish(self.run_dir, "failed")
                _jobs[:] = [job for job in _jobs if job is not self]
            raise

    @property
    def done(self) -> bool:
        """True once it has ended, in whatever way."""
        return self._ended.is_set()

    def result(self):
        """Wait for the end. Returns the result; raises what went wrong. An interrupt stops the
        job and is raised again.
        """
        try:
            while not self._ended.wait(0.2):
                pass
        except KeyboardInterrupt:
            self._interrupted()
            raise
        if self._error is not None:
            raise self._error
        if self._outcome is None:
            raise Stopped(
                f"job {self.id} ({self.name}) was stopped after {self.seconds:.1f} s; "
                "what it sent until then is in job.events"
            )
        if self._transform is None:
            return self._outcome
        if self._transformed is None:
            self._transformed = self._transform(self._outcome)
        return self._transformed

    def hold(self, ready: threading.Event) -> None:
        """Ranks that have not begun when this is called begin when `ready` is set: a view that is
        still being built misses no step. No rank waits longer than 5 s, nor does this call.
        """
        held = self.run_dir / HELD
        open(held, "w", opener=private).close()

        def let_go() -> None:
            while not (ready.wait(0.2) or self.done):
                pass
            held.unlink(missing_ok=True)

        threading.Thread(target=let_go, name=f"picolab-hold-{self.id}", daemon=True).start()

    def stop(self) -> str:
        """End it now; no rank is left when this returns. Returns a sentence; a second stop only
        says that it has ended.
        """
        if self.done:
            return f"job {self.id} ({self.name}) has already ended: {self.state}"
        self._stop()
        return f"job {self.id} ({self.name}) was stopped after {self.seconds:.1f} s"

    def where(self, ask: bool = True) -> "Where":
        """Where each rank is right now: its stack, and the collective it is in. ask False: without
        the stacks, for which ranks are sent a signal."""
        if self.done:
            raise ValueError(
                f"job {self.id} ({self.name}) has ended ({self.state}): no rank is left to ask"
            )
        return Where(self._collector.where(ask=ask))

    def on_event(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call `callback(event)` for each event from now on, in the collecting thread. Returns
        what unregisters it.
        """
        self._callbacks.append(callback)
        return lambda: callback in self._callbacks and self._callbacks.remove(callback)

    def __repr__(self) -> str:
        about = f"{self.state}, {self.world_size} rank(s), {_age(self):.1f} s"
        return f"Job {self.id} ({self.name}): {about}"

    # -- the job's thread --

    def _live(self) -> None:
        display = Display(self.run_dir, self.world_size, self._quiet)
        try:
            if not _turns.take(self, self.world_size, self._say_waiting, lambda: self._stop_asked):
                self._end("stopped")
                return
            self._set_state("running")
            self._say_how_to_stop()
            server.warm()
            values = self._collector.collect(
                display, self._event, self._say_backend, self._say_slow_start
            )
        except BaseException as error:
            self._error = (
                error if isinstance(error, RankFailure | OSError | ImportError) else _wrap(error)
            )
            if isinstance(self._error, RankFailure):
                self._error.run_dir = self.run_dir
            self._finish(display, "failed")
        else:
            if values is not None:
                self._outcome = RunResult(
                    values, self.events, _age(self), self.run_dir, self._collector.backend
                )
            self._finish(display, "done" if values is not None else "stopped")

    def _finish(self, display: Display, state: State) -> None:
        display.close()
        _turns.give_back(self)
        self._end(state)

    def _end(self, state: State) -> None:
        self.seconds = _age(self)
        rundirs.finish(self.run_dir, state)
        self._set_state(state)
        _jobs.remove(self)
        _past.append(Past(self))
        del _past[:-_KEPT_JOBS]
        self._ended.set()

    def _set_state(self, state: State) -> None:
        self.state = state
        data = {"state": state}
        if self._error is not None:
            data["error"] = str(self._error)
        if isinstance(self._error, RankFailure):
            data |= {"failure": self._error.kind, "rank": self._error.rank}
        self._event(Event("state", -1, time.time(), data))

    def _event(self, event: Event) -> None:
        self.events.add(event)
        for callback in list(self._callbacks):
            try:
                callback(event)
            except Exception as error:
                self._callbacks.remove(callback)
                print(f"an observer of job {self.id} failed and was removed: {error!r}")

    def _interrupted(self) -> None:
        """Ranks that exist are gone when this returns. If there are none yet (the server is still
        loading torch), the thread will start none, and nobody need wait for it."""
        self._stop(patience=10 if self._collector.pids() else 0.5)

    def _stop(self, patience: float = 10) -> None:
        self._stop_asked = True
        self._collector.stop()
        self._ended.wait(patience)

    def _say(self, sentence: str) -> None:
        if not self._quiet:
            put(sentence)

    def _say_waiting(self, others: list["Job"]) -> None:
        names = ", ".join(f"job {job.id} ({job.name}, {job.world_size} ranks)" for job in others)
        self._event(Event("status", -1, time.time(), {"text": f"waiting for {names}"}))
        self._say(
            f"waiting for {names} to end, {os.cpu_count()} cores being too few for both; "
            "pico.jobs() lists them, job.stop() ends one"
        )

    def _say_how_to_stop(self) -> None:
        """Shells and nohup start what runs in the background with interrupts ignored."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and "SIGINT" not in _told:
            _told.add("SIGINT")
            self._say(f"interrupts (SIGINT) are ignored here; to stop: kill {os.getpid()}")

    def _say_backend(self, backend: str, why: str) -> None:
        self.backend = backend
        if why and (backend, why) not in _told:
            _told.add((backend, why))
            self._say(f"backend {backend}: {why}")

    def _say_slow_start(self) -> None:
        if server.start_method() == "spawn":
            self._say("starting ranks one by one (macOS): this takes some seconds each time")
        else:
            self._say("loading torch for the ranks: this takes some seconds the first time only")


class Past:
    """A job that has ended, as the list remembers it: not what it returned, which may be large and
    is its owner's."""

    done = True

    def __init__(self, job: Job):
        self.job = weakref.ref(job)
        self.id, self.name, self.state = job.id, job.name, job.state
        self.world_size, self.seconds, self.run_dir = job.world_size, job.seconds, job.run_dir

    def result(self):
        raise ValueError(
            f"job {self.id} ({self.name}) has ended ({self.state}), and nobody kept what it "
            f"returned; its events are in {self.run_dir}"
        )

    def stop(self) -> str:
        return f"job {self.id} ({self.name}) has already ended: {self.state}"

    def __repr__(self) -> str:
        return f"Job {self.id} ({self.name}): {self.state}, {self.world_size} rank(s)"


class JobList(list):
    """A list of jobs that shows itself as a table."""

    def __repr__(self) -> str:
        return repr(self._table()) if self else "no jobs yet"

    def _repr_html_(self) -> str:
        return self._table()._repr_html_() if self else "no jobs yet"

    def _table(self) -> Table:
        rows = [
            [j.id, j.name, j.state, j.world_size, round(_age(j), 1), str(j.run_dir)] for j in self
        ]
        return Table(["job", "name", "state", "ranks", "seconds", "run directory"], rows)


class Where:
    """The stacks of a running job, and the last collective each rank entered."""

    def __init__(self, found: Standstill):
        self.found = found
        self.stacks = {rank: then.stack for rank, then in found.ranks.items() if then.stack}
        self.collectives = {rank: found.ranks[rank].reading for rank in self.stacks}

    def __repr__(self) -> str:
        parts = []
        for rank, text in sorted(self.stacks.items()):
            reading = self.collectives[rank]
            state = "inside" if reading.inside else "last collective:"
            parts.append(f"rank {rank}: {state} {reading.text or 'none yet'}\n{text}")
        return "\n".join(parts)


def _refuse_nonsense(fn, world_size, backend, timeout) -> None:
    if not callable(fn):
        raise ValueError(f"the first argument must be a function that each rank calls, not {fn!r}")
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(
            f"world_size must be a whole number of ranks, 1 or more, not {world_size!r}"
        )
    most = max(16, 8 * (os.cpu_count() or 1))
    if world_size > most:
        raise ValueError(
            f"world_size={world_size} is more processes than {os.cpu_count()} cores can sensibly "
            f"carry (at most {most} here); for larger worlds use the formulas in pico.costs"
        )
    if backend not in ("auto", "gloo", "nccl"):
        raise ValueError(f"backend must be 'auto', 'gloo' or 'nccl', not {backend!r}")
    if not timeout > 0:
        raise ValueError(
            f"timeout is seconds without progress and must be positive, not {timeout!r}"
        )
    if multiprocessing.current_process().name.startswith("picolab-rank-"):
        raise ValueError("this is already a rank: a rank cannot start ranks of its own")
    if importlib.util.find_spec("torch") is None:
        raise ImportError(
            "ranks need PyTorch, which is not installed here: "
            "pip install -e '.[torch]' in the checkout"
        )


def _wrap(error: BaseException) -> BaseException:
    """An error of the launcher itself: shown as it is, but saying whose it is."""
    error.add_note("This is an error in picolab's launcher, not in your function.")
    return error


def _age(job: Job | Past) -> float:
    return job.seconds if job.seconds else time.monotonic() - job._called


@atexit.register
def _stop_everything() -> None:
    for job in list(_jobs):
        job._collector.kill()
