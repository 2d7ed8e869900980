"""What the formats can hold: how fine they are at each size, and one number in all of them, bit by
bit.

`formats_figure` is the map: how far a number may be moved by rounding, over the number's size.
Level where a format has its mantissa bits, rising below its smallest normal number, where it has
fewer and fewer of them, and ending where it ends. `bits` takes a number; in a front end one may
type another.
"""

import math
from typing import TYPE_CHECKING

from picolab.show.front_end import Shown, has_front_end
from picolab.show.numbers import read
from picolab.show.picture import BLUE, GREEN, GREY, OCHRE, PURPLE, RUST, LabFigure, template
from picolab.show.table import Table

if TYPE_CHECKING:
    from picolab.precision import Format

SHOWN = ("fp32", "tf32", "bf16", "fp16", "e5m2", "e4m3")
COLORS = dict(zip(SHOWN, (GREY, OCHRE, BLUE, RUST, PURPLE, GREEN)))
LOW, HIGH = -40, 24  # powers of two that are drawn
_PARTS = 8  # points an octave


def pattern(value: float, format: "str | Format") -> str:
    """The bits of the nearest number: sign, exponent, mantissa. ValueError for what is not
    finite."""
    import torch

    from picolab.precision.formats import find, round_to

    format = find(format)
    if not math.isfinite(value):
        raise ValueError(f"{value} has no bits to look at: give a finite number")
    rounded = float(round_to(torch.tensor([value], dtype=torch.float64), format, saturate=True)[0])
    exponent_bits = format.bits - 1 - format.mantissa
    sign = "1" if math.copysign(1.0, rounded) < 0 else "0"
    size = abs(rounded)
    # A subnormal has exponent 0 and no leading 1.
    e = max(math.frexp(size)[1] - 1, format.least) if size else format.least
    steps = round(size / 2.0 ** (e - format.mantissa))
    normal = steps >= 2**format.mantissa
    stored = e - format.least + 1 if normal else 0
    fraction = steps - (2**format.mantissa if normal else 0)
    return f"{sign} {stored:0{exponent_bits}b} {fraction:0{format.mantissa}b}"


def bits_table(value: float) -> Table:
    """One number in each format: its bits, what it is there, and how far that is off."""
    import torch

    from picolab.precision.formats import FORMATS, lost, round_to

    x = torch.tensor([value], dtype=torch.float64)
    rows = []
    for name in SHOWN:
        format = FORMATS[name]
        held = float(round_to(x, format, saturate=True)[0])
        share = lost(x, format)
        note = ""
        if share.saturated:
            note = "beyond the largest: saturated here" + ("; else inf" if format.infinite else "")
        elif share.flushed:
            note = "flushed to zero"
        elif 0 < abs(held) < 2.0**format.least:
            note = "subnormal"
        off = "exact" if held == value else f"{100 * abs(held - value) / abs(value):.3g} %"
        rows.append([name, pattern(value, format), f"{held:.9g}", off, note])
    columns = ["format", "sign exponent mantissa", "is", "off by", ""]
    return Table(columns, rows, f"{value:.17g}, rounded to the nearest")


class Bits(Shown):
    """See `bits`."""

    def __init__(self, value: float):
        self.table = bits_table(value)
        self._value = value
        self.show()

    def content(self):
        return self._form() if has_front_end() else self.table

    def _form(self):
        import ipywidgets

        field = ipywidgets.Text(
            value=f"{self._value:g}",
            description="a number:",
            continuous_update=False,
            layout={"width": "22em"},
        )
        shown = ipywidgets.HTML(self.table._repr_html_())

        def typed(change) -> None:
            try:
                value = float(read(change["new"]).value)
                self.table = bits_table(value)
                shown.value = self.table._repr_html_()
            except ValueError as error:
                import html

                shown.value = f"<p>{html.escape(str(error))}</p>"

        field.observe(typed, names="value")
        return ipywidgets.VBox([field, shown])

    def __repr__(self) -> str:
        return repr(self.table)


def bits(value: float) -> Bits:
    """A number in each format, bit by bit; in a front end with a field for another one."""
    return Bits(value)


def formats_figure() -> LabFigure:
    """Half an ulp over the number, for sizes from 2^-40 to 2^24."""
    from picolab.precision.formats import FORMATS

    rows = [
        [
            name,
            FORMATS[name].bits,
            FORMATS[name].mantissa,
            f"{100 * FORMATS[name].unit:.3g} %",
            f"2^{FORMATS[name].least}",
            f"{FORMATS[name].smallest:.2g}",
            f"{FORMATS[name].largest:.6g}",
        ]
        for name in SHOWN
    ]
    columns = ["", "bits", "mantissa", "off by at most", "least normal", "smallest", "largest"]
    title = "Fewer mantissa bits: higher. Fewer exponent bits: shorter"
    return LabFigure(repr(Table(columns, rows, title)), lambda: _build(title))


def _line(name: str) -> tuple[list[float], list[float]]:
    """Largest relative error, of numbers between the smallest that is held and the largest."""
    import torch

    from picolab.precision.formats import FORMATS

    format = FORMATS[name]
    powers = [LOW + i / _PARTS for i in range((HIGH - LOW) * _PARTS + 1)]
    sizes = [2.0**power for power in powers]
    held = [size for size in sizes if format.smallest / 2 < size <= format.largest]
    ulps = format.ulp(torch.tensor(held, dtype=torch.float64)).tolist()
    return held, [100 * min(1.0, ulp / 2 / size) for ulp, size in zip(ulps, held)]


def _build(title: str):
    import plotly.graph_objects as go

    data = []
    for name in SHOWN:
        x, y = _line(name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": x,
                "y": y,
                "line": {"color": COLORS[name], "width": 2},
                "hovertemplate": f"{name}: %{{x:.3g}} may be off by %{{y:.2g}} %<extra></extra>",
            }
        )
    ticks = list(range(LOW, HIGH + 1, 8))
    layout = {
        "template": template(),
        "title": {"text": title},
        "height": 400,
        "xaxis": {
            "type": "log",
            "title": {"text": "size of the number"},
            "tickvals": [2.0**e for e in ticks],
            "ticktext": [f"2<sup>{e}</sup>" for e in ticks],
        },
        "yaxis": {
            "type": "log",
            "title": {"text": "rounded, off by at most (%)"},
            "dtick": 1,
            "exponentformat": "power",
        },
        "legend": {"y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"t": 88},
    }
    return go.Figure(data=data, layout=layout)
