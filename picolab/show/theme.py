"""The text of figures in the colour of the page's own text.

Text needs a contrast of 4.5 to its ground (WCAG 2.1, 1.4.3), and no colour has more than 4.34 to
both of JupyterLab's pages, white and #111. A figure has one colour for both, since plotly takes
numbers and no variable of the page; so the page is given one rule: whatever a figure writes in that
colour, it writes in the page's. The rule follows a change of the theme at once, in figures that
were drawn before as in live ones.

It comes with a widget without a face, which every page that is opened while the kernel lives asks
for. For a page that is opened later, the cell that imports picolab has it once more, as an output
that cannot be seen and is saved with the notebook; there a form that nobody can draw any more says
what to do, too. What JupyterLab shows of a saved figure is a picture, until it is pointed at: a
little darker or lighter, its text has the contrast as well (5.0 and 6.2).
"""

TEXT = "#787c82"

_PAGE = "var(--jp-ui-font-color1, var(--vscode-foreground, currentColor))"
_ESM = """
function initialize({ model }) {
    const style = document.getElementById('picolab-theme') ?? document.createElement('style');
    style.id = 'picolab-theme';
    style.textContent = model.get('rule');
    document.head.append(style);
}
export default { initialize };
"""
_DEAD = ".jp-OutputArea-output.lm-Panel:not(:has(*))"  # a widget's place, and no widget in it
_WHAT_TO_DO = "A form or a live figure. It needs its kernel: run this cell if nothing comes."


def rule(page: str = _PAGE) -> str:
    """CSS: what figures write in their own colour for text is written in that of the page."""
    red, green, blue = (int(TEXT[i : i + 2], 16) for i in (1, 3, 5))
    own = f'[style*="fill: rgb({red}, {green}, {blue})"]'  # as browsers print a style
    return f".js-plotly-plot text{own} {{ fill: {page} !important }}"


def follow() -> None:
    """Give the rule to every page of this kernel."""
    import anywidget
    import traitlets

    class Theme(anywidget.AnyWidget):
        _esm = _ESM
        rule = traitlets.Unicode(rule()).tag(sync=True)

    Theme()


def saved() -> str:
    """HTML without a face: the rule, and what stands where a widget has no kernel to come from."""
    return (
        f'<style class="picolab-saved">{rule()}\n'
        ".jp-OutputArea-child:has(.picolab-saved),\n"
        ".jp-Cell-outputWrapper:has(.picolab-saved)"
        ":not(:has(.jp-OutputArea-child ~ .jp-OutputArea-child)) { display: none }\n"
        "[data-jp-theme-light=true] img.plot-img { filter: brightness(0.9) }\n"
        "[data-jp-theme-light=false] img.plot-img { filter: brightness(1.2) }\n"
        f"{_DEAD} {{ font-size: 0 }}\n"
        f"{_DEAD}::after {{ content: '{_WHAT_TO_DO}'; font-size: var(--jp-ui-font-size1, 13px) }}"
        "</style>"
    )


def save_with(shell) -> None:
    """Put that under the running cell, and again whenever a cell that imports picolab is run."""

    def put(*_) -> None:
        shell.display_pub.publish({"text/html": saved(), "text/plain": ""})

    def runs(info) -> None:
        if "import picolab" in (info.raw_cell or ""):
            put()

    put()
    shell.events.register("pre_run_cell", runs)
