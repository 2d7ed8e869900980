"""The reader's own copies of the notebooks, in `work/`.

Working through a chapter changes it: outputs, notes, answers. So that this never touches the
checkout, `make lab` opens copies. A copy is made where there is none and is never overwritten,
whatever happens to the chapter it came from; `work/.origin.json` remembers the hash of the chapter
at the time of the copy, so that a later run can say which chapters have moved on. Standard library
only; run as `python -m picolab.lab.workcopy`.
"""

import argparse
import hashlib
import json
import socket
import sys
from pathlib import Path

from picolab.show.files import write_beside

ORIGINS = ".origin.json"


def notebooks_folder() -> Path:
    """The chapters: `notebooks/` of a checkout, or the ones an installed wheel carries."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "notebooks", package / "_notebooks"):
        if any(folder.glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise ValueError(f"there are no notebooks beside {package} nor in it; reinstall picolab")


def make_copies(source: Path, work: Path) -> list[str]:
    """Copy every notebook of `source` that `work` lacks; return what there is to say, one line
    each."""
    work.mkdir(parents=True, exist_ok=True)
    origins, lines = _read_origins(work / ORIGINS), []
    for original in sorted(source.glob("*.ipynb")):
        copy, now = work / original.name, _hash(original)
        if not copy.exists():
            write_beside(copy, original.read_bytes())  # no half copy is taken for the reader's own
            origins[original.name] = now
            lines.append(f"new: {copy}")
        elif _hash(copy) == now:
            origins[original.name] = now
        elif original.name not in origins:
            lines.append(
                f"{copy} was kept; it differs from {original}, and from which version is not known"
            )
        elif origins[original.name] != now:
            lines.append(f"{original.name} has moved on since {copy} was made; yours was kept. ")
            lines[-1] += _write_new(original, work, origins)
    write_beside(work / ORIGINS, json.dumps(origins, indent=1, sort_keys=True) + "\n")
    return lines


def refuse_taken(port: int) -> None:
    """ValueError if somebody listens on this port of this machine: JupyterLab would take another
    one, and a bookmark would lead to somebody else's page.
    """
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("127.0.0.1", port))
        except OverflowError:
            raise ValueError(f"PORT={port}: a port is a number from 1 to 65535") from None
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}). Is JupyterLab running already? "
                f"`jupyter lab list` shows it. Or take another port: make lab PORT={port + 1}"
            ) from None


def _write_new(original: Path, work: Path, origins: dict[str, str]) -> str:
    """The new edition beside the reader's, as NAME.new.ipynb; what became of it, in a sentence. One
    that the reader has worked in is theirs as well, and kept.
    """
    new = work / f"{original.stem}.new.ipynb"
    if new.exists() and _hash(new) not in (origins.get(new.name), _hash(original)):
        return f"{new} is an earlier edition that you worked in; rename it to get the newest"
    write_beside(new, original.read_bytes())
    origins[new.name] = _hash(original)
    return f"The new one is {new}"


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_origins(path: Path) -> dict[str, str]:
    try:
        origins = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        print(f"{path} could not be read and is made again", file=sys.stderr)
        return {}
    return origins if isinstance(origins, dict) else {}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m picolab.lab.workcopy", description=__doc__)
    parser.add_argument("--notebooks", type=Path, help="the chapters (default: picolab's own)")
    parser.add_argument("--port", type=int, help="the port that JupyterLab is about to take")
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the copies live")
    chosen = parser.parse_args(arguments)
    try:
        source = chosen.notebooks or notebooks_folder()
        if not source.is_dir():
            raise ValueError(f"{source} is not a folder")
        if chosen.port is not None:
            refuse_taken(chosen.port)
        lines = make_copies(source, chosen.work)
    except (ValueError, OSError) as problem:
        print(f"picolab: {problem}", file=sys.stderr)
        return 1
    for line in lines:
        print(line)
    if chosen.port is not None:
        print("To stop JupyterLab: Ctrl-C here, then y; or File > Shut Down in the page.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
