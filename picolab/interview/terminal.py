"""The face in a terminal: plain questions and answers, over ssh too.

Everything is read with `input` and written line by line, so it can be driven by a program, piped,
and used without colour. `q` at any prompt, Ctrl-D and Ctrl-C end the practice; what was graded is
on the disk by then, and a question that was not graded leaves no trace.
"""

import random
import sys
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

from rich.console import RenderableType

from picolab.interview import mock, statistics
from picolab.interview.answers import RATINGS
from picolab.interview.bank import Bank, BankError, Language, Numeric, Question, check_language
from picolab.interview.reviews import Clock, ReviewLog, now
from picolab.interview.session import Session
from picolab.interview.sources import read_sources
from picolab.interview.words import WORDS, spoken
from picolab.show.table import Table
from picolab.show.terminal import WIDEST, console, listed, markdown, text

_LETTERS = "abcdefghijklmnoprtuvwxyz"  # q and s have a meaning of their own


class Stop(Exception):
    """The reader has had enough."""


class Skip(Exception):
    """Not this question."""


class Terminal:
    """One practice in a terminal. `ask` and `say` are given from outside in a test."""

    def __init__(
        self,
        bank: Bank,
        log: ReviewLog,
        language: Language = "en",
        clock: Clock = now,
        rng: random.Random | None = None,
        ask: Callable[[str], str] = input,
        say: Callable[[str], None] = print,
        folder: Path | None = None,
    ):
        check_language(language)
        self._refuse_what_cannot_be_shown(language)
        self.bank, self.log, self.language = bank, log, language
        self._words, self._clock, self._rng = WORDS[language], clock, rng or random.Random()
        self._ask, self.say = ask, say
        self._folder = Path.cwd() if folder is None else folder

    # Practice.

    def practise(
        self,
        topic: str | None = None,
        level: int | None = None,
        due_only: bool = False,
        count: int = 5,
        until: date | None = None,
    ) -> int:
        """Ask up to `count` questions. Returns how many were graded."""
        session = Session(
            self.bank,
            self.log,
            topic=topic,
            level=level,
            due_only=due_only,
            count=count,
            language=self.language,
            until=until,
            clock=self._clock,
            rng=self._rng,
        )
        self._say_what_is_unreadable()
        quota = session.quota()
        if quota:
            self.say(self._words["quota"].format(q=quota, until=until))
        self._go_on(session)
        return len(session.reviews)

    def interview(
        self,
        minutes: int,
        topic: str | None = None,
        report: Path | None = None,
        until: date | None = None,
    ) -> Path:
        """A mock interview; returns where its report is."""
        avoid = mock.asked_last(self.log.reviews())
        parts = mock.plan(self.bank, self._rng, topic, avoid, minutes)
        session = Session(
            self.bank,
            self.log,
            topic=topic,
            count=len(parts),
            language=self.language,
            until=until,
            plan=[name for _, name in parts],
            clock=self._clock,
            rng=self._rng,
        )
        self._say_what_is_unreadable()
        began = self._clock()
        of_part = dict((name, part) for part, name in parts)
        try:
            self._go_on(session, minutes, began, of_part)
        finally:
            text = mock.report(
                self.bank, parts, session.reviews, began, self._clock(), self.language
            )
            path = mock.keep(text, report or mock.report_path(self.log.path.parent, began))
            self.say(self._words["report"].format(path=path))
        return path

    def _go_on(
        self,
        session: Session,
        minutes: int | None = None,
        began: datetime | None = None,
        of_part: dict[str, str] | None = None,
    ) -> None:
        asked = 0
        try:
            while (question := session.draw()) is not None:
                asked += 1
                if minutes is not None:
                    left = minutes - (self._clock() - began).total_seconds() / 60
                    if left <= 0:
                        self.say(self._words["time"].format(minutes=minutes))
                        session.skip()
                        break
                    part = self._words[of_part[question.id]]
                    self.say("\n" + self._words["part"].format(part=part, left=f"{left:.0f}"))
                try:
                    self._one(session, question)
                except Skip:
                    session.skip()
                    self.say(self._words["skipped"])
        except (Stop, EOFError, KeyboardInterrupt) as why:
            self.say("\n" + self._words["stopped"].format(n=len(session.reviews)))
            if isinstance(why, KeyboardInterrupt):
                raise
            return
        if not asked:
            self.say(nothing_to_ask(session, "--due"))
        elif not session.reviews:
            self.say("\n" + self._words["none graded"])
        else:
            score = sum(r.score for r in session.reviews) / len(session.reviews)
            self.say("\n" + self._words["done"].format(n=len(session.reviews), score=score))

    def _one(self, session: Session, question: Question) -> None:
        words = self._words
        number, of = session.place()
        head = words["question"].format(n=number, of=of)
        about = words["minutes"].format(m=question.minutes)
        self.say(f"\n{head}  ·  {question.area}, L{question.level}, {about}  ·  {question.id}")
        self._show_question(question)
        self.say(words["skip"])
        if question.exercise:
            self._code(question.exercise)
        for index, numeric in enumerate(question.numeric):
            self._number(session, index, numeric)
        session.notes = self._notes()
        said = self._prompt(words["confidence"])
        while said and said not in ("1", "2", "3", "4"):
            said = self._prompt(words["confidence"])
        if said:
            session.set_confidence(int(said))
        session.reveal()
        took, planned = clock_text(session.seconds()), clock_text(question.minutes * 60)
        self.say("\n" + words["took"].format(took=took, planned=planned))
        self._show_answer(question)
        ticks = self._numbers(words["ticks"], len(question.rubric))
        flags = self._letters(words["said flags"], len(question.red_flags))
        proposal = session.propose(ticks, flags)
        choices = ", ".join(
            f"{i} {words[r]} ({session.would_come(r):%Y-%m-%d})" for i, r in enumerate(RATINGS, 1)
        )
        text = words["grade"].format(
            choices=choices,
            proposed=words[proposal.rating],
            why=spoken(proposal.why, self.language),
        )
        while True:
            given = self._prompt(text)
            while given and given not in ("1", "2", "3", "4"):
                given = self._prompt(text)
            rating = RATINGS[int(given) - 1] if given else proposal.rating
            due = session.would_come(rating)
            try:
                session.grade(rating, ticks, flags)
                break
            except OSError as error:  # a full disk, a lock: what was said is still here
                said = spoken(str(error), self.language)
                self.say(words["not written"].format(error=said))
        self.say(words["next"].format(day=f"{due:%Y-%m-%d}"))

    def _number(self, session: Session, index: int, numeric) -> None:
        unit = self._words["asked in"].format(unit=numeric.unit) if numeric.unit else ""
        prompt = self._words["number"].format(prompt=asked_for(numeric), unit=unit)
        while typed := self._prompt(prompt):
            try:
                verdict = session.answer_number(index, typed)
                self._show(listed([(" ", spoken(verdict.text, self.language))]))
                return
            except ValueError as error:  # no number: ask again
                self.say(f"  {spoken(str(error), self.language)}")

    def _notes(self) -> str:
        self.say(self._words["think"])
        lines = []
        while line := self._prompt(""):
            lines.append(line)
        return "\n".join(lines)

    def _code(self, exercise_id: str) -> None:
        try:
            from picolab.exercises.catalogue import find

            exercise = find(exercise_id)
        except ImportError:
            self.say(self._words["no torch"])
            return
        path = self._folder / f"{exercise_id.replace('.', '_').replace('-', '_')}.py"
        self._show(markdown(f"{exercise.statement()}\n\n```python\n{exercise.stub}\n```"))
        try:
            if not path.exists():
                path.write_text(exercise.stub + "\n", encoding="utf-8")
        except OSError as error:  # a folder that is not ours: answer without it
            self.say(str(error))
            return
        self.say(self._words["code"].format(path=path))
        while self._prompt(self._words["check"]).lower() == "c":
            # As if it stood in a script: then it travels to the ranks by value.
            names: dict = {"__name__": "__main__"}
            try:
                exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
                name = exercise.stub_function.__name__
                if name not in names:
                    raise ValueError(f"{path.name} defines no {name}")
                self.say(str(exercise.check(names[name])))
            except (Exception, SystemExit) as error:
                self.say(f"{type(error).__name__}: {error}")

    # Looking, without practising.

    def show(self, question_id: str) -> None:
        """A question and its answer."""
        question = self.bank.find(question_id, self.language)
        self.say(f"{question.id}  ·  {question.area}, L{question.level}")
        self._show_question(question)
        self._show_answer(question)

    def questions(self, topic: str | None = None) -> None:
        """All questions, by level and length, and when each comes again."""
        session = Session(self.bank, self.log, topic=topic, language=self.language)
        due = {name: state.due for name, state in session.states().items()}
        questions = sorted(self.bank.questions(topic), key=lambda q: (q.level, q.minutes, q.id))
        rows = [
            [
                *(question.id, question.level, question.minutes, question.area, question.kind),
                self.bank.find(question.id, self.language).title,
                f"{due[question.id]:%Y-%m-%d}" if due.get(question.id) else "new",
            ]
            for question in questions
        ]
        columns = ["id", "level", "minutes", "area", "kind", "question", "comes"]
        new = sum(row[-1] == "new" for row in rows)
        self._show(Table(columns, rows, f"{len(rows)} questions, {new} of them new"))

    def stats(self) -> None:
        reviews = self.log.reviews()
        self._say_what_is_unreadable()
        if not reviews:
            self.say(self._words["no reviews"].format(n=len(self.bank.questions())))
            return
        self._show(statistics.by_area(self.bank, reviews))
        self._show("", statistics.forecast(self.bank, reviews, self._clock()))
        self._show("", statistics.calibration(reviews))

    def _show_question(self, question: Question) -> None:
        self._show(f"\n{question.title}\n", markdown(question.question))
        if question.conventions:
            said = f"{self._words['conventions']}: {'; '.join(question.conventions)}"
            self._show("", markdown(said))

    def _show_answer(self, question: Question) -> None:
        words, found = self._words, question.computed()
        self._show(f"\n{words['answer']}\n", markdown(question.answer))
        if question.steps:
            steps = enumerate(question.steps, 1)
            shown = listed((f"{i}.", f"{step.look}: {step.because}") for i, step in steps)
            self._show(f"\n{words['steps']}", shown)
        if question.numeric:
            numbers = (
                ("=", f"{asked_for(one)}: {found[one.value]:.6g} {one.unit}".rstrip())
                for one in question.numeric
            )
            self._show("", listed(numbers))
        points = [
            (f"{i}.", f"[{point.points}] {point.text}{words['must'] if point.must else ''}")
            for i, point in enumerate(question.rubric, 1)
        ]
        flags = [(f"{mark}.", flag) for mark, flag in zip(_LETTERS, question.red_flags)]
        more = [("-", f"{one.question} ({'; '.join(one.points)})") for one in question.followups]
        self._show(f"\n{words['rubric']}", listed(points), words["flags"], listed(flags))
        self._show(words["followups"], listed(more))
        self.say(f"{words['read']}: {', '.join(question.cells)}")
        try:
            known = read_sources(self.bank.folder)
        except BankError:  # a folder of one's own, without a list of sources
            known = {}
        for key in question.sources:
            self.say(f"  {known[key].citation}: {known[key].link}" if key in known else f"  {key}")

    # Reading and writing.

    def _prompt(self, text: str) -> str:
        try:
            said = self._ask(f"{text}\n> " if text else "> ").strip()
        except UnicodeDecodeError as error:  # what was typed is not in the terminal's encoding
            self.say(f"  {error}")
            return self._prompt(text)
        # Bytes that stood for no character would not go into the log.
        said = said.encode("utf-8", "replace").decode()
        if said.lower() == "q":
            raise Stop
        if said.lower() == "s":
            raise Skip
        return said

    def _numbers(self, text: str, most: int) -> list[int]:
        while True:
            said = _parted(self._prompt(text))
            if said.lower() == "a":
                return list(range(most))
            parts = said.split()
            if all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
                return sorted({int(part) - 1 for part in parts})
            self.say(f"  1 ... {most}")

    def _letters(self, text: str, most: int) -> list[int]:
        while True:
            parts = _parted(self._prompt(text)).lower().split()
            found = [_LETTERS.find(part) if len(part) == 1 else -1 for part in parts]
            if all(0 <= index < most for index in found):
                return sorted(set(found))
            self.say(f"  a ... {_LETTERS[most - 1]}")

    def _show(self, *shown: RenderableType) -> None:
        to = console()
        to.width = min(WIDEST, to.width)
        self.say(text(*shown, to=to))

    def _say_what_is_unreadable(self) -> None:
        self.log.reviews()
        if note := self.log.note():
            self.say(spoken(note, self.language))

    def _refuse_what_cannot_be_shown(self, language: str) -> None:
        encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
        try:
            "第·●".encode(encoding)
        except (UnicodeEncodeError, LookupError):
            if language == "zh":
                raise ValueError(
                    f"this terminal writes {encoding}, which has no Chinese characters; "
                    "set LANG=C.UTF-8, or use --lang en"
                ) from None
            sys.stdout.reconfigure(errors="replace")


def asked_for(numeric: Numeric) -> str:
    """What a number is of, with the convention where there are two."""
    return f"{numeric.prompt} ({numeric.convention})" if numeric.convention else numeric.prompt


def nothing_to_ask(session: Session, due_option: str) -> str:
    """Why a session has no question at all, in a sentence. The option is how it was asked for."""
    words = WORDS[session.language]
    coming = [state.due for state in session.states().values() if state.due is not None]
    day = f"{min(coming):%Y-%m-%d}" if coming else ""
    if not session.due_only:
        return words["all seen"].format(day=day)
    return words["nothing" if coming else "nothing at all"].format(day=day, due=due_option)


def _parted(text: str) -> str:
    return text.replace(",", " ").replace("，", " ").replace("、", " ")


def clock_text(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
