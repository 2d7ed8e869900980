"""What a pipeline schedule is: for each rank, the order of its actions. Nothing else.

A model is cut into stages, a batch into micro-batches. An action is one stage working on one
micro-batch:

    F   the forward
    B   the backward: the whole of it, or the input's gradient alone if the schedule has W
    W   the weights' gradient, in schedules that split the backward (arXiv 2401.10241)

"B" is used for both in print, which is why `Schedule.splits_backward` says which it is: B is the
whole backward exactly if the schedule has no W.

A schedule says in which *order* a rank works, not when: the times follow from what each action
needs and what it costs (`simulate`). It may be wrong; whether it is, `validate` says. What an
action needs is the same in every schedule:

    F of stage s   the output of F of stage s - 1
    B of stage s   the gradient from B of stage s + 1, and its own F
    W of stage s   its own B

As text it is a line for each rank. A stage is named only where the rank alone does not say it:

    1f1b: 2 stages, 3 micro-batches
    rank 0: F0 F1 B0 F2 B1 B2
    rank 1: F0 B0 F1 B1 F2 B2

Twin in torch: `torch.distributed.pipelining.schedules._Action`, whose text "2F0" is stage 2,
forward, micro-batch 0, and which writes I for an input gradient alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = {"F": "forward", "B": "backward", "W": "weight gradient"}
_HEAD = re.compile(
    r"(?P<name>[^:\n]+): (?P<stages>\d{1,9}) stages?, (?P<micro_batches>\d{1,9}) micro-batch(?:es)?"
    r"(?:, on ranks (?P<placement>\d{1,9}(?: \d{1,9})*))?"
)
_LINE = re.compile(r"rank (\d{1,9}):(.*)")
_TOKEN = re.compile(r"(\d{0,9})([FBW])(\d{1,9})")


class Action(NamedTuple):
    kind: str
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch} of stage {self.stage}"


@dataclass(frozen=True, repr=False)
class Schedule:
    """Which rank does what in which order. Raises ValueError for what is no schedule at all."""

    name: str
    stages: int
    micro_batches: int
    actions: tuple[tuple[Action, ...], ...]
    """actions[rank], in the order in which the rank does them."""
    placement: tuple[int, ...] = ()
    """placement[stage] is its rank. Empty: stage s is on rank s."""

    def __post_init__(self):
        check_sizes(self.stages, self.micro_batches)
        if not self.name or set(":\n") & set(self.name):
            raise ValueError(f"a schedule's name is a word without a colon, not {self.name!r}")
        actions = tuple(tuple(Action(*action) for action in row) for row in self.actions)
        for action in (action for row in actions for action in row):
            if action.kind not in KINDS:
                raise ValueError(f"{action.kind!r} is no action; actions are {', '.join(KINDS)}")
        object.__setattr__(self, "actions", actions)
        if not self.placement and len(actions) != self.stages:
            raise ValueError(
                f"{self.name} has {_count(self.stages, 'stage')} and actions for "
                f"{_count(len(actions), 'rank')}: give one row of actions a stage, or a placement"
            )
        placement = tuple(self.placement or range(self.stages))
        if len(placement) != self.stages or not set(placement) <= set(range(len(actions))):
            raise ValueError(
                f"placement {placement} does not put each of {_count(self.stages, 'stage')} on one "
                f"of {_count(len(actions), 'rank')}"
            )
        object.__setattr__(self, "placement", placement)

    @property
    def ranks(self) -> int:
        return len(self.actions)

    @property
    def splits_backward(self) -> bool:
        """True if B is the input's gradient alone, and W the weights'."""
        return any(action.kind == "W" for row in self.actions for action in row)

    @property
    def kinds(self) -> str:
        """What each stage does with each micro-batch: "FB" or "FBW"."""
        return "FBW" if self.splits_backward else "FB"

    def rank_of(self, stage: int) -> int:
        return self.placement[stage]

    def needs(self, action: Action) -> Action | None:
        """The action of another stage whose result this one works on, if there is one."""
        kind, stage, micro_batch = action
        if kind == "F" and stage > 0:
            return Action("F", stage - 1, micro_batch)
        if kind == "B" and stage < self.stages - 1:
            return Action("B", stage + 1, micro_batch)
        return None

    def feeds(self, action: Action) -> Action | None:
        """The action of another stage that works on this one's result: the inverse of needs."""
        kind, stage, micro_batch = action
        if kind == "F" and stage < self.stages - 1:
            return Action("F", stage + 1, micro_batch)
        if kind == "B" and stage > 0:
            return Action("B", stage - 1, micro_batch)
        return None

    def __str__(self) -> str:
        head = (
            f"{self.name}: {_count(self.stages, 'stage')}, "
            f"{_count(self.micro_batches, 'micro-batch')}"
        )
        if self.placement != tuple(range(self.ranks)):
            head += f", on ranks {' '.join(map(str, self.placement))}"
        rows = (" ".join(self._tokens(rank)) for rank in range(self.ranks))
        return "\n".join([head, *(f"rank {rank}: {row}".rstrip() for rank, row in enumerate(rows))])

    def __repr__(self) -> str:
        """A table of the orders: column k is the k-th action of each rank, whenever it happens."""
        rows = [self._tokens(rank) for rank in range(self.ranks)]
        width = max((len(token) for row in rows for token in row), default=0)
        head, *_ = str(self).split("\n")
        edge = len(f"rank {self.ranks - 1}")
        lines = [
            f"rank {rank}".ljust(edge) + " | " + " ".join(token.ljust(width) for token in row)
            for rank, row in enumerate(rows)
        ]
        what = "B the input's gradient, W the weights'" if self.splits_backward else "B backward"
        order = f"F forward, {what}; column k is the k-th action of each rank, whenever it is"
        return "\n".join([head, *(line.rstrip() for line in lines), order])

    def _tokens(self, rank: int) -> list[str]:
        own = [stage for stage, owner in enumerate(self.placement) if owner == rank]
        return [
            ("" if own == [stage] else str(stage)) + f"{kind}{micro_batch}"
            for kind, stage, micro_batch in self.actions[rank]
        ]

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """The inverse of str(schedule). Raises ValueError and says which line cannot be read."""
        lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
        head = _HEAD.fullmatch(lines[0]) if lines else None
        if head is None:
            raise ValueError(
                "a schedule begins with a line like '1f1b: 2 stages, 3 micro-batches', not with "
                f"{(lines or [''])[0][:60]!r}"
            )
        stages, ranks = int(head["stages"]), len(lines) - 1
        placement = tuple(map(int, head["placement"].split())) if head["placement"] else ()
        if not placement and ranks != stages:
            raise ValueError(f"{lines[0]!r} needs a line a stage, and there are {ranks}")
        on_rank: dict[int, list[int]] = {}
        for stage, rank in enumerate(placement or range(stages)):
            on_rank.setdefault(rank, []).append(stage)
        actions = []
        for rank, line in enumerate(lines[1:]):
            read = _LINE.fullmatch(line)
            if read is None or int(read[1]) != rank:
                raise ValueError(f"{line[:60]!r} cannot be read; here stands 'rank {rank}: F0 ...'")
            actions.append(tuple(_read(token, on_rank.get(rank, [])) for token in read[2].split()))
        return cls(head["name"], stages, int(head["micro_batches"]), tuple(actions), placement)


def _read(token: str, stages: Sequence[int]) -> Action:
    read = _TOKEN.fullmatch(token)
    if read is None:
        raise ValueError(
            f"{token[:60]!r} is no action; write F0, B0 or W0, with the stage in front if the rank "
            "has several (2F0)"
        )
    stage, kind, micro_batch = read.groups()
    if not stage and len(stages) != 1:
        raise ValueError(f"{token} does not say of which stage: its rank has {len(stages)}")
    return Action(kind, int(stage or stages[0]), int(micro_batch))


def check_sizes(stages: int, micro_batches: int) -> None:
    """Both are whole numbers from 1; else a ValueError that says so."""
    for value, noun in ((stages, "stage"), (micro_batches, "micro-batch")):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"a pipeline has at least one {noun}, a whole number, not {value!r}")


def _count(n: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{n} {noun}{'' if n == 1 else plural}"
