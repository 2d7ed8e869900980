"""Adaptive precision in a run: the first step is looked at, each later one is watched, and a bad
one is taken back.

    step 0        in fp32; what its products were given decides each layer's format
    each step     loss and norm are known, the update is not made: does any rank object?
        no        the state is good; every so many steps it is kept (snapshot.py)
        yes       all ranks agree on why, and on whom to raise; the state is put back

One number of 8 bytes a step travels for it, as with fp16; more only in the first step and when a
step is bad. Every decision is one that all ranks were told, or would be made alike by all.
"""

import functools
from collections.abc import Mapping

from picolab import comm
from picolab.model import Transformer
from picolab.monitoring import events
from picolab.parallel import ThreeDParallelOptimizer
from picolab.precision.adaptive import AdaptiveMixedPrecision
from picolab.precision.adjuster import Objection
from picolab.specs import TrainConfig
from picolab.training.precision import Precision, agreed
from picolab.training.snapshot import Moment, Snapshot


class AdaptivePrecision(Precision):
    """settings: of `AdaptiveMixedPrecision`."""

    def __init__(self, config: TrainConfig, settings: Mapping[str, object] | None = None):
        self.config = config
        self.settings = {"products": config.products, **(settings or {})}
        self.snapshot = Snapshot()
        self._moment: Moment | None = None
        self._norms: dict[str, float] = {}

    def prepare(self, model: Transformer, parallel: ThreeDParallelOptimizer | None) -> None:
        together = parallel is not None
        self.adaptive = AdaptiveMixedPrecision(
            model,
            self.settings,
            agree=_everybodys if together else lambda value: [value],
            leads=not together or comm.mesh().rank("world") == 0,
            device=comm.device(),
            keep=self.config.layout.zero < 3,
        )
        self.adaptive.look()

    def before_step(self, run) -> None:
        self._moment = Moment.of(run)

    def ready(self, parallel: ThreeDParallelOptimizer) -> bool:
        self._norms = self.adaptive.norms(parallel.parameters())  # before they are clipped
        return True

    def judge(self, run, loss: float, norm: float) -> int | None:
        adaptive = self.adaptive
        objection = adaptive.adjuster.objection(loss, norm)
        if agreed(objection is None):
            self._good(run, loss, norm)
            return None
        why = Objection(*next(of for of in _everybodys(objection) if of is not None))
        moved = adaptive.moved(self._norms)
        answer = adaptive.adjuster.bad(run.step, why, moved, self.snapshot.step)
        adaptive.apply()
        back = self.snapshot.step if answer.action == "go back" else None
        formats = {name: adaptive.adjuster.formats[name] for name in answer.raised}
        _tell("went back", run.step, to=back, why=answer.reason, layers=formats)
        if back is None:
            self._good(run, loss, norm)
            return None
        return self.snapshot.put_back(run)

    def _good(self, run, loss: float, norm: float) -> None:
        adaptive = self.adaptive
        if adaptive.looking:
            chosen = adaptive.decide()
            _tell(
                "precision",
                run.step,
                layers={name: list(choice) for name, choice in chosen.items()},
                sizes={name: of.size for name, of in adaptive.decided.items()},
                numbers={name: of.numbers for name, of in adaptive.decided.items()},
                below_fp32=adaptive.share_below_fp32(),
            )
        kept = self.snapshot.step
        if kept is None or run.step - kept >= adaptive.settings.every:
            self.snapshot.take(run, self._moment)
        adaptive.movements.remember(self._norms)
        for name in adaptive.adjuster.good(run.step, loss, norm):
            adaptive.apply()
            _tell("lowered", run.step, layer=name, format=adaptive.adjuster.formats[name])

    def after_step(self, taken: bool) -> None:
        self.adaptive.forget()

    def memory(self) -> dict[str, int]:
        return {"snapshot": self.snapshot.nbytes}

    def state_dict(self) -> dict:
        return {} if self.adaptive.looking else self.adaptive.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if "decided" in state:  # (else the checkpoint is of another precision's run)
            self.adaptive.load_state_dict(state)


_everybodys = functools.partial(
    comm.all_gather_json, axis="world", reason="precision: what ranks saw"
)


def _tell(kind: str, step: int, **what) -> None:
    if comm.mesh().rank("world") == 0:
        events.write(kind, step=step, **what)
