"""The list of all questions in interview_questions/README.md is made from the banks.

Catches a committed list that is not what the banks say, a question that is missing in it, a title
that breaks the table, a link that leads nowhere, and a README whose hand-written part is touched.
"""

import re

import pytest
import yaml

from picolab.interview import bank as banks
from picolab.interview import topics
from picolab.interview.bank import BankError, Question, load
from picolab.interview.index import BEGIN, END, filled, render, write


@pytest.fixture(autouse=True)
def areas_of_chapter_one(monkeypatch):
    monkeypatch.setitem(topics.AREAS, "small", topics.AREAS["4d_basics"])


@pytest.fixture
def files(bank_files, make):
    return bank_files(
        make.question(1),
        make.plain(2, title="Which | of these {{p}}?", values={"p": 8}),
        make.question(3, kind="design"),
        make.plain(4, cells=["notebooks/01_small.ipynb#pp-gantt", "notebooks/a.ipynb#b"]),
    )


def test_the_list(files):
    assert render(files.bank()).splitlines() == [
        "### Small things (小问题)",
        "",
        "[`small.yaml`](small.yaml): 4 questions, 2 of them ask for a number; 0 hours in all.",
        "",
        "#### Collectives",
        "",
        "| id | question | level | kind | minutes | worked out in |",
        "|---|---|---|---|---|---|",
        "| s-002 | Which \\| of these 8? | 4 | design | 5 "
        "| [pp-gantt](../notebooks/01_small.ipynb#cell-id=pp-gantt) |",
        "",
        "#### Hardware",
        "",
        "| id | question | level | kind | minutes | worked out in |",
        "|---|---|---|---|---|---|",
        "| s-003 | A slow step after a restart | 5 | design, numeric | 5 "
        "| [pp-gantt](../notebooks/01_small.ipynb#cell-id=pp-gantt) |",
        "",
        "#### Data parallelism",
        "",
        "| id | question | level | kind | minutes | worked out in |",
        "|---|---|---|---|---|---|",
        "| s-004 | Sharding the optimizer or the weights | 6 | design | 5 "
        "| [pp-gantt](../notebooks/01_small.ipynb#cell-id=pp-gantt), "
        "[b](../notebooks/a.ipynb#cell-id=b) |",
        "",
        "#### Pipeline parallelism",
        "",
        "| id | question | level | kind | minutes | worked out in |",
        "|---|---|---|---|---|---|",
        "| s-001 | Why pipelines idle | 3 | numeric | 5 "
        "| [pp-gantt](../notebooks/01_small.ipynb#cell-id=pp-gantt) |",
    ]


def test_the_areas_are_those_of_the_topic_in_its_order(files, monkeypatch):
    monkeypatch.setitem(topics.AREAS, "small", {"hardware": "First", "collectives": "Then"})
    text = render(banks.load(files.write()))
    assert 0 < text.index("#### First") < text.index("#### Then")
    monkeypatch.delitem(topics.AREAS, "small")
    assert "#### pipeline" in render(banks.load(files.write()))


def test_only_what_is_between_the_markers_changes(files):
    folder = files.write()
    readme = folder / "README.md"
    readme.write_text(f"# Mine\n\n{BEGIN}\nold\n{END}\n\nAfter it.\n")
    assert write(folder) == readme
    text = readme.read_text()
    assert text.startswith(f"# Mine\n\n{BEGIN}\n\n### Small things")
    assert text.endswith(f"|\n\n{END}\n\nAfter it.\n") and "old" not in text
    write(folder)
    assert readme.read_text() == text, "twice is the same"
    assert [path.name for path in folder.glob(".*")] == []


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_a_place_for_it(text):
    with pytest.raises(BankError, match="has no place for the index"):
        filled(text, "list")


# --- the one of this repository -------------------------------------------------------------------


def committed() -> tuple[str, str]:
    """The README as it is, and as it would be made."""
    load.cache_clear()
    text = (banks.bank_folder() / "README.md").read_text(encoding="utf-8")
    return text, filled(text, render(load()))


def test_the_committed_list_is_the_one_of_the_banks():
    is_, would_be = committed()
    assert is_ == would_be, "make refresh makes it again"
    assert re.findall(r"^\| ([a-z0-9]+-\d{3}) ", is_, re.M) != []


def test_a_list_changed_by_hand_is_noticed():
    """The mutant."""
    is_, would_be = committed()
    assert is_.replace("| numeric |", "| number |") != would_be


def test_the_example_of_the_readme_is_a_question():
    text = (banks.bank_folder() / "README.md").read_text(encoding="utf-8")
    [example] = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    question = Question.model_validate(example)
    assert "17.9 %" in question.rendered().answer
    assert question.id not in {one.id for one in load().questions()}
