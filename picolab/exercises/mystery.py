"""Mystery runs: a run that looks fine, or slightly off. Look at it, then name what is wrong.

    case = pico.mystery("4d.mystery.1")    # what somebody reports; nothing is started yet
    case.suspects                          # what could be wrong, each with a letter
    case.look("norm")                      # one of its looks, at this run beside a right one
    case.name("C")                         # the answer, its score and the reasoning
    pico.mystery()                         # all cases, and how far you are

At the first look three short trainings run on real ranks: the one in question, with a real fault
at work in it (or none), the same layout done right, and one process. Whoever needs fewer looks and
names nothing wrong scores more:

    looks         none    1     2     3     4     5 or more
    score         50     100   90    80    65    50       less 25 for each wrong name

None at all is a guess: it can be right, and is worth no more than 50. After the right name, or
three wrong ones, the case is closed and explained; looks are free from then on.

In a front end a case is a form (lab/mystery_form.py): buttons for the looks, losses and norms as
curves, the suspects to choose from. Text, score and functions are the same.

Importing this takes no torch; a run does. The cases are the chapters', what one is made of is in
mystery_case.py, the looks in mystery_looks.py, and what happens in the ranks in mystery_runs.py.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from picolab.exercises.mystery_case import Mystery, Suspect
from picolab.show.front_end import Message, Shown, has_front_end
from picolab.show.table import Table

if TYPE_CHECKING:
    from picolab.exercises.mystery_looks import Trial
    from picolab.show.picture import LabFigure

MOST_WRONG = 3
_POINTS = (50, 100, 90, 80, 65, 50)  # by looks
_PER_WRONG_NAME = 25

_modules: list[str] = []
_forms: list[Callable] = []  # at most one: what shows a case in a front end
_open: dict[str, "MysteryRun"] = {}


def register(module: str) -> None:
    """The cases of a chapter: a module that has them as CASES, imported when one is asked for."""
    if module not in _modules:
        _modules.append(module)


def register_form(form: Callable[["MysteryRun"], object]) -> None:
    """What makes the widget of a case, for a front end; `lab` has it, which is above this."""
    _forms[:] = [form]


def cases() -> dict[str, Mystery]:
    """All of them, by id, in the order of the chapters."""
    return {one.id: one for name in _modules for one in importlib.import_module(name).CASES}


def mystery(id: str | None = None) -> "MysteryRun | Table":
    """One mystery run, or, without an id, the table of all of them.

    A cell that is run again gives the same case, with its looks and its score.
    Raises ValueError for an id that no case has.
    """
    if id is None:
        return overview()
    known = cases()
    if not isinstance(id, str) or id not in known:
        raise ValueError(f"there is no mystery run {id!r}; there are {', '.join(known)}")
    case = _open.setdefault(id, MysteryRun(known[id]))
    case.show()
    return case


def overview() -> Table:
    """All cases: what is reported, how many looks and wrong names so far, and the score."""
    rows = []
    for id, about in cases().items():
        case = _open.get(id) or MysteryRun(about)
        state = "closed" if case.closed else "open" if case.looks or case.wrong else ""
        row = [id, about.title, about.layout, len(case.looks), len(case.wrong), state, case.score]
        rows.append(row)
    scores = [row[-1] for row in rows if row[-1] is not None]
    total = f": {sum(scores)} of {100 * len(scores)} points" if scores else ""
    columns = ["mystery run", "what is reported", "layout", "looks", "wrong names", "", "score"]
    return Table(columns, rows, f"{len(scores)} of {len(rows)} mystery runs closed{total}.")


def points(looks: int, wrong: int) -> int:
    """What the right name is worth after so many looks and wrong names."""
    return max(0, _POINTS[min(looks, len(_POINTS) - 1)] - _PER_WRONG_NAME * wrong)


def say(text: str) -> None:
    print(text, end="", flush=True)


class MysteryRun(Shown):
    """One case, its looks and its answer."""

    _says_itself = True

    def __init__(self, about: Mystery):
        self.about, self.id = about, about.id
        self.looks: list[str] = []
        """Those taken before the case was closed."""
        self.wrong: list[str] = []
        """Letters of wrong names."""
        self._tables: dict[str, Table] = {}
        self._trial: Trial | None = None
        self._closing: Answer | None = None
        self.say: Callable[[str], None] = say
        """Told what is going on while a case trains, in pieces of a sentence."""
        self.forms: list[Callable[[], None]] = []
        """Called after each look and each name."""

    @property
    def closed(self) -> bool:
        return self._closing is not None

    @property
    def score(self) -> int | None:
        """None as long as the case is open."""
        return self._closing.score if self._closing is not None else None

    @property
    def suspects(self) -> Table:
        """What could be wrong, by letter."""
        letters = self.about.letters
        rows = [[letter, suspect.words] for letter, suspect in letters.items()]
        columns = ["", "what could be wrong"]
        if self.wrong:
            columns.append("named")
            rows = [[*row, "wrong" if row[0] in self.wrong else ""] for row in rows]
        return Table(columns, rows, "Which one is it? Answer with its letter: case.name(letter).")

    def look(self, name: str) -> Table:
        """One of the looks. The first one of a case trains, some seconds long; each is counted
        once.

        Raises ValueError for a look that does not exist.
        """
        if not isinstance(name, str) or name not in self.about.looks:
            names = ", ".join(self.about.looks)
            raise ValueError(f"there is no look {name!r}; the {self._how_many} are {names}")
        if name not in self._tables:
            from picolab.exercises import mystery_looks

            self._tables[name] = mystery_looks.look(self._trained(), name)
        if name not in self.looks and not self.closed:
            self.looks.append(name)
        self._tell()
        return self._tables[name]

    def picture(self, name: str) -> "Table | LabFigure":
        """A look, counted like any other, with losses and norms as curves."""
        table = self.look(name)
        from picolab.exercises import mystery_curves

        return mystery_curves.curves(self._trial, name) if name in mystery_curves.CURVES else table

    def name(self, letter: str) -> "Answer":
        """Name what is wrong, by the letter of a suspect.

        Raises ValueError for what is no suspect's letter.
        """
        answer = self._named(letter)
        self._tell()
        return answer

    @property
    def _how_many(self) -> str:
        return {5: "five", 6: "six", 7: "seven", 8: "eight"}[len(self.about.looks)]

    def worth(self) -> int:
        """The score of the right name, were it given now."""
        return points(len(self.looks), len(self.wrong))

    def _tell(self) -> None:
        for tell in self.forms:
            tell()

    def _named(self, letter: str) -> "Answer":
        letters = self.about.letters
        given = letter.strip().upper() if isinstance(letter, str) else letter
        if not isinstance(given, str) or given not in letters:
            first, *_, last = letters
            raise ValueError(
                f"{letter!r} is no suspect of {self.id}; give a letter from {first} to {last}, as "
                "in case.suspects"
            )
        if self._closing is not None:
            return self._closing
        if given in self.wrong:
            return Answer(False, None, [Message(f"{given} was wrong already. It costs nothing.")])
        if given == self.about.culprit:
            score = self.worth()
            self._closing = self._closed(True, score)
            return self._closing
        if len(self.wrong) + 1 == MOST_WRONG:
            closing = self._closed(False, 0, given)
            self.wrong.append(given)
            self._closing = closing
            return closing
        self.wrong.append(given)
        return self._not_it(letters[given], given)

    def story(self) -> str:
        about = self.about
        return f"{self.id}: {about.title}\n{about.setting_text()}\n\n{about.story}\n"

    def content(self):
        if has_front_end() and _forms:
            return _forms[0](self)
        return self._text()

    def _text(self) -> "Parts":
        looks = Table(
            ["look", "what it shows"],
            [[f'case.look("{name}")', words] for name, words in self.about.looks.items()],
            "What is wrong, if anything is? case.suspects lists what it could be. You have "
            f"{self._how_many} looks, and fewer are worth more; then case.name(letter).",
        )
        status = [Message(self._status())] if self.looks or self.wrong or self.closed else []
        return Parts([Message(self.story()), looks, *status])

    def __repr__(self) -> str:
        return repr(self._text())

    def _status(self) -> str:
        if self._closing is not None:
            return f"closed, score {self.score}; looks are free now"
        looks = f"looks so far: {', '.join(self.looks)}" if self.looks else "no look yet"
        return f"{looks}; wrong names: {', '.join(self.wrong)}" if self.wrong else looks

    def _trained(self) -> "Trial":
        if self._trial is None:
            from picolab.exercises import mystery_faults, mystery_looks, mystery_runs
            from picolab.specs import assemble

            config = assemble(layout=self.about.layout, **self.about.settings)
            fault = mystery_faults.find(self.about.fault)
            found = []
            for what, settings, at_work in (
                ("this run", config, fault),
                (f"a right {config.layout}", config, None),
                ("one process", mystery_runs.one_process(config), None),
            ):
                begin = f"{self.id}: training " if not found else ", "
                self.say(f"{begin}{what}")
                found.append(mystery_runs.record(settings, at_work, self.about))
            self.say(". Done.\n")
            self._trial = mystery_looks.Trial(*found)
        return self._trial

    def _not_it(self, suspect: Suspect, letter: str) -> "Answer":
        left = MOST_WRONG - len(self.wrong)
        text = (
            f"{letter} is not it: {suspect.words}. Had it been, {suspect.tell}. That costs "
            f"{_PER_WRONG_NAME} points; {left} name{'s' * (left > 1)} left."
        )
        if not self.looks:
            text += " That was a guess, without a look: a look is worth more than a guess."
        return Answer(False, None, [Message(text)])

    def _closed(self, right: bool, score: int, letter: str = "") -> "Answer":
        """The explanation. Of a case that nobody has looked at it starts no run."""
        from picolab.exercises import mystery_faults

        about, fault = self.about, mystery_faults.find(self.about.fault)
        head = (
            f"Right, {about.culprit}"
            if right
            else f"{letter} is not it either. It was {about.culprit}"
        )
        lines = [
            f"{head}: {about.letters[about.culprit].words}.",
            f"Score {score}: {self._how_scored(right)}",
            "",
            about.why,
            "",
            f"The look that tells it at once: {about.gives_away}.",
        ]
        if fault is not None:
            lines.append(f"What was done to this run: {fault.what}.")
        lines.append(f"Where it was seen: {about.seen or fault.where_seen}.")
        parts: list = [Message("\n".join(lines) + "\n")]
        if self._trial is not None:
            parts.append(self._what_looks_had())
        else:
            parts.append(Message("Nobody has looked at it yet. Do so now: looks are free.\n"))
        rows = [[key, of.words, of.tell] for key, of in about.letters.items()]
        title = "How to tell them apart."
        parts.append(Table(["", "suspect", "had it been this"], rows, title))
        return Answer(right, score, parts)

    def _how_scored(self, right: bool) -> str:
        if not right:
            return "three wrong names close a case."
        number, wrong = len(self.looks), len(self.wrong)
        looks = f"{number} look{'s' * (number != 1)} ({', '.join(self.looks)})"
        if not number:
            looks = f"named without a look, which is a guess and worth {_POINTS[0]} at most"
        return f"{looks}; {wrong or 'no'} wrong name{'s' * (wrong > 1)}."

    def _what_looks_had(self) -> Table:
        from picolab.exercises import mystery_looks

        rows = [
            [look, "yes" if look in self.looks else "", mystery_looks.summary(self._trial, look)]
            for look in self.about.looks
        ]
        return Table(["look", "taken", "what it had to show"], rows, f"The {self._how_many} looks.")


class Answer:
    """What a name was worth: `right`, and once the case is closed its `score` and explanation."""

    def __init__(self, right: bool, score: int | None, parts: list):
        self.right, self.score, self._parts = right, score, Parts(parts)

    @property
    def closed(self) -> bool:
        return self.score is not None

    def __repr__(self) -> str:
        return repr(self._parts)

    def _repr_html_(self) -> str:
        return self._parts._repr_html_()


class Parts:
    """Messages and tables, one under the other."""

    def __init__(self, parts: list):
        self.parts = parts

    def __repr__(self) -> str:
        return "\n".join(repr(part) for part in self.parts)

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() for part in self.parts)
