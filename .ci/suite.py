"""The suite, part by part, with one summary at the end. `make test` and .ci/run both end here.

    python .ci/suite.py                  what a push runs: every part
    python .ci/suite.py unit notebooks   these parts
    python .ci/suite.py --all            what a week runs: tests marked `weekly`, and coverage

What may be weekly, and what a push keeps of it, is written in summary/00_architecture.md.

Every step runs, whatever became of the ones before. Run it with the Python of the environment that
`.ci/setup test` made; standard library only.
"""

import argparse
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
TWO_AT_ONCE = ("-n", "2", "--dist", "loadfile")  # what a file's tests share is made once
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")
SLOWEST = 20


class Outcome(NamedTuple):
    step: str
    passed: int
    failed: int
    skipped: int
    seconds: float


class Suite:
    def __init__(self, scratch: Path, *, weekly: bool):
        self.scratch, self.weekly = scratch, weekly
        self.outcomes: list[Outcome] = []
        self.took: list[tuple[float, str]] = []  # of each test: seconds, name
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

    def pytest(self, step: str, *words: str, only: str = "", coverage: bool = False) -> None:
        """A step of many checks (`only` some markers); pytest's own report says how many. Two files
        at once: most tests wait for something half of the time. Of coverage, one."""
        report = self.scratch / f"{len(self.outcomes)}.xml"
        coverage = coverage and self.weekly
        start = ["coverage", "run", "-m", "pytest"] if coverage else ["pytest", *TWO_AT_ONCE]
        start += [] if words[: len(NBVAL)] == NBVAL else ["-p", "no:nbval"]  # two seconds a process
        markers = " and ".join(filter(None, (only, "" if self.weekly else "not weekly")))
        status, seconds = self._run(
            step,
            ["-m", *start, "-q", f"--junit-xml={report}", "-m", markers, *words],
            # Threads of two processes that share two cores wait for each other, spinning.
            **({} if coverage else {"OMP_NUM_THREADS": "1"}),
        )
        passed, failed, skipped, took = _read(report)
        self.took += took
        # 5 is "nothing was collected"; a crash may leave no report. Both are failures, never a
        # green nothing.
        self.outcomes.append(Outcome(step, passed, max(failed, int(status != 0)), skipped, seconds))

    def _run(self, step: str, words, **environment: str) -> tuple[int, float]:
        print(f"\n=== {step}", flush=True)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode, time.monotonic() - began

    def summary(self) -> int:
        if self.took:
            print(f"\n=== the {min(SLOWEST, len(self.took))} slowest tests")
            for seconds, name in sorted(self.took, reverse=True)[:SLOWEST]:
                print(f"{seconds:>7.1f}  {name}")
        width = max(len(outcome.step) for outcome in self.outcomes)
        print(f"\n=== summary (Python {sys.version.split()[0]})")
        print(f"{'step':<{width}}  result  passed  failed  skipped  seconds")
        for step, passed, failed, skipped, seconds in self.outcomes:
            result = "FAILED" if failed else "ok" if passed else "skipped"
            counts = f"{passed:>6}  {failed:>6}  {skipped:>7}  {seconds:>7.1f}"
            print(f"{step:<{width}}  {result:<7} {counts}")
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        print(f"{'together':<{width}}  {'':<33}{seconds:>7.1f}")
        passed = sum(outcome.passed for outcome in self.outcomes)
        failed = sum(outcome.failed for outcome in self.outcomes)
        print(f"\n{passed} passed, {failed} failed", flush=True)
        return int(failed > 0)


def _read(report: Path) -> tuple[int, int, int, list[tuple[float, str]]]:
    """(passed, failed, skipped, each test's seconds) of a JUnit report, which may be missing."""
    try:
        tree = ElementTree.parse(report)
    except (OSError, ElementTree.ParseError):
        return 0, 0, 0, []
    suites = list(tree.iter("testsuite"))
    total, failed, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    took = [
        (float(case.get("time", 0)), f"{case.get('classname')}: {case.get('name')}")
        for case in tree.iter("testcase")
    ]
    # A test that fails and whose teardown fails too is one test and two entries.
    return max(total - failed - errors - skipped, 0), failed + errors, skipped, took


def lint(suite: Suite) -> None:
    suite.command("lint: ruff check", "-m", "ruff", "check", ".")
    suite.command("lint: ruff format", "-m", "ruff", "format", "--check", ".")
    contract = "from importlinter.cli import lint_imports_command as l; l()"
    suite.command("lint: import contract", "-c", contract)


def unit(suite: Suite) -> None:
    suite.pytest("unit", "tests/unit", coverage=True)


def distributed(suite: Suite) -> None:
    """All that is in no other part, so that no new folder is forgotten."""
    others = "not browser and not notebook"
    suite.pytest("distributed", "--ignore=tests/unit", "tests", only=others, coverage=True)


def notebooks(suite: Suite) -> None:
    """As they are saved (nbval: a test a cell), beside a run with other parameters (papermill)."""
    folders = map(str, ROOT.glob("tests/**/notebooks"))
    suite.pytest("notebooks", *NBVAL, "notebooks", *folders, only="notebook")


def browser(suite: Suite) -> None:
    # Nothing is shared: test by test.
    suite.pytest("browser", "--dist", "load", "-rs", "tests/browser", only="browser")


PARTS = {part.__name__: part for part in (lint, unit, distributed, notebooks, browser)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--all", action="store_true", help="the weekly tests, and coverage, too")
    asked = parser.parse_args()
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"{unknown[0]!r} is no part of the suite; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="picolab-suite-") as scratch:
        suite = Suite(Path(scratch), weekly=asked.all)
        for name in asked.parts or PARTS:
            PARTS[name](suite)
        if any(suite.scratch.glob("coverage*")):
            suite.command("coverage: combine", "-m", "coverage", "combine", "--quiet")
            suite.command("coverage: report", "-m", "coverage", "report")
        return suite.summary()


if __name__ == "__main__":
    sys.exit(main())
