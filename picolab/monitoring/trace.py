"""A run as a Chrome trace, for https://ui.perfetto.dev or chrome://tracing. Both read the file in
the browser and send it nowhere.

What is in the file, in the terms of the Trace Event Format (JSON object form):

    process "run"       a thread a rank. A slice for each step, and in it one for each interval of
                        compute, communication, waiting and bubble (category: that kind). The
                        slice of a collective is named by its operation, and its reason, axis and
                        bytes are in its arguments
    process "pipeline"  a thread a rank of a pipeline: its forwards and backwards, by micro-batch
    flows               an arrow for each message, from the slice in which it was sent to the one
                        in which it was received

Times are in microseconds since the first step in the file began, to the nanosecond, so that slices
that follow one another do not overlap by rounding. Compute, communication, waiting and bubble are
the same intervals as in `Activity`, and add up to the same seconds as the split of the step.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from picolab.monitoring.activity import Activity, activity
from picolab.monitoring.history import History
from picolab.monitoring.ledger import Ledger
from picolab.show.files import write_beside

RUN, PIPELINE = 1, 2  # process ids
_ACTIONS = {"F": "forward", "B": "backward", "W": "backward, weights"}


def chrome_trace(
    activities: Iterable[Activity], actions: Iterable[tuple] = (), *, name: str = "run"
) -> dict:
    """The trace as one JSON object.

    actions   (rank, kind, stage, micro-batch, start, end) of a pipeline, on the same clock
    name      of the run, as the viewer shows it
    """
    activities, actions = list(activities), list(actions)
    zero = min((moments.start for moments in activities), default=0.0)
    events: list[dict] = []

    def at(time: float) -> int:
        """Nanoseconds, whole: what ends where another begins ends exactly there."""
        return round(1e9 * (time - zero))

    def slice_of(pid, rank, title, category, start, end, **about) -> None:
        begin, ends = at(start), at(end)
        where = {"pid": pid, "tid": rank, "ts": begin / 1e3, "dur": (ends - begin) / 1e3}
        events.append({"name": title, "cat": category, "ph": "X", **where, "args": about})

    flows = 0
    for moments in activities:
        for rank, (start, end) in moments.bounds.items():
            slice_of(RUN, rank, f"step {moments.step}", "step", start, end)
        for rank, kind, start, end, entry in moments.intervals:
            if entry is None:
                slice_of(RUN, rank, kind, kind, start, end)
                continue
            about = {"reason": entry.reason, "axis": entry.axis, "bytes": entry.payload_bytes}
            about |= {} if entry.peer is None else {"peer": entry.peer}
            slice_of(RUN, rank, f"{entry.op} ({kind})", kind, start, end, **about)
        for message in moments.messages:
            flows += 1
            common = {"name": message.reason, "cat": "message", "id": flows, "pid": RUN}
            sent, received = at(message.sent) / 1e3, at(message.received) / 1e3
            events.append({**common, "ph": "s", "tid": message.source, "ts": sent})
            end = {"ph": "f", "bp": "e", "tid": message.target, "ts": received}
            events.append({**common, **end})
    for rank, kind, stage, micro_batch, start, end in actions:
        title, about = f"{kind}{micro_batch}", {"stage": stage, "micro_batch": micro_batch}
        slice_of(PIPELINE, rank, title, _ACTIONS[kind], start, end, **about)
    named = [_named("process_name", RUN, name)]
    named += [
        _named("thread_name", RUN, f"rank {rank}", rank)
        for rank in sorted({rank for moments in activities for rank in moments.bounds})
    ]
    if actions:
        named.append(_named("process_name", PIPELINE, "pipeline"))
        ranks = sorted({action[0] for action in actions})
        named += [_named("thread_name", PIPELINE, f"rank {rank}", rank) for rank in ranks]
    return {"traceEvents": [*named, *events], "displayTimeUnit": "ms"}


def trace_of_run(events: History, steps: Iterable[int], *, name: str = "run") -> dict:
    """The trace of these steps of a run, from what its ranks told."""
    steps, ledger = list(steps), events.ledger.in_steps()
    actions = [
        (event.rank, *span)
        for step in steps
        for event in events.where("spans", step)
        for span in event.data["spans"]
    ]
    return chrome_trace((activity_of(events, ledger, step) for step in steps), actions, name=name)


def activity_of(events: History, ledger: Ledger, step: int) -> Activity:
    """What every rank did when in this step. ledger: of all steps."""
    said = {event.rank: event.data for event in events.where("step", step)}
    seconds = {rank: data["seconds"] for rank, data in said.items()}
    began = {r: data["began"] for r, data in said.items() if data.get("began") is not None}
    return activity(step, ledger.step(step), seconds, began)


def write_trace(path: str | Path, trace: dict) -> Path:
    """Write it, beside and renamed."""
    path = Path(path).expanduser()
    if path.suffix != ".json":
        raise ValueError(f"a trace is JSON: call the file {path.name}.json, not {path.name}")
    write_beside(path, json.dumps(trace, separators=(",", ":")))
    return path


def _named(what: str, pid: int, name: str, tid: int = 0) -> dict:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
