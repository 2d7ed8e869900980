"""The whole suite, step by step, with one summary at the end. `make test` and .ci/run both end
here.

Every step runs, whatever became of the ones before. Run it with the Python of the environment that
`.ci/setup test` made; standard library only.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")


class Outcome(NamedTuple):
    step: str
    passed: int
    failed: int
    skipped: int
    seconds: float


class Suite:
    def __init__(self, scratch: Path):
        self.scratch, self.outcomes = scratch, []
        # Coverage data, run directories and Jupyter's settings stay out of the checkout and of the
        # user's home.
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "COVERAGE_FILE": str(scratch / "coverage"),
            "XDG_STATE_HOME": str(scratch / "state"),
            "IPYTHONDIR": str(scratch / "ipython"),
            "PYTHONUNBUFFERED": "1",
        }

    def command(self, step: str, *words: str) -> None:
        """A step that either holds or does not: one check."""
        status, seconds = self._run(step, words)
        self.outcomes.append(Outcome(step, int(status == 0), int(status != 0), 0, seconds))

    def pytest(self, step: str, *words: str, coverage: bool = False) -> None:
        """A step of many checks; pytest's own report says how many."""
        report = self.scratch / f"{len(self.outcomes)}.xml"
        start = ["coverage", "run", "-m", "pytest"] if coverage else ["pytest"]
        status, seconds = self._run(step, ["-m", *start, "-q", f"--junit-xml={report}", *words])
        passed, failed, skipped = _counts(report)
        # 5 is "nothing was collected"; a crash may leave no report. Both are failures, never a
        # green nothing.
        self.outcomes.append(Outcome(step, passed, max(failed, int(status != 0)), skipped, seconds))

    def _run(self, step: str, words) -> tuple[int, float]:
        print(f"\n=== {step}", flush=True)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode, time.monotonic() - began

    def summary(self) -> int:
        width = max(len(outcome.step) for outcome in self.outcomes)
        print(f"\n=== summary (Python {sys.version.split()[0]})")
        print(f"{'step':<{width}}  result  passed  failed  skipped  seconds")
        for step, passed, failed, skipped, seconds in self.outcomes:
            result = "FAILED" if failed else "ok" if passed else "skipped"
            counts = f"{passed:>6}  {failed:>6}  {skipped:>7}  {seconds:>7.1f}"
            print(f"{step:<{width}}  {result:<7} {counts}")
        passed = sum(outcome.passed for outcome in self.outcomes)
        failed = sum(outcome.failed for outcome in self.outcomes)
        print(f"\n{passed} passed, {failed} failed", flush=True)
        return int(failed > 0)


def _counts(report: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) of a JUnit report; nothing passed if there is none."""
    try:
        suites = list(ElementTree.parse(report).iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return 0, 0, 0
    total, failed, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    # A test that fails and whose teardown fails too is one test and two entries.
    return max(total - failed - errors - skipped, 0), failed + errors, skipped


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="picolab-suite-") as scratch:
        suite = Suite(Path(scratch))
        suite.command("ruff check", "-m", "ruff", "check", ".")
        suite.command("ruff format", "-m", "ruff", "format", "--check", ".")
        suite.command(
            "import contract", "-c", "from importlinter.cli import lint_imports_command as l; l()"
        )
        suite.pytest(
            "tests, with ranks", "-m", "not browser and not notebook", "tests", coverage=True
        )
        suite.command("coverage combine", "-m", "coverage", "combine", "--quiet")
        suite.command("coverage report", "-m", "coverage", "report")
        suite.pytest("notebooks, nbval", *NBVAL, "notebooks")
        suite.pytest("notebooks, papermill", "-m", "notebook", "tests/notebooks")
        suite.pytest("browser", "-m", "browser", "-rs", "tests/browser")
        return suite.summary()


if __name__ == "__main__":
    sys.exit(main())
