"""Radio buttons that work by keyboard inside a notebook.

ipywidgets makes every radio button a group of its own: each is a stop of the Tab key, and arrows do
nothing. Here those of one widget get one name, so that the browser takes them for one group: Tab
enters and leaves it, arrows choose in it.

JupyterLab takes keys that are pressed on what is not a text field for shortcuts of the notebook: an
arrow leaves the cell, and a letter may make a new one. It listens in the document; so plain keys on
a radio button are kept from it in the window, which hears of them first. Tab, Enter and Escape, and
whatever is held with Ctrl, stay JupyterLab's.
"""

_JS = """
function render({ model, el }) {
    const form = () => el.closest('.widget-vbox');
    const group = () => form().querySelectorAll('.widget-radio-box').forEach((box, at) => {
        for (const radio of box.querySelectorAll('input'))
            radio.name = `${model.get('group')}-${at}`;
    });
    const changed = new MutationObserver(group);  // options are replaced when one was wrong
    const begin = () => {
        if (!form()) { timer = setTimeout(begin, 50); return; }
        group();
        changed.observe(form(), { childList: true, subtree: true });
    };
    let timer = setTimeout(begin, 0);
    const own = event => {
        const plain = !(event.ctrlKey || event.metaKey || event.altKey);
        const passes = ['Tab', 'Enter', 'Escape', 'Shift'].includes(event.key);
        if (form() && form().contains(event.target) && event.target.type === 'radio' && plain
            && !passes) event.stopPropagation();
    };
    window.addEventListener('keydown', own, true);
    el.style.display = 'none';
    return () => {
        clearTimeout(timer);
        changed.disconnect();
        window.removeEventListener('keydown', own, true);
    };
}
export default { render };
"""


def own_keys():
    """A widget that is not seen; in the box in which it stands, radio buttons get their keys."""
    import anywidget
    import traitlets

    class OwnKeys(anywidget.AnyWidget):
        _esm = _JS
        group = traitlets.Unicode().tag(sync=True)

    made = OwnKeys()
    made.group = made.model_id  # of two forms on a page, each is a group
    return made
