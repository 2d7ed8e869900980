"""What the live view of a run costs the kernel: `python tests/benchmarks/dashboard.py`.

Eight ranks that take ten steps a second, watched at two pictures a second, after 100, 10,000 and
100,000 steps: CPU time of hearing what was said since the last picture and of the picture, the
bytes of what has changed in it, and both times as a share of a core. The events are made up (losses
and a straggler's times; 22 collectives a rank and step), the figure is the one that a page would
draw; what is not in it is the page.

A run's first steps are told without their collectives, which the view forgets anyway: that only
shortens the benchmark.
"""

import json
import math
import random
import time

import ipywidgets

from picolab.lab.live_view import LiveView
from picolab.monitoring import Entry, Event
from picolab.monitoring.run_state import RunState
from picolab.show.table import Table, bytes_text

RANKS, STEPS_A_SECOND, PERIOD_S, CALLS = 8, 10, 0.5, 22
UPDATES = 20
SLOW, LATE_S = 3, 0.02


def step_events(step: int, draw: random.Random, collectives: bool = True):
    began = 0.1 * step
    everybody = tuple(range(RANKS))
    for rank in range(RANKS):
        late = LATE_S if rank == SLOW else draw.random() * 1e-3
        if collectives:
            entries, at = [], began + 0.03 + late
            for call in range(CALLS):
                waits = LATE_S - late if call == 0 else 0.0
                reason = f"dp: bucket {call % 8}"
                entries.append(
                    Entry(rank=rank, step=step, op="all_reduce", axis="dp", ranks=everybody,
                          dtype="float32", payload_bytes=1_000_000, ring_bytes=1e6, reason=reason,
                          start=at, seconds=waits + 1e-3, exposed_s=waits + 1e-3)
                )  # fmt: skip
                at += waits + 1e-3
            yield Event("ledger", rank, began, {"entries": entries})
        loss = 2 + 4 * math.exp(-step / 2000) + 0.05 * draw.random()
        data = {
            "step": step, "steps": 200_000, "loss": loss, "own_loss": loss, "loss_scale": 1.0,
            "grad_norm": 1 + 0.2 * draw.random(), "tokens": 8192, "began": began, "seconds": 0.1,
            "data_s": 1e-4, "queued_s": 0.0, "rss_bytes": 3e8 + 1e3 * draw.random(),
            "layout": f"dp{RANKS}",
        }  # fmt: skip
        yield Event("step", rank, began, data)


def measured(steps: int) -> list:
    draw = random.Random(0)
    state, view = RunState(world_size=RANKS, watch=True), LiveView(watch=True, again=lambda: None)
    sent = [0]

    def count(self, message, buffers=None):
        size = len(json.dumps(message, default=str)) + sum(len(part) for part in buffers or ())
        sent[0] += size

    state.watch.detector.world_size = RANKS
    for step in range(steps):
        for event in step_events(step, draw, collectives=step > steps - 200):
            state.add(event)
    view.paint(state)
    heard = painted = 0.0
    real, ipywidgets.Widget._send = ipywidgets.Widget._send, count
    fresh = round(STEPS_A_SECOND * PERIOD_S)
    try:
        for update in range(UPDATES):
            told = [
                event
                for step in range(steps + update * fresh, steps + (update + 1) * fresh)
                for event in step_events(step, draw)
            ]
            began = time.thread_time()
            for event in told:
                state.add(event)
            heard += time.thread_time() - began
            began = time.thread_time()
            view.paint(state)
            painted += time.thread_time() - began
    finally:
        ipywidgets.Widget._send = real
    share = (heard + painted) / (UPDATES * PERIOD_S)
    each = f"{1e3 * heard / UPDATES:.1f}", f"{1e3 * painted / UPDATES:.1f}"
    return [f"{steps:,}", *each, bytes_text(sent[0] / UPDATES), f"{100 * share:.1f} %"]


def main() -> None:
    columns = ["steps", "hearing, ms", "picture, ms", "bytes a picture", "of a core"]
    rows = [measured(steps) for steps in (100, 10_000, 100_000)]
    print(f"{RANKS} ranks, {STEPS_A_SECOND} steps/s, a picture every {PERIOD_S:g} s")
    print(Table(columns, rows))


if __name__ == "__main__":
    main()
