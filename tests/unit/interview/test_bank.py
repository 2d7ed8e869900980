"""Questions as data: read, checked, rendered, translated.

Catches a mistake that is told without its file and line, an id that is used twice, a question whose
parts do not belong to its kind, a translation that is dropped or mixed up, and a hash that stays
the same when a text changes (or changes when none did).
"""

import pytest

from picolab.interview import bank as banks
from picolab.interview.bank import Bank, BankError, Question, load


def refused(folder) -> list[str]:
    load.cache_clear()
    with pytest.raises(BankError) as error:
        load(folder)
    return str(error.value).splitlines()


# --- reading --------------------------------------------------------------------------------------


def test_a_bank(bank_files, make):
    bank = bank_files(make.question(1), make.plain(2), make.plain(3)).bank()
    assert list(bank.topics) == ["small"] and bank.topic_of("s-002") == "small"
    assert [q.id for q in bank.questions()] == ["s-001", "s-002", "s-003"]
    assert [q.id for q in bank.questions("small", level=4)] == ["s-002"]
    assert bank.questions(level=6) == []


@pytest.mark.parametrize(
    "ask, says",
    [
        (lambda bank: bank.find("s-009"), "no question 's-009'; did you mean s-001?"),
        (lambda bank: bank.find("q"), "there is no question 'q'"),
        (lambda bank: bank.find("s-001", "de"), "no language 'de'; there is en and zh"),
        (lambda bank: bank.questions("moe"), "no topic 'moe'; there is small"),
    ],
)
def test_what_is_not_there(bank_files, make, ask, says):
    with pytest.raises(ValueError) as error:
        ask(bank_files(make.question(1)).bank())
    assert says in str(error.value)


def test_a_mistake_with_file_and_line(bank_files, make):
    files = bank_files(make.question(1), make.plain(2))
    folder = files.write()
    line = files.change("small.yaml", "kind: design", "kind: riddle")
    [told] = refused(folder)
    assert told.startswith(f"small.yaml, line {line}: questions.1.kind: Input should be ")


def test_all_mistakes_at_once_each_in_its_line(bank_files, make):
    files = bank_files(make.question(1), make.plain(2))
    files.questions[0] |= {"level": 2, "colour": "red"}
    files.questions[1] |= {"id": "S 2", "sources": []}
    told = refused(files.write())
    lines = (files.folder / "small.yaml").read_text().splitlines()
    expected = {
        "  level: 2": "questions.0.level: Input should be greater",
        "  colour: red": "questions.0.colour: Extra inputs",
        "- id: S 2": "questions.1.id: String should match pattern",
        "  sources: []": "questions.1.sources: Tuple should have at least 1 item",
    }
    assert len(told) == len(expected), "and not that nothing is left of `questions`"
    for text, what in expected.items():
        place = f"small.yaml, line {lines.index(text) + 1}: {what}"
        assert any(one.startswith(place) for one in told), (place, told)


def test_a_list_that_is_too_short(bank_files, make):
    files = bank_files(make.question(1))
    files.questions[0]["rubric"] = files.questions[0]["rubric"][:3]
    [told] = refused(files.write())
    assert "the rubric has at least four points; only a warm-up has fewer" in told


def test_yaml_that_is_broken(bank_files, make):
    files = bank_files(make.question(1))
    folder = files.write()
    line = files.change("small.yaml", "title: Small things", 'title: "Small things')
    [told] = refused(folder)
    number = int(told.split("line ")[1].split(":")[0])
    assert told.startswith("small.yaml, line ") and number >= line


def test_bytes_that_are_no_text(bank_files, make):
    folder = bank_files(make.question(1)).write()
    (folder / "small.yaml").write_bytes(b"topic: \xff\xfe")
    assert refused(folder)[0].startswith("small.yaml")


def test_an_id_twice_in_one_file(bank_files, make):
    folder = bank_files(make.question(1), make.plain(2), make.plain(1)).write()
    lines = (folder / "small.yaml").read_text().splitlines()
    last = [number for number, line in enumerate(lines, 1) if line == "- id: s-001"][-1]
    [told] = refused(folder)
    assert told == (
        f"small.yaml, line {last}: the id s-001 is there already (small.yaml); ids are never "
        "used twice"
    )


def test_an_id_twice_in_two_files(bank_files, make):
    files = bank_files(make.question(1))
    folder = files.write()
    text = (folder / "small.yaml").read_text().replace("topic: small", "topic: tall")
    (folder / "tall.yaml").write_text(text)
    [told] = refused(folder)
    assert told.startswith("tall.yaml, line ") and "(small.yaml)" in told


def test_a_file_that_is_called_otherwise_than_its_topic(bank_files, make):
    folder = bank_files(make.question(1)).write()
    (folder / "small.yaml").rename(folder / "tall.yaml")
    assert "its topic is 'small'; the file name says 'tall'" in refused(folder)[0]


def test_no_bank_at_all(tmp_path):
    assert "there is no bank in" in refused(tmp_path)[0]


# --- what a question must have --------------------------------------------------------------------

POINT = {"points": 2, "text": "says something that can be seen"}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"numeric": []}, "a numeric question needs `numeric`"),
        ({"kind": "code"}, "`exercise` belongs to kind code"),
        ({"exercise": "4d.ring.all-reduce"}, "`exercise` belongs to kind code"),
        ({"kind": "diagnose"}, "`steps` belong to kind diagnose"),
        ({"steps": [{"look": "a", "because": "b"}] * 4}, "`steps` belong to kind diagnose"),
        (
            {"kind": "diagnose", "steps": [{"look": "a", "because": "b"}] * 3},
            "at least four steps",
        ),
        ({"rubric": [POINT] * 5}, "at least one point of the rubric is a must"),
        ({"rubric": [{**POINT, "must": True}] * 4}, "points must sum to 10"),
        ({"rubric": [{**POINT, "points": 5, "must": True}] * 2}, "at least four points"),
        (
            {"kind": "diagnose", "steps": [{"look": "a", "because": "b"}] * 4, "give_away": []},
            "says in `give_away` which words",
        ),
        (
            {
                "kind": "diagnose",
                "steps": [{"look": "a", "because": "b", "late": n > 1} for n in range(4)],
                "numeric": [],
            },
            "at least three looks of a diagnosis",
        ),
        ({"values": {"p": 8}}, "asks for 'total', which is not in `values`"),
        ({"minutes": 26}, "less than or equal to 25"),
        ({"red_flags": []}, "at least 1 item"),
        ({"followups": [{"question": "Why?", "points": []}]}, "at least 1 item"),
    ],
)
def test_parts_that_do_not_belong(make, changes, says):
    Question.model_validate(make.question(1))
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        Question.model_validate(make.question(1, **changes))


# --- two languages --------------------------------------------------------------------------------


def test_numbers_are_filled_in_in_both_languages(bank_files, make):
    bank = bank_files(make.question(1)).bank()
    english, chinese = bank.find("s-001"), bank.find("s-001", "zh")
    for question in (english, chinese):
        assert "17.9" in question.answer and "{{" not in question.model_dump_json()
        assert question.computed()["total"] == pytest.approx(100 * 7 / 39)
        assert question.numeric[0].wrong[0].value == "ideal"
    assert "流水线" in chinese.answer and "流水线" not in english.answer


def test_every_text_is_translated(bank_files, make):
    """Mutant: a part that `translated` forgets would stay English."""
    steps = [{"look": f"look number {n}", "because": "one rank holds all up"} for n in range(4)]
    data = make.question(1, kind="diagnose", steps=steps)
    files = bank_files(data)
    told = banks.translatable(files.bank().find("s-001", "zh"))

    def texts(value):
        if isinstance(value, dict):
            return [text for one in value.values() for text in texts(one)]
        return [t for one in value for t in texts(one)] if isinstance(value, list) else [value]

    assert len(texts(told)) == 22 and all("流水线" in text for text in texts(told))


def test_without_chinese_it_is_english(bank_files, make):
    files = bank_files(make.question(1))
    files.zh.clear()
    assert files.bank().find("s-001", "zh").title == files.bank().find("s-001").title


def test_a_translation_with_other_parts_is_refused(bank_files, make):
    files = bank_files(make.question(1))
    files.zh["s-001"]["rubric"].pop()
    with pytest.raises(ValueError, match="s-001: rubric has 4 entries, the translation 3"):
        files.bank().find("s-001", "zh")


def test_the_hash_follows_the_texts_and_only_them(make):
    data = make.question(1)
    before = Question.model_validate(data).english_hash()
    assert len(before) == 12 and before == Question.model_validate(data).english_hash()
    for part in ("title", "question", "answer"):
        changed = Question.model_validate({**data, part: data[part] + "!"})
        assert changed.english_hash() != before, part
    for part in ("conventions", "red_flags"):
        changed = Question.model_validate({**data, part: ["something else"]})
        assert changed.english_hash() != before, part
    numeric = [{**data["numeric"][0], "wrong": [{"value": "ideal", "why": "otherwise"}]}]
    assert Question.model_validate({**data, "numeric": numeric}).english_hash() != before
    values = {**data["values"], "m": 64}
    same = Question.model_validate({**data, "level": 6, "minutes": 9, "values": values})
    assert same.english_hash() == before


def test_a_bank_can_be_built_without_files(make):
    question = Question.model_validate(make.question(1))
    topic = banks.Topic(topic="t", title="T", title_zh="题", questions=(question,))
    assert Bank(None, {"t": topic}, {}).find("s-001").id == "s-001"
