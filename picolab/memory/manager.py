"""A memory budget, kept: measure the blocks, choose, run as chosen.

    pico.train(memory_budget="40MB")            # on each rank, of live tensor bytes

Before the first step each rank runs a step's forward and backward a few times, with all blocks
under one choice at a time, once under a `Watch` (bytes) and twice without (seconds). It takes no
update and the text stays where it was, so the run's numbers are those of a run without a budget.
The bytes of each block follow from where the pass was when: a block's `kept` is what is alive at
the beginning of the next one less what was at its own, its `work` the most while it runs.

Ranks of one stage of a pipeline go through the same collectives, so they need the same plan, and
get it from the largest numbers of all of them. Stages may differ. What the first steps do not have
yet is added: the optimizer's moments, and, where micro-batches are accumulated, the gradients that
the earlier ones leave.

What gloo may let go of late is added (`let_go_late`), and what a pipeline sends, for each
micro-batch, since it is waited for at the end of the step. Experts on other ranks get as many rows
as tokens choose them: there a share of what blocks take (`EXPERTS_MARGIN`) is left free.

Refused, with what would work: a budget below the least, on one stage or on all; schedules that keep
tensors beyond a backward, or have several stages a rank; a precision that changes as it goes.
"""

import functools
import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from picolab import comm, costs
from picolab.memory.monitor import RunWatch
from picolab.memory.offload import Offload, far_file
from picolab.memory.pool import MemoryPool
from picolab.memory.prediction import boundary_bytes
from picolab.memory.scheduler import (
    BlockRunner,
    Choice,
    Contexts,
    Cost,
    Measured,
    MemoryPlan,
    MemoryScheduler,
    whole_block,
)
from picolab.memory.watch import Life, Watch
from picolab.monitoring import Observer, events
from picolab.show.table import bytes_text
from picolab.specs.train_config import check_budget

EXPERTS_MARGIN = 0.15
FAR_CAP = 1 << 40
GLOO_THREADS = 2
"""Of each process group (torch's default)."""
LAST_CALLS = 16
"""While one thread waits for the core, so many may be the other one's; more is a long wait."""
TIMED = 2
AT_LEAST = {"keep": 0.0, "selective": 0.05, "mlp": 0.25, "recompute": 0.5, "offload": 0.05}
"""Of a block's forward, what a choice takes longer, whatever a busy machine's clock says: nothing
is free, and to compute again is to compute, but for the last product."""


class SmartMemoryManager(Observer):
    """Keeps a run's live tensor bytes within a budget, on every rank.

    budget: bytes; of a rank. contexts: see `BlockRunner`. folder: where the far memory of a CPU
    lies. With it a run's peak is below the budget; without it, what keeping everything takes.
    """

    def __init__(
        self,
        budget: int,
        *,
        contexts: Callable[[nn.Module], Contexts | None] = whole_block,
        folder: str | Path | None = None,
    ):
        self.budget, self._contexts, self._folder = budget, contexts, folder
        self.plan: MemoryPlan | None = None
        self._made: dict[str, int] = {}  # slabs of each pool after two steps

    def start(self, run) -> None:
        gc.collect()
        check_budget(run.config)
        on_cpu = run.device.type == "cpu"
        near = MemoryPool(FAR_CAP) if on_cpu else None
        far = far_file(FAR_CAP, self._folder) if on_cpu else MemoryPool(FAR_CAP)
        stays = [of for of in run.parallel.held() if not of.is_meta]  # parameters, whole or not
        self.offload = Offload(far, near, stays)
        choices = choices_of(run.config)
        # What ZeRO packs for the other ranks, in the same memory each step.
        self.buckets = MemoryPool(FAR_CAP)
        if on_cpu:
            run.parallel.use_buffers(self.buckets.like)
        measured = measure(run, choices, self._runner(run), near)
        stages = agreed(measured, run)
        schedulers = [MemoryScheduler(stage) for stage in stages]
        check_possible(schedulers, self.budget)
        mine = schedulers[comm.mesh().rank("pp")]
        self.plan = mine.choose(self.budget)
        if near is not None and "offload" in self.plan.choices:
            near.cap = max(near.held, near.least)
        elif near is not None:
            near.empty()
        run.model.run_block = self._runner(run)(self.plan.choices)
        events.write(
            "memory plan",
            budget=self.budget,
            choices=list(self.plan.choices),
            peak=self.plan.peak,
            seconds=self.plan.seconds,
            least=max(scheduler.least for scheduler in schedulers),
            frontier=[[plan.peak, plan.seconds, list(plan.choices)] for plan in mine.frontier],
            blocks=[
                {choice: list(cost) for choice, cost in of.items()} for of in mine.measured.blocks
            ],
        )

    def step(self, run, report) -> None:
        if report.step == run.first_step + 1:
            self._made = {name: pool.made for name, pool in self._pools().items()}

    def end(self, run) -> None:
        self.offload.close()
        for name, pool in self._pools().items():
            if pool.lent:
                late = pool.made - self._made.get(name, pool.made)
                events.write("pool", name=name, late=late, **pool.told())

    def _pools(self) -> dict[str, MemoryPool]:
        pools = {"near": self.offload.near, "far": self.offload.far, "buckets": self.buckets}
        return {name: pool for name, pool in pools.items() if pool is not None}

    def _runner(self, run) -> Callable[..., BlockRunner]:
        return functools.partial(
            BlockRunner, run.model, contexts=self._contexts, offload=self.offload
        )


def choices_of(config) -> tuple[Choice, ...]:
    """Where results of operators are kept, a collective inside a block changes one in place, behind
    autograd's back: these choices are for blocks without any."""
    layout = config.layout
    alone = layout.tp == layout.cp == layout.ep == 1 and layout.zero < 3
    return ("keep", *(["selective", "mlp"] if alone else []), "recompute", "offload")


def check_possible(schedulers: Sequence[MemoryScheduler], budget: int) -> None:
    """ValueError, the same on all ranks, names the stages of the pipeline that have no plan."""
    least = [scheduler.least for scheduler in schedulers]
    over = [stage for stage, nbytes in enumerate(least) if nbytes > budget]
    if over:
        where = ""
        if len(least) > 1:
            which = "every stage" if len(over) == len(least) else f"stage {_listed(over)}"
            needed = _listed(map(bytes_text, least))
            where = f" on {which} of the pipeline (the stages need {needed})"
        raise ValueError(
            f"a memory budget of {bytes_text(budget)} cannot be kept{where}: the least that works "
            f"is {bytes_text(max(least))} ({max(least):,} bytes); give at least that, a smaller "
            "micro_batch, or more ranks to share the model"
        )


def agreed(mine: Measured, run) -> list[Measured]:
    """Of each stage of the pipeline, the largest numbers of its ranks."""
    told = {
        "stage": comm.mesh().rank("pp"),
        "blocks": [[[choice, *cost] for choice, cost in of.items()] for of in mine.blocks],
        **{name: getattr(mine, name) for name in ("end", "ends", "rest", "pool", "in_flight")},
    }
    everybody = comm.all_gather_json(told, "world", "memory: what blocks take")
    found = []
    for stage in range(run.config.layout.pp):
        ranks = [one for one in everybody if one["stage"] == stage]
        blocks = []
        for of in zip(*(one["blocks"] for one in ranks)):
            costs_of = {}
            for same in zip(*of):
                kept, work, seconds = (max(numbers) for numbers in zip(*(s[1:] for s in same)))
                costs_of[same[0][0]] = Cost(kept, work, seconds)
            blocks.append(costs_of)
        most = {name: max(one[name] for one in ranks) for name in told if name not in _OTHER}
        found.append(Measured(tuple(blocks), **most))
    return found


_OTHER = ("stage", "blocks")


# -- measuring


def measure(
    run,
    choices: Sequence[Choice],
    runner: Callable[..., BlockRunner],
    near: MemoryPool | None,
) -> Measured:
    """What this rank's blocks take under each choice."""
    before, blocks = run.model.run_block, len(run.model.layers)
    batch = _look(run)
    found: dict[Choice, tuple[list[int], list[int], list[float]]] = {}
    end = ends = rest = 0
    try:
        for choice in choices:
            clock = _Clock(blocks)
            run.model.run_block = runner([choice] * blocks, listen=clock)
            _pass(run, batch)  # makes what is made once: buffers, tables, working copies
            clock.spans.clear()
            for _ in range(TIMED):
                _pass(run, batch)
            with comm.unhurried(), RunWatch(run) as watch:
                marks = _Marks(watch)
                run.model.run_block = runner([choice] * blocks, listen=marks)
                watch.mark("begin")
                _pass(run, batch, watch)
            seen = _Seen(watch, _missing(run), _held(near) if choice == "offload" else 0)
            kept, work = seen.blocks(blocks)
            found[choice] = kept, work, clock.seconds()
            if choice == "keep":
                forward = clock.seconds("forward")
            if choice == "keep":
                end, ends, rest = seen.end(blocks), seen.ends(blocks), seen.rest(blocks)
                sent = _sent(run.config)
    finally:
        run.model.run_block = before
        run.parallel.zero_grad()
    margin = EXPERTS_MARGIN if run.config.layout.ep > 1 else 0.0
    plain = found["keep"][2]
    return Measured(
        blocks=tuple(
            {
                choice: Cost(
                    round(kept[i] * (1 + margin)),
                    round(work[i] + margin * found["keep"][0][i]) + sent,
                    max(AT_LEAST[choice] * forward[i], seconds[i] - plain[i]),
                )
                for choice, (kept, work, seconds) in found.items()
            }
            for i in range(blocks)
        ),
        end=end + sent,
        ends=ends,
        rest=rest + sent,
        pool=_held(near),
        in_flight=_in_flight(run.config),
    )


def _sent(config) -> int:
    """What the other micro-batches have sent to the stages beside this one. (gloo does not say that
    a send is over before it is waited for, and that is at the end of the step.)"""
    if config.layout.pp == 1:
        return 0
    place, last = comm.mesh().rank("pp"), config.layout.pp - 1
    return (config.accumulate - 1) * boundary_bytes(config) * ((place > 0) + (place < last))


def _held(pool: MemoryPool | None) -> int:
    return 0 if pool is None else pool.held


def _in_flight(config) -> int:
    layout = config.layout
    if layout.pp == 1:
        return 1
    return costs.in_flight(layout.schedule, layout.pp, config.accumulate, comm.mesh().rank("pp"))


def _look(run) -> tuple[torch.Tensor, torch.Tensor]:
    """A micro-batch of the next step, which stays the next; behind it lies the text of all of it,
    as in a step."""
    mesh, config, position = comm.mesh(), run.config, run.text.position
    both = run.text.batch(
        dp_rank=mesh.rank("dp"), dp_size=mesh.size("dp"), micro_batch=config.micro_batch,
        accumulate=config.accumulate,
    )  # fmt: skip
    run.text.position = position
    return tuple(of.to(run.device)[:1] for of in both)


def _pass(run, batch, watch: RunWatch | None = None) -> None:
    """A step without its update: all that a step has alive, but for the moments."""
    run.parallel.zero_grad()
    run.parallel.forward_backward(*batch, scale=run.precision.scale)
    run.parallel.grad_norm()
    run.parallel.after_load()  # gathers what an update would
    if watch is not None:
        watch.mark("over")
    run.parallel.zero_grad()


def _missing(run) -> "_Missing":
    stepped = [p for p in run.parallel.parameters() if p.requires_grad]
    moments = sum(2 * p.nbytes + 4 for p in stepped if p not in run.optimizer.state)
    return _Missing(moments, _whole_gradients(run.config) if run.config.accumulate > 1 else 0)


def _whole_gradients(config) -> int:
    """What earlier micro-batches leave, whole whatever stage of ZeRO cuts it later. (Not to be
    asked of tensors: parameters of ZeRO 3 have no memory now.)"""
    here = costs.local_parameters(
        config.model, config.layout, dist.get_rank(), expert_copies=config.expert_copies
    )
    return sum(p.numel for p in here) * costs.dtype_bytes(config.numbers.parameters)


class _Missing:
    """What the measured step lacks of a later one."""

    def __init__(self, moments: int, gradients: int):
        self.moments, self.gradients = moments, gradients


_STAY = ("parameters", "gathered", "copies", "gradients", "optimizer", "pool")
"""Memory that is there anyway, or goes when it is told to, whoever still knows of it."""


def let_go_late(watch: Watch) -> list[int]:
    """After each change, what gloo may hold of collectives that are over.

    Each group has `GLOO_THREADS` threads. One that has worked off a call wakes whoever waits for
    it, and lets go of the call's tensors, given and filled, when it has the core again; the next
    calls are the other one's. So it is the largest two of the last calls, as far as nobody else
    still has their tensors. (Of this pass: those of the step before are long gone when a peak is
    near. Other backends have no such threads; for them it is room to spare.)
    """
    died = {life: at for at, (life, grown, _, _) in enumerate(watch.changes) if grown < 0}
    last: dict[str, deque[dict[Life, int]]] = {}
    found, calls = [], deque(watch.collectives)
    for at in range(len(watch.changes)):
        while calls and calls[0][1] <= at:
            group, _, given = calls.popleft()
            last.setdefault(group, deque(maxlen=LAST_CALLS)).append(
                {life: of for life, of in given.items() if life.category not in _STAY}
            )
        held = 0
        for given in last.values():
            over = [
                sum(of for life, of in one.items() if died.get(life, at + 1) <= at) for one in given
            ]
            held += sum(sorted(over)[-GLOO_THREADS:])
        found.append(held)
    return found


class _Clock:
    """Listens to a `BlockRunner`: seconds of each block, forward and backward."""

    def __init__(self, blocks: int):
        self.spans: list[tuple[str, int, float]] = []
        self._blocks = blocks

    def __call__(self, where: str, block: int) -> None:
        self.spans.append((where, block, time.perf_counter()))

    def seconds(self, *of: str) -> list[float]:
        """Of each block the least of its passes: of both directions, or of one."""
        found: dict[tuple[str, int], list[float]] = {}
        for (where, block, began), (_, _, ended) in pairwise(self.spans):
            if where != "after" and block >= 0:
                found.setdefault((where, block), []).append(ended - began)
        both = of or ("forward", "backward")
        return [sum(min(found[where, i]) for where in both) for i in range(self._blocks)]


class _Marks:
    """Listens to a `BlockRunner`, for a watch."""

    def __init__(self, watch: RunWatch):
        self._watch = watch

    def __call__(self, where: str, block: int) -> None:
        if where == "after":  # once the caller has let the block's input go
            self._watch.mark_soon(f"after {block}")
        else:
            self._watch.mark(f"{where} {block}")


class _Seen:
    """Bytes of a watched pass, between its marks."""

    def __init__(self, watch: RunWatch, missing: _Missing, pool: int):
        self._at = dict(watch.marks)
        self._phases = [phase for _, _, phase, _ in watch.changes]
        gradients = [alive["gradients"] for alive, _, _ in watch.by_category()]
        add = missing.moments - pool
        self._totals = [
            total + add + max(0, missing.gradients - of)
            for total, of in zip(watch.totals, gradients)
        ]
        self._with_late = [total + late for total, late in zip(self._totals, let_go_late(watch))]

    def blocks(self, n: int) -> tuple[list[int], list[int]]:
        """kept and work of each."""
        kept, work = [], []
        for i in range(n):
            after = f"forward {i + 1}" if i + 1 < n else f"after {i}"
            kept.append(self._live(after) - self._live(f"forward {i}"))
        for i in range(n):
            after = f"forward {i + 1}" if i + 1 < n else f"after {i}"
            done = f"backward {i - 1}" if f"backward {i - 1}" in self._at else "over"
            most = max(self._most(f"forward {i}", after), self._most(f"backward {i}", done))
            work.append(most - sum(kept[:i]))
        return kept, work

    def end(self, n: int) -> int:
        kept, _ = self.blocks(n)
        return self._most(f"after {n - 1}", f"backward {n - 1}") - sum(kept)

    def ends(self, n: int) -> int:
        """At the last moment before backward: the loss's are still there, of a stage that has it,
        and with all forwards first they wait with the rest."""
        kept, _ = self.blocks(n)
        after = self._at[f"after {n - 1}"]
        begins = self._phases.index("backward", after)
        return max(0, self._totals[begins - 1] - self._live("begin") - sum(kept))

    def rest(self, n: int) -> int:
        first = self._most("begin", "forward 0")
        done = "backward -1" if "backward -1" in self._at else "over"
        return max(first, self._most(done, "over"))

    def _live(self, mark: str) -> int:
        return self._totals[self._at[mark]]

    def _most(self, begin: str, end: str) -> int:
        return max(self._with_late[self._at[begin] : self._at[end] + 1])


def _listed(of: Iterable) -> str:
    return ", ".join(map(str, of))
