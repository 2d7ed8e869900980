"""The face in a terminal: plain questions and answers, over ssh too.

Everything is read with `input` and written line by line, so it can be driven by a program, piped,
and used without colour. At any prompt `:s` skips, `:q` stops, `:b` goes a step back and `:h` gives
a hint; where no note is written `s` and `q` do as well. Ctrl-D and Ctrl-C end the practice; what
was graded is on the disk by then, and a question that was not graded leaves no trace.

A question goes: looks of a diagnosis one by one, say it, code, confidence, numbers; then the
answer, its rubric beside the notes, ticks, grade, and the follow-ups, asked one by one.
"""

import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TypeVar

from rich.console import RenderableType
from rich.table import Table as Grid

from picolab.interview import mock, statistics
from picolab.interview.answers import RATINGS
from picolab.interview.bank import Bank, BankError, Language, Numeric, Question, check_language
from picolab.interview.reviews import Clock, ReviewLog, local_day, now
from picolab.interview.session import Session
from picolab.interview.sources import read_sources
from picolab.interview.words import WORDS, spoken
from picolab.show.table import Table
from picolab.show.terminal import WIDEST, console, listed, markdown, text

_LETTERS = "abcdefghijklmnoprtuvwxyz"  # q and s have a meaning of their own

T = TypeVar("T")


class Stop(Exception):
    """The reader has had enough."""


class Skip(Exception):
    """Not this question."""


class Back(Exception):
    """A step back."""


class Hint(Exception):
    """Help with this one."""


_COMMANDS = {"q": Stop, "s": Skip, "b": Back, "h": Hint}


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
        self._folder = log.path.parent / "code" if folder is None else folder
        self._followed: dict[str, list[bool]] = {}

    # Practice.

    def practise(self, *, until: date | None = None, **choice) -> int:
        """Ask questions: `choice` is what a Session takes. Returns how many were graded."""
        session = self._session(until, **choice)
        self._say_what_is_unreadable()
        if quota := session.quota():
            self._show(self._words["quota"].format(q=quota, until=session.until))
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
        plan = [part.question for part in parts]
        session = self._session(until, topic=topic, count=len(plan), plan=plan)
        self._say_what_is_unreadable()
        began = self._clock()
        try:
            self._go_on(session, minutes, began, {part.question: part for part in parts})
        finally:
            path = mock.keep(
                mock.report(
                    *(self.bank, parts, session.reviews, began, self._clock(), self.language),
                    skipped=session.skipped,
                    followed=self._followed,
                ),
                report or mock.report_path(self.log.path.parent, began),
            )
            self.say(self._words["report"].format(path=path))
        return path

    def _session(self, until: date | None, **choice) -> Session:
        """A day that was given is remembered, and taken as long as it has not come."""
        if until is None and (kept := self.log.until()) and kept > local_day(self._clock()):
            until = kept
        shared = dict(language=self.language, clock=self._clock, rng=self._rng)
        session = Session(self.bank, self.log, until=until, **choice, **shared)
        if until is not None:
            self.log.remember_until(until)
        return session

    def _go_on(
        self,
        session: Session,
        minutes: int | None = None,
        began: datetime | None = None,
        parts: dict[str, mock.Part] | None = None,
    ) -> None:
        asked = 0
        try:
            while (question := session.draw()) is not None:
                asked += 1
                if minutes is not None:
                    left = minutes - (self._clock() - began).total_seconds() / 60
                    if left <= 0:
                        self._show(self._words["time"].format(minutes=minutes))
                        break
                    part = self._words[parts[question.id].name]
                    self._show("", self._words["part"].format(part=part, left=f"{left:.0f}"))
                try:
                    self._one(session, question)
                    self._follow_up(question, parts and parts[question.id].follow_ups)
                except Skip:
                    session.skip()
                    self._show(self._words["skipped"])
                except Back:
                    self._again(session)
        except (Stop, EOFError, KeyboardInterrupt) as why:
            self._show("", self._words["stopped"].format(n=len(session.reviews)))
            self._summary(session)
            if isinstance(why, KeyboardInterrupt):
                raise
            return
        if not asked:
            self._show(nothing_to_ask(session, "--due"))
        elif not session.reviews:
            self._show("", self._words["none graded"])
        else:
            score = sum(r.score for r in session.reviews) / len(session.reviews)
            self._show("", self._words["done"].format(n=len(session.reviews), score=score))
            self._summary(session)

    def _summary(self, session: Session) -> None:
        """The musts that were missed, and where they are worked out."""
        missed = session.missed()
        if missed:
            points = [(q.id, text) for q, gone in missed for text in gone]
            self._show("", self._words["missed"], listed(points))
            cells = [(q.id, f"`{cell}`") for q, _ in missed for cell in q.cells]
            self._show("", self._words["to read"], listed(cells))

    def _one(self, session: Session, question: Question) -> None:
        words = self._words
        number, of = session.place()
        head = words["question"].format(n=number, of=of)
        about = words["minutes"].format(m=question.minutes)
        area = self.bank.area(question.area, self.language)
        self._show("", f"{head}  ·  {area}, L{question.level}, {about}  ·  {question.id}")
        self._show_question(question)
        speak = [self._speak, self._sure]
        if question.steps:
            speak.insert(0, self._looks)
        if question.exercise:
            speak.insert(1, self._code)
        self._through(session, speak, outermost=True)
        session.said()
        numbers = [
            lambda session, index=index: self._number(session, index)
            for index in range(len(question.numeric))
        ]
        self._through(session, numbers)
        session.reveal()
        took, planned = clock_text(session.seconds()), clock_text(question.minutes * 60)
        self._show("", words["took"].format(took=took, planned=planned))
        self._show_answer(question, session)
        self._grade(session)

    def _through(self, session: Session, steps: list[Callable], outermost: bool = False) -> None:
        """One step after the other; a hint repeats one, a step back goes to the one before."""
        index = 0
        while index < len(steps):
            try:
                steps[index](session)
                index += 1
            except Hint:
                self._hint(session)
            except Back:
                if index == 0 and outermost and session.can_go_back():
                    raise
                if index == 0:
                    self._show(self._words["no back"])
                index = max(0, index - 1)

    def _again(self, session: Session) -> None:
        """Back beyond a question's begin: the grade before it is withdrawn, and given again."""
        question = session.back()
        self._show(self._words["one more"].format(id=question.id))
        self._show_rubric(question, session.notes)
        try:
            self._grade(session)
        except Skip:
            session.skip()
            self._show(self._words["skipped"])

    def _hint(self, session: Session) -> None:
        question = session.question
        if hint := session.hint():
            self._show(markdown(hint))
        elif not question.hints:
            musts = sum(point.must for point in question.rubric)
            shape = dict(n=len(question.rubric), musts=musts, cell=question.cells[0])
            self._show(self._words["shape"].format(**shape))
        else:
            self._show(self._words["no hint"])

    def _speak(self, session: Session) -> None:
        self._show(self._words["think"])
        lines = session.notes.splitlines()
        while True:
            try:
                line = self._prompt("", note=True)
            except Hint:
                self._hint(session)
                continue
            if not line:
                break
            lines.append(line)
        session.notes = "\n".join(lines)

    def _looks(self, session: Session) -> None:
        """The looks of a diagnosis, mixed; each shows what it finds when it is taken."""
        offered = session.question.mixed()
        self._show("", self._words["choose"])
        steps = session.question.steps
        self._show(listed((f"{mark}.", steps[i].look) for mark, i in zip(_LETTERS, offered)))
        while letters := self._marked("", _LETTERS[: len(offered)]):
            for letter in letters:
                step = session.look(offered[letter])
                self._show(listed([(f"{_LETTERS[letter]}.", step.because)]))

    def _sure(self, session: Session) -> None:
        if said := self._marked(self._words["confidence"], "1234", 1):
            session.set_confidence(said[0] + 1)

    def _number(self, session: Session, index: int) -> None:
        numeric = session.question.numeric[index]
        unit = self._words["asked in"].format(unit=numeric.unit) if numeric.unit else ""
        prompt = self._words["number"].format(prompt=asked_for(numeric), unit=unit)
        judged = self._asked(prompt, lambda said: said and session.answer_number(index, said))
        if judged:
            self._show(listed([(" ", spoken(judged.text, self.language))]))

    def _grade(self, session: Session) -> None:
        said: dict[str, list[int]] = {}
        question = session.question
        points = [str(i) for i, _ in enumerate(question.rubric, 1)]
        flags = _LETTERS[: len(question.red_flags)]
        steps = [
            lambda _: said.update(ticks=self._marked(self._words["ticks"], points)),
            lambda _: said.update(flags=self._marked(self._words["said flags"], flags)),
            lambda session: self._rate(session, said["ticks"], said["flags"]),
        ]
        self._through(session, steps)

    def _rate(self, session: Session, ticks: list[int], flags: list[int]) -> None:
        words, proposal = self._words, session.propose(ticks, flags)
        choices = ", ".join(
            f"{i} {words[r]} ({session.would_come(r)})" for i, r in enumerate(RATINGS, 1)
        )
        why = spoken(proposal.why, self.language)
        text = words["grade"].format(choices=choices, proposed=words[proposal.rating], why=why)
        while True:
            given = self._marked(text, "1234", 1)
            rating = RATINGS[given[0]] if given else proposal.rating
            due = session.would_come(rating)
            try:
                session.grade(rating, ticks, flags)
                break
            except OSError as error:  # a full disk, a lock: what was said is still here
                self._show(words["not written"].format(error=spoken(str(error), self.language)))
        self._show(words["next"].format(day=due))

    def _follow_up(self, question: Question, most: int | None) -> None:
        """The follow-ups, asked one by one. In an interview (`most`) it counts what was said."""
        words = self._words
        try:
            for one in question.followups[:most]:
                self._show("", markdown(f"{words['followup']}: {one.question}"))
                self._prompt(words["points at"])
                self._show(listed(("-", point) for point in one.points))
                if most is not None:
                    had = self._prompt(words["had it"]).lower().startswith("y")
                    self._followed.setdefault(question.id, []).append(had)
        except (Skip, Back, Hint):
            return

    def _code(self, session: Session) -> None:
        try:
            from picolab.exercises.catalogue import find

            exercise = find(session.question.exercise)
        except ImportError:
            self._show(self._words["no torch"])
            return
        self._show(markdown(f"{exercise.statement()}\n\n```python\n{exercise.stub}\n```"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            own = tempfile.mkdtemp(prefix=f"{session.question.id}_", dir=self._folder)
            path = Path(own) / f"{exercise.stub_function.__name__}.py"
            path.write_text(exercise.stub + "\n", encoding="utf-8")
        except OSError as error:  # a folder that is not ours: answer without it
            self._show(str(error))
            return
        self.say(self._words["stub"].format(path=path))
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        prompt = self._words["check"].format(edit=self._words["edit"] if editor else "")
        while said := self._prompt(prompt).lower():
            if said == "e" and editor:
                subprocess.run([*shlex.split(editor), str(path)], check=False)
            elif said == "c":
                self._show(self._words["checking"])
                self.say(_judged(exercise, path))

    # Looking, without practising.

    def show(self, question_id: str) -> None:
        """A question and its answer."""
        question = self.bank.find(question_id, self.language)
        area = self.bank.area(question.area, self.language)
        self._show(f"{question.id}  ·  {area}, L{question.level}")
        self._show_question(question)
        self._show_answer(question)
        more = [("-", f"{one.question} ({'; '.join(one.points)})") for one in question.followups]
        self._show(f"\n{self._words['followups']}", listed(more))

    def questions(self, topic: str | None = None) -> None:
        """All questions, by level and length, and when each comes again."""
        session = Session(self.bank, self.log, topic=topic, language=self.language)
        due = {name: state.due for name, state in session.states().items()}
        questions = sorted(self.bank.questions(topic), key=lambda q: (q.level, q.minutes, q.id))
        fresh = self._words["new"]
        rows = [
            [
                *(question.id, question.level, question.minutes),
                *(self.bank.area(question.area, self.language), question.kind),
                self.bank.find(question.id, self.language).title,
                str(local_day(due[question.id])) if due.get(question.id) else fresh,
            ]
            for question in questions
        ]
        new = sum(row[-1] == fresh for row in rows)
        title = self._words["list title"].format(n=len(rows), new=new)
        self._show(Table(self._words["list columns"].split("|"), rows, title))

    def stats(self) -> None:
        reviews, language = self.log.reviews(), self.language
        self._say_what_is_unreadable()
        if not reviews:
            self._show(self._words["no reviews"].format(n=len(self.bank.questions())))
            return
        self._show(statistics.by_area(self.bank, reviews, language))
        comes = statistics.forecast(self.bank, reviews, self._clock(), language=language)
        self._show("", comes)
        self._show("", statistics.calibration(reviews, language))

    def _show_question(self, question: Question) -> None:
        self._show(f"\n{question.title}\n", markdown(question.question))
        if question.conventions:
            said = listed(("-", convention) for convention in question.conventions)
            self._show("", self._words["conventions"], said)

    def _show_answer(self, question: Question, session: Session | None = None) -> None:
        words, found = self._words, question.computed()
        self._show(f"\n{words['answer']}\n", markdown(question.answer))
        if question.steps:
            steps = enumerate(question.steps, 1)
            shown = listed((f"{i}.", f"{step.look}: {step.because}") for i, step in steps)
            self._show(f"\n{words['steps']}", shown)
        if session and session.looks:
            right, pairs = session.in_order()
            order = ", ".join(str(index + 1) for index in session.looks)
            said = words["your order" if pairs else "your looks"]
            self._show(said.format(order=order, right=right, pairs=pairs))
        if question.numeric:
            numbers = (
                ("=", f"{asked_for(one)}: {found[one.value]:.6g} {one.unit}".rstrip())
                for one in question.numeric
            )
            self._show("", listed(numbers))
        self._show(f"{words['read']}: {', '.join(question.cells)}")
        try:
            known = read_sources(self.bank.folder)
        except BankError:  # a folder of one's own, without a list of sources
            known = {}
        for key in question.sources:
            cited = f"{known[key].citation}: {known[key].link}" if key in known else key
            self._show(f"  {cited}")
        self._show_rubric(question, session.notes if session else "")

    def _show_rubric(self, question: Question, notes: str = "") -> None:
        """What is looked for; beside it what the reader has noted."""
        words = self._words
        points = listed(
            (f"{i}.", f"[{point.points}] {point.text}{words['must'] if point.must else ''}")
            for i, point in enumerate(question.rubric, 1)
        )
        if notes:
            both = Grid.grid(padding=(0, 2), expand=True)
            both.add_column(ratio=2)
            both.add_column(ratio=1)
            both.add_row(words["rubric"], words["your notes"])
            both.add_row(points, notes)
            self._show("", both)
        else:
            self._show(f"\n{words['rubric']}", points)
        flags = [(f"{mark}.", flag) for mark, flag in zip(_LETTERS, question.red_flags)]
        self._show(words["flags"], listed(flags))

    # Reading and writing.

    def _prompt(self, text: str, note: bool = False) -> str:
        if text:
            self._show(text)
        try:
            said = self._ask("> ").strip()
        except UnicodeDecodeError as error:  # what was typed is not in the terminal's encoding
            self._show(f"  {error}")
            return self._prompt(text, note)
        # Bytes that stood for no character would not go into the log.
        said = said.encode("utf-8", "replace").decode()
        command = said.lower()
        if command.startswith((":", "：")) and command[1:] in _COMMANDS:
            raise _COMMANDS[command[1:]]
        if not note and command in ("q", "s"):
            raise _COMMANDS[command]
        return said

    def _asked(self, text: str, understood: Callable[[str], T]) -> T:
        """Ask until it is understood; until then a ValueError says what would be."""
        while True:
            said = self._prompt(text)
            try:
                return understood(said)
            except ValueError as error:  # no number, no mark: ask again
                self._show(f"  {spoken(str(error), self.language)}")

    def _marked(self, text: str, marks: Sequence[str], most: int | None = None) -> list[int]:
        """Which of these marks, by place; of numbers, `a` is all."""

        def places(said: str) -> list[int]:
            parts = re.sub("[,，、]", " ", said).lower().split()
            if parts == ["a"] and "a" not in marks:
                parts = list(marks)
            if not set(parts) <= set(marks) or len(parts) > (most or len(parts)):
                raise ValueError(f"{marks[0]} ... {marks[-1]}")
            return sorted({marks.index(part) for part in parts})

        return self._asked(text, places)

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


def _judged(exercise, path: Path) -> str:
    """What the judge says of the file, or what is wrong with it."""
    # As if it stood in a script: then it travels to the ranks by value.
    names: dict = {"__name__": "__main__"}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
        name = exercise.stub_function.__name__
        if name not in names:
            raise ValueError(f"{path.name} defines no {name}")
        return str(exercise.check(names[name]))
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


def asked_for(numeric: Numeric) -> str:
    """What a number is of, with the convention where there are two."""
    return f"{numeric.prompt} ({numeric.convention})" if numeric.convention else numeric.prompt


def nothing_to_ask(session: Session, due_option: str) -> str:
    """Why a session has no question at all, in a sentence. The option is how it was asked for."""
    words = WORDS[session.language]
    coming = [state.due for state in session.states().values() if state.due is not None]
    day = local_day(min(coming)) if coming else ""
    if session.weak:
        return words["none weak"]
    if not session.due_only:
        return words["all seen"].format(day=day)
    return words["nothing" if coming else "nothing at all"].format(day=day, due=due_option)


def clock_text(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
