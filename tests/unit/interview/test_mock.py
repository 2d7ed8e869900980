"""A mock interview: what is asked in forty-five minutes, and what the report says.

Catches a part of the wrong kind, a question that is asked twice, more minutes than there are, the
same questions as last time while there are others, and a report whose numbers are not those of the
reviews.
"""

import random
from datetime import UTC, datetime, timedelta

import pytest

from picolab.interview.mock import MINUTES, PARTS, plan, report
from picolab.interview.reviews import Review

AT = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
STEPS = [{"look": "compare the ranks", "because": "one slow rank holds all up"}] * 4


@pytest.fixture
def bank(bank_files, make):
    """Enough for two interviews: 1-2 warm up, 3-7 go deep, 8-9 are numbers, 10-11 diagnoses."""
    return bank_files(
        make.plain(1, kind="explain", level=3, minutes=5),
        make.plain(2, kind="explain", level=3, minutes=5),
        *(make.plain(n, level=5, minutes=10) for n in range(3, 8)),
        make.question(8, level=5, minutes=8),
        make.question(9, level=6, minutes=8),
        make.plain(10, kind="diagnose", steps=STEPS, level=6, minutes=10),
        make.plain(11, kind="diagnose", steps=STEPS, level=6, minutes=10),
    ).bank()


def kinds(bank, parts) -> None:
    """Each part is what the module promises of it."""
    questions = {name: bank.find(name) for _, name in parts}
    assert len(questions) == len(parts), "asked twice"
    for part, name in parts:
        question = questions[name]
        if part == "warm-up":
            assert question.level <= 4
        elif part == "deep":
            assert question.level >= 5 and question.kind in ("design", "explain")
        elif part == "numeric":
            assert question.numeric and question.level >= 4
        else:
            assert part == "diagnosis" and question.kind == "diagnose"


def test_five_parts_in_forty_five_minutes(bank):
    drawn = set()
    for seed in range(40):
        parts = plan(bank, random.Random(seed))
        assert tuple(part for part, _ in parts) == PARTS
        kinds(bank, parts)
        assert sum(bank.find(name).minutes for _, name in parts) <= MINUTES
        deep = [bank.find(name).area for part, name in parts if part == "deep"]
        assert len(set(deep)) == 2, "of different areas"
        drawn |= {name for _, name in parts}
    assert len(drawn) == 11, "and chance reaches all of them"


@pytest.mark.parametrize("wrong", [("warm-up", "s-005"), ("deep", "s-001"), ("numeric", "s-003")])
def test_a_part_of_the_wrong_kind_would_be_noticed(bank, wrong):
    with pytest.raises(AssertionError):
        kinds(bank, [wrong])


def test_the_same_seed_draws_the_same(bank):
    assert plan(bank, random.Random(3)) == plan(bank, random.Random(3))


def test_not_those_of_last_time(bank):
    for seed in range(20):
        first = plan(bank, random.Random(seed))
        asked = {name for _, name in first}
        second = plan(bank, random.Random(seed + 100), avoid=asked)
        assert not asked & {name for _, name in second}
        everything = {q.id for q in bank.questions()}
        assert len(plan(bank, random.Random(seed), avoid=everything)) == 5, "better than none"


def test_fewer_minutes_ask_less(bank):
    for minutes in (15, 20, 30, 45, 90):
        parts = plan(bank, random.Random(0), minutes=minutes)
        kinds(bank, parts)
        assert sum(bank.find(name).minutes for _, name in parts) <= minutes
    assert len(plan(bank, random.Random(0), minutes=15)) == 2


def test_interviews_that_cannot_be(bank, bank_files, make):
    with pytest.raises(ValueError, match="ten minutes at least, not 9"):
        plan(bank, random.Random(0), minutes=9)
    with pytest.raises(ValueError, match="no topic 'moe'"):
        plan(bank, random.Random(0), topic="moe")
    one = bank_files(make.plain(1, level=3)).bank()
    with pytest.raises(ValueError, match="too few questions for an interview"):
        plan(one, random.Random(0))


PLAN = [("warm-up", "s-001"), ("deep", "s-003"), ("numeric", "s-008")]
REVIEWS = [
    Review("s-001", AT, "good", 0.8, 4, 240, ticks=(0, 1, 2), notes="two ramps\nand one more"),
    Review("s-008", AT, "again", 0.2, 1, 610, ticks=(3,), flags=(0,)),
]


def test_the_report(bank):
    told = report(bank, PLAN, REVIEWS, AT, AT + timedelta(minutes=31))
    lines = told.splitlines()
    assert lines[0] == "# Mock interview, 2026-11-24 09:00 UTC"
    assert lines[2] == "2 of 3 questions, 31 minutes, 50% of the points."
    assert "| warm-up | Why pipelines idle | 3 | 4 (5) | 80% | good | sure |" in lines
    title = "Choose tensor parallelism across nodes"
    assert f"| numeric | {title} | 5 | 10 (8) | 20% | again | no idea |" in lines
    assert "| deep | A slow step after a restart | 5 | | | not asked | |" in lines
    assert [line for line in lines if line.startswith("* ") and "%" in line] == [
        "* pipeline: 80%",
        "* sequence: 20%",
    ]
    assert lines.count("* [x] 4: says that a stage idles twice in a step (must)") == 1
    assert lines.count("* [ ] 4: says that a stage idles twice in a step (must)") == 1
    assert "* red flag: says that the schedule does not matter for the bubble at all" in lines
    assert "> two ramps" in lines and "> and one more" in lines
    assert told.count("To read: `notebooks/01_small.ipynb#pp-gantt`") == 2
    assert "## deep" not in told and told.endswith("`\n")


def test_the_table_is_a_table(bank):
    """Every row has as many cells as its head."""
    rows = [line for line in report(bank, PLAN, REVIEWS, AT, AT).splitlines() if line[:1] == "|"]
    assert len(rows) == 5 and {row.count("|") for row in rows} == {8}


def test_a_report_of_nothing_and_in_chinese(bank):
    assert "0 of 3 questions, 0 minutes, 0% of the points." in report(bank, PLAN, [], AT, AT)
    assert "流水线" in report(bank, PLAN, REVIEWS, AT, AT, language="zh")
