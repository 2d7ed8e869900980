"""What the log says about its owner: how much is known, what comes, and whether confidence is
earned.
"""

from collections import Counter, defaultdict
from datetime import datetime, timedelta

from picolab.interview.bank import Bank, Language
from picolab.interview.reviews import Review, State, local_day, states
from picolab.interview.session import CONFIDENCE
from picolab.interview.words import WORDS, spoken
from picolab.show.table import Table

PASS = 0.4
"""of the points; below it a proposal is "again" (answers.propose)"""


def passed_by(review: Review) -> bool:
    """Hard or better, and the points for it: a grade that one gives oneself counts with them."""
    return review.rating != "again" and review.score >= PASS


def by_area(bank: Bank, reviews: list[Review], language: Language = "en") -> Table:
    """For each area: questions, seen, passed at the last review, mean score of the last."""
    found = states([q.id for q in bank.questions()], reviews)
    areas: dict[str, list[State]] = defaultdict(list)
    for question in bank.questions():
        areas[question.area].append(found[question.id])
    rows = []
    for area, held in areas.items():
        last = [state.reviews[-1] for state in held if state.reviews]
        passed = sum(passed_by(review) for review in last)
        score = 100 * sum(r.score for r in last) / len(last) if last else None
        rows.append([bank.area(area, language), len(held), len(last), passed, score])
    seen, total = sum(row[2] for row in rows), sum(row[1] for row in rows)
    words = WORDS[language]
    title = words["stats seen"].format(seen=seen, of=total, n=len(reviews))
    return Table(words["stats areas"].split("|"), rows, title)


def forecast(
    bank: Bank, reviews: list[Review], at: datetime, days: int = 7, language: Language = "en"
) -> Table:
    """How many come due on each of the next days; what is overdue counts as today."""
    found = states([q.id for q in bank.questions()], reviews)
    today, words = local_day(at), WORDS[language]
    due = Counter(
        max(0, (local_day(state.due) - today).days) for state in found.values() if state.due
    )
    rows = [[f"{today + timedelta(days=day)}", due[day]] for day in range(days)]
    return Table(words["stats days"].split("|"), rows, words["stats comes"])


def calibration(reviews: list[Review], language: Language = "en") -> Table:
    """Said before the answer was shown, against how it went: passed means hard or better, with the
    points for it."""
    rows = []
    words = WORDS[language]
    for level in CONFIDENCE:
        held = [review for review in reviews if review.confidence == level]
        passed = sum(passed_by(review) for review in held)
        share = 100 * passed / len(held) if held else None
        score = 100 * sum(r.score for r in held) / len(held) if held else None
        rows.append([words[f"sure {level}"], len(held), share, score])
    sentence = spoken(calibration_sentence(reviews), language)
    return Table(words["stats sure"].split("|"), rows, sentence)


def calibration_sentence(reviews: list[Review]) -> str:
    """One sentence: over- or underconfident, or too little to say."""
    sure = [r for r in reviews if r.confidence in (3, 4)]
    unsure = [r for r in reviews if r.confidence in (1, 2)]
    if len(sure) < 5:
        return "Confidence against result (five answers given with confidence 3 or 4 tell more)"
    passed = sum(passed_by(r) for r in sure) / len(sure)
    if passed < 0.7:
        return f"Overconfident: of {len(sure)} answers you were sure of, {passed:.0%} passed"
    low = sum(passed_by(r) for r in unsure) / len(unsure) if len(unsure) >= 5 else 0.0
    if low > 0.8:
        return f"Underconfident: of {len(unsure)} answers you doubted, {low:.0%} passed"
    return f"Well calibrated: of {len(sure)} answers you were sure of, {passed:.0%} passed"
