"""The four panels as widgets that can be painted again and again.

One figure and a sentence above it. A paint assigns only what changed, in one batch (one message
instead of one for each attribute), and as numpy arrays, which travel as bytes: lists of 2,000
points take fifty times as long. At the end a light picture takes the figure's place *inside* the
view, which is never taken away: a page that was loaded again may know nothing else of the run.
Only made where there is a front end.
"""

import html
import threading

from picolab.monitoring.figures import panels, training_layout, training_traces
from picolab.monitoring.run_state import RunState
from picolab.show.front_end import as_widget

# A busy front end may build a view long after it was told to; 10 s were not always enough.
_CLOSE_AFTER_S = 60.0


class LiveView:
    def __init__(self, said: str = "waiting for the first event"):
        import ipywidgets

        self._drawn = panels(RunState())
        self.sentence = ipywidgets.HTML()
        self.box = ipywidgets.VBox([self.sentence])
        self.say(said)
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
                    data=training_traces(self._drawn),
                    layout={**training_layout(self._drawn), "autosize": True},
                )
                self._figure._config = {"displaylogo": False}
                self.box.children = (self.sentence, self._figure)
            return self._figure

    def say(self, text: str) -> None:
        self.sentence.value = sentence_html(text)

    def paint(self, state: RunState, covers: str = "") -> None:
        """Show where the run is now; with `covers`, the lower panels say only this."""
        self.say(state.sentence())
        drawn = panels(state, covers)
        with self.figure.lock:
            self._assign(drawn)
        self._drawn = drawn

    def _assign(self, drawn) -> None:
        with self.figure.batch_update():
            for trace, old, new in zip(self.figure.data, self._drawn.traces, drawn.traces):
                for name, values in new.items():
                    if not _same(old.get(name), values):
                        trace[name] = values
            for shown, title in zip(self.figure.layout.annotations, drawn.titles):
                if shown.text != title:
                    shown.text = title
            rows = len(drawn.traces[-1]["y"])
            if rows != len(self._drawn.traces[-1]["y"]):
                self.figure.layout.yaxis4.range = training_layout(drawn)["yaxis4"]["range"]

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


def sentence_html(text: str) -> str:
    return (
        '<div style="font-size:15px;line-height:1.4;color:var(--jp-ui-font-color1,inherit);'
        f'padding:4px 0">{html.escape(text)}</div>'
    )


def _same(old, new) -> bool:
    return old is not None and len(old) == len(new) and all(a == b for a, b in zip(old, new))
