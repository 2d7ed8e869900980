"""What has been tried, what is done: in memory, and for a reader's front end in a small file.

The file lies beside the run directories and the guesses, one line of JSON for each exercise.
Headless it is neither read nor written, so a notebook that CI executes leaves no trace and finds
none. A file that cannot be read counts as empty; one that cannot be written is said once and costs
nothing.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from picolab.exercises.catalogue import about, ids
from picolab.launch import rundirs
from picolab.show.files import write_beside
from picolab.show.front_end import has_front_end
from picolab.show.table import Table

_here: dict[str, dict] = {}
_told_unwritable = False
_WORDS = {"pass": "done", "fail": "tried", "todo": "open"}


def path() -> Path:
    """Where it is kept."""
    return rundirs.root().parent / "exercises.json"


def tried(exercise_id: str, status: str) -> None:
    """Write down the outcome of a check. What is done stays done."""
    entry = _entry(exercise_id)
    if status == "todo":
        return
    entry["tries"] = entry.get("tries", 0) + 1
    if entry.get("status") != "pass":
        entry["status"] = status
        entry["when"] = datetime.now(UTC).isoformat(timespec="seconds")
    _keep(exercise_id, entry)


def has_tried(exercise_id: str) -> bool:
    """Whether there was a check that was judged, now or in an earlier session."""
    return _entry(exercise_id).get("tries", 0) > 0


def next_hint(exercise_id: str, most: int) -> int:
    """How many hints to show now: one more than the last time."""
    entry = _entry(exercise_id)
    entry["hints"] = min(entry.get("hints", 0) + 1, most)
    _keep(exercise_id, entry)
    return entry["hints"]


def standing(chapter: str | None = None, kept: bool | None = None) -> list[dict]:
    """One dict for each exercise of a chapter, or of all chapters: id, title, starred, minutes,
    difficulty, status ("done", "tried", "open"), tries, hints.

    kept: read the file too; None means where there is a front end. ValueError for a chapter that
    has no exercises.
    """
    if not ids(chapter):
        chapters = sorted({name.split(".")[0] for name in ids()} - {"interview"})
        raise ValueError(
            f"no chapter {chapter!r} has exercises; there is {', '.join(map(repr, chapters))}"
        )
    stored = _stored() if (has_front_end() if kept is None else kept) else {}
    found = []
    # Coding tasks of the question banks are practised there.
    chosen = [name for name in ids(chapter) if chapter or not name.startswith("interview.")]
    for name in chosen:
        exercise = about(name)
        entry = {**stored.get(name, {}), **_here.get(name, {})}
        found.append(
            {
                "id": name,
                "title": exercise.title,
                "starred": exercise.starred,
                "minutes": exercise.minutes,
                "difficulty": exercise.difficulty,
                "status": _WORDS.get(entry.get("status"), "open"),
                "tries": entry.get("tries", 0),
                "hints": entry.get("hints", 0),
            }
        )
    return found


def progress(chapter: str | None = None, kept: bool | None = None) -> Table:
    """A table of all exercises (of a chapter: "4d"): done, tried or open, with tries and hints."""
    found = standing(chapter, kept)
    done = sum(one["status"] == "done" for one in found)
    minutes = sum(one["minutes"] for one in found if one["status"] != "done")
    left = f"; about {minutes} minutes are left" if minutes else ""
    rows = [
        [
            one["title"] + (" ★" if one["starred"] else ""),
            one["status"],
            *(one[key] for key in ("minutes", "difficulty", "tries", "hints", "id")),
        ]
        for one in found
    ]
    columns = ["exercise", "", "minutes", "difficulty", "tries", "hints", "id"]
    return Table(columns, rows, f"{done} of {len(found)} exercises done{left}")


def _entry(exercise_id: str) -> dict:
    if exercise_id not in _here:
        stored = _stored() if has_front_end() else {}
        _here[exercise_id] = stored.get(exercise_id, {})
    return _here[exercise_id]


def _stored() -> dict[str, dict]:
    try:
        kept = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {name: entry for name, entry in kept.items() if isinstance(entry, dict)}


def _keep(exercise_id: str, entry: dict) -> None:
    global _told_unwritable
    if not has_front_end():
        return
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        # Read again: another notebook may have written since.
        write_beside(path(), json.dumps({**_stored(), exercise_id: entry}, indent=1))
    except OSError as error:
        if not _told_unwritable:
            print(f"progress is not kept for later sessions: {error.strerror} ({path()})")
        _told_unwritable = True
