"""The questions as an Anki deck: `picolab quiz export anki out.apkg`.

    export(bank, Path("out.apkg"), "en", topic=None)      how many cards it holds

In front: the question, its conventions and the numbers that it asks for. Behind: the numbers, the
answer, the steps of a diagnosis, rubric, red flags, follow-ups, sources and cells.

A note's identity is made from the question's id alone, and the ids of deck and note type are
constants. So Anki updates a card that it knows when the deck is imported again, with its schedule
kept, also after the text was edited or in the other language.
"""

import html
import json
import re
import sqlite3
import tempfile
import time
import zipfile
from itertools import count
from pathlib import Path

from picolab.interview import values as numbers
from picolab.interview.bank import Bank, Language, Question, check_language
from picolab.interview.sources import Source, read_sources
from picolab.show.files import write_beside
from picolab.show.table import show

# Never change these: Anki would take the next import for other cards.
MODEL_ID = 1_794_220_311
DECK_ID = 2_048_117_426
FIELDS = ("Id", "Title", "About", "Question", "Back")
DECK = "picolab interview questions"

_WORDS = {
    "en": {
        "conventions": "Conventions",
        "numbers": "Numbers",
        "answer": "Answer",
        "steps": "In this order",
        "rubric": "What an interviewer would look for",
        "must": "must",
        "flags": "Red flags",
        "followups": "Follow-ups",
        "sources": "Read",
        "minutes": "{m} min",
        "level": "level {n}",
    },
    "zh": {
        "conventions": "约定",
        "numbers": "数值",
        "answer": "答案",
        "steps": "按此顺序",
        "rubric": "面试官会看什么",
        "must": "必答",
        "flags": "危险信号",
        "followups": "追问",
        "sources": "阅读",
        "minutes": "{m} 分钟",
        "level": "{n} 级",
    },
}
_FRONT = "<h1>{{Title}}</h1><div class=about>{{About}}</div>{{Question}}"
_CSS = """
.card { font: 17px/1.5 system-ui, sans-serif; text-align: left; max-width: 46em; margin: 0 auto;
  color: #1a1a1a; background: #ffffff; }
h1 { font-size: 1.25em; } h2 { font-size: 1em; margin: 1.2em 0 .3em; color: #3b5166; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; background: #eef1f4;
  border-radius: 3px; padding: 0 .2em; }
pre { padding: .6em; overflow-x: auto; } pre code { padding: 0; }
.about { color: #55606b; font-size: .85em; } li { margin: .2em 0; } a { color: #0b57a4; }
.must { color: #9a3412; font-weight: 600; }
.nightMode.card, .night_mode .card { color: #e6e6e6; background: #1e1f22; }
.nightMode h2, .night_mode h2 { color: #a9c1d9; }
.nightMode code, .nightMode pre, .night_mode code, .night_mode pre { background: #2f3237; }
.nightMode .about, .night_mode .about { color: #a7b0b9; }
.nightMode a, .night_mode a { color: #8ab4f8; }
.nightMode .must, .night_mode .must { color: #fdba74; }
"""


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
        "picolab interview question",
        fields=[{"name": name} for name in FIELDS],
        templates=[{"name": "Card", "qfmt": _FRONT, "afmt": "{{FrontSide}}<hr id=answer>{{Back}}"}],
        css=_CSS,
    )
    deck = genanki.Deck(DECK_ID, DECK)
    sources = read_sources(bank.folder)
    for question in bank.questions(topic):
        shown = bank.find(question.id, language)
        deck.add_note(
            genanki.Note(
                model=model,
                guid=genanki.guid_for("picolab", question.id),
                fields=_fields(shown, sources, language),
                tags=[
                    bank.topic_of(question.id),
                    question.area,
                    question.kind,
                    f"level-{question.level}",
                ],
                due=len(deck.notes),
            )
        )
    write_beside(path, _apkg(genanki.Package(deck)))
    return len(deck.notes)


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


def _fields(question: Question, sources: dict[str, Source], language: Language) -> list[str]:
    """In the order of FIELDS, as HTML."""
    words = _WORDS[language]
    about = [question.id, question.area, question.kind, words["level"].format(n=question.level)]
    about.append(words["minutes"].format(m=question.minutes))
    front = to_html(question.question)
    if question.conventions:
        front += _part(words["conventions"], map(_inline, question.conventions))
    if question.numeric:
        front += _part(words["numbers"], map(_asked, question.numeric))
    if question.exercise:
        front += f"<p><code>pico.exercise({html.escape(question.exercise)!r})</code></p>"
    found, back = question.computed(), ""
    if question.numeric:
        back += _part(words["numbers"], (_given(n, found) for n in question.numeric))
    back += f"<h2>{words['answer']}</h2>{to_html(question.answer)}"
    if question.steps:
        looks = (f"{_inline(s.look)}<br>{_inline(s.because)}" for s in question.steps)
        back += _part(words["steps"], looks, "ol")
    must = f" <span class=must>({words['must']})</span>"
    rubric = (f"{p.points}: {_inline(p.text)}{must if p.must else ''}" for p in question.rubric)
    back += _part(words["rubric"], rubric)
    back += _part(words["flags"], map(_inline, question.red_flags))
    back += _part(
        words["followups"],
        (f"{_inline(f.question)}{_list(map(_inline, f.points))}" for f in question.followups),
    )
    cells = (f"<code>{html.escape(cell)}</code>" for cell in question.cells)
    back += _part(words["sources"], [*(_cited(key, sources) for key in question.sources), *cells])
    return [
        html.escape(question.id),
        _inline(question.title),
        html.escape(" · ".join(about)),
        front,
        back,
    ]


def _asked(numeric) -> str:
    unit = f" [{html.escape(numeric.unit)}]" if numeric.unit else ""
    convention = f" ({_inline(numeric.convention)})" if numeric.convention else ""
    return f"{_inline(numeric.prompt)}{unit}{convention}"


def _given(numeric, found) -> str:
    unit = html.escape(f" {numeric.unit}".rstrip())
    wrong = [
        f"{show(float(numbers.evaluate(w.value, found)))}{unit}: {_inline(w.why)}"
        for w in numeric.wrong
    ]
    right = f"{_inline(numeric.prompt)} <b>{show(float(found[numeric.value]))}{unit}</b>"
    return right + (_list(f"≠ {one}" for one in wrong) if wrong else "")


def _cited(key: str, sources: dict[str, Source]) -> str:
    if key not in sources:
        return html.escape(key)
    source = sources[key]
    return f'{html.escape(source.citation)}, <a href="{html.escape(source.link)}">link</a>'


def _part(title: str, entries, kind: str = "ul") -> str:
    return f"<h2>{title}</h2>{_list(entries, kind)}"


def _list(entries, kind: str = "ul") -> str:
    return f"<{kind}>{''.join(f'<li>{entry}</li>' for entry in entries)}</{kind}>"


# The little Markdown that the banks use: paragraphs, lists, code, bold, stress. In 2 * 3 and 2**30
# a star is a star: those that mark have a word inside and none outside.
_STRONG = re.compile(r"(?<![\w*])\*\*(?=\S)(.+?)(?<=\S)\*\*(?![\w*])", re.DOTALL)
_STRESSED = re.compile(r"(?<![\w*])\*(?=\w)([^*]+?)(?<=[^\s*])\*(?![\w*])")


def to_html(text: str) -> str:
    """Paragraphs are parted by empty lines; `* ` or `1. ` begins an entry, ``` a block of code."""
    blocks = []
    for index, piece in enumerate(re.split(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.M)):
        if index % 2:
            blocks.append(f"<pre><code>{html.escape(piece.rstrip())}</code></pre>")
            continue
        for block in re.split(r"\n\s*\n", piece.strip()):
            entries = re.split(r"^(?:[*-]|\d+\.)\s+", block, flags=re.M)
            before, entries = entries[0].strip(), entries[1:]
            if before:
                blocks.append(f"<p>{_inline(before)}</p>")
            if entries:
                kind = "ol" if re.match(r"\d", block[len(before) :].lstrip()) else "ul"
                blocks.append(_list((_inline(entry.strip()) for entry in entries), kind))
    return "".join(blocks)


def _inline(text: str) -> str:
    """Escaped; `code`, **bold** and *stress* rendered, and nothing inside of code."""
    parts = re.split(r"`([^`]+)`", text)
    for index, part in enumerate(parts):
        if index % 2:
            parts[index] = f"<code>{html.escape(part)}</code>"
        else:
            text = _STRONG.sub(r"<b>\1</b>", html.escape(part))
            parts[index] = _STRESSED.sub(r"<i>\1</i>", text)
    return "".join(parts)
