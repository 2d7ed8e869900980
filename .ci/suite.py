"""The suite, part by part, with one summary at the end. `make test` and .ci/run both end here.

    python .ci/suite.py                  what a push runs: every part
    python .ci/suite.py unit notebooks   these parts
    python .ci/suite.py --all            what a week runs: tests marked `weekly`, and coverage

What may be weekly, and what a push keeps of it, is written in summary/00_architecture.md.

Every step runs, whatever became of the ones before. All that pytest has to run is one run of it:
what is collected, imported and started is so once, and no core waits for the end of a part. Run it
with the Python of the environment that `.ci/setup test` made; standard library only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
# Two files at once on two cores: with three, a pipeline's bubble is also waiting for a core. In the
# order in which they are collected, the last part first: the longest tests, so that all end
# together.
AT_ONCE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")
PARTS = ("lint", "unit", "distributed", "notebooks", "browser")
SLOWEST = 20


class Outcome(NamedTuple):
    step: str
    passed: int
    failed: int
    skipped: int
    seconds: float


class Test(NamedTuple):
    part: str
    name: str
    result: str
    seconds: float


class Suite:
    def __init__(self, scratch: Path, *, weekly: bool):
        self.scratch, self.weekly = scratch, weekly
        self.outcomes: list[Outcome] = []
        self.took: list[tuple[float, str]] = []  # of each test: seconds, name
        self.began = time.monotonic()
        # Coverage data, run directories and Jupyter's settings stay out of the checkout and of the
        # user's home. Bytecode may be kept beside its source: the tests start hundreds of
        # processes, and where it is forbidden each compiles the package again.
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "COVERAGE_FILE": str(scratch / "coverage"),
            "XDG_STATE_HOME": str(scratch / "state"),
            "IPYTHONDIR": str(scratch / "ipython"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def command(self, step: str, *words: str) -> None:
        """A step that either holds or does not: one check."""
        began = time.monotonic()
        status = self._run(step, words)
        seconds = time.monotonic() - began
        self.outcomes.append(Outcome(step, int(status == 0), int(status != 0), 0, seconds))

    def pytest(self, parts: list[str], coverage: bool = False) -> None:
        """These parts in one run, and an outcome for each. Of coverage, one file at a time."""
        report = self.scratch / f"{'-'.join(parts)}.xml"
        # Threads of two processes that share two cores wait for each other, spinning.
        one_thread = {} if coverage else {"OMP_NUM_THREADS": "1"}
        start = ("coverage", "run", "-m", "pytest") if coverage else ("pytest", *AT_ONCE)
        status = self._run(
            "pytest: " + ", ".join(parts),
            [
                *("-m", *start, "-q", f"--junit-xml={report}"),
                *(NBVAL if "notebooks" in parts else ("-p", "no:nbval")),
                *("-m", "" if self.weekly else "not weekly"),
                *_paths(parts),
            ],
            **one_thread,
        )
        tests = _read(report)
        self.took += [(test.seconds, test.name) for test in tests]
        for part in parts:
            results = [test.result for test in tests if test.part == part]
            passed, failed, skipped = map(results.count, ("passed", "failed", "skipped"))
            # Where nothing was collected, or a crash left no report: never a green nothing.
            failed = failed or int(not results)
            seconds = sum(test.seconds for test in tests if test.part == part)
            self.outcomes.append(Outcome(part, passed, failed, skipped, seconds))
        if status and not any(outcome.failed for outcome in self.outcomes):
            self.outcomes.append(Outcome(f"pytest itself ({status})", 0, 1, 0, 0.0))

    def _run(self, step: str, words, **environment: str) -> int:
        print(f"\n=== {step}", flush=True)
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode

    def summary(self) -> int:
        files: Counter[str] = Counter()
        for seconds, name in self.took:
            files[name.partition(": ")[0]] += seconds
        for what, took in (("tests", self.took), ("files", [(s, f) for f, s in files.items()])):
            if took:
                print(f"\n=== the {min(SLOWEST, len(took))} slowest {what}")
            for seconds, name in sorted(took, reverse=True)[:SLOWEST]:
                print(f"{seconds:>7.1f}  {name}")
        width = max(len(outcome.step) for outcome in self.outcomes)
        print(f"\n=== summary (Python {sys.version.split()[0]}; tests run beside each other)")
        print(f"{'step':<{width}}  result  passed  failed  skipped  seconds")
        for step, passed, failed, skipped, seconds in self.outcomes:
            result = "FAILED" if failed else "ok" if passed else "skipped"
            counts = f"{passed:>6}  {failed:>6}  {skipped:>7}  {seconds:>7.1f}"
            print(f"{step:<{width}}  {result:<7} {counts}")
        print(f"{'from begin to end':<{width + 33}}  {time.monotonic() - self.began:>7.1f}")
        passed = sum(outcome.passed for outcome in self.outcomes)
        failed = sum(outcome.failed for outcome in self.outcomes)
        print(f"\n{passed} passed, {failed} failed", flush=True)
        return int(failed > 0)


def _paths(parts: list[str]) -> list[str]:
    """Where pytest looks. `distributed` is all that is in no other part, so that no new folder is
    forgotten; a notebook is one in whatever folder of tests."""
    tests = ROOT / "tests"
    notebooks = [ROOT / "notebooks", *sorted(tests.glob("**/notebooks"))]
    own = {"browser": [tests / "browser"], "notebooks": notebooks, "unit": [tests / "unit"]}
    taken = [path for paths in own.values() for path in paths]
    folders = [path for path in sorted(tests.iterdir()) if path.is_dir() and path.name[0] != "_"]
    own["distributed"] = [path for path in folders if path not in taken]
    asked = [str(path.relative_to(ROOT)) for part in reversed(parts) for path in own[part]]
    ignored = [] if "notebooks" in parts else notebooks
    return [*asked, *(f"--ignore={path}" for path in ignored)]


def _part(place: str) -> str:
    """The part of a test, from where it is: tests.unit.costs.test_slices"""
    for part in ("notebooks", "browser", "unit"):
        if f".{part}." in f".{place}.":
            return part
    return "distributed"


def _read(report: Path) -> list[Test]:
    """The tests of a JUnit report, which may be missing."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return []
    found: dict[str, Test] = {}
    for case in cases:
        place = case.get("classname") or case.get("name")  # of a file that cannot be collected
        name = f"{place}: {case.get('name')}"
        wrong = {"failure", "error"} & {child.tag for child in case}
        result = "failed" if wrong else "passed" if case.find("skipped") is None else "skipped"
        test = Test(_part(place), name, result, float(case.get("time", 0)))
        # A test that fails and whose teardown fails too is one test and two entries.
        if name not in found or wrong:
            found[name] = test
    return list(found.values())


def lint(suite: Suite) -> None:
    suite.command("lint: ruff check", "-m", "ruff", "check", ".")
    suite.command("lint: ruff format", "-m", "ruff", "format", "--check", ".")
    contract = "from importlinter.cli import lint_imports_command as l; l()"
    suite.command("lint: import contract", "-c", contract)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--all", action="store_true", help="the weekly tests, and coverage, too")
    asked = parser.parse_args()
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"{unknown[0]!r} is no part of the suite; there are {', '.join(PARTS)}")
    chosen = [part for part in PARTS if part in (asked.parts or PARTS)]
    covered = [part for part in chosen if asked.all and part in ("distributed", "unit")]
    with tempfile.TemporaryDirectory(prefix="picolab-suite-") as scratch:
        suite = Suite(Path(scratch), weekly=asked.all)
        if "lint" in chosen:
            lint(suite)
        if parts := [part for part in chosen if part != "lint" and part not in covered]:
            suite.pytest(parts)
        if covered:
            suite.pytest(covered, coverage=True)
            suite.command("coverage: combine", "-m", "coverage", "combine", "--quiet")
            suite.command("coverage: report", "-m", "coverage", "report")
        return suite.summary()


if __name__ == "__main__":
    sys.exit(main())
