"""Section 3: faults that a reader switches on, by buttons, in a run that is going on.

    board = chapter.switchboard("dp4", steps=200)     # a run, and a button for each fault
    pico.dashboard(board.job, watch=True)
    board.press("slow pace", rank=1)                  # what a button does
    board.report()                                    # what was pressed, what the monitor found

Every fault that can be chosen is in all ranks from the beginning, and sleeps. The kernel says which
one is on in a small file, which ranks read once in a step: a step is named in it, so that a fault
of one step is one of one step. The monitor does not read it.
"""

import html
import json
import tempfile
import time
from pathlib import Path

from picolab import comm
from picolab.debug.run_faults import InRun, Pace, find
from picolab.monitoring.system import BasicMonitoringSystem
from picolab.show.files import write_beside
from picolab.show.front_end import Message, Shown, has_front_end
from picolab.show.table import Table
from picolab.training.probe import Probe

FAULTS = {
    "slow pace": "slow rank",
    "late data": "late data",
    "loss spike": "bad batch",
    "gradient spike": "steep loss",
    "NaN": "NaN",
    "hang: sleeps": "hang",
    "dead rank": "kill",
}
"""fault -> what is on its button"""
SLOWER, AHEAD = 0.5, 3
AT = 50  # the step in which the headless run's only fault begins


class Switched(InRun):
    """A fault that is on while the file says so, on the rank that it says."""

    def __init__(self, name: str, path: Path, pace_s: float):
        super().__init__(name, slower=SLOWER, pace_s=pace_s)
        self.path = path
        self._looked: int | None = None
        self._order: dict = {}

    @property
    def order(self) -> dict:
        step = comm.ledger().step
        if step is not None and step != self._looked:
            self._looked = step
            self._order = json.loads(self.path.read_text(encoding="utf-8"))
            self.rank = self._order.get("rank", self.rank)
        return self._order if self._order.get("fault") == self.fault else {}

    @property
    def since(self) -> bool:
        order, step = self.order, comm.ledger().step
        return bool(order) and step is not None and step >= order["step"]

    @property
    def now(self) -> bool:
        return bool(self.order) and comm.ledger().step == self.order["step"]

    @property
    def mine(self) -> bool:
        return bool(self.order) and super().mine


class Switchboard(Shown):
    def __init__(self, layout: str, steps: int, pace_s: float, settings: dict):
        from picolab.training import train

        self._folder = tempfile.TemporaryDirectory(prefix="picolab-switch-")
        self._file = Path(self._folder.name) / "order.json"
        self.pressed: list[tuple[int, str, int]] = []
        self._write({})
        if not has_front_end():  # nobody presses
            self._order("slow pace", 1, AT)
            steps = min(steps, AT + 30)
        faults = [Switched(name, self._file, pace_s) for name in FAULTS]
        self.job = train(
            "tiny", layout, steps=steps, observers=[Probe(), Pace(pace_s), *faults], wait=False,
            progress=False, **settings,
        )  # fmt: skip
        self.world = self.job.world_size
        self.monitor = BasicMonitoringSystem({"notify": [], "samples": False, "silence_s": 2.0})
        self.monitor.watch(self.job)
        self.show()

    def press(self, fault: str, rank: int) -> str:
        """Switch it on (and the one before it off). "none" switches off."""
        if fault != "none" and find(fault).name not in FAULTS:
            raise ValueError(f"{fault!r} has no button; there are none, {', '.join(FAULTS)}")
        if not 0 <= rank < self.world:
            raise ValueError(f"rank is {rank}; this run has ranks 0 to {self.world - 1}")
        if self.job.done:
            return "the run has ended; run the cell again for another"
        if fault == "none":
            self._write({})
            return "all is as it was"
        step = max(0, self.monitor.detector.judged) + AHEAD
        self._order(fault, rank, step)
        return f"{FAULTS[fault]} on rank {rank}, from step {step} on"

    def _order(self, fault: str, rank: int, step: int) -> None:
        self.pressed.append((step, fault, rank))
        self._write({"fault": fault, "rank": rank, "step": step})

    def _write(self, order: dict) -> None:
        write_beside(self._file, json.dumps(order))

    def report(self) -> Table:
        """What was pressed, and what the monitor said, by step. Ends the run, if a reader has
        pressed something, and else waits for its end."""
        if has_front_end() and self.pressed:
            self.job.stop()
        while not self.job.done:
            time.sleep(0.1)
        self.monitor.close()
        rows = [[step, f"you: {FAULTS[fault]}", rank] for step, fault, rank in self.pressed]
        rows += [
            ["" if a.step is None else a.step, f"monitor: {a.name}", ", ".join(map(str, a.ranks))]
            for a in self.monitor.anomalies
        ]
        rows.sort(key=lambda row: (row[0] == "", row[0] or 0))
        title = "" if rows else "You have pressed nothing, and the monitor has found nothing"
        return Table(["step", "what", "rank"], rows, title)

    def content(self):
        if not has_front_end():
            return Message(f"{FAULTS['slow pace']} on rank 1 from step {AT} on; no buttons here")
        return _widget(self)


def _widget(board: Switchboard):
    import ipywidgets as widgets

    size = {"width": "auto", "flex": "0 0 auto"}
    rank = widgets.ToggleButtons(options=range(board.world), description="on rank")
    rank.style.button_width = "3em"
    said = widgets.HTML()
    buttons = []
    for fault, words in {**FAULTS, "none": "all well"}.items():
        button = widgets.Button(description=words, layout=size)

        def pressed(_, fault=fault):
            said.value = html.escape(board.press(fault, rank.value))

        button.on_click(pressed)
        buttons.append(button)
    row = widgets.HBox(buttons, layout={"flex_flow": "row wrap"})
    return widgets.VBox([rank, row, said])
