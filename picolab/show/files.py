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
