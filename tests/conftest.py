"""Tests keep their runs to themselves: they neither fill nor prune the user's run directories."""

import pytest

from picolab import chapters

chapters.register()  # the tests of the engines ask for exercises by id, as a reader does


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """A cell that nbval runs is no function of ours that could carry the marker."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("notebook")


@pytest.fixture(scope="session", autouse=True)
def own_run_directories(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
