"""The widgets of a quiz card, and nothing but widgets: what they mean is in `quiz_card`.

Made once and used for every question, so that a practice of fifty leaves no more behind than one of
two, and so that the keyboard's place can be set: a widget that is only just made cannot take the
focus. What is not needed is hidden. After each button the focus goes where the next key is wanted:
a field, the first box, the button that goes on; a focus that is left on a hidden button falls to
the notebook, whose own keys cut and delete cells.

The timer is a thread that moves a bar a hundred times a question at most and then ends; it warns,
and never cuts anything off.
"""

import html
import threading
import traceback

from picolab.interview.answers import RATINGS
from picolab.interview.terminal import clock_text
from picolab.interview.words import spoken
from picolab.lab.quiz_text import (
    STYLE,
    alert_html,
    answer_html,
    followups_html,
    head_html,
    note_html,
    point_html,
    prompt_html,
    question_html,
    reading_markdown,
    verdict_html,
)
from picolab.show.markdown import markdown_html

# Keys pressed in a card are the card's: on a button, JupyterLab takes D, D for "delete this cell".
# What is pressed with Ctrl, Alt or Cmd goes on to it: Ctrl S still saves.
_KEYS_JS = """
function render({ el }) {
  const keep = (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  };
  let card, looks = 0;
  const find = () => {
    card = el.closest(".picolab-quiz");
    if (card) card.addEventListener("keydown", keep);
    else if (looks++ < 50) setTimeout(find, 100);
  };
  el.style.display = "none";
  find();
  return () => card && card.removeEventListener("keydown", keep);
}
export default { render };
"""


class QuizWidgets:
    def __init__(self, quiz):
        import ipywidgets as widgets

        self._quiz, self._session, words = quiz, quiz.session, quiz.words
        self._numbers: list[_NumberField] = []
        self._asking = False  # while a question is being laid out, changes are ours
        self._timer = _Timer(self.tick)
        self.message = widgets.HTML()
        self.head, self.question = widgets.HTML(), widgets.HTML()
        self.bar = widgets.FloatProgress(min=0, max=1, layout={"width": "40%"})
        self.clock = widgets.HTML()
        self.fields = widgets.VBox()
        self.keywords = widgets.HTML(html.escape(words["keywords"]))
        self.notes = widgets.Textarea(rows=3, layout={"width": "calc(100% - 8px)"})
        self.how_sure = widgets.HTML(html.escape(words["how sure"]))
        self.confidence = widgets.ToggleButtons(
            options=[(words[f"sure {i}"], i) for i in (1, 2, 3, 4)], value=None
        )
        self.say = widgets.Button(description=words["say it"], button_style="primary")
        self.show = widgets.Button(description=words["show answer"], button_style="primary")
        self.hint = widgets.Button(description=words["hint"])
        self.back = widgets.Button(description=words["back"])
        self.taken = widgets.HTML()
        self.look_buttons = [
            widgets.Button(layout={"width": "100%", "justify_content": "flex-start"})
            for _ in range(8)
        ]
        heading = widgets.HTML(f"<h5>{html.escape(words['take'])}</h5>")
        self.looks = widgets.VBox([heading, *self.look_buttons])
        self.skip = widgets.Button(description=words["skip it"])
        self.stop = widgets.Button(description=words["stop"])
        self.answer, self.followups = widgets.HTML(), widgets.HTML()
        self.reading = widgets.Output()
        self.ticks = [_box(widgets) for _ in range(7)]
        self.flags = [_box(widgets) for _ in range(4)]
        self.flag_list = widgets.VBox(self.flags)
        self.proposal = widgets.HTML()
        self.grades = {rating: widgets.Button() for rating in RATINGS}
        self.go_on = widgets.Button(button_style="primary")
        self.deepen = widgets.Button(description=words["deepen"])

        def heading(text):
            return widgets.HTML(f"<h5>{html.escape(text)}</h5>")

        self.thinking = widgets.VBox(
            [
                self.looks,
                self.taken,
                self.keywords,
                self.notes,
                widgets.HBox([self.how_sure, self.confidence], layout=_WRAP),
                self.fields,
            ]
        )
        self.revealed = widgets.VBox(
            [
                self.answer,
                heading(words["tick"]),
                widgets.VBox(self.ticks),
                heading(words["tick flags"]),
                self.flag_list,
                self.proposal,
                widgets.HBox(list(self.grades.values()), layout=_WRAP),
                heading(words["read"]),
                self.reading,
                self.followups,
            ]
        )
        self.buttons = widgets.HBox(
            [
                *(self.say, self.show, self.go_on, self.deepen),
                *(self.hint, self.back, self.skip, self.stop),
            ],
            layout=_WRAP,
        )
        self.box = widgets.VBox(
            [
                widgets.HTML(STYLE),
                self.head,
                widgets.HBox([self.bar, self.clock], layout={"align_items": "center"}),
                self.question,
                self.thinking,
                self.revealed,
                self.message,
                self.buttons,
                *_keys(),
            ]
        )
        self.box.add_class("picolab-quiz")
        self._connect()

    def _connect(self) -> None:
        self.notes.observe(self._noted, "value")
        self.confidence.observe(self._said_how_sure, "value")
        self.say.on_click(lambda _: self._do(self._said))
        self.show.on_click(lambda _: self._do(self._reveal))
        for number, button in enumerate(self.look_buttons):
            button.on_click(lambda _, number=number: self._do(lambda: self._look(number)))
        self.hint.on_click(lambda _: self._do(self._hint))
        self.back.on_click(lambda _: self._do(self._back))
        self.skip.on_click(lambda _: self._do(lambda: self._next(self._quiz.skip)))
        self.stop.on_click(lambda _: self._do(self._quiz.stop))
        self.go_on.on_click(lambda _: self._do(lambda: self._next(self._quiz.go_on)))
        self.deepen.on_click(lambda _: self._do(lambda: self._next(self._quiz.deepen)))
        for rating, button in self.grades.items():
            button.on_click(lambda _, rating=rating: self._do(lambda: self._grade(rating)))
        for box in (*self.ticks, *self.flags):
            box.observe(lambda _: self._do(self._propose), "value")

    # -- the phases --

    def ask(self) -> None:
        """Lay out the question that was drawn."""
        import ipywidgets as widgets

        session, question, words = self._session, self._session.question, self._quiz.words
        self._asking = True
        try:
            self.head.value = head_html(session, self._quiz.part())
            self.question.value = question_html(session)
            while len(self._numbers) < len(question.numeric):
                self._numbers.append(_NumberField(widgets, len(self._numbers), self._judge))
            self.fields.children = [field.box for field in self._numbers]
            for index, field in enumerate(self._numbers):
                asked = index < len(question.numeric)
                field.ask(question.numeric[index] if asked else None, words)
            self.notes.value, self.notes.disabled = "", False
            self.confidence.value, self.confidence.disabled = None, False
            while len(self.flags) < len(question.red_flags):
                self.flags.append(_box(widgets))
                self.flags[-1].observe(lambda _: self._do(self._propose), "value")
            self.flag_list.children = self.flags
            for box in (*self.ticks, *self.flags):
                box.value, box.description = False, ""
            self.answer.value = self.followups.value = self.proposal.value = self.taken.value = ""
            for number, button in enumerate(self.look_buttons):
                offered = question.mixed()[number : number + 1]
                button.layout.display = None if offered else "none"
                button.description = question.steps[offered[0]].look if offered else ""
            self._show(thinking=True)
            self.message.value = note_html(self._quiz.note)
            self._quiz.note = ""
        finally:
            self._asking = False
        self.tick()
        # A hundred steps, and none shorter than a second.
        self._timer.start(max(1.0, question.minutes * 60 / 100))

    def _focus_question(self) -> None:
        self.notes.focus()

    def _look(self, number: int) -> None:
        """Take the look of this button, and show all that were taken with what they find."""
        self._session.look(self._session.question.mixed()[number])
        steps = self._session.question.steps
        taken = (f"* {steps[i].look}: {steps[i].because}" for i in self._session.looks)
        self.taken.value = markdown_html("\n".join(taken))

    def _hint(self) -> None:
        question, words = self._session.question, self._quiz.words
        hint = self._session.hint()
        if hint is None and not question.hints:
            musts = sum(point.must for point in question.rubric)
            n, cell = len(question.rubric), question.cells[0]
            hint = words["shape"].format(n=n, musts=musts, cell=cell)
        self.message.value = note_html(hint or words["no hint"])

    def _said(self) -> None:
        """The answer is given in words: now the numbers, which say more than the question."""
        self._session.said()
        self.confidence.disabled = True
        self._show(numbers=True)
        self._numbers[0].field.focus()

    def _back(self) -> None:
        """The last grade is withdrawn, and its answer is open again."""
        self._quiz.back()
        self._lay_out_answer()
        self.question.value = question_html(self._session)
        self.head.value = head_html(self._session, self._quiz.part())
        self.notes.value = self._session.notes

    def _judge(self, index: int, text: str) -> None:
        """A number was typed: right, or why not. What is no number is asked again."""
        field, session = self._numbers[index], self._session
        if self._asking or session.phase != "numbers":
            return
        if not text.strip():
            field.verdict.value = ""
            return
        first = index not in session.verdicts
        try:
            verdict = session.answer_number(index, text)
            field.verdict.value = verdict_html(verdict, first, session.language)
        except ValueError as error:
            field.verdict.value = alert_html(spoken(str(error), session.language))

    def _noted(self, change) -> None:
        # After the answer is shown nobody can type here any more, but the last keys may still be on
        # their way: a front end holds text back while the kernel is busy, and a click overtakes it.
        if not self._asking and self._session.phase in ("thinking", "numbers", "revealed"):
            self._session.notes = change.new

    def _said_how_sure(self, change) -> None:
        if not self._asking and self._session.phase == "thinking" and change.new:
            self._session.set_confidence(change.new)

    def _reveal(self) -> None:
        self._quiz.reveal()
        self._lay_out_answer()

    def _lay_out_answer(self) -> None:
        session, question = self._session, self._session.question
        self._timer.stop()
        self.tick()
        for field in self._numbers:
            field.field.disabled = True
        self.notes.disabled = self.confidence.disabled = True
        self.answer.value = answer_html(session)
        self.followups.value = followups_html(question, session.language)
        links = reading_markdown(question, self._quiz.source)
        data = {"text/markdown": links, "text/plain": links}
        self.reading.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)
        for index, box in enumerate(self.ticks):
            used = index < len(question.rubric)
            box.layout.display = None if used else "none"
            box.description = point_html(question, index, session.language) if used else ""
        for index, box in enumerate(self.flags):
            used = index < len(question.red_flags)
            box.layout.display = None if used else "none"
            box.description = markdown_html(question.red_flags[index], inline=True) if used else ""
        for index, (rating, button) in enumerate(self.grades.items(), 1):
            day = session.would_come(rating)
            button.description = f"{index} {self._quiz.words[rating]} · {day}"
        self._propose()
        self._say("")
        self._show(revealed=True)
        self.ticks[0].focus()

    def ticked(self) -> tuple[list[int], list[int]]:
        """The indices of what is ticked: of the rubric, of the red flags."""
        return (
            [i for i, box in enumerate(self.ticks) if box.value],
            [i for i, box in enumerate(self.flags) if box.value],
        )

    def _propose(self) -> None:
        if self._asking or self._session.phase != "revealed":
            return
        proposal, words = self._session.propose(*self.ticked()), self._quiz.words
        why = spoken(proposal.why, self._session.language)
        said = words["proposed"].format(grade=words[proposal.rating], why=why)
        self.proposal.value = f"<p>{markdown_html(said, inline=True)}</p>"
        for rating, button in self.grades.items():
            button.button_style = "primary" if rating == proposal.rating else ""

    def _grade(self, rating: str) -> None:
        try:
            said = self._quiz.grade(rating, *self.ticked())
        except OSError as error:
            said = spoken(str(error), self._session.language)
            self._say(self._quiz.words["not written"].format(error=said))
            return
        deeper = self._session.deeper() is not None
        more = self._session.left() > 0
        self.go_on.description = self._quiz.words["go on" if more else "finish"]
        self.message.value = note_html(said)
        self._show(graded=True, deeper=deeper)
        self.go_on.focus()

    def _next(self, step) -> None:
        self._timer.stop()
        if step():
            self.ask()
            self._focus_question()

    # -- small things --

    def tick(self) -> None:
        """Show how long it has taken; from the timer's thread, too."""
        session, words = self._session, self._quiz.words
        question = session.question
        if question is None or self._quiz.ended:
            return
        planned, spent = question.minutes * 60, session.seconds()
        took, whole = clock_text(spent), clock_text(planned)
        over = spent > planned
        self.bar.value = min(1.0, spent / planned)
        self.bar.bar_style = "warning" if over else "info"
        said = words["over" if over else "clock"].format(took=took, planned=whole)
        if self._quiz.minutes_left() <= 0:
            said += "  " + words["time"].format(minutes=self._quiz.minutes)
        self.clock.value = f'<span class="picolab-quiz-soft">{html.escape(said)}</span>'
        if over:
            self._timer.stop()

    def close(self) -> None:
        self._timer.stop()
        for widget in (self.box, *_all_below(self.box)):
            widget.close()

    def _show(
        self, thinking=False, numbers=False, revealed=False, graded=False, deeper=False
    ) -> None:
        asked = bool(self._session.question and self._session.question.numeric)
        for widget, shown in (
            (self.thinking, thinking or numbers or revealed),
            (self.fields, numbers or revealed),
            (self.looks, thinking and bool(self._session.question.steps)),
            (self.revealed, revealed),
            (self.say, thinking and asked),
            (self.show, numbers or (thinking and not asked)),
            (self.hint, thinking or numbers),
            (self.back, graded or (thinking and self._session.can_go_back())),
            (self.go_on, graded),
            (self.deepen, graded and deeper),
            (self.skip, not graded),
        ):
            widget.layout.display = None if shown else "none"

    def _say(self, text: str) -> None:
        self.message.value = alert_html(text)

    def _do(self, what) -> None:
        """What a button does; an error is a sentence in the card, and the card goes on."""
        try:
            what()
        except (ValueError, RuntimeError, OSError) as error:
            self._say(spoken(str(error), self._session.language))
        except Exception:  # ours: a callback's traceback would be lost in the server's log
            self._say(traceback.format_exc())


_WRAP = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 6px"}


class _NumberField:
    """One number: what is asked, a field that is judged on Enter or when it is left, its unit."""

    def __init__(self, widgets, index: int, judge):
        self.prompt, self.verdict = widgets.HTML(), widgets.HTML()
        self.field = widgets.Text(continuous_update=False, layout={"width": "18em"})
        self.unit = widgets.HTML()
        self.box = widgets.VBox(
            [self.prompt, widgets.HBox([self.field, self.unit], layout=_WRAP), self.verdict]
        )
        self.field.observe(lambda change: judge(index, change.new), "value")

    def ask(self, numeric, words) -> None:
        """Show it for this number; None hides it."""
        self.box.layout.display = "none" if numeric is None else None
        self.field.value, self.verdict.value, self.field.disabled = "", "", False
        if numeric is None:
            return
        self.prompt.value = prompt_html(numeric)
        self.unit.value = html.escape(numeric.unit)
        example = f"12.5 {numeric.unit}".strip()
        self.field.placeholder = words["for instance"].format(example=example)


class _Timer:
    """Calls `tick` every so many seconds until it is stopped or started anew."""

    def __init__(self, tick):
        self._tick, self._stopped = tick, threading.Event()

    def start(self, every_s: float) -> None:
        self.stop()
        self._stopped = stopped = threading.Event()

        def run() -> None:
            while not stopped.wait(every_s):
                self._tick()

        threading.Thread(target=run, name="picolab-quiz-timer", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()


def _box(widgets):
    return widgets.Checkbox(
        value=False, indent=False, description_allow_html=True, layout={"width": "100%"}
    )


def _keys() -> list:
    """The widget that keeps the notebook's one-letter commands out of the card."""
    import anywidget

    return [anywidget.AnyWidget(_esm=_KEYS_JS)]


def _all_below(box) -> list:
    found = []
    for child in getattr(box, "children", ()):
        found += [child, *_all_below(child)]
    return found
