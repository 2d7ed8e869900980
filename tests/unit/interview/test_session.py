"""A practice session without a face: what is drawn, what counts, and what is written.

Catches new cards before due ones, a chain that is asked out of order or in a row, one area or level
that is asked all the time, a confidence that is given after the answer was seen, a second try that
hides the first, a grade that counts although it could not be written, and a session that does not
replay.

The mutants: a draw that takes the bank's order, and one that does not look at chains.
"""

import os
import random
import time
from datetime import UTC, date, datetime, timedelta

import pytest

from picolab.interview.reviews import Review, ReviewLog, local_day
from picolab.interview.session import Session, day

AT = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


class Clock:
    """Goes on only when it is told to."""

    def __init__(self):
        self.now = AT

    def __call__(self):
        return self.now

    def wait(self, seconds: float):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(tmp_path):
    return ReviewLog(tmp_path / "reviews.jsonl")


@pytest.fixture
def bank(bank_files, make):
    """Eight questions of eight areas and four levels; 2, 4 and 6 are a chain."""
    chain = {2: 1, 4: 2, 6: 3}
    return bank_files(
        *(
            make.question(n, chain={"name": "deeper", "step": chain[n]} if n in chain else None)
            for n in range(1, 9)
        )
    ).bank()


@pytest.fixture
def start(bank, log, clock):
    def session(face=Session, seed=0, **more):
        more.setdefault("bank", bank)
        return face(log=log, clock=clock, rng=random.Random(seed), **more)

    return session


def graded(session, clock, rating="good", take: int | None = None) -> list[str]:
    """Draw and grade to the end, or `take` times; the ids in their order."""
    drawn = []
    while (take is None or len(drawn) < take) and (question := session.draw()) is not None:
        drawn.append(question.id)
        clock.wait(60)
        session.reveal()
        session.grade(rating)
    return drawn


def reviewed(log, name: str, days_ago: float, rating="good"):
    log.append(Review(name, AT - timedelta(days=days_ago), rating, 1.0))


# --- one question ---------------------------------------------------------------------------------


def test_the_way_of_one_question(start, clock, log):
    session = start()
    question = session.draw()
    assert session.phase == "thinking" and question is session.question
    session.set_confidence(3)
    clock.wait(240)
    assert session.seconds() == 240 and session.time_left() == 60
    session.said()
    verdict = session.answer_number(0, "17.9 %")
    assert verdict.right
    assert session.reveal() is question and session.phase == "revealed"
    clock.wait(500)
    assert session.seconds() == 240, "reading the answer is not thinking"
    session.notes = "the ramps"
    proposal = session.propose([0, 1, 2])
    assert (proposal.score, proposal.rating) == (0.8, "good")
    review = session.grade("good", ticks=[2, 0, 1], flags=[0])
    assert session.phase == "idle" and log.reviews() == [review]
    assert review == Review(
        question.id,
        clock(),
        "good",
        0.8,
        confidence=3,
        seconds=240,
        ticks=(0, 1, 2),
        flags=(0,),
        numbers=(str(verdict.value),),
        notes="the ramps",
    )


def test_longer_than_planned_is_no_end(start, clock):
    session = start()
    session.draw()
    clock.wait(3600)
    assert session.time_left() == 300 - 3600
    assert session.reveal()


def test_the_first_answer_counts(start):
    """Mutant: a second try that replaces the first would hide that the number was wrong."""
    session = start()
    session.draw()
    session.said()
    wrong = session.answer_number(0, "21.9 %")
    assert not wrong.right and wrong.reason == "This is the share of the ideal time."
    assert session.answer_number(0, "17.9 %").right
    assert session.verdicts == {0: wrong}
    session.reveal()
    assert session.propose(range(4)).rating == "hard"


def test_what_is_no_number_does_not_count(start):
    session = start()
    session.draw()
    session.said()
    with pytest.raises(ValueError, match="is a time"):
        session.answer_number(0, "17 s")
    assert session.verdicts == {}
    with pytest.raises(ValueError, match=r"asks for 1 number\(s\)"):
        session.answer_number(1, "17 %")


def test_the_dates_that_are_shown_are_those_that_come(start, clock, log, bank):
    reviewed(log, "s-001", 3)
    session = start(until=date(2026, 12, 3))
    assert session.draw().id == "s-001"
    session.reveal()
    shown = {rating: session.would_come(rating) for rating in ("again", "hard", "good", "easy")}
    assert list(shown.values()) == sorted(shown.values())
    assert shown["easy"] == date(2026, 12, 2), "the day before the interview"
    session.grade("hard")
    assert local_day(session.states()["s-001"].due) == shown["hard"]


def test_skipping_writes_nothing(start, log, clock):
    session = start(count=20)
    first = session.draw().id
    session.skip()
    assert log.reviews() == []
    assert first not in graded(session, clock)
    with pytest.raises(RuntimeError, match="the session is over"):
        session.skip()


def test_notes_in_halves_of_characters_are_no_hindrance(start, log):
    """What a terminal that is not UTF-8 hands over cannot be written as it is."""
    session = start()
    session.draw()
    session.notes = b"stra\xdfe".decode("utf-8", "surrogateescape")
    session.reveal()
    session.grade("good")
    assert log.reviews()[0].notes == "stra?e" == session.reviews[0].notes


# --- out of order ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "phase, call, says",
    [
        ("idle", lambda s: s.reveal(), "not now: draw a question first"),
        ("idle", lambda s: s.grade("good"), "draw a question first"),
        ("idle", lambda s: s.skip(), "draw a question first"),
        ("idle", lambda s: s.set_confidence(1), "draw a question first"),
        ("thinking", lambda s: s.draw(), "say your answer, or reveal it, first"),
        ("thinking", lambda s: s.deepen(), "say your answer, or reveal it, first"),
        ("thinking", lambda s: s.grade("good"), "say your answer, or reveal it, first"),
        ("thinking", lambda s: s.propose([0]), "say your answer, or reveal it, first"),
        ("thinking", lambda s: s.answer_number(0, "17.9"), "say your answer"),
        ("numbers", lambda s: s.set_confidence(4), "reveal the answer first"),
        ("numbers", lambda s: s.grade("good"), "reveal the answer first"),
        ("revealed", lambda s: s.draw(), "grade or skip this question first"),
        ("revealed", lambda s: s.set_confidence(4), "grade or skip"),
        ("revealed", lambda s: s.answer_number(0, "17.9"), "grade or skip"),
    ],
)
def test_what_comes_first_is_told(start, phase, call, says):
    session = start()
    if phase != "idle":
        session.draw()
    if phase == "numbers":
        session.said()
    if phase == "revealed":
        session.reveal()
    with pytest.raises(RuntimeError, match=says):
        call(session)
    assert session.phase == phase


@pytest.mark.parametrize(
    "more, says",
    [
        ({"topic": "moe"}, "no topic 'moe'"),
        ({"level": 7}, r"no question has level 7; there are \[3, 4, 5, 6\]"),
        ({"count": 0}, "at least one question, not 0"),
        ({"within": 0}, "at least one minute, not 0"),
        ({"area": "moe"}, "no area 'moe'; there is pipeline, collectives"),
        ({"kind": "essay"}, "no kind 'essay'; there is explain, numeric"),
        ({"kind": "code", "level": 3}, "of this level, area and kind at once"),
        ({"language": "de"}, "no language 'de'"),
        ({"until": date(2026, 11, 24)}, "2026-11-24 is not in the future"),
    ],
)
def test_a_session_that_cannot_be(start, more, says):
    with pytest.raises(ValueError, match=says):
        start(**more)


def test_confidence_and_grades_that_are_none(start):
    session = start()
    session.draw()
    with pytest.raises(ValueError, match="confidence is one of 1 no idea, 2 unsure"):
        session.set_confidence(5)
    session.reveal()
    with pytest.raises(ValueError, match="a grade is again, hard, good or easy, not 'perfect'"):
        session.grade("perfect")
    with pytest.raises(ValueError, match="no point 9"):
        session.grade("good", ticks=[8])
    assert session.phase == "revealed"


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_question_to_be_graded_again(start, tmp_path, clock):
    """/dev/full takes no byte. With room again, the same grade is written, once."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    session = start()
    session.log.path.symlink_to("/dev/full")
    question = session.draw()
    session.reveal()
    with pytest.raises(OSError):
        session.grade("good")
    assert session.phase == "revealed" and session.question is question
    assert session.reviews == [] and session.states()[question.id].is_new
    session.log.path.unlink()
    review = session.grade("good")
    assert session.phase == "idle" and session.log.reviews() == [review]


# --- which question -------------------------------------------------------------------------------


class InOrder(Session):
    """The mutant: takes the bank's order."""

    def _candidates(self, whole):
        return list(self._questions)


class Unchained(Session):
    """The mutant: does not look at chains."""

    def _in_chain(self, question_id, chain):
        return False

    def _chain_ready(self, question_id, found):
        return True


def due_first(session) -> bool:
    return [session.draw().id] == ["s-007"]


def test_due_ones_first_and_the_most_overdue_before_the_others(start, log, clock):
    reviewed(log, "s-005", 3)
    reviewed(log, "s-007", 30)
    reviewed(log, "s-008", 1)  # not due yet
    session = start(count=20)
    assert session.due() == ["s-007", "s-005"]
    drawn = graded(session, clock)
    assert drawn[:2] == ["s-007", "s-005"]
    assert set(drawn) == {f"s-{n:03d}" for n in range(1, 8)}, "and s-008 is neither due nor new"
    assert not due_first(start(InOrder))


def test_due_only(start, log, clock):
    reviewed(log, "s-005", 3)
    assert graded(start(due_only=True, count=20), clock) == ["s-005"]
    assert start(due_only=True).draw() is None


def test_the_count_is_the_end(start, clock):
    session = start(count=3)
    assert len(graded(session, clock)) == 3 and session.phase == "finished"
    assert session.draw() is None


def chain_order(session, clock) -> tuple[bool, bool]:
    """Of 2, 4, 6: each after the one before it; no two in a row while there are others."""
    drawn = graded(session, clock)
    places = [drawn.index(f"s-00{n}") for n in (2, 4, 6)]
    others_left = [any(one not in ("s-002", "s-004", "s-006") for one in drawn[p:]) for p in places]
    in_a_row = any(b - a == 1 and left for a, b, left in zip(places, places[1:], others_left[1:]))
    return places == sorted(places), in_a_row


def test_a_chain_is_asked_in_order_and_not_in_a_row(start, clock, tmp_path, bank):
    wrong = 0
    for seed in range(30):
        log = ReviewLog(tmp_path / f"{seed}.jsonl")
        session = Session(bank, log, count=8, clock=clock, rng=random.Random(seed))
        assert chain_order(session, clock) == (True, False), seed
        log = ReviewLog(tmp_path / f"unchained-{seed}.jsonl")
        session = Unchained(bank, log, count=8, clock=clock, rng=random.Random(seed))
        wrong += chain_order(session, clock) != (True, False)
    assert wrong > 10


def test_due_ones_of_a_chain_are_kept_apart_by_new_ones(start, log, clock):
    reviewed(log, "s-002", 30)
    reviewed(log, "s-004", 20)
    drawn = graded(start(count=3), clock)
    assert drawn[0] == "s-002" and drawn[1] not in ("s-004", "s-006") and drawn[2] == "s-004"
    assert graded(start(count=1, due_only=True), clock) == []


def test_where_only_the_chain_is_left_it_is_asked(start, log, clock):
    reviewed(log, "s-002", 30)
    reviewed(log, "s-004", 20)
    assert graded(start(count=3, due_only=True), clock) == ["s-002", "s-004"]


def test_deepen_asks_the_next_of_the_chain_at_once(start, log, clock):
    reviewed(log, "s-002", 30)
    session = start(count=20)
    assert session.deepen() is None, "nothing was asked yet"
    assert graded(session, clock, take=1) == ["s-002"]
    for name in ("s-004", "s-006"):
        assert session.deeper() == name and session.phase == "idle"
        assert session.deepen().id == name
        session.reveal()
        session.grade("good")
    assert session.deepen() is None and session.deeper() is None
    assert set(graded(session, clock)) == {f"s-00{n}" for n in (1, 3, 5, 7, 8)}


def test_deepen_asks_nothing_twice_and_not_in_an_interview(start, log, clock):
    for name, days in (("s-002", 10), ("s-004", 30)):
        reviewed(log, name, days)
    session = start(due_only=True)
    assert graded(session, clock) == ["s-004", "s-002"]
    assert session.deeper() == "s-006", "s-004 was asked in this session"
    planned = start(plan=["s-002", "s-001"])
    assert graded(planned, clock, take=1) == ["s-002"] and planned.deepen() is None


def test_new_ones_come_by_level_then_minutes_then_area(bank_files, make, tmp_path, clock):
    """A newcomer meets no 20-minute design first; of equal ones the areas take turns."""
    bank = bank_files(
        make.plain(1, area="tensor", level=6, minutes=20),
        make.plain(2, area="tensor", level=3, minutes=8),
        make.plain(3, area="tensor", level=3, minutes=4),
        make.plain(4, area="tensor", level=3, minutes=4),
        make.plain(5, area="data", level=3, minutes=4),
        make.plain(6, area="data", level=4, minutes=2),
    ).bank()
    for seed in range(10):
        log = ReviewLog(tmp_path / f"{seed}.jsonl")
        drawn = graded(Session(bank, log, count=6, clock=clock, rng=random.Random(seed)), clock)
        assert drawn[3:] == ["s-002", "s-006", "s-001"], seed
        assert {bank.find(name).area for name in drawn[:2]} == {"tensor", "data"}, seed
    log = ReviewLog(tmp_path / "order.jsonl")
    mutant = graded(InOrder(bank, log, count=6, clock=clock, rng=random.Random(0)), clock)
    assert mutant[0] == "s-001"


def test_inside_a_stratum_it_is_by_chance(bank_files, make, tmp_path, clock):
    bank = bank_files(*(make.plain(n, area="tensor", level=4) for n in range(1, 7))).bank()
    first = {
        Session(bank, ReviewLog(tmp_path / "x"), clock=clock, rng=random.Random(seed)).draw().id
        for seed in range(40)
    }
    assert len(first) == 6


def test_the_same_clock_and_seed_replay_the_session(bank, tmp_path):
    def played(seed):
        clock, log = Clock(), ReviewLog(tmp_path / f"{random.random()}.jsonl")
        session = Session(bank, log, count=20, clock=clock, rng=random.Random(seed))
        graded(session, clock)
        return log.path.read_text()

    assert played(1) == played(1) == played(1)
    assert len({played(seed) for seed in range(6)}) > 1


def test_a_level_alone(start, clock, bank):
    drawn = graded(start(level=4, count=20), clock)
    assert [bank.find(name).level for name in drawn] == [4, 4]


def test_a_plan_is_followed(start, log, clock):
    reviewed(log, "s-001", 30)
    plan = ["s-006", "s-003", "s-001"]
    assert graded(start(plan=plan, count=20), clock) == plan
    session = start(plan=plan, count=20)
    session.draw()
    session.skip()
    assert graded(session, clock) == ["s-003", "s-001"]


def test_what_was_graded_in_another_window_is_no_hindrance(start, log, clock):
    session = start()
    reviewed(log, "s-001", 0)
    assert session.draw() is not None


def test_the_language(start):
    assert "流水线" in start(language="zh").draw().question


def test_the_quota_of_a_session(start):
    assert start().quota() is None
    assert start(until=date(2026, 11, 28)).quota() == 2


def test_everything_is_seen_before_the_interview(bank, tmp_path):
    """Through sessions, as somebody practises: each day what is due, and the quota."""
    clock, log = Clock(), ReviewLog(tmp_path / "reviews.jsonl")
    until = date(2026, 11, 28)
    while clock().date() < until:
        session = Session(bank, log, until=until, count=1, clock=clock, rng=random.Random(0))
        session.count = len(session.due()) + session.quota() or 1
        graded(session, clock)
        clock.now = (clock.now + timedelta(days=1)).replace(hour=9, minute=0)
    assert {one.id for one in log.reviews()} == {f"s-{n:03d}" for n in range(1, 9)}


def test_how_many_are_left(start, log, clock):
    reviewed(log, "s-001", 30)
    assert start(due_only=True).left() == 1 and start(count=3).left() == 3
    session = start(count=20)
    assert session.left() == 8
    session.draw()
    assert session.left() == 7, "beside the one that is open"
    session.skip()
    assert session.left() == 7
    graded(session, clock, take=2)
    assert session.left() == 5
    planned = start(plan=["s-001", "s-002", "s-003"])
    planned.draw()
    assert planned.left() == 2


def test_the_day_of_an_interview():
    assert day("2027-03-01") == day(date(2027, 3, 1)) == date(2027, 3, 1) and day(None) is None
    for text in ("tomorrow", "2027-13-01", "01.03.2027", ""):
        with pytest.raises(ValueError, match="is no date; write it as 2027-03-01"):
            day(text)


# --- twenty minutes, a kind, a weakness, a step back ----------------------------------------------


def test_a_session_takes_its_minutes(start, clock, log):
    """Five minutes each: four in twenty, two in ten; one longer than all is asked alone."""
    assert len(graded(start(), clock)) == 4
    assert len(graded(start(within=10), clock)) == 2
    assert len(graded(start(within=1), clock)) == 1


def test_an_area_and_a_kind(bank_files, make, log, clock):
    bank = bank_files(
        make.plain(1, area="tensor", kind="explain"),
        make.plain(2, area="data", kind="explain"),
        make.plain(3, area="data"),
    ).bank()

    def asked(**choice):
        return set(graded(Session(bank, log, clock=clock, plan=None, **choice), clock))

    assert asked(area="data", kind="explain") == {"s-002"}
    assert asked(area="tensor") == {"s-001"}


def test_what_is_weak_the_worst_first(start, log, clock):
    for name, rating, score in (("s-001", "hard", 0.6), ("s-002", "again", 0.1)):
        log.append(Review(name, AT - timedelta(minutes=5), rating, score))
    reviewed(log, "s-003", 1)
    assert graded(start(weak=True), clock) == ["s-002", "s-001"]
    assert start(weak=True).draw() is None, "both were graded good since"


def test_a_step_back_withdraws_the_grade(start, log, clock):
    session = start()
    first = session.draw()
    session.notes = "kept"
    session.reveal()
    session.grade("easy")
    session.draw()
    assert session.back() is first and session.phase == "revealed" and session.notes == "kept"
    assert log.reviews() == [] and session.reviews == []
    review = session.grade("hard", ticks=[0])
    assert log.reviews() == [review] and log.unreadable == 0
    assert len(log.path.read_text().splitlines()) == 3, "nothing is deleted"
    with pytest.raises(RuntimeError, match="grade or skip"):
        session.draw()
        session.reveal()
        session.back()
    with pytest.raises(ValueError, match="nothing to go back to"):
        start().back()


def test_looks_and_their_order(bank_files, make, log, clock):
    steps = [{"look": f"look {n}", "because": "one slow rank holds all up"} for n in range(5)]
    steps[4]["late"] = True
    bank = bank_files(make.plain(1, kind="diagnose", steps=steps)).bank()
    session = Session(bank, log, clock=clock)
    session.draw()
    for index in (1, 0, 2, 1):
        assert session.look(index).look == f"look {index}"
    assert session.looks == [1, 0, 2] and session.in_order() == (2, 3)
    with pytest.raises(ValueError, match="offers no look 5"):
        session.look(4)


def test_hints_come_one_by_one(bank_files, make, log, clock):
    bank = bank_files(make.plain(1, hints=["one", "two"])).bank()
    session = Session(bank, log, clock=clock)
    session.draw()
    assert [session.hint() for _ in range(3)] == ["one", "two", None]


# --- local days -----------------------------------------------------------------------------------


@pytest.fixture
def los_angeles(monkeypatch):
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def check_the_evening(bank, log, kind=Session):
    """Graded at night, due two days later from the morning on; tomorrow is a day to come."""
    clock = Clock()
    clock.now = datetime(2026, 11, 25, 7, 30, tzinfo=UTC)  # 23:30 on the 24th
    session = kind(bank, log, clock=clock, count=1, until=date(2026, 11, 25))
    session.draw()
    session.reveal()
    assert session.would_come("good") == date(2026, 11, 26) or session.until
    session.grade("good")
    clock.now = datetime(2026, 11, 26, 17, 0, tzinfo=UTC)  # 9:00 on the 26th
    return kind(bank, log, clock=clock).due()


def test_due_cards_go_by_local_days(bank, log, los_angeles):
    assert len(check_the_evening(bank, log)) == 1


def test_due_cards_by_utc_seconds_are_noticed(bank, log, los_angeles):
    class Seconds(Session):
        def due(self):
            at = self._clock()
            return [s.id for s in self.states().values() if s.due is not None and s.due <= at]

    assert check_the_evening(bank, log, Seconds) == [], "the mutant would say: nothing is due"


def test_until_is_remembered_and_forgotten(log):
    assert log.until() is None
    log.remember_until(date(2027, 3, 1))
    assert ReviewLog(log.path).until() == date(2027, 3, 1)
    log.remember_until(None)
    assert log.until() is None
