"""Slots: the experts that a rank of ep computes, its own and copies of others, and which rows go to
which of them.

    slots of rank r      its own E / n experts, r E / n ..., and then its copies
    rows of an expert    that a rank sends: as many to each of the h ranks that hold it, in runs of
                         neighbours. What h does not divide falls on the first ranks, counted from
                         another one by each sender: sender i begins with the (i mod h)-th

So a rank gets a 1/h of each of its experts' rows, to within one row of each sender, and that is
what a plan counts on. (To send rows to the copy at home would spare traffic, and leave to chance
who gets how many.) Source: EPLB (deepseek-ai, 2025).
"""

from collections.abc import Sequence
from functools import cached_property

from picolab.costs.slices import even_slices


class ExpertSlots:
    """copies: rank of ep -> the experts of other ranks that it has, too."""

    def __init__(self, experts: int, copies: Sequence[Sequence[int]]):
        self.experts, self.copies = experts, tuple(map(tuple, copies))
        own = even_slices(experts, len(self.copies))
        self.held = [(*home, *more) for home, more in zip(own, self.copies)]
        """Rank -> the expert in each of its slots."""

    @cached_property
    def holders(self) -> list[list[int]]:
        """Expert -> the ranks that hold it, in order."""
        found: list[list[int]] = [[] for _ in range(self.experts)]
        for rank, held in enumerate(self.held):
            for expert in held:
                found[expert].append(rank)
        return found

    @property
    def sizes(self) -> list[int]:
        """Slots of each rank."""
        return [len(held) for held in self.held]

    @property
    def copied(self) -> list[int]:
        """Of them, slots for copies."""
        return list(map(len, self.copies))

    def owner(self, expert: int) -> int:
        return expert * len(self.copies) // self.experts

    def share_out(self, rows: Sequence[int], sender: int) -> list[list[range]]:
        """Rank -> slot -> which of the sender's rows of that expert it gets, counted from 0. rows:
        of each expert."""
        return [
            [self._share(rows[expert], self.holders[expert], rank, sender) for expert in held]
            for rank, held in enumerate(self.held)
        ]

    def rows_of_ranks(self, load_E: Sequence[float]) -> list[float]:
        """The rows that each rank's experts will have: of each expert its share."""
        return [sum(load_E[e] / len(self.holders[e]) for e in held) for held in self.held]

    @staticmethod
    def _share(rows: int, holders: Sequence[int], rank: int, sender: int) -> range:
        if len(holders) == 1 or not rows:
            return range(rows)
        return even_slices(rows, len(holders))[(holders.index(rank) - sender) % len(holders)]
