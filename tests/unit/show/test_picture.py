"""What all figures share: readable on light and dark pages, distinct for colour-blind eyes, never
half a file.

Wrong versions these tests catch: black text (gone on a dark page), a red-green pair, a palette too
pale for a white page, plotly imported by `import picolab.show`, a save that writes in place.
"""

import itertools
import subprocess
import sys

import pytest

from picolab.monitoring.figures import gantt
from picolab.schedules import make, simulate
from picolab.show import picture, rank_grid_figure
from picolab.show.files import write_beside
from picolab.show.picture import LabFigure, contrast
from picolab.specs import Layout

FAMILIES = [picture.TIME, picture.MEMORY, picture.ANSWER]

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def lab(colour: str, matrix) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of "#rrggbb" as seen through the matrix."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    seen = [min(1, max(0, sum(m * c for m, c in zip(row, linear)))) for row in matrix]
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    xyz = [sum(m * c for m, c in zip(row, seen)) for row in to_xyz]
    f = [
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
        for t in (v / n for v, n in zip(xyz, (0.95047, 1.0, 1.08883)))
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def closest(colours) -> float:
    """The smallest distance (CIE 1976) of two colours, over all kinds of eyes."""
    return min(
        sum((x - y) ** 2 for x, y in zip(lab(a, matrix), lab(b, matrix))) ** 0.5
        for a, b in itertools.combinations(sorted(set(colours)), 2)
        for matrix in BLINDNESS.values()
    )


def check_contrast(marks, text):
    for page in picture.PAGES.values():
        assert contrast(text, page) >= 4.1
        assert min(contrast(mark, page) for mark in marks) >= 3.0


@pytest.mark.parametrize("family", FAMILIES)
def test_marks_and_text_read_on_both_pages(family):
    check_contrast([*family.values(), picture.RED, *picture.GROUPS], picture.TEXT)


@pytest.mark.parametrize("marks, text", [(["#1c82c9"], "#000000"), (["#f0e442"], picture.TEXT)])
def test_black_text_and_yellow_marks_are_noticed(marks, text):
    with pytest.raises(AssertionError):
        check_contrast(marks, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_colours_of_a_family_differ_for_every_kind_of_eye(family):
    # Waiting is grey and always hatched as well, so it may be nearer to a colour than colours are.
    colours = [colour for name, colour in family.items() if name not in ("waiting", "buffers")]
    assert closest(colours) > 20
    assert closest(family.values()) > 12


def test_a_red_green_pair_is_noticed():
    assert closest(["#b05030", "#6a7a20"]) < 20  # a red-brown and an olive green


def test_importing_monitoring_draws_nothing():
    code = (
        "import sys, picolab.monitoring, picolab.chapters.c01_4d_basics as f\n"
        "str(f.ring_all_reduce_frames(3))\n"
        "print(sorted({'torch', 'numpy', 'plotly', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def one_bar():
    import plotly.graph_objects as go

    return go.Figure(go.Bar(x=["a"], y=[1]), layout={"template": picture.template()})


def test_a_figure_is_a_picture_and_a_text():
    figure = LabFigure("a  1", one_bar)
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "application/vnd.plotly.v1+json"}
    assert bundle["text/plain"] == repr(figure) == "a  1"
    drawn = bundle["application/vnd.plotly.v1+json"]
    assert drawn["data"][0]["type"] == "bar"
    layout = drawn["layout"]["template"]["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert "responsive" not in drawn["config"]  # it shrinks to a line when JupyterLab's page widens
    assert '"responsive": true' in figure.to_html(include_plotlyjs="cdn")


def test_saving(tmp_path):
    figure = LabFigure("a  1", one_bar)
    assert figure.save(tmp_path / "f.txt").read_text() == "a  1\n"
    page = figure.save(tmp_path / "f.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme" in page and "Plotly.newPlot" in page
    assert "<script src=" not in page  # offline
    with pytest.raises(ValueError, match=r"\.html, \.png, \.json or \.txt"):
        figure.save(tmp_path / "f.bmp")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.html", "f.txt"]


def test_a_file_is_never_half_written(tmp_path):
    target = tmp_path / "kept.json"
    target.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_beside(target, "after \ud800")  # cannot be encoded: writing fails in the middle
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]


MARKS = {*picture.TIME.values(), *picture.MEMORY.values(), *picture.GROUPS, picture.GREY}


@pytest.mark.parametrize("ground", sorted(MARKS))
def test_what_is_written_on_a_mark_can_be_read(ground):
    assert contrast(picture.ink(ground), ground) >= 4.5


def test_white_on_every_mark_is_noticed():
    assert min(contrast("#ffffff", ground) for ground in MARKS) < 3.2


@pytest.mark.parametrize(
    "shown",
    [rank_grid_figure(Layout.parse("dp2tp2pp2cp2")), gantt(simulate(make("1f1b", 2, 4)))],
    ids=["grid", "gantt"],
)
def test_numbers_on_marks_have_that_contrast(shown):
    seen = 0
    for trace in [*shown.figure.data, *(t for f in shown.figure.frames for t in f.data)]:
        font = trace.insidetextfont if trace.type == "bar" else trace.textfont
        if font is None or font.color is None or not trace.marker.color:
            continue
        inks = [font.color] if isinstance(font.color, str) else list(font.color)
        colours = trace.marker.color
        grounds = [colours] if isinstance(colours, str) else list(colours)
        assert all(contrast(a, b) >= 4.5 for a, b in zip(inks, grounds, strict=True))
        seen += len(inks)
    assert seen >= 2
