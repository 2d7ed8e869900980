"""The zoo of schedules under the reader's hands: ranks, micro-batches, what F, B, W and a hop cost.

    zoo = pico.chapters.c03_3d_parallel.zoo(ranks=3)
    zoo.choose(hop=0.25)

`schedule_figure` draws one pipeline under one schedule after another, with the schedules on a
slider of its own. Here its other arguments are on sliders too, in a front end; headless it is the
figure alone. What cannot be is not offered: only the schedules that can have so many ranks and
micro-batches stand on the figure's slider, and the line above it says who is missing, and why.
Simulated, and the figure says so.
"""

from numbers import Real

from picolab.monitoring.figures import schedule_figure
from picolab.schedules import SCHEDULES
from picolab.show.front_end import as_widget, has_front_end
from picolab.show.picture import LabFigure
from picolab.specs.schedule_name import ScheduleName

CHOICES: dict[str, tuple[Real, ...]] = {
    "ranks": (2, 3, 4, 6, 8),
    "micro_batches": (2, 4, 6, 8, 12, 16, 24, 32),
    "forward": (0.5, 1, 1.5, 2),
    "backward_input": (0.5, 1, 1.5, 2),
    "backward_weight": (0.25, 0.5, 1, 1.5, 2),
    "hop": (0, 0.1, 0.25, 0.5, 1),
}
_WORDS = {
    "ranks": "ranks",
    "micro_batches": "micro-batches",
    "forward": "cost of F",
    "backward_input": "cost of B",
    "backward_weight": "cost of W",
    "hop": "cost of a hop",
}
_FIRST = {"ranks": 4, "micro_batches": 8, "forward": 1, "backward_input": 1, "backward_weight": 1}


def zoo(**asked: Real) -> "Zoo":
    """The figure, and in a front end a slider for each of its arguments.

    ranks, micro_batches                       of the pipeline it opens with
    forward, backward_input, backward_weight   what a micro-batch costs on a rank; hop: a message
    """
    return Zoo(asked)


class Zoo:
    """`.choose(ranks=3)` is what a slider does; `.figure` is what is to be seen."""

    def __init__(self, asked: dict[str, Real]):
        self.asked = {**_FIRST, "hop": 0}
        self._box = self._said = self._place = None
        self.choose(**asked)

    def choose(self, **asked: Real) -> LabFigure:
        """Another pipeline; on the page its figure takes the place of the one before."""
        for name, value in asked.items():
            _check(name, value)
        self.asked |= asked
        if self._box is not None:
            self._said.value = self.missing()
            self._place.children = (as_widget(self.figure),)
        return self.figure

    @property
    def schedules(self) -> dict[str, str]:
        """Every schedule -> "" if it can have so many micro-batches, else why it cannot."""
        found = {}
        for name in SCHEDULES:
            try:
                ScheduleName.parse(name).check_micro_batches(
                    self.asked["ranks"], self.asked["micro_batches"]
                )
                found[name] = ""
            except ValueError as error:
                found[name] = str(error)
        return found

    @property
    def figure(self) -> LabFigure:
        """Of the schedules that work."""
        return schedule_figure([n for n, why in self.schedules.items() if not why], **self.asked)

    def missing(self) -> str:
        """Which schedules cannot have so many micro-batches, and why."""
        left = [why for why in self.schedules.values() if why]
        return "; ".join(left) or "All six schedules can have so many micro-batches."

    def _controls(self):
        import ipywidgets as widgets

        self._said = widgets.HTML(self.missing())
        self._place = widgets.VBox((as_widget(self.figure),))
        row = widgets.HBox([self._slider(n) for n in CHOICES], layout={"flex_flow": "row wrap"})
        return widgets.VBox([row, self._said, self._place])

    def _slider(self, name: str):
        import ipywidgets as widgets

        slider = widgets.SelectionSlider(
            options=sorted({*CHOICES[name], self.asked[name]}),
            value=self.asked[name],
            description=_WORDS[name],
            continuous_update=False,
            style={"description_width": "100px"},
            layout={"width": "330px"},
        )
        slider.observe(lambda change: self.choose(**{name: change.new}), "value")
        return slider

    def __repr__(self) -> str:
        return f"{self.figure!r}\n{self.missing()}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        if not has_front_end():
            return self.figure._repr_mimebundle_()
        if self._box is None:
            self._box = self._controls()
        bundle = self._box._repr_mimebundle_()
        return {**bundle, "text/plain": repr(self)}


def _check(name: str, value: Real) -> None:
    if name not in CHOICES:
        raise ValueError(f"{name!r} is none of {', '.join(CHOICES)}")
    most = max(CHOICES[name])
    whole = name in ("ranks", "micro_batches")
    number = isinstance(value, int if whole else Real) and not isinstance(value, bool)
    least = 2 if name == "ranks" else 1 if whole else 0
    if not number or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; here it is from {least} to {most}")
