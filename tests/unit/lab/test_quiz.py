"""`pico.quiz()`: what its buttons do, with a clock of our own, and what stands there headless.

Wrong versions these tests catch (kept as mutants where it says so): a card that loses ticks when
the grade cannot be written (mutant), a skip or a stop that leaves a trace, a headless card that
reads the reader's own log (mutant) or makes widgets, a proposal that does not follow the boxes
(mutant), a timer that cuts off or never ends, HTML of a question that is obeyed (mutant), a fixed
colour (mutant), widgets that pile up with every question, a page half in English.
"""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import ipywidgets
import papermill
import pytest

import picolab as pico
from picolab.interview import reviews as logs
from picolab.interview.reviews import Review, ReviewLog
from picolab.interview.words import WORDS
from picolab.lab import quiz_card, quiz_text, quiz_widgets
from picolab.lab.quiz_card import Quiz

BANK = Path(__file__).parents[1] / "interview" / "practice_bank"
NOON = datetime(2027, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def goes(self, minutes: float) -> None:
        self.now += timedelta(minutes=minutes)


@pytest.fixture
def log(tmp_path):
    return ReviewLog(tmp_path / "kept" / "reviews.jsonl")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def practise(log, clock):
    """A quiz with widgets; the named questions are due first, in this order."""
    made = []

    def start(*due: str, **more):
        for index, name in enumerate(due):
            log.append(Review(name, NOON - timedelta(days=40, seconds=-index), "again", 0.5))
        names = {"due": "due_only", "n": "count"}
        given = dict(topic=None, minutes=None, lang="en", until=None, bank=BANK, log=log.path)
        standard = {} if more.get("minutes") else {"due_only": bool(due), "count": 5}
        choice = standard | {
            names.get(key, key): more.pop(key) for key in ("level", "due", "n") if key in more
        }
        given |= dict(report=None, live=True, clock=clock, rng=random.Random(0), choice=choice)
        made.append(Quiz(**{**given, **more}))
        return made[-1]

    yield start
    for quiz in made:
        if quiz._widgets is not None:
            quiz._widgets.close()


def text_of(widget) -> str:
    """What a reader sees of a widget and all that is in it."""
    if widget.layout is not None and widget.layout.display == "none":
        return ""
    said = [getattr(widget, "description", ""), getattr(widget, "placeholder", "")]
    if isinstance(widget, ipywidgets.HTML):
        said.append(re.sub(r"<style>.*?</style>", "", widget.value, flags=re.DOTALL))
    if isinstance(widget, ipywidgets.Output):
        said += [output["data"]["text/markdown"] for output in widget.outputs]
    if isinstance(widget, ipywidgets.ToggleButtons):
        said += [label for label, _ in widget.options]
    said += [text_of(child) for child in getattr(widget, "children", ())]
    return "\n".join(part.strip("\u200b") for part in said if part)


def seen(quiz) -> str:
    return text_of(quiz._widgets.box)


def type_number(quiz, index: int, text: str) -> str:
    """Type it and press Enter; what is said beside the field."""
    field = quiz._widgets._numbers[index]
    field.field.value = text
    return field.verdict.value


# One question.


def test_a_whole_question(practise, log, clock):
    quiz = practise("practice-001")
    card = quiz._widgets
    assert "Question 1 of 1  ·  pipeline, L4  ·  about 5 min  ·  practice-001" in seen(quiz)
    assert "<code>8</code> stages" in seen(quiz)
    assert "17.9" not in seen(quiz) and "(p-1)" not in seen(quiz)
    assert "bubble (of the total)" not in seen(quiz), "numbers come after the words"
    card.notes.value = "both ends"
    card.confidence.value = 3
    card.say.click()
    assert "bubble (of the total)" in seen(quiz) and card.confidence.disabled
    said = type_number(quiz, 0, "21.9 %")
    assert "✗" in said and "That is the share of the <em>ideal</em> time" in said
    assert "✓" in type_number(quiz, 1, "64 MiB")
    clock.goes(2)
    card.show.click()
    assert "You took 2:00 of 5:00." in seen(quiz) and "<strong>17.9 %</strong>" in seen(quiz)
    assert "[4 points]" in seen(quiz) and "(must)" in seen(quiz) and "[1 point]" in seen(quiz)
    assert "forgets the backward" in seen(quiz) and "pays with messages" in seen(quiz)
    assert "01_4d_basics.ipynb#cell-id=pp-bubble-compare" in seen(quiz)
    assert "https://arxiv.org/abs/1811.06965" in seen(quiz) and "missing-key" in seen(quiz)
    card.ticks[0].value = card.ticks[1].value = True
    assert "Proposed: hard (a number was wrong)" in seen(quiz)
    promised = re.search(r"3 good · (\S+)", seen(quiz))[1]
    card.grades["good"].click()
    assert f"Written: good, 70% of the points. Comes again on {promised}." in seen(quiz)
    review = log.reviews()[-1]
    assert (review.rating, review.ticks, review.flags) == ("good", (0, 1), ())
    assert (review.confidence, review.notes, review.seconds) == (3, "both ends", 120)
    assert review.numbers == ("21.9", "0.0625")
    assert (
        f"{logs.states(['practice-001'], log.reviews())['practice-001'].due:%Y-%m-%d}" == promised
    )
    assert card.go_on.description == "Finish"
    card.go_on.click()
    assert quiz.ended and quiz._widgets is None
    assert "Practice: 1 graded, 70% of the points on average" in repr(quiz)
    assert "3 fairly sure" in repr(quiz) and promised in repr(quiz)
    assert "five answers given with confidence 3 or 4" in repr(quiz)
    assert "<table>" in quiz.content()._repr_html_()


def test_a_number_is_judged_at_once_and_the_first_counts(practise):
    quiz = practise("practice-001")
    quiz._widgets.say.click()
    assert "many&#x27; is not a number" in type_number(quiz, 0, "many")
    assert "asked for is a pure number in %" in type_number(quiz, 0, "3 GB")
    assert quiz.session.verdicts == {}
    assert "first answer counts" not in type_number(quiz, 0, "21.9")
    again = type_number(quiz, 0, "17.9")
    assert "✓" in again and "For the grade, the first answer counts." in again
    assert type_number(quiz, 0, "") == "" and not quiz.session.verdicts[0].right


def test_after_the_answer_nothing_can_be_added(practise, log):
    quiz = practise("practice-001")
    card = quiz._widgets
    card.show.click()
    assert card.notes.disabled and card.confidence.disabled and card._numbers[0].field.disabled
    # The last keys of the notes were typed before, and overtaken by the click; all else is late.
    card.notes.value, card.confidence.value = "typed before", 4
    assert type_number(quiz, 0, "17.9") == ""
    card.grades["good"].click()
    review = log.reviews()[-1]
    assert (review.notes, review.confidence, review.numbers) == ("typed before", None, ())


def check_the_proposal(practise, **more):
    quiz = practise("practice-001", **more)
    card = quiz._widgets
    card.show.click()
    seen_now = []
    for box, value in (
        *((card.ticks[0], True), (card.ticks[1], True), (card.ticks[2], True)),
        *((card.ticks[3], True), (card.flags[1], True), (card.flags[1], False)),
        *((card.ticks[0], False),),
    ):
        box.value = value
        primary = [name for name, b in card.grades.items() if b.button_style == "primary"]
        seen_now.append((*primary, re.search(r"Proposed: (\w+)", seen(quiz))[1]))
    assert [p for p, _ in seen_now] == ["hard", "good", "easy", "easy", "hard", "easy", "again"]
    assert all(button == text for button, text in seen_now)
    assert "a must is missing: says that it is <code>(p-1)/(m+p-1)</code>" in seen(quiz)


def test_the_proposal_follows_the_boxes(practise):
    check_the_proposal(practise)


def test_a_proposal_that_is_made_once_is_noticed(practise, monkeypatch):
    class Once(quiz_widgets.QuizWidgets):
        def _propose(self):
            if not self.proposal.value:
                super()._propose()

    monkeypatch.setattr(quiz_widgets, "QuizWidgets", Once)
    with pytest.raises(AssertionError):
        check_the_proposal(practise)


def test_skip_and_stop_leave_no_trace(practise, log):
    quiz = practise(level=5, n=2)
    first = quiz.session.question.id
    quiz._widgets.notes.value = "of the first"
    quiz._widgets.skip.click()
    assert quiz.session.question.id != first and quiz._widgets.notes.value == ""
    quiz._widgets.show.click()
    quiz._widgets.stop.click()
    assert quiz.ended and "Stopped. The question that was open is not written" in repr(quiz)
    assert "Nothing was graded" in repr(quiz) and not log.path.exists()


def test_all_skipped(practise, log):
    quiz = practise(level=4)
    quiz._widgets.skip.click()
    assert quiz.ended and repr(quiz) == WORDS["en"]["none graded"] and not log.path.exists()


def test_deepen_is_offered_while_the_chain_goes_on(practise, log):
    quiz = practise("practice-001", n=1)
    card = quiz._widgets
    assert "Deepen" not in seen(quiz)
    card.show.click()
    card.grades["easy"].click()
    assert "Deepen" in seen(quiz)
    card.deepen.click()
    assert "practice-002" in seen(quiz) and "Question 2 of 2" in seen(quiz)
    card.show.click()
    card.grades["hard"].click()
    assert "Deepen" not in seen(quiz)
    card.go_on.click()
    assert [r.id for r in log.reviews()][1:] == ["practice-001", "practice-002"]
    assert "Get the bubble below ten per cent" in repr(quiz)


def test_a_diagnosis_has_its_steps(practise):
    quiz = practise("practice-003")
    quiz._widgets.show.click()
    assert "In this order" in seen(quiz) and "<li>one process: it has no reduction" in seen(quiz)


def test_a_coding_task_is_to_be_copied_into_a_cell(practise):
    quiz = practise("practice-005")
    assert "def my_gradients" in seen(quiz) and "<strong>Goal</strong>" in seen(quiz)
    call = "pico.exercise(&quot;interview.4d.accumulate&quot;).check(my_gradients)"
    assert call in seen(quiz) and "then come back" in seen(quiz)


# The timer.


def test_the_timer_warns_and_never_blocks(practise, clock, log):
    quiz = practise("practice-001")
    card = quiz._widgets
    clock.goes(2.5)
    card.tick()
    assert card.bar.value == 0.5 and card.bar.bar_style == "info" and "2:30 of 5:00" in seen(quiz)
    clock.goes(3)
    card.tick()
    assert card.bar.value == 1 and card.bar.bar_style == "warning"
    assert "5:30: more than the planned 5:00, and nothing is cut off" in seen(quiz)
    card.say.click()
    assert "✓" in type_number(quiz, 0, "17.9")
    card.show.click()
    card.grades["good"].click()
    assert log.reviews()[-1].seconds == 330


def ticking() -> int:
    return sum(thread.name == "picolab-quiz-timer" for thread in threading.enumerate())


def wait_until(holds) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_timer_ticks_by_itself_and_ends(practise, clock):
    before = ticking()
    quiz = practise("practice-001", "practice-003")
    card = quiz._widgets
    clock.goes(1)
    wait_until(lambda: card.bar.value == 0.2)  # a second passes between two looks at the most
    assert ticking() == before + 1
    clock.goes(9)
    wait_until(lambda: ticking() == before)  # over: nothing is left to be shown
    card.skip.click()
    assert ticking() == before + 1
    card.stop.click()
    wait_until(lambda: ticking() == before)


def test_widgets_do_not_pile_up(practise):
    quiz = practise("practice-003", "practice-001", "practice-002")
    card = quiz._widgets
    counts = []
    while not quiz.ended:
        card.show.click()
        card.grades["good"].click()
        counts.append(len(ipywidgets.widgets.widget._instances))
        card.go_on.click()
    assert len(counts) == 3 and counts[1] == counts[2]
    assert len(ipywidgets.widgets.widget._instances) < counts[0]


# What goes wrong.


def check_a_full_disk(practise, log, **more):
    quiz = practise("practice-001", **more)
    card = quiz._widgets
    card.notes.value = "kept"
    card.show.click()
    card.ticks[0].value = card.flags[0].value = True
    aside = log.path.with_suffix(".aside")
    log.path.rename(aside)
    log.path.mkdir()  # as good as a full disk, and a superuser meets it too
    card.grades["hard"].click()
    assert "Not written: " in seen(quiz) and "grade again" in seen(quiz)
    log.path.rmdir()
    aside.rename(log.path)
    card.grades["hard"].click()
    review = log.reviews()[-1]
    assert (review.notes, review.ticks, review.flags) == ("kept", (0,), (0,))
    assert len(log.reviews()) == 2 and "Written: hard" in seen(quiz)


def test_a_full_disk_loses_nothing(practise, log):
    check_a_full_disk(practise, log)


def test_a_card_that_clears_its_boxes_too_soon_is_noticed(practise, log, monkeypatch):
    class Clears(quiz_widgets.QuizWidgets):
        def _grade(self, rating):
            super()._grade(rating)
            for box in (*self.ticks, *self.flags):
                box.value = False

    monkeypatch.setattr(quiz_widgets, "QuizWidgets", Clears)
    with pytest.raises(AssertionError):
        check_a_full_disk(practise, log)


def test_another_window_holds_the_log(practise, log, monkeypatch):
    import filelock

    monkeypatch.setattr(logs, "LOCK_PATIENCE_S", 0.05)
    quiz = practise("practice-001")
    quiz._widgets.show.click()
    with filelock.FileLock(log.path.with_suffix(".lock")):
        quiz._widgets.grades["good"].click()
        assert "another practice window" in seen(quiz) and len(log.reviews()) == 1
    quiz._widgets.grades["good"].click()
    assert len(log.reviews()) == 2


def test_two_windows_at_once(practise, log):
    one, two = practise("practice-001"), practise(due=True)
    for quiz in (one, two):
        quiz._widgets.show.click()
    one._widgets.grades["good"].click()
    two._widgets.grades["hard"].click()
    assert [r.rating for r in log.reviews()] == ["again", "good", "hard"]


def test_an_unreadable_line_is_told(practise, log):
    log.path.parent.mkdir()
    log.path.write_text('{"v": 1, "id": "pra\n')
    quiz = practise(level=4)
    assert "1 line of " in seen(quiz) and "cannot be read" in seen(quiz)
    quiz._widgets.skip.click()


def test_our_own_mistakes_are_shown_too(practise):
    quiz = practise("practice-001")
    quiz._widgets._do(lambda: 1 / 0)
    assert "ZeroDivisionError" in seen(quiz)
    quiz._widgets._do(lambda: quiz.grade("good", (), ()))
    assert "not now: say your answer, or reveal it, first" in seen(quiz)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(topic="moe"), "there is no topic 'moe'; there is practice"),
        (dict(level=9), "no question has level 9"),
        (dict(lang="fr"), "there is no language 'fr'"),
        (dict(until="soon"), "'soon' is no date; write it as 2027-03-01"),
        (dict(until=date(2020, 1, 1)), "not in the future"),
        (dict(n=0), "at least one question"),
        (dict(bank="nowhere"), "there is no folder"),
        (dict(minutes=45, level=4), "leave out level, area"),
        (dict(minutes=5), "ten minutes at least"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("live", [True, False])
def test_what_cannot_be_met_is_a_sentence(given, said, live):
    with pytest.raises(ValueError, match=said):
        pico.quiz(**{"bank": BANK, "live": live, **given})


# Empty states.


def test_nothing_is_due(practise, log):
    quiz = practise(due=True)
    assert quiz.ended and "Without due=True, new ones come." in repr(quiz)
    log.append(Review("practice-001", NOON, "easy", 1.0))
    assert "the next comes on 2027-03-" in repr(practise(due=True))
    assert repr(practise(level=4)).startswith("All of these were seen")


def test_until_says_how_many_a_day(practise):
    quiz = practise(until="2027-03-02")
    assert "5 new ones a day are enough to have seen all before 2027-03-02" in seen(quiz)


# The interview.


def through(quiz, clock, minutes: float) -> list[str]:
    """Answer every question, each in so many minutes; the heads that were seen."""
    heads = []
    while not quiz.ended:
        card = quiz._widgets
        heads.append(re.sub("<.*?>", "", card.head.value))
        clock.goes(minutes)
        card.tick()
        card.show.click()
        card.ticks[0].value = True
        card.grades["good"].click()
        card.go_on.click()
    return heads


def test_an_interview_and_its_report(practise, log, clock):
    quiz = practise(minutes=45)
    heads = through(quiz, clock, 4)
    parts = [re.match(r"Part: (\S+)\. (\d+) minutes left", head).groups() for head in heads]
    assert parts == [("warm-up", "45"), ("number", "41"), ("code", "37"), ("diagnosis", "33")]
    assert "Question 4 of 4" in heads[3]
    assert quiz.report_path == log.path.parent / f"interview_{NOON:%Y-%m-%d_%H%M%S}.md"
    report = quiz.report_path.read_text(encoding="utf-8")
    assert "4 of 4 questions, 16 minutes" in report and report in repr(quiz)
    shown = quiz.content()._repr_html_()
    assert str(quiz.report_path) in shown and "<h1>Mock interview" in shown


def test_an_interview_ends_when_its_time_is_over(practise, log, clock, tmp_path):
    quiz = practise(minutes=10, report=tmp_path / "mine.md")
    card = quiz._widgets
    clock.goes(11)
    card.tick()
    assert "The 10 minutes are over." in seen(quiz) and not quiz.ended
    assert len(through(quiz, clock, 1)) == 1  # the open one is not cut off
    assert "The 10 minutes are over." in repr(quiz) and "not asked" in repr(quiz)
    assert (tmp_path / "mine.md").exists()


def test_a_report_that_cannot_be_written_is_in_the_notebook(practise, log, clock):
    quiz = practise(minutes=45, report=log.path / "no-folder" / "report.md")
    through(quiz, clock, 1)
    assert "The report could not be written" in repr(quiz) and "# Mock interview" in repr(quiz)
    assert quiz.report_path is None and len(log.reviews()) == 4


# Headless.


def check_headless(tmp_path, monkeypatch, quiz):
    """The same card for everybody, whatever they have graded; and no trace."""
    cards = []
    for owner in ("new", "old"):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / owner))
        if owner == "old":
            held = ReviewLog()
            for name in ("practice-001", "practice-002", "practice-003", "practice-004"):
                held.append(Review(name, datetime.now(UTC), "easy", 1.0))
        before = sorted(tmp_path.rglob("*"))
        cards.append(repr(quiz(bank=BANK)))
        assert sorted(tmp_path.rglob("*")) == before
    assert cards[0] == cards[1]


def test_headless_everybody_sees_the_same_and_nothing_is_written(tmp_path, monkeypatch):
    check_headless(tmp_path, monkeypatch, pico.quiz)


def test_a_headless_card_that_reads_the_readers_log_is_noticed(tmp_path, monkeypatch):
    def reads(**given):
        return pico.quiz(log=logs.default_path(), **given)

    with pytest.raises(AssertionError):
        check_headless(tmp_path, monkeypatch, reads)


def test_the_headless_card_asks_and_does_not_tell():
    card = pico.quiz(bank=BANK, level=4)
    text, page = repr(card), card.content()._repr_html_()
    for part in ("The bubble of eight stages", "one activation", "[in GiB]", "picolab quiz"):
        assert part in text and part in page
    assert "* Backward takes **twice**" in text and "<strong>twice</strong>" in page
    for answer in ("17.9", "(p-1)", "forgets"):
        assert answer not in text and answer not in page


def test_a_given_log_is_read_headless(log):
    log.append(Review("practice-003", NOON - timedelta(days=900), "again", 0.0))
    assert "practice-003" in repr(pico.quiz(bank=BANK, log=log.path))
    assert "practice-003" in repr(pico.quiz(bank=BANK, log=log.path, due=True))


def test_a_headless_interview():
    assert repr(pico.quiz(bank=BANK, minutes=45)).startswith("Part: warm-up. 45 minutes left  ·")


def test_a_script_prints_the_card_and_loads_no_widget(tmp_path):
    code = (
        "import sys, picolab as pico\n"
        f"print(pico.quiz(bank={str(BANK)!r}, level=4))\n"
        "assert not {'ipywidgets', 'anywidget', 'plotly', 'torch', 'IPython'} & set(sys.modules)"
    )
    home = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=home)
    assert done.returncode == 0, done.stderr
    assert "The bubble of eight stages" in done.stdout and list(tmp_path.iterdir()) == []


def test_papermill_gets_text_and_html_and_no_widget(tmp_path, monkeypatch):
    import nbformat

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = dict(name="python3", display_name="", language="python")
    source = f"import picolab as pico\npico.quiz(bank={str(BANK)!r}, level=4)"
    notebook.cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), progress_bar=False
    )
    (output,) = done.cells[0].outputs  # shown once, though it ends the cell
    assert set(output["data"]) == {"text/plain", "text/html"}
    assert "widget" not in json.dumps(done.metadata) and not (tmp_path / "data").exists()


# The page.


def pages(practise, clock) -> str:
    """All that a reader meets, in one string."""
    found = []
    for name in ("practice-001", "practice-003", "practice-005"):
        quiz = practise(name)
        card = quiz._widgets
        if name == "practice-001":
            type_number(quiz, 0, "21.9")
            type_number(quiz, 1, "many")
        clock.goes(99)
        card.tick()
        card.show.click()
        found.append(text_of(card.box))
        found.append(card.box.children[0].value)
        card.grades["good"].click()
        card.stop.click()
        found.append(quiz.content()._repr_html_())
    found.append(pico.quiz(bank=BANK, level=4).content()._repr_html_())
    return "\n".join(found)


def check_no_fixed_colour(page: str):
    bare = re.sub(r"&#\w+;|cell-id|href=\"[^\"]*\"", "", page)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", bare) == []
    for value in re.findall(r"(?:color|background|outline|border[\w-]*):\s*([^;}\"]+)", bare):
        words = set(re.sub(r"var\(--jp[\w-]+,?|[()]", " ", value).split())
        allowed = {"inherit", "none", "transparent", "currentColor", "Highlight", "LinkText"}
        assert words <= allowed | {"solid", "2px", "3px", "collapse", "!important"}, value


def test_colours_are_the_theme_s(practise, clock):
    check_no_fixed_colour(pages(practise, clock))


@pytest.mark.parametrize("wrong", ["color: red", "background:#fff", "border-left: 3px solid black"])
def test_a_fixed_colour_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check_no_fixed_colour(f'<p style="{wrong}">x</p>')


def check_html_is_shown(markdown):
    assert "<script" not in markdown("a <script>alert(1)</script> *b*")
    assert "<img" not in markdown('<img src=x onerror="alert(1)">')
    assert re.findall('href="(.*?)"', markdown("[a](javascript:alert(1)) [b](c)")) == ["c"]
    assert "<em>b</em>" in markdown("a *b*") and "<code>x</code>" in markdown("`x`")
    assert "<li>one</li>" in markdown("* one\n* two") and "<td>" in markdown("|a|\n|-|\n|b|")


def test_html_in_a_question_is_shown_not_obeyed(practise):
    check_html_is_shown(quiz_text.markdown_html)
    assert "&lt;b&gt;interleaved&lt;/b&gt;" in seen(practise("practice-001"))


def test_html_that_is_obeyed_is_noticed():
    from markdown_it import MarkdownIt

    with pytest.raises(AssertionError):
        check_html_is_shown(MarkdownIt("commonmark", {"html": True}).enable("table").render)


def test_a_whole_question_in_chinese(practise, log):
    quiz = practise("practice-001", lang="zh")
    card = quiz._widgets
    assert "第 1 题，共 1 题" in seen(quiz) and "八个阶段的气泡" in seen(quiz)
    card.say.click()
    assert "不是 21.9 %。那是占<em>理想</em>时间的比例" in type_number(quiz, 0, "21.9")
    assert "不是一个数" in type_number(quiz, 1, "许多")
    card.show.click()
    card.ticks[0].value = True
    assert "建议评分：困难（得分 40%）" in seen(quiz) and "3 良好 · 2027-" in seen(quiz)
    english = {"Show answer", "Skip", "Stop", "Answer", "Red flags", "Proposed", "points", "must"}
    assert not [word for word in english if word in seen(quiz)]
    card.grades["good"].click()
    assert "已记录：良好，得分 40%。下次复习：2027-" in seen(quiz) and "深入追问" in seen(quiz)
    card.stop.click()
    assert "练习：已评分 1 题" in repr(quiz) and "把握与结果" in repr(quiz)
    assert log.reviews()[-1].rating == "good"


def test_the_headless_card_in_chinese():
    assert "练习方式" in repr(pico.quiz(bank=BANK, level=4, lang="zh"))
    assert repr(pico.quiz(bank=BANK, minutes=45, lang="zh")).startswith("环节：热身。还剩 45 分钟")


# Names.


def test_the_public_name_is_the_function():
    """No module of the room is called like it: importing one would put it in its place."""
    code = (
        "import picolab as pico, picolab.lab, picolab.lab.quiz_card, picolab.lab.quiz_widgets\n"
        "assert pico.quiz is picolab.lab.quiz is picolab.lab.quiz_card.quiz\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('picolab.lab.quiz') is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert quiz_card.quiz is pico.quiz
