"""A practice session without a face: draw, think, say, compute, reveal, grade.

    session = Session(bank, log, topic="4d_basics")
    card = session.draw()                      # "thinking" from here on; None: nothing is left
    session.look(2)                            # of a diagnosis: the next look, and what it shows
    session.set_confidence(3)
    session.said()                             # spoken; only now the numbers are asked for
    session.answer_number(0, "17.9 %")         # judged at once, a known mistake gets its reason
    question = session.reveal()                # the answer and the rubric
    session.propose(ticks=[0, 2])              # what the ticks speak for
    session.grade("good")                      # written to the log; then draw again

Numbers come after the answer in words and the confidence: what is asked for tells something about
the cause. The clock and the randomness are given from outside, so a test replays a session exactly,
and both faces (a terminal, a notebook) drive the same object. What is out of order is refused with
a RuntimeError that says what comes first.

**Which card.** Due ones first, the most overdue first. Then new ones: the lower level first, of a
level the shorter ones, and of these from the area that was seen least, at random inside it. Of a
chain, a later question comes only after the earlier was seen, and not as the very next card, unless
`deepen()` asks for it. `weak` asks what was graded hard or again, the worst first. A session ends
after `count` questions, or else with the `within` minutes that its questions should take.
"""

import random
from collections import Counter
from datetime import date
from itertools import combinations
from typing import Literal, get_args

from picolab.interview.answers import NumericVerdict, Proposal, Rating, judge, propose
from picolab.interview.bank import Bank, Kind, Language, Question, Step, check_language
from picolab.interview.reviews import (
    Clock,
    Review,
    ReviewLog,
    State,
    local_day,
    new_a_day,
    next_due,
    now,
    states,
)

Phase = Literal["idle", "thinking", "numbers", "revealed", "finished"]
CONFIDENCE = {1: "no idea", 2: "unsure", 3: "fairly sure", 4: "sure"}
_OF_A_QUESTION = ("question", "verdicts", "looks", "notes", "confidence", "_began", "_revealed")
WITHIN = 20
"""minutes of a session, if nothing else is said"""


class Session:
    """See the module. Raises ValueError for a topic, level, area, kind or language that is not
    there."""

    def __init__(
        self,
        bank: Bank,
        log: ReviewLog,
        *,
        topic: str | None = None,
        level: int | None = None,
        area: str | None = None,
        kind: str | None = None,
        only: frozenset[str] | None = None,
        due_only: bool = False,
        weak: bool = False,
        count: int | None = None,
        within: int | None = None,
        language: Language = "en",
        until: date | None = None,
        plan: list[str] | None = None,
        clock: Clock = now,
        rng: random.Random | None = None,
    ):
        check_language(language)
        if count is not None and count < 1:
            raise ValueError(f"a session has at least one question, not {count}")
        if within is not None and within < 1:
            raise ValueError(f"a session takes at least one minute, not {within}")
        if until is not None and until <= local_day(clock()):
            raise ValueError(f"{until} is not in the future; the interview is on a later day")
        self.bank, self.log, self.language, self.until = bank, log, language, until
        self.due_only, self.weak, self._clock = due_only, weak, clock
        self.count = count
        self.within = within or (WITHIN if count is None else None)
        self._rng = rng or random.Random()
        self._questions = {q.id: q for q in _chosen(bank, topic, level, area, kind, only)}
        self._luck = {name: self._rng.random() for name in self._questions}
        self._plan = list(plan) if plan is not None else None
        self.phase: Phase = "idle"
        self.question: Question | None = None
        self.reviews: list[Review] = []
        self.verdicts: dict[int, NumericVerdict] = {}
        self.looks: list[int] = []
        self.notes = ""
        self.confidence: int | None = None
        self.skipped: list[str] = []
        self._hints = 0
        self._graded: dict | None = None
        self._began = self._revealed = clock()
        self._past = log.reviews()

    # The cards.

    def states(self) -> dict[str, State]:
        """Of the questions of this session, with what was graded in it."""
        return states(self._questions, [*self._past, *self.reviews], self.until)

    def due(self) -> list[str]:
        """Ids that are due today, the most overdue first."""
        today = local_day(self._clock())
        due = [s for s in self.states().values() if s.due and local_day(s.due) <= today]
        return [s.id for s in sorted(due, key=lambda s: s.due) if s.id not in self.skipped]

    def quota(self) -> int | None:
        """New questions a day that it takes to have seen all before `until`."""
        return new_a_day(self.states(), local_day(self._clock()), self.until)

    def draw(self) -> Question | None:
        """The next question, or None at the end. The clock of the question starts."""
        self._must_be("idle", "finished")
        chosen = next(iter(self._coming()), None)
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
        return len(self._coming(whole=True))

    def place(self) -> tuple[int, int]:
        """Which question this is, of how many there will be if nothing is skipped."""
        self._must_be("thinking", "numbers", "revealed")
        if self._plan is not None:
            return self._plan.index(self.question.id) + 1, len(self._plan)
        number = len(self.reviews) + 1
        return number, number + self.left()

    def skip(self) -> None:
        """Not this one now. Nothing is written; it does not come again in this session."""
        self._must_be("thinking", "numbers", "revealed")
        self.skipped.append(self.question.id)
        self.phase = "idle"

    # One card.

    def seconds(self) -> float:
        """Since it was drawn; stands still once the answer is shown."""
        end = self._clock() if self.phase in ("thinking", "numbers") else self._revealed
        return (end - self._began).total_seconds()

    def time_left(self) -> float:
        """Of the minutes it should take; negative when it took longer. Nothing is cut off."""
        return self.question.minutes * 60 - self.seconds() if self.question else 0.0

    def look(self, index: int) -> Step:
        """Of a diagnosis: take this look now, and see what it shows. Taken twice it counts once."""
        self._must_be("thinking")
        if index not in self.question.offered():
            raise ValueError(f"the question offers no look {index + 1}")
        if index not in self.looks:
            self.looks.append(index)
        return self.question.steps[index]

    def in_order(self) -> tuple[int, int]:
        """Of the pairs of looks that were taken: how many in the answer's order, of how many."""
        pairs = list(combinations(self.looks, 2))
        return sum(first < second for first, second in pairs), len(pairs)

    def hint(self) -> str | None:
        """The next hint of the question; None if there is no other."""
        self._must_be("thinking", "numbers")
        self._hints += 1
        return next(iter(self.question.hints[self._hints - 1 : self._hints]), None)

    def set_confidence(self, confidence: int) -> None:
        """1 to 4, before the numbers and the answer: afterwards everybody knew it."""
        self._must_be("thinking")
        if confidence not in CONFIDENCE:
            said = ", ".join(f"{n} {word}" for n, word in CONFIDENCE.items())
            raise ValueError(f"confidence is one of {said}; not {confidence!r}")
        self.confidence = confidence

    def said(self) -> None:
        """The answer in words has been given; numbers may be asked for."""
        self._must_be("thinking")
        self.phase = "numbers"

    def answer_number(self, index: int, text: str) -> NumericVerdict:
        """Judge what was typed for the question's number `index`; the first answer counts."""
        self._must_be("numbers")
        if not 0 <= index < len(self.question.numeric):
            raise ValueError(f"the question asks for {len(self.question.numeric)} number(s)")
        verdict = judge(self.question.numeric[index], self.question.computed(), text)
        self.verdicts.setdefault(index, verdict)
        return verdict

    def reveal(self) -> Question:
        """The clock stops; the question with its answer, rubric and links."""
        self._must_be("thinking", "numbers")
        self._revealed = self._clock()
        self.phase = "revealed"
        return self.question

    def propose(self, ticks=(), flags=()) -> Proposal:
        """The grade that these ticks speak for. `grade` takes any: the reader decides."""
        self._must_be("revealed")
        wrong = sum(not verdict.right for verdict in self.verdicts.values())
        return propose(self.question, ticks, flags, wrong)

    def would_come(self, rating: Rating) -> date:
        """The day on which it would come again, for each grade before it is given."""
        self._must_be("revealed")
        past = self.states()[self.question.id].reviews
        return local_day(next_due(past, self._review(rating, (), ()), self.until))

    def grade(self, rating: Rating, ticks=(), flags=()) -> Review:
        """Write it down. Only if that fails (a full disk) the session stays where it is."""
        self._must_be("revealed")
        review = self._review(rating, ticks, flags)
        self.log.append(review)
        self.reviews.append(review)
        self._graded = {name: getattr(self, name) for name in _OF_A_QUESTION}
        self.phase = "idle"
        return review

    def can_go_back(self) -> bool:
        return self._graded is not None

    def back(self) -> Question:
        """A step back: the last grade is withdrawn, and its question is open to be graded again."""
        self._must_be("idle", "thinking", "finished")
        if not self.can_go_back():
            raise ValueError("there is nothing to go back to")
        self.log.withdraw(self.reviews[-1])
        self.reviews.pop()
        for name, value in self._graded.items():
            setattr(self, name, value)
        self._graded, self.phase = None, "revealed"
        return self.question

    def missed(self) -> list[tuple[Question, list[str]]]:
        """Of what was graded: each question with the musts that were not said."""
        found = []
        for review in self.reviews:
            question = self.bank.find(review.id, self.language)
            points = enumerate(question.rubric)
            gone = [p.text for i, p in points if p.must and i not in review.ticks]
            if gone:
                found.append((question, gone))
        return found

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
        self.verdicts, self.notes, self.confidence, self._hints = {}, "", None, 0
        self.looks = []
        self._began = self._revealed = self._clock()
        return self.question

    def _coming(self, whole: bool = False) -> list[str]:
        """What would be drawn from here on, in order. Whole: later ones of a chain too, which come
        when the earlier are graded."""
        open_now = self.question.id if self.phase in ("thinking", "numbers", "revealed") else None
        gone = {*self.skipped, *(review.id for review in self.reviews), open_now}
        if self._plan is not None:
            return [name for name in self._plan if name not in gone]
        asked = [review.id for review in self.reviews] + ([open_now] if open_now else [])
        found = [name for name in self._candidates(whole) if name not in gone]
        last = self._questions.get(asked[-1]) if asked else None
        chain = last.chain.name if last and last.chain else None
        found.sort(key=lambda name: self._in_chain(name, chain))
        if self.count is not None:
            return found[: max(0, self.count - len(asked))]
        left = self.within - sum(self._questions[name].minutes for name in asked)
        fit = []
        for name in found:
            minutes = self._questions[name].minutes
            if minutes <= left or not (asked or fit):
                fit.append(name)
                left -= minutes
        return fit

    def _candidates(self, whole: bool) -> list[str]:
        if self.weak:
            last = [s.reviews[-1] for s in self.states().values() if s.reviews]
            poor = [review for review in last if review.rating in ("again", "hard")]
            return [review.id for review in sorted(poor, key=lambda r: r.score)]
        return [*self.due(), *([] if self.due_only else self._new(whole))]

    def _seen_now(self, question_id: str) -> bool:
        return any(review.id == question_id for review in self.reviews)

    def _in_chain(self, question_id: str, chain: str | None) -> bool:
        own = self._questions[question_id].chain
        return chain is not None and own is not None and own.name == chain

    def _new(self, whole: bool) -> list[str]:
        """New questions by level and minutes; then from the area seen least, at random inside."""
        found = self.states()
        seen = Counter(self._questions[s.id].area for s in found.values() if s.reviews)
        ready = [
            self._questions[s.id]
            for s in found.values()
            if s.is_new and (whole or self._chain_ready(s.id, found))
        ]
        ready.sort(key=lambda q: (q.level, q.minutes, seen[q.area], self._luck[q.id]))
        return [q.id for q in ready]

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
            "thinking": "say your answer, or reveal it, first",
            "numbers": "reveal the answer first",
            "revealed": "grade or skip this question first",
            "finished": "the session is over",
        }[self.phase]
        raise RuntimeError(f"not now: {first}")


def _chosen(bank: Bank, topic, level, area, kind, only) -> list[Question]:
    """The questions of a session. ValueError says what there is in place of what is not there."""
    questions = [q for q in bank.questions(topic) if only is None or q.id in only]
    if not questions:
        raise ValueError(f"no question of {topic or 'any topic'} is marked as taught by a chapter")
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"there is no kind {kind!r}; there is {', '.join(get_args(Kind))}")
    if area is not None and area not in (known := list(dict.fromkeys(q.area for q in questions))):
        raise ValueError(f"there is no area {area!r}; there is {', '.join(known)}")
    found = [
        q
        for q in questions
        if level in (None, q.level) and area in (None, q.area) and kind in (None, q.kind)
    ]
    if not found and area is kind is None:
        levels = sorted({q.level for q in questions})
        raise ValueError(f"no question has level {level}; there are {levels}")
    if not found:
        raise ValueError("no question is of this level, area and kind at once; leave one out")
    return found


def day(text: str | date | None) -> date | None:
    """The day of an interview, as it is typed: 2027-03-01. ValueError for what is no date."""
    if text is None or isinstance(text, date):
        return text
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date; write it as 2027-03-01") from None
