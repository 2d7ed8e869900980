"""What the ledger costs a collective: `python tests/benchmarks/ledger.py`.

All that `comm.all_reduce` does besides torch's own call (the entry's fields, the beacon's line, the
clock, the entry), in a real rank, against the same code with a recorder that does nothing.
"""

import statistics
import time

import picolab as pico

N = 20_000


class NoRecorder:
    """Takes the same calls and does nothing."""

    now = staticmethod(lambda: 0.0)

    def enter(self, what, group):
        return 0.0

    def record(self, *fields, **more):
        pass


def measure() -> tuple[float, float]:
    """Seconds of one entry, with the ledger and with the recorder that does nothing."""
    import torch

    from picolab.comm import collectives

    comm, x = pico.comm, torch.ones(2, 128, 128)
    mesh = comm.mesh()

    def one_pass() -> float:
        start = time.perf_counter()
        for _ in range(N):
            payload = collectives._bytes(x)
            entry = collectives._entry("all_reduce", "world", mesh, x, payload, "a reason")
            collectives._done(entry, collectives._enter(entry, x), x)
        return (time.perf_counter() - start) / N

    ledger = collectives.current
    with_ledger, without = [], []
    for _ in range(5):
        with_ledger.append(one_pass())
        ledger.kept.clear()
        collectives.current = NoRecorder()
        without.append(one_pass())
        collectives.current = ledger
    return statistics.median(with_ledger), statistics.median(without)


def main() -> None:
    seconds, nothing = pico.run(measure, world_size=2, quiet=True)[0]
    print(f"a collective's bookkeeping    {seconds * 1e6:5.2f} us")
    print(f"with a recorder that does nothing {nothing * 1e6:5.2f} us")
    print(f"recording one entry           {(seconds - nothing) * 1e6:5.2f} us")


if __name__ == "__main__":
    main()
