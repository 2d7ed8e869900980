"""The panels as widgets that can be painted again and again.

One `FigureWidget` and a sentence above it. A paint assigns only what changed, in one batch (one
message instead of one for each attribute), and as numpy arrays, which travel as bytes: lists of
2,000 points take fifty times as long. Only made where there is a front end.
"""

import html
import threading

from picolab.monitoring.activity_figure import axes as activity_axes
from picolab.monitoring.figures import (
    Panels,
    panels,
    training_arrays,
    training_layout,
    training_traces,
)
from picolab.monitoring.run_state import RunState

# A busy front end may build a view long after it was told to; 10 s were not always enough.
_CLOSE_AFTER_S = 60.0


class LiveView:
    def __init__(self):
        import ipywidgets
        import plotly.graph_objects as go

        self._drawn = panels(RunState())
        self._arrays = training_arrays(self._drawn)
        self.sentence = ipywidgets.HTML()
        # Drawn before it has a place, it is 700 pixels wide. With autosize, every later change of
        # the layout measures the place again.
        self.figure = go.FigureWidget(
            data=training_traces(self._drawn),
            layout={**training_layout(self._drawn), "autosize": True},
        )
        self.figure._config = {"displaylogo": False}
        self.box = ipywidgets.VBox([self.sentence, self.figure])
        self.say("waiting for the first event")

    def say(self, text: str) -> None:
        self.sentence.value = sentence_html(text)

    def paint(self, state: RunState) -> None:
        """Show where the run is now."""
        self.say(state.sentence())
        drawn = panels(state)
        with self.figure.batch_update():
            arrays = training_arrays(drawn)
            for trace, old, new in zip(self.figure.data, self._arrays, arrays):
                for name, values in new.items():
                    if not _same(old.get(name), values):
                        trace[name] = values
            if _shape(drawn) != _shape(self._drawn):
                layout = training_layout(drawn)
                # Assigned, since to update a list updates its old items, later in this batch.
                self.figure.layout.annotations = layout.pop("annotations")
                self.figure.update_layout(layout)
            else:
                for shown, title in zip(self.figure.layout.annotations, drawn.titles):
                    if shown.text != title:
                        shown.text = title
            ends = tuple(activity_axes(drawn.activity)[0]["range"])
            if drawn.activity and self.figure.layout.xaxis5.range != ends:
                self.figure.layout.xaxis5.range = ends  # each step has its own length
        self._drawn, self._arrays = drawn, arrays

    def close(self) -> None:
        """Remove the widgets, a little later: the front end may still be answering the last
        paint.
        """
        timer = threading.Timer(_CLOSE_AFTER_S, self._close)
        timer.daemon = True
        timer.start()

    def _close(self) -> None:
        self.box.children = ()
        for widget in (self.figure, self.sentence, self.box):
            widget.close()


def sentence_html(text: str) -> str:
    return (
        '<div style="font-size:15px;line-height:1.4;color:var(--jp-ui-font-color1,inherit);'
        f'padding:4px 0">{html.escape(text)}</div>'
    )


def _shape(drawn: Panels) -> tuple[int, int]:
    """What the layout depends on, besides titles: reasons of the ledger, and ranks of the fifth
    panel."""
    return len(drawn.traces[-1]["y"]), len(drawn.activity.bounds) if drawn.activity else 0


def _same(old, new) -> bool:
    if isinstance(new, dict):
        return old == new
    return old is not None and len(old) == len(new) and all(a == b for a, b in zip(old, new))
