"""The names of pipeline schedules, and what each asks of the layout and of the step.

    name              stages a rank   on which rank is stage s   micro-batches m on p ranks
    1f1b, gpipe       1               s                          any
    zb-h1             1               s                          any
    interleaved       2, or v         s % p (round and round)    a multiple of p
    zb-v              2               there and back             any
    dualpipe-v        2               there and back             2 p or more

There and back: stage s is on rank s for the first p stages and on rank 2p - 1 - s after that, so
that the first and the last stage share a rank. `interleaved-v4` has four stages a rank.

What the orders are, `picolab.schedules` says. This is here because a layout is checked, and a
model cut, before there is any order.
"""

import difflib
import re
from typing import NamedTuple

SCHEDULES = ("1f1b", "gpipe", "interleaved", "zb-h1", "zb-v", "dualpipe-v")
MOST_STAGES = 16  # on a rank: beyond it a stage would be a fraction of a layer of any real model
_FOLDED = ("zb-v", "dualpipe-v")
_SPLIT = ("zb-h1", *_FOLDED)
_INTERLEAVED = re.compile(r"interleaved-v(\d{1,6})")


class ScheduleName(NamedTuple):
    """A name taken apart. As text it is the shortest that says the same."""

    family: str
    """One of SCHEDULES."""
    stages_a_rank: int

    @classmethod
    def parse(cls, text: str) -> "ScheduleName":
        """Raises ValueError, with the name that is nearest, for one that does not exist."""
        if text == "interleaved" or text in _FOLDED:
            return cls(text, 2)
        if text in SCHEDULES:
            return cls(text, 1)
        if numbered := _INTERLEAVED.fullmatch(str(text)):
            stages = int(numbered[1])
            if not 2 <= stages <= MOST_STAGES:
                raise ValueError(
                    f"{text} has {stages} stages a rank; interleaved has 2 to {MOST_STAGES}, and "
                    "1f1b is the one with a single stage"
                )
            return cls("interleaved", stages)
        near = difflib.get_close_matches(str(text), SCHEDULES, n=1)
        raise ValueError(
            f"schedule {text!r} is not known; schedules are {', '.join(SCHEDULES)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )

    def __str__(self) -> str:
        if self.family == "interleaved" and self.stages_a_rank != 2:
            return f"interleaved-v{self.stages_a_rank}"
        return self.family

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights (W) come apart from those of inputs (B)."""
        return self.family in _SPLIT

    def stage_ranks(self, ranks: int) -> tuple[int, ...]:
        """The rank of each stage."""
        there = tuple(range(ranks))
        return there + there[::-1] if self.family in _FOLDED else there * self.stages_a_rank

    def micro_batches(self, ranks: int, least: int) -> int:
        """The smallest number of micro-batches, from `least` on, that the schedule can have."""
        if self.family == "interleaved":
            return max(1, -(-least // ranks)) * ranks
        return max(least, 2 * ranks if self.family == "dualpipe-v" else 1)

    def check_micro_batches(self, ranks: int, micro_batches: int) -> None:
        """Raise ValueError, with the numbers that work, if the schedule cannot have so many."""
        more = self.micro_batches(ranks, micro_batches)
        if more == micro_batches:
            return
        if self.family == "interleaved":
            fewer = more - ranks
            near = f"{fewer} or {more}" if fewer else str(more)
            raise ValueError(
                f"{self} on {ranks} ranks takes the micro-batches of a step in rounds of {ranks}, "
                f"which do not divide {micro_batches}; take {near}"
            )
        raise ValueError(
            f"{self} on {ranks} ranks feeds the pipe from both ends and needs {more} micro-batches "
            f"or more, not {micro_batches}"
        )
