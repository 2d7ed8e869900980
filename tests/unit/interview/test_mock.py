"""A mock interview: what is asked in its minutes, over the real banks too, and what is reported.

Catches a part that is promised and missing, more minutes than there are, a number that is a design
question, follow-ups that were not counted, the same questions as last time while there are others,
what was skipped told as not asked, and a report whose numbers are not those of the reviews.
"""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from picolab.interview import bank as banks
from picolab.interview import mock
from picolab.interview.mock import FOLLOW_UPS, ORDER, PARTS, Part, plan, promised, report
from picolab.interview.reviews import Review

AT = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
STEPS = [{"look": "compare the ranks", "because": "one slow rank holds all up"}] * 4


@pytest.fixture
def bank(bank_files, make):
    """Enough for two interviews: 1-2 warm up, 3-7 are designs, 8-9 numbers, 10-11 diagnoses, 12-13
    code."""
    return bank_files(
        make.plain(1, kind="explain", level=3, minutes=2),
        make.plain(2, kind="explain", level=3, minutes=2),
        *(make.plain(n, level=5, minutes=10) for n in range(3, 8)),
        make.question(8, level=5, minutes=8),
        make.question(9, level=6, minutes=8),
        make.plain(10, kind="diagnose", steps=STEPS, level=6, minutes=10),
        make.plain(11, kind="diagnose", steps=STEPS, level=6, minutes=10),
        make.plain(12, kind="code", exercise="4d.ring.all-reduce", level=5, minutes=15),
        make.plain(13, kind="code", exercise="4d.ring.all-reduce", level=5, minutes=15),
    ).bank()


def check(bank, parts, minutes) -> None:
    """Each part is what the module promises of it, and there is time for all of it."""
    questions = {part.question: bank.find(part.question) for part in parts}
    names = [part.name for part in parts]
    assert len(questions) == len(parts), "asked twice"
    assert set(promised(minutes)) <= set(names), "promised and missing"
    assert sum(part.minutes(bank) for part in parts) <= minutes
    for name, question_id, follow_ups in parts:
        question = questions[question_id]
        assert follow_ups == (
            0 if name in ("warm-up", "code") else min(FOLLOW_UPS, len(question.followups))
        )
        if name == "warm-up":
            assert question.minutes <= 3
        elif name == "deep":
            assert question.level >= 5 and question.kind in ("design", "explain")
        elif name == "numeric":
            assert question.kind == "numeric" and question.minutes > 3
        else:
            assert question.kind == {"code": "code", "diagnosis": "diagnose"}[name]


def simulated(planned: Callable, minutes: int, interviews: int = 60) -> None:
    """So many interviews over the real banks."""
    real = banks.load()
    drawn = set()
    for seed in range(interviews):
        parts = planned(real, random.Random(seed), minutes=minutes)
        check(real, parts, minutes)
        drawn |= {part.question for part in parts}
    assert len(drawn) >= (12 if minutes == 10 else 20), "and chance reaches many"


@pytest.mark.parametrize("minutes", [10, 20, 30, 45, 60])
@pytest.mark.parametrize("interviews", [60, pytest.param(300, marks=pytest.mark.weekly)])
def test_interviews_over_the_real_banks(minutes, interviews):
    simulated(plan, minutes, interviews)


def test_a_plan_without_minutes_is_noticed():
    """The mutant: as it was, part after part as long as one fits, so that the last is left out."""

    def greedy(bank, rng, minutes):
        parts, left = [], minutes
        for name in ("warm-up", "deep", "deep", "numeric", "code", "diagnosis"):
            gone = {part.question for part in parts}
            fits = [q for q in bank.questions() if mock._fits(name, q) and q.id not in gone]
            fits = [q for q in fits if mock._cost(name, q) <= left]
            if fits:
                question = rng.choice(fits)
                parts.append(mock._part(name, question))
                left -= mock._cost(name, question)
        return parts

    with pytest.raises(AssertionError, match="promised and missing"):
        simulated(greedy, 45)


def test_follow_ups_that_are_not_counted_are_noticed(monkeypatch):
    monkeypatch.setattr(mock, "_cost", lambda name, question: question.minutes)
    with pytest.raises(AssertionError):
        simulated(plan, 30)
        simulated(plan, 45)
        simulated(plan, 60)


@pytest.mark.parametrize("wrong", [("warm-up", "s-005"), ("deep", "s-001"), ("numeric", "s-003")])
def test_a_part_of_the_wrong_kind_would_be_noticed(bank, wrong, monkeypatch):
    monkeypatch.setattr(mock, "PARTS", ())
    with pytest.raises(AssertionError):
        check(bank, [Part(*wrong, 0 if wrong[0] == "warm-up" else 1)], 45)


def test_four_parts_in_forty_five_minutes(bank):
    drawn = set()
    for seed in range(40):
        parts = plan(bank, random.Random(seed))
        check(bank, parts, 45)
        places = [ORDER.index(part.name) for part in parts]
        assert places == sorted(places) or [p.name for p in parts].count("deep") > 1
        drawn |= {part.question for part in parts}
    assert {"s-001", "s-002", "s-008", "s-009", "s-010", "s-011", "s-012", "s-013"} <= drawn


def test_the_same_seed_draws_the_same(bank):
    assert plan(bank, random.Random(3)) == plan(bank, random.Random(3))


def test_not_those_of_last_time(bank):
    for seed in range(20):
        first = plan(bank, random.Random(seed))
        asked = {part.question for part in first}
        second = plan(bank, random.Random(seed + 100), avoid=asked)
        again = asked & {part.question for part in second}
        assert not again
        everything = {q.id for q in bank.questions()}
        assert len(plan(bank, random.Random(seed), avoid=everything)) >= 4, "better than none"


def test_more_minutes_promise_more():
    assert [promised(m) for m in (10, 25, 45, 60)] == [
        ["warm-up", "numeric"],
        ["warm-up", "numeric", "diagnosis"],
        ["warm-up", "numeric", "diagnosis", "code"],
        [name for _, name in PARTS],
    ]


def test_interviews_that_cannot_be(bank, bank_files, make):
    with pytest.raises(ValueError, match="ten minutes at least, not 9"):
        plan(bank, random.Random(0), minutes=9)
    with pytest.raises(ValueError, match="no topic 'moe'"):
        plan(bank, random.Random(0), topic="moe")
    one = bank_files(make.plain(1, level=3)).bank()
    with pytest.raises(ValueError, match="no question for the part 'warm-up'"):
        plan(one, random.Random(0))
    long = bank_files(make.plain(1, level=3, minutes=2), make.question(2, minutes=20)).bank()
    with pytest.raises(ValueError, match="do not fit into 10 minutes; take more"):
        plan(long, random.Random(0), minutes=10)


PLAN = [
    *(Part("warm-up", "s-001", 0), Part("deep", "s-003", 1), Part("numeric", "s-008", 1)),
    Part("code", "s-012", 0),
]
REVIEWS = [
    Review("s-001", AT, "good", 0.8, 4, 240, ticks=(0, 1, 2), notes="two ramps\nand one more"),
    Review("s-008", AT, "again", 0.2, 1, 610, ticks=(3,), flags=(0,)),
]
GIVEN = dict(skipped=["s-003"], followed={"s-008": [True]})


def test_the_report(bank):
    told = report(bank, PLAN, REVIEWS, AT, AT + timedelta(minutes=31), **GIVEN)
    lines = told.splitlines()
    assert lines[0].startswith("# Mock interview, 2026-11-2")
    assert lines[2] == "2 of 4 questions, 31 minutes, 50% of the points."
    assert "| warm-up | Why pipelines idle | 3 | 4 (2) | 80% | good | sure |  |" in lines
    title = "Choose tensor parallelism across nodes"
    assert f"| number | {title} | 5 | 10 (8) | 20% | again | no idea | 1/1 |" in lines
    assert "| design | A slow step after a restart | 5 |  |  | skipped |  |  |" in lines
    assert any(line.startswith("| code |") and "| not asked |" in line for line in lines)
    assert [line for line in lines if line.startswith("* ") and "%" in line] == [
        "* pipeline: 80%",
        "* sequence: 20%",
    ]
    assert lines.count("* [x] 4: says that a stage idles twice in a step (must)") == 1
    assert lines.count("* [ ] 4: says that a stage idles twice in a step (must)") == 1
    assert "* red flag: says that the schedule does not matter for the bubble at all" in lines
    assert "* [x] Follow-up: What would interleaving the stages change here?" in lines
    assert "> two ramps" in lines and "> and one more" in lines
    assert told.count("Read: `notebooks/01_small.ipynb#pp-gantt`") == 2
    assert "## design" not in told and told.endswith("`\n")


def test_the_table_is_a_table(bank):
    """Every row has as many cells as its head."""
    rows = [line for line in report(bank, PLAN, REVIEWS, AT, AT).splitlines() if line[:1] == "|"]
    assert len(rows) == 6 and {row.count("|") for row in rows} == {9}


def test_a_report_of_nothing_and_in_chinese(bank):
    assert "0 of 4 questions, 0 minutes, 0% of the points." in report(bank, PLAN, [], AT, AT)
    told = report(bank, PLAN, REVIEWS, AT, AT, language="zh", **GIVEN)
    assert "流水线" in told and "已跳过" in told and "危险信号" in told
    for english in ("Mock", "skipped", "good", "By area", "Read", "must", "sure", "part"):
        assert english not in told
