"""Bytes and seconds of a request's candidates: the formulas of `costs`, put together."""

from picolab.planner.memory import Memory
from picolab.planner.parts import Candidate, Part
from picolab.planner.seconds import Seconds

__all__ = ["Candidate", "Costing", "Part"]


class Costing(Memory, Seconds):
    """`memory(candidate)` and `seconds(candidate)`."""
