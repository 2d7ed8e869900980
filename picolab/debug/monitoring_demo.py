"""`picolab demo monitoring`: a minute in a terminal. One of a few ranks, drawn by lot, is slow for
a while; the monitor, which does not know the lot, finds it, names it, and says when it is over."""

import queue
import random
import sys
import time
from collections.abc import Iterator

from picolab.debug.run_faults import InRun, Pace
from picolab.monitoring.alerts import Notification, history_table
from picolab.monitoring.system import BasicMonitoringSystem
from picolab.show import terminal
from picolab.specs import Layout
from picolab.training.start import train

PACE_S, SLOWER = 0.04, 0.4
STEPS, FROM, UNTIL = 180, 50, 110
SMALL = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=32, micro_batch=4)
WIDTH, LOOK_S = 50, 0.25


def monitoring_demo(
    layout: str = "dp4", rank: int | None = None, steps: int = STEPS, **settings
) -> Iterator[object]:
    """What to print, one after the other. rank: the slow one; None: by lot. settings: `train`'s."""
    world = Layout.parse(layout).world
    if world < 2:
        raise ValueError(f"{layout} is one rank, which nobody waits for; take two or more: dp4")
    slow = random.randrange(world) if rank is None else rank
    fault = InRun("slow pace", slow, at=FROM, slower=SLOWER, pace_s=PACE_S, until=UNTIL)
    yield (
        f"{world} ranks train, {steps} steps. In each a rank sleeps {PACE_S * 1e3:.0f} ms, in "
        f"place of a device of its own; from step {FROM}\nto {UNTIL} one of them, drawn by lot, "
        f"sleeps {SLOWER:.0%} longer. The monitor does not know which, when, or that\nthere is "
        "one: it hears what ranks say anyway. (# at work, - without a core, . waiting for others)\n"
    )
    told = _Queue()
    system = BasicMonitoringSystem({"notify": [told], "samples": False})
    job = train(
        layout=layout, steps=steps, data="stdlib", observers=[Pace(PACE_S), fault],
        progress=False, wait=False, **(settings or SMALL),
    )  # fmt: skip
    try:
        system.watch(job)
        yield from _live(job, system, told, world)
        job.result()
    finally:
        job.stop()
        system.close()
    yield from (message for _, message in _messages(told))
    yield "\nWhat became of each alert:"
    yield history_table(system.alerts.history)
    yield _verdict(system, slow)
    yield f"The run is in {job.run_dir}; picolab alerts shows its alerts again."


class _Queue:
    """A notifier: what is told, for the thread that prints."""

    def __init__(self):
        self.waiting: queue.Queue[Notification] = queue.Queue()

    def tell(self, notification: Notification) -> None:
        self.waiting.put(notification)

    def close(self) -> None:
        pass


def _messages(told: _Queue) -> Iterator[tuple[Notification, str]]:
    while not told.waiting.empty():
        notification = told.waiting.get()
        about = f"\n  {notification.about}" if notification.state == "firing" else ""
        yield notification, f"{notification.text}{about}"


def _live(job, system: BasicMonitoringSystem, told: _Queue, world: int) -> Iterator[str]:
    """In a terminal a picture that moves, and the messages above it; else the messages, and a
    picture of the time of each."""
    if not sys.stdout.isatty():
        while not job.done:
            time.sleep(LOOK_S)
            for notification, message in _messages(told):
                yield message
                if notification.state == "firing":
                    yield picture(system, world)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console(), auto_refresh=False) as live:
        while not job.done:
            time.sleep(LOOK_S)
            for notification, message in _messages(told):
                gone = notification.state == "resolved"
                live.console.print(Text(message, style="green" if gone else "bold yellow"))
            live.update(Text(picture(system, world)), refresh=True)


def picture(system: BasicMonitoringSystem, world: int) -> str:
    """The newest step: who worked, and who waited for whom."""
    step, work = system.detector.judged, dict(system.detector.work)
    seconds = system.collector.of_ranks("step_seconds", step)
    if len(work) < world or len(seconds) < world:
        return "  ranks are starting"
    longest, lines = max(seconds.values()), []
    for rank in range(world):
        parts = work[rank].own, work[rank].queued, seconds[rank]
        own, queued, whole = (round(WIDTH * max(0.0, part) / longest) for part in parts)
        bar = ("#" * own + "-" * queued).ljust(whole, ".")
        lines.append(f"  rank {rank} {bar:<{WIDTH}} {work[rank].own * 1e3:5.0f} ms of its own")
    firing = "; ".join(map(str, system.alerts.firing)) or "nothing out of the ordinary"
    return "\n".join([f"  step {step}", *lines, f"  {firing}"])


def _verdict(system: BasicMonitoringSystem, slow: int) -> str:
    lot = f"The lot had fallen on rank {slow}, from step {FROM} to {UNTIL}. "
    of_rank = [t for t in system.alerts.history if t.name == "slow rank"]
    fired = [t for t in of_rank if t.state == "firing"]
    if not fired:
        busy = any(anomaly.name == "busy host" for anomaly in system.anomalies)
        why = " (the machine was busy with other things, as it says)" if busy else ""
        return f"{lot}The monitor has not found it{why}."
    named = ", ".join(f"rank {t.rank} at step {t.step}" for t in fired)
    right = all(t.rank == slow and t.step >= FROM for t in fired)
    resolved = [t.step for t in of_rank if t.state == "resolved"]
    over = f", and said that it was over at step {resolved[-1]}" if resolved else ""
    return f"{lot}The monitor named {named}{over}: {'right' if right else 'WRONG'}."
