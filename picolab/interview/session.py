"""A practice session without a face: draw, think, reveal, grade.

    session = Session(bank, log, topic="4d_basics", count=5)
    card = session.draw()                      # "thinking" from here on; None: nothing is left
    session.set_confidence(3)
    session.answer_number(0, "17.9 %")         # judged at once, a known mistake gets its reason
    question = session.reveal()                # the answer and the rubric
    session.propose(ticks=[0, 2])              # what the ticks speak for
    session.grade("good")                      # written to the log; then draw again

The clock and the randomness are given from outside, so a test replays a session exactly, and both
faces (a terminal, a notebook) drive the same object. What is out of order is refused with a
RuntimeError that says what comes first.

**Which card.** Due ones first, the most overdue first. Then new ones: the lower level first, of a
level the shorter ones, and of these from the area that was seen least, at random inside it. Of a
chain, a later question comes only
after the earlier was seen, and not as the very next card, unless `deepen()` asks for it.
"""

import random
from collections import Counter
from datetime import date, datetime
from typing import Literal

from picolab.interview.answers import NumericVerdict, Proposal, Rating, judge, propose
from picolab.interview.bank import Bank, Language, Question, check_language
from picolab.interview.reviews import (
    Clock,
    Review,
    ReviewLog,
    State,
    new_a_day,
    next_due,
    now,
    states,
)

Phase = Literal["idle", "thinking", "revealed", "finished"]
CONFIDENCE = {1: "no idea", 2: "unsure", 3: "fairly sure", 4: "sure"}


class Session:
    """See the module. Raises ValueError for a topic, level or language that is not there."""

    def __init__(
        self,
        bank: Bank,
        log: ReviewLog,
        *,
        topic: str | None = None,
        level: int | None = None,
        only: frozenset[str] | None = None,
        due_only: bool = False,
        count: int = 5,
        language: Language = "en",
        until: date | None = None,
        plan: list[str] | None = None,
        clock: Clock = now,
        rng: random.Random | None = None,
    ):
        check_language(language)
        if count < 1:
            raise ValueError(f"a session has at least one question, not {count}")
        if until is not None and until <= clock().date():
            raise ValueError(f"{until} is not in the future; the interview is on a later day")
        questions = bank.questions(topic, level)
        if only is not None:
            questions = [question for question in questions if question.id in only]
        if not questions:
            levels = sorted({q.level for q in bank.questions(topic)})
            what = (
                f"no question has level {level}" if only is None else "no such question is taught"
            )
            raise ValueError(f"{what}; there are {levels}")
        self.bank, self.log, self.language, self.until = bank, log, language, until
        self.count, self.due_only, self._clock = count, due_only, clock
        self._rng = rng or random.Random()
        self._questions = {q.id: q for q in questions}
        self._plan = list(plan) if plan is not None else None
        self.phase: Phase = "idle"
        self.question: Question | None = None
        self.reviews: list[Review] = []
        self.verdicts: dict[int, NumericVerdict] = {}
        self.notes = ""
        self.confidence: int | None = None
        self._skipped: set[str] = set()
        self._began = self._revealed = clock()
        self._past = log.reviews()

    # The cards.

    def states(self) -> dict[str, State]:
        """Of the questions of this session, with what was graded in it."""
        return states(self._questions, [*self._past, *self.reviews], self.until)

    def due(self) -> list[str]:
        """Ids that are due now, the most overdue first."""
        at = self._clock()
        due = [s for s in self.states().values() if s.due is not None and s.due <= at]
        return [s.id for s in sorted(due, key=lambda s: s.due) if s.id not in self._skipped]

    def quota(self) -> int | None:
        """New questions a day that it takes to have seen all before `until`."""
        return new_a_day(self.states(), self._clock().date(), self.until)

    def draw(self) -> Question | None:
        """The next question, or None at the end. The clock of the question starts."""
        self._must_be("idle", "finished")
        chosen = None if len(self.reviews) >= self.count else self._choose()
        if chosen is None:
            self.phase, self.question = "finished", None
            return None
        return self._begin(chosen)

    def deeper(self) -> str | None:
        """What `deepen` would ask: the next question of the last one's chain that was not graded
        in this session; None if there is none, and in an interview, whose questions are planned.
        """
        last = self.reviews[-1].id if self.reviews and self._plan is None else None
        chain = self._questions[last].chain if last in self._questions else None
        if chain is None:
            return None
        later = [
            q
            for q in self._questions.values()
            if q.chain and q.chain.name == chain.name and q.chain.step > chain.step
        ]
        left = [q for q in later if not self._seen_now(q.id)]
        return min(left, key=lambda q: q.chain.step).id if left else None

    def deepen(self) -> Question | None:
        """Ask the next question of the last one's chain; None if there is none."""
        self._must_be("idle", "finished")
        name = self.deeper()
        return None if name is None else self._begin(name)

    def left(self) -> int:
        """How many can still come after the one that is open."""
        open_now = self.question.id if self.phase in ("thinking", "revealed") else None
        gone = {*self._skipped, *(review.id for review in self.reviews), open_now}
        if self._plan is not None:
            return len([name for name in self._plan if name not in gone])
        found, due = self.states(), set(self.due())
        can_come = {s.id for s in found.values() if s.is_new and not self.due_only} | due
        return min(len(can_come - gone), self.count - len(self.reviews) - (open_now is not None))

    def place(self) -> tuple[int, int]:
        """Which question this is, of how many there will be if nothing is skipped."""
        self._must_be("thinking", "revealed")
        if self._plan is not None:
            return self._plan.index(self.question.id) + 1, len(self._plan)
        number = len(self.reviews) + 1
        return number, number + max(0, self.left())

    def skip(self) -> None:
        """Not this one now. Nothing is written; it does not come again in this session."""
        self._must_be("thinking", "revealed")
        self._skipped.add(self.question.id)
        self.phase = "idle"

    # One card.

    def seconds(self) -> float:
        """Since it was drawn; stands still once the answer is shown."""
        end = self._clock() if self.phase == "thinking" else self._revealed
        return (end - self._began).total_seconds()

    def time_left(self) -> float:
        """Of the minutes it should take; negative when it took longer. Nothing is cut off."""
        return self.question.minutes * 60 - self.seconds() if self.question else 0.0

    def set_confidence(self, confidence: int) -> None:
        """1 to 4, before the answer is shown: afterwards everybody knew it."""
        self._must_be("thinking")
        if confidence not in CONFIDENCE:
            said = ", ".join(f"{n} {word}" for n, word in CONFIDENCE.items())
            raise ValueError(f"confidence is one of {said}; not {confidence!r}")
        self.confidence = confidence

    def answer_number(self, index: int, text: str) -> NumericVerdict:
        """Judge what was typed for the question's number `index`; the first answer counts."""
        self._must_be("thinking")
        if not 0 <= index < len(self.question.numeric):
            raise ValueError(f"the question asks for {len(self.question.numeric)} number(s)")
        verdict = judge(self.question.numeric[index], self.question.computed(), text)
        self.verdicts.setdefault(index, verdict)
        return verdict

    def reveal(self) -> Question:
        """The clock stops; the question with its answer, rubric and links."""
        self._must_be("thinking")
        self._revealed = self._clock()
        self.phase = "revealed"
        return self.question

    def propose(self, ticks=(), flags=()) -> Proposal:
        """The grade that these ticks speak for. `grade` takes any: the reader decides."""
        self._must_be("revealed")
        wrong = sum(not verdict.right for verdict in self.verdicts.values())
        return propose(self.question, ticks, flags, wrong)

    def would_come(self, rating: Rating) -> datetime:
        """When it would come again, for each grade before it is given."""
        self._must_be("revealed")
        past = self.states()[self.question.id].reviews
        return next_due(past, self._review(rating, (), ()), self.until)

    def grade(self, rating: Rating, ticks=(), flags=()) -> Review:
        """Write it down. Only if that fails (a full disk) the session stays where it is."""
        self._must_be("revealed")
        review = self._review(rating, ticks, flags)
        self.log.append(review)
        self.reviews.append(review)
        self.phase = "idle"
        return review

    # Choosing.

    def _review(self, rating: Rating, ticks, flags) -> Review:
        if rating not in ("again", "hard", "good", "easy"):
            raise ValueError(f"a grade is again, hard, good or easy, not {rating!r}")
        score = propose(self.question, ticks, flags).score
        return Review(
            id=self.question.id,
            at=self._clock(),
            rating=rating,
            score=score,
            confidence=self.confidence,
            seconds=self.seconds(),
            ticks=tuple(sorted(set(ticks))),
            flags=tuple(sorted(set(flags))),
            numbers=tuple(str(v.value) for _, v in sorted(self.verdicts.items())),
            # A terminal that is not UTF-8 may hand over halves of characters.
            notes=self.notes.encode(errors="replace").decode(),
        )

    def _begin(self, question_id: str) -> Question:
        self.question = self.bank.find(question_id, self.language)
        self.phase = "thinking"
        self.verdicts, self.notes, self.confidence = {}, "", None
        self._began = self._revealed = self._clock()
        return self.question

    def _choose(self) -> str | None:
        if self._plan is not None:
            left = [q for q in self._plan if q not in self._skipped and not self._seen_now(q)]
            return left[0] if left else None
        last = self._questions.get(self.reviews[-1].id) if self.reviews else None
        chain = last.chain.name if last and last.chain else None
        candidates = [*self.due(), *([] if self.due_only else self._new())]
        fresh = [q for q in candidates if not self._seen_now(q)]
        apart = [q for q in fresh if not self._in_chain(q, chain)]
        return next(iter(apart or fresh), None)

    def _seen_now(self, question_id: str) -> bool:
        return any(review.id == question_id for review in self.reviews)

    def _in_chain(self, question_id: str, chain: str | None) -> bool:
        own = self._questions[question_id].chain
        return chain is not None and own is not None and own.name == chain

    def _new(self) -> list[str]:
        """New questions by level and minutes; then from the area seen least, at random inside."""
        found = self.states()
        seen = Counter(self._questions[s.id].area for s in found.values() if s.reviews)
        ready = [
            self._questions[s.id]
            for s in found.values()
            if s.is_new and s.id not in self._skipped and self._chain_ready(s.id, found)
        ]
        self._rng.shuffle(ready)
        return [q.id for q in sorted(ready, key=lambda q: (q.level, q.minutes, seen[q.area]))]

    def _chain_ready(self, question_id: str, found: dict[str, State]) -> bool:
        chain = self._questions[question_id].chain
        if chain is None:
            return True
        earlier = [
            q.id
            for q in self._questions.values()
            if q.chain and q.chain.name == chain.name and q.chain.step < chain.step
        ]
        return all(not found[name].is_new for name in earlier)

    def _must_be(self, *phases: Phase) -> None:
        if self.phase in phases:
            return
        first = {
            "idle": "draw a question first",
            "thinking": "reveal the answer first",
            "revealed": "grade or skip this question first",
            "finished": "the session is over",
        }[self.phase]
        raise RuntimeError(f"not now: {first}")


def day(text: str | date | None) -> date | None:
    """The day of an interview, as it is typed: 2027-03-01. ValueError for what is no date."""
    if text is None or isinstance(text, date):
        return text
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date; write it as 2027-03-01") from None
