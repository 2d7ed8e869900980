"""Guess first, then look: `pico.guess`, `pico.compare`, `pico.scoreboard`.

    pico.guess("4d.dp.payload", "How many bytes do all gradient all-reduces of a step carry?",
    unit="bytes") ... pico.compare("4d.dp.payload", formula=expected,
    measured=total.payload_bytes)

A number one has guessed is remembered, a number one was told is not. So `compare` keeps its numbers
covered until there is a guess, or the guess was skipped, and with them what would give them away
(`compared.also(figure)`). It does not keep quiet about a mistake, though: if formula and
measurement disagree beyond the stated tolerance it raises, guessed or not.

Three words, everywhere: the *guess* is the reader's, the *formula* is from `picolab.costs`, the
*measured* value is from a run. A guess is held against the formula where there is one, else against
what was measured: whoever derives the number is right, whatever the noise of this machine. That
noise, measured against formula, stands in a row of its own. A `default` lets a notebook run from
top to bottom without anybody to ask; it counts as a guess, and every table says that it was the
default. (It stands in the cell that asks, for the reader to see: so let it be a first thought and
not the answer.)

In a front end, answers are also kept in a small file beside the run directories, so that the
scoreboard covers all chapters. Headless, that file is neither read nor written.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from picolab.launch import rundirs
from picolab.show.files import write_beside
from picolab.show.front_end import Message, Shown, has_front_end
from picolab.show.guess_figure import Answered, apart, guess_figure, value_text
from picolab.show.picture import LabFigure
from picolab.show.table import Table

Value = float | int | str | bool

_guesses: dict[str, "Guess"] = {}
_comparisons: dict[str, "Comparison"] = {}
_waiting: dict[str, list[Callable[[], None]]] = {}  # id -> what to call once there is an answer


class Disagreement(AssertionError):
    """The formula and the measurement differ by more than the tolerance that was stated."""


def guess(
    id: str,
    question: str,
    unit: str = "",
    default: Value | None = None,
    choices: Sequence[str] | None = None,
) -> "Guess":
    """Ask for a guess. Shows a small form in a front end and returns at once.

    id         chapter.topic.name; `compare` with the same id uncovers what was measured
    unit       of the number: "bytes", "ms", "%"
    default    what counts as the guess as long as nobody answers
    choices    the answers to choose from; without them the answer is a number

    A cell that is run again keeps the reader's answer. Raises ValueError for a default that is no
    answer.
    """
    asked = Guess(id, question, unit, default, choices)
    before = _guesses.get(id)
    if before is not None and before.how in ("reader", "skipped") and before.same_question(asked):
        asked.value, asked.how = before.value, before.how
    elif has_front_end():
        asked.recall(_stored().get(id, {}))
    _guesses[id] = asked
    if id in _comparisons:
        _comparisons[id].uncover()  # or cover it with this question
    _tell(id)
    asked.show()
    return asked


def compare(
    id: str,
    *,
    formula: Value | None = None,
    measured: Value,
    tolerance: float = 0.0,
    unit: str | None = None,
    note: str = "",
) -> "Comparison":
    """Guess, formula and measured side by side, once there is a guess or a skip.

    tolerance   the largest |measured - formula| / |formula| that counts as agreement; 0 means equal
    unit        if it differs from the guess's
    note        a sentence under the table

    Raises Disagreement (an AssertionError) if formula and measured disagree beyond the tolerance,
    whether or not there is a guess. Without a formula, only the guess is compared. What else gives
    the numbers away goes into `.also(...)` of what is returned.
    """
    compared = Comparison(id, _plain(formula), _plain(measured), tolerance, unit, note)
    compared.check()
    _comparisons[id] = compared
    compared.keep()
    compared.show()
    return compared


def given(id: str) -> bool:
    """Whether this question has an answer, or was skipped."""
    return id in _guesses and _guesses[id].given


def once_given(id: str, call: Callable[[], None]) -> None:
    """Call this once there is an answer to the question, or a skip."""
    _waiting.setdefault(id, []).append(call)
    _tell(id)


def _tell(id: str) -> None:
    while given(id) and _waiting.get(id):
        _waiting[id].pop(0)()


def scoreboard() -> LabFigure:
    """All guesses so far against what is right: a row a question, on one axis of ratios.

    `.save("guesses.html")` writes a page that works offline, `.save("guesses.png")` an image (with
    a Chromium or Chrome; RuntimeError without). Questions whose guess or measurement is still open
    are left out. In a front end, the answers of earlier chapters are in it too.
    """
    rows = {}
    if has_front_end():
        rows = {id: row for id, kept in _stored().items() if (row := _answered(id, kept))}
    for id, compared in _comparisons.items():
        if compared.uncovered:
            rows[id] = compared.row()
    return guess_figure(rows.values())


class Guess(Shown):
    """A question and its answer: `.value`; `.how` is "reader", "default", "skipped" or ""."""

    _says_itself = True

    def __init__(self, id, question, unit="", default=None, choices=None):
        if not isinstance(id, str) or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", id):
            raise ValueError(
                f"{id!r} is not an id: write chapter.topic.name, as in '4d.dp.payload'"
            )
        if choices is not None and len(set(choices)) < 2:
            raise ValueError(f"guess {id}: choices need at least two different answers")
        self.id, self.question, self.unit = id, question, unit
        self.choices = [str(choice) for choice in choices] if choices is not None else None
        self.value: Value | None = None
        self.how = ""
        self.forms: list[Callable[[], None]] = []  # told of each answer
        if default is not None:
            self.value, self.how = self._accepted(_plain(default), "the default"), "default"

    @property
    def given(self) -> bool:
        """True once there is an answer, or the question was skipped: then numbers are uncovered."""
        return self.how != ""

    def answer(self, value) -> None:
        """Answer in code instead of in the form: `g.answer(3.3e6)`."""
        self._settle(self._accepted(_plain(value), "the answer"), "reader")

    def skip(self) -> None:
        """See the numbers without guessing."""
        self._settle(None, "skipped")

    def same_question(self, other: "Guess") -> bool:
        return (self.question, self.choices) == (other.question, other.choices)

    def recall(self, kept: dict) -> None:
        """Take up the reader's answer of an earlier session, if it is one to this question."""
        if kept.get("how") != "reader" or kept.get("question") != self.question:
            return
        try:
            self.value = self._accepted(kept.get("guess"), "the stored answer")
        except ValueError:
            return  # the choices have changed since
        self.how = "reader"

    def _accepted(self, value, what: str) -> Value:
        if self.choices is not None:
            if value not in self.choices:
                raise ValueError(
                    f"guess {self.id}: {what} {value!r} is not one of {', '.join(self.choices)}"
                )
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"guess {self.id}: {what} must be a number, not {value!r}")
        return value

    def _settle(self, value: Value | None, how: str) -> None:
        self.value, self.how = value, how
        _keep(self.id, question=self.question, unit=self.unit, guess=value, how=how)
        for tell in self.forms:
            tell()
        if self.id in _comparisons:
            _comparisons[self.id].uncover()
        _tell(self.id)

    def status(self) -> str:
        """One sentence: what stands as the guess."""
        answer = value_text(self.value, self.unit)
        return {
            "": "no guess yet",
            "reader": f"your guess: {answer}",
            "default": f"guess: {answer} (the default)",
            "skipped": "skipped",
        }[self.how]

    def content(self):
        if has_front_end():
            from picolab.lab.guess_form import form

            return form(self)
        return Message(repr(self))

    def __repr__(self) -> str:
        choices = f"\n  choices: {', '.join(self.choices)}" if self.choices else ""
        return f"{self.question}{choices}\n  {self.status()}"


class Comparison(Shown):
    """Guess, formula and measured of one question; covered until there is a guess or a skip."""

    _says_itself = True

    def __init__(self, id, formula, measured, tolerance=0.0, unit=None, note=""):
        if measured is None:
            raise ValueError(f"compare {id}: give the measured value")
        if isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
            raise ValueError(
                f"compare {id}: tolerance is relative and not negative (0.01 is one per cent), "
                f"not {tolerance!r}"
            )
        self.id, self.formula, self.measured = id, formula, measured
        self.tolerance, self.note, self._unit = tolerance, note, unit
        self._beside: list[_Beside] = []

    @property
    def guess(self) -> Guess | None:
        return _guesses.get(self.id)

    @property
    def unit(self) -> str:
        if self._unit is not None:
            return self._unit
        return self.guess.unit if self.guess is not None else ""

    @property
    def uncovered(self) -> bool:
        return self.guess is not None and self.guess.given

    def check(self) -> None:
        """Raise Disagreement if formula and measured are farther apart than the tolerance."""
        if self.formula is None or _agree(self.formula, self.measured, self.tolerance):
            return
        raise Disagreement(
            f"{self.id}: the formula says {value_text(self.formula, self.unit)}, but "
            f"{value_text(self.measured, self.unit)} was measured "
            f"({apart(self.measured, self.formula, 'as')}; tolerance {_percent(self.tolerance)}). "
            "One of the two is wrong."
        )

    def uncover(self) -> None:
        """Called when the guess is given: show the numbers in place of the cover."""
        self.keep()
        self.replace()
        for beside in self._beside:
            beside.replace()

    def also(self, shown, *others: "Comparison") -> "_Beside":
        """Show a table or a figure that gives the numbers away: covered as long as they are, or as
        those of the others.

        It appears under the cell that calls this, which may be a later one than `compare`'s.
        """
        beside = _Beside((self, *others), shown)
        for one in beside.compared:
            one._beside.append(beside)
        beside.show()
        return beside

    def keep(self) -> None:
        if self.uncovered:
            _keep(self.id, unit=self.unit, formula=self.formula, measured=self.measured)

    def row(self) -> Answered:
        note = self.guess.how if self.guess.how in ("default", "skipped") else ""
        value = self.guess.value
        return Answered(
            self.id, value, self.measured, self.formula, self.unit, note, self.guess.question
        )

    def table(self) -> Table:
        """The three numbers; ValueError while they are covered."""
        if not self.uncovered:
            raise ValueError(self._cover())
        how = {"default": " (default)", "skipped": " (skipped)"}.get(self.guess.how, "")
        value, right = self.guess.value, self.row().right
        guessed = ["", ""]
        if value is not None:
            guessed = [value_text(value, self.unit), apart(value, right)]
        rows, noise = [[f"guess{how}", *guessed]], ""
        if self.formula is not None:
            rows.append(["formula", value_text(self.formula, self.unit), ""])
            allowed = f" (noise; tolerance {_percent(self.tolerance)})" if self.tolerance else ""
            noise = apart(self.measured, self.formula, "as") + allowed
        rows.append(["measured", value_text(self.measured, self.unit), noise])
        against = "against measured" if self.formula is None else "against the formula"
        return Table(["", "value", against], rows, self._title())

    def _title(self) -> str:
        question = f"{self.guess.question}\n" if self.guess.question else ""
        if self.formula is None:
            return question.rstrip()
        if self.formula == self.measured:
            return f"{question}Formula and measured are equal."
        return f"{question}Formula and measured agree within {_percent(self.tolerance)}."

    def _cover(self) -> str:
        if self.guess is None:
            return f"{self.id}: covered. Run the cell that asks for the guess first."
        return f"{self.id}: covered until you guess, or skip: {self.guess.question}"

    def content(self):
        if not self.uncovered and self.guess is not None and has_front_end():
            from picolab.lab.guess_form import form

            return form(self.guess, f"{self.id}: covered until you guess, or skip")
        return self._text()

    def _text(self):
        return _Noted(self.table(), self.note) if self.uncovered else Message(self._cover())

    def __repr__(self) -> str:
        return repr(self._text())


class _Beside(Shown):
    """What goes with comparisons, a table or a figure: covered as long as one of them is."""

    def __init__(self, compared: tuple[Comparison, ...], shown):
        self.compared, self.shown = compared, shown

    def content(self):
        covered = [one.id for one in self.compared if not one.uncovered]
        if not covered:
            return self.shown
        return Message(f"{' and '.join(covered)}: also covered until you guess, or skip")

    def __repr__(self) -> str:
        return repr(self.content())


class _Noted:
    """A table with a sentence under it."""

    def __init__(self, table: Table, note: str):
        self.table, self.note = table, note

    def __repr__(self) -> str:
        return f"{self.table!r}\n{self.note}".rstrip()

    def _repr_html_(self) -> str:
        return self.table._repr_html_() + (Message(self.note)._repr_html_() if self.note else "")


# -- values
# -----------------------------------------------------------------------------------------


def _plain(value):
    """A number or text as Python has it: scalars of numpy and torch too."""
    if hasattr(value, "item"):
        value = value.item()
    if value is not None and not isinstance(value, int | float | str):
        raise ValueError(f"guess and compare take numbers and words, not {type(value).__name__}")
    return value


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _agree(formula, measured, tolerance: float) -> bool:
    if formula == measured:
        return True
    if not (_is_number(formula) and _is_number(measured)):
        return False
    return abs(measured - formula) <= tolerance * abs(formula)  # False for NaN


def _percent(tolerance: float) -> str:
    return f"{100 * tolerance:g} %"


# -- the file
# ---------------------------------------------------------------------------------------


def guesses_path() -> Path:
    """Where a reader's answers are kept: beside the folder of run directories."""
    return rundirs.root().parent / "guesses.json"


def _stored() -> dict[str, dict]:
    """What the file holds; nothing if it is missing or unreadable."""
    try:
        kept = json.loads(guesses_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {id: row for id, row in kept.items() if isinstance(row, dict)} if kept else {}


def _keep(id: str, **fields) -> None:
    if not has_front_end():
        return
    try:
        kept = _stored()
        kept[id] = {**kept.get(id, {}), **fields}
        guesses_path().parent.mkdir(parents=True, exist_ok=True)
        write_beside(guesses_path(), json.dumps(kept, indent=1, ensure_ascii=False))
    except OSError as error:
        print(f"the guess is not kept for later sessions: {error.strerror} ({guesses_path()})")


def _answered(id: str, kept: dict) -> Answered | None:
    if kept.get("how") not in ("reader", "skipped") or kept.get("measured") is None:
        return None
    note = "skipped" if kept["how"] == "skipped" else ""
    values = kept.get("guess"), kept["measured"], kept.get("formula")
    return Answered(id, *values, kept.get("unit", ""), note, kept.get("question", ""))
