"""Is a checkpoint what was written? A hash of every file, and a seal on the list of them.

One flipped bit in a weight is a number like any other: the run goes on, a little wrong, and nobody
ever knows. So checkpoint.json has the size and the SHA-256 of every file beside it, and is the only
file that is believed: its own last entry, the seal, is the hash of the text above it.

    "files":  {"__0_0.distcp": 57660, ...}        bytes
    "hashes": {"__0_0.distcp": "9b1c...", ...}    what `sha256sum` prints too
    "seal":   "5f0e..."

Each rank reads back and hashes what it wrote (hashing_writer.py), so that hashing takes no longer
with more ranks.
Everything is checked before the first number is read, and before the pickle in `.metadata` is.

It finds accidents: disks, copies that broke off, editors. It is no signature: who can write the
files can write hashes too. Checkpoints of format 1 have sizes only.
"""

import hashlib
import json
from pathlib import Path

FORMAT = 2
ABOUT = "checkpoint.json"


class Damaged(ValueError):
    """A checkpoint that is not what was written, or not all of it: `name` is the first file of it
    that is not, `reason` what is wrong with that."""

    def __init__(self, path: Path, name: str, reason: str):
        self.path, self.name, self.reason = path, name, reason
        super().__init__(f"the checkpoint {path} is damaged: its {name} {reason}; take another one")


def digest(path: Path) -> str:
    """The SHA-256 of a file, which is never in memory as a whole. OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(about: dict) -> str:
    """The text of checkpoint.json, with its seal. A dict has one such text, to the byte."""
    text = json.dumps(about, indent=1)
    return json.dumps({**about, "seal": hashlib.sha256(text.encode()).hexdigest()}, indent=1)


def read_about(path: Path) -> dict:
    """What a checkpoint's checkpoint.json says. Damaged if that is not what was written or not
    there, ValueError for the format of another picolab."""
    try:
        text = (path / ABOUT).read_text()
        about = json.loads(text)
        sealed, format_ = about.pop("seal", None), about["format"]
        about["files"].items()  # what describes no files was never ours
    except FileNotFoundError:
        raise Damaged(path, ABOUT, "is missing, so it is not complete") from None
    except OSError as error:
        raise Damaged(path, ABOUT, f"cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(path, ABOUT, "cannot be understood") from None
    if (sealed is not None or format_ == FORMAT) and seal(about) != text:
        raise Damaged(path, ABOUT, "holds other bytes than were written")
    if format_ not in (1, FORMAT):
        raise ValueError(
            f"the checkpoint {path} has format {format_}, and this picolab reads 1 and {FORMAT}; "
            "read it with the version that wrote it"
        )
    return about


def damage(path: Path, about: dict, name: str, contents: bool) -> str | None:
    """What is wrong with one file of a checkpoint; None if nothing is.

    contents: read and hash it, too; otherwise its size has to do (as always in format 1)."""
    size = about["files"][name]
    try:
        here = (path / name).stat().st_size
        if here != size:
            return f"has {here:,} bytes of {size:,}"
        if contents and "hashes" in about and digest(path / name) != about["hashes"][name]:
            return "holds other bytes than were written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
