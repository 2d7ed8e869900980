"""Wrong answers to memory.collect.aligned, what each author must be told, and right ones."""

import contextlib
import gc

import torch
import torch.distributed as dist

from picolab import comm
from picolab.chapters.c05_memory.collect_aligned import solution


def _agreed(grown, op="max", axis="world"):
    return comm.all_reduce(torch.tensor(grown), axis, "gc: grown", op=op).item()


def _alive():
    return len(gc.get_objects())


def _steps(
    step,
    steps,
    every,
    growth,
    *,
    agreed=_agreed,
    collect=gc.collect,
    first=gc.collect,
    off=gc.disable,
    again=lambda before: _alive(),
    due=lambda i, every: (i + 1) % every == 0,
    asks=lambda grown, growth: grown >= growth,
    on=lambda was_on: gc.enable() if was_on else None,
    measure=_alive,
    name=lambda i: i,
):
    """The solution, with one thing to be done otherwise."""
    passes, was_on = [], gc.isenabled()
    off()
    try:
        first()
        alive = measure()
        for i in range(steps):
            step(i)
            if due(i, every):
                now = measure()
                if asks(agreed(now - alive), growth):
                    collect()
                    alive = again(now) if again is not None else alive
                    passes.append(name(i))
    finally:
        on(was_on)
    return passes


def each_for_itself(step, steps, every, growth):
    """All are asked, and nobody listens."""

    def agreed(grown):
        _agreed(grown)
        return grown

    return _steps(step, steps, every, growth, agreed=agreed)


def back_on_at_the_end_alone(step, steps, every, growth):
    """Without `finally`."""
    was_on = gc.isenabled()
    passes = _steps(step, steps, every, growth, on=lambda was_on: None)
    if was_on:
        gc.enable()
    return passes


def says_nothing(step, steps, every, growth):
    return _steps(step, steps, every, growth, agreed=lambda grown: grown)


def by_the_mean(step, steps, every, growth):
    def agreed(grown):
        return _agreed(grown, "sum") / dist.get_world_size()

    return _steps(step, steps, every, growth, agreed=agreed)


def by_the_sum(step, steps, every, growth):
    return _steps(step, steps, every, growth, agreed=lambda grown: _agreed(grown, "sum"))


def by_the_least(step, steps, every, growth):
    return _steps(step, steps, every, growth, agreed=lambda grown: _agreed(grown, "min"))


def over_dp_alone(step, steps, every, growth):
    return _steps(step, steps, every, growth, agreed=lambda grown: _agreed(grown, "max", "dp"))


def young_ones(step, steps, every, growth):
    return _steps(step, steps, every, growth, collect=lambda: gc.collect(1))


def compares_with_the_beginning(step, steps, every, growth):
    return _steps(step, steps, every, growth, again=None)


def counts_before_the_pass(step, steps, every, growth):
    return _steps(step, steps, every, growth, again=lambda before: before)


def at_a_fixed_interval(step, steps, every, growth):
    """As others do: whether there is garbage or not."""
    return _steps(step, steps, every, growth, asks=lambda grown, growth: True)


def looks_after_each_step(step, steps, every, growth):
    return _steps(step, steps, every, growth, due=lambda i, every: True)


def looks_a_step_late(step, steps, every, growth):
    return _steps(step, steps, every, growth, due=lambda i, every: i > 0 and i % every == 0)


def no_first_pass(step, steps, every, growth):
    return _steps(step, steps, every, growth, first=lambda: None)


def never_off(step, steps, every, growth):
    return _steps(step, steps, every, growth, off=lambda: None)


def always_on_afterwards(step, steps, every, growth):
    return _steps(step, steps, every, growth, on=lambda was_on: gc.enable())


def never_on_again(step, steps, every, growth):
    return _steps(step, steps, every, growth, on=lambda was_on: None)


def on_between_steps(step, steps, every, growth):
    """Off only while a step runs: what is due then comes at once, on each rank at its own time."""

    def one(i):
        gc.disable()
        try:
            step(i)
        finally:
            gc.enable()
        for _ in range(2000):
            [[]].copy()
        [[] for _ in range(2000)]

    return _steps(one, steps, every, growth)


def swallows_what_is_raised(step, steps, every, growth):
    with contextlib.suppress(BaseException):
        return _steps(step, steps, every, growth)


def catches_exceptions_alone(step, steps, every, growth):
    """`except Exception`: and the stop button is none."""
    was_on = gc.isenabled()
    try:
        passes = _steps(step, steps, every, growth, on=lambda was_on: None)
    except Exception:
        gc.enable() if was_on else None
        raise
    gc.enable() if was_on else None
    return passes


def as_rank_0_says(step, steps, every, growth):
    """All alike, and by one rank's garbage."""

    def agreed(grown):
        said = torch.tensor(grown)
        dist.broadcast(said, 0)
        return said.item()

    return _steps(step, steps, every, growth, agreed=agreed)


def by_the_tracked_counts(step, steps, every, growth):
    """`gc.get_count()` is of young objects, and starts anew with each pass."""
    return _steps(step, steps, every, growth, measure=lambda: gc.get_count()[2])


def counted_from_one(step, steps, every, growth):
    return _steps(step, steps, every, growth, name=lambda i: i + 1)


def how_many(step, steps, every, growth):
    return len(solution(step, steps, every, growth))


def more_than_growth(step, steps, every, growth):
    """Twice as patient as asked."""
    return _steps(step, steps, every, 2 * growth)


def exactly_so_many_is_too_few(step, steps, every, growth):
    return _steps(step, steps, every, growth, asks=lambda grown, growth: grown > growth)


def counted_before_the_first_pass(step, steps, every, growth):
    before = _alive()
    counts = iter([before])
    return _steps(step, steps, every, growth, measure=lambda: next(counts, None) or _alive())


def rounded_on_its_way(step, steps, every, growth):
    def agreed(grown):
        return comm.all_reduce(torch.tensor(grown).bfloat16(), "world", "gc: grown", op="max")

    return _steps(step, steps, every, growth, agreed=agreed)


def against_the_least(step, steps, every, growth):
    """What a count fell to, without a pass, is what the next one is compared with."""
    least = []

    def measure():
        least.append(_alive())
        return least[-1]

    def agreed(grown):
        low = min(least[:-1])
        found = _agreed(least[-1] - low)
        if found >= growth:
            least.clear()
        return found

    def again(before):
        return measure()

    return _steps(step, steps, every, growth, measure=measure, agreed=agreed, again=again)


def freezes(step, steps, every, growth):
    def first():
        gc.collect()
        gc.freeze()

    return _steps(step, steps, every, growth, first=first)


def gathers_all(step, steps, every, growth):
    """Right, and every rank gets every rank's number."""

    def agreed(grown):
        found = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(found, torch.tensor([grown]))
        return int(max(found))

    return _steps(step, steps, every, growth, agreed=agreed)


MUTANTS = {
    each_for_itself: "all ranks have to decide alike",
    back_on_at_the_end_alone: "since the step raised: `finally`",
    says_nothing: "all ranks have to decide alike",
    by_the_mean: "by the mean over the ranks",
    by_the_sum: "by the sum over the ranks",
    by_the_least: "by the smallest of the ranks",
    over_dp_alone: "should be after",
    young_ones: "looks at young objects only",
    compares_with_the_beginning: "compare with after the last full pass",
    counts_before_the_pass: "compare with what is alive after it",
    at_a_fixed_interval: "and should be after",
    looks_after_each_step: "after every `every` steps",
    looks_a_step_late: "and should be after",
    no_first_pass: "one full pass is asked for",
    never_off: "is switched on while the steps",
    always_on_afterwards: "who had switched it off wants it off",
    never_on_again: "and is off afterwards",
    on_between_steps: "young objects only",
    swallows_what_is_raised: "has to go on to the caller",
    catches_exceptions_alone: "a run that is stopped",
    as_rank_0_says: "should be after",
    by_the_tracked_counts: "and should be after",
    counted_from_one: "the list of the steps after which there was a full pass",
    how_many: "the list of the steps after which there was a full pass",
    more_than_growth: "and should be after",
    gathers_all: "allowed are all-reduces",
    exactly_so_many_is_too_few: "exactly `growth` more is enough",
    counted_before_the_first_pass: "before the first pass",
    rounded_on_its_way: "rounded on their way",
    against_the_least: "a count that fell",
    freezes: "it freezes objects",
}


def with_a_context_manager(step, steps, every, growth):
    @contextlib.contextmanager
    def off():
        was_on = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            (gc.enable if was_on else gc.disable)()

    passes = []
    with off():
        gc.collect()
        before = _alive()
        for begin in range(0, steps, every):
            for i in range(begin, min(begin + every, steps)):
                step(i)
            if begin + every > steps:
                break
            flag = torch.tensor([float(_alive() - before >= growth)])
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            if flag.item():
                gc.collect()
                before = _alive()
                passes.append(begin + every - 1)
    return passes


def by_a_name_of_its_own(step, steps, every, growth, objects=gc.get_objects):
    """`from gc import get_objects`, and a vote of one byte."""
    was_on, found = gc.isenabled(), []
    try:
        gc.disable()
        gc.collect()
        most = len(objects()) + growth
        for i in range(steps):
            step(i)
            if i % every < every - 1:
                continue
            vote = torch.tensor(len(objects()) >= most, dtype=torch.uint8)
            if comm.all_reduce(vote, "world", "gc: a vote", op="max"):
                gc.collect()
                most = len(objects()) + growth
                found.append(i)
    finally:
        (gc.enable if was_on else gc.disable)()
    return found


def as_an_object(step, steps, every, growth):
    class Collector:
        def __init__(self):
            self.passes, self.on = [], gc.isenabled()
            gc.disable()

        def full(self):
            gc.collect(2)
            self.base = len(gc.get_objects(0)) + len(gc.get_objects(1)) + len(gc.get_objects(2))

        def look(self, i):
            mine = torch.tensor([_alive() - self.base], dtype=torch.int32)
            comm.all_reduce(mine, "world", "gc", op="max")
            if int(mine) >= growth:
                self.full()
                self.passes.append(i)

    collector = Collector()
    try:
        collector.full()
        for i in range(steps):
            step(i)
            if i % every == every - 1:
                collector.look(i)
        return collector.passes
    finally:
        if collector.on:
            gc.enable()


RIGHT = (with_a_context_manager, as_an_object, by_a_name_of_its_own)
