"""What one ledger entry costs: `python tests/benchmarks/ledger.py`.

The recording part of a collective (beacon, entry, clock) against a recorder that does nothing, in
one process and one run."""

import statistics
import tempfile
import time
from pathlib import Path

from picolab.monitoring.beacon import Beacon
from picolab.monitoring.ledger import RankLedger

N = 50_000
ENTRY = ("all_reduce", "tp", (0, 1), "float32", 4096, 4096.0, "tp: row-parallel output")
TEXT = "all_reduce over tp of ranks (0, 1): float32[2, 128, 128] (tp: row-parallel output)"


class NoRecorder:
    def enter(self, what):
        return 0.0

    def record(self, *fields):
        pass


def one_pass(recorder) -> float:
    """Seconds for each entry."""
    start = time.perf_counter()
    for _ in range(N):
        t = recorder.enter(TEXT)
        recorder.record(*ENTRY, t, 0.0, 0.0)
    return (time.perf_counter() - start) / N


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        costs = []
        for _ in range(7):
            ledger = RankLedger()
            ledger.attach(0, Beacon(Path(folder) / "beacon"))
            costs.append(one_pass(ledger) - one_pass(NoRecorder()))
    median = statistics.median(costs)
    print(f"one ledger entry, against a recorder that does nothing: {median * 1e6:.2f} us")


if __name__ == "__main__":
    main()
