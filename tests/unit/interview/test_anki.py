"""The Anki deck, opened as Anki opens it: a zip with a database.

Catches identities that change with the text, the language or the second export (Anki would add
every card once more), a text that is taken for HTML, a part of the question that is on no side, an
answer on the front, and a half-written file.
"""

import html
import re
import sqlite3
import zipfile

import genanki
import pytest

from picolab.interview import anki
from picolab.interview.anki import DECK_ID, FIELDS, MODEL_ID, export, to_html


@pytest.fixture
def files(bank_files, make):
    steps = [{"look": f"look {n} at `nvidia-smi`", "because": "it shows <who>"} for n in range(4)]
    return bank_files(
        make.question(1),
        make.plain(2, kind="diagnose", steps=steps),
        make.plain(3, kind="code", exercise="4d.ring.all-reduce"),
    )


def opened(path, folder) -> sqlite3.Connection:
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None and set(file.namelist()) == {"collection.anki2", "media"}
        assert file.read("media") == b"{}"
        return sqlite3.connect(file.extract("collection.anki2", folder))


@pytest.fixture
def exported(tmp_path):
    """guid -> {field: HTML} of the deck that a bank gives."""

    def notes(bank, **more):
        path = tmp_path / "out.apkg"
        count = export(bank, path, **more)
        rows = opened(path, tmp_path).execute("select guid, flds from notes").fetchall()
        assert len(rows) == count
        return {guid: dict(zip(FIELDS, fields.split("\x1f"))) for guid, fields in rows}

    return notes


# --- identity -------------------------------------------------------------------------------------


def test_importing_twice_adds_nothing(files, exported):
    """Anki knows a note by its guid."""
    first = exported(files.bank())
    again = exported(files.bank())
    files.questions[0]["title"], files.questions[0]["answer"] = "Otherwise", "Altogether otherwise."
    edited = exported(files.bank())
    chinese = exported(files.bank(), language="zh")
    assert first.keys() == again.keys() == edited.keys() == chinese.keys()
    assert first.keys() == {genanki.guid_for("picolab", f"s-00{n}") for n in (1, 2, 3)}
    assert first == again != edited != chinese


def test_a_guid_of_the_text_would_change(files, exported, monkeypatch):
    """The mutant: genanki's own default, a hash of all fields."""
    monkeypatch.setattr(genanki, "guid_for", lambda *parts: None)
    monkeypatch.setattr(genanki.note, "guid_for", genanki.util.guid_for)
    first = exported(files.bank())
    files.questions[0]["title"] = "Otherwise"
    assert len(first) == 3 and first.keys() != exported(files.bank()).keys()


def test_deck_and_note_type_are_always_the_same(files, tmp_path):
    """Published numbers: changing one of them makes all cards of all readers new ones."""
    assert (MODEL_ID, DECK_ID) == (1_794_220_311, 2_048_117_426)
    assert FIELDS == ("Id", "Title", "About", "Question", "Back")
    export(files.bank(), tmp_path / "out.apkg")
    deck = opened(tmp_path / "out.apkg", tmp_path)
    assert {mid for (mid,) in deck.execute("select mid from notes")} == {MODEL_ID}
    assert {did for (did,) in deck.execute("select did from cards")} == {DECK_ID}
    assert deck.execute("select count(*) from cards").fetchone() == (3,)
    tags = [row[0].split() for row in deck.execute("select tags from notes order by id")]
    assert tags[0] == ["small", "pipeline", "numeric", "level-3"]


# --- both sides -----------------------------------------------------------------------------------


def test_every_text_is_on_one_side(files, exported):
    """Mutant: a part that is forgotten would be on none."""
    from picolab.interview import bank as banks

    bank = files.bank()
    for language in ("en", "zh"):
        for note in exported(bank, language=language).values():
            question = bank.find(note["Id"], language)
            both = re.sub(r"<[^>]+>", "", " ".join(note.values()))
            for text in texts(banks.translatable(question)):
                assert html.escape(text.replace("`", "").strip()) in both, text
            for cell in question.cells:
                assert cell in note["Back"]


def texts(value) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if value else []


def test_the_front_does_not_tell(files, exported):
    note = exported(files.bank())[genanki.guid_for("picolab", "s-001")]
    assert "17.9" not in note["Question"] and "17.9" in note["Back"]
    assert "micro-batches. How much" in note["Question"]
    assert "Give the idle share of a step [%] (over the total time of the step)" in note["Question"]
    assert note["About"] == "s-001 · pipeline · numeric · level 3 · 5 min"


def test_the_back(files, exported):
    notes = exported(files.bank())
    back = notes[genanki.guid_for("picolab", "s-001")]["Back"]
    assert "<b>17.95 %</b>" in back
    assert "<li>≠ 21.88 %: This is the share of the ideal time.</li>" in back
    assert "4: says that a stage idles twice in a step <span class=must>(must)</span>" in back
    assert 'Huang and others: GPipe (2018), <a href="https://arxiv.org/abs/1811.06965">' in back
    assert "<code>(p-1)/(m+p-1)</code>" in back
    steps = notes[genanki.guid_for("picolab", "s-002")]["Back"]
    assert "<ol><li>look 0 at <code>nvidia-smi</code><br>it shows &lt;who&gt;</li>" in steps
    code = notes[genanki.guid_for("picolab", "s-003")]["Question"]
    assert "<code>pico.exercise('4d.ring.all-reduce')</code>" in code


def test_every_tag_is_closed(files, exported):
    for note in exported(files.bank()).values():
        for field in note.values():
            for tag in ("p", "ul", "ol", "li", "h2", "code", "pre", "b", "span", "a"):
                opened_ = len(re.findall(rf"<{tag}[ >]", field))
                assert opened_ == field.count(f"</{tag}>"), (tag, field)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a < b & c", "<p>a &lt; b &amp; c</p>"),
        ("<script>x</script>", "<p>&lt;script&gt;x&lt;/script&gt;</p>"),
        ("use `x < y` and **not** this", "<p>use <code>x &lt; y</code> and <b>not</b> this</p>"),
        ("`a ** b ** c`", "<p><code>a ** b ** c</code></p>"),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("* a\n* b `c`", "<ul><li>a</li><li>b <code>c</code></li></ul>"),
        ("First:\n- a\n  more\n- b", "<p>First:</p><ul><li>a\n  more</li><li>b</li></ul>"),
        ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
        ("see\n\n```python\nx = 1 < 2\n\ny = 2\n```\n\nend",
         "<p>see</p><pre><code>x = 1 &lt; 2\n\ny = 2</code></pre><p>end</p>"),
        ("an *other* one, *two words*.", "<p>an <i>other</i> one, <i>two words</i>.</p>"),
        ("8 * 2**30 and 2**20 * 3", "<p>8 * 2**30 and 2**20 * 3</p>"),
        ("2*3*4 of **all *n* ranks**", "<p>2*3*4 of <b>all <i>n</i> ranks</b></p>"),
        ("2 * 3 - 1. It", "<p>2 * 3 - 1. It</p>"),
    ],
)  # fmt: skip
def test_the_little_markdown(text, expected):
    assert to_html(text) == expected


def test_light_and_dark():
    """Text against its ground, in both: WCAG asks for 4.5."""
    from picolab.show.picture import contrast

    rules = re.findall(r"([^{}]+)\{([^}]*)\}", anki._CSS)
    grounds = {False: "#ffffff", True: "#1e1f22"}
    seen = 0
    for selector, body in rules:
        dark = "night" in selector
        ground = re.search(r"background: (#\w+)", body)
        for colour in re.findall(r"(?<!-)\bcolor: (#\w+)", body):
            seen += 1
            assert contrast(colour, ground[1] if ground else grounds[dark]) >= 4.5, selector
    assert seen == 10


# --- the file -------------------------------------------------------------------------------------


def test_a_topic_alone(files, bank_files, make, tmp_path, exported):
    folder = files.write()
    text = (folder / "small.yaml").read_text().replace("s-00", "t-00")
    (folder / "tall.yaml").write_text(text.replace("topic: small", "topic: tall"))
    anki_bank = banks_of(folder)
    assert len(exported(anki_bank)) == 6 and len(exported(anki_bank, topic="tall")) == 3


def banks_of(folder):
    from picolab.interview.bank import load

    load.cache_clear()
    return load(folder)


@pytest.mark.parametrize(
    "name, more, says",
    [
        ("out.zip", {}, "an Anki deck ends in .apkg; write out.apkg"),
        ("out", {}, "write out.apkg"),
        ("no/out.apkg", {}, "there is no folder"),
        ("there.apkg", {}, "is a folder; name a file in it"),
        ("out.apkg", {"topic": "moe"}, "no topic 'moe'; there is small"),
        ("out.apkg", {"language": "de"}, "no language 'de'"),
    ],
)
def test_what_cannot_be_written(files, tmp_path, name, more, says):
    bank = files.bank()
    (tmp_path / "there.apkg").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as refused:
        export(bank, tmp_path / name, **more)
    assert says in str(refused.value) and sorted(tmp_path.iterdir()) == before


def test_an_older_deck_stays_whole_if_the_new_one_fails(files, tmp_path, monkeypatch):
    """Mutant: written in place, a failure half-way would leave half a deck."""
    bank, path = files.bank(), tmp_path / "out.apkg"
    export(bank, path)
    before = path.read_bytes()

    def fails(*words):
        raise OSError("no space left")

    monkeypatch.setattr(genanki.Package, "write_to_db", fails)
    with pytest.raises(OSError):
        export(bank, path)
    assert path.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_nothing_is_left_in_the_temporary_folder(files, tmp_path, monkeypatch):
    """genanki's own writing leaves its database there."""
    import tempfile

    bank, scratch = files.bank(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    export(bank, tmp_path / "out.apkg")
    assert list(scratch.iterdir()) == []
    genanki.Package(genanki.Deck(1, "d")).write_to_file(tmp_path / "theirs.apkg")
    assert list(scratch.iterdir()) != []
