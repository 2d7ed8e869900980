"""The Anki deck, opened as Anki opens it: a zip with a database.

Catches identities that change with the text, the language or the second export (Anki would add
every card once more), a text that is taken for HTML, a part of the question that is on no side, an
answer on the front, and a half-written file.
"""

import re
import sqlite3
import zipfile

import genanki
import pytest

from picolab.interview import anki
from picolab.interview.anki import DECKS, FIELDS, MODEL_ID, export


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


def keys(*parts: tuple[str, str], language="en") -> set[str]:
    return {genanki.guid_for("picolab", language, name, part) for name, part in parts}


ALL = (
    *(("s-001", part) for part in ("idea", "number-1", "follow-up-1")),
    *(("s-002", part) for part in ("idea", "looks", "follow-up-1")),
    *(("s-003", part) for part in ("idea", "follow-up-1")),
)


def test_importing_twice_adds_nothing(files, exported):
    """Anki knows a note by its guid; the two languages are two decks."""
    first = exported(files.bank())
    again = exported(files.bank())
    files.questions[0]["title"], files.questions[0]["answer"] = "Otherwise", "Altogether otherwise."
    edited = exported(files.bank())
    assert first.keys() == again.keys() == edited.keys() == keys(*ALL)
    assert first == again != edited
    chinese = exported(files.bank(), language="zh")
    assert chinese.keys() == keys(*ALL, language="zh") and not chinese.keys() & first.keys()


def test_a_guid_of_the_text_would_change(files, exported, monkeypatch):
    """The mutant: genanki's own default, a hash of all fields."""
    monkeypatch.setattr(genanki, "guid_for", lambda *parts: None)
    monkeypatch.setattr(genanki.note, "guid_for", genanki.util.guid_for)
    first = exported(files.bank())
    files.questions[0]["title"] = "Otherwise"
    assert len(first) == 8 and first.keys() != exported(files.bank()).keys()


def test_decks_and_note_type_are_always_the_same(files, tmp_path):
    """Published numbers: changing one of them makes all cards of all readers new ones."""
    assert MODEL_ID == 1_794_220_312
    assert {name: deck for name, (deck, _) in DECKS.items()} == {
        "en": 2_048_117_427,
        "zh": 2_048_117_428,
    }
    assert FIELDS == ("Key", "Title", "About", "Front", "Back")
    export(files.bank(), tmp_path / "out.apkg")
    deck = opened(tmp_path / "out.apkg", tmp_path)
    assert {mid for (mid,) in deck.execute("select mid from notes")} == {MODEL_ID}
    assert {did for (did,) in deck.execute("select did from cards")} == {DECKS["en"][0]}
    assert deck.execute("select count(*) from cards").fetchone() == (8,)
    tags = [row[0].split() for row in deck.execute("select tags from notes order by id")]
    assert ["small", "pipeline", "numeric", "level-3", "number"] in tags


def test_the_real_anki_takes_both_decks(tmp_path):
    """Where `anki` is installed; it is no part of the test extra (64 MB with what it needs)."""
    pytest.importorskip("anki")
    from anki.collection import (
        Collection,
        ImportAnkiPackageOptions,
        ImportAnkiPackageRequest,
    )

    from picolab.interview.bank import load

    collection = Collection(str(tmp_path / "collection.anki2"))
    counts = []
    for language in ("en", "zh", "en", "zh"):
        path = tmp_path / f"{language}.apkg"
        made = export(load(), path, language)
        request = ImportAnkiPackageRequest(
            package_path=str(path), options=ImportAnkiPackageOptions(with_scheduling=True)
        )
        log = collection.import_anki_package(request).log
        counts.append((made, len(log.new), len(log.conflicting)))
    made = counts[0][0]
    assert counts == [(made, made, 0)] * 2 + [(made, 0, 0)] * 2
    assert collection.note_count() == 2 * made


# --- both sides -----------------------------------------------------------------------------------


def by_key(notes: dict) -> dict[str, dict]:
    return {note["Key"]: note for note in notes.values()}


def test_cards_are_small_and_the_answer_is_not_on_them(files, exported):
    for note in exported(files.bank()).values():
        assert len(note["Front"]) + len(note["Back"]) < 2000
        assert "again when the last has left" not in " ".join(note.values())


def test_the_front_does_not_tell(files, exported):
    notes = by_key(exported(files.bank()))
    number = notes["s-001 number-1"]
    assert "17.9" not in number["Front"] and "<b>17.95 %</b>" in number["Back"]
    assert "micro-batches. How much" in number["Front"]
    assert "<b>Give the idle share of a step</b> (over the total time" in number["Front"]
    assert number["About"] == "s-001 · pipeline · L3"
    assert "≠ 21.88 %: This is the share of the ideal time." in number["Back"]
    idea = notes["s-001 idea"]
    assert "idle share" not in idea["Front"], "numbers have cards of their own"
    assert "says that a stage idles twice in a step <span class=must>(must)</span>" in idea["Back"]
    assert "<code>notebooks/01_small.ipynb#pp-gantt</code>" in idea["Back"]


def test_looks_follow_ups_and_code(files, exported):
    notes = by_key(exported(files.bank()))
    looks = notes["s-002 looks"]
    assert "<ol><li>look 0 at <code>nvidia-smi</code><br>it shows &lt;who&gt;</li>" in looks["Back"]
    assert "nvidia-smi" not in looks["Front"]
    follow_up = notes["s-002 follow-up-1"]
    assert "What would interleaving" in follow_up["Front"] and "divides" in follow_up["Back"]
    assert "<code>pico.exercise('4d.ring.all-reduce')</code>" in notes["s-003 idea"]["Front"]


def test_every_tag_is_closed(files, exported):
    for note in exported(files.bank()).values():
        for field in note.values():
            for tag in ("p", "ul", "ol", "li", "h2", "code", "pre", "b", "span", "a"):
                opened_ = len(re.findall(rf"<{tag}[ >]", field))
                assert opened_ == field.count(f"</{tag}>"), (tag, field)


def test_no_star_is_left_in_the_real_decks():
    """A star that stresses is rendered, beside Chinese too; the rest multiply."""
    from picolab.interview.bank import load

    left = []
    for language in ("en", "zh"):
        for asked in load().questions():
            for card in anki.cards(load().find(asked.id, language), language):
                plain = re.sub(r"<code>.*?</code>|<[^>]+>", "", card.front + card.back)
                left += re.findall(r"[^\s\d)*]\*+[^\s\d(*]", plain.replace("h*h", ""))
    assert left == []


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
    assert seen == 8


# --- the file -------------------------------------------------------------------------------------


def test_a_topic_alone(files, bank_files, make, tmp_path, exported):
    folder = files.write()
    text = (folder / "small.yaml").read_text().replace("s-00", "t-00")
    (folder / "tall.yaml").write_text(text.replace("topic: small", "topic: tall"))
    anki_bank = banks_of(folder)
    assert len(exported(anki_bank)) == 16 and len(exported(anki_bank, topic="tall")) == 8


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
