"""The face in a terminal, with its questions and answers given from outside.

Wrong versions these tests catch (kept as mutants where it says so): a face that loses what was said
when the grade cannot be written (mutant), one that writes what was skipped or stopped, one that
counts a skipped question (mutant), one that judges a number and hides the reason, a sentence of the
engine left in English on a Chinese page (mutant), an empty state that blames --due when it was not
given.
"""

import random
import re
import string
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from picolab.interview import reviews as logs
from picolab.interview import words as speech
from picolab.interview.answers import judge, propose
from picolab.interview.bank import Numeric, load
from picolab.interview.reviews import Review, ReviewLog
from picolab.interview.session import Session
from picolab.interview.statistics import calibration_sentence
from picolab.interview.terminal import Terminal
from picolab.interview.words import WORDS, spoken

BANK = Path(__file__).parent / "practice_bank"
NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Stands still; each look takes so many seconds."""

    def __init__(self, step_s: float = 0):
        self.now, self.step = NOON, timedelta(seconds=step_s)

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


class Talk:
    """A terminal whose reader says these lines, and then presses Ctrl-D."""

    def __init__(self, tmp_path, *lines, language="en", face=Terminal, clock=None, seed=0):
        self.lines, self.said, self.asked = list(lines), [], []
        self.log = ReviewLog(tmp_path / "reviews.jsonl")
        self.face = face(
            load(BANK),
            self.log,
            language,
            clock or Clock(),
            random.Random(seed),
            ask=self._ask,
            say=self.said.append,
            folder=tmp_path,
        )

    def _ask(self, prompt):
        self.asked.append(self.said[-1] if self.said else prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        return line() if callable(line) else line

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def last(self) -> Review:
        return self.log.reviews()[-1]


def earlier(log: ReviewLog, *names: str, days: int = 40, rating="again", **values) -> None:
    for index, name in enumerate(names):
        at = NOON - timedelta(days=days, seconds=-index)
        log.append(Review(name, at, rating, 0.5, **values))


# The numeric question; 001 is the only one of level 4.
WHOLE = ("bubble", "both ends", "", "3", "21.9 %", "0.0625 GiB", "1 2", "", "", "")


def test_a_whole_question(tmp_path):
    talk = Talk(tmp_path, *WHOLE, clock=Clock(2))
    assert talk.face.practise(level=4) == 1 and not talk.lines
    assert "Question 1 of 1  ·  pipeline, L4, about 5 min  ·  practice-001" in talk.text
    assert "A pipeline of 8 stages" in talk.text and "{{" not in talk.text
    assert "bubble (of the total) [in %]" in talk.text
    assert "Not 21.9 %. That is the share of the ideal time" in talk.text
    assert "Right: 0.0625 GiB" in talk.text
    assert "= bubble (of the total): 17.9487 %" in talk.text
    assert "1. [4] says that it is (p-1)/(m+p-1) (must)" in talk.text
    assert "a. says that 1F1B" in talk.text and "pays with messages" in talk.text
    # 70 % of the points would be good; a number was wrong.
    assert "(Enter: hard, a number was wrong)" in talk.text
    review = talk.last()
    assert (review.id, review.rating, review.score) == ("practice-001", "hard", 0.7)
    assert (review.ticks, review.flags, review.confidence) == ((0, 1), (), 3)
    assert review.notes == "bubble\nboth ends" and review.numbers == ("21.9", "0.0625")
    assert review.seconds > 0
    state = logs.states([review.id], [review])[review.id]
    assert f"Comes again on {state.due:%Y-%m-%d}." in talk.text
    assert "1 graded, 70% of the points on average." in talk.text


def test_the_answer_comes_after_the_thinking(tmp_path):
    talk = Talk(tmp_path, *WHOLE)
    talk.face.practise(level=4)
    answer = next(i for i, said in enumerate(talk.said) if said.startswith("\nAnswer\n"))
    asked = next(i for i, said in enumerate(talk.said) if "bubble (of the total)" in said)
    assert asked < answer
    assert all("17.9" not in line and "(p-1)" not in line for line in talk.said[:asked])
    order = [
        "Answer aloud",
        "How sure",
        "bubble (of the total) [in",
        "one activation [in",
        "\nAnswer\n",
    ]
    places = [next(i for i, said in enumerate(talk.said) if part in said) for part in order]
    assert places == sorted(places), "words, then confidence, then numbers"


def test_what_is_no_number_is_asked_again(tmp_path):
    lines = ["", "", "many", "3 GB", "3 parsecs", "17.9", "", "", "", "", ""]
    talk = Talk(tmp_path, *lines)
    talk.face.practise(level=4)
    assert "'many' is not a number" in talk.text
    assert "3 GB is an amount of data, and asked for is a pure number in %" in talk.text
    assert "Right: 17.9 %" in talk.text and talk.last().numbers == ("17.9",)


def test_ticks_flags_and_confidence_are_asked_until_they_can_be_read(tmp_path):
    lines = ["", "sure", "5", "2", "", "", "0", "9", "x", "²", "1，2、3", "z", "1", "b a", "7", "4"]
    lines.append("")
    talk = Talk(tmp_path, *lines)
    talk.face.practise(level=4)
    review = talk.last()
    assert not talk.lines and review.confidence == 2
    assert review.ticks == (0, 1, 2) and review.flags == (0, 1)
    # Of confidence two, of ticks four, of the grade one.
    assert talk.said.count("  1 ... 4") == 7 and talk.said.count("  a ... b") == 2


def test_a_for_all_and_the_reader_overrides(tmp_path):
    talk = Talk(tmp_path, "", "", "17.9", "0.0625", "a", "", "1", "")
    talk.face.practise(level=4)
    assert "(Enter: easy, 100% of the points)" in talk.text
    assert talk.last().rating == "again" and talk.last().score == 1


def test_each_grade_has_its_date_and_they_hold(tmp_path):
    for key, rating in enumerate(("again", "hard", "good", "easy"), 1):
        folder = tmp_path / rating
        talk = Talk(folder, "", "", "", "", "", "", str(key), "")
        talk.face.practise(level=4)
        promised = re.search(rf"{key}\s{rating}\s\((\S+)\)", talk.text)[1]
        due = logs.states(["practice-001"], talk.log.reviews())["practice-001"].due
        assert f"{due:%Y-%m-%d}" == promised and talk.last().rating == rating


def check_a_skip(face, tmp_path):
    talk = Talk(tmp_path, ":s", "", "", "", "", "", "", "", face=face)
    earlier(talk.log, "practice-002", "practice-003")
    talk.face.practise(count=1)
    assert "Skipped; nothing was written." in talk.text
    assert [r.id for r in talk.log.reviews()][2:] == ["practice-003"]
    assert re.findall(r"Question \d of \d", talk.text) == ["Question 1 of 1"] * 2


def test_a_skipped_question_is_not_written_and_not_counted(tmp_path):
    check_a_skip(Terminal, tmp_path)


def test_a_face_that_counts_what_was_skipped_is_noticed(tmp_path):
    class Counts(Terminal):
        def _one(self, session, question):
            self.drawn = getattr(self, "drawn", 0) + 1
            session.place = lambda: (self.drawn, 1)
            super()._one(session, question)

    with pytest.raises(AssertionError):
        check_a_skip(Counts, tmp_path)


def test_all_skipped(tmp_path):
    talk = Talk(tmp_path, ":s", ":s")
    assert talk.face.practise(level=5, count=5) == 0
    assert talk.text.endswith(WORDS["en"]["none graded"]) and not talk.log.path.exists()


@pytest.mark.parametrize("prompt", range(len(WHOLE) - 1))
@pytest.mark.parametrize("how", ["q", "Ctrl-D"])
def test_stop_at_any_prompt(tmp_path, prompt, how):
    talk = Talk(tmp_path, *WHOLE[:prompt], *([":q", "unread"] if how == "q" else []))
    assert talk.face.practise(level=4) == 0
    assert "Stopped. The question that was open is not written; 0 graded." in talk.text
    assert talk.lines in ([], ["unread"]) and not talk.log.path.exists()


def test_ctrl_c_ends_it_as_the_command_expects(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    talk = Talk(tmp_path, *WHOLE[:5], interrupt)
    with pytest.raises(KeyboardInterrupt):
        talk.face.practise(level=4)
    assert "Stopped." in talk.text and not talk.log.path.exists()


def check_a_full_disk(face, tmp_path):
    """The log cannot be written, the reader makes room, and grades again."""
    block = tmp_path / "reviews.jsonl"

    def make_room():
        block.rmdir()
        return ""

    def fill():
        block.mkdir()
        return "a"

    talk = Talk(tmp_path, "kept", "", "3", "", "", fill, "b", "3", make_room, "", face=face)
    talk.face.practise(level=4)
    assert "Not written: " in talk.text and "grade again" in talk.text
    review = talk.last()
    assert review.rating == "hard" and review.notes == "kept" and review.ticks == (0, 1, 2, 3)
    assert review.flags == (1,) and len(talk.log.reviews()) == 1


def test_what_was_said_outlives_a_full_disk(tmp_path):
    check_a_full_disk(Terminal, tmp_path)


def test_a_face_that_gives_up_on_a_full_disk_is_noticed(tmp_path):
    class GivesUp(Terminal):
        def _one(self, session, question):
            grade = session.grade

            def once(*args):
                try:
                    return grade(*args)
                except OSError as error:
                    raise RuntimeError("the disk is full") from error

            session.grade = once
            super()._one(session, question)

    with pytest.raises(RuntimeError):
        check_a_full_disk(GivesUp, tmp_path)


def test_another_window_that_holds_the_log(tmp_path, monkeypatch):
    import filelock

    monkeypatch.setattr(logs, "LOCK_PATIENCE_S", 0.05)
    held = filelock.FileLock(tmp_path / "reviews.lock")

    def take():
        held.acquire()
        return ""

    def let_go():
        held.release()
        return "2"

    talk = Talk(tmp_path, "", "", "", "", "", take, "3", let_go, "")
    assert talk.face.practise(level=4) == 1
    assert "another practice window" in talk.text and talk.last().rating == "hard"


def test_bytes_that_are_no_characters_do_not_stop_the_log(tmp_path):
    def undecodable():
        return b"caf\xe9".decode("utf-8", "surrogateescape")

    def strict():
        return b"caf\xe9".decode("utf-8")

    talk = Talk(tmp_path, strict, undecodable, *[""] * 8)
    assert talk.face.practise(level=4) == 1
    assert "can't decode byte 0xe9" in talk.text and talk.last().notes == "caf?"


# Notes, hints, looks, a step back.


def test_a_note_that_is_a_letter_is_a_note(tmp_path):
    talk = Talk(tmp_path, "s", "q", "sharded", "", *WHOLE[3:])
    assert talk.face.practise(level=4) == 1 and talk.last().notes == "s\nq\nsharded"


def test_notes_stand_beside_the_rubric(tmp_path):
    talk = Talk(tmp_path, *WHOLE)
    talk.face.practise(level=4)
    rubric = next(said for said in talk.said if "What an interviewer would look for" in said)
    assert "Your notes" in rubric and "bubble" in rubric and "both ends" in rubric


def test_a_hint_repeats_the_prompt(tmp_path):
    talk = Talk(tmp_path, ":h", "bubble", "", ":h", "3", *WHOLE[4:])
    assert talk.face.practise(level=4) == 1
    assert talk.text.count("4 points are looked for, 1 of them musts") == 2
    assert talk.text.count("How sure are you?") == 2 and talk.last().confidence == 3


def test_the_looks_of_a_diagnosis_come_one_by_one(tmp_path):
    talk = Talk(tmp_path, "a", "b", "", "", "", "", "", "", "")
    earlier(talk.log, "practice-003")
    talk.face.practise(due_only=True)
    before = talk.text.split("Answer aloud")[0]
    assert "one process" not in before, "the late look comes with the answer"
    assert "a doubled square gives the root of 2" in before or "a sum for a mean" in before
    assert "pairs are as in the answer" in talk.text or "pair" in talk.text


def test_a_step_back_asks_the_step_before(tmp_path):
    talk = Talk(tmp_path, *WHOLE[:7], ":b", "1 2 3", "", "", "")
    talk.face.practise(level=4)
    assert talk.last().ticks == (0, 1, 2)
    talk = Talk(tmp_path / "first", ":b", *WHOLE)
    assert talk.face.practise(level=4) == 1 and "nothing to go back to" in talk.text


def test_a_step_back_before_the_first_note_grades_the_last_again(tmp_path):
    talk = Talk(tmp_path, *WHOLE, ":b", "a", "", "1", ":q")
    earlier(talk.log, "practice-001")
    assert talk.face.practise(count=2) == 1
    assert "The grade of practice-001 is withdrawn; grade it again." in talk.text
    assert [r.rating for r in talk.log.reviews()] == ["again", "again"]
    assert talk.last().score == 1 and talk.last().notes == "bubble\nboth ends"


def test_the_summary_says_what_was_missed_and_what_to_read(tmp_path):
    talk = Talk(tmp_path, *WHOLE[:6], "2", "", "", "")
    talk.face.practise(level=4)
    end = talk.text.split("1 graded")[1]
    assert "Musts that you missed" in end and "says that it is (p-1)/(m+p-1)" in end
    assert "To read" in end and "01_4d_basics.ipynb#pp-bubble-compare" in end


def test_until_is_remembered(tmp_path):
    Talk(tmp_path, ":q").face.practise(until=date(2027, 3, 4))
    talk = Talk(tmp_path, ":q")
    talk.face.practise()
    assert "before 2027-03-04" in talk.text.replace("\n", " ")


def test_nothing_is_wider_than_a_hundred_columns(tmp_path, monkeypatch):
    """The real bank, in both languages; links alone may be longer."""
    from rich.cells import cell_len

    monkeypatch.setenv("COLUMNS", "180")
    for language in ("en", "zh"):
        talk = Talk(tmp_path, language=language)
        talk.face.bank = load()
        for question in ("4d-024", "4d-033", "4d-036", "4d-045"):
            talk.face.show(question)
        lines = [line for line in talk.text.splitlines() if "http" not in line]
        assert max(map(cell_len, lines)) <= 100


# Empty states.


def test_nothing_is_due_and_nothing_was_ever_graded(tmp_path):
    talk = Talk(tmp_path)
    assert talk.face.practise(due_only=True) == 0
    assert "nothing was graded yet" in talk.text and "--due" in talk.text and not talk.asked


def test_nothing_is_due_yet(tmp_path):
    talk = Talk(tmp_path)
    earlier(talk.log, "practice-001", days=1, rating="easy")
    assert talk.face.practise(due_only=True) == 0
    assert "Nothing is due; the next comes on 2027-03-" in talk.text and not talk.asked


def test_all_is_seen_and_none_is_due(tmp_path):
    talk = Talk(tmp_path)
    earlier(talk.log, "practice-001", days=1, rating="easy")
    assert talk.face.practise(level=4) == 0
    assert "All of these were seen" in talk.text and "--due" not in talk.text


def test_due_ones_only(tmp_path):
    talk = Talk(tmp_path, *[""] * 7)
    earlier(talk.log, "practice-003")
    assert talk.face.practise(due_only=True) == 1 and talk.last().id == "practice-003"
    assert "Question 1 of 1" in talk.text
    assert "1. the reduction of the gradients: a sum for a mean" in talk.text


def test_a_torn_line_is_told(tmp_path):
    talk = Talk(tmp_path, ":q")
    earlier(talk.log, "practice-001")
    with open(talk.log.path, "a") as file:
        file.write('{"v": 1, "id": "practi')
    talk.face.practise()
    assert "1 line of " in talk.text and "cannot be read" in talk.text


def test_until_says_how_many_a_day_and_moves_the_dates(tmp_path):
    talk = Talk(tmp_path, *WHOLE[:8], "4", "")
    talk.face.practise(level=4, until=date(2027, 3, 4))
    assert "1 new ones a day" in talk.text
    assert re.search(r"4 easy\s\(2027-03-03\)", talk.text)
    assert "Comes again on 2027-03-03." in talk.text


# The interview.

UNSAID = ["", "", "", "", ""]  # notes, confidence, ticks, flags, grade
FOLLOWED = ["", "y"]


def test_an_interview_and_its_report(tmp_path):
    warm, number = UNSAID, ["", "", "17.9", "", "", "", "", *FOLLOWED]
    lines = [*warm, *number, "", "", *UNSAID[1:], "", *UNSAID, *FOLLOWED]
    talk = Talk(tmp_path, *lines, clock=Clock(1))
    path = talk.face.interview(45)
    parts = re.findall(r"Part: (\S+)\. (\d+) minutes left", talk.text)
    assert [part for part, _ in parts] == ["warm-up", "number", "code", "diagnosis"]
    assert re.findall(r"Question \d of \d", talk.text) == [
        f"Question {i} of 4" for i in range(1, 5)
    ]
    assert path.parent == talk.log.path.parent and f"Report: {path}" in talk.text
    report = path.read_text(encoding="utf-8")
    assert "4 of 4 questions" in report and "| number | The bubble of eight stages |" in report
    assert "* [x] Follow-up: And interleaved over `v` chunks?" in report
    assert [p.name for p in tmp_path.iterdir() if "interview" in p.name] == [path.name]


def test_an_interview_is_over_when_its_time_is(tmp_path):
    talk = Talk(tmp_path, *UNSAID, "unread", clock=Clock(90))
    path = talk.face.interview(10, report=tmp_path / "mine" / "report.md")
    assert "The 10 minutes are over." in talk.text and talk.lines == ["unread"]
    assert path == tmp_path / "mine" / "report.md" and "not asked" in path.read_text()
    assert len(talk.log.reviews()) == 1


def test_a_stopped_interview_still_has_its_report(tmp_path):
    talk = Talk(tmp_path, *UNSAID, ":s", ":q")
    path = talk.face.interview(45)
    report = path.read_text()
    assert "1 of 4 questions" in report and "Stopped." in talk.text
    assert "| skipped |" in report and report.count("| not asked |") == 2


# A coding task.


def test_a_coding_task_gives_its_stub_and_judges_it(tmp_path):
    def stub():
        return next(tmp_path.glob("practice-005_*/my_gradients.py"))

    def break_it():
        text = stub().read_text()
        assert "def my_gradients" in text
        stub().write_text("import sys\nsys.exit(3)\n")
        return "c"

    def rename():
        stub().write_text("x = 1\n")
        return "c"

    talk = Talk(tmp_path, "", break_it, rename, "", *UNSAID[1:], "")
    earlier(talk.log, "practice-005")
    talk.face.practise(due_only=True)
    assert "judged in real ranks" in talk.text and str(stub()) in talk.text
    assert "checking ..." in talk.text
    assert "SystemExit: 3" in talk.text and "defines no my_gradients" in talk.text
    assert talk.last().id == "practice-005"


def test_a_coding_task_where_nothing_can_be_written(tmp_path):
    talk = Talk(tmp_path, *UNSAID, "")
    earlier(talk.log, "practice-005")
    talk.face._folder = tmp_path / "reviews.jsonl"  # a file, so nothing can be beneath it
    assert talk.face.practise(due_only=True) == 1
    assert "def my_gradients" in talk.text


# Looking.


def test_stats_before_any_use_say_what_to_do(tmp_path):
    talk = Talk(tmp_path)
    talk.face.stats()
    assert "Nothing is graded yet" in talk.text and "picolab quiz" in talk.text
    assert "questions seen" not in talk.text


def test_the_list(tmp_path):
    talk = Talk(tmp_path)
    earlier(talk.log, "practice-001")
    talk.face.questions()
    assert "5 questions, 4 of them new" in talk.text and "practice-003" in talk.text


def test_show_and_stats(tmp_path):
    talk = Talk(tmp_path)
    earlier(talk.log, "practice-001", confidence=4)
    talk.face.show("practice-003")
    assert "In this order" in talk.text and "asks for the norm of one process" in talk.text
    talk.face.stats()
    assert "1 of 5 questions seen, 1 reviews" in talk.text and "What comes" in talk.text
    with pytest.raises(ValueError, match=r"no question 'practice-01'.*practice-001"):
        talk.face.show("practice-01")


# Two languages.


def test_a_whole_question_in_chinese(tmp_path):
    talk = Talk(tmp_path, *WHOLE, language="zh")
    assert talk.face.practise(level=4) == 1
    for part in (
        "第 1 题，共 1 题  ·  流水线",
        "八个阶段的气泡",
        "占总时间",
        "那是占理想时间的比例",
        "（必须）",
    ):
        assert part in talk.text
    assert "不是 21.9 %。" in talk.text and "正确：0.0625 GiB" in talk.text
    assert "回车：困难，有一个数不对" in talk.text and "下次复习：2027-" in talk.text
    assert "已评分 1 题，平均得分 70%。" in talk.text
    assert "{{" not in talk.text and "Enter" not in talk.text


def test_an_interview_in_chinese(tmp_path):
    talk = Talk(tmp_path, ":q", language="zh")
    path = talk.face.interview(45)
    report = path.read_text(encoding="utf-8")
    assert "# 模拟面试" in report and "未问到" in report and "not asked" not in report
    assert "环节：热身。还剩 45 分钟。" in talk.text and "报告：" in talk.text


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_both_languages_have_the_same_words():
    english, chinese = WORDS["en"], WORDS["zh"]
    assert set(english) == set(chinese)
    for key in english:
        assert fields(english[key]) == fields(chinese[key]), key
    columns = [len(words["columns"].split("|")) for words in WORDS.values()]
    assert columns == [8, 8]


def engine_sentences() -> list[str]:
    """Every sentence the engine makes, made by the engine."""

    def number(unit, value="x", **more):
        return Numeric(prompt="p", value=value, unit=unit, **more)

    said = []
    for unit, expected, typed in (
        *(("%", 17.9, "17.9"), ("%", 17.9, "0.179"), ("GiB", 8.0, "8.59 GiB"), ("B", 8.0, "64")),
        *(("s", 3.0, "3000"), ("s", 3.0, "6"), ("s", 3.0, "1.5"), ("s", 3.0, "4.1")),
        *(("s", 3.0, "2.1"), ("s", 3.0, "-1"), ("GB", 1.0, "1.024 GB")),
        *(
            ("GB", 1.0, "1,024"),
            ("s", 3.0, "1.024.000"),
            ("s", 3.0, "2,5 亿"),
            ("", 3.0, "6/2"),
        ),
        ("", 0.35, "35 %"),
    ):
        said.append(judge(number(unit), {"x": expected}, typed).text)
    for unit, typed in (
        *(("s", "many"), ("s", "3 zorks"), ("", "3 zorks"), ("s", "1e999"), ("s", "1/0")),
        *(("s", "3 GB"), ("GB", "3 s"), ("GB", "3 GB/s"), ("", "3 tokens"), ("GB/s", "3 flop")),
        *(("tokens", "3 flop/s"), ("flop", "3 %"), ("flop/s", "3 kg")),
    ):
        with pytest.raises(ValueError) as raised:
            judge(number(unit), {"x": 1.0}, typed)
        said.append(str(raised.value))
    question = load(BANK).find("practice-004")
    for ticks, flags, wrong in (
        *(((), (), 0), ((0, 1, 2), (0,), 0), ((0, 1, 2), (), 1), ((0, 1, 2, 3), (), 0)),
    ):
        said.append(propose(question, ticks, flags, wrong).why)
    few = question.model_copy(
        update={"rubric": tuple(p.model_copy(update={"must": False}) for p in question.rubric)}
    )
    said.append(propose(few, (), ()).why)
    sure = [Review("a", NOON, "good", 1.0, confidence=4)] * 5
    failed = [Review("a", NOON, "again", 0.0, confidence=4)] * 5
    unsure = [Review("a", NOON, "good", 1.0, confidence=1)] * 5
    said += [calibration_sentence(held) for held in ([], sure, failed, sure + unsure)]
    log = ReviewLog(Path("x.jsonl"))
    for log.unreadable in (1, 2):
        said.append(log.note())
    said.append(
        "another practice window has been writing to x for 10 s; close it and grade again, "
        "nothing is lost"
    )
    return said


# What stays as it is in Chinese: what was typed, units, file names, texts of the bank.
_KEPT = (
    r"GiB|KiB|kB|GB/s|GB|flop/s|flop|tokens?|kg|kilogram|many|zorks|x\.jsonl|two passes"
    r"|says n times the payload|\de\d+|\bx\b|\bs\b|\bB\b"
)


def check_chinese(spoken):
    for sentence in engine_sentences():
        chinese = spoken(sentence, "zh")
        assert re.search("[一-鿿]", chinese), sentence
        assert not re.search("[A-Za-z]", re.sub(_KEPT, "", chinese)), chinese


def test_every_sentence_of_the_engine_has_its_chinese():
    check_chinese(spoken)


def test_a_sentence_left_in_english_is_noticed(monkeypatch):
    for gone in range(len(speech._SENTENCES)):
        fewer = speech._SENTENCES[:gone] + speech._SENTENCES[gone + 1 :]
        monkeypatch.setattr(speech, "_SENTENCES", fewer)
        with pytest.raises(AssertionError):
            check_chinese(spoken)
        monkeypatch.undo()


def test_english_and_strange_sentences_are_left_alone():
    for sentence in engine_sentences():
        assert spoken(sentence, "en") == sentence
    assert spoken("something else {braces}", "zh") == "something else {braces}"


def test_the_lock_sentence_is_the_one_that_is_said(tmp_path, monkeypatch):
    """The one sentence above that is typed: it is what the log says."""
    import filelock

    monkeypatch.setattr(logs, "LOCK_PATIENCE_S", 0.05)
    log = ReviewLog(tmp_path / "reviews.jsonl")
    with filelock.FileLock(tmp_path / "reviews.lock"):
        with pytest.raises(TimeoutError) as raised:
            log.append(Review("a", NOON, "good", 1.0))
    assert spoken(str(raised.value), "zh").startswith("另一个练习窗口已占用")


# How many are left.


def test_how_many_there_will_be(tmp_path):
    log = ReviewLog(tmp_path / "reviews.jsonl")

    def session(**more):
        rng = random.Random(0)
        return Session(load(BANK), log, clock=Clock(), rng=rng, **more)

    few = session(count=3)
    few.draw()
    assert few.place() == (1, 3) and few.left() == 2
    few.skip()
    few.draw()
    assert few.place() == (1, 3)
    few.reveal()
    few.grade("good")
    assert few.left() == 2
    few.draw()
    assert few.place() == (2, 3)
    all_of_them = session(count=50)
    all_of_them.draw()
    assert all_of_them.place() == (1, 4)  # of five, one was graded and is not due
    with pytest.raises(RuntimeError, match="draw a question first"):
        session().place()


def test_deepen_goes_on_with_what_was_not_graded(tmp_path):
    session = Session(
        load(BANK), ReviewLog(tmp_path / "r.jsonl"), clock=Clock(), rng=random.Random(0)
    )
    assert session.deeper() is None
    while session.draw().id != "practice-001":
        session.skip()
    session.reveal()
    session.grade("good")
    assert session.deeper() == "practice-002" and session.deepen().id == "practice-002"
    session.reveal()
    session.grade("good")
    assert session.deeper() is None and session.deepen() is None
