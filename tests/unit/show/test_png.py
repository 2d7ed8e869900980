"""A figure saved as a PNG: by an installed browser, and a sentence where that does not work.

Wrong versions these tests catch: an image of the empty page (saved before plotly has drawn), one
with a transparent ground (grey text on a dark viewer), half a file after a failure, a browser that
is left running, a missing browser that ends in a traceback of somebody else's.
"""

import struct
import zlib
from pathlib import Path

import psutil
import pytest

from picolab.show import picture, png
from picolab.show.picture import LabFigure

with_browser = pytest.mark.skipif(
    png.find_browser() is None, reason="no Chromium or Chrome here (apt-get install chromium)"
)


def one_bar():
    import plotly.graph_objects as go

    bar = go.Bar(x=["a"], y=[1], marker={"color": picture.BLUE})
    return go.Figure(bar, layout={"template": picture.template(), "height": 180})


def pixels(data: bytes) -> tuple[int, int, set[tuple[int, ...]]]:
    """Width, height, and the colours in a PNG of 8 bits a channel."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            channels = {2: 3, 6: 4}[colour]
            assert depth == 8
        elif kind == b"IDAT":
            packed += body
        at += 12 + size
    raw, line, found = zlib.decompress(packed), bytearray(width * channels), set()
    for row in range(height):
        start = row * (width * channels + 1)
        line = _unfiltered(raw[start], raw[start + 1 : start + 1 + len(line)], line, channels)
        found |= {tuple(line[i : i + channels]) for i in range(0, len(line), channels)}
    return width, height, found


def _unfiltered(way: int, line: bytes, above: bytearray, channels: int) -> bytearray:
    """PNG's five filters (RFC 2083, section 6), undone."""
    out = bytearray(line)
    for i in range(len(out)):
        left = out[i - channels] if i >= channels else 0
        corner = above[i - channels] if i >= channels else 0
        up = above[i]
        near = min((left, up, corner), key=lambda v: abs(left + up - corner - v))
        out[i] = (out[i] + (0, left, up, (left + up) // 2, near)[way]) & 255
    return out


def check_image(data: bytes):
    width, height, colours = pixels(data)
    assert (width, height) == (2 * png.WIDTH, 360)
    assert (0xFF, 0xFF, 0xFF) in {colour[:3] for colour in colours if colour[3:] in ((), (255,))}
    assert all(colour[3:] in ((), (255,)) for colour in colours)  # nothing shows through
    blue = tuple(bytes.fromhex(picture.BLUE[1:]))
    assert blue in {colour[:3] for colour in colours}  # the bar has been drawn


@with_browser
def test_saving_as_png(tmp_path):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    path = LabFigure("a  1", one_bar).save(tmp_path / "bar.png")
    check_image(path.read_bytes())
    assert [p.name for p in tmp_path.iterdir()] == ["bar.png"]
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert left == set()


@with_browser
@pytest.mark.parametrize("change", ["empty", "clear"])
def test_an_empty_page_and_a_clear_ground_are_noticed(change):
    ground = "rgba(0,0,0,0)" if change == "clear" else picture.PAGES["light"]
    figure = one_bar()
    if change == "empty":
        figure.data = ()
    with pytest.raises(AssertionError):
        check_image(png.png(figure, ground, {}))


def test_without_a_browser_the_html_way_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(png, "_MAC", Path("/nothing"))
    with pytest.raises(RuntimeError, match=r"needs Chromium or Chrome.*none.*: save it as \.html"):
        LabFigure("a  1", one_bar).save(tmp_path / "bar.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["exit 1", "echo '<html>nothing</html>'"])
def test_a_browser_that_fails_is_told_so(tmp_path, monkeypatch, program):
    browser = tmp_path / "bin" / "chromium"
    browser.parent.mkdir()
    browser.write_text(f"#!/bin/sh\n{program}\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{browser.parent}:/usr/bin:/bin")
    with pytest.raises(RuntimeError, match=r"chromium could not draw .* save it as \.html"):
        LabFigure("a  1", one_bar).save(tmp_path / "bar.png")
    assert not (tmp_path / "bar.png").exists()


def test_a_browser_that_hangs_is_ended(tmp_path, monkeypatch):
    browser = tmp_path / "chromium"
    browser.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(png, "TIMEOUT_S", 1)
    with pytest.raises(RuntimeError, match=r"did not draw the PNG within 1 s: save it as \.html"):
        LabFigure("a  1", one_bar).save(tmp_path / "bar.png")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
