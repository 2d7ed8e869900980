"""What the questions cite: sources.yaml, read and checked.

megatron-sp:
  title: Reducing Activation Recomputation in Large Transformer Models
  authors: Korthikanti and others
  year: 2022
  arxiv: 2205.05198            # or url: https://...
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from picolab.interview.bank import Text, _Strict
from picolab.show import yaml_file
from picolab.show.yaml_file import FileMistake as BankError
from picolab.show.yaml_file import line_of

FILE = "sources.yaml"


class Source(_Strict):
    """A paper, a page of documentation, a post."""

    title: Text
    authors: Text
    year: int = Field(ge=1940, le=2100)
    arxiv: Annotated[str, Field(pattern=r"^(\d{4}\.\d{4,5}|[a-z-]+/\d{7})$")] | None = None
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None

    @model_validator(mode="after")
    def _reachable(self):
        if (self.arxiv is None) == (self.url is None):
            raise ValueError("a source has either `arxiv` or `url`")
        return self

    @property
    def link(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url

    @property
    def citation(self) -> str:
        return f"{self.authors}: {self.title} ({self.year})"


def read_sources(folder: Path) -> dict[str, Source]:
    """key -> source. BankError names the line of every mistake."""
    path = folder / FILE
    try:
        root, data = yaml_file.read(path, yaml_file.Words)
    except FileNotFoundError:
        raise BankError(f"{FILE}, line 1: there is no {FILE} beside the banks") from None
    if not isinstance(data, dict):
        raise BankError(f"{FILE}, line 1: it is a mapping, key: title, authors, year, arxiv or url")
    found, mistakes = {}, []
    for key, entry in data.items():
        try:
            found[key] = Source.model_validate(entry)
        except ValidationError as error:
            for one in error.errors():
                place = (key, *one["loc"])
                where = ".".join(str(part) for part in place)
                said = one["msg"].removeprefix("Value error, ")
                mistakes.append(f"{FILE}, line {line_of(root, place)}: {where}: {said}")
    if mistakes:
        raise BankError("\n".join(mistakes))
    return found
