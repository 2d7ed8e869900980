"""The texts of a quiz card as HTML, and the card that needs no widget.

A question's texts are Markdown; what stands in them as HTML stays text. Colours are JupyterLab's
own variables with `inherit` or `currentColor` behind them, so a card is readable on a light page
and on a dark one, and in a page that knows none of them.
"""

import html
import re
from collections.abc import Callable

from picolab.interview.bank import Numeric, Question
from picolab.interview.reviews import local_day
from picolab.interview.session import Session
from picolab.interview.terminal import asked_for, clock_text
from picolab.interview.words import WORDS, spoken
from picolab.show.markdown import markdown_html
from picolab.show.table import Table

STYLE = """<style>
.picolab-quiz { max-width: 60em; padding: 2px 4px; line-height: 1.45;
  color: var(--jp-ui-font-color1, inherit); font-size: var(--jp-content-font-size1, 14px) }
.picolab-quiz p { margin: 0 0 .5em }
.picolab-quiz :is(h1, h2) { margin: .9em 0 .3em; font-size: 1.15em; font-weight: 600 }
.picolab-quiz h4 { margin: .2em 0 .4em; font-size: 1.15em }
.picolab-quiz h5 { margin: .9em 0 .3em; font-size: 1em }
.picolab-quiz ul, .picolab-quiz ol { margin: 0 0 .5em; padding-left: 1.6em }
.picolab-quiz code { font-family: var(--jp-code-font-family, monospace); font-size: .92em;
  background: var(--jp-layout-color2, transparent); padding: 0 .25em }
.picolab-quiz pre { background: var(--jp-layout-color2, transparent); padding: .5em .7em;
  overflow-x: auto; margin: 0 0 .5em; line-height: 1.3 }
.picolab-quiz pre code { padding: 0; background: none }
.picolab-quiz table { border-collapse: collapse; margin: .3em 0 .6em }
.picolab-quiz td, .picolab-quiz th { padding: 2px 14px 2px 0; vertical-align: top;
  white-space: nowrap; text-align: left }
.picolab-quiz td:first-child { white-space: normal }
.picolab-quiz a { color: var(--jp-content-link-color, LinkText); text-decoration: underline }
.picolab-quiz-soft { color: var(--jp-ui-font-color2, inherit) }
.picolab-quiz-right { color: var(--jp-success-color1, inherit); font-weight: 600 }
.picolab-quiz-wrong { color: var(--jp-error-color1, inherit); font-weight: 600 }
.picolab-quiz-alert { border-left: 3px solid var(--jp-warn-color1, currentColor);
  padding: .2em .7em; margin: .2em 0; white-space: pre-wrap }
.picolab-quiz-note { border-left-color: var(--jp-border-color1, currentColor) }
.picolab-quiz .jp-OutputArea-output { padding: 0 }
.picolab-quiz .jp-OutputArea-prompt { display: none }
.picolab-quiz .widget-box { overflow: visible }
.picolab-quiz .widget-html, .picolab-quiz .widget-html-content { height: auto; line-height: 1.45;
  font-size: inherit; overflow: visible; align-self: auto }
.picolab-quiz .widget-checkbox { height: auto; width: auto; align-items: flex-start; margin: 1px 0 }
.picolab-quiz .widget-checkbox label { white-space: normal; line-height: 1.45; height: auto;
  width: auto; font-size: inherit; overflow: visible; display: flex; gap: .5em;
  align-items: baseline }
.picolab-quiz .widget-checkbox input[type=checkbox] { margin: 0; flex: none }
.picolab-quiz textarea { font-size: inherit }
.picolab-quiz .widget-toggle-buttons > div { flex-wrap: wrap }
.picolab-quiz .jupyter-button { width: auto; height: auto; min-height: 28px; padding: 2px 12px;
  white-space: normal; line-height: 1.3 }
.picolab-quiz .jupyter-button:disabled { opacity: .5 }
.picolab-quiz .widget-hprogress { height: 12px; min-width: 8em }
.picolab-quiz .widget-hprogress .progress { margin: 2px 0; height: 8px }
.picolab-quiz :is(input, textarea, button) { scroll-margin: 40vh 0 6em }
.picolab-quiz .widget-checkbox input { scroll-margin: 60vh 0 12em }
.picolab-quiz :is(input, textarea, button, a):focus-visible,
.picolab-quiz .jupyter-button:focus-visible:enabled {
  outline: 2px solid var(--jp-brand-color1, Highlight) !important; outline-offset: 2px }
</style>"""


def wrapped(body: str) -> str:
    """A piece of a card outside widgets, with its style."""
    return f'{STYLE}<div class="picolab-quiz">{body}</div>'


# The parts of a card.


def head_html(session: Session, part: str = "") -> str:
    return f'<div class="picolab-quiz-soft">{html.escape(head_text(session, part))}</div>'


def head_text(session: Session, part: str = "") -> str:
    """Which question of how many, its area, its level, its minutes; an interview's part first."""
    words, question = WORDS[session.language], session.question
    number, of = session.place()
    about = words["minutes"].format(m=question.minutes)
    area = session.bank.area(question.area, session.language)
    said = [words["question"].format(n=number, of=of), f"{area}, L{question.level}", about]
    return "  ·  ".join([*([part] if part else []), *said, question.id])


def question_html(session: Session) -> str:
    """Title, question, conventions; of a coding task the statement and the stub as well."""
    words, question = WORDS[session.language], session.question
    body = (
        f"<h4>{markdown_html(question.title, inline=True)}</h4>{markdown_html(question.question)}"
    )
    if question.conventions:
        said = "".join(f"<li>{markdown_html(c, inline=True)}</li>" for c in question.conventions)
        body += f"<h5>{html.escape(words['conventions'])}</h5><ul>{said}</ul>"
    if question.exercise:
        body += markdown_html(task_markdown(question.exercise, session.language))
    return body


def task_markdown(exercise_id: str, language: str) -> str:
    """A coding task: its statement, and what to copy into a cell; without torch, how to get it."""
    words = WORDS[language]
    try:
        from picolab.exercises.catalogue import find

        exercise = find(exercise_id)
    except ImportError:
        return words["no torch"]
    call = f'pico.exercise("{exercise_id}").check({exercise.stub_function.__name__})'
    code = f"import picolab as pico\n\n\n{exercise.stub}\n\n\n{call}"
    return f"{exercise.statement()}\n\n{words['copy']}\n\n```python\n{code}\n```"


def prompt_html(numeric: Numeric) -> str:
    return markdown_html(asked_for(numeric), inline=True)


def verdict_html(verdict, first: bool, language: str) -> str:
    """Right or not, and why. Only the first answer counts; a later one says so."""
    kind, mark = ("right", "✓") if verdict.right else ("wrong", "✗")
    text = markdown_html(spoken(verdict.text, language), inline=True)
    more = "" if first else f" {html.escape(WORDS[language]['first counts'])}"
    return f'<div><span class="picolab-quiz-{kind}">{mark}</span> {text}{more}</div>'


def answer_html(session: Session) -> str:
    """What was taken, the answer, the steps of a diagnosis, the numbers."""
    words, question = WORDS[session.language], session.question
    took = clock_text(session.seconds())
    planned = clock_text(question.minutes * 60)
    body = (
        f'<div class="picolab-quiz-soft">{words["took"].format(took=took, planned=planned)}</div>'
        f"<h5>{html.escape(words['answer'])}</h5>{markdown_html(question.answer)}"
    )
    if question.steps:
        said = "".join(
            f"<li>{markdown_html(s.look, inline=True)}: {markdown_html(s.because, inline=True)}"
            "</li>"
            for s in question.steps
        )
        body += f"<h5>{html.escape(words['steps'])}</h5><ol>{said}</ol>"
    if session.looks:
        right, pairs = session.in_order()
        order = ", ".join(str(index + 1) for index in session.looks)
        told = words["your order" if pairs else "your looks"]
        body += f"<p>{html.escape(told.format(order=order, right=right, pairs=pairs))}</p>"
    computed = question.computed()
    for number in question.numeric:
        value = f"{computed[number.value]:.6g} {number.unit}".rstrip()
        body += f"<p>{prompt_html(number)}: <b>{html.escape(value)}</b></p>"
    return body


def point_html(question: Question, index: int, language: str) -> str:
    words, point = WORDS[language], question.rubric[index]
    worth = words["one point"] if point.points == 1 else words["points"].format(n=point.points)
    must = f"<b>{html.escape(words['must'].strip())}</b>" if point.must else ""
    soft = f'<span class="picolab-quiz-soft">[{html.escape(worth)}]</span>'
    return f"<span>{markdown_html(point.text, inline=True)} {soft} {must}</span>".strip()


def followups_html(question: Question, language: str) -> str:
    show = html.escape(WORDS[language]["show points"])
    asked = "".join(
        f"<li>{markdown_html(f.question, inline=True)}<details><summary>{show}</summary><ul>"
        + "".join(f"<li>{markdown_html(point, inline=True)}</li>" for point in f.points)
        + "</ul></details></li>"
        for f in question.followups
    )
    return f"<h5>{html.escape(WORDS[language]['followups'])}</h5><ul>{asked}</ul>"


def reading_markdown(question: Question, source: Callable[[str], tuple[str, str]]) -> str:
    """Links to cells of the notebooks beside this one, and to sources.

    Markdown, because JupyterLab renders that itself: then it resolves the path, opens the notebook
    in a tab of its own and scrolls to the cell.
    """
    links = [_cell_link(cell) for cell in question.cells]
    links += [source(key) for key in question.sources]
    return "\n".join(f"* {_link(text, address)}" for text, address in links)


def _cell_link(cell: str) -> tuple[str, str]:
    path, _, name = cell.partition("#")
    file = path.rsplit("/", 1)[-1]
    return (f"{file}, {name}", f"{file}#cell-id={name}") if name else (file, file)


def _link(text: str, address: str) -> str:
    plain = re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)
    return f"[{plain}]({address})" if address else plain


def alert_html(text: str) -> str:
    """What went wrong; a screen reader interrupts for it."""
    return f'<div class="picolab-quiz-alert" role="alert">{html.escape(text)}</div>' if text else ""


def note_html(text: str) -> str:
    """What is worth knowing, and nothing to act on."""
    kind = "picolab-quiz-alert picolab-quiz-note"
    return f'<div class="{kind}" role="status">{html.escape(text)}</div>' if text else ""


# Without widgets.


class Card:
    """Text and HTML of the same thing: what a headless notebook shows, and a finished practice."""

    def __init__(self, text: str, body: str):
        self.text, self.body = text, body

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return wrapped(self.body)


def static_card(session: Session, part: str = "") -> Card:
    """The question as it is drawn, to be read; how to practise it is said at its end."""
    words, question = WORDS[session.language], session.question
    lines = [head_text(session, part), "", question.title, "", question.question.strip()]
    if question.conventions:
        lines += ["", f"{words['conventions']}: {'; '.join(question.conventions)}"]
    if question.exercise:
        lines += ["", task_markdown(question.exercise, session.language)]
    body = head_html(session, part) + question_html(session)
    asked = [
        asked_for(n) + (words["asked in"].format(unit=n.unit) if n.unit else "")
        for n in question.numeric
    ]
    lines += [f"* {text}" for text in asked]
    if asked:
        said = "".join(f"<li>{markdown_html(text, inline=True)}</li>" for text in asked)
        body += f"<ul>{said}</ul>"
    lines += ["", words["static"]]
    body += f'<div class="picolab-quiz-soft">{markdown_html(words["static"], inline=True)}</div>'
    return Card("\n".join(lines), body)


def summary(session: Session, titles: dict[str, str], calibration: str) -> Card:
    """What was graded: a table, and one sentence about confidence."""
    words, states = WORDS[session.language], session.states()
    if not session.reviews:
        return Card(words["none graded"], f"<p>{html.escape(words['none graded'])}</p>")
    rows = []
    for review in session.reviews:
        question = session.bank.find(review.id, session.language)
        sure = words[f"sure {review.confidence}"] if review.confidence else ""
        took = f"{clock_text(review.seconds)} ({clock_text(question.minutes * 60)})"
        state = states.get(review.id)
        comes = str(local_day(state.due)) if state and state.due else ""
        share, grade = f"{review.score:.0%}", words[review.rating]
        level = f"L{question.level}"
        area = session.bank.area(question.area, session.language)
        rows.append([titles[review.id], area, level, share, grade, sure, took, comes])
    score = sum(review.score for review in session.reviews) / len(session.reviews)
    title = words["summary"].format(n=len(session.reviews), score=score)
    table = Table(words["columns"].split("|"), rows, title)
    sentence = spoken(calibration, session.language)
    text, body = f"{table!r}\n{sentence}", f"{table._repr_html_()}<p>{html.escape(sentence)}</p>"
    missed = session.missed()
    if missed:
        points = [f"* {question.id}: {point}" for question, gone in missed for point in gone]
        cells = [f"* {question.id}: `{cell}`" for question, _ in missed for cell in question.cells]
        told = "\n".join(
            [f"{words['missed']}:", "", *points, "", f"{words['to read']}:", "", *cells]
        )
        text, body = f"{text}\n\n{told}", body + markdown_html(told)
    return Card(text, body)
