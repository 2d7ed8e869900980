"""What was answered, and what is due: an append-only log, and FSRS over it.

One line of JSON for each review, in the user's data folder. Nothing else is stored: the state of a
card is what a replay of its reviews gives, so there is nothing to get out of step.

**Whatever happens to the file.** A line is written in one call, under a lock, and flushed to the
disk before the grade counts. A kill in the middle leaves a torn last line: the next review begins
on a line of its own, and a line that cannot be read is passed over, counted and never deleted. Two
windows that practise at once take turns for a millisecond.

**FSRS** (the fsrs package; Ye and others, arXiv 2402.01032 describes its family) without learning
steps and without fuzz, so that what is shown as the next date is what happens: four times "good"
gives 2, 11, 46, 163 days. `until`, the day of an interview, moves what would come later to the day
before it. A card is due on its *local* day, from midnight on: an evening is not too early for what
was graded at night.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from picolab.interview.answers import RATINGS, Rating
from picolab.show.files import append_line, write_beside

Clock = Callable[[], datetime]
LOCK_PATIENCE_S = 10.0


def now() -> datetime:
    return datetime.now(UTC)


def local_day(at: datetime) -> date:
    """The day that it is then where the reader is."""
    return at.astimezone().date()


@dataclass(frozen=True)
class Review:
    """One graded answer."""

    id: str
    at: datetime
    rating: Rating
    score: float
    """share of the rubric's points, 0 to 1"""
    confidence: int | None = None
    """1 (no idea) to 4 (sure), said before the answer was shown"""
    seconds: float = 0.0
    ticks: tuple[int, ...] = ()
    flags: tuple[int, ...] = ()
    numbers: tuple[str, ...] = ()
    """what was typed"""
    notes: str = ""

    def line(self) -> str:
        data = {"v": 1, **asdict(self), "at": self.at.isoformat(timespec="seconds")}
        return json.dumps(data, ensure_ascii=False)

    @staticmethod
    def parse(line: str) -> "Review":
        """ValueError or KeyError for a line that is none."""
        data = json.loads(line)
        at = datetime.fromisoformat(data["at"])
        score, confidence = float(data["score"]), data.get("confidence")
        if data["rating"] not in RATINGS or at.tzinfo is None or not 1970 <= at.year < 9000:
            raise ValueError("no review")
        if not 0 <= score <= 1 or confidence not in (None, 1, 2, 3, 4):
            raise ValueError("no review")
        return Review(
            id=str(data["id"]),
            at=at.astimezone(UTC),
            rating=data["rating"],
            score=score,
            confidence=confidence,
            seconds=float(data.get("seconds", 0)),
            ticks=tuple(data.get("ticks", ())),
            flags=tuple(data.get("flags", ())),
            numbers=tuple(data.get("numbers", ())),
            notes=str(data.get("notes", "")),
        )


def default_path() -> Path:
    """reviews.jsonl in the user's data folder."""
    import platformdirs

    return Path(platformdirs.user_data_dir("picolab", appauthor=False)) / "reviews.jsonl"


class ReviewLog:
    """The log: `.append(review)`, `.reviews()`; `.unreadable` lines were passed over."""

    def __init__(self, path: Path | None = None):
        self.path = default_path() if path is None else path
        self.unreadable = 0

    def append(self, review: Review) -> None:
        """On the disk when this returns. OSError if it cannot be written, TimeoutError if another
        window holds the lock for more than ten seconds.
        """
        self._write(review.line())

    def withdraw(self, review: Review) -> None:
        """Take a review back: a line says so, and nothing is ever deleted. OSError as above."""
        at = review.at.isoformat(timespec="seconds")
        self._write(json.dumps({"v": 1, "withdrawn": review.id, "at": at}))

    def _write(self, line: str) -> None:
        import filelock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path.with_suffix(".lock"), timeout=LOCK_PATIENCE_S)
        try:
            with lock:
                append_line(self.path, line)
        except filelock.Timeout:
            raise TimeoutError(
                f"another practice window has been writing to {self.path} for "
                f"{LOCK_PATIENCE_S:.0f} s; close it and grade again, nothing is lost"
            ) from None

    def reviews(self) -> list[Review]:
        """All that can be read, in the order of the file; none if there is no file yet."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            lines = []
        found, self.unreadable = [], 0
        for line in lines:
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8")
                if gone := _withdrawn(text):
                    found = [r for r in found if _key(r) != gone]
                else:
                    found.append(Review.parse(text))
            except (ValueError, KeyError, TypeError, RecursionError):
                self.unreadable += 1
        return found

    def until(self) -> date | None:
        """The day of an interview that was remembered."""
        try:
            return date.fromisoformat(self._until.read_text().strip())
        except (OSError, ValueError):
            return None

    def remember_until(self, until: date | None) -> None:
        """Keep it for the next practice; None forgets it."""
        self._until.parent.mkdir(parents=True, exist_ok=True)
        write_beside(self._until, f"{until}\n") if until else self._until.unlink(missing_ok=True)

    @property
    def _until(self) -> Path:
        return self.path.with_name("until.txt")

    def note(self) -> str:
        """A sentence about lines that were passed over; "" if there are none."""
        if not self.unreadable:
            return ""
        lines = "line" if self.unreadable == 1 else "lines"
        return (
            f"{self.unreadable} {lines} of {self.path} cannot be read (a kill while writing, or an "
            "edit); passed over and left as they are"
        )


def _key(review: Review) -> tuple[str, str]:
    return review.id, review.at.isoformat(timespec="seconds")


def _withdrawn(line: str) -> tuple[str, str] | None:
    """Which review a line takes back; None if it is none of these."""
    data = json.loads(line)
    if not isinstance(data, dict) or "withdrawn" not in data:
        return None
    at = datetime.fromisoformat(data["at"]).astimezone(UTC)
    return str(data["withdrawn"]), at.isoformat(timespec="seconds")


@dataclass
class State:
    """One card, after its reviews."""

    id: str
    reviews: list[Review] = field(default_factory=list)
    due: datetime | None = None
    interval: timedelta = timedelta()

    @property
    def is_new(self) -> bool:
        return not self.reviews


def states(
    ids: Iterable[str], reviews: Iterable[Review], until: date | None = None
) -> dict[str, State]:
    """The state of every card, by replay. Reviews of ids that are gone are ignored."""
    found = {name: State(name) for name in ids}
    for review in sorted(reviews, key=lambda r: r.at):
        if review.id in found:
            found[review.id].reviews.append(review)
    for state in found.values():
        if state.reviews:
            state.due = _due(state.reviews, until)
            state.interval = state.due - state.reviews[-1].at
    return found


def next_due(past: list[Review], review: Review, until: date | None = None) -> datetime:
    """When the card would come again if it were graded so."""
    return _due([*past, review], until)


def new_a_day(states: dict[str, State], today: date, until: date | None) -> int | None:
    """How many new cards a day it takes to have seen all before `until`; None without one."""
    if until is None:
        return None
    left = sum(state.is_new for state in states.values())
    days = max(1, (until - today).days)
    return -(-left // days)


def _due(reviews: list[Review], until: date | None) -> datetime:
    import fsrs

    scheduler = fsrs.Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)
    card = fsrs.Card(card_id=0)
    for review in reviews:
        # A clock that was set back would make the interval negative.
        at = max(review.at, card.last_review) if card.last_review else review.at
        card, _ = scheduler.review_card(card, fsrs.Rating[review.rating.capitalize()], at)
    due = card.due
    if until is not None:
        day = until - timedelta(days=1)
        eve = datetime(day.year, day.month, day.day).astimezone()  # midnight where the reader is
        last = reviews[-1].at
        if last < eve < due:
            due = eve
    return due
