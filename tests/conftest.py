"""Tests keep to themselves: they neither fill nor prune the user's run directories, and what they
leave in the temporary folder can be counted while other programs use it too."""

import fcntl
import os
import shutil
import signal
import tempfile
from contextlib import ExitStack
from multiprocessing.util import Finalize
from pathlib import Path

import hypothesis
import pytest

from picolab import chapters

# How long an example takes is nobody's promise: on a busy machine one took twice the default.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Under `nohup ... &`, cron or a service interrupts are ignored, and what tests start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

chapters.register()  # the tests of the engines ask for exercises by id, as a reader does


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """A cell that nbval runs is no function of ours that could carry the marker."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("notebook")


class Alone:
    """A test marked `alone` measures time: where tests run beside each other, none runs beside it.

    Each test holds a lock that all may share, and such a one the same lock for itself. Whoever
    waits for it stands in the door, that the others do not run one test after another meanwhile.
    """

    def __init__(self, config):
        name = f"picolab-alone-{config.workerinput['testrunuid']}"
        self.folder = Path(tempfile.gettempdir())
        self.door, self.room = (self.folder / f"{name}-{part}" for part in ("door", "room"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of pytest-timeout starts
    def pytest_runtest_protocol(self, item):
        alone = item.get_closest_marker("alone") is not None
        with ExitStack() as room:
            handle = room.enter_context(self.room.open("a"))
            with self.door.open("a") as door:
                fcntl.flock(door, fcntl.LOCK_EX)
                fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            return (yield)

    def pytest_unconfigure(self):
        self.door.unlink(missing_ok=True)
        self.room.unlink(missing_ok=True)


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # of xdist
        config.pluginmanager.register(Alone(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests go together: what they share is made once. Some share nothing, and last."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            alone = nodeid.startswith(("tests/browser/", "tests/notebooks/test_execute"))
            return nodeid if alone else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    temporary = tempfile.mkdtemp(prefix="pl-")  # short: a socket's path has 104 characters at most
    os.chmod(temporary, 0o1777)  # as /tmp is: what in it is open to others is what a test asks
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("TMPDIR", temporary)
        patch.setattr(tempfile, "tempdir", temporary)
        yield
    # After multiprocessing has removed its own part of it, with priority -100.
    Finalize(None, shutil.rmtree, (temporary, True), exitpriority=-200)
