"""The Markdown of question banks and chapters, as HTML, for a page that renders none itself.

HTML in it is shown and not obeyed. CommonMark closes no stress between a full stop and a letter,
which is how Chinese is set (`**Ring。**key`), and takes two powers (`2**30`, `2**31`) for a bold
word between them; `mended` helps both, for HTML and for a terminal.
"""

import re
from functools import lru_cache

_INSIDE = re.compile(r"(\*\*?)(?=\S)([^*\n]+?)([。，；：！？、）”]+)\1(?!\*)")
_POWER = re.compile(r"(?<=\d)\*\*(?=\d)")


def mended(text: str) -> str:
    """The text with stress that closes before punctuation, and powers whose stars are stars. What
    stands in backticks stays as it is."""
    parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.DOTALL)
    for index in range(0, len(parts), 2):
        powers = _POWER.sub(r"\\*\\*", parts[index])
        parts[index] = _INSIDE.sub(r"\1\2\1\3", powers)
    return "".join(parts)


def markdown_html(text: str, inline: bool = False) -> str:
    """Markdown as HTML, tables too; inline: without paragraphs."""
    parser, source = _parser(), mended(text.strip())
    return parser.renderInline(source) if inline else parser.render(source)


@lru_cache(maxsize=1)
def _parser():
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table")
