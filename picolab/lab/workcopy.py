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
            lines.append(
                f"{original.name} has moved on since {copy} was made; yours was kept. "
                f"For the new one, rename yours and run this again"
            )
    write_beside(work / ORIGINS, json.dumps(origins, indent=1, sort_keys=True) + "\n")
    return lines


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
    parser.add_argument("--work", type=Path, default=Path("work"), help="where the copies live")
    chosen = parser.parse_args(arguments)
    try:
        source = chosen.notebooks or notebooks_folder()
        if not source.is_dir():
            raise ValueError(f"{source} is not a folder")
        lines = make_copies(source, chosen.work)
    except (ValueError, OSError) as problem:
        print(f"picolab: {problem}", file=sys.stderr)
        return 1
    for line in lines:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
