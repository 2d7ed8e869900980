"""The widgets of a panel, and nothing but widgets: what they mean is in `panel`.

Made only where there is a front end. The live figure is made at the first run and used again for
the next ones. Between runs it is hidden, not taken out: plotly's view of a figure that was taken
out goes on listening, and complains of every update.
"""

from collections.abc import Iterable

from picolab.lab.layout_choice import SLIDERS
from picolab.lab.live_view import LiveView, sentence_html
from picolab.monitoring.run_state import RunState
from picolab.specs import Layout

_STYLES = {"done": "success", "failed": "danger", "stopped": "warning"}


class PanelWidgets:
    def __init__(self, panel, choices: Iterable[Layout], steps: int):
        import ipywidgets as widgets

        self._panel, self._moving, choices = panel, False, list(choices)
        self.sliders = {
            axis: _slider(
                axis,
                sorted({getattr(layout, axis) for layout in choices}),
                getattr(panel.layout, axis),
            )
            for axis in SLIDERS
        }
        self.run = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop")
        self.progress = widgets.IntProgress(min=0, max=steps, description="steps")
        self.steps = widgets.Label(f"0 of {steps}")
        self.message = widgets.HTML(sentence_html(panel.message))
        self.formulas, self.placement = widgets.HTML(), widgets.HTML()
        self.show_formulas()
        self.live = widgets.VBox()
        self._view: LiveView | None = None
        self.box = widgets.VBox(
            [
                widgets.HBox(list(self.sliders.values()), layout={"flex_flow": "row wrap"}),
                widgets.HBox([self.run, self.stop, self.progress, self.steps]),
                self.message,
                self.placement,
                self.formulas,
                self.live,
            ]
        )
        for axis, slider in self.sliders.items():
            slider.observe(lambda change, axis=axis: self._moved(axis, change.new), "value")
        self.run.on_click(lambda _: panel.run())
        self.stop.on_click(lambda _: panel.stop())

    def _moved(self, axis: str, size: int) -> None:
        if self._moving:
            return  # the panel moves the others itself
        self._moving = True
        try:
            layout = self._panel.choose(**{axis: size})
            for name, slider in self.sliders.items():
                slider.value = getattr(layout, name)
        finally:
            self._moving = False

    def say(self, text: str) -> None:
        self.message.value = sentence_html(text)

    def show_formulas(self) -> None:
        self.formulas.value = _compact(self._panel.table())
        self.placement.value = self._panel.placement()._repr_html_()

    def begin(self) -> None:
        """A run has been started: an empty live figure, no progress."""
        if self._view is None:
            self._view = LiveView()
            self.live.children = (self._view.box,)
        self.live.layout.display = None
        self._view.paint(RunState())
        self.progress.bar_style = ""
        self._progress(RunState())

    def paint(self, state: RunState) -> None:
        self._view.paint(state)
        self._progress(state)

    def end(self, state: RunState) -> None:
        """The run has ended: the live figure is hidden."""
        self.paint(state)
        self.progress.bar_style = _STYLES.get(state.state, "")
        self.live.layout.display = "none"

    def _progress(self, state: RunState) -> None:
        count = max(state.losses, default=-1) + 1
        self.progress.value = count
        self.steps.value = f"{count} of {self.progress.max}"


def _compact(table) -> str:
    """A table's HTML in lines of text height: a widget's own lines are as high as its buttons."""
    style = "<style>.picolab-compact td,.picolab-compact th{padding:1px 14px 1px 0}</style>"
    return (
        f'{style}<div class="picolab-compact" style="line-height:18px">{table._repr_html_()}</div>'
    )


def _slider(name: str, values: list[int], value: int):
    """A slider over these values; with a single one (a slider needs two), a list of one."""
    import ipywidgets as widgets

    kind = widgets.SelectionSlider if len(values) > 1 else widgets.Dropdown
    return kind(
        options=values,
        value=value,
        description=name,
        style={"description_width": "28px"},
        layout={"width": "172px"},
    )
