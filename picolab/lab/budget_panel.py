"""`pico.budget_panel()`: choose a memory budget, see which block keeps what and why, run it, and
watch the peak stay under the line.

A short run measures first: what each block keeps, and what each choice costs in time. From there on
the slider offers only budgets that can be kept, from the least to what keeping everything takes.
Beside the plan stands why it is no faster one: what that would take, and how much too much it is.
A run measures for itself before its first step, so where two choices cost nearly the same its plan
may be another one than the panel's; the picture shows the run's own.

Headless the panel is a table of its budgets, and with autorun=True it runs the one in the middle.
"""

import threading
from typing import NamedTuple

from picolab.lab.run_panel import RunPanel
from picolab.monitoring.run_state import RunState
from picolab.show.block_letters import block_letters
from picolab.show.front_end import has_front_end
from picolab.show.table import Table, bytes_text
from picolab.specs.settings import takes_settings

_STEPS = 24  # places of the slider


class Stage(NamedTuple):
    """What is known of the blocks of one stage of the pipeline."""

    frontier: list[list]
    """[peak, seconds, choices], from the least bytes to the least time"""
    blocks: list[dict[str, list]]
    """choice -> bytes kept, bytes while it works, seconds"""

    def place(self, budget: int) -> int:
        """Of the fastest plan that keeps to it."""
        return max(i for i, (peak, *_) in enumerate(self.frontier) if peak <= budget)


@takes_settings("model", "layout", "steps")
def budget_panel(*, autorun: bool = False, live: bool | None = None, **settings) -> "BudgetPanel":
    """A slider of budgets, the plan for each block and why, Run and Stop, and the live dashboard.

    autorun     headless only: run the budget in the middle once and show its picture
    live        True or False instead of finding out whether there is a front end with widgets

    Returns a `BudgetPanel`, which has shown itself: `.budget`, `.choose(bytes)`, `.job`, `.run()`,
    `.stop()`. The other settings are those of `pico.train`:
    """
    if settings.get("memory_budget") is not None:
        raise ValueError("the panel's slider chooses the memory_budget: leave it out")
    return BudgetPanel(settings, has_front_end() if live is None else live, autorun)


class BudgetPanel(RunPanel):
    def __init__(self, settings: dict, live: bool, autorun: bool):
        super().__init__(settings)
        self.stages = _measured(self._train, settings)
        least = max(stage.frontier[0][0] for stage in self.stages)
        most = max(stage.frontier[-1][0] for stage in self.stages)
        self.budgets = [round(least + i * (most - least) / _STEPS) for i in range(_STEPS + 1)]
        self.budget = self.budgets[_STEPS // 2]
        self.message = "choose a budget and press Run"
        self._ran = self.budget
        self._open(_Widgets(self) if live else None, autorun)

    # -- what the slider does; also to be called in code --

    def choose(self, budget: int) -> Table:
        """The plan for this budget. ValueError says what can be kept."""
        if budget < self.budgets[0]:
            raise ValueError(
                f"a memory budget of {bytes_text(budget)} cannot be kept: the least is "
                f"{self.budgets[0]:,} bytes"
            )
        self.budget = budget
        if self._widgets:
            self._widgets.show_plan()
        return self.table()

    # -- of a run --

    def _begin(self) -> str:
        self._ran = self.budget
        return f"starting under {bytes_text(self.budget)}"

    def _given(self) -> dict:
        from picolab.memory import MemoryMonitor

        steps = self._settings.get("steps") or 12
        watched = MemoryMonitor(steps=range(1, steps))
        return {"steps": steps, "memory_budget": self._ran, "observers": [watched]}

    def _going(self) -> str:
        return "a run is still going"

    def _told(self, said: str, state: RunState) -> str:
        return _against_budget(state, self._ran) or said

    # -- what is to be seen --

    def table(self) -> Table:
        """The plan for the chosen budget: block by block, and why it is no faster one."""
        rows, why = [], []
        for number, stage in enumerate(self.stages):
            at = stage.place(self.budget)
            peak, seconds, choices = stage.frontier[at]
            for block, choice in enumerate(choices):
                kept, _, longer = stage.blocks[block][choice]
                saved = stage.blocks[block]["keep"][0] - kept
                rows.append([block, choice, bytes_text(kept), bytes_text(saved), 1e3 * longer])
            of = f"stage {number}: " if len(self.stages) > 1 else ""
            said = f"{of}peak {bytes_text(peak)}, {1e3 * seconds:.1f} ms a micro-batch more"
            why.append(f"{said}; {self._why(stage, at)}")
        columns = ["block", "choice", "keeps", "saves", "ms longer"]
        title = f"A budget of {bytes_text(self.budget)}: {'; '.join(why)}"
        return Table(columns, rows, title)

    def _why(self, stage: Stage, at: int) -> str:
        if at + 1 == len(stage.frontier):
            return "everything is kept"
        peak, seconds, choices = stage.frontier[at + 1]
        return (
            f"the next faster plan ({block_letters(choices)}) saves "
            f"{1e3 * (stage.frontier[at][1] - seconds):.1f} ms and takes {bytes_text(peak)}, "
            f"{bytes_text(peak - self.budget)} too much"
        )

    def budgets_table(self) -> Table:
        """A row for each plan that some budget asks for."""
        rows = []
        for number, stage in enumerate(self.stages):
            of = [number] if len(self.stages) > 1 else []
            for peak, seconds, choices in stage.frontier:
                rows.append([*of, bytes_text(peak), block_letters(choices), 1e3 * seconds])
        columns = ["stage"] * (len(self.stages) > 1) + ["budgets from", "blocks", "ms longer"]
        title = "K keeps, S recomputes selectively, M its MLP, R all, O offloads"
        return Table(columns, rows, title)

    def content(self):
        return self._widgets.box if self._widgets else self.budgets_table()

    def __repr__(self) -> str:
        return f"{self.budgets_table()!r}\n\n{self.table()!r}\n{self.message}"


def _measured(train, settings: dict) -> list[Stage]:
    """Of each stage of the pipeline, by a run of one step whose budget is no limit."""
    told = train(**{**settings, "steps": 1, "memory_budget": 1 << 50, "progress": False})
    found: list[Stage] = []
    plans = [event for event in told.events if event.kind == "memory plan"]
    for event in sorted(plans, key=lambda event: event.rank):
        stage = Stage(event.data["frontier"], event.data["blocks"])
        if stage not in found:  # all ranks of a stage have agreed
            found.append(stage)
    return found


def _against_budget(state: RunState, budget: int) -> str:
    peaks = [peak for of in state.memory.peaks.values() for peak in of.values()]
    if not peaks or state.error:
        return ""
    word = "kept" if max(peaks) <= budget else "NOT kept"
    return (
        f"{state.sentence()}\npeak {bytes_text(max(peaks))}: the budget of {bytes_text(budget)} "
        f"was {word}"
    )


class _Widgets:
    def __init__(self, panel: BudgetPanel):
        import ipywidgets as widgets

        from picolab.lab.live_view import sentence_html

        self._panel, self._html = panel, sentence_html
        self.slider = widgets.SelectionSlider(
            options=[(bytes_text(budget), budget) for budget in panel.budgets],
            value=panel.budget,
            description="budget",
            continuous_update=True,
            layout={"width": "32em"},
        )
        self.run = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.message, self.plan = widgets.HTML(sentence_html(panel.message)), widgets.HTML()
        self.live, self._view = widgets.VBox(), None
        row = widgets.HBox([self.slider, self.run, self.stop], layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([row, self.message, self.plan, self.live])
        self.slider.observe(lambda change: panel.choose(change.new), "value")
        self.run.on_click(lambda _: panel.run())
        self.stop.on_click(lambda _: panel.stop())
        self.show_plan()

    def say(self, text: str) -> None:
        self.message.value = self._html(text)

    def show_plan(self) -> None:
        self.plan.value = self._panel.table()._repr_html_()

    def begin(self) -> threading.Event:
        """A run has been started. Returns what is set once a page can draw the figure."""
        from picolab.lab.live_view import LiveView

        if self._view is None:
            self._view = LiveView()
            self.live.children = (self._view.box,)
        self.live.layout.display = None
        self._view.wait()
        self._view.paint(RunState())
        self.stop.disabled = False
        return self._view.stands

    def paint(self, state: RunState) -> bool:
        return self._view.paint(state)

    def end(self, state: RunState) -> None:
        """The run has ended: the live figure is hidden, and a light picture is under the panel."""
        self._view.paint(state)
        self.live.layout.display = "none"
        self.stop.disabled = True
