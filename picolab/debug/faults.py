"""The fault catalogue: ways in which parallel training goes wrong without an error, and where they
were seen.

    pico.verify("dp2tp2", fault="tp-row-output-missing")     one all-reduce less; watch it be named
    faults.table("dp2")                                      what could be switched on in dp2

A fault is switched on inside each rank, before the model is placed, by replacing functions of the
package for the time of the run; the package itself knows of none (no flag, no branch). Most are one
collective treated wrongly, found by the reason that its caller gives, so they need one line:

    reduction("dp-gradients", "dp: gradient bucket", "dp", {"missing": where it was seen})

Those are in reduction_faults.py, ZeRO's in zero_faults.py, those of experts in expert_faults.py,
the others in other_faults.py. To add
one of these: write a generator `(layout)` that patches, yields once and restores, and decorate it
with `@fault(name, what, where_seen, needs)`. tests/distributed/debug/test_faults.py asks of each
that the oracle catches it, and lists which cause it must be given.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from picolab import comm
from picolab.monitoring import Observer
from picolab.parallel import three_d
from picolab.show.table import Table
from picolab.specs import Layout

Treatment = Literal["missing", "doubled", "averaged"]


# What a layout needs for a fault to be possible: in words, as a test, and an example that has it.
_NEEDS: dict[str, tuple[str, Callable[[Layout], bool], str]] = {
    "any": ("nothing", lambda layout: True, "dp1"),
    "dp": ("dp of 2 or more", lambda layout: layout.dp > 1, "dp2"),
    "dp or cp": ("dp or cp of 2 or more", lambda layout: layout.dp * layout.cp > 1, "dp2"),
    "whole gradients": (
        "dp or cp of 2 or more, without ZeRO",
        lambda layout: layout.dp * layout.cp > 1 and not layout.zero,
        "dp2",
    ),
    "whole gradients of dp": (
        "dp of 2 or more, without ZeRO",
        lambda layout: layout.dp > 1 and not layout.zero,
        "dp2",
    ),
    "tp": ("tp of 2 or more", lambda layout: layout.tp > 1, "tp2"),
    "tp without sp": (
        "tp of 2 or more, without sp",
        lambda layout: layout.tp > 1 and not layout.sp,
        "tp2",
    ),
    "sp": ("sp", lambda layout: layout.sp, "tp2sp"),
    "cp": ("cp of 2 or more", lambda layout: layout.cp > 1, "cp2"),
    "cp without dp": (
        "cp of 2 or more and dp of 1",
        lambda layout: layout.cp > 1 and layout.dp == 1,
        "cp2",
    ),
    "pp": ("pp of 2 or more", lambda layout: layout.pp > 1, "pp2"),
    "ep": ("ep of 2 or more", lambda layout: layout.ep > 1, "dp2ep2"),
    "ep without zero": (
        "ep of 2 or more, without ZeRO",
        lambda layout: layout.ep > 1 and not layout.zero,
        "dp2ep2",
    ),
    "ep and tp": (
        "ep and tp of 2 or more",
        lambda layout: layout.ep > 1 and layout.tp > 1,
        "dp2tp2ep2",
    ),
    # (the oracle's model with experts is the one whose heads have norms: awkward.py)
    "norms of heads": (
        "ep and tp of 2 or more",
        lambda layout: layout.ep > 1 and layout.tp > 1,
        "dp2tp2ep2",
    ),
    "ep and cp": (
        "ep and cp of 2 or more",
        lambda layout: layout.ep > 1 and layout.cp > 1,
        "cp2ep2",
    ),
    "several of each expert": (
        "ep of 2 or more, and more ranks of dp or cp than that, without ZeRO",
        lambda layout: layout.ep > 1 and layout.size("edp") > 1 and not layout.zero,
        "dp4ep2",
    ),
    "zero": ("ZeRO over 2 or more replicas", lambda layout: _sharded(layout), "dp2zero1"),
    "zero below 3": (
        "ZeRO 1 or 2 over 2 or more replicas",
        lambda layout: _sharded(layout) and layout.zero < 3,
        "dp2zero1",
    ),
    "zero with shard": (
        "ZeRO with shard groups",
        lambda layout: layout.shard is not None,
        "dp4zero1shard2",
    ),
}


def _sharded(layout: Layout) -> bool:
    return layout.zero > 0 and layout.size(layout.shard_axis) > 1


@dataclass(frozen=True)
class Fault:
    """One way to go wrong. `with fault.applied(layout):` is how long it is at work in this rank."""

    name: str
    what: str
    """What is done wrongly, in a sentence."""
    where_seen: str
    """A public report of it, or of its like."""
    needs: str
    """What a layout must have for it to exist; a key of _NEEDS."""
    applied: Callable[[Layout], AbstractContextManager[None]]

    def applies_to(self, layout: Layout | str) -> bool:
        return _NEEDS[self.needs][1](Layout.parse(layout))

    def check(self, layout: Layout) -> None:
        """ValueError if there is nothing in this layout that could go wrong in this way."""
        if not self.applies_to(layout):
            words, _, example = _NEEDS[self.needs]
            raise ValueError(
                f"the fault {self.name!r} needs {words}, and there is nothing in {layout} that it "
                f"could break; try {example}"
            )


class Injection(Observer):
    """Switches a fault on in a run: from before the model is built until the run is over. That
    replicas start unequal is then not refused: what comes of it is what is to be seen."""

    def __init__(self, fault: Fault):
        self._fault = fault

    def begin(self, run) -> None:
        run.until_end(patched(three_d, "check_same_start", lambda *_: None))
        run.until_end(self._fault.applied(run.config.layout))


CATALOGUE: dict[str, Fault] = {}


def find(fault: str | Fault) -> Fault:
    """By name; a Fault of your own is returned as it is. ValueError, with the names, for another
    word."""
    if isinstance(fault, Fault):
        return fault
    if fault not in CATALOGUE:
        close = difflib.get_close_matches(str(fault), CATALOGUE, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no fault {fault!r}; {hint}faults are {', '.join(CATALOGUE)}")
    return CATALOGUE[fault]


def table(layout: Layout | str | None = None) -> Table:
    """The catalogue, or the part of it that a layout can have."""
    rows = [
        [fault.name, _NEEDS[fault.needs][0], fault.what, fault.where_seen]
        for fault in CATALOGUE.values()
        if layout is None or fault.applies_to(layout)
    ]
    return Table(["fault", "needs", "what is done wrongly", "where it was seen"], rows)


# -- the two ways to make one --


def fault(name: str, what: str, where_seen: str, needs: str):
    """Decorator: a generator that patches, yields once and restores becomes a catalogue entry."""

    def register(patch: Callable[[Layout], Iterator[None]]):
        assert name not in CATALOGUE and needs in _NEEDS, (name, needs)
        applied = contextmanager(patch)
        CATALOGUE[name] = Fault(name, what, where_seen, needs, applied)
        return applied

    return register


@contextmanager
def patched(owner, attribute: str, value) -> Iterator[None]:
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


def treated(reason: str, treatment: Treatment):
    """comm.all_reduce, with one reason's calls missing, done twice, or averaged over the axis."""
    real = comm.all_reduce

    def all_reduce(x, axis, why, op="sum", async_op=False):
        if why != reason:
            return real(x, axis, why, op=op, async_op=async_op)
        if treatment == "missing":
            return comm.Pending(None, x, 0.0, ()) if async_op else x
        if treatment == "doubled":
            real(x, axis, why, op=op)
        else:  # before the sum, since an asynchronous one has not happened when this returns
            x /= comm.mesh().size(axis)
        return real(x, axis, why, op=op, async_op=async_op)

    return all_reduce


def reduction(name: str, reason: str, needs: str, treatments: dict[Treatment, str]) -> None:
    """Entries for one reduction of the training step: name-missing, name-doubled, ..."""
    words = {
        "missing": f"the all-reduce of {reason!r} is left out",
        "doubled": f"the all-reduce of {reason!r} is done twice, the second time on the sums",
        "averaged": f"{reason!r} is divided by the number of ranks, where a sum is meant",
    }
    for treatment, where_seen in treatments.items():

        def patch(layout, treatment=treatment):
            with patched(comm, "all_reduce", treated(reason, treatment)):
                yield

        fault(f"{name}-{treatment}", words[treatment], where_seen, needs)(patch)
