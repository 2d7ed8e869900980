"""A real step as a graph: what had to be over before what, and so which way through it was longest.

Nodes are moments of a rank, edges the seconds between them:

    begin, end       of the rank's step
    mark             a forward or backward of the pipeline begins or ends
    issue            a collective is called, a message is sent
    wait             the rank goes on after it stood still in one

On one rank they follow one another, and what lies between two of them is the rank's own work (of
which it may have spent a part waiting for a core). A wait also needs others: the issues of all who
take part (the k-th send for the k-th receive, every rank of a collective), and from the last of
them on the transfer, which is measured as what was left of the wait then:

    time(wait) = max(time before + work + own, max(time of the issues it needs) + transfer)
    time(else) = time before + work

With the measured durations this gives the measured times back, to the rounding: a test asks for
it. With others it is a *replay*, what the same step would have taken: work or transfers of your
choosing, the same order. The critical path is the way back from the latest end, at each wait by
the term that decided it.

What it leaves out: what an asynchronous collective took that was over before anyone waited for it
(the rank then only needs the others to have come), and that a rank that waits leaves its core to
others. One clock, as in `step_split`.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from picolab.monitoring.ledger import Entry
from picolab.monitoring.step_split import needs_of
from picolab.schedules import Span

HIDDEN_S = 50e-6
"""An asynchronous wait that is shorter, and that nobody was late for, found everything done."""

Kind = Literal["begin", "mark", "issue", "wait", "end"]


class Node(NamedTuple):
    rank: int
    kind: Kind
    time: float
    """As measured, in seconds since the first rank began."""
    before: int | None
    """The rank's node before this one."""
    work: float = 0.0
    """Seconds of the rank's own since then, until it stood still."""
    queued: float = 0.0
    """Of these, how many it waited for a core."""
    span: Span | None = None
    """Which forward or backward the work was for."""
    entry: Entry | None = None
    needs: tuple[int, ...] = ()
    """Of a wait: the issues without which it cannot end."""
    transfer: float = 0.0
    """And how long it lasted from the last of them on."""
    own: float = 0.0
    """Where everything was done before anyone waited: what the call itself took. No more is known
    of the transfer then."""
    transfer_queued: float = 0.0
    """Of transfer or own, how many without a core."""


class Part(NamedTuple):
    """A piece of the critical path: the rank was busy with it, or the wire was."""

    rank: int
    kind: Literal["compute", "communication", "before"]
    start: float
    end: float
    node: Node

    @property
    def seconds(self) -> float:
        return self.end - self.start


class StepGraph:
    """The graph of one step. Nodes are in the order of their times, so what a node needs is before
    it."""

    def __init__(self, nodes: list[Node], zero: float):
        self.nodes, self.zero = nodes, zero
        self.ranks = sorted({node.rank for node in nodes})
        self.rows = {
            rank: [i for i, n in enumerate(nodes) if n.rank == rank] for rank in self.ranks
        }
        self.measured = [node.time for node in nodes]

    @property
    def step_s(self) -> float:
        """From the first rank's begin to the last one's end."""
        return max(self.measured)

    def replay(
        self,
        work: Sequence[float] | None = None,
        transfer: Sequence[float] | None = None,
        begins: Mapping[int, float] | None = None,
    ) -> list[float]:
        """The time of every node if work and transfers took this long: a number for each node, None
        as measured. begins: when each rank begins; None: as it did."""
        times: list[float] = []
        for i, node in enumerate(self.nodes):
            if node.before is None:
                times.append(node.time if begins is None else begins[node.rank])
                continue
            time = times[node.before] + (node.work if work is None else work[i])
            if node.kind == "wait":
                takes = node.transfer if transfer is None else transfer[i]
                time += node.own
                if node.needs:
                    time = max(time, max(times[j] for j in node.needs) + takes)
            times.append(time)
        return times

    def waited(self, i: int, times: list[float], work: Sequence[float] | None = None) -> tuple:
        """Of a wait: when the rank began to stand still, how long it did before the last of those
        it needs came, and who that was (None: it was ready itself)."""
        node = self.nodes[i]
        stood = times[node.before] + (node.work if work is None else work[i])
        last = max(node.needs, key=times.__getitem__, default=None)
        if last is None or times[last] <= stood:
            return stood, 0.0, None
        return stood, min(times[last], times[i]) - stood, self.nodes[last].rank

    def path(self) -> list[Part]:
        """The critical path of the measured step, in the order of time, without a gap: from the
        first begin (the part "before": the rank on the path began later) to the last end."""
        times, nodes = self.measured, self.nodes
        i = max(range(len(nodes)), key=times.__getitem__)
        parts: list[Part] = []
        while nodes[i].before is not None:
            node, end = nodes[i], times[i]
            ready = times[node.before] + node.work if node.kind == "wait" else end
            last = max(node.needs, key=times.__getitem__, default=None)
            if last is not None and times[last] + node.transfer >= ready + node.own:
                parts.append(Part(node.rank, "communication", times[last], end, node))
                i = last
                continue
            parts.append(Part(node.rank, "communication", ready, end, node))
            parts.append(Part(node.rank, "compute", times[node.before], ready, node))
            i = node.before
        parts.append(Part(nodes[i].rank, "before", 0.0, times[i], nodes[i]))
        return [part for part in reversed(parts) if part.seconds > 0]


class _Moment(NamedTuple):
    """What happens on a rank, before it is a node."""

    start: float
    order: int  # of things at one time
    end: float
    kind: Kind
    place: int = -1  # of the entry
    span: Span | None = None


def step_graph(
    entries: Iterable[Entry],
    seconds: Mapping[int, float],
    begins: Mapping[int, float],
    spans: Iterable[Span] = (),
) -> StepGraph:
    """Of one step: its entries of all ranks, each rank's seconds and begin, and the spans of its
    pipeline (whose ranks are global ones)."""
    entries = list(entries)
    zero = min(begins.values())
    arrivals, needed = needs_of(entries)
    rows: dict[int, list[_Moment]] = {rank: [] for rank in seconds}
    for i, entry in enumerate(entries):
        rows[entry.rank].append(_Moment(arrivals[i], 2, arrivals[i], "issue", i))
        if entry.exposed_s or arrivals[i] < entry.start:
            end = entry.start + entry.exposed_s
            rows[entry.rank].append(_Moment(entry.start, 3, end, "wait", i))
    for span in spans:
        # The mark at a span's end knows it, that at its begin does not.
        rows[span.rank].append(_Moment(span.start, 1, span.start, "mark"))
        rows[span.rank].append(_Moment(span.end, 0, span.end, "mark", span=span))
    found = []
    for rank, moments in rows.items():
        begin, end = begins[rank], begins[rank] + seconds[rank]
        at = begin
        row = [(Node(rank, "begin", begin - zero, None), -1)]
        for moment in [*sorted(moments), _Moment(end, 4, end, "end")]:
            start = min(max(moment.start, at), max(end, at))
            at, work = max(start, moment.end), start - at
            entry = entries[moment.place] if moment.place >= 0 else None
            node = Node(rank, moment.kind, at - zero, None, work, 0.0, moment.span, entry)
            row.append((node, moment.place))
        inside = None
        for i, (node, place) in reversed(list(enumerate(row))):
            inside = node.span if node.kind == "mark" else inside
            row[i] = node._replace(span=inside), place
        found.append(row)

    def order(item: tuple[Node, int]) -> tuple[float, bool]:
        """At one time, what is issued comes before what waits for it."""
        return item[0].time, item[0].kind in ("wait", "end")

    return StepGraph(_linked(list(heapq.merge(*found, key=order)), arrivals, needed), zero)


def _linked(found: list[tuple[Node, int]], arrivals, needed) -> list[Node]:
    """The nodes with the places of those that they follow."""
    issues = {place: i for i, (node, place) in enumerate(found) if node.kind == "issue"}
    last: dict[int, int] = {}
    nodes: list[Node] = []
    for i, (node, place) in enumerate(found):
        node = node._replace(before=last.get(node.rank))
        last[node.rank] = i
        if node.kind == "wait":
            entry, stood = node.entry, nodes[node.before].time + node.work
            # What came after it cannot have been needed: a send may end before anyone receives.
            needs = [issues[j] for j in needed[place] if issues[j] < i]
            latest = max((nodes[j].time for j in needs), default=stood)
            hidden = arrivals[place] < entry.start and latest <= stood
            if hidden and entry.exposed_s < HIDDEN_S:
                # (A send that is over is only looked at, when the pipeline has time for it.)
                both = any(
                    nodes[j].rank == node.rank and nodes[j].entry is not entry for j in needs
                )
                needs = [] if entry.op == "send" and not both else needs
                node = node._replace(needs=tuple(needs), own=node.time - stood)
            else:
                node = node._replace(needs=tuple(needs), transfer=node.time - latest)
            queued = min(entry.queued_s or 0.0, node.time - max(latest, stood))
            node = node._replace(transfer_queued=queued)
        nodes.append(node)
    return _with_queues(nodes)


def _with_queues(nodes: list[Node]) -> list[Node]:
    """What a rank waited for a core between two stand-stills, dealt out by length to the pieces of
    work there."""
    pieces: dict[int, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        pieces[node.rank].append(i)
        if node.kind == "wait":
            _deal(nodes, pieces.pop(node.rank), node.entry.queued_before_s or 0.0)
    return nodes


def _deal(nodes: list[Node], places: list[int], queued: float) -> None:
    whole = sum(nodes[i].work for i in places)
    share = min(1.0, queued / whole) if whole > 0 else 0.0
    for i in places:
        nodes[i] = nodes[i]._replace(queued=nodes[i].work * share)


def with_tails(graph: StepGraph, queued: Mapping[int, float]) -> StepGraph:
    """After the last stand-still there is no entry to tell what was waited for a core: it is what
    is left of the whole step's. queued: rank -> of its step."""
    nodes = list(graph.nodes)
    for rank, row in graph.rows.items():
        waits = [i for i in row if nodes[i].kind == "wait"]
        tail = [i for i in row if not waits or i > waits[-1]]
        told = sum(n.queued_before_s or 0.0 for n in _entries(nodes, waits))
        told += sum(n.queued_s or 0.0 for n in _entries(nodes, waits))
        _deal(nodes, tail, max(0.0, queued.get(rank, 0.0) - told))
    return StepGraph(nodes, graph.zero)


def _entries(nodes: list[Node], places: list[int]) -> list[Entry]:
    return [nodes[i].entry for i in places]
