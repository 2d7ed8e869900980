"""What the log says about its owner.

Catches a question that counts twice, a pass that is an earlier one, a forecast that forgets what is
overdue, and a sentence about confidence that is said on too little, or the other way round.
"""

from datetime import UTC, datetime, timedelta

import pytest

from picolab.interview.reviews import Review
from picolab.interview.statistics import by_area, calibration, calibration_sentence, forecast

AT = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


def review(name="s-001", day=0.0, rating="good", score=1.0, confidence=None) -> Review:
    return Review(name, AT + timedelta(days=day), rating, score, confidence)


@pytest.fixture
def bank(bank_files, make):
    """Three of the area pipeline, one of data."""
    return bank_files(
        *(make.plain(n, area="pipeline") for n in (1, 2, 3)), make.plain(4, area="data")
    ).bank()


def test_by_area(bank):
    past = [
        review("s-001", 0, "good", 0.8),
        review("s-001", 3, "again", 0.2),  # the last one counts
        review("s-002", 0, "hard", 0.6),
        review("s-999", 0, "good", 1.0),  # a question that is gone
    ]
    table = by_area(bank, past)
    assert table.rows == [["pipeline", 3, 2, 1, pytest.approx(40)], ["data", 1, 0, 0, None]]
    assert table.title == "2 of 4 questions seen, 4 reviews"
    assert by_area(bank, []).title == "0 of 4 questions seen, 0 reviews"
    assert "pipeline" in str(table)


def test_the_forecast(bank):
    past = [
        review("s-001", -10),  # was due eight days ago
        review("s-002", 0),  # in two days
        review("s-003", 0, "easy"),  # in eight days: beyond
        review("s-004", -1, "again"),  # today
    ]
    table = forecast(bank, past, AT, days=4)
    assert [row[1] for row in table.rows] == [2, 0, 1, 0]
    assert table.rows[0][0] == "2026-11-24" and table.rows[3][0] == "2026-11-27"
    assert sum(row[1] for row in forecast(bank, past, AT, days=9).rows) == 4


def answers(confidence: int, passed: int, failed: int) -> list[Review]:
    ratings = ["hard"] * passed + ["again"] * failed
    return [review(rating=rating, score=0.5, confidence=confidence) for rating in ratings]


@pytest.mark.parametrize(
    "past, says",
    [
        ([], "five answers given with confidence 3 or 4 tell more"),
        (answers(4, 0, 4), "tell more"),
        (answers(4, 3, 2), "Overconfident: of 5 answers you were sure of, 60% passed"),
        (answers(3, 2, 1) + answers(4, 1, 1), "Overconfident: of 5 answers"),
        (answers(4, 7, 3), "Well calibrated: of 10 answers you were sure of, 70% passed"),
        (answers(4, 5, 0) + answers(1, 9, 1), "Underconfident: of 10 answers you doubted, 90%"),
        (answers(4, 5, 0) + answers(2, 4, 1), "Well calibrated: of 5"),
        (answers(4, 5, 0) + answers(2, 4, 0), "Well calibrated"),  # four doubts tell nothing
        (answers(4, 3, 2) + answers(1, 9, 0), "Overconfident"),  # the worse of the two
        ([review(rating="again")] * 9, "tell more"),  # said nothing
    ],
)
def test_the_sentence(past, says):
    assert says in calibration_sentence(past)
    assert calibration(past).title == calibration_sentence(past)


def test_the_table():
    rows = calibration(answers(4, 3, 1) + answers(2, 0, 1)).rows
    assert rows == [
        ["1 no idea", 0, None, None],
        ["2 unsure", 1, 0, 50],
        ["3 fairly sure", 0, None, None],
        ["4 sure", 4, 75, 50],
    ]
