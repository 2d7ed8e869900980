"""A recorded run, written out as plain events: dp2tp2, in which rank 2 computes longest.

Times are made up and simple, so that the tests can say what the figures must show.
"""

from picolab.monitoring import Entry, Event

HIDDEN, LAYERS, SEQ, MICRO_BATCH = 128, 4, 128, 4


def entry(rank, step, op, axis, ranks, payload, start, seconds, reason, exposed=None):
    return Entry(
        rank=rank,
        step=step,
        op=op,
        axis=axis,
        ranks=ranks,
        dtype="float32",
        payload_bytes=payload,
        ring_bytes=float(payload),
        reason=reason,
        start=start,
        seconds=seconds,
        exposed_s=seconds if exposed is None else exposed,
    )


def recorded_run(steps=20, slow_rank=2, slow_s=0.030, state="done"):
    """Events of four ranks, interleaved as they would arrive."""
    size = MICRO_BATCH * SEQ * HIDDEN * 4
    tp_of = {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}
    dp_of = {0: (0, 2), 1: (1, 3), 2: (0, 2), 3: (1, 3)}
    events = [Event("state", -1, 0.0, {"state": "running"})]
    for step in range(steps):
        base = 10.0 + 0.2 * step
        for rank in range(4):
            late = slow_s if rank == slow_rank else 0.0
            # A tp group is held up by its own slow rank; then the dp groups by the slow tp group.
            held = slow_s if slow_rank in tp_of[rank] else 0.0
            calls = [("tp", size, 0.001, "tp: row-parallel output")] * (2 * LAYERS)
            calls += [("tp", size, 0.001, "tp: column-parallel input gradient")] * (2 * LAYERS + 1)
            calls += [("dp", 1_900_000, 0.008, "dp: gradient bucket"), ("dp", 8, 0.001, "dp: loss")]
            at, entries = base + 0.05 + late, []
            for axis, payload, transfer, reason in calls:
                waits = 0.0
                if not entries:
                    waits = held - late
                elif reason == "dp: gradient bucket":
                    waits = slow_s - held
                ranks = (tp_of if axis == "tp" else dp_of)[rank]
                seconds = waits + transfer
                entries.append(
                    entry(rank, step, "all_reduce", axis, ranks, payload, at, seconds, reason)
                )
                at += seconds
            data = {
                "step": step,
                "steps": steps,
                "loss": 5.6 * 0.93**step + 1.2,
                "grad_norm": 1.0,
                "lr": 1e-3,
                "tokens": 2 * MICRO_BATCH * SEQ,
                "seconds": 0.12 + slow_s,
                "cpu_s": 0.1,
                "layout": "dp2tp2",
            }
            events.append(Event("ledger", rank, base, {"entries": entries}))
            events.append(Event("step", rank, base, data))
    if state:
        events.append(Event("state", -1, 99.0, {"state": state}))
    return events
