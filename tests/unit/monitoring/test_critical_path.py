"""The graph of a step against programs whose times are known, since a few lines here make them.

Catches: seconds that are missing or there twice, replays that are not what the same program takes
with other durations, bubbles in the wrong part, and a cause that is not the one put in.
"""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs, schedules
from picolab.monitoring import rank_seconds as rank_seconds_module
from picolab.monitoring.critical_path import step_graph
from picolab.monitoring.ledger import Entry
from picolab.monitoring.rank_seconds import rank_seconds
from picolab.monitoring.what_if import Replays
from picolab.schedules import Span
from picolab.specs import Layout


def entry(rank, op, start, end, *, reason, issued=None, ranks=(0, 1), peer=None, axis="dp"):
    issued = start if issued is None else issued
    about = (rank, 0, op, axis, ranks, "fp32", 8, 8.0, reason)
    return Entry(*about, start, end - issued, end - start, peer, 0.0, 0.0)


@dataclass
class Program:
    """What three ranks do, one thing after the other; run by the rules that `critical_path` says.

    pieces   ("work", seconds of each rank), ("sync", transfer), ("async", seconds of each rank
             until it is waited for, transfer), ("message", source, target, transfer)
    """

    pieces: list

    def run(self, free=False):
        """Entries, and when each rank ended."""
        clock, entries = [0.0, 0.0, 0.0], []
        for kind, *what in self.pieces:
            transfer = 0.0 if free else what[-1]
            if kind == "work":
                clock = [t + s for t, s in zip(clock, what[0])]
            elif kind == "message":
                source, target, _ = what
                sent, got = clock[source], max(clock[source], clock[target]) + transfer
                both = dict(ranks=(source, target), reason="message")
                entries.append(entry(source, "send", sent, sent, peer=target, **both))
                start = clock[target]
                entries.append(entry(target, "recv", start, got, peer=source, **both))
                clock[target] = got
            else:
                issued, overlap = list(clock), what[0] if kind == "async" else [0.0] * 3
                waits = [t + s for t, s in zip(clock, overlap)]
                clock = [max(t, max(issued) + transfer) for t in waits]
                entries += [
                    entry(r, "all_reduce", waits[r], clock[r], issued=issued[r], reason=kind,
                          ranks=(0, 1, 2))
                    for r in range(3)
                ]  # fmt: skip
        return entries, clock

    def graph(self):
        entries, ends = self.run()
        return step_graph(entries, dict(enumerate(ends)), dict.fromkeys(range(3), 0.0))


seconds = st.integers(0, 50).map(lambda ms: ms / 1000)
transfers = st.integers(1, 30).map(lambda ms: ms / 1000)
each = st.tuples(seconds, seconds, seconds)
pairs = st.sampled_from([(0, 1), (1, 0), (1, 2), (2, 0)])
piece = st.one_of(
    st.tuples(st.just("work"), each),
    st.tuples(st.just("sync"), transfers),
    st.tuples(st.just("async"), each, transfers),
    st.tuples(st.just("message"), pairs, transfers).map(lambda p: (p[0], *p[1], p[2])),
)
programs = st.lists(piece, min_size=1, max_size=12).map(Program)


@given(programs)
def test_no_second_is_lost_and_the_measured_step_comes_back(program):
    graph = program.graph()
    _, ends = program.run()
    assert graph.replay() == pytest.approx(graph.measured, abs=1e-9)
    for rank, of in rank_seconds(graph).items():
        assert of.seconds == pytest.approx(ends[rank], abs=1e-9)
        assert min(of.parts().values()) >= -1e-9
    path = graph.path()
    joints = [0.0, *(part.end for part in path)]
    assert [part.start for part in path] == pytest.approx(joints[:-1], abs=1e-9)
    assert joints[-1] == pytest.approx(max(ends))


@given(programs)
def test_free_communication_is_the_same_program_without_transfers(program):
    _, ends = program.run(free=True)
    found = Replays(program.graph(), Layout(dp=3), {}).what_if(free_communication=True)
    assert found.step_s == pytest.approx(max(ends), abs=1e-9)


def test_the_slow_rank_is_named_and_not_the_one_that_waits_longest():
    def of(slow):
        work = [("work", (0.1, slow, 0.1)), ("sync", 0.002)]
        return Program(work * 4)

    replays = Replays(of(0.13).graph(), Layout(dp=3), {})
    cause, *_ = replays.causes()
    assert (cause.name, cause.rank) == ("slow rank", 1)
    assert cause.without.step_s == pytest.approx(max(of(0.1).run()[1]))
    assert cause.without.factor == pytest.approx(0.528 / 0.408)
    assert rank_seconds(replays.graph)[0].waiting == pytest.approx({1: 0.12})


# -- a pipeline -----------------------------------------------------------------------------------


def pipeline(name, p, m, *, forward=1.0, backward=2.0, transfer=0.0):
    """A simulated schedule as a step that was measured: its spans and messages, and the sum of the
    losses at the end. Times in seconds."""
    halves = backward if name == "1f1b" or name == "gpipe" else backward / 2
    run = schedules.simulate(
        schedules.make(name, p, m),
        forward=forward,
        backward_input=halves,
        backward_weight=backward - halves,
        transfer=transfer,
    )
    schedule, end, entries = run.schedule, float(run.start + run.makespan), []
    ranks = tuple(range(p))
    why = {"F": "pp: activations", "B": "pp: gradients of activations"}
    for rank in ranks:
        free = 0.0
        for span in (span for span in run.spans if span.rank == rank):
            needed, fed = schedule.needs(span.action), schedule.feeds(span.action)
            about = dict(axis="pp", ranks=ranks)
            if needed and schedule.rank_of(needed.stage) != rank:
                peer, reason = schedule.rank_of(needed.stage), why[needed.kind]
                got = entry(rank, "recv", free, span.start, peer=peer, reason=reason, **about)
                entries.append(got)
            free = span.end
            if fed and schedule.rank_of(fed.stage) != rank:
                peer, reason = schedule.rank_of(fed.stage), why[span.action.kind]
                entries.append(entry(rank, "send", free, free, peer=peer, reason=reason, **about))
        entries.append(entry(rank, "all_reduce", free, end, reason="pp: loss", **about))
    graph = step_graph(entries, dict.fromkeys(ranks, end), dict.fromkeys(ranks, 0.0), run.spans)
    return run, Replays(graph, Layout(pp=p, schedule=name), {})


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "zb-h1"])
def test_the_bubble_of_even_stages_is_warm_up_and_drain(name):
    run, replays = pipeline(name, 4, 8)
    for rank, of in rank_seconds(replays.graph).items():
        assert of.warm_up_s + of.drain_s == pytest.approx(float(run.idle[rank]))
        assert of.imbalance_s == 0
    cause, *_ = replays.causes()
    assert cause.name == "few micro-batches"
    assert cause.without.step_s == pytest.approx(8 * 3.0)
    if name == "1f1b":
        saved = cause.without.saved_s / replays.step_s
        assert saved == pytest.approx(float(costs.bubble_of_total(4, 8)))
        # The last stage waits for the first activation, and has no gradient to wait for.
        of = rank_seconds(replays.graph)
        assert of[3].warm_up_s == pytest.approx(3.0) and of[0].warm_up_s == pytest.approx(6.0)


def test_uneven_stages_make_imbalance_and_are_the_cause(monkeypatch):
    even = pipeline("1f1b", 2, 8)[1].step_s
    _, replays = pipeline("1f1b", 2, 8, forward=(1.5, 0.5), backward=2.0)
    split = rank_seconds(replays.graph)
    assert split[0].imbalance_s == pytest.approx(0, abs=1e-9) and split[1].imbalance_s > 3
    assert replays.causes()[0].name == "uneven stages"
    assert replays.what_if(even_stages=True).step_s == pytest.approx(even)
    # Mutant: warm-up and drain by their place alone. Then the slow stage is no one's fault.
    monkeypatch.setattr(
        rank_seconds_module, "even_actions", lambda graph: [node.work for node in graph.nodes]
    )
    assert rank_seconds(replays.graph)[1].imbalance_s == 0


@pytest.mark.parametrize("m", [2, 8, 16])
def test_other_numbers_of_micro_batches_are_the_simulators(m):
    _, replays = pipeline("1f1b", 4, 4)
    then, _ = pipeline("1f1b", 4, m, forward=4 / m, backward=8 / m)
    assert replays.what_if(micro_batches=m).step_s == pytest.approx(float(then.makespan))


def test_messages_that_take_long_are_the_cause():
    _, replays = pipeline("1f1b", 2, 16, transfer=1.5)
    assert replays.causes()[0].name == "communication"
    split = rank_seconds(replays.graph)
    assert split[1].communication_s + split[1].bubble_s > 15


def test_what_is_asked_must_make_sense():
    _, replays = pipeline("1f1b", 2, 4)
    with pytest.raises(
        ValueError, match=r"micro_batches is 2\.5; it is a whole number of 1 or more"
    ):
        replays.what_if(micro_batches=2.5)
    with pytest.raises(ValueError, match="no communication of this step has the reason 'dp: loss'"):
        replays.what_if(free_communication="dp: loss")


def test_spans_are_told_apart_by_rank():
    """Replicas have the same actions; a span of one must not get the other's work."""
    spans = [Span(rank, schedules.Action("F", 0, 0), 0.0, 1.0 + rank) for rank in range(2)]
    graph = step_graph([], {0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}, spans)
    taken = rank_seconds_module.span_work(graph)
    assert [taken[span] for span in spans] == [1.0, 2.0]
