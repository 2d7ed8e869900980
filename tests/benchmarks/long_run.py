"""What a long run costs the kernel: `python tests/benchmarks/long_run.py [STEPS] [--whole]`.

Four ranks of a dp2tp2 run train for three steps. The collectives of the last one are then told
again, step after step, by four real ranks that compute nothing: through their ledgers, over their
connections, into their files and into the kernel's history, as a run of so many steps would.
Printed is by how much the kernel's resident memory has grown at ten places and at the end, and
whether the totals of the whole run are what they must be. 20,000 steps take some minutes and leave
about a gigabyte in the run directory, which is removed.

--whole    with a history that keeps everything, as it was; try it with 2,000 steps
"""

import gc
import inspect
import shutil
import sys
import time

import psutil

import picolab as pico
from picolab.monitoring import history
from picolab.training.result import RankReport

RANKS = 4


def tell_again(entries_of_rank, steps: int) -> RankReport:
    """What one rank says of `steps` steps, all of them alike but for the times."""
    from picolab.monitoring import events

    ledger, report = pico.comm.ledger(), RankReport()
    entries = entries_of_rank[ledger.rank]
    told = inspect.signature(ledger.record).parameters  # the rest of an entry it finds by itself
    calls = [{k: v for k, v in entry._asdict().items() if k in told} for entry in entries]
    for step in range(steps):
        ledger.step, now = step, time.monotonic()
        for call in calls:
            start = ledger.enter(call["reason"])
            ledger.record(**{**call, "start": start, "seconds": 1e-4 + (start - now)})
        loss, seconds = 5.0 / (step + 1), time.monotonic() - now
        for values, value in (
            (report.losses, loss),
            (report.grad_norms, 1.0 / (step + 1)),
            (report.learning_rates, 3e-3 / (step + 1)),
            (report.tokens, 1024 + step),
            (report.seconds, seconds),
        ):
            values.append(value)
        ledger.flush()
        spans = [("F", 0, m, now, now + 1.0) for m in range(4)]
        events.write("spans", step=step, spans=spans, schedule="1f1b")
        about = {"loss": loss, "grad_norm": 1.0, "lr": 3e-3, "tokens": 1024, "seconds": seconds}
        events.write("step", step=step, steps=steps, cpu_s=seconds, layout="dp2tp2", **about)
    ledger.step = None
    return report


class Watch:
    """The kernel's resident bytes above those at the beginning, whenever a tenth is done."""

    def __init__(self, steps: int):
        self._process, self._every = psutil.Process(), max(1, steps // 10)
        self._before, self.most = self._rss(), 0

    def _rss(self) -> int:
        return self._process.memory_info().rss

    def __call__(self, event) -> None:
        if event.kind == "step" and event.rank == 0 and event.data["step"] % self._every == 0:
            print(f"step {event.data['step']:>6,}: {self.growth() / 1e6:7.1f} MB", flush=True)

    def growth(self) -> int:
        grown = self._rss() - self._before
        self.most = max(self.most, grown)
        return grown


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    steps = numbers[0] if numbers else 20_000
    if "--whole" in sys.argv:
        history.KEPT = sys.maxsize
    # Five micro-batches a step: about a hundred collectives of each rank.
    trained = pico.train(layout="dp2tp2", steps=3, accumulate=5, progress=False)
    of_rank = [list(trained.ledger.rank(rank).step(2)) for rank in range(RANKS)]
    print(f"collectives of a rank in a step: {[len(entries) for entries in of_rank]}")
    pico.run(tell_again, of_rank, 3, world_size=RANKS, quiet=True)  # what any run costs
    gc.collect()
    watch, began = Watch(steps), time.monotonic()
    run = pico.run(
        tell_again, of_rank, steps, world_size=RANKS, quiet=True, progress=watch, timeout=600
    )
    at_end, took = watch.growth(), time.monotonic() - began
    on_disk = sum(path.stat().st_size for path in run.run_dir.glob("events.*.jsonl"))
    began = time.monotonic()
    found = run.ledger.by("rank", "op", "axis", "reason")
    print(f"totals in {time.monotonic() - began:.2f} s; {run.ledger!r}")
    exact = 0
    for rank, entries in enumerate(of_rank):
        expected = pico.monitoring.Ledger(entries).by("rank", "op", "axis", "reason")
        for key, one in expected.items():
            was = found.pop(key)
            assert was[:3] == tuple(steps * value for value in one[:3]), (rank, key)
            exact += 1
    assert not found
    print(f"{exact} totals (count, payload, ring bytes) of the whole run are exact")
    print(repr(run.events)[:200])
    print(f"{steps:,} steps of {RANKS} ranks in {took:.0f} s, {on_disk / 1e6:,.0f} MB on disk")
    if "--whole" not in sys.argv:
        began = time.monotonic()
        assert len(run.ledger.step(1)) == sum(map(len, of_rank))
        print(f"the collectives of step 1, from disk: {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        assert len(pico.dashboard(run, live=False).state.losses) == steps
        print(f"a picture of the whole run: {time.monotonic() - began:.1f} s")
    print(f"the kernel has grown by {at_end / 1e6:.1f} MB, at most {watch.most / 1e6:.1f} MB")
    shutil.rmtree(run.run_dir)


if __name__ == "__main__":
    main()
