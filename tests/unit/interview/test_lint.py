"""`picolab quiz lint`: a bank that holds has no finding, and each mistake is found where it is.

Every test breaks one thing of a bank that holds, and asserts the one finding with file and line. So
the bank that holds is the mutant of all of them, and each broken bank is one of the lint: a check
that was left out leaves its test without a finding. The rule about typed numbers has its own
examples, on both sides.
"""

import re
import subprocess
import sys

import pytest

from picolab.interview import bank as banks
from picolab.interview.bank import Question
from picolab.interview.lint import (
    lint,
    main_lint,
    readme,
    similarity,
    update_lock,
)
from picolab.interview.topics import AREAS, COUNTS, Counts
from picolab.interview.typed_numbers import typed_numbers


@pytest.fixture
def files(bank_files, make):
    """Four questions: a number, a design, a diagnosis, a coding task; the first two are a chain."""
    return bank_files(
        make.question(1, chain={"name": "deeper", "step": 1}),
        make.plain(2, chain={"name": "deeper", "step": 2}),
        make.plain(
            3,
            kind="diagnose",
            steps=[
                {"look": "compare the time of each rank", "because": "one slow rank holds all up"}
            ]
            * 4,
        ),
        make.plain(4, kind="code", exercise="4d.ring.all-reduce"),
    )


@pytest.fixture
def found(files, make):
    """The findings after what the test did: of the parts, or of the files once written."""

    def findings(strict=False, written=False, counts=None):
        folder = files.folder if written else files.write()
        return lint(folder, strict, counts or make.counts)

    return findings


def only(findings, file: str, what: str, severity="error"):
    """The one finding; its line is returned."""
    assert len(findings) == 1, [str(finding) for finding in findings]
    [finding] = findings
    assert finding.file == file and finding.severity == severity, finding
    assert what in finding.what, finding
    return finding.line


def line_of(files, name: str, text: str, nth: int = 1) -> int:
    """The line of a file in which this stands for the nth time."""
    lines = (files.folder / name).read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if text in line][nth - 1]


def test_a_bank_that_holds(found):
    assert found() == [] and found(strict=True) == []


# --- schema ---------------------------------------------------------------------------------------


def test_every_mistake_of_the_schema_has_its_line(files, found):
    files.questions[0]["level"] = 9
    files.questions[1]["rubric"][1]["points"] = 3
    del files.questions[2]["title"]
    findings = found()
    at = [line_of(files, "small.yaml", f"id: s-00{n}") for n in (2, 3)]
    said = [(finding.file, finding.line, finding.what) for finding in findings]
    assert said == [
        (
            "small.yaml",
            line_of(files, "small.yaml", "level: 9"),
            "questions.0.level: Input should be less than or equal to 6",
        ),
        ("small.yaml", at[0], "questions.1: the rubric's points must sum to 10"),
        ("small.yaml", at[1], "questions.2.title: Field required"),
    ]


def test_what_is_no_yaml(files, found):
    files.write()
    line = files.change("small.yaml", "title: Small things", "title: [Small things")
    assert only(found(written=True), "small.yaml", "") >= line


def test_a_key_that_is_given_twice_is_not_lost_in_silence(files, found):
    files.write()
    line = files.change("small.zh.yaml", "  s-002:", "  s-001:")
    findings = found(written=True)
    [twice] = [finding for finding in findings if "is there already" in finding.what]
    assert (twice.file, twice.line) == ("small.zh.yaml", line)
    assert twice.what == "s-001 is there already, in line 2"
    assert "s-002 has no Chinese" in findings[0].what


def test_a_folder_without_a_bank(tmp_path):
    [finding] = lint(tmp_path)
    assert "there is no bank" in finding.what


# --- ids ------------------------------------------------------------------------------------------


def test_an_id_that_is_gone(files, found, make):
    files.questions.pop()
    files.zh.pop("s-004")
    line = only(found(), "ids.lock", "s-004 was a question and is none any more")
    assert line == 4


def test_an_id_that_was_renamed(files, found):
    files.questions[3]["id"] = "s-005"
    files.zh["s-005"] = files.zh.pop("s-004")
    lock, bank = found()
    assert (lock.file, lock.line) == ("ids.lock", 4) and "s-004 was a question" in lock.what
    assert bank.line == line_of(files, "small.yaml", "id: s-005")
    assert "s-005 is not in ids.lock" in bank.what


def test_a_new_id_is_appended_and_nothing_else_changes(files, found, make):
    files.questions.append(make.plain(5))
    files.zh["s-005"] = make.translation(files.questions[-1])
    only(found(), "small.yaml", "s-005 is not in ids.lock; make refresh appends it")
    assert update_lock(files.folder) == ["s-005"]
    assert (files.folder / "ids.lock").read_text() == "s-001\ns-002\ns-003\ns-004\ns-005\n"
    assert found(written=True) == [] and update_lock(files.folder) == []


def test_a_new_id_in_the_middle_is_refused(files, found, make):
    files.questions.insert(1, make.plain(5))
    files.zh["s-005"] = make.translation(files.questions[1])
    files.write()
    update_lock(files.folder)
    said = [finding.what for finding in found(written=True)]
    assert len(said) == 3 and all("stands after s-005, which is younger" in what for what in said)


def test_an_id_twice_in_the_lock(files, found):
    files.ids.append("s-002")
    assert only(found(), "ids.lock", "s-002 is there already, in line 2") == 5


def test_the_lock_never_forgets(files):
    """Mutant: a lock that is written from the bank alone would lose s-004."""
    files.questions.pop()
    files.write()
    update_lock(files.folder)
    assert "s-004" in (files.folder / "ids.lock").read_text()


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts, what",
    [
        (Counts(questions=5, numeric=1, code=1, diagnose=1), "4 questions; 5 is the least"),
        (
            Counts(questions=4, numeric=2, code=1, diagnose=1),
            "1 question with a number that comes from a call; 2 is the least",
        ),
        (
            Counts(questions=4, numeric=1, code=2, diagnose=1),
            "1 question of kind code; 2 is the least",
        ),
        (
            Counts(questions=4, numeric=1, code=1, diagnose=2),
            "1 question of kind diagnose; 2 is the least",
        ),
    ],
)
def test_too_few(found, counts, what):
    only(found(counts={"small": counts}), "small.yaml", what)


def test_too_many_explanations(files, found, make):
    files.questions[1] = make.plain(2, kind="explain", chain={"name": "deeper", "step": 2})
    files.zh["s-002"] = make.translation(files.questions[1])
    exact = {"small": Counts(questions=4, numeric=1, code=1, diagnose=1, explain_share=0.25)}
    assert found(counts=exact) == []
    less = {"small": Counts(questions=4, numeric=1, code=1, diagnose=1, explain_share=0.24)}
    only(found(counts=less), "small.yaml", "1 of 4 longer questions ask for an explanation; 24%")


def test_a_topic_must_be_in_the_table(found):
    only(found(counts={"other": None}), "small.yaml", "no chapter says how many questions small")


def test_what_chapter_one_must_have():
    wanted = COUNTS["4d_basics"]
    assert (wanted.questions, wanted.numeric, wanted.code, wanted.diagnose) == (60, 26, 6, 10)
    assert wanted.warm_ups == 12
    assert wanted.explain_share == 0.15


def test_an_area_that_the_topic_does_not_have(files, found, monkeypatch):
    assert found() == []
    known = {question["area"]: "a heading" for question in files.questions[1:]}
    monkeypatch.setitem(AREAS, "small", known)
    line = only(found(), "small.yaml", "s-001: there is no area 'pipeline'; there is ")
    assert line == line_of(files, "small.yaml", "area: pipeline")


# --- numbers --------------------------------------------------------------------------------------


def test_a_value_that_fails(files, found):
    files.questions[0]["values"]["ideal"] = "100 * costs.no_such_bubble(p, m)"
    line = only(found(), "small.yaml", "no_such_bubble")
    assert line == line_of(files, "small.yaml", "no_such_bubble")


def wrong(files, value, why="This is another mistake."):
    numeric = files.questions[0]["numeric"][0]
    numeric["wrong"].append({"value": value, "why": why})
    files.zh["s-001"]["numeric"][0]["wrong"].append("这是另一个错误。")


@pytest.fixture
def hashed(files, make):
    """The Chinese is of what the English is now."""

    def again():
        for data in files.questions:
            files.zh[data["id"]]["of"] = Question.model_validate(data).english_hash()

    return again


def test_a_wrong_value_within_the_tolerance(files, found, hashed):
    wrong(files, "total * 1.015")
    hashed()
    line = only(found(), "small.yaml", "lies within 2.0% of the right one, 17.95")
    assert line == line_of(files, "small.yaml", "total * 1.015")


def test_two_wrong_values_that_cannot_be_told_apart(files, found, hashed):
    wrong(files, "ideal * 1.001")
    hashed()
    only(found(), "small.yaml", "gets the reason of another")


def test_a_wrong_value_that_fails(files, found, hashed):
    wrong(files, "totals / 2")
    hashed()
    line = only(found(), "small.yaml", "there is no 'totals'")
    assert line == line_of(files, "small.yaml", "totals / 2")


def test_a_unit_that_is_unknown(files, found):
    files.questions[0]["numeric"][0]["unit"] = "smoots"
    line = only(found(), "small.yaml", "'smoots' is no unit that is known here")
    assert line == line_of(files, "small.yaml", "unit: smoots")


def test_a_number_that_comes_from_no_call(files, found):
    """It is told, and does not count; where there is no function, arithmetic has to do."""
    files.questions[0]["values"]["total"] = "100 * (p - 1) / (m + p - 1)"
    few, told = found(strict=True)
    assert few.what == "no questions with a number that comes from a call; 1 is the least"
    line = only([told], "small.yaml", "total is asked for and comes from no call", "warning")
    assert line == line_of(files, "small.yaml", "total: ")


@pytest.mark.parametrize(
    "expressions",
    [
        {"share": "costs.bubble_of_total(p, m)", "total": "share * 100"},
        {"share": "costs.bubble_of_total(p, m)", "more": "share * 50", "total": "more * 2"},
        {"total": "100 * 7 / 39 * Layout(dp=2).world / Layout.parse('dp2').world"},
    ],
)
def test_a_call_in_a_value_that_is_used_counts(files, found, expressions):
    old = files.questions[0]["values"]
    ideal = {"ideal": old["ideal"]}
    files.questions[0]["values"] = {"p": 8, "m": 32, **expressions, **ideal}
    assert found() == []


# --- typed numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("It is idle for 17.9 % of the step.", ["17.9 %"]),
        ("A factor of 3.2 between them.", ["3.2"]),
        ("Needs 80 GB, or 40GiB.", ["80 GB", "40GiB"]),
        ("33 bytes a parameter, in 3 ms", ["33 bytes", "3 ms"]),
        ("over 128 ranks and 1,024 steps", ["128", "1,024"]),
        ("about 25 per cent, 25% or 25 percent", ["25 per cent", "25%", "25 percent"]),
        ("between 2-3 % of it", ["3 %"]),
        ("1e9 operations at 900 GB/s and 400 Gbps", ["1e9", "900 GB/s", "400 Gbps"]),
        ("989 TFLOP/s", ["989 TFLOP/s"]),
        ("a buffer of 2048 tokens", ["2048"]),
        ("约 17.9%，需要 80 GB，等待 3 毫秒", ["17.9%", "80 GB", "3 毫秒"]),
        ("需要128个", ["128"]),
        ("in {{n}} of 512 cases", ["512"]),
        ("takes 2 s or 4 B.", ["2 s", "4 B"]),
        ("3 h of work, 2 s later", ["3 h", "2 s"]),
        ("(0.9, 0.95)", ["0.9", "0.95"]),
    ],
)
def test_typed_results(text, numbers):
    assert typed_numbers(text) == numbers


@pytest.mark.parametrize(
    "text",
    [
        "It is idle for {{bubble:.1f}} % of the step, {{ideal:.1f}} % of the ideal.",
        "The bubble is `(p-1)/(m+p-1) = 7/39 = 17.9 %`.",
        "Llama 3 405B on 8 H100s in fp32, bf16 or fp8, with 1F1B and ZeRO-3",
        "Llama 3.1, Llama-3.1, GPT-3.5, PyTorch 2.11, PCIe 5.0, CUDA 12.4, Section 3.2",
        "arXiv 2205.05198 and arXiv:2104.04473 (2021), in 1986 and 2026",
        "2(n-1)/n of it, p - 1 of m, top-8 of 64, rank 0 waits for rank 15",
        "100 % of the ranks and 0 % of the time",
        "two of 16 ranks; an A100 or B200; 4D parallelism; x_128; llama-3-70b",
        "a value of 8, 16 and 32.",
        "numbers of 2 bytes, 16 bits and 16 字节",
        "34 s b h bytes, 72 h*h operations, F / (2 W)",
        "torch 2.13, pull request 34191, issue #2044",
        "```\nx = 3.14 * 1024\n```",
    ],
)
def test_what_is_no_result(text):
    assert typed_numbers(text) == []


@pytest.mark.parametrize("language", ["small.yaml", "small.zh.yaml"])
@pytest.mark.parametrize("part", ["answer", "rubric", "red_flags", "followups"])
def test_a_typed_number_is_found_in_its_line(files, found, hashed, part, language):
    data = files.questions[0] if language == "small.yaml" else files.zh["s-001"]
    more = " and so 4711 of them"
    if part == "answer":
        data[part] += more
    elif part == "followups":
        data[part][0]["points"][0] += more
    elif part == "rubric" and language == "small.yaml":
        data[part][0]["text"] += more
    else:
        data[part][0] += more
    hashed()
    line = only(found(), language, "4711 is typed by hand")
    assert line == line_of(files, language, "4711")


def test_what_is_given_may_be_typed(files, found, hashed):
    """In the question, and from there in the answer; other numbers may not."""
    files.questions[0]["question"] += " Each stage has 80 GB and sends 1,500 MB."
    files.questions[0]["followups"][0]["question"] += " And with 512 stages?"
    files.questions[0]["answer"] += " Of the 80 GB it sends 1500 MB, to all 512."
    hashed()
    assert found() == []
    files.questions[0]["answer"] += " Or 1501 MB."
    hashed()
    only(found(), "small.yaml", "1501 MB is typed by hand")


# --- texts ----------------------------------------------------------------------------------------


def test_a_placeholder_that_is_not_there(files, found, hashed):
    old = files.questions[0]["answer"]
    files.questions[0]["answer"] = old.replace("{{p}}", "{{stages}}")
    files.zh["s-001"]["answer"] = files.zh["s-001"]["answer"].replace("{{p}}", "{{stages}}")
    hashed()
    english, chinese = found()
    assert "{{stages}} is not among the values" in english.what + chinese.what
    assert english.line == line_of(files, "small.yaml", "{{stages}}")
    assert chinese.line == line_of(files, "small.zh.yaml", "{{stages}}")


@pytest.mark.parametrize("broken", ["{{total:.1z}}", "{{total:d}}", "{{total", "{{a b}}", "p}}"])
def test_a_placeholder_that_is_none(files, found, hashed, broken):
    for data in (files.questions[0], files.zh["s-001"]):
        data["question"] += f" {broken}"
    hashed()
    findings = found()
    assert {finding.file for finding in findings} == {"small.yaml", "small.zh.yaml"}
    assert all(f.line == line_of(files, f.file, broken[:7]) for f in findings)


def test_the_length_of_the_answer(files, found, hashed, make):
    base = files.questions[1]["answer"]
    assert len(base.split()) == 150
    for words, holds in ((119, False), (120, True), (350, True), (351, False)):
        files.questions[1]["answer"] = " ".join((base.split() * 3)[:words])
        hashed()
        if holds:
            assert found() == []
        else:
            line = only(found(), "small.yaml", f"the answer has {words} words; 120 to 350")
            assert line == line_of(files, "small.yaml", "answer:", 2)


def test_the_length_is_of_what_is_read(files, found, hashed):
    """Mutant: counted before rendering, a placeholder with blanks would be three words."""
    words = files.questions[1]["answer"].split()[:119]
    files.questions[1]["values"] = {"p": 8}
    files.questions[1]["answer"] = " ".join([*words[:118], "{{ p }}"])
    files.zh["s-002"]["answer"] += " {{ p }}"
    hashed()
    only(found(), "small.yaml", "the answer has 119 words")


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, what",
    [
        ("notebooks/01_small.ipynb#no-cell", "01_small.ipynb has no cell 'no-cell'"),
        ("notebooks/09_none.ipynb#pp-gantt", "there is no notebook 09_none.ipynb"),
        ("notebooks/01_small.ipynb", "is no link; one is notebooks/NAME.ipynb#cell-id"),
        ("../notebooks/01_small.ipynb#pp-gantt", "is no link"),
    ],
)
def test_cells_that_are_not_there(files, found, cell, what):
    files.questions[0]["cells"].append(cell)
    line = only(found(), "small.yaml", what)
    assert line == line_of(files, "small.yaml", "- notebooks/01_small.ipynb#pp-gantt") + 1


def test_a_source_that_is_not_there(files, found):
    files.questions[2]["sources"] = ["gpipe", "gpype"]
    line = only(found(), "small.yaml", "'gpype' is not in sources.yaml")
    assert line == line_of(files, "small.yaml", "- gpype")


@pytest.mark.parametrize(
    "change, what",
    [
        ({"url": "https://example.org"}, "either `arxiv` or `url`"),
        ({"arxiv": None}, "either `arxiv` or `url`"),
        ({"arxiv": "1811.69"}, "String should match pattern"),
        ({"year": 18}, "greater than or equal to 1940"),
        ({"title": ""}, "at least 1 character"),
        ({"doi": "10.1/2"}, "Extra inputs are not permitted"),
    ],
)
def test_sources_that_are_none(files, found, change, what):
    source = {**files.sources["gpipe"], **change}
    files.sources["other"] = {key: value for key, value in source.items() if value is not None}
    line = only(found(), "sources.yaml", what)
    assert line_of(files, "sources.yaml", "other:") <= line


def test_an_arxiv_number_keeps_its_last_zero(files, found):
    """Mutant: read as a number, 1909.08050 would be 1909.0805."""
    files.write()
    files.change("sources.yaml", "'1811.06965'", "1909.08050")
    assert found(written=True) == []


def test_no_sources(files, found):
    files.write()
    (files.folder / "sources.yaml").unlink()
    only(found(written=True), "sources.yaml", "there is no sources.yaml")


def test_an_exercise_that_is_not_there(files, found):
    files.questions[3]["exercise"] = "4d.ring.reduce-all"
    line = only(found(), "small.yaml", "there is no exercise '4d.ring.reduce-all'")
    assert line == line_of(files, "small.yaml", "exercise:")


# --- Chinese --------------------------------------------------------------------------------------


def test_chinese_that_is_missing(files, found):
    files.zh.pop("s-003")
    line = only(found(), "small.yaml", "s-003 has no Chinese in small.zh.yaml")
    assert line == line_of(files, "small.yaml", "id: s-003")


def test_chinese_of_a_question_that_is_not_there(files, found):
    files.zh["s-009"] = {**files.zh["s-003"]}
    line = only(found(), "small.zh.yaml", "s-009 is no question of small.yaml")
    assert line > line_of(files, "small.zh.yaml", "s-004:")


def test_chinese_of_a_bank_that_is_not_there(files, found):
    files.write()
    files.put("other.zh.yaml", {"questions": {}})
    only(found(written=True), "other.zh.yaml", "there is no other.yaml")


def test_stale_chinese_is_a_warning_and_an_error_in_a_release(files, found):
    files.questions[1]["title"] = "Ring all-reduce, to the bit"
    line = only(found(), "small.zh.yaml", "the English has changed since", severity="warning")
    assert line == line_of(files, "small.zh.yaml", "of: ", 2)
    only(found(strict=True), "small.zh.yaml", "the English has changed since")


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda zh: zh["rubric"].pop(), "rubric.3 is missing in the Chinese"),
        (lambda zh: zh["red_flags"].append("多了一条"), "red_flags.1 is not in the English"),
        (lambda zh: zh["conventions"].clear(), "conventions.0 is missing"),
        (lambda zh: zh["followups"][0]["points"].append("多"), "followups.0.points.1 is not in"),
        (lambda zh: zh["numeric"][0]["wrong"].clear(), "numeric.0.wrong.0 is missing"),
        (lambda zh: zh["numeric"][0].pop("prompt"), "numeric.0.prompt is missing"),
        (lambda zh: zh["numeric"][0].update(convention=None), "numeric.0.convention is missing"),
        (lambda zh: zh["numeric"][0].update(unit_zh="个"), "numeric.0.unit_zh is not in"),
        (lambda zh: zh.update(title="Why pipelines idle so"), "no Chinese"),
        (lambda zh: zh.update(question="A pipeline has many stages. How idle?"), "no Chinese"),
        (lambda zh: zh["rubric"].__setitem__(0, "names both of the ramps"), "no Chinese"),
        (
            lambda zh: zh.update(answer="没有数字。"),
            "the placeholders differ: {{p}}, {{total:.1f}}",
        ),
        (lambda zh: zh.update(title="流水线 {{p}}"), "none in English, {{p}} in Chinese"),
        (lambda zh: zh.update(title="1F1B 调度"), ""),
    ],
)
def test_chinese_that_does_not_fit(files, found, change, what):
    change(files.zh["s-001"])
    if what == "":
        assert found() == []
        return
    only(found(), "small.zh.yaml", what)


# --- the bank as a whole --------------------------------------------------------------------------


def test_two_titles_that_are_nearly_one(files, found, hashed):
    files.questions[2]["title"] = "Ring all-reduce, to the bytes"
    hashed()
    line = only(found(), "small.yaml", "nearly that of s-002, 'Ring all-reduce, to the byte'")
    assert line == line_of(files, "small.yaml", "to the bytes")


def test_similarity():
    assert similarity("Ring all-reduce", "ring ALL reduce!") == 1
    assert similarity("Ring all-reduce, to the byte", "A ring all-reduce to the byte") > 0.6
    assert similarity("The bubble of 1F1B", "The bubble of interleaved 1F1B") < 0.7
    assert similarity("Why pipelines idle", "Where zig-zag helps") < 0.1


def test_a_chain_with_a_gap(files, found):
    files.questions[1]["chain"]["step"] = 3
    line = only(found(), "small.yaml", "the chain 'deeper' has the steps 1, 3")
    assert line == line_of(files, "small.yaml", "step: 3") - 1


def test_a_chain_that_becomes_easier(files, found):
    files.questions[1]["level"] = 3
    assert found() == []
    files.questions[0]["level"] = 4
    line = only(found(), "small.yaml", "s-002: a chain goes deeper, and this is level 3 after")
    assert line == line_of(files, "small.yaml", "level: 3")


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_and_counts(files, capsys, monkeypatch, make):
    monkeypatch.setitem(COUNTS, "small", make.counts["small"])
    assert main_lint(files.write()) == 0
    assert capsys.readouterr().out == "4 questions in 1 topic, no errors, no warnings\n"
    files.questions[1]["title"] = "Something else"
    assert main_lint(files.write()) == 0
    assert "warning: small.zh.yaml, line " in (told := capsys.readouterr().out)
    assert told.endswith("4 questions in 1 topic, no errors, 1 warning\n")
    assert main_lint(files.write(), strict=True) == 1
    assert capsys.readouterr().out.endswith("\n1 error, no warnings\n")


def test_no_torch_for_an_exercise():
    """It looks the id up; the exercise itself would import torch."""
    code = "import sys, picolab.interview.lint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the Chinese README -------------------------------------------------------------------------


def test_a_readme_that_is_behind_is_told(tmp_path):
    """Mutant: comparing times, which a fresh clone sets anew."""
    english, chinese = tmp_path / "README.md", tmp_path / "README.zh.md"
    english.write_text("# one\n")
    assert readme(tmp_path) == []  # as in the wheel
    chinese.write_text("<!-- of: 000000000000 -->\n# 一\n")
    [behind] = readme(tmp_path)
    assert behind.severity == "warning" and behind.file == "README.zh.md"
    [first_line] = re.findall(r"<!-- of: \w+ -->", behind.what)
    chinese.write_text(f"{first_line}\n# 一\n")
    assert readme(tmp_path) == []
    english.write_text("# two\n")
    assert [finding.severity for finding in readme(tmp_path, strict=True)] == ["error"]


# --- the banks of this repository -----------------------------------------------------------------


def test_the_banks_hold():
    """Chinese that is behind is a warning here, and an error in `make release-check`."""
    findings = lint(banks.bank_folder())
    assert [str(finding) for finding in findings if finding.severity == "error"] == []


# --- what is told too early, and one Chinese word for each term -----------------------------------


GIVEN_AWAY = {
    "title": lambda q: q.update(title="One slow rank, and how it shows"),
    "question": lambda q: q.update(question="Is it one slow rank that holds the others up?"),
    "conventions": lambda q: q.update(conventions=["*one* slow rank is one that comes late"]),
    "look": lambda q: q["steps"][0].update(look="find one slow rank by its time"),
}


@pytest.mark.parametrize("where", GIVEN_AWAY)
def test_what_names_the_cause_before_the_answer(files, found, make, where):
    files.questions[2]["steps"] = [dict(step) for step in files.questions[2]["steps"]]
    GIVEN_AWAY[where](files.questions[2])
    files.zh["s-003"] = make.translation(files.questions[2])
    only(found(), "small.yaml", "'one slow rank' gives the answer away")


def test_a_late_look_may_name_the_cause(files, found, make):
    files.questions[2]["steps"] = [dict(step) for step in files.questions[2]["steps"]]
    files.questions[2]["steps"][3] |= {"look": "one slow rank, taken out", "late": True}
    files.zh["s-003"] = make.translation(files.questions[2])
    assert found() == []


def test_a_word_that_is_said_nowhere_protects_nothing(files, found):
    files.questions[2]["give_away"] = ["one slow rank", "one slwo rank"]
    only(found(), "small.yaml", "give_away says 'one slwo rank', and neither answer nor steps do")


def test_the_chinese_gives_nothing_away_either(files, found):
    files.zh["s-003"]["title"] = "慢的 rank 在哪里"
    only(found(), "small.zh.yaml", "'慢的 rank' gives the answer away")
    files.zh["s-003"] |= {"title": "流水线的每一级都会等待。", "give_away": []}
    only(found(), "small.zh.yaml", "give_away is missing in the Chinese")


GLOSSARY = [{"en": "backward", "zh": "反向", "not": ["backward", "后向"]}]


@pytest.mark.parametrize("wrong", ["backward", "Backward", "后向"])
def test_another_word_than_the_glossarys(files, found, wrong):
    files.write()
    files.put("glossary.yaml", GLOSSARY)
    files.zh["s-001"]["title"] = f"流水线的 {wrong} 为什么空闲"
    files.put("small.zh.yaml", {"questions": files.zh})
    what = "the glossary says 反向 for backward, and this says "
    only(found(written=True), "small.zh.yaml", what)


@pytest.mark.parametrize("right", ["反向", "`backward`", "backward_input"])
def test_the_glossarys_word_and_names_in_code(files, found, right):
    files.write()
    files.put("glossary.yaml", GLOSSARY)
    files.zh["s-001"]["title"] = f"流水线的 {right} 为什么空闲"
    files.put("small.zh.yaml", {"questions": files.zh})
    assert found(written=True) == []


def test_a_glossary_that_is_none(files, found):
    files.write()
    files.put("glossary.yaml", [{"en": "backward"}])
    only(found(written=True), "glossary.yaml", "Field required")


def test_warm_ups_are_counted_and_are_no_long_explanations(files, found, make):
    files.questions[1] = make.plain(
        2, kind="explain", minutes=2, chain={"name": "deeper", "step": 2}, answer="word " * 50
    )
    files.zh["s-002"] = make.translation(files.questions[1])
    least = {"small": Counts(questions=2, numeric=1, code=0, diagnose=0, explain_share=0.0)}
    assert found(counts=least) == []
    more = {"small": Counts(questions=2, numeric=1, code=0, diagnose=0, warm_ups=2)}
    only(found(counts=more), "small.yaml", "1 question of at most 3 minutes; 2 is the least")
