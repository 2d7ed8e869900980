"""Python's garbage collector, by appointment: on all ranks at the same step, or not at all.

Python frees what nobody refers to at once; only what refers to itself in a circle waits for the
collector, which runs when so many objects were made, whenever that is. A full pass looks at every
object of the process: a tenth of a second or more in a rank that has imported torch. While one
rank looks, the others wait in their next collective, and since each looks at a time of its own, a
step of n ranks is held up n times as often as a step of one.

So here it is switched off, and

    after set-up   one full pass, and `gc.freeze`: what is there now will stay, and is not looked at
                   again (a full pass then takes almost nothing)
    every `every`  steps, on all ranks after the same step: the young objects
    a full pass    when any rank has `growth` objects more alive than after its last one: circles
                   that survived a young pass are only found so. All ranks agree, by one number

Twins: torchtitan's `GarbageCollection`, Megatron-LM's `--manual-gc`; both look at a fixed interval,
the first at young objects only, so that a tensor in an old circle is never freed.
"""

import gc

import torch

from picolab import comm
from picolab.monitoring import Observer, events


class GarbageCollector(Observer):
    """Collects after every so many steps, on all ranks.

    With it `gc` is off while a step runs, and passes are at the same steps on all ranks; without
    it, whenever Python likes. `passes` lists (step, "young" or "full", objects found).
    """

    def __init__(self, every: int = 10, growth: int = 10_000):
        for name, value in (("every", every), ("growth", growth)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        self.every, self.growth = every, growth
        self.passes: list[tuple[int, str, int]] = []
        self._alive = 0

    def start(self, run) -> None:
        run.until_end(_Restore())
        gc.collect()
        gc.freeze()
        gc.disable()
        self._alive = len(gc.get_objects())

    def step(self, run, report) -> None:
        self._look(report.step)

    def back(self, run, report) -> None:
        self._look(report.step)

    def _look(self, step: int) -> None:
        if (step + 1) % self.every:
            return
        found = gc.collect(1)
        grown = torch.tensor(len(gc.get_objects()) - self._alive, device=comm.device())
        comm.all_reduce(grown, "world", "gc: objects more than after the last full pass", op="max")
        kind = "full" if grown.item() >= self.growth else "young"
        if kind == "full":
            found += gc.collect()
            self._alive = len(gc.get_objects())
        self.passes.append((step, kind, found))
        events.write("garbage", step=step, kind=kind, objects=found)


class _Restore:
    """Puts the collector back as it was, however a run ends."""

    def __enter__(self) -> None:
        self._was_on, self._had_frozen = gc.isenabled(), gc.get_freeze_count() > 0

    def __exit__(self, *error) -> None:
        gc.unfreeze()
        if self._had_frozen:  # the rank server's modules, which ranks share
            gc.collect()
            gc.freeze()
        if self._was_on:
            gc.enable()
