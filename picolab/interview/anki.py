"""The questions as an Anki deck: `picolab quiz export anki out.apkg`.

    export(bank, Path("out.apkg"), "en", topic=None)      how many cards it holds

Small cards, since a long one is read and not recalled. Of each question:

    idea         the question; behind it the points that an interviewer looks for
    looks        of a diagnosis: behind it the looks in their order, and what each shows
    number       one for each: the question and what is asked; behind it the value, known mistakes
    follow-up    one for each, with the question's title above it

A note's identity is made from the question's id, the card's part and the language, and the ids of
decks and note type are constants. So Anki updates a card that it knows when a deck is imported
again, with its schedule kept, also after the text was edited; and both languages stand side by
side. The answer in full is not in the deck: each card says where it is worked out.
"""

import html
import json
import sqlite3
import tempfile
import time
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from picolab.interview import values as numbers
from picolab.interview.bank import Bank, Language, Question, check_language
from picolab.interview.words import WORDS
from picolab.show.files import write_beside
from picolab.show.markdown import markdown_html
from picolab.show.table import show

# Never change these: Anki would take the next import for other cards.
MODEL_ID = 1_794_220_312
DECKS = {
    "en": (2_048_117_427, "picolab interview questions"),
    "zh": (2_048_117_428, "picolab 面试题"),
}
FIELDS = ("Key", "Title", "About", "Front", "Back")
_FRONT = "<h1>{{Title}}</h1><div class=about>{{About}}</div>{{Front}}"
_CSS = """
.card { font: 17px/1.5 system-ui, sans-serif; text-align: left; max-width: 46em; margin: 0 auto;
  color: #1a1a1a; background: #ffffff; }
h1 { font-size: 1.15em; } h2 { font-size: 1em; margin: 1.2em 0 .3em; color: #3b5166; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; background: #eef1f4;
  border-radius: 3px; padding: 0 .2em; }
pre { padding: .6em; overflow-x: auto; } pre code { padding: 0; }
table { border-collapse: collapse; } td, th { padding: .1em .8em .1em 0; text-align: left; }
.about { color: #55606b; font-size: .85em; } li { margin: .2em 0; }
.must { color: #9a3412; font-weight: 600; }
.nightMode.card, .night_mode .card { color: #e6e6e6; background: #1e1f22; }
.nightMode h2, .night_mode h2 { color: #a9c1d9; }
.nightMode code, .nightMode pre, .night_mode code, .night_mode pre { background: #2f3237; }
.nightMode .about, .night_mode .about { color: #a7b0b9; }
.nightMode .must, .night_mode .must { color: #fdba74; }
"""


class Card(NamedTuple):
    part: str
    """idea, looks, number-1, follow-up-1: with the id, what it is known by"""
    front: str
    back: str


def export(bank: Bank, path: Path, language: Language = "en", topic: str | None = None) -> int:
    """Write the deck; return how many cards it holds. ValueError for a topic or language that is
    not there, a file that does not end in .apkg, or a folder that is not there.
    """
    import genanki

    check_language(language)
    path = Path(path)
    if path.suffix != ".apkg":
        raise ValueError(f"an Anki deck ends in .apkg; write {path.stem or 'picolab'}.apkg")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}; make it first")
    model = genanki.Model(
        MODEL_ID,
        "picolab interview card",
        fields=[{"name": name} for name in FIELDS],
        templates=[{"name": "Card", "qfmt": _FRONT, "afmt": "{{FrontSide}}<hr id=answer>{{Back}}"}],
        css=_CSS,
    )
    deck = genanki.Deck(*DECKS[language])
    for asked in sorted(bank.questions(topic), key=lambda q: (q.level, q.minutes, q.id)):
        question = bank.find(asked.id, language)
        area = bank.area(question.area, language)
        about = html.escape(f"{question.id} · {area} · L{question.level}")
        title = markdown_html(question.title, inline=True)
        for card in cards(question, language):
            deck.add_note(
                genanki.Note(
                    model=model,
                    guid=genanki.guid_for("picolab", language, question.id, card.part),
                    fields=[f"{question.id} {card.part}", title, about, card.front, card.back],
                    tags=[
                        *(bank.topic_of(question.id), question.area, question.kind),
                        *(f"level-{question.level}", card.part.rstrip("-0123456789")),
                    ],
                    due=len(deck.notes),
                )
            )
    write_beside(path, _apkg(genanki.Package(deck)))
    return len(deck.notes)


def cards(question: Question, language: Language) -> Iterator[Card]:
    """All cards of a question, as HTML."""
    words, found = WORDS[language], question.computed()
    asked = markdown_html(question.question)
    if question.conventions:
        asked += _part(words["conventions"], map(_inline, question.conventions))
    code = ""
    if question.exercise:
        code = f"<p><code>pico.exercise({html.escape(question.exercise)!r})</code></p>"
    read = "".join(f"<li><code>{html.escape(cell)}</code></li>" for cell in question.cells)
    read = f"<h2>{words['read']}</h2><ul>{read}</ul>"
    must = f" <span class=must>{html.escape(words['must'].strip())}</span>"
    rubric = (f"{_inline(point.text)}{must if point.must else ''}" for point in question.rubric)
    yield Card("idea", asked + code, _part(words["rubric"], rubric) + read)
    if question.steps:
        looks = (f"{_inline(step.look)}<br>{_inline(step.because)}" for step in question.steps)
        order = f"<p><b>{words['steps']}?</b></p>"
        yield Card("looks", asked + order, _list(looks, "ol"))
    for index, numeric in enumerate(question.numeric, 1):
        unit = html.escape(f" {numeric.unit}".rstrip())
        said = f" ({_inline(numeric.convention)})" if numeric.convention else ""
        wrong = [
            f"≠ {show(float(numbers.evaluate(w.value, found)))}{unit}: {_inline(w.why)}"
            for w in numeric.wrong
        ]
        value = f"<p><b>{show(float(found[numeric.value]))}{unit}</b></p>"
        prompt = f"<p><b>{_inline(numeric.prompt)}</b>{said}</p>"
        yield Card(f"number-{index}", asked + prompt, value + _list(wrong))
    for index, one in enumerate(question.followups, 1):
        front = f"<p>{_inline(one.question)}</p>"
        yield Card(f"follow-up-{index}", front, _list(map(_inline, one.points)))


def _apkg(package) -> bytes:
    """What package.write_to_file writes, which leaves its database in the temporary folder."""
    now = time.time()
    with tempfile.TemporaryDirectory(prefix="picolab-anki-") as folder:
        database, archive = Path(folder, "collection.anki2"), Path(folder, "deck.apkg")
        connection = sqlite3.connect(database)
        package.write_to_db(connection.cursor(), now, count(int(now * 1000)))
        connection.commit()
        connection.close()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(database, database.name)
            file.writestr("media", json.dumps({}))
        return archive.read_bytes()


def _inline(text: str) -> str:
    return markdown_html(text, inline=True)


def _part(title: str, entries) -> str:
    return f"<h2>{title}</h2>{_list(entries)}"


def _list(entries, kind: str = "ul") -> str:
    entries = list(entries)
    return f"<{kind}>{''.join(f'<li>{entry}</li>' for entry in entries)}</{kind}>" * bool(entries)
