"""Is a schedule right? Four questions, answered before a single process is started.

1. Does each stage do each of F, B (and W) exactly once for each micro-batch, on the stage's rank?
2. Does each rank do them in an order that is possible for it alone: B after F, W after B?
3. Does any rank hold more micro-batches at once than there is memory for (the cap)?
4. Do the ranks get through it together, or does each wait for another?

The fourth is answered by running the schedule with messages instead of work. How a send behaves
decides, so there are three kinds:

    buffered     a send returns at once: isend on gloo, or a pipe with room in it
    rendezvous   a send returns when the other side receives, one call after the other: a
                 large message over NCCL, or MPI_Ssend
    fused        like rendezvous, but a rank posts the send of what it just made together with the
                 receive of what it needs next: batch_isend_irecv, as Megatron and torch do

1F1B and ZB-H1 run buffered or fused, and deadlock with plain rendezvous: stage 0 wants to send F1
while stage 1 wants to send B0 back, and neither receives. GPipe runs under all three. With several
stages a rank a result is sent long before it is needed, so those schedules need buffered sends
(torch and Megatron post more receives than the next; our executor's sends return at once).

Messages from one stage to the next carry no label: they are taken in the order in which they were
sent, as NCCL and gloo do. A schedule in which the receiver expects another order is refused; the
receiver would train on the wrong micro-batch, and nothing would crash.

Twin in torch: `_validate_schedule` and `_simulate_comms_compute`, compared in
tests/unit/schedules/test_validator.py.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from picolab.schedules.ir import KINDS, Action, Schedule

Sends = Literal["buffered", "rendezvous", "fused"]
_SENDS = ("buffered", "rendezvous", "fused")


class ScheduleError(ValueError):
    """A schedule that cannot work: `.rank` and `.action` where it shows, and the `.reason`."""

    def __init__(self, rank: int, action: Action, reason: str):
        super().__init__(f"rank {rank}, {action}: {reason}")
        self.rank, self.action, self.reason = rank, action, reason

    def __reduce__(self):  # so that it travels from a rank to the notebook as it is
        return type(self), (self.rank, self.action, self.reason)


def validate(
    schedule: Schedule,
    activation_cap: int | Sequence[int] | None = None,
    *,
    sends: Sends = "buffered",
) -> Schedule:
    """Return the schedule if it can work; raise ScheduleError with rank, action and reason if not.

    activation_cap   the most micro-batches whose activations a rank may hold, or one number a rank
    sends            how a send behaves: "buffered", "rendezvous" or "fused"
    """
    if sends not in _SENDS:
        raise ValueError(f"sends is {sends!r}; it is one of {', '.join(_SENDS)}")
    _each_once(schedule)
    _order_on_a_rank(schedule)
    if activation_cap is not None:
        _under_the_cap(schedule, _caps(activation_cap, schedule.ranks))
    _get_through(schedule, sends)
    return schedule


def _each_once(schedule: Schedule) -> None:
    seen: set[Action] = set()
    for rank, row in enumerate(schedule.actions):
        for action in row:
            _, stage, micro_batch = action
            if not 0 <= stage < schedule.stages:
                raise ScheduleError(rank, action, f"there are {schedule.stages} stages, from 0")
            if not 0 <= micro_batch < schedule.micro_batches:
                count = schedule.micro_batches
                raise ScheduleError(rank, action, f"micro-batches are numbered 0 to {count - 1}")
            if (right := schedule.rank_of(stage)) != rank:
                raise ScheduleError(rank, action, f"stage {stage} is on rank {right}")
            if action in seen:
                raise ScheduleError(rank, action, "this is done twice")
            seen.add(action)
    if len(seen) == len(schedule.kinds) * schedule.stages * schedule.micro_batches:
        return
    for stage in range(schedule.stages):
        for kind in schedule.kinds:
            for micro_batch in range(schedule.micro_batches):
                if (action := Action(kind, stage, micro_batch)) not in seen:
                    rank = schedule.rank_of(stage)
                    raise ScheduleError(rank, action, f"this {KINDS[kind]} is never done")


def _order_on_a_rank(schedule: Schedule) -> None:
    for rank, row in enumerate(schedule.actions):
        done: set[Action] = set()
        for action in row:
            kind, stage, micro_batch = action
            before = {"F": "", "B": "F", "W": "B"}[kind]
            if before and Action(before, stage, micro_batch) not in done:
                raise ScheduleError(rank, action, f"comes before its {KINDS[before]}")
            needed = schedule.needs(action)
            if needed and schedule.rank_of(needed.stage) == rank and needed not in done:
                raise ScheduleError(rank, action, f"comes before {needed}, whose result it takes")
            done.add(action)


def _caps(activation_cap: int | Sequence[int], ranks: int) -> list[int]:
    alone = isinstance(activation_cap, int)
    caps = [activation_cap] * ranks if alone else list(activation_cap)
    if len(caps) != ranks:
        raise ValueError(f"activation_cap has {len(caps)} numbers for {ranks} ranks")
    if any(not isinstance(cap, int) or isinstance(cap, bool) or cap < 1 for cap in caps):
        raise ValueError(f"activation_cap is {activation_cap!r}; a rank must hold at least one")
    return caps


def _under_the_cap(schedule: Schedule, caps: list[int]) -> None:
    frees = schedule.kinds[-1]
    for rank, row in enumerate(schedule.actions):
        held = 0
        for action in row:
            held += (action.kind == "F") - (action.kind == frees)
            if held > caps[rank]:
                raise ScheduleError(
                    rank,
                    action,
                    f"the rank would hold the activations of {held} micro-batches; its cap is "
                    f"{caps[rank]}",
                )


# -- running it with messages instead of work -----------------------------------------------------


class _Message(NamedTuple):
    sending: bool
    made_by: Action  # the action whose result travels

    @property
    def channel(self) -> tuple[int, str]:
        """From which stage, in which direction."""
        return self.made_by.stage, self.made_by.kind


@dataclass
class _Rank:
    """Where a rank is in its turns: (messages that must all get through, action run after)."""

    turns: list[tuple[list[_Message], Action]]
    turn: int = 0
    open: list[_Message] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.turn == len(self.turns)


def _turns(schedule: Schedule, rank: int, sends: Sends) -> list[tuple[list[_Message], Action]]:
    """A rank's messages in the order in which it posts them, each with the action it is for."""
    turns = []
    before: list[_Message] = []  # fused: the send that is posted with the next receive
    for action in schedule.actions[rank]:
        source, target = schedule.needs(action), schedule.feeds(action)
        arrives = source and schedule.rank_of(source.stage) != rank
        leaves = target and schedule.rank_of(target.stage) != rank
        turns.append((before + ([_Message(False, source)] if arrives else []), action))
        after = [_Message(True, action)] if leaves else []
        if sends == "fused":
            before = after
        else:
            before = []
            turns.append((after, action))
    if before:
        turns.append((before, before[0].made_by))
    return turns


def _get_through(schedule: Schedule, sends: Sends) -> None:
    ranks = [_Rank(_turns(schedule, rank, sends)) for rank in range(schedule.ranks)]
    travelling: dict[tuple[int, str], deque[Action]] = {}
    taken: set[Action] = set()
    for state in ranks:
        _post(state, travelling)
    moved = True
    while moved:
        moved = False
        for rank, state in enumerate(ranks):
            while not state.finished:
                left = [
                    message
                    for message in state.open
                    if not _through(rank, state, message, travelling, taken, sends)
                ]
                moved = moved or len(left) < len(state.open) or not left
                state.open = left
                if left:
                    break
                state.turn += 1
                _post(state, travelling)
    for rank, state in enumerate(ranks):
        if not state.finished:
            reason = "deadlock: " + _circle(schedule, ranks, rank)
            raise ScheduleError(rank, state.turns[state.turn][1], reason)


def _post(state: _Rank, travelling: dict) -> None:
    if not state.finished:
        state.open = list(state.turns[state.turn][0])
        for message in state.open:
            if message.sending:
                travelling.setdefault(message.channel, deque()).append(message.made_by)


def _through(rank, state: _Rank, message: _Message, travelling, taken, sends: Sends) -> bool:
    if message.sending:
        return sends == "buffered" or message.made_by in taken
    waiting = travelling.get(message.channel)
    if not waiting:
        return False
    if waiting[0] != message.made_by:
        raise ScheduleError(
            rank,
            state.turns[state.turn][1],
            f"takes the result of {message.made_by}, but {waiting[0]} was sent first: messages "
            "arrive in the order in which they were sent",
        )
    taken.add(waiting.popleft())
    return True


def _circle(schedule: Schedule, ranks: list[_Rank], rank: int) -> str:
    """Who waits for whom, from this rank until it repeats."""
    said, seen = [], set()
    while rank not in seen:
        seen.add(rank)
        message = ranks[rank].open[0]
        if message.sending:
            peer = schedule.rank_of(schedule.feeds(message.made_by).stage)
            said.append(f"rank {rank} waits for rank {peer} to take {message.made_by}")
        else:
            peer = schedule.rank_of(message.made_by.stage)
            said.append(f"rank {rank} waits for {message.made_by} from rank {peer}")
        rank = peer
    return ", ".join(said)
