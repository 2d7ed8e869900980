"""What an exercise is made of.

Everything a learner meets stands in one module: the words, the stub, the hints, the solution with
the reason why it works, and the judge. Wrong solutions of the kind people really write stand beside
the chapter's tests, each with the *sentence that helps*: a judge that lets a mistake through, or
only says "wrong", does not pass.

How a verdict comes about is check.py's, what a judge may ask in a rank attempt.py's.
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from picolab.exercises import catalogue, record
from picolab.exercises.case import Case
from picolab.exercises.catalogue import About
from picolab.exercises.check import CheckResult, check


@dataclass(frozen=True, repr=False)
class Exercise:
    """One exercise. Shows its statement; `.check(fn)`, `.hint()`, `.solution()`, `.stub`."""

    id: str
    """chapter.topic.name"""
    goal: str
    """what the function has to do, in a few sentences"""
    interface: str
    """its call and its arguments with their shapes; what may be used"""
    budget: str
    """collectives, bytes or time units that are allowed, in words; the judge enforces it"""
    hints: tuple[str, str, str]
    stub_function: Callable
    """raises NotImplementedError; its source is the learner's beginning"""
    solution_function: Callable
    why: str
    """why the solution is right, shown with it"""
    judge: Callable
    """judge(learner, attempt), in each rank; see attempt.py"""
    cases: tuple[Case, ...]
    blocked: tuple[str, ...] = ()
    """dotted names of the package's functions that do what is asked: they refuse while judged"""
    timeout: float = 10.0
    """seconds without progress of any rank until it counts as a deadlock"""

    @property
    def about(self) -> About:
        """Title, minutes and difficulty, as its chapter lists them."""
        return catalogue.about(self.id)

    @property
    def title(self) -> str:
        return self.about.title

    def check(self, fn: Callable) -> CheckResult:
        """Run your function in real ranks and say what came of it.

        Status "todo" (it still raises NotImplementedError), "pass" or "fail". Nothing that the
        function does can harm the kernel: it runs in processes of its own, and they are ended.
        Raises ValueError for what is no function of yours.
        """
        result = check(self, fn)
        record.tried(self.id, result.status)
        return result

    def hint(self) -> "Shelf":
        """The next hint, below those before; after the third it starts no fourth."""
        shown = record.next_hint(self.id, len(self.hints))
        lines = [f"Hint {i + 1} of {len(self.hints)}. {self.hints[i]}" for i in range(shown)]
        if shown == len(self.hints):
            lines.append("That was the last one. `.solution()` shows a worked one.")
        return Shelf("\n\n".join(lines))

    def solution(self, now: bool = False) -> "Shelf":
        """A worked solution and why it works: after a try that failed or passed, or with now=True.

        Soft on purpose: the file is on your disk. A solution seen before a try teaches little.
        """
        if not now and not record.has_tried(self.id):
            return Shelf(
                "Try it once first: `.check(your_function)`. Then this shows a worked solution. "
                "(To see it without: `.solution(now=True)`.)"
            )
        theirs, yours = self.solution_function.__name__, self.stub_function.__name__
        code = source_of(self.solution_function).replace(f"def {theirs}(", f"def {yours}(", 1)
        return Shelf(self.why, code)

    @property
    def stub(self) -> str:
        """The source to begin with, as it stands in the notebook."""
        return source_of(self.stub_function)

    def statement(self) -> str:
        """The whole statement as Markdown."""
        star = "  ★ one of the two to do if you do only two" if self.about.starred else ""
        dots = "●" * self.about.difficulty + "○" * (5 - self.about.difficulty)
        return "\n\n".join(
            [
                f"#### {self.title}",
                f"{self.about.minutes} minutes, difficulty {dots}{star}",
                f"**Goal** {self.goal}",
                f"**Interface** {self.interface}",
                f"**Budget** {self.budget}",
            ]
        )

    def __repr__(self) -> str:
        return self.statement()

    def _repr_markdown_(self) -> str:
        return self.statement()


class Shelf:
    """Words in Markdown, and perhaps code: a hint, a solution."""

    def __init__(self, text: str, code: str = ""):
        self.text, self.code = text, code

    def __repr__(self) -> str:
        return f"{self.code}\n\n{self.text}" if self.code else self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```\n\n{self.text}" if self.code else self.text


def source_of(function: Callable) -> str:
    """The function's source, as a learner would write it at the left edge of a cell."""
    return textwrap.dedent(inspect.getsource(function)).strip()
