"""What every figure of the project shares: its colours, its template, and its text form.

A `LabFigure` is a plotly figure and a text at once. JupyterLab draws the figure; a terminal,
GitHub, a screen reader and nbval read the text. plotly is imported when something is drawn, not
before, so the text works without it.

Colours have fixed meanings, and each reads on JupyterLab's light page (white) and on its dark one
(#111): no figure has a background of its own, so the page shows through, and one picture serves
both themes. A mark needs a contrast of 3 to its ground (WCAG 2.1, 1.4.11), which leaves a narrow
band of lightness; the hues were searched in it for the largest distance that remains for every
kind of colour-blind eye. Text needs 4.5 (1.4.3), and no grey has more than 4.34 to both pages: that
grey is the one for text, and theme.py makes it the page's own colour. Red means "now wrong" and
nothing else.
"""

import importlib.util
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

from picolab.show.files import write_beside
from picolab.show.png import png
from picolab.show.theme import TEXT, rule

INK = "#33373d"  # text where the ground is known to be light
GRID = "rgba(128,132,140,0.28)"
RED = "#d6424b"
PAGES = {"light": "#ffffff", "dark": "#111111"}

BLUE = "#2a72ee"
RUST = "#b2532a"
GREEN = "#12a482"
PURPLE = "#d65dc5"
OCHRE = "#c98213"
GREY = "#6a6f78"
TIME = {
    "forward": BLUE,
    "compute": BLUE,  # forward and backward together, where they are not told apart
    "backward-input": RUST,
    "backward-weight": OCHRE,
    "communication": GREEN,
    "waiting": GREY,  # always hatched as well
    "bubble": PURPLE,  # always hatched as well, the other way
}
MEMORY = {
    "parameters": BLUE,
    "gradients": RUST,
    "optimizer": GREEN,
    "activations": PURPLE,
    "buffers": GREY,
}
ANSWER = {"guess": PURPLE, "formula": OCHRE, "measured": BLUE}
GROUPS = (BLUE, RUST, GREEN, PURPLE, OCHRE)  # for things that are only told apart

HATCH = "/"
HATCHES = {"waiting": HATCH, "bubble": "\\"}  # states in which nothing is done
PLAY_MS = 900  # a frame
LETTERS = 66  # of a title that fits into a page of 1,000 pixels beside the list of files
_MIME = "application/vnd.plotly.v1+json"
# Not "responsive": plotly then gives the figure the height of its place, and JupyterLab the place
# the height of its figure, so that at the next change of the page's width both shrink to a line.
# JupyterLab's view follows the page's width by itself.
_CONFIG = {"displaylogo": False}


# Upright, in the right margin: lying, it covers the end of a title while the mouse is there.
_TOOLBAR = {
    "orientation": "v",
    "bgcolor": "rgba(0,0,0,0)",
    "remove": ["select", "lasso", "zoomin", "zoomout", "autoscale"],
}


def template() -> dict:
    """The layout every figure starts from."""
    axis = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": GRID,
        "tickcolor": GRID,
        "automargin": True,
        "ticklabelstandoff": 3,
        "title": {"standoff": 6, "font": {"size": 12}},
        "tickfont": {"size": 12},
    }
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": TEXT, "size": 13, "family": "system-ui, sans-serif"},
            "title": {"font": {"size": 15}, "x": 0, "xref": "container", "xanchor": "left"},
            "colorway": list(GROUPS),
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "font": {"size": 12}, "bgcolor": "rgba(0,0,0,0)"},
            "margin": {"l": 60, "r": 20, "t": 56, "b": 48},
            "hoverlabel": {"bgcolor": INK, "font": {"size": 12, "color": "#ffffff"}},
            "annotationdefaults": {"font": {"color": TEXT, "size": 13}},
            "bargap": 0.25,
            "modebar": _TOOLBAR,
            "uirevision": "keep",  # a reader's zoom survives an update
        }
    }


def broken(text: str, letters: int) -> str:
    """In lines of so many letters: plotly breaks none itself, and cuts what is too long."""
    return "<br>".join(textwrap.wrap(text, letters))


def pattern(name: str) -> dict:
    """The hatch of a state in which nothing is done; none for the others."""
    if name not in HATCHES:
        return {"shape": ""}
    about = {"fillmode": "overlay", "fgcolor": "#ffffff", "size": 7, "solidity": 0.3}
    return {"shape": HATCHES[name], **about}


class LabFigure:
    """A picture with a text form.

    `build` makes the plotly figure when it is first needed; `text` is what the figure says, as a
    table.
    """

    def __init__(self, text: str, build: Callable[[], object]):
        self.text, self._build, self._figure = text, build, None

    @property
    def figure(self):
        """The `plotly.graph_objects.Figure`, to change or to combine."""
        if self._figure is None:
            if importlib.util.find_spec("plotly") is None:
                raise ImportError(
                    "drawing needs plotly: pip install -e '.[lab]' in the checkout. "
                    "The text form works without"
                )
            self._figure = self._build()
            # JupyterLab's view forgets the height it was given: a frame or a slider's step that
            # changes the layout says it again.
            height = self._figure.layout.height
            self._figure.update_layout(updatemenus=play_menus(self._figure))
            for frame in self._figure.frames:
                frame.layout.height = height
            for step in [step for slider in self._figure.layout.sliders for step in slider.steps]:
                if step.method == "update":
                    step.args = [step.args[0], {**step.args[1], "height": height}]
        return self._figure

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        bundle = {"text/plain": self.text}
        if importlib.util.find_spec("plotly") is not None:
            bundle[_MIME] = {**json.loads(self.figure.to_json()), "config": _CONFIG}
        return bundle

    def to_html(self, *, include_plotlyjs: bool | str = True) -> str:
        """A page of its own. True puts plotly.js into it (5 MB, works offline), "cdn" only a
        link.
        """
        page = self.figure.to_html(
            include_plotlyjs=include_plotlyjs,
            config={**_CONFIG, "responsive": True},
            auto_play=False,
        )
        style = (
            f"<style>:root{{color-scheme:light dark}}body{{background:#fff;color:{INK}}}"
            "@media(prefers-color-scheme:dark){body{background:#111;color:#e4e6ea}}"
            f"{rule('currentColor')}</style>"
        )
        return page.replace("<head>", f"<head>{style}", 1)

    def save(self, path: str | Path) -> Path:
        """Write it as .html (the picture), .png, .json (plotly's format) or .txt (the text form).

        A .png is drawn by an installed Chromium or Chrome; RuntimeError where there is none. The
        others need nothing.
        """
        path = Path(path).expanduser()
        writers = {
            ".html": self.to_html,
            ".png": lambda: png(self.figure, PAGES["light"], {TEXT: INK}),
            ".json": lambda: self.figure.to_json(),
            ".txt": lambda: self.text + "\n",
        }
        if path.suffix not in writers:
            *most, last = writers
            raise ValueError(
                f"cannot save a figure as {path.name}: end it in {', '.join(most)} or {last}"
            )
        write_beside(path, writers[path.suffix]())
        return path


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """WCAG contrast ratio of two colours, 1 to 21."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def ink(ground: str) -> str:
    """Black or white: whichever can be read better on a mark of this colour. One of them always has
    a contrast of 4.5 (WCAG 2.1, 1.4.3); white alone has 3.1 on some of ours."""
    return max(("#ffffff", "#000000"), key=lambda text: contrast(text, ground))


def frame_slider(names: list[str], pad: int) -> dict:
    """A plotly slider over a figure's frames, which have these names; `pad` pixels below the plot.

    It works without a kernel and in exported HTML.
    """
    jump = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},  # bars and heat maps are not redrawn otherwise
        "transition": {"duration": 0},
    }
    return {
        "currentvalue": {"prefix": "step "},
        "pad": {"t": pad},
        "len": 1.0,
        "x": 0,
        "bordercolor": GRID,
        "bgcolor": GRID,
        "activebgcolor": TEXT,
        "tickcolor": TEXT,
        "steps": [{"method": "animate", "label": name, "args": [[name], jump]} for name in names],
    }


def play_menus(figure) -> list[dict]:
    """A Play and a Pause button in the row in which the slider over the frames says where it is; no
    buttons without frames. Beside a short slider there is no room: then they are below it. From the
    last frame Play begins at the first."""
    sliders = [s for s in figure.layout.sliders if any(t.method == "animate" for t in s.steps)]
    if not (figure.frames and sliders):
        return []
    (slider,) = sliders
    still = {"mode": "immediate", "transition": {"duration": 0}}
    play = {**still, "fromcurrent": True, "frame": {"duration": PLAY_MS, "redraw": True}}
    pause = {**still, "frame": {"duration": 0, "redraw": False}}
    width = 1 if slider.len is None else slider.len
    return [
        {
            "type": "buttons",
            "direction": "left",
            "showactive": False,
            "x": (slider.x or 0) + width,
            "xanchor": "right",
            "y": slider.y or 0,
            "yanchor": "top",
            "pad": {"t": max(0, (slider.pad.t or 0) + (-16 if width > 0.6 else 88))},
            "font": {"color": TEXT, "size": 12},
            "bgcolor": "rgba(0,0,0,0)",
            "bordercolor": TEXT,
            "buttons": [
                {"label": "▶ Play", "method": "animate", "args": [None, play]},
                {"label": "❚❚ Pause", "method": "animate", "args": [[None], pause]},
            ],
        }
    ]
