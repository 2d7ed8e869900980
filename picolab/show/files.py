"""How a file is written, so that nobody ever sees half of it."""

import os
from pathlib import Path


def write_beside(path: Path, content: str | bytes) -> None:
    """Beside, then renamed: a reader finds the old file or the new one, whole. Text is UTF-8."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if isinstance(content, str):
            beside.write_text(content, encoding="utf-8")
        else:
            beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """One more line, on the disk when this returns. After a torn one (its writer was killed), it
    begins on a line of its own."""
    with open(path, "a+b") as file:
        torn = False
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
