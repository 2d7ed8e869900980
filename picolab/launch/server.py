"""The warm rank server: why a world of four ranks starts in a tenth of a second.

`import torch` takes a second or more, and a rank started from nothing pays it. So one process,
the server, imports torch once and then only forks: a rank begins as a copy of it, with everything
loaded and nothing computed. The kernel itself is never forked (after its first multi-threaded
matmul that would deadlock), and nothing that the kernel computed can leak into a rank; what a rank
should share with the kernel of now it is told (surroundings.py).

It is multiprocessing's own forkserver, in an instance of ours so that it does not meet the
user's. What we add: it dies with the kernel, it is restarted when picolab's files change, and the
main script is not imported again in each rank (so a script needs no main guard). On macOS, where
forking after importing torch is unproven, ranks are spawned: slower, and said so."""

import importlib.util
import io
import os
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from multiprocessing import context, forkserver, popen_forkserver, popen_spawn_posix, spawn, util
from multiprocessing.context import reduction, set_spawning_popen
from pathlib import Path

import psutil

from picolab.show.front_end import has_front_end

_PACKAGE = Path(__file__).resolve().parents[1]


def start_method() -> str:
    """ "forkserver", or "spawn" on macOS."""
    return "spawn" if sys.platform == "darwin" else "forkserver"


class _Server:
    def __init__(self):
        self._forkserver = forkserver.ForkServer()
        self._forkserver.set_forkserver_preload(["picolab.launch.preload"])
        self._lock = threading.Lock()
        self._version: int | None = None

    def ensure(self) -> None:
        """Start the server, or start it anew if picolab's files changed since (it would fork old
        code).
        """
        with self._lock:
            version = _newest_file()
            if self._version is not None and version != self._version and not _ranks_alive():
                self._forkserver._stop()
                self._version = None
            if self._version is None:
                self._version = version
            watched = has_front_end()  # asked in the thread of the cell
            _Keeper.call(lambda: self._start(watched))

    def _start(self, watched: bool) -> None:
        try:
            with _environment(watched):
                self._forkserver.ensure_running()
        except OSError as error:
            if "AF_UNIX path too long" not in str(error):
                raise
            raise OSError(
                f"TMPDIR is {tempfile.gettempdir()!r}, and the path of a socket in it is longer "
                "than the system allows (about 100 characters); set TMPDIR to a shorter one"
            ) from None

    def connect(self, fds: list[int]) -> tuple[int, int]:
        self.ensure()
        return self._forkserver.connect_to_new_process(fds)

    @property
    def pid(self) -> int | None:
        return self._forkserver._forkserver_pid


class _Keeper:
    """A thread that lives as long as the process and starts the server.

    Linux ties "die with your parent" to the *thread* that started a child. A cell's helper thread
    ends early, and the server would die with it."""

    _lock = threading.Lock()
    _queue = None

    @classmethod
    def call(cls, function) -> None:
        import queue

        with cls._lock:
            if cls._queue is None:
                cls._queue = queue.SimpleQueue()
                thread = threading.Thread(
                    target=cls._serve, name="picolab-server-keeper", daemon=True
                )
                thread.start()
        answer = queue.SimpleQueue()
        cls._queue.put((function, answer))
        error = answer.get()
        if error is not None:
            raise error

    @classmethod
    def _serve(cls) -> None:
        while True:
            function, answer = cls._queue.get()
            try:
                function()
            except BaseException as error:
                answer.put(error)
            else:
                answer.put(None)


_server = _Server()


def warm() -> None:
    """Start the rank server in the background; returns at once. Called in an interactive kernel,
    or by the first run.
    """
    if start_method() == "forkserver" and importlib.util.find_spec("torch") is not None:
        _server.ensure()


def pid() -> int | None:
    """The server's process id, None if it does not run."""
    return _server.pid


def killed(patience: float = 0.5) -> bool:
    """Whether it was started and has ended, as nothing of ours makes it do while ranks live. Its
    pipes close some time before the system calls it ended."""
    until = time.monotonic() + patience
    while _server.pid is not None:
        try:
            if psutil.Process(_server.pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return False


def _newest_file() -> int:
    return max(entry.stat().st_mtime_ns for entry in _PACKAGE.rglob("*.py"))


def _ranks_alive() -> bool:
    import multiprocessing

    return any(isinstance(child, RankProcess) for child in multiprocessing.active_children())


@contextmanager
def _environment(watched: bool):
    """What the server process is started with; the kernel's own environment is put back."""
    wanted = {
        "_PICOLAB_RANK_SERVER": "watched" if watched else "unwatched",
        # CPython 3.11, 3.12.1 and 3.13.0 ignore sys.path when preloading, and say nothing
        # (gh-117378).
        "PYTHONPATH": os.pathsep.join(
            [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "PYTHONSAFEPATH": "1",  # a torch.py in the working folder is not torch
        "OPENBLAS_NUM_THREADS": "1",  # numpy would leave a thread behind
        "OMP_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _ForkedPopen(popen_forkserver.Popen):
    """multiprocessing's forkserver start, through our server and without the main script."""

    def _launch(self, process_obj):
        data = spawn.get_preparation_data(process_obj._name)
        data.pop("init_main_from_path", None)
        data.pop("init_main_from_name", None)
        buffer = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(data, buffer)
            reduction.dump(process_obj, buffer)
        finally:
            set_spawning_popen(None)
        self.sentinel, writer = _server.connect(self._fds)
        # The rank watches this duplicate: it closes when the kernel ends.
        kernel_alive = os.dup(writer)
        self.finalizer = util.Finalize(self, util.close_fds, (kernel_alive, self.sentinel))
        with open(writer, "wb", closefd=True) as file:
            file.write(buffer.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


class _SpawnedPopen(popen_spawn_posix.Popen):
    def _launch(self, process_obj):
        main = sys.modules["__main__"]
        hidden = {
            name: main.__dict__.pop(name)
            for name in ("__file__", "__spec__")
            if hasattr(main, name)
        }
        main.__spec__ = None
        try:
            super()._launch(process_obj)
        finally:
            main.__dict__.update(hidden)


class RankProcess(context.SpawnProcess):
    """A process that becomes a rank: forked from the warm server, or spawned."""

    @staticmethod
    def _Popen(process_obj):
        popen = _ForkedPopen if start_method() == "forkserver" else _SpawnedPopen
        return popen(process_obj)
