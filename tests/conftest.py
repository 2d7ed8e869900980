"""Tests keep to themselves: they neither fill nor prune the user's run directories, and what they
leave in the temporary folder can be counted while other programs use it too."""

import os
import shutil
import tempfile
from multiprocessing.util import Finalize

import hypothesis
import pytest

from picolab import chapters

# How long an example takes is nobody's promise: on a busy machine one took twice the default.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

chapters.register()  # the tests of the engines ask for exercises by id, as a reader does


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """A cell that nbval runs is no function of ours that could carry the marker."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("notebook")


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
