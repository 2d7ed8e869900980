"""Replace what a cell shows in the page itself, also in a page that was loaded again.

An update by display id reaches only a page that saw the cell run: which output has which id is not
saved with the notebook. After a reload the update goes nowhere, and the saved notebook keeps what
stood there before, a widget that nobody can draw without its kernel.

So each output carries its id in its metadata, which is saved, and what takes its place is the state
of a widget without a face. Whoever opens the notebook while the kernel lives, now or an hour after
the run, gets that state and puts it where it belongs: in the notebook's own model, so that it is
saved as if it had come in time. Only made where there is a front end. One that has no such model
to offer (JupyterLab and Notebook have) loses nothing but this.
"""

import anywidget
import traitlets

_ESM = """
function initialize({ model }) {
    const context = model.widget_manager && model.widget_manager.context;
    const notebook = context && context.model;
    if (!notebook || !notebook.cells) return;
    const put = () => {
        const output = model.get('output'), mark = (output.metadata || {}).picolab;
        if (!mark) return;
        for (const cell of notebook.cells) {
            for (let i = 0; cell.outputs && i < cell.outputs.length; i++) {
                const there = (cell.outputs.get(i).metadata || {}).picolab;
                if (there && there.shown === mark.shown && there.version < mark.version)
                    cell.outputs.set(i, output);
            }
        }
    };
    context.ready.then(put);
}
export default { initialize };
"""


class InPage(anywidget.AnyWidget):
    """What stands in place of one output; `output` is as the notebook's file has it."""

    _esm = _ESM
    output = traitlets.Dict().tag(sync=True)
