"""Arrow keys for radio buttons inside a notebook.

JupyterLab takes keys that are pressed on what is not a text field for shortcuts of the notebook: an
arrow leaves the cell, and a letter may make a new one. It listens in the document; so plain keys on
a radio button are kept from it in the window, which hears of them first, and the browser moves
between the radio buttons. Tab, Enter and Escape, and whatever is held with Ctrl, stay JupyterLab's.
"""

_JS = """
function render({ el }) {
    const own = event => {
        const form = el.closest('.widget-vbox');
        const plain = !(event.ctrlKey || event.metaKey || event.altKey);
        const passes = ['Tab', 'Enter', 'Escape', 'Shift'].includes(event.key);
        if (form && form.contains(event.target) && event.target.type === 'radio' && plain
            && !passes) event.stopPropagation();
    };
    window.addEventListener('keydown', own, true);
    el.style.display = 'none';
    return () => window.removeEventListener('keydown', own, true);
}
export default { render };
"""


def own_keys():
    """A widget that is not seen; in the box in which it stands, radio buttons get their keys."""
    import anywidget

    return anywidget.AnyWidget(_esm=_JS)
