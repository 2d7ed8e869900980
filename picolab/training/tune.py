"""Which layout is fastest here? The planner proposes, short real runs decide: `pico.tune`.

    1  the planner judges every layout of so many ranks, with the rates that this machine was
       measured to reach, and the few with the shortest predicted step contend
    2  successive halving (Jamieson and Talwalkar, arXiv 1502.07943): each contender runs a few real
       steps, the faster half goes on and runs twice as many, until one is left
    3  that one and the default layout run again, in turns, five times each; the median decides, and
       the default is the answer unless it is beaten

So the answer is never slower than the default by these measurements, and where time runs out before
the last comparison is whole, the default is the answer. All contenders compute the same step: the
same model, the same global batch.

A trial is one line in `trials.jsonl` of the folder, on the disk as soon as the run is over. Whoever
gives the folder again goes on where it stopped, after an interrupt, a kill or the end of the
budget. Leaves out: the number of ranks and the sizes of the model, which are the question.
"""

import math
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from picolab import launch
from picolab.launch import RankFailure
from picolab.planner import PRACTICES
from picolab.planner.costing import Candidate, Costing
from picolab.planner.request import Request
from picolab.planner.search import search
from picolab.planner.verdict import cuts
from picolab.specs import Hardware, Layout, ModelConfig, TrainConfig, assemble
from picolab.training.measure import measure
from picolab.training.progress import Bar
from picolab.training.start import train
from picolab.training.tune_log import Contender, Question, Trial, TuneLog
from picolab.training.tune_result import TuneResult

CONTENDERS = 8
"""that the planner proposes, beside the default"""
STEPS = 3
"""of a trial in the first round, the first of them to warm up; each round doubles the others"""
FINALS = 5
"""runs of each of the last two"""
_FINAL_STEPS = 3


def _nothing() -> None:
    """What the first ranks do."""


class _OutOfTime(Exception):
    """The next trial would not end within the budget, or the last one did not."""


def tune(
    model: ModelConfig | str = "tiny",
    world: int = 4,
    budget: float | str = "60s",
    *,
    global_batch: int | None = None,
    default: Layout | str | None = None,
    data: str | Path = "stdlib",
    hardware: Hardware | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    **shape,
) -> TuneResult:
    """The fastest layout of `world` ranks on this machine, with the evidence.

        best = pico.tune("tiny", world=4, budget="60s")
        pico.train(**best.settings, steps=100)

    budget        seconds for all of it, or "60s", "2m"
    global_batch  sequences of a step; None: 8 a rank
    default       the layout to beat; None: all ranks on dp
    hardware      measured rates; None: they are measured first, which takes some seconds of the
                  budget
    folder        where trials are kept; one that has trials of the same question is gone on with.
                  None: a new folder
    shape         the model's, where it is not its own: hidden=256, layers=8, ...

    Raises ValueError for what cannot be run.
    """
    until = time.monotonic() + seconds_of(budget)
    config = assemble(model=model, data=data, **shape)
    if not isinstance(world, int) or isinstance(world, bool) or world < 1:
        raise ValueError(f"world is {world!r}; it is a number of ranks, 1 or more")
    batch = 8 * world if global_batch is None else global_batch
    usual = Layout(dp=world) if default is None else Layout.parse(default)
    usual.check_world(world)
    question = Question.of(config, world, batch, usual)
    _check_default(config, question, usual)
    log = TuneLog.open(folder, question)
    try:
        if not log.contenders:
            found = hardware or measure(
                config.model, micro_batch=_micro_batch(batch, usual), precision=config.precision
            )
            log.propose(_contenders(config, question, usual, found))
        return _Tuning(config, log, until, progress).run()
    except KeyboardInterrupt:
        print(
            f"tune: interrupted; {len(log.trials)} trials are kept, go on with folder={log.folder}",
            file=sys.stderr,
        )
        raise


def seconds_of(budget: float | str) -> float:
    """ "60s" and "2m" as seconds; ValueError for what is no time."""
    found = re.fullmatch(r"(\d+\.?\d*) ?(s|m|min)?", str(budget).strip())
    if isinstance(budget, bool) or not found or not float(found[1]) > 0:
        raise ValueError(f"budget is {budget!r}; it is a time, such as 60s or 2m")
    return float(found[1]) * (60 if (found[2] or "s").startswith("m") else 1)


def _micro_batch(batch: int, layout: Layout) -> int:
    return math.gcd(4, batch // layout.dp)


def _check_default(config: TrainConfig, question: Question, usual: Layout) -> None:
    batch = question.global_batch
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"global_batch is {batch!r}; it is a whole number of 1 or more")
    if batch % usual.dp:
        raise ValueError(
            f"the default layout {usual} cannot share {batch} sequences evenly; take a multiple of "
            f"{usual.dp}, or another default"
        )
    _settings(config, question, Contender(str(usual), _micro_batch(batch, usual), 0.0))


def _practice(config: TrainConfig, hardware: Hardware) -> str | None:
    """Bytes and rates of the precision that is trained in."""
    name = f"picolab-{config.precision}"
    return name if hardware.measured and name in PRACTICES else None


def _contenders(
    config: TrainConfig, question: Question, usual: Layout, hardware: Hardware
) -> list[Contender]:
    """The default first, then what the planner finds fastest."""
    request = Request(
        model=config.model,
        gpus=question.world,
        hardware=hardware,
        global_batch=question.global_batch,
        practice=_practice(config, hardware),
    )
    costing = Costing(request)
    size = _micro_batch(question.global_batch, usual)
    if size not in cuts(costing, usual):
        raise ValueError(f"the default layout {usual} cannot be cut into micro-batches of {size}")
    seconds = sum(costing.seconds(Candidate(usual, size, "none")).values())
    found = [Contender(str(usual), size, seconds)]
    for verdict in search(request).living:
        layout, micro_batch, recompute = verdict.candidate
        contender = Contender(str(layout), micro_batch, verdict.step_s)
        if recompute != "none" or contender[:2] == found[0][:2]:
            continue
        try:
            _settings(config, question, contender)
        except ValueError:  # the planner knows more layouts than the trainer runs
            continue
        found.append(contender)
        if len(found) > CONTENDERS:
            break
    return found


def _settings(config: TrainConfig, question: Question, contender: Contender) -> dict:
    """What `pico.train` is given for it. ValueError if that cannot be trained."""
    layout = Layout.parse(contender.layout)
    accumulate = question.global_batch // (layout.dp * contender.micro_batch)
    settings = dict(
        model=config.model,
        layout=contender.layout,
        micro_batch=contender.micro_batch,
        accumulate=accumulate,
        data=config.data,
    )
    TrainConfig(**settings)
    return settings


@dataclass
class _Tuning:
    """The rounds, over what is in the log already."""

    config: TrainConfig
    log: TuneLog
    until: float
    progress: bool
    warm: bool = False

    def run(self) -> TuneResult:
        challengers = range(1, len(self.log.contenders))
        total = 1 + 2 * FINALS
        left = len(challengers)
        while left > 1:
            total, left = total + left, -(-left // 2)
        finalist, whole, compared = None, False, False
        with Bar(total=total, desc="tune", unit="trial", disable=not self.progress) as self.bar:
            try:
                self._trial(0, 0, STEPS)
                finalist, whole = self._halve(list(challengers))
                compared = finalist is not None and self._final(finalist)
            except _OutOfTime:
                whole = False
        settings = [_settings(self.config, self.log.question, c) for c in self.log.contenders]
        return TuneResult(self.log, settings, finalist, compared, whole)

    def _halve(self, alive: list[int]) -> tuple[int | None, bool]:
        """Who is left, and whether nobody was left out for want of time."""
        whole, number, steps = True, 0, STEPS
        while alive:
            times: dict[int, float] = {}
            for i in alive:
                try:
                    trial = self._trial(number, i, steps)
                except _OutOfTime:
                    whole = False
                    break
                if trial.seconds is not None:
                    times[i] = trial.seconds
            if not times and number and not whole:
                return min(alive, key=lambda i: self.log.halving(i)[-1].seconds), False
            if not times and not whole:
                return None, False
            # Who had no turn in this round is behind those who had one.
            alive = sorted(times, key=times.get)[: -(-len(alive) // 2)]
            if len(alive) == 1 or not whole:
                return alive[0], whole
            number, steps = number + 1, 2 * (steps - 1) + 1
        return None, whole

    def _final(self, finalist: int) -> bool:
        """Both in turns; whether none of these runs failed."""
        for turn in range(FINALS):
            # Who is first changes, so that neither always has the warmer machine.
            for i in (0, finalist) if turn % 2 == 0 else (finalist, 0):
                if self._trial(-finalist, i, _FINAL_STEPS, turn).seconds is None:
                    return False
        return True

    def _trial(self, number: int, i: int, steps: int, turn: int = 0) -> Trial:
        """From the log, or run and written there."""
        known = self.log.find(number, i, turn)
        if known is None:
            if not self.warm:  # the first ranks wait for torch, and that is no part of a trial
                launch.run(_nothing, world_size=self.log.question.world, quiet=True)
                self.warm = True
            self._check_time(number)
            contender = self.log.contenders[i]
            left = self.until - time.monotonic()
            self.bar.set_postfix_str(f"{contender.layout}, {left:.0f} s left")
            began = time.monotonic()
            seconds, error = self._measured(contender, steps, number, i, turn)
            known = Trial(number, i, turn, steps, seconds, time.monotonic() - began, error)
            self.log.add(known)
        self.bar.update()
        return known

    def _check_time(self, number: int) -> None:
        """Is there time for this trial, and until the last comparison has begun for all of that?"""
        walls = [trial.wall_s for trial in self.log.trials]
        begun = number < 0 and self.log.find(number, 0, 0) is not None
        count = 1 if begun or not walls else 2 * FINALS + (number >= 0)
        needed = count * (statistics.median(walls) if walls else 0.0)
        if time.monotonic() + needed > self.until:
            raise _OutOfTime

    def _measured(
        self, contender: Contender, steps: int, number: int, i: int, turn: int
    ) -> tuple[float | None, str | None]:
        """The median step without the first, or what went wrong."""
        name = f"{'final' if number < 0 else f'round{number}'}-{i}-{turn}-{contender.layout}"
        job = train(
            **_settings(self.config, self.log.question, contender),
            steps=steps,
            wait=False,
            progress=False,
            run_dir=self.log.folder / "runs" / re.sub(r"[^A-Za-z0-9.-]+", "-", name),
        )
        try:
            while not job.done and time.monotonic() < self.until:
                time.sleep(0.02)
            if not job.done:
                job.stop()
                raise _OutOfTime
            return statistics.median(job.result().step_s[1:]), None
        except KeyboardInterrupt:
            job.stop()
            raise
        except RankFailure as error:
            return None, error.headline()
