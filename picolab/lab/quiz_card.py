"""`pico.quiz()`: one question at a time, judged numbers, an answer with its rubric, a grade.

The face is thin: what is asked when, what a number is worth and when a question comes again is
decided by `picolab.interview.session`, which a terminal drives as well (`picolab quiz`). Here is
what each button does to it, and what is said when that fails: a full disk or another window that
holds the log leaves the question open, with everything that was typed and ticked.

Widgets are made for a front end only. Headless, the first question stands there to be read, drawn
as for somebody who has graded nothing, always the same; nothing is written, and no log is read but
one that is given. A practice that has ended is replaced by a table that needs no widget.
"""

import os
import random
from datetime import date
from pathlib import Path

from picolab.show.front_end import Message, Shown, has_front_end


def quiz(
    topic: str | None = None,
    *,
    level: int | None = None,
    area: str | None = None,
    kind: str | None = None,
    taught: bool = False,
    due: bool = False,
    weak: bool = False,
    n: int | None = None,
    within: int | None = None,
    minutes: int | None = None,
    lang: str = "en",
    until: str | date | None = None,
    bank: str | Path | None = None,
    log: str | Path | None = None,
    report: str | Path | None = None,
    live: bool | None = None,
) -> "Quiz":
    """Practise for interviews: due questions first, then new ones.

    topic     of one bank only, for instance "4d_basics"
    level     3 explain, 4 quantify, 5 design, 6 diagnose
    area      of one area only, for instance "pipeline"
    kind      "explain", "numeric", "code", "diagnose" or "design"
    taught    only those that the topic's chapter answers
    due       only what is due
    weak      what was graded hard or again, the worst first
    n         how many questions
    within    as many as should take so many minutes; 20, if n is not given
    minutes   a mock interview of so many minutes; it chooses its questions itself
    lang      "en" or "zh"
    until     the day of an interview, as "2027-03-01": everything comes before it; remembered
    bank      a folder of question banks instead of the installed one
    log       a file for the grades instead of the one in your data folder
    report    where the mock interview's report goes
    live      True or False instead of finding out whether there is a front end with widgets

    Returns a `Quiz`, which has shown itself: `.session`, `.report_path`. ValueError for what is not
    there: a topic, a level, a language, a date.
    """
    return Quiz(
        topic=topic,
        taught=taught,
        choice=dict(
            level=level, area=area, kind=kind, due_only=due, weak=weak, count=n, within=within
        ),
        minutes=minutes,
        lang=lang,
        until=until,
        bank=bank,
        log=log,
        report=report,
        live=has_front_end() if live is None else live,
    )


class Quiz(Shown):
    def __init__(
        self,
        *,
        topic: str | None,
        choice: dict,
        taught: bool = False,
        minutes: int | None,
        lang: str,
        until: str | date | None,
        bank: str | Path | None,
        log: str | Path | None,
        report: str | Path | None,
        live: bool,
        clock=None,
        rng: random.Random | None = None,
    ):
        from picolab.interview import mock
        from picolab.interview.bank import bank_folder, check_language, load
        from picolab.interview.reviews import ReviewLog, local_day, now
        from picolab.interview.session import Session, day
        from picolab.interview.words import WORDS, spoken

        if minutes is not None and (taught or any(choice.values())):
            raise ValueError(
                "a mock interview (minutes=) chooses its questions itself; leave out level, area, "
                "kind, taught, due, weak, n and within"
            )
        check_language(lang)
        self._clock = clock or now
        # Headless, a notebook comes out the same for everybody, whatever they have graded.
        rng = rng or (random.Random() if live else random.Random(0))
        if log is None and not live:
            kept = ReviewLog(Path(os.devnull))
        else:
            kept = ReviewLog(None if log is None else Path(log))
        questions = load(bank_folder() if bank is None else Path(bank).resolve())
        self.words, self.minutes = WORDS[lang], minutes
        self.parts: list[mock.Part] | None = None
        if minutes is not None:
            self.parts = mock.plan(questions, rng, topic, mock.asked_last(kept.reviews()), minutes)
            plan = [part.question for part in self.parts]
            choice = dict(plan=plan, count=len(plan))
        until = day(until)
        if until is None and (known := kept.until()) and known > local_day(self._clock()):
            until = known
        self.session = Session(
            questions,
            kept,
            topic=topic,
            **choice,
            only=self._taught(topic) if taught else None,
            language=lang,
            until=until,
            clock=self._clock,
            rng=rng,
        )
        if until and live:
            kept.remember_until(until)
        self.report_path = Path(report) if report else None
        self.ended = False
        self.began = self._clock()
        self._titles: dict[str, str] = {}
        self._widgets = None
        self._card = None
        kept.reviews()
        self.note = spoken(kept.note(), lang)
        quota = self.session.quota()
        if quota:
            said = self.words["quota"].format(q=quota, until=self.session.until)
            self.note = f"{self.note}\n{said}".strip()
        question = self._draw()
        if question is None:
            self.ended, self._card = True, Message(self._nothing())
        elif live:
            from picolab.lab.quiz_widgets import QuizWidgets

            self._widgets = QuizWidgets(self)
            self._widgets.ask()
        else:
            from picolab.lab.quiz_text import static_card

            self._card = static_card(self.session, self.part())
        self.show()

    @staticmethod
    def _taught(topic: str | None) -> frozenset[str]:
        from picolab.interview.topics import TAUGHT

        if topic is None:
            return frozenset().union(*TAUGHT.values())
        return TAUGHT.get(topic, frozenset())

    def content(self):
        return self._widgets.box if self._widgets and not self.ended else self._card

    def __repr__(self) -> str:
        if self._card is not None:
            return repr(self._card)
        return f"a practice, {len(self.session.reviews)} graded"

    # -- what the face asks --

    def part(self) -> str:
        """The part of the interview, and the minutes that are left; "" in a plain practice."""
        if self.parts is None or self.session.question is None:
            return ""
        name = {part.question: part.name for part in self.parts}[self.session.question.id]
        left = f"{max(0.0, self.minutes_left()):.0f}"
        return self.words["part"].format(part=self.words[name], left=left).rstrip(".。")

    def minutes_left(self) -> float:
        """Of the interview; without one there is no end."""
        if self.minutes is None:
            return float("inf")
        return self.minutes - (self._clock() - self.began).total_seconds() / 60

    def source(self, key: str) -> tuple[str, str]:
        """What a source is called, and its address; the key alone where the bank does not say."""
        from picolab.interview.bank import BankError
        from picolab.interview.sources import read_sources

        try:
            found = read_sources(self.session.bank.folder).get(key)
        except BankError:
            found = None
        return (found.citation, found.link) if found else (key, "")

    # -- what the buttons do --

    def reveal(self) -> None:
        self.session.reveal()

    def grade(self, rating: str, ticks, flags) -> str:
        """Write the grade, and say so. OSError leaves everything as it is."""
        due = self.session.would_come(rating)
        review = self.session.grade(rating, ticks, flags)
        written = self.words["written"].format(grade=self.words[rating], score=review.score)
        separator = "" if self.session.language == "zh" else " "
        return f"{written}{separator}{self.words['next'].format(day=due)}"

    def go_on(self) -> bool:
        """The next question; False if there is none, and then the practice has ended."""
        if self.minutes_left() <= 0:
            self.end(self.words["time"].format(minutes=self.minutes))
            return False
        if self._draw() is None:
            self.end()
            return False
        return True

    def skip(self) -> bool:
        self.session.skip()
        return self.go_on()

    def back(self) -> None:
        """The last grade is withdrawn; its question is open to be graded again."""
        self.session.back()

    def deepen(self) -> bool:
        """The next question of the chain, whatever is due."""
        question = self.session.deepen()
        if question is None:
            return self.go_on()
        self._titles[question.id] = question.title
        return True

    def stop(self) -> None:
        """What was graded is written; the open question leaves no trace."""
        open_now = self.session.phase in ("thinking", "revealed")
        said = self.words["stopped"].format(n=len(self.session.reviews)) if open_now else ""
        self.end(said)

    def end(self, said: str = "") -> None:
        """The table takes the place of the card, and stays in the saved notebook."""
        if self.ended:
            return
        self.ended, self._card = True, self._closing(said)
        widgets, self._widgets = self._widgets, None
        self.replace(self._card)
        if widgets is not None:
            widgets.close()

    # -- inside --

    def _draw(self):
        question = self.session.draw()
        if question is not None:
            self._titles[question.id] = question.title
        return question

    def _nothing(self) -> str:
        from picolab.interview.terminal import nothing_to_ask

        said = nothing_to_ask(self.session, "due=True")
        return f"{self.note}\n{said}".strip()

    def _closing(self, said: str):
        import html

        from picolab.interview import mock
        from picolab.interview.statistics import calibration_sentence
        from picolab.lab.quiz_text import Card, alert_html, summary
        from picolab.show.markdown import markdown_html

        session = self.session
        try:
            past = session.log.reviews()
        except OSError:
            past = session.reviews
        made = summary(session, self._titles, calibration_sentence(past))
        text, body = made.text, made.body
        if said:
            text, body = f"{said}\n\n{text}", f"<p>{html.escape(said)}</p>{body}"
        if self.parts is not None:
            report = mock.report(
                session.bank,
                self.parts,
                session.reviews,
                self.began,
                self._clock(),
                session.language,
                session.skipped,
            )
            path = self.report_path or mock.report_path(session.log.path.parent, self.began)
            try:
                self.report_path = mock.keep(report, path)
                where = self.words["report"].format(path=path)
                body += f"<p>{html.escape(where)}</p>"
            except OSError as error:
                self.report_path = None
                where = self.words["no report"].format(error=error)
                body += alert_html(where)
            text += f"\n\n{where}\n\n{report}"
            body += f"<details open><summary>{html.escape(path.name)}</summary>"
            body += f"{markdown_html(report)}</details>"
        return Card(text, body)
