"""The log of reviews, and what is due.

Catches a review that is lost or merged with a torn line, at whatever byte the kill came; two
windows that overwrite each other; a line that cannot be read and is dropped, or ends the practice;
intervals that drift from FSRS; and an interview date before which not everything is seen.

The mutants: a log that appends blindly, a schedule without the cap, and a quota of one less.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picolab.interview import reviews as module
from picolab.interview.reviews import (
    Review,
    ReviewLog,
    default_path,
    new_a_day,
    next_due,
    states,
)

AT = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


def review(name="s-001", day=0.0, rating="good", **more) -> Review:
    return Review(name, AT + timedelta(days=day), rating, more.pop("score", 1.0), **more)


@pytest.fixture
def log(tmp_path):
    return ReviewLog(tmp_path / "picolab" / "reviews.jsonl")


def in_process(code: str, *words: str, **more) -> subprocess.Popen:
    start = """
    import sys
    from datetime import UTC, datetime
    from pathlib import Path
    from picolab.interview.reviews import Review, ReviewLog
    log = ReviewLog(Path(sys.argv[1]))
    def review(name, **more):
        return Review(name, datetime(2026, 11, 24, 9, tzinfo=UTC), "good", 1.0, **more)
    """
    code = textwrap.dedent(start) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code, *words], **more)


# --- a line ---------------------------------------------------------------------------------------


def test_lines_of_an_older_picolab_are_read():
    """The file is kept as version 0.1.0 wrote it: what a reader has practised is never lost."""
    log = ReviewLog(Path(__file__).parent / "old_records" / "reviews.jsonl")
    full, short = log.reviews()
    assert log.note() == ""
    assert full == Review(
        id="4d-001",
        at=datetime(2026, 3, 1, 9, 30, tzinfo=UTC),
        rating="good",
        score=0.75,
        confidence=3,
        seconds=41.5,
        ticks=(0, 2),
        flags=(1,),
        numbers=("2.1e9",),
        notes="forgot the 2; 带宽",
    )
    assert short == Review("4d-001", datetime(2026, 3, 3, 9, 30, tzinfo=UTC), "again", 0.0)
    assert states(["4d-001"], [full, short])["4d-001"].due > short.at


def test_a_review_there_and_back(log):
    full = review(
        rating="hard",
        score=0.6,
        confidence=3,
        seconds=312.5,
        ticks=(0, 2),
        flags=(1,),
        numbers=("17.9",),
        notes="rank 0 wartet; 流水线\nsecond line\u2028third",
    )
    log.append(full)
    log.append(review(day=1))
    assert log.reviews() == [full, review(day=1)] and log.note() == ""
    assert len(log.path.read_bytes().splitlines()) == 2


def test_no_file_is_no_reviews(log):
    assert log.reviews() == [] and not log.path.exists()


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path().name == "reviews.jsonl" and default_path().parent.name == "picolab"
    assert ReviewLog().path == default_path()


# --- torn and corrupted ---------------------------------------------------------------------------


class Blind(ReviewLog):
    """The mutant: appends without a look at what is there."""

    def append(self, review):
        with open(self.path, "ab") as file:
            file.write(review.line().encode() + b"\n")


def after_a_tear(kind, path, cut: int) -> list[str]:
    """Two reviews, the second torn so that `cut` bytes of it are left; then a third."""
    path.unlink(missing_ok=True)
    log = kind(path)
    log.append(review("s-001"))
    whole = path.read_bytes()
    torn = review("s-002", notes="流水线").line().encode() + b"\n"
    path.write_bytes(whole + torn[:cut])
    log.append(review("s-003"))
    assert path.read_bytes().startswith(whole + torn[:cut]), "what was there is left as it is"
    return [one.id for one in log.reviews()]


TORN = len(review("s-002", notes="流水线").line().encode())


def test_a_torn_last_line_at_every_byte(log):
    log.path.parent.mkdir()
    for cut in range(TORN + 2):
        complete = ["s-002"] if cut >= TORN else []
        assert after_a_tear(ReviewLog, log.path, cut) == ["s-001", *complete, "s-003"], cut


def test_blind_appending_loses_a_review(log):
    log.path.parent.mkdir()
    lost = [cut for cut in range(1, TORN + 1) if "s-003" not in after_a_tear(Blind, log.path, cut)]
    assert len(lost) == TORN


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no json",
        b"[1]",
        b"3",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"\x00" * 4096,
        b"[" * 100_000,
        b'{"v": 1}',
        b'{"id": "s-001", "at": 5, "rating": "good", "score": 1}',
        b'{"id": "s-001", "at": "2026-11-24T09:00:00", "rating": "good", "score": 1}',
        b'{"id": "s-001", "at": "9999-12-31T00:00:00+00:00", "rating": "good", "score": 1}',
        b'{"id": "s-001", "at": "2026-11-24T09:00:00+00:00", "rating": "perfect", "score": 1}',
        b'{"id": "s-001", "at": "2026-11-24T09:00:00+00:00", "rating": "good", "score": NaN}',
        b'{"id": "s-001", "at": "2026-11-24T09:00:00+00:00", "rating": "good", "score": "x"}',
        b'{"id": "s-001", "at": "2026-11-24T09:00:00+00:00", "rating": "good", "score": 1, '
        b'"confidence": "sure"}',
        b'{"id": "s-001", "at": "2026-11-24T09:00:00+00:00", "rating": "good", "score": 1, '
        b'"ticks": 3}',
    ],
)
def test_a_line_that_is_no_review_is_passed_over_and_kept(log, line):
    log.append(review("s-001"))
    with open(log.path, "ab") as file:
        file.write(line + b"\n")
    log.append(review("s-002", day=1))
    assert [one.id for one in log.reviews()] == ["s-001", "s-002"]
    assert log.unreadable == bool(line)
    assert ("1 line of " in log.note() and "left as they are" in log.note()) == bool(line)
    assert line in log.path.read_bytes()
    assert states(["s-001"], log.reviews())["s-001"].due == AT + timedelta(days=2)


def test_fields_of_a_later_version_are_no_hindrance(log):
    log.append(review())
    data = {**json.loads(log.path.read_text()), "v": 2, "mood": "calm"}
    log.path.write_text(json.dumps(data) + "\n")
    assert log.reviews() == [review()]


def test_an_hour_of_another_zone_is_read(log):
    """FSRS takes UTC alone; a log that was edited by hand may say it otherwise."""
    log.append(review())
    log.path.write_text(log.path.read_text().replace("09:00:00+00:00", "10:00:00+01:00"))
    assert log.reviews() == [review()]
    assert states(["s-001"], log.reviews())["s-001"].due == AT + timedelta(days=2)


# --- kills, two windows, a full disk --------------------------------------------------------------


def test_a_kill_while_writing(log):
    """SIGKILL at some moment of a loop that appends: nothing that was reported is lost."""
    log.path.parent.mkdir()
    for attempt in range(3):
        begun = len(log.reviews())
        child = in_process(
            """
            n = 0
            while True:
                log.append(review(f"s-{n % 1000:03d}", notes="x" * 20_000))
                print(n, flush=True)
                n += 1
            """,
            str(log.path),
            stdout=subprocess.PIPE,
            text=True,
        )
        reported = -1
        for line in child.stdout:
            reported = int(line)
            if reported >= 5 + attempt:
                break
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        reported = int(rest[-1]) if rest else reported
        found = log.reviews()
        assert len(found) - begun >= reported + 1
        assert [one.id for one in found[begun:]] == [
            f"s-{n:03d}" for n in range(len(found) - begun)
        ]
        log.append(review("t-001"))  # the lock of the dead is no hindrance
        assert log.reviews()[-1].id == "t-001"


def test_four_windows_at_once(log):
    children = [
        in_process(
            """
            for n in range(25):
                log.append(review(f"{sys.argv[2]}-{n:03d}", notes="y" * 5000))
            """,
            str(log.path),
            name,
        )
        for name in "abcd"
    ]
    assert [child.wait() for child in children] == [0] * 4
    found = log.reviews()
    assert log.unreadable == 0 and len(found) == 100
    for name in "abcd":
        own = [one.id for one in found if one.id.startswith(name)]
        assert own == [f"{name}-{n:03d}" for n in range(25)]


def test_a_lock_that_is_held(log, monkeypatch):
    log.path.parent.mkdir()
    monkeypatch.setattr(module, "LOCK_PATIENCE_S", 0.1)
    held = in_process(
        """
        import filelock
        with filelock.FileLock(log.path.with_suffix(".lock")):
            print("held", flush=True)
            sys.stdin.read()
        """,
        str(log.path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert held.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError, match=r"another practice window .* nothing is lost"):
            log.append(review())
        assert log.reviews() == []
    finally:
        held.communicate("")
    log.append(review())
    assert log.reviews() == [review()]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a file, as Linux does")
def test_a_disk_that_is_full_in_the_middle_of_a_line(log):
    """The limit leaves half a line on the disk; with room again, the next one is whole."""
    log.append(review("s-001"))
    child = in_process(
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = log.path.stat().st_size
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
        try:
            log.append(review("s-002"))
        except OSError:
            print("refused", log.path.stat().st_size - size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.append(review("s-003"))
        """,
        str(log.path),
        stdout=subprocess.PIPE,
        text=True,
    )
    told, _ = child.communicate()
    assert child.returncode == 0 and told == "refused 50\n"
    assert [one.id for one in log.reviews()] == ["s-001", "s-003"] and log.unreadable == 1


def test_it_is_on_the_disk_when_append_returns(log, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    log.append(review())
    assert synced == [log.path.stat().st_size]


# --- what is due ----------------------------------------------------------------------------------


def answered(ratings: str, until: date | None = None) -> list[int]:
    """Days from each review to the next, each answered on the day it is due."""
    names = {"a": "again", "h": "hard", "g": "good", "e": "easy"}
    past, days, at = [], [], AT
    for letter in ratings:
        past.append(Review("s-001", at, names[letter], 1.0))
        state = states(["s-001"], past, until)["s-001"]
        days.append(state.interval.days)
        at = state.due
    return days


@pytest.mark.parametrize(
    "ratings, days",
    [
        ("gggg", [2, 11, 46, 163]),
        ("aggg", [1, 2, 6, 17]),
        ("eeee", [8, 66, 397, 1875]),
        ("hhhh", [1, 3, 7, 12]),
        ("gga", [2, 11, 2]),
    ],
)
def test_the_intervals_of_fsrs(ratings, days):
    """As fsrs 6.3.2 gives them without learning steps and without fuzz."""
    assert answered(ratings) == days


def test_the_same_reviews_give_the_same_dates():
    """Mutant: with fuzz, what is shown before the grade is not what comes."""
    past = [review(day=0), review(day=2)]
    third = review(day=13)
    promised = {next_due(past, third) for _ in range(20)}
    assert promised == {states(["s-001"], [*past, third])["s-001"].due}


def test_the_order_of_the_file_does_not_matter_and_ids_that_are_gone_do_not():
    past = [review(day=2), review("s-999"), review(day=0)]
    found = states(["s-001", "s-002"], past)
    assert set(found) == {"s-001", "s-002"} and found["s-002"].is_new
    assert [one.at for one in found["s-001"].reviews] == [AT, AT + timedelta(days=2)]
    assert found["s-001"].due == AT + timedelta(days=13)


@given(st.lists(st.tuples(st.floats(0, 500), st.sampled_from(module.RATINGS)), max_size=8))
@settings(max_examples=50)
def test_whatever_was_answered_something_comes(answers):
    past = [review(day=day, rating=rating) for day, rating in answers]
    state = states(["s-001"], past)["s-001"]
    assert state.is_new == (not past)
    if past:
        assert state.due > max(one.at for one in past) - timedelta(seconds=1)
        assert state.interval >= timedelta(days=1)


# --- an interview on a day ------------------------------------------------------------------------


def test_what_would_come_after_the_interview_comes_the_day_before():
    until = date(2026, 12, 4)
    eve = datetime(2026, 12, 3, tzinfo=UTC)
    assert next_due([review(day=0)], review(day=2), until) == eve
    assert next_due([review(day=0)], review(day=2)) == AT + timedelta(days=13)
    assert next_due([], review(day=0), until) == AT + timedelta(days=2), "that is soon enough"


def practise_until(until: date, cards: int, short_by: int = 0, capped: bool = True):
    """Each day the quota of new ones, and what is due; what the cards are like in the end."""
    names = [f"s-{n:03d}" for n in range(cards)]
    cap = until if capped else None
    past: list[Review] = []
    today = AT
    while today.date() < until:
        found = states(names, past, cap)
        due = [name for name in names if found[name].due and found[name].due <= today]
        new = [name for name in names if found[name].is_new]
        quota = new_a_day(found, today.date(), until) - short_by
        for n, name in enumerate([*due, *new[: max(0, quota)]]):
            past.append(Review(name, today, ("good", "again", "easy", "hard")[n % 4], 1.0))
        today += timedelta(days=1)
    return states(names, past, cap)


@pytest.mark.parametrize("days, cards", [(1, 36), (3, 36), (10, 36), (30, 36), (50, 36), (7, 1)])
def test_the_quota_of_each_day_shows_everything_before_the_interview(days, cards):
    until = AT.date() + timedelta(days=days)
    found = practise_until(until, cards)
    assert not any(state.is_new for state in found.values())
    for state in found.values():
        # What comes later was answered on the last day, as everything else by then.
        last = state.reviews[-1].at.date()
        assert state.due.date() < until or last == until - timedelta(days=1), state


def test_without_the_cap_something_is_due_too_late():
    until = AT.date() + timedelta(days=30)
    found = practise_until(until, 36, capped=False)
    eve = until - timedelta(days=1)
    assert any(s.due.date() >= until and s.reviews[-1].at.date() < eve for s in found.values())


def test_with_one_less_a_day_something_is_never_seen():
    until = AT.date() + timedelta(days=30)
    assert any(state.is_new for state in practise_until(until, 36, short_by=1).values())


def test_the_quota():
    found = states([f"s-{n:03d}" for n in range(10)], [])
    assert new_a_day(found, date(2026, 11, 24), None) is None
    for days, quota in ((1, 10), (3, 4), (10, 1), (100, 1), (0, 10)):
        assert new_a_day(found, AT.date(), AT.date() + timedelta(days=days)) == quota
    seen = states([f"s-{n:03d}" for n in range(2)], [review("s-000"), review("s-001")])
    assert new_a_day(seen, AT.date(), AT.date() + timedelta(days=3)) == 0
