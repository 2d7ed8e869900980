"""`picolab quiz` as somebody meets it over ssh: the real command on a real pseudo-terminal.

Wrong versions these tests catch: a traceback where a sentence belongs, a log that a kill leaves
torn, a grade that is not on the disk when the next question is asked, escape codes in a terminal
that knows none, characters that the terminal cannot show, a second window that loses or mixes
lines, an option that does not reach the practice.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from picolab.interview.reviews import Review, ReviewLog, now

BANK = Path(__file__).parent / "practice_bank"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")

CONFIDENCE, TICKS, FLAGS, GRADE = "How sure are you", "Which did you say", "red flags\\?", "Grade: "


@pytest.fixture
def home(tmp_path):
    """The environment of somebody who has never practised."""
    plain = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data"), "LC_ALL": "C.UTF-8"}
    plain["TERM"] = "xterm"
    for name in ("COLUMNS", "NO_COLOR"):
        plain.pop(name, None)
    return plain


@pytest.fixture
def log(tmp_path):
    return tmp_path / "data" / "picolab" / "reviews.jsonl"


def command(*words: str) -> list[str]:
    what = words[:1] if words and not words[0].startswith("-") else ()
    return ["-m", "picolab", "quiz", *what, "--bank", str(BANK), *words[len(what) :]]


def start(home, *words: str) -> pexpect.spawn:
    return pexpect.spawn(
        sys.executable,
        command(*words),
        env=home,
        encoding="utf-8",
        codec_errors="replace",
        timeout=30,
        dimensions=(40, 90),
    )


def run(home, *words: str, typed: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command(*words)],
        env=home,
        input=typed.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )


def ended(talk: pexpect.spawn) -> int:
    talk.expect(pexpect.EOF)
    talk.close()
    return talk.exitstatus


def answer(talk: pexpect.spawn, number: str = "17.9 %", grade: str = "") -> None:
    """The numeric question, from its first prompt to its date."""
    talk.expect("Answer aloud")
    talk.sendline("both ends")
    talk.sendline("")
    talk.expect(CONFIDENCE)
    talk.sendline("4")
    talk.expect("bubble \\(of the total\\)")
    talk.sendline(number)
    talk.expect("one activation")
    talk.sendline("64 MiB")
    talk.expect(TICKS)
    talk.sendline("1 2 3 4")
    talk.expect(FLAGS)
    talk.sendline("")
    talk.expect(GRADE)
    talk.sendline(grade)
    talk.expect("Comes again on ")
    talk.expect("Follow-up: ")
    talk.sendline("")


def test_a_whole_question(home, log):
    talk = start(home, "--level", "4")
    answer(talk)
    talk.expect("1 graded, 100% of the points")
    assert ended(talk) == 0
    (review,) = ReviewLog(log).reviews()
    assert (review.id, review.rating, review.confidence) == ("practice-001", "easy", 4)
    assert review.numbers == ("17.9", "0.0625") and review.notes == "both ends"


def test_a_known_mistake_gets_its_reason_on_the_spot(home):
    talk = start(home, "--level", "4")
    talk.expect("Answer aloud")
    talk.sendline("")
    talk.sendline("")
    talk.expect("bubble \\(of the total\\)")
    talk.sendline("21.9")
    talk.expect("That is the share of the \x1b\\[3mideal\x1b\\[0m time")  # slanted
    talk.sendline("q")
    talk.expect("Stopped. The question that was open is not written; 0 graded.")
    assert ended(talk) == 0


def test_q_ctrl_d_and_ctrl_c(home, log):
    for key, status in ((":q\n", 0), ("\x04", 0), ("\x03", 130)):
        talk = start(home, "--level", "4")
        talk.expect("Answer aloud")
        talk.send(key)
        talk.expect("Stopped.")
        assert ended(talk) == status
        assert "Traceback" not in talk.before and not log.exists()


def test_a_kill_in_the_middle_leaves_the_log_whole(home, log):
    """One graded, the next half answered, kill -9: the first is there, the second is not."""
    ReviewLog(log).append(Review("practice-001", now().replace(year=2020), "again", 0.0))
    talk = start(home, "-n", "5")
    answer(talk, grade="3")
    talk.expect("Question 2 of 5")
    talk.expect("Answer aloud")
    talk.kill(signal.SIGKILL)
    talk.expect(pexpect.EOF)
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 and all(line.endswith(b"\n") for line in lines)
    assert [json.loads(line)["rating"] for line in lines] == ["again", "good"]

    # Killed while the line itself was written: the next grade begins on a line of its own.
    with open(log, "ab") as file:
        file.write(b'{"v": 1, "id": "practice-0')
    talk = start(home, "--due")
    talk.expect("1 line of .* cannot be read")
    assert ended(talk) == 0
    talk = start(home, "--topic", "practice", "--level", "3")
    talk.expect("Answer aloud")
    for _ in range(6):
        talk.sendline("")
    talk.expect("Comes again")
    assert ended(talk) == 0
    kept = ReviewLog(log)
    assert [r.id for r in kept.reviews()] == ["practice-001"] * 2 + ["practice-004"]
    assert kept.unreadable == 1


def test_two_windows_at_once(home, log):
    one, two = start(home, "--level", "4"), start(home, "--level", "4")
    for talk in (one, two):
        talk.expect("Answer aloud")
        talk.sendline("")
        talk.sendline("")
        talk.expect("bubble \\(of the total\\)")
        talk.sendline("17.9")
    for talk, grade in ((two, "2"), (one, "3")):
        for text in ("0.0625", "a", "", grade, ""):
            talk.sendline(text)
    for talk in (one, two):
        talk.expect("Comes again on ")
        assert ended(talk) == 0
    kept = ReviewLog(log)
    assert sorted(r.rating for r in kept.reviews()) == ["good", "hard"] and kept.unreadable == 0


@pytest.mark.parametrize("setting", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "no-color"])
def test_a_terminal_without_colour(home, setting):
    talk = start({**home, **setting}, "--level", "4")
    talk.logfile_read = seen = Seen()
    answer(talk)
    assert ended(talk) == 0 and seen.text and "\x1b" not in seen.text
    helped = start({**home, **setting}, "--help")
    helped.logfile_read = seen = Seen()
    assert ended(helped) == 0 and "--topic" in seen.text and "\x1b" not in seen.text
    coloured = start(home, "--help")  # where nothing forbids it, there is some: the test can see it
    coloured.logfile_read = seen = Seen()
    assert ended(coloured) == 0 and "\x1b[" in seen.text


class Seen:
    text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


# Python makes UTF-8 of LANG=C by itself; a terminal that truly has none is this one.
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_without_utf8_english_works_and_chinese_is_refused(home):
    assert run({**home, **ASCII}, "--help").returncode == 0
    asked = run({**home, **ASCII}, "show", "practice-001")
    assert asked.returncode == 0, asked.stderr
    assert b"practice-001  ?  pipeline, L4" in asked.stdout
    refused = run({**home, **ASCII}, "--lang", "zh")
    assert refused.returncode == 2 and b"Traceback" not in refused.stderr
    assert b"has no Chinese characters; set LANG=C.UTF-8, or use --lang en" in refused.stderr
    talk = start({**home, **ASCII}, "--level", "4")
    answer(talk)
    assert ended(talk) == 0


def test_lang_c_alone_is_enough_for_chinese(home):
    plain = {name: value for name, value in home.items() if not name.startswith(("LC_", "PYTHON"))}
    asked = run({**plain, "LANG": "C"}, "show", "practice-001", "--lang", "zh")
    assert asked.returncode == 0 and "八个阶段的气泡" in asked.stdout.decode()


def test_chinese_on_a_terminal(home):
    talk = start(home, "--level", "4", "--lang", "zh")
    talk.expect("请口头作答")
    talk.sendline("")
    talk.sendline("")
    talk.expect("占总时间")
    talk.sendline("21.9")
    talk.expect("那是占")
    talk.sendline("q")
    talk.expect("已结束")
    assert ended(talk) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "practice-01"), r"there is no question 'practice-01'; did you mean practice-001"),
        (("--topic", "moe"), r"there is no topic 'moe'; there is practice"),
        (("--lang", "fr"), r"there is no language 'fr'; there is en and zh"),
        (("--level", "9"), r"no question has level 9; there are \[3, 4, 5, 6\]"),
        (("--until", "tomorrow"), r"'tomorrow' is no date; write it as 2027-03-01"),
        (("--until", "2020-01-01"), r"2020-01-01 is not in the future"),
        (("-n", "0"), r"at least one question, not 0"),
        (("--minutes", "5"), r"ten minutes at least, not 5"),
        (("--minutes", "45", "--level", "4"), r"leave out the question, --level"),
        (("practice-099",), r"there is no question 'practice-099'; did you mean practice-00"),
        (("--area", "moe"), r"there is no area 'moe'; there is pipeline"),
        (("shwo",), r"there is no `picolab quiz shwo`; there are practise, list, show"),
        (("show",), r"say which question, as in picolab quiz show 4d-003"),
        (("--bank", "nowhere"), r"there is no folder nowhere"),
        (("--bank", str(BANK.parent)), r"there is no bank in "),
        (("--log", str(BANK)), r"Is a directory"),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_met_is_one_sentence(home, words, said):
    asked = run(home, *words)
    stderr = asked.stderr.decode()
    assert asked.returncode in (1, 2) and "Traceback" not in stderr, stderr
    assert stderr.startswith("picolab: ") and re.search(said, stderr), stderr


def test_help(home):
    asked = run(home, "--help")
    text = asked.stdout.decode()
    assert asked.returncode == 0
    for flag in ("--topic", "--due", "-n", "--minutes", "--lang", "--until", "--bank", "--log"):
        assert flag in text


def test_looking_needs_no_terminal(home, log):
    ReviewLog(log).append(Review("practice-001", now(), "good", 0.8, confidence=3))
    shown = run(home, "show", "practice-003").stdout.decode()
    assert "The loss is right and the norm is not" in shown and "In this order" in shown
    assert "1 of 5 questions seen, 1 reviews" in run(home, "stats").stdout.decode()


def test_another_log_and_a_report(home, log, tmp_path):
    mine, report = tmp_path / "mine.jsonl", tmp_path / "report.md"
    typed = "\n" * 4 + "1\n:q\n"
    asked = run(home, "--minutes", "45", "--log", str(mine), "--report", str(report), typed=typed)
    assert asked.returncode == 0, asked.stderr
    assert "questions, 0 minutes" in report.read_text() and not log.exists()
    assert f"Report: {report}" in asked.stdout.decode()


def test_without_torch_a_coding_task_says_what_to_install(home, log, tmp_path):
    """Everything else works; a torch that cannot be imported stands for one that is not there."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch')")
    ReviewLog(log).append(Review("practice-005", now().replace(year=2020), "again", 0.0))
    asked = run({**home, "PYTHONPATH": str(tmp_path)}, "--due", typed="\n" * 6)
    said = asked.stdout.decode()
    assert asked.returncode == 0, asked.stderr
    assert "pip install -e '.[torch]'" in said and "Comes again on" in said
