"""One Chinese word for each term, in all banks: glossary.yaml, and what is not said in its place.

    - {en: backward, zh: 反向, not: [backward, 后向]}

A word in Latin letters is found as a whole word, a Chinese one anywhere; formulas in backticks and
placeholders are left alone, since they are the same in both languages.
"""

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from picolab.show import yaml_file
from picolab.show.yaml_file import FileMistake as BankError
from picolab.show.yaml_file import line_of

FILE = "glossary.yaml"
_SAME = re.compile(r"```.*?```|`[^`]*`|\{\{.*?\}\}", re.DOTALL)


class Term(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    en: str
    zh: str
    """may have the English behind it in brackets, where engineers say it in English"""
    wrong: tuple[str, ...] = Field(default=(), alias="not")


def read_glossary(folder: Path) -> list[Term]:
    """The terms of the folder's banks; none where there is no glossary. BankError has the line."""
    path = folder / FILE
    if not path.exists():
        return []
    root, data = yaml_file.read(path)
    try:
        return TypeAdapter(list[Term]).validate_python(data)
    except ValidationError as error:
        lines = [f"{FILE}, line {line_of(root, e['loc'])}: {e['msg']}" for e in error.errors()]
        raise BankError("\n".join(lines)) from None


def misused(text: str, terms: list[Term]) -> list[tuple[Term, str]]:
    """The terms for which the text says something else, and what it says."""
    plain = _SAME.sub(" ", text)
    return [(term, wrong) for term in terms for wrong in term.wrong if _says(plain, wrong)]


def _says(text: str, word: str) -> bool:
    if word.isascii():
        return re.search(rf"(?<![A-Za-z_-]){re.escape(word)}(?![A-Za-z_-])", text, re.I) is not None
    return word in text
