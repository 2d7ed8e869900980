"""The panels as widgets that can be painted again and again.

One figure and a sentence above it. A paint assigns only what changed, in one batch (one message
instead of one for each attribute), and as numpy arrays, which travel as bytes: lists of 2,000
points take fifty times as long. At the end a light picture takes the figure's place *inside* the
view, which is never taken away: a page that was loaded again may know nothing else of the run.
Only made where there is a front end.
"""

import html
import threading

from picolab.monitoring.activity_figure import axes as activity_axes
from picolab.monitoring.figures import (
    Losses,
    Panels,
    panels,
    training_arrays,
    training_layout,
    training_traces,
)
from picolab.monitoring.run_state import RunState
from picolab.show.front_end import as_widget

# A busy front end may build a view long after it was told to; 10 s were not always enough.
_CLOSE_AFTER_S = 60.0
WAITING = "waiting for the first event"


class LiveView:
    def __init__(self, said: str = WAITING):
        import ipywidgets

        self._drawn = panels(RunState())
        self._arrays = training_arrays(self._drawn)
        self.sentence = ipywidgets.HTML()
        self.box = ipywidgets.VBox([self.sentence])
        self.wait(said)
        self.stands = threading.Event()  # a page can draw the figure
        self._figure, self._making = None, threading.RLock()
        # plotly takes seconds to import when nothing is warm yet; the sentence stands meanwhile.
        threading.Thread(target=lambda: self.figure, name="picolab-view", daemon=True).start()

    @property
    def figure(self):
        """The figure, made when it is first asked for."""
        with self._making:
            if self._figure is None:
                from picolab.lab.live_figure import LiveFigure

                # Drawn before it has a place, it is 700 pixels wide. With autosize, every later
                # change of the layout measures the place again.
                self._figure = LiveFigure(
                    stands=self.stands,
                    data=training_traces(self._drawn),
                    layout={**training_layout(self._drawn), "autosize": True},
                )
                self._figure._config = {"displaylogo": False}
                self.box.children = (self.sentence, self._figure)
            return self._figure

    def wait(self, said: str = WAITING) -> None:
        """Say this, with a sign that something goes on, until the run says something itself."""
        self.sentence.value = sentence_html(said, _TURNING)

    def say(self, text: str) -> None:
        self.sentence.value = sentence_html(text)

    def paint(self, state: RunState, covers: str = "", beside: Losses | None = None) -> None:
        """Show where the run is now; with `covers`, the lower panels say only this; `beside` are
        the losses of earlier runs."""
        if state.status or not state.is_empty:
            self.say(state.sentence(bool(covers)))
        drawn = panels(state, covers, beside)
        with self.figure.lock:
            self._assign(drawn)

    def _assign(self, drawn) -> None:
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
                titles = [note["text"] for note in training_layout(drawn)["annotations"]]
                for shown, title in zip(self.figure.layout.annotations, titles):
                    if shown.text != title:
                        shown.text = title
            ends = tuple(activity_axes(drawn.activity)[0]["range"])
            if drawn.activity and self.figure.layout.xaxis5.range != ends:
                self.figure.layout.xaxis5.range = ends  # each step has its own length
        self._drawn, self._arrays = drawn, arrays

    def end(self, picture) -> None:
        """The run has ended: this takes the figure's place. The figure itself goes a little later:
        the front end may still be answering the last paint.
        """
        made = self.figure  # one that came only now would take the picture's place
        self.box.children = (as_widget(picture),)
        timer = threading.Timer(_CLOSE_AFTER_S, self._close, [made])
        timer.daemon = True
        timer.start()

    def _close(self, figure) -> None:
        for widget in (figure, self.sentence):
            widget.close()


# Turns by itself, in the page: the kernel is busy importing.
_TURNING = (
    '<svg aria-hidden="true" width="16" height="16" viewBox="-8 -8 16 16" '
    'style="vertical-align:-2px;margin-right:8px"><path d="M0-6A6 6 0 1 1-6 0" fill="none" '
    'stroke="currentColor" stroke-width="2"><animateTransform attributeName="transform" '
    'type="rotate" from="0" to="360" dur="1.2s" repeatCount="indefinite"/></path></svg>'
)


def sentence_html(text: str, before: str = "") -> str:
    return (
        '<div role="status" style="font-size:15px;line-height:1.4;white-space:pre-line;'
        'color:var(--jp-ui-font-color1,inherit);padding:4px 0">'
        f"{before}{html.escape(text)}</div>"
    )


def _shape(drawn: Panels) -> tuple:
    """What the layout depends on, besides titles: reasons of the ledger, ranks of the fifth panel,
    layers of experts, layers with a format, ranks whose memory is looked at."""
    ranks = len(drawn.activity.bounds) if drawn.activity else 0
    experts = tuple(drawn.experts.layers.items())
    reasons = len(drawn.traces[-1]["y"])
    return reasons, ranks, experts, drawn.precision.layers, drawn.memory.ranks


def _same(old, new) -> bool:
    if isinstance(new, dict):
        return old == new
    if old is None or len(old) != len(new):
        return False
    if getattr(new, "ndim", 1) > 1:
        return old.shape == new.shape and all(map(_same, old, new))
    return all(a == b or (a != a and b != b) for a, b in zip(old, new))  # NaN: a gap in a line
