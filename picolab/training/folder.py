"""A folder of checkpoints: which one is meant, and whether it is whole.

    FOLDER              the newest that is whole, to the last byte; damaged ones are passed over,
                        with a line that says why
    FOLDER/step-20      this one and no other: refused if it is damaged

No number of a checkpoint is read here, only its bytes (integrity.py) and its checkpoint.json. A run
that is going on may remove an older checkpoint at any time: it is renamed first, so that a reader
who misses a file can tell "gone" from "damaged" by whether the folder is still there.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picolab.training.integrity import ABOUT, Damaged, damage, read_about

_STEP = re.compile(r"step-(\d+)")
ANOTHERS = (
    "another run that is going on writes its checkpoints to {}, and each would remove what the "
    "other has half written; give another folder"
)
_WRITING = re.compile(r"\.step-\d+\.writing")


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole, and how it was found."""

    path: Path
    about: dict[str, Any]
    """Its checkpoint.json."""
    passed_over: tuple[Path, ...] = ()
    """Newer ones, which are damaged."""
    notes: tuple[str, ...] = ()
    """What its reader should be told, a line each."""


def choose(path: str | Path) -> Found:
    """The checkpoint meant by a path: itself, or the newest in it that is whole, to the last byte.

    ValueError if there is none; Damaged if it is named itself and is not whole.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise ValueError(f"there is no folder {path} to go on from")
    if _WRITING.fullmatch(path.name):
        raise ValueError(
            f"{path} is still being written, or its run was killed meanwhile; it is not complete: "
            f"go on from {path.parent}, which stands for its newest complete checkpoint"
        )
    if (path / ABOUT).is_file() or _STEP.fullmatch(path.name):
        about = describe(path, contents=True)
        return Found(path, about, notes=_unhashed(path, about))
    passed: list[Damaged] = []
    for candidate in sorted(matching(path, _STEP), key=number, reverse=True):
        try:
            about = describe(candidate, contents=True)
        except Damaged as error:
            passed.append(error)
            continue
        notes = [
            f"checkpoint: {error.path.name} is passed over, because its {error.name} "
            f"{error.reason}; {candidate.name} is the newest that is whole"
            for error in passed
        ]
        over = tuple(error.path for error in passed)
        return Found(candidate, about, over, (*notes, *_unhashed(candidate, about)))
    if passed:
        reasons = ", ".join(f"{e.path.name}'s {e.name} {e.reason}" for e in passed)
        raise ValueError(f"no checkpoint in {path} is whole: {reasons}; begin without resume")
    if matching(path, _WRITING):
        raise ValueError(
            f"in {path} is no complete checkpoint yet, and one that is being written (or was left "
            "by a run that was killed); wait for it, or begin without resume"
        )
    raise ValueError(
        f"there is no checkpoint in {path}; training writes them there with checkpoint={path}"
    )


def find(path: str | Path) -> Path:
    """The path of `choose`, which is told on stderr what there is to tell."""
    found = choose(path)
    say(found.notes)
    return found.path


def describe(path: str | Path, contents: bool = False) -> dict[str, Any]:
    """The checkpoint.json of a checkpoint, after a look at its files: all there, all of the size
    they had; and with `contents`, all of the bytes that were written. ValueError otherwise."""
    path = Path(path)
    try:
        about = read_about(path)
        for name in about["files"]:
            reason = damage(path, about, name, contents)
            if reason is not None:
                raise Damaged(path, name, reason)
    except Damaged:
        if path.is_dir():
            raise
        # It was renamed while we read, so that it can be removed.
        raise ValueError(
            f"the checkpoint {path} is gone: a run that is going on removes its older ones; "
            f"go on from {path.parent}, which stands for the newest"
        ) from None
    return about


@dataclass(frozen=True)
class Checked:
    """A checkpoint, every file of it, and what is wrong with that: None if it is as written."""

    path: Path
    files: dict[str, str | None]
    notes: tuple[str, ...] = ()


def verify(path: str | Path) -> list[Checked]:
    """Every byte of a checkpoint, or of all in a folder, oldest first. ValueError if there is
    none."""
    path = Path(path).expanduser().absolute()
    is_one = (path / ABOUT).is_file() or _STEP.fullmatch(path.name)
    chosen = [path] if is_one else sorted(matching(path, _STEP), key=number)
    if not path.is_dir() or not chosen:
        raise ValueError(f"there is no checkpoint in {path}")
    return [_checked(one) for one in chosen]


def _checked(path: Path) -> Checked:
    try:
        about = read_about(path)
    except Damaged as error:
        return Checked(path, {error.name: error.reason})
    files = {name: damage(path, about, name, contents=True) for name in about["files"]}
    return Checked(path, {ABOUT: None, **files}, _unhashed(path, about))


def contents(folder: str | Path) -> list[dict[str, Any]]:
    """A dict for each checkpoint in a folder, oldest first: name, step, layout, bytes, and state:
    "complete" (by the sizes) or what is wrong. ValueError if there is none."""
    folder, found = Path(folder).expanduser().absolute(), []
    for path in sorted(matching(folder, _STEP), key=number):
        about, state = {}, "complete"
        try:
            about = describe(path)
        except ValueError as error:
            state = str(error)
        size = sum(file.stat().st_size for file in path.iterdir())
        known = {"step": about.get("step"), "layout": about.get("layout")}
        found.append({"name": path.name, **known, "bytes": size, "state": state})
    if not found:
        raise ValueError(f"there is no checkpoint in {folder}")
    return found


def checkpoints(folder: Path) -> list[Path]:
    """Those that were completed, oldest first. (One without checkpoint.json was not: ours get their
    name when that is written, so it is a copy that broke off, or an empty folder.)"""
    found = [path for path in matching(folder, _STEP) if (path / ABOUT).is_file()]
    return sorted(found, key=number)


def matching(folder: Path, pattern: re.Pattern) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_dir()]


def number(path: Path) -> int:
    return int(_STEP.fullmatch(path.name)[1])


def _unhashed(path: Path, about: dict) -> tuple[str, ...]:
    if "hashes" in about:
        return ()
    return (f"checkpoint: {path.name} is of an older picolab and has no hashes: sizes only",)


def say(notes: Iterable[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr, flush=True)
