"""A plotly figure that a page can load at any time, and load again, while it changes.

plotly's `FigureWidget` does not survive that, for five reasons, each with its cure here.

* It copies its data into its state once, when it is made; every later change is a message and
  nothing else. A page that is loaded again asks for the state and would draw the first moment.
  So `get_state` gives the state of now.
* A message that comes before the page can draw is lost. So the page says when it can, and is told
  everything once more (`say_again`).
* plotly itself, 5 MB of JavaScript, is part of every figure's state, and is loaded anew for each.
  anywidget gives a widget two seconds to be ready, and lets one that needs more hear nothing ever
  after: a busy machine needs more. So the figure's own script is short, and plotly is sent once,
  in a widget of its own, and loaded once a page; and once it can draw, the figure listens by
  itself (`hear`).
* A page that draws more slowly than it is told to falls ever further behind: on two cores that
  train it was seen to draw for seconds, and heard a button 40 s after it was pressed. So it tells
  when it has drawn (`draws`), and until then nobody should paint.
* The page tells what it has filled in for what was not given, and plotly then takes away whatever
  of the data has the same name. With a page that was loaded again, and draws an older moment than
  the kernel's, that is the data itself: names of ranks, the rows of a map. So nobody listens.

And it does not follow the width of its place (a reader hides the list of files): so the page says
when that is another one.
"""

import copy
import math
import sys
import threading
import time

import anywidget
import plotly
import plotly.graph_objects as go
import traitlets

# To make a FigureWidget, plotly imports nbformat, this jsonschema, and this a grammar of
# international addresses, which is compiled for 2.4 s and used by nobody here. Kept out, jsonschema
# does without.
_GRAMMAR = "rfc3987_syntax"
if _GRAMMAR in sys.modules:
    FigureWidget = go.FigureWidget
else:
    sys.modules[_GRAMMAR] = None
    try:
        FigureWidget = go.FigureWidget
    finally:
        del sys.modules[_GRAMMAR]

ANSWER_S = 20.0
"""A page that has not answered for so long is not waited for: no draw that was seen took it."""

_LOAD = """
const loaded = globalThis.picolabPlotly ??= {};
function load(version, bundle) {
    loaded[version] ??= (async () => {
        const script = new Blob([bundle.get('script')], { type: 'text/javascript' });
        const url = URL.createObjectURL(script);
        try { return await import(url); } finally { URL.revokeObjectURL(url); }
    })();
    return loaded[version];
}
"""
_BUNDLE = (
    _LOAD
    + """
function initialize({ model }) { load(model.get('version'), model); }
export default { initialize };
"""
)
# The figure may be made a moment before the bundle that came with it.
_FIGURE = (
    _LOAD
    + """
async function found(model) {
    for (let tries = 100; ; tries--) {
        try {
            const bundle = await model.widget_manager.get_model(model.get('bundle'));
            if (bundle) return bundle;
        } catch (error) { if (!tries) throw error; }
        await new Promise(resolve => setTimeout(resolve, 100));
    }
}
async function hear(model) {
    const own = await model.widget_manager.get_model(model.get('own'));
    const plain = Object.getPrototypeOf(Object.getPrototypeOf(own))._handle_comm_msg;
    if (own.comm && plain) own.comm.on_msg(message => plain.call(own, message));
}
async function render({ model, el }) {
    const { default: drawing } = await load(model.get('version'), await found(model));
    await hear(model);
    const drawn = drawing();
    drawn.initialize({ model });
    const remove = drawn.render({ model, el });
    // After the draw, which the change before this one has begun.
    const answer = () => setTimeout(() => model.send({ drawn: model.get('paints') }));
    model.on('change:paints', answer);
    model.send({ can_draw: true });
    let timer, width = el.clientWidth;
    const watch = new ResizeObserver(() => {
        if (el.clientWidth === width || !el.clientWidth) return;
        width = el.clientWidth;
        clearTimeout(timer);
        timer = setTimeout(() => model.send({ other_width: true }), 200);
    });
    watch.observe(el);
    return () => {
        clearTimeout(timer);
        watch.disconnect();
        model.off('change:paints', answer);
        if (remove) remove();
    };
}
export default { render };
"""
)


class Plotly(anywidget.AnyWidget):
    """plotly's script, for all figures of a kernel."""

    _esm = _BUNDLE
    version = traitlets.Unicode(plotly.__version__).tag(sync=True)
    script = traitlets.Unicode().tag(sync=True)
    _only = None

    @classmethod
    def here(cls) -> "Plotly":
        if cls._only is None or cls._only.comm is None:
            cls._only = cls(script=str(FigureWidget._esm))
        return cls._only


class LiveFigure(FigureWidget):
    _esm = _FIGURE
    version = traitlets.Unicode(plotly.__version__).tag(sync=True)
    bundle = traitlets.Unicode().tag(sync=True)
    own = traitlets.Unicode().tag(sync=True)
    paints = traitlets.Int(0).tag(sync=True)
    """of the kernel; a page answers with it"""

    def __init__(self, *args, stands: threading.Event, **kwargs):
        """`stands` is set once a page can draw it."""
        self._lock, self._made, self._stands = threading.RLock(), False, stands
        self._drawn, self._painted_at = 0, -math.inf
        self._answers = False  # a page is there, and the kernel hears it
        super().__init__(*args, **kwargs)
        self.bundle, self.own = Plotly.here().model_id, self.model_id
        self._made = True
        self.on_msg(self._heard)

    @property
    def lock(self) -> threading.RLock:
        """A paint and a page's question: one at a time."""
        return self._lock

    def get_state(self, key=None, drop_defaults=False):
        if not self._made:
            return super().get_state(key, drop_defaults)
        with self._lock:
            state = super().get_state(key, drop_defaults)
            now = {"_widget_data": self._data, "_widget_layout": self._layout_obj._props}
            for name, value in now.items():
                if name in state:
                    to_json = self.trait_metadata(name, "to_json", self._trait_to_json)
                    state[name] = to_json(copy.deepcopy(value), self)
            return state

    @property
    def draws(self) -> bool:
        """Is a page still drawing what was painted last? Not known where none answers: it was
        closed, or a cell keeps the kernel from hearing it."""
        if not self._answers or self._drawn >= self.paints:
            return False
        self._answers = time.monotonic() - self._painted_at < ANSWER_S
        return self._answers

    def painted(self) -> None:
        """To be called after all changes of one paint."""
        self._painted_at = time.monotonic()
        self.paints += 1

    @traitlets.observe("_js2py_traceDeltas")
    def _handler_js2py_traceDeltas(self, change) -> None:
        self._js2py_traceDeltas = None

    @traitlets.observe("_js2py_layoutDelta")
    def _handler_js2py_layoutDelta(self, change) -> None:
        self._js2py_layoutDelta = None

    def _heard(self, _, content, buffers) -> None:
        if content.get("can_draw"):
            self.say_again()
            self._drawn, self._answers = self.paints, True
            self._stands.set()
        if "drawn" in content:
            self._drawn, self._answers = content["drawn"], True
        if content.get("other_width"):  # plotly's own way would take the figure's height, too
            with self._lock:
                self._send_relayout_msg({"autosize": True})

    def say_again(self) -> None:
        """Send the data and what can change of the layout, though nothing has changed here."""
        with self._lock:
            data, layout = copy.deepcopy(self._data), copy.deepcopy(self._layout_obj._props)
            for name in ("x", "y", "z", "text", "hovertext"):
                having = [index for index, trace in enumerate(data) if name in trace]
                if having:
                    self._send_restyle_msg({name: [data[i][name] for i in having]}, having)
            changes = {name: layout[name] for name in ("annotations", "height") if name in layout}
            axes = {name: axis for name, axis in layout.items() if name[1:5] == "axis"}
            changes |= {
                f"{name}.{part}": axis[part]
                for name, axis in axes.items()
                for part in ("domain", "range", "visible")
                if part in axis
            }
            self._send_relayout_msg(changes)
