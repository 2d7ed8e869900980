"""The driver lies beside the tests, and is found there whatever folder pytest starts in."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab_driver import Jupyter


@pytest.fixture(scope="package")  # playwright's event loop runs until it is stopped
def jupyter():
    with Jupyter() as started:
        yield started
