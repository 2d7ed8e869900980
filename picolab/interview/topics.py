"""What chapters say of their topics: the areas a bank has, and how many questions at least."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """What a bank has at least, and of explanations at most a share."""

    questions: int
    numeric: int
    """questions that ask for a number which comes from a call into the package"""
    code: int
    diagnose: int
    warm_ups: int = 0
    """questions of two or three minutes"""
    explain_share: float = 0.15


COUNTS: dict[str, Counts] = {}
AREAS: dict[str, dict[str, str]] = {}


TAUGHT: dict[str, frozenset[str]] = {}


def register(
    topic: str, areas: Mapping[str, str], counts: Mapping[str, float], taught: Iterable[str] = ()
) -> None:
    """A bank's areas (key -> heading, in the order in which they are listed), its counts, and the
    questions that its chapter answers.
    """
    AREAS[topic], COUNTS[topic] = dict(areas), Counts(**counts)
    TAUGHT[topic] = frozenset(taught)
