"""Wrong answers to monitoring.alerts.inhibit, what each author must be told, and right ones."""

from picolab.chapters.c06_monitoring.inhibit import solution


def _machine(
    steps, hold, quiet, hides, *, begins=None, ends=None, hidden=None, end_told=True, keeps=False
):
    """A frame. hidden(key, firing, before, told): whether it is not told now."""
    count, last, firing, told, out = {}, {}, set(), set(), []
    for step, true in enumerate(steps):
        for key in list(count):
            if key not in true and not keeps:
                count[key] = 0
        for key in true:
            count[key] = count.get(key, 0) + 1
            last[key] = step
        before = set(firing)
        for key in true:
            if (begins or (lambda n: n >= hold))(count[key]):
                firing.add(key)
        over = {k for k in firing if (ends or (lambda n: n >= quiet))(step - last[k])}
        firing -= over
        for key in over:
            count[key] = 0
        out += [(step, "resolved", *key) for key in sorted(over & told if end_told else over)]
        told -= over
        for key in sorted(firing - told):
            if hidden is None or not hidden(key, firing, before, told):
                told.add(key)
                out.append((step, "firing", *key))
    return out


def _causes(key, of, hides):
    return [c for c in of if key[0] in hides.get(c[0], ()) and key[1] in (c[1], -1)]


def hides_nothing(steps, hold, quiet, hides):
    return _machine(steps, hold, quiet, hides)


def tells_in_each_step(steps, hold, quiet, hides):
    out, firing = [], {}
    for step, kind, *key in solution(steps, hold, quiet, hides):
        firing[step] = [*firing.get(step, []), (kind, tuple(key))]
    open_ = set()
    for step in range(len(steps)):
        for kind, key in firing.get(step, []):
            (open_.add if kind == "firing" else open_.discard)(key)
            if kind == "resolved":
                out.append((step, "resolved", *key))
        out += [(step, "firing", *key) for key in sorted(open_) if key in steps[step]]
    return out


def counts_over_gaps(steps, hold, quiet, hides):
    return _machine(
        steps, hold, quiet, hides, keeps=True,
        hidden=lambda key, firing, before, told: _causes(key, firing, hides),
    )  # fmt: skip


def fires_one_late(steps, hold, quiet, hides):
    return solution(steps, hold + 1, quiet, hides)


def fires_one_early(steps, hold, quiet, hides):
    return solution(steps, hold - 1, quiet, hides)


def ends_one_late(steps, hold, quiet, hides):
    return solution(steps, hold, quiet + 1, hides)


def ends_one_early(steps, hold, quiet, hides):
    return solution(steps, hold, quiet - 1, hides)


def ends_at_once(steps, hold, quiet, hides):
    return solution(steps, hold, 1, hides)


def hides_on_all_ranks(steps, hold, quiet, hides):
    def hidden(key, firing, before, told):
        return any(key[0] in hides.get(name, ()) for name, _ in firing)

    return _machine(steps, hold, quiet, hides, hidden=hidden)


def hides_on_the_same_rank_only(steps, hold, quiet, hides):
    def hidden(key, firing, before, told):
        return any(key[0] in hides.get(name, ()) and key[1] == rank for name, rank in firing)

    return _machine(steps, hold, quiet, hides, hidden=hidden)


def a_hidden_cause_hides_nothing(steps, hold, quiet, hides):
    def hidden(key, firing, before, told):
        shown = [c for c in firing if c in told or not _causes(c, firing, hides)]
        return _causes(key, shown, hides)

    return _machine(steps, hold, quiet, hides, hidden=hidden)


def goes_by_the_step_before(steps, hold, quiet, hides):
    def hidden(key, firing, before, told):
        return _causes(key, before, hides)

    return _machine(steps, hold, quiet, hides, hidden=hidden)


def brings_them_up_one_by_one(steps, hold, quiet, hides):
    def hidden(key, firing, before, told):
        ready = {one for one in firing if one in before or one <= key}
        return bool(_causes(key, ready, hides))

    return _machine(steps, hold, quiet, hides, hidden=hidden)


def loses_what_was_hidden(steps, hold, quiet, hides):
    lost = set()

    def hidden(key, firing, before, told):
        if key not in before:
            lost.discard(key)
        if _causes(key, firing, hides):
            lost.add(key)
        return key in lost

    return _machine(steps, hold, quiet, hides, hidden=hidden)


def tells_ends_of_all(steps, hold, quiet, hides):
    return _machine(
        steps, hold, quiet, hides, end_told=False,
        hidden=lambda key, firing, before, told: _causes(key, firing, hides),
    )  # fmt: skip


def never_tells_ends(steps, hold, quiet, hides):
    return [one for one in solution(steps, hold, quiet, hides) if one[1] == "firing"]


def begins_before_ends(steps, hold, quiet, hides):
    return sorted(solution(steps, hold, quiet, hides), key=lambda one: (one[0], one[1]))


def returns_a_count(steps, hold, quiet, hides):
    return len(solution(steps, hold, quiet, hides))


def leaves_out_the_step(steps, hold, quiet, hides):
    return [one[1:] for one in solution(steps, hold, quiet, hides)]


def takes_back_what_was_told(steps, hold, quiet, hides):
    from picolab.chapters.c06_monitoring.inhibit import _messages

    return _messages(steps, hold, quiet, hides, takes_back=True)


def by_classes(steps, hold, quiet, hides):
    class Alert:
        def __init__(self):
            self.run = self.silent = 0
            self.firing = self.told = False

        def see(self, true):
            self.run = self.run + 1 if true else 0
            self.silent = 0 if true else self.silent + 1
            began = self.run >= hold
            ended = self.firing and self.silent >= quiet
            self.firing = (self.firing or began) and not ended
            return ended

    alerts, out = {}, []
    for now, true in enumerate(steps):
        for key in true:
            alerts.setdefault(key, Alert())
        for key in sorted(alerts):
            if alerts[key].see(key in true) and alerts[key].told:
                alerts[key].told = False
                out.append([now, "resolved", *key])
        active = [key for key in sorted(alerts) if alerts[key].firing]
        for name, rank in active:
            hidden = [1 for c, r in active if name in hides.get(c, []) and (rank == r or rank < 0)]
            if not hidden and not alerts[name, rank].told:
                alerts[name, rank].told = True
                out.append([now, "firing", name, rank])
    return out


def by_the_frame(steps, hold, quiet, hides):
    return tuple(
        _machine(
            steps, hold, quiet, hides,
            hidden=lambda key, firing, before, told: bool(_causes(key, firing, hides)),
        )
    )  # fmt: skip


MUTANTS = {
    hides_nothing: "nothing is hidden",
    tells_in_each_step: "told once, and not in each step",
    counts_over_gaps: "begins anew",
    fires_one_late: "not one later",
    fires_one_early: "before it was true",
    ends_one_late: "and not one later",
    ends_one_early: "over too soon",
    ends_at_once: "one step without it is no end",
    hides_on_all_ranks: "not on other ranks",
    hides_on_the_same_rank_only: "by a cause on any rank",
    a_hidden_cause_hides_nothing: "a cause that is hidden itself still hides",
    goes_by_the_step_before: "in the same step hides already",
    brings_them_up_one_by_one: "goes out before its cause",
    loses_what_was_hidden: "has to be told then",
    tells_ends_of_all: "an end is told of what was told",
    never_tells_ends: "it does not tell",
    begins_before_ends: "in a step ends come first",
    returns_a_count: "asked for is a list",
    leaves_out_the_step: "asked for is a list",
    takes_back_what_was_told: "is not taken back",
}
RIGHT = (by_classes, by_the_frame)
