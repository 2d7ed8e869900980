"""A finding of the lint, and the line it is in."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from picolab.show import yaml_file
from picolab.show.yaml_file import FileMistake as BankError
from picolab.show.yaml_file import line_of


@dataclass(frozen=True)
class Finding:
    """One mistake, and where it is."""

    file: str
    line: int
    what: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}, line {self.line}: {self.what}"


class File:
    """A YAML file and the lines of its parts."""

    def __init__(self, path: Path):
        self.name, self.lines = path.name, path.read_text(encoding="utf-8").splitlines()
        self.root, _ = yaml_file.read(path)

    def line(self, *path, containing: str = "") -> int:
        """Of the part at this path; inside a long text, of what it contains."""
        first = line_of(self.root, path)
        if containing:
            for number in range(first, len(self.lines) + 1):
                if containing in self.lines[number - 1]:
                    return number
        return first

    def keys(self, *path) -> list[str]:
        node = self.root
        for part in path:
            node = next((v for k, v in node.value if k.value == part), None)
        return [key.value for key, _ in node.value] if node is not None else []


@dataclass(frozen=True)
class Place:
    """One question in its file."""

    file: File
    path: tuple

    def finding(self, what: str, *path, containing="", severity="error") -> Finding:
        line = self.file.line(*self.path, *path, containing=containing)
        return Finding(self.file.name, line, what, severity)


def told(error: BankError) -> Iterator[Finding]:
    """A BankError has a mistake in each line: `FILE, line N: what`, or without a line."""
    for line in str(error).splitlines():
        match = re.match(r"(?P<file>[^,:]+?)(?:, line (?P<line>\d+))?: (?P<what>.*)", line)
        if match and match["file"].endswith(".yaml"):
            yield Finding(match["file"], int(match["line"] or 1), match["what"])
        else:
            yield Finding("*.yaml", 1, line)


def keys_twice(path: Path) -> Iterator[Finding]:
    """YAML takes the last of two equal keys in silence, and a question would be gone."""
    try:
        root, _ = yaml_file.read(path)
    except BankError:
        return  # told by whoever reads it
    nodes = [root] if root is not None else []
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        if isinstance(node, yaml.MappingNode):
            seen = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # told by whoever reads it
                line = key.start_mark.line + 1
                if key.value in seen:
                    first = seen[key.value]
                    yield Finding(path.name, line, f"{key.value} is there already, in line {first}")
                seen.setdefault(key.value, line)
                nodes.append(value)
