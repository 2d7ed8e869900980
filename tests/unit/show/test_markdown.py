"""Markdown of the banks as HTML: HTML is shown, tables survive, stars stress or multiply.

Mutant: CommonMark alone, which leaves `**` beside Chinese punctuation and makes a bold word of two
powers.
"""

import pytest

from picolab.show import markdown
from picolab.show.markdown import markdown_html, mended

CASES = [
    ("a < b & <script>x</script>", "<p>a &lt; b &amp; &lt;script&gt;x&lt;/script&gt;</p>\n"),
    ("**Ring。**key 走两圈", "<p><strong>Ring</strong>。key 走两圈</p>\n"),
    ("这*已经*是单向的", "<p>这<em>已经</em>是单向的</p>\n"),
    ("8 * 2**30 and 2**20 * 3", "<p>8 * 2**30 and 2**20 * 3</p>\n"),
    ("`**a。**b`", "<p><code>**a。**b</code></p>\n"),
    ("**Ends.** So", "<p><strong>Ends.</strong> So</p>\n"),
]


@pytest.mark.parametrize("text, expected", CASES)
def test_html(text, expected):
    assert markdown_html(text) == expected


def test_commonmark_alone_is_noticed(monkeypatch):
    monkeypatch.setattr(markdown, "mended", lambda text: text)
    assert sum(markdown_html(text) != expected for text, expected in CASES) == 2


def test_a_table_survives():
    table = markdown_html("| a | b |\n|---|---|\n| 1 | 2 |")
    assert "<table>" in table and "<td>2</td>" in table


def test_inline():
    assert markdown_html("a **b**", inline=True) == "a <strong>b</strong>"
    assert mended("2**30") == r"2\*\*30"
