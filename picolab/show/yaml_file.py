"""A YAML file that somebody has written, read: its data, and its nodes, which know their lines.

It is data from somebody else, so the file is bounded before anything is built: tags of Python
are refused (the safe loader), aliases too (ten lines of them are a billion entries, and what stands
elsewhere has no line), and so are size and depth. A mistake is told with its line.
"""

from pathlib import Path

import yaml

LARGEST, DEEPEST = 4_000_000, 20
"""bytes, and levels of lists and mappings inside each other"""


class FileMistake(ValueError):
    """A file that cannot be used: which, in which line, and what is wrong."""


class _Bounded:
    """Of a loader: no aliases, and a depth."""

    depth = 0

    def compose_node(self, parent, index):
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias; write it out", problem_mark=mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"more than {DEEPEST} levels inside each other", problem_mark=mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Values(_Bounded, yaml.SafeLoader):
    """Numbers, dates and truth values are what they look like."""


class Words(_Bounded, yaml.BaseLoader):
    """Every scalar stays text: as a number, arXiv's 1909.08050 would lose its last digit."""


def read(path: Path, loader: type[yaml.SafeLoader | yaml.BaseLoader] = Values):
    """(nodes, data) of the file; None of an empty one. FileMistake names the line of a mistake."""
    if path.stat().st_size > LARGEST:
        raise FileMistake(f"{path.name}: the file is larger than {LARGEST:,} bytes")
    try:
        reading = loader(path.read_text(encoding="utf-8"))
        root = reading.get_single_node()
        return root, None if root is None else reading.construct_document(root)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise FileMistake(f"{path.name}{line}: {said}") from None
    except ValueError as error:  # 2001-13-45 looks like a date; a whole number of 5,000 digits
        raise FileMistake(f"{path.name}: a number or a date that is none: {error}") from None


def line_of(node: yaml.Node | None, path: tuple) -> int:
    """The line of the innermost node on this path that is in the file."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            node = next((v for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part] if part < len(node.value) else None
        else:
            node = None
        if node is None:
            return line
        line = node.start_mark.line + 1
    return line
