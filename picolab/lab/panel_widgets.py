"""The widgets of a panel, and nothing but widgets: what they mean is in `panel`.

Made only where there is a front end. The live figure is made at the first run and used again for
the next ones. Between runs it is hidden, not taken out: plotly's view of a figure that was taken
out goes on listening, and complains of every update.
"""

import threading
from collections.abc import Iterable

from picolab.lab.layout_choice import CHOSEN
from picolab.lab.live_view import LiveView, sentence_html
from picolab.monitoring.run_state import RunState
from picolab.specs import Layout

_NAMES = {
    "dp": "data parallel",
    "tp": "tensor parallel",
    "pp": "pipeline stages",
    "cp": "context parallel",
    "ep": "expert parallel",
    "zero": "what replicas shard",
    "schedule": "order of the pipeline",
    "micro_batches": "of a replica in a step",
    "precision": "numbers that are computed with",
    "experts": "of a layer",
    "experts_per_token": "how many a token passes",
    "capacity": "of an expert, in even shares",
}
_STAGES = ("nothing", "the optimizer", "gradients too", "parameters too")
# The theme tells the chosen button from the others by a shade of grey only.
_CHOSEN_STYLE = (
    "<style>.picolab-choice button.mod-active{font-weight:700;"
    "box-shadow:inset 0 -3px 0 var(--jp-brand-color1,#2a72ee)}</style>"
)
_STYLES = {"done": "success", "failed": "danger", "stopped": "warning"}


class PanelWidgets:
    def __init__(self, panel, choices: Iterable[Layout], steps: int):
        import ipywidgets as widgets

        self._panel, self._moving, choices = panel, False, list(choices)
        self.choices = {
            axis: _buttons(
                axis,
                sorted({getattr(layout, axis) for layout in choices}),
                getattr(panel.layout, axis),
            )
            for axis in panel.axes
        }
        for name, values in panel.offered.items():
            self.choices[name] = _buttons(name, list(values), panel.chosen(name))
        self.run = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(min=0, max=steps, description="steps")
        self.steps = widgets.Label(f"0 of {steps:,}")
        self.message = widgets.HTML(sentence_html(panel.message))
        self.formulas, self.placement = widgets.HTML(), widgets.HTML()
        self.show_formulas()
        self.live = widgets.VBox()
        self._view: LiveView | None = None
        self.box = widgets.VBox(
            [
                widgets.HBox(list(self.choices.values()), layout={"flex_flow": "row wrap"}),
                widgets.HBox(
                    [self.run, self.stop, self.progress, self.steps],
                    layout={"flex_flow": "row wrap"},
                ),
                self.message,
                self.placement,
                self.formulas,
                self.live,
            ]
        )
        for axis, buttons in self.choices.items():
            buttons.observe(lambda change, axis=axis: self._moved(axis, change.new), "value")
        self.run.on_click(lambda _: panel.run())
        self.stop.on_click(lambda _: panel.stop())

    def _moved(self, axis: str, size) -> None:
        if self._moving:
            return  # the panel moves the others itself
        self._moving = True
        try:
            self._panel.choose(**{axis: size})
            for name, buttons in self.choices.items():
                buttons.value = self._panel.chosen(name)
        finally:
            self._moving = False

    def say(self, text: str) -> None:
        self.message.value = sentence_html(text)

    def show_formulas(self) -> None:
        """Of the chosen layout: who holds what, and the formulas."""
        self.formulas.value = _CHOSEN_STYLE + self._panel.bars()
        self.placement.value = self._panel.placement()._repr_html_()

    def begin(self) -> threading.Event:
        """A run has been started: a live figure of earlier runs only, no progress. Returns what is
        set once a page can draw the figure."""
        if self._view is None:
            self._view = LiveView()
            self.live.children = (self._view.box,)
        self.live.layout.display = None
        self._view.wait()
        self._view.paint(RunState(), beside=self._panel.earlier)
        self.progress.bar_style = ""
        self._progress(RunState())
        self.stop.disabled = False
        return self._view.stands

    def paint(self, state: RunState) -> bool:
        self._progress(state)
        return self._view.paint(state, beside=self._panel.earlier)

    def end(self, state: RunState) -> None:
        """The run has ended: the live figure is hidden."""
        self.paint(state)
        self.progress.bar_style = _STYLES.get(state.state, "")
        self.live.layout.display = "none"
        self.stop.disabled = True

    def _progress(self, state: RunState) -> None:
        count = max(state.losses, default=-1) + 1
        self.progress.value = count
        self.steps.value = f"{count:,} of {self.progress.max:,}"


def _buttons(axis: str, sizes: list, size):
    """One button for each size. A button's tooltip is also what a screen reader says of it."""
    import ipywidgets as widgets

    words = any(len(str(size)) > 2 for size in sizes)
    width = f"{(12 if len(axis) < 5 else 8) * len(axis)}px"
    row = widgets.ToggleButtons(
        options=sizes,
        value=size,
        description=axis.replace("_", "-"),
        tooltips=[
            f"{axis} {size}: {_NAMES.get(axis, 'of the model')}, {_said(axis, size)}"
            for size in sizes
        ],
        style={"description_width": width, "button_width": "auto" if words else "40px"},
        layout={"width": "auto", "margin": "2px 20px 2px 0"},
    )
    row.add_class("picolab-choice")
    return row


def _said(axis: str, size) -> str:
    if axis == "zero":
        return _STAGES[size]
    if axis not in (*CHOSEN, "ep"):
        return str(size)
    return "not split" if size == 1 else f"over {size} ranks"
