"""What happens in the ranks of a mystery run: the package's training step, with a fault at work.

    recording = record(config, fault)        # real ranks; what each one saw and held

Three such recordings make a case: the run in question, the same layout without the fault, and one
process on the same global batch. Each rank runs `training.train_rank`, with an observer that
keeps a copy of what it holds before the first step and after the last one. What is compared is not
gathered by the ranks: a collective would be one more thing that may be wrong.
"""

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from picolab import comm, launch
from picolab.debug.faults import Fault, Injection
from picolab.debug.observe import Held, held
from picolab.exercises.mystery_case import Mystery
from picolab.memory import LeakFinder
from picolab.memory.monitor import call_states
from picolab.moe import expert_layers
from picolab.monitoring import History, Ledger, Observer
from picolab.monitoring.figures import run_state
from picolab.monitoring.step_split import StepSplit
from picolab.precision import LossScaler
from picolab.training import TrainConfig, train_rank
from picolab.training.precision import ScaledPrecision
from picolab.training.probe import Probe
from picolab.training.text import open_text


@dataclass
class RankRecord:
    """What one rank saw and held. Lists have one entry a step."""

    place: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    """Of each expert those that this rank sent to it, over its layers."""
    scales: list[float] = field(default_factory=list)
    """Of the loss, where it is scaled."""
    skipped: list[int] = field(default_factory=list)
    """Steps that this rank did not take."""
    memory: list[dict[str, int]] = field(default_factory=list)
    """Bytes alive by category, before the first step and after each one, if that is asked."""
    remains: list["Remains"] = field(default_factory=list)
    """What steps have left behind at the end."""
    start: Held = field(default_factory=dict)
    end: Held = field(default_factory=dict)


@dataclass
class Recording:
    """One run: its settings, what its ranks saw and held, and its events."""

    config: TrainConfig
    ranks: list[RankRecord]
    events: History
    ledger: Ledger

    @property
    def losses(self) -> list[float]:
        """As rank 0 logs them, which is what people look at."""
        return self.ranks[0].losses

    @property
    def norms(self) -> list[float]:
        return self.ranks[0].norms

    @property
    def loads(self) -> list[list[int]]:
        """Of each step the tokens that each expert had, over all ranks and layers."""
        by_rank = [rank.rows for rank in self.ranks]
        return [[sum(of) for of in zip(*step)] for step in zip(*by_rank)]

    @property
    def told(self) -> list[list[dict]]:
        """Of each rank what it told of each step."""
        steps = [event for event in self.events if event.kind == "step"]
        return [[e.data for e in steps if e.rank == rank] for rank in range(len(self.ranks))]

    @property
    def split(self) -> dict[int, StepSplit]:
        """Where the mean step of each rank went; without the first step, which is warm-up."""
        return run_state(self.events).split()


def record(
    config: TrainConfig,
    fault: Fault | None,
    about: Mystery,
) -> Recording:
    """Train on real ranks of this machine, with the fault at work in each of them. Nothing is shown
    meanwhile: a bar with the loss or the speed would be a look that nobody has taken. about: the
    case, which says what is asked of it beside its numbers."""
    run = launch.run(
        _rank,
        config,
        fault,
        about,
        world_size=config.layout.world,
        backend="gloo",
        name="mystery",
        quiet=True,
    )
    return Recording(config, list(run), run.events, run.ledger.in_steps())


def one_process(config: TrainConfig) -> TrainConfig:
    """The same training without parallelism: the replicas' sequences in one batch."""
    rows = config.micro_batch * config.layout.dp
    # What stands together is a micro-batch of one replica: experts compete for its tokens, and in
    # a short format it is what is rounded.
    if config.model.experts or config.numbers.scaled:
        return replace(config, layout="dp1", accumulate=config.accumulate * config.layout.dp)
    return replace(config, layout="dp1", micro_batch=rows)


def _rank(config: TrainConfig, fault: Fault | None, about: Mystery) -> RankRecord:
    found = RankRecord()
    observers: list[Observer] = [Keeper(found), *([Injection(fault)] if fault else [])]
    if about.memory:
        observers.append(Weigher(found, config.steps))
    if about.watched:
        observers.append(Probe())
    precision = ScaledPrecision(config, LossScaler(**about.scaler)) if about.scaler else None
    text = open_text(config)
    text._corpus = WithNoise(text._corpus, config.model.seq, about.odd_sequences)
    report = train_rank(config, observers=observers, text=text, precision=precision)
    found.losses, found.norms = report.losses, report.grad_norms
    found.skipped = report.skipped
    return found


class WithNoise:
    """A corpus some of whose sequences are random bytes, as of a file that is compressed."""

    def __init__(self, corpus, seq: int, noise: Sequence[int]):
        self._corpus, self._seq, self._noise = corpus, seq, noise
        self.identity = corpus.identity

    def sequence(self, i: int) -> torch.Tensor:
        if i not in self._noise:
            return self._corpus.sequence(i)
        return torch.randint(256, (self._seq + 1,), generator=torch.Generator().manual_seed(i))


class Keeper(Observer):
    """Keeps a copy of what the rank holds before the first step and after the last one."""

    def __init__(self, found: RankRecord):
        self._found = found

    def start(self, run) -> None:
        self._found.place, self._found.start = (
            dict(comm.mesh().coordinates),
            held(run.parallel.parameters()),
        )

    def gradients(self, run) -> None:
        if run.config.numbers.scaled:
            self._found.scales.append(run.precision.scale)
        layers = expert_layers(run.model)
        if layers:
            self._found.rows.append(sum(layer.router.counts_E for layer in layers).tolist())

    def end(self, run) -> None:
        self._found.end = held(run.parallel.parameters())


class Remains(NamedTuple):
    """What one line's tensors left behind, in a leak finder's words."""

    where: str
    function: str
    nbytes: int
    numbers: int
    """Bytes of the numbers in those tensors over it that somebody in Python holds; 0: autograd."""
    circle: bool


class Weigher(LeakFinder):
    """Weighs what is alive after each step, and finds in the end what outlived its own."""

    def __init__(self, found: RankRecord, steps: int):
        super().__init__(steps, skip=0)
        self._record = found

    def start(self, run) -> None:
        super().start(run)
        self._weigh()

    def step(self, run, report) -> None:
        call_states(self._watch, run.optimizer)
        self._weigh()
        super().step(run, report)

    def _weigh(self) -> None:
        alive: Counter = Counter()
        for _, life in self._watch._lives.values():
            if life.category != "communication":  # the library may let go of it late
                alive[life.category] += life.nbytes
        self._record.memory.append({**alive, "total": alive.total()})

    def _end(self) -> None:
        watch, known = self._watch, Counter()
        for tensor in _held_by_python():
            life = watch._lives.get(tensor.untyped_storage()._cdata, (None, None))[1]
            if life in watch.born and watch.born[life][0] < watch.step - 1:
                known[watch.born[life][1]] += tensor.nbytes
        super()._end()
        self._record.remains += [
            Remains(_short(leak), leak.function, leak.nbytes, known[leak[:3]], leak.circle)
            for leak in self.found
        ]


def _held_by_python() -> list[torch.Tensor]:
    """Tensors that a list, a closure or the like refers to. (The base of a view and what a graph
    keeps have objects in Python, too, which nobody there holds.)"""
    found: dict[int, torch.Tensor] = {}
    for one in gc.get_objects():
        if not issubclass(type(one), torch.Tensor):
            for of in gc.get_referents(one):
                if issubclass(type(of), torch.Tensor):
                    found[id(of)] = of
    return list(found.values())


def _short(leak) -> str:
    """The file from the package on, whoever's disk it is on."""
    return f"{leak.file.rpartition('/picolab/')[2]}:{leak.line}"
