"""Text that comes from somebody else (a file, a bank, another run), as text.

A terminal obeys what it is sent: an escape sequence in a title recolours, retitles, or types. So
control characters are shown and not sent, and so are the marks that turn the direction of writing.
And not every stream can say everything: what it cannot is shown as Python writes it.
"""

import re
import sys
from typing import TextIO

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with what a terminal would obey written out: ESC is `\\x1b`. Lines and tabs stay."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def put(text: str, stream: TextIO | None = None) -> None:
    """Print a line, whatever the stream's encoding (LANG=C, PYTHONIOENCODING=ascii)."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        told = stream.encoding
        print(text.encode(told, "backslashreplace").decode(told), file=stream, flush=True)


def say_everything() -> None:
    """From now on no character ends the program that its streams cannot say."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
