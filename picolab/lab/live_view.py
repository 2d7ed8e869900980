"""The panels as widgets that can be painted again and again.

One figure and a sentence above it. A paint assigns only what changed, in one batch (one message
instead of one for each attribute), and as numpy arrays, which travel as bytes: lists of 2,000
points take fifty times as long. A part of a panel that a reader has zoomed into stays as it is, and
a picture that was paused stands while the run goes on. At the end a light picture takes the
figure's place *inside* the view, which is never taken away: a page that was loaded again may know
nothing else of the run. Only made where there is a front end.
"""

import html
import threading
from collections.abc import Callable

from picolab.monitoring.figures import (
    Losses,
    Panels,
    moving_ranges,
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
    def __init__(self, said: str = WAITING, watch: bool = False, again: Callable | None = None):
        """again: called when a reader goes on after a pause, so that somebody paints what was
        missed. Without it there is no pause."""
        import ipywidgets

        self._drawn = panels(RunState(watch=watch))
        self._arrays = training_arrays(self._drawn)
        self._ranges: dict[str, tuple] = {}  # of axes, as they were set here
        self._titles: list[str] = []
        self.sentence = ipywidgets.HTML(layout={"flex": "1 1 0%"})
        self.pause = ipywidgets.ToggleButton(
            description="Pause",
            icon="pause",
            tooltip="the picture stands and the run goes on",
            layout={"width": "100px", "flex": "0 0 auto"},
        )
        self.pause.observe(lambda change: self._paused(change.new, again), "value")
        shown = [self.sentence, self.pause] if again is not None else [self.sentence]
        self._head = ipywidgets.HBox(shown, layout={"align_items": "flex-start"})
        self.box = ipywidgets.VBox([self._head])
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
                layout = training_layout(self._drawn)
                self._ranges = _ranges(layout)
                self._titles = [note["text"] for note in layout["annotations"]]
                self.box.children = (self._head, self._figure)
            return self._figure

    def _paused(self, paused: bool, again: Callable) -> None:
        self.pause.description, self.pause.icon = (
            ("Go on", "play") if paused else ("Pause", "pause")
        )
        if not paused:
            again()

    def wait(self, said: str = WAITING) -> None:
        """Say this, with a sign that something goes on, until the run says something itself."""
        self.sentence.value = sentence_html(said, _TURNING)

    def say(self, text: str) -> None:
        self.sentence.value = sentence_html(text)

    def paint(self, state: RunState, covers: str = "", beside: Losses | None = None) -> bool:
        """Show where the run is now; with `covers`, the lower panels say only this; `beside` are
        the losses of earlier runs. False: the page is still drawing what it was told last, so that
        only the sentence is new, and somebody has to paint again."""
        if self.pause.value:
            return True
        if state.status or not state.is_empty:
            self.say(state.sentence(bool(covers)))
        if self.figure.draws:
            return False
        drawn = panels(state, covers, beside)
        with self.figure.lock:
            if self._assign(drawn):
                self.figure.painted()
        return True

    def _assign(self, drawn) -> bool:
        """Whether anything is other than it was."""
        changed = False
        with self.figure.batch_update():
            arrays = training_arrays(drawn)
            for trace, old, new in zip(self.figure.data, self._arrays, arrays):
                for name, values in new.items():
                    if not _same(old.get(name), values):
                        trace[name], changed = values, True
            if _shape(drawn) != _shape(self._drawn):
                changed = True
                layout = training_layout(drawn)
                titles = [note["text"] for note in layout["annotations"]]
                # Assigned, since to update a list updates its old items, later in this batch.
                self.figure.layout.annotations = layout.pop("annotations")
                self._set_ranges(layout)
                self.figure.update_layout(layout)
            else:
                titles = [note["text"] for note in training_layout(drawn)["annotations"]]
                for place, (shown, title) in enumerate(zip(self._titles, titles)):
                    if shown != title:
                        self.figure.layout.annotations[place].text, changed = title, True
                layout = moving_ranges(drawn)
                if layout != moving_ranges(self._drawn):
                    changed = True
                    self._set_ranges(layout)
                    self.figure.update_layout(layout)
            self._titles = titles
        self._drawn, self._arrays = drawn, arrays
        return changed

    def _set_ranges(self, layout: dict) -> None:
        """Leave out of the layout the range of an axis in which a reader has zoomed since."""
        for name, ends in _ranges(layout).items():
            now = self.figure.layout[name].range
            if name in self._ranges and now is not None and now != self._ranges[name]:
                del layout[name]["range"]
            else:
                self._ranges[name] = ends

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
        for widget in (figure, self.sentence, self.pause, self._head):
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


def _ranges(layout: dict) -> dict[str, tuple]:
    return {
        name: tuple(axis["range"])
        for name, axis in layout.items()
        if name[1:5] == "axis" and "range" in axis
    }


def _shape(drawn: Panels) -> tuple:
    """What the layout depends on, besides titles: reasons of the ledger, ranks of the fifth panel,
    and what there is below."""
    ranks = len(drawn.activity.bounds) if drawn.activity else 0
    return len(drawn.traces[-1]["y"]), ranks, [section.shape for section in drawn.below]


def _same(old, new) -> bool:
    if isinstance(new, dict):
        return old == new
    if getattr(new, "dtype", "O") != "O":
        import numpy

        return old is not None and numpy.array_equal(old, new, equal_nan=True)
    if old is None or len(old) != len(new):
        return False
    if getattr(new, "ndim", 1) > 1:
        return old.shape == new.shape and all(map(_same, old, new))
    return all(a == b or (a != a and b != b) for a, b in zip(old, new))  # NaN: a gap in a line
