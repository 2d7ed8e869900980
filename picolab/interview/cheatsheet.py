"""A cheat sheet: every formula with a worked number, and where that was measured.

    sheet.write(folder)      STEM.md and STEM.html, a page to print, into the folder

A sheet is data of a chapter, and no number of it is typed. A line is a formula, a call, and a cell:
the call (into `picolab.costs`, `picolab.schedules` or `picolab.specs`) is worked out when the sheet
is rendered, as a value of a question is; the formula is written alike, so that a test compares; and
the cell measures the same. What no cell of the chapter measures says so: *computed* is a formula
put to use, *tested* names the test.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from picolab.interview.cheatsheet_page import page
from picolab.interview.expressions import parse, work_out
from picolab.show.files import write_beside
from picolab.show.table import bytes_text, show


class Line(NamedTuple):
    what: str
    formula: str  # as Python; "" where the call says it all
    given: str  # the formula's letters in the call: "n=8, B=1e9"
    call: str
    unit: Literal["bytes", "%", "s", ""]
    where: str  # a cell's id, or the path of a test
    how: Literal["measured", "computed", "tested"] = "measured"

    @property
    def place(self) -> str:
        return self.where.rpartition("/")[2]

    @property
    def formula_text(self) -> str:
        powers = re.sub(r"\*\*2(?!\d)", "²", self.formula).replace("**", "^")
        return powers.replace("*", "·").replace("-", "−")


class Section(NamedTuple):
    title: str
    letters: str
    lines: list[Line]


@dataclass(frozen=True)
class Sheet:
    """A chapter's sheet."""

    stem: str
    """of the files' names"""
    title: str
    notebook: str
    """whose cells the lines name"""
    setup: Mapping[str, str]
    """names that calls use: name -> call"""
    sections: list[Section]

    @property
    def lines(self) -> list[Line]:
        return [line for section in self.sections for line in section.lines]

    def link(self, line: Line) -> str:
        """JupyterLab goes to the cell of that id; other readers open the notebook."""
        if line.how == "tested":
            return f"../{line.where}"
        return f"../notebooks/{self.notebook}.ipynb#cell-id={line.where}"

    def value_text(self, line: Line) -> str:
        return in_words(self.evaluate(line.call), line.unit)

    def evaluate(self, expression: str, given: str = "") -> float:
        """A call, or a formula with its letters ("n=8, B=1e9"). Nothing of it runs as code."""
        known = {name: work_out(text, {}) for name, text in self.setup.items()}
        letters = parse(f"letters({given})").keywords
        known |= {one.arg: work_out(ast.unparse(one.value), known) for one in letters}
        return work_out(expression, known)

    def markdown(self) -> str:
        """`STEM.md`."""
        parts = [
            f"# {self.title}",
            "Rendered by `make refresh`: no number here is typed, each is what its call returns. "
            f"GB is 1e9 bytes. To print: `{self.stem}.html`.",
            "*Measured*: the cell holds a run against the formula. *Computed*: the cell puts the "
            "formula to use. *Tested*: no cell of the chapter measures it, the test does.",
            "```python\nimport picolab as pico\n\n"
            + "\n".join(f"{name} = {text}" for name, text in self.setup.items())
            + "\n```",
        ]
        for section in self.sections:
            parts.append(f"## {section.title}")
            if section.letters:
                parts.append(f"Here: {section.letters}.")
            rows = ["| | formula | worked | by the call | where |", "|---|---|---|---|---|"]
            for line in section.lines:
                formula = f"`{line.formula_text}`" if line.formula else ""
                rows.append(
                    f"| {line.what} | {formula} | **{self.value_text(line)}** | `{line.call}` | "
                    f"{line.how}: [{line.place}]({self.link(line)}) |"
                )
            parts.append("\n".join(rows))
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path | str) -> list[Path]:
        """Write STEM.md and STEM.html into the folder."""
        texts = {f"{self.stem}.md": self.markdown(), f"{self.stem}.html": page(self)}
        for name, text in texts.items():
            write_beside(Path(folder) / name, text)
        return [Path(folder) / name for name in texts]


def in_words(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        if value < 1000:
            return f"{show(value)} bytes"
        return bytes_text(value) if value >= 1e8 else f"{value:,.0f} bytes"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    return f"{value:.3g}" if value >= 1e12 else show(value)
