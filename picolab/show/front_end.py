"""What shows a cell's output: a reader's front end, a headless executor, or nothing at all.

A front end (JupyterLab, Notebook 7, VS Code) sends the id of the cell along with each request to
execute it (`metadata.cellId`), because it has cells; papermill, nbclient and nbval send bare
code. That is how they are told apart: it is a fact about the request itself, asks nobody, and
waits for no answer. Widgets are made for a front end only. Made headless, they stay in the saved
notebook, 5 MB a figure, even when they are closed.
"""

import contextvars
import html
import re
import sys

_seen = False


def shell():
    """The IPython of a kernel; None in a script, in a terminal, and in a rank."""
    ipython = sys.modules.get("IPython")
    # (It is half imported while another thread imports it.)
    ask = getattr(ipython, "get_ipython", None)
    found = ask() if ask is not None else None
    return found if getattr(found, "kernel", None) is not None else None


def has_front_end() -> bool:
    """Whether somebody can press a button: a cell of this kernel was sent by a front end.

    Once true it stays true: a pressed button is a message of its own, which names no cell.
    """
    global _seen
    kernel_shell = shell()
    if kernel_shell is not None and not _seen:
        metadata = kernel_shell.get_parent().get("metadata") or {}
        _seen = "cellId" in metadata or "google.colab" in sys.modules
    return _seen


def running_cell() -> str:
    """The id of the request being executed; "" outside a kernel."""
    kernel_shell = shell()
    if kernel_shell is None:
        return ""
    return (kernel_shell.get_parent().get("header") or {}).get("msg_id", "")


class Shown:
    """Something that shows itself when it is made, and can be replaced in place later.

    So it needs not be the last line of its cell; as the last line it is not shown twice. In a
    script or a terminal nothing is shown: print it.
    """

    _handle = None
    _cell = ""
    _version = 0
    _in_page = None
    _says_itself = False  # whether its widget's text form is its own repr

    def content(self):
        """What is to be seen now: a widget, a figure, a table or a `Message`."""
        return Message("")

    def show(self, content=None) -> None:
        """Show it under the running cell."""
        if shell() is None:
            return
        from IPython.display import DisplayHandle

        self._cell, self._version, self._in_page = running_cell(), 0, None
        self._handle = DisplayHandle()
        self._handle.display(**self._bundle(self.content() if content is None else content))

    def replace(self, content=None) -> None:
        """Show this, or what `content()` is now, where it was shown before; from any thread.

        Two things get in the way of a message from a thread. It would carry the id of the request
        that started the thread, and an executor drops what does not belong to the cell it runs: in
        an empty context it carries the current one. And between two cells an executor listens to
        nothing: so it is told once more at the end of the next cell, in time for its last message.

        A front end may have loaded its page again since, and then knows no display id any more:
        `InPage` sees to that.
        """
        handle = self._handle
        if handle is None:
            return
        self._version += 1
        bundle = self._bundle(self.content() if content is None else content)
        contextvars.Context().run(self._replace, bundle)
        if not has_front_end():
            events = shell().events

            def again(*_) -> None:
                events.unregister("post_run_cell", again)
                handle.update(**bundle)

            events.register("post_run_cell", again)

    def _replace(self, bundle: dict) -> None:
        self._handle.update(**bundle)
        if has_front_end():
            from picolab.show.in_page import InPage

            data, metadata = bundle["obj"], bundle["metadata"]
            output = {"output_type": "display_data", "data": data, "metadata": metadata}
            # A new one each time: it acts when it is made, also in a page too busy to hear changes.
            before, self._in_page = self._in_page, InPage(output=output)
            if before is not None:
                before.close()

    def _bundle(self, content) -> dict:
        """The content as what `display` takes; for a front end it says whose place this is."""
        data, metadata = shell().display_formatter.format(content)
        if "application/vnd.jupyter.widget-view+json" in data and self._says_itself:
            data = {**data, "text/plain": repr(self)}
        if has_front_end():
            mark = {"shown": self._handle.display_id, "version": self._version}
            metadata = {**metadata, "picolab": mark}
        return {"obj": data, "raw": True, "metadata": metadata}

    def _ipython_display_(self) -> None:
        if shell() is None:
            print(repr(self))
        elif self._cell != running_cell():
            self.show()


def as_widget(content):
    """A figure, a table or a `Message` as a widget, to stand inside another one."""
    import ipywidgets

    data, metadata = shell().display_formatter.format(content) if shell() else ({}, {})
    output = {"output_type": "display_data", "data": data, "metadata": metadata}
    return ipywidgets.Output(outputs=(output,))


class Message:
    """Text for a cell's output, in the page's own font and colours; `code` stands in backticks."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        style = "white-space:pre-wrap;margin-bottom:.6em;line-height:1.5"
        text = re.sub("`([^`\n]+)`", r"<code>\1</code>", html.escape(self.text))
        return f'<div style="{style}">{text}</div>'
