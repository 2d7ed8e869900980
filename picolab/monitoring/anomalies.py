"""What is wrong with a run, and whose it is: the rules of rules.py on the events of its ranks.

    detector = AnomalyDetector(world_size=4)
    for event in result.events:
        for anomaly in detector.add(event):
            print(anomaly)     # step 61: rank 2 comes 9.1 ms late to its collectives (+28 % ...

    what is found      of which signal                                by which rule
    not finite         own loss and own gradient norm                 as they are told, at once
    loss spike         own loss of each rank                          Spike, 8 sigma and +10 %
    gradient spike     own gradient norm of each rank                 Spike, 6 sigma and x7
    slow rank          how late it comes to collectives               8 of 10 steps above 8 %
    late data          the same, where more than half is the loader   8 of 10
    slow link          a message or a hop, from when all are there    8 of 10 above 3x its own
    leak               resident memory                                Slope, 0.2 MB a step
    desync             what each rank did over each group             the ledgers differ
    expert collapse    choices of experts                             8 of 10: half of them dead
    slow run           the longest step, less waiting for a core      CUSUM
    busy host          waiting for a core                             8 of 10 above 20 % of a step
    plateau, divergence   the loss                                    Plateau, Divergence
    silent rank        steps that others tell and it does not         20 of them
    hang, dead rank, mismatch   how the run ended (and Silence, before that: hang.py)

Three things that are easy to do wrong:

* **Each rank's own value, before the reduction.** Afterwards a NaN is everybody's, and a spike too.
* **Late is who comes late, not whose phase lasts long.** The others wait for the slow rank in their
  own backward, which lasts as long as its. So of each step what counts is the time outside of
  collectives (from leaving one to arriving at the next), beside that of the ranks that do the same.
* **A rank that waits for a core is not slow.** Linux tells for how long; it is taken off, and where
  that is what a step is longer by, the *host* is busy, and nobody is accused. How much ranks go up
  and down without a fault (a core that a neighbour shares) is measured, too: where two ranks of
  real kernels swing by a third, one that is slower by a third cannot be told.

A stage of a pipeline that has no replica does what nobody else does: it is compared with what it
took at the beginning. Where experts are dealt out over ranks no rank is called slow: who has those
that are asked has more to do, which is told apart in experts.py.
"""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from picolab.monitoring import rules
from picolab.monitoring.blame import UNEVEN, odd_one_out
from picolab.monitoring.events import Event
from picolab.monitoring.ledger import Entry
from picolab.monitoring.series import Binned, largest_of_each
from picolab.monitoring.step_split import transfers_of
from picolab.specs import Layout

FIRST = 20  # steps that say what is usual, after the first, which warms up
PATIENCE = 20  # steps that others may be ahead of a rank that tells nothing
LATE = 0.08  # of its own work, by which a rank is late
DELAY = 10  # steps, which `Often` needs
NOISE, SWING = 2.5, 20  # and so many times what it goes up and down by; steps that say how much
SHARES = 0.05  # of its own work, for which a rank waits for a core if it shares it
STEP_SHARE = 0.06  # of a step: less than this is not worth a word
BUSY = 0.20  # of a step, in which a rank waits for a core: more is a busy host
SETTLE = 12  # steps that a slow run waits for its cause, which may be found by then
RECENT = 20  # steps that say how late a rank comes now
LATE_COLUMNS = 200  # of steps, of which it is kept how late each rank was
# How a run ended -> what it is called here. (An exception is its program's own, and says it.)
FAILURES = {
    "hang": "hang", "signal": "dead rank", "exit": "dead rank", "mismatch": "mismatch",
    "early return": "desync",
}  # fmt: skip
CAUSES = ("slow rank", "late data", "slow link", "busy host")
NAMES = (
    "not finite", "loss spike", "gradient spike", *CAUSES, "slow run", "leak", "desync",
    "expert collapse", "plateau", "divergence", "silent rank", "hang", "dead rank", "mismatch",
)  # fmt: skip


class Anomaly(NamedTuple):
    name: str
    step: int | None
    ranks: tuple[int, ...]
    """Whose it is; of a link (from, to). Empty: nobody's in particular, or it cannot be told."""
    text: str

    def __str__(self) -> str:
        return self.text if self.step is None else f"step {self.step}: {self.text}"


@dataclass
class _Step:
    """One step, as far as it has been told."""

    said: dict[int, dict] = field(default_factory=dict)  # rank -> its step event
    entries: dict[int, list[Entry]] = field(default_factory=lambda: defaultdict(list))


class Work(NamedTuple):
    """A rank's part of a step, in seconds."""

    own: float  # outside of collectives, and on a core
    data: float  # of it, until the batch was there
    queued: float  # of the rest, ready and without a core
    cpu: float = 0.0  # CPU time of all its threads, in the whole step


class AnomalyDetector:
    """Fed with events, in the order in which they come; `add` returns what they show."""

    def __init__(self, world_size: int | None = None):
        self.world_size = world_size
        self.found: list[Anomaly] = []
        self.late = Binned(LATE_COLUMNS, largest_of_each)
        """By step: rank -> how late it came to its collectives, in shares of the step. Of a long
        run a column is of several steps, and has the latest of them."""
        self.late_now: deque[dict[int, float]] = deque(maxlen=RECENT)
        """The same of the newest steps, one by one."""
        self.work: dict[int, Work] = {}
        """Of the newest step that was judged."""
        self._lasting: list[Anomaly] = []
        self._missing: set[int] = set()
        self._steps: dict[int, _Step] = defaultdict(_Step)
        self._layout: Layout | None = None
        self._alike: dict[int, list[int]] = {}  # rank -> those that do the same work
        self._judged = -1
        self._not_heard: set[int] = set()
        self._losses = defaultdict(rules.Spike)
        # (Of 128 tokens of real text a gradient is, once in some thousand, six times as large.)
        self._norms = defaultdict(lambda: rules.Spike(sigmas=6.0, factor=7.0))
        self._broken: set[int] = set()  # ranks whose numbers are not finite, as was said
        self._late = defaultdict(rules.Often)
        self._usual: dict[int, list[Work]] = defaultdict(list)
        self._not_learned: deque[dict[int, float]] = deque()
        self._differ: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=40))
        self._links = defaultdict(rules.Often)
        self._transfers: dict[tuple, list[float]] = defaultdict(list)
        self._memory = defaultdict(lambda: rules.Slope(least=2e5))
        self._experts = defaultdict(rules.Often)
        self._run, self._busy = rules.Drift(), rules.Often()
        self._slow_run: Anomaly | None = None
        self._cause_at = -SETTLE - 1
        self._plateau, self._divergence = rules.Plateau(), rules.Divergence()

    def add(self, event: Event) -> list[Anomaly]:
        """What this event shows, together with those before it."""
        found: list[Anomaly] = []
        if event.kind == "ledger":
            for entry in event.data["entries"]:
                if entry.step is not None and self._takes(entry.step, event.rank):
                    self._steps[entry.step].entries[entry.rank].append(entry)
        elif event.kind == "experts":
            found = self._collapse(event.data)
        elif event.kind == "step":
            found = self._step(event.rank, event.data)
        elif event.kind == "not finite":
            found = self._finite(event.data["step"], event.rank, event.data)
        elif event.kind == "state" and event.data.get("failure") in FAILURES:
            found = self._ended(event.data)
        self.found += found
        self._lasting += found
        return found

    @property
    def judged(self) -> int:
        """The newest step that all ranks (or all that are still heard) have told."""
        return self._judged

    @property
    def going_on(self) -> list[Anomaly]:
        """What was found and has not ended. (A finding is told once; a spike is over at once.)"""
        self._lasting = [anomaly for anomaly in self._lasting if self._goes_on(anomaly)]
        return list(self._lasting)

    def _goes_on(self, anomaly: Anomaly) -> bool:
        match anomaly.name:
            case "slow rank" | "late data":
                return self._late[anomaly.ranks[0]].going_on
            case "slow link":
                return self._links[anomaly.ranks].going_on
            case "busy host":
                return self._busy.going_on
            case "expert collapse":
                return any(of_layer.going_on for of_layer in self._experts.values())
            case "not finite":
                return set(anomaly.ranks) <= self._broken
            case "silent rank":
                return set(anomaly.ranks) <= self._missing
        return anomaly.name in ("dead rank", "mismatch")

    def _ended(self, data: dict) -> list[Anomaly]:
        rank, name = data["rank"], FAILURES[data["failure"]]
        text = data["error"].splitlines()[0]
        return [Anomaly(name, None, () if rank is None else (rank,), text)]

    def _step(self, rank: int, data: dict) -> list[Anomaly]:
        step = data["step"]
        if self._layout is None:
            self._layout = Layout.parse(data["layout"])
            self.world_size = self.world_size or self._layout.world
        found = self._finite(step, rank, data)
        if self._takes(step, rank):
            self._steps[step].said[rank] = data
        while self._steps:
            done = min(self._steps)
            missing = [r for r in range(self.world_size) if r not in self._steps[done].said]
            if missing and len(self._steps) <= PATIENCE:
                break
            found += self._silent(done, missing)
            found += self._judge(done, self._steps.pop(done))
            self._judged = done
        return found

    def _takes(self, step: int, rank: int) -> bool:
        """Whether this step is still to be judged. If the run went back, what is done again is; of
        a rank that was given up, what comes late is of a step that was judged without it."""
        if step <= self._judged and rank not in self._not_heard:
            self._judged = step - 1
            self._steps.clear()
        return step > self._judged

    def _silent(self, step: int, missing: list[int]) -> list[Anomaly]:
        """Others have told many steps since: its file is missing, or its disk is full. The steps
        are judged without it."""
        self._missing = set(missing)
        new = [rank for rank in missing if rank not in self._not_heard]
        self._not_heard |= set(new)
        text = "rank {} tells nothing of its steps, while others go on"
        return [Anomaly("silent rank", step, (rank,), text.format(rank)) for rank in new]

    def _judge(self, step: int, of: _Step) -> list[Anomaly]:
        found = desync(step, {r: of.entries.get(r, ()) for r in of.said})
        found += self._spikes(step, of.said)
        found += self._memory_of(step, of.said)
        if step:  # the first warms up
            found += self._late_ranks(step, of) + self._slow_links(step, of.entries)
            found += self._whole_run(step, of)
        if any(a.name in CAUSES for a in found):
            self._cause_at = step
        return found + self._settled(step)

    # -- numbers --

    def _finite(self, step: int, rank: int, data: dict) -> list[Anomaly]:
        """At once, and not when all ranks have told the step: some may never tell it."""
        if data.get("skipped"):
            return []  # fp16's overflow: all ranks have seen it and left the step out
        own = {"loss": data.get("own_loss"), "gradient norm": data.get("own_grad_norm")}
        bad = [what for what, value in own.items() if rules.non_finite({rank: value})]
        new = bool(bad) and rank not in self._broken
        (self._broken.add if bad else self._broken.discard)(rank)
        if not new:
            return []
        values = " and ".join(f"own {what} is {own[what]:g}" for what in bad)
        text = f"rank {rank}'s {values}, before anything was reduced"
        return [Anomaly("not finite", step, (rank,), text)]

    def _spikes(self, step: int, said: Mapping[int, dict]) -> list[Anomaly]:
        found = []
        if self._broken:
            return found  # what all have is no number, or comes of one that had none
        for name, key, of_rank in (
            ("loss spike", "own_loss", self._losses),
            ("gradient spike", "own_grad_norm", self._norms),
        ):
            values = {r: data[key] for r, data in said.items() if data.get(key) is not None}
            high = tuple(r for r, value in sorted(values.items()) if of_rank[r].add(value))
            if not high:
                continue
            # Ranks of tp and cp share their tokens: they have the same own loss, and one culprit.
            whom = tuple(r for r in high if not self._of_the_samples(r, high, of_rank))
            whom = whom if len(high) <= len(values) / 2 else ()
            shown = ", ".join(f"rank {r}: {values[r]:.3g}" for r in high)
            who = " on all ranks at once" if len(high) == len(values) > 1 else ""
            text = f"{name}{who}: {shown}, before the reduction"
            found.append(Anomaly(name, step, whom, text))
        return found

    def _of_the_samples(
        self, rank: int, high: Collection[int], of_rank: Mapping[int, rules.Spike]
    ) -> bool:
        """Whether the rest of those that work on the same samples see it too, if less: it comes
        from these, then, and is nobody's (a pipeline's stages, ranks of a ring)."""
        replica = self._layout.coordinates(rank)["dp"]
        times = [
            spike.times or 1.0
            for other, spike in of_rank.items()
            if other not in high and self._layout.coordinates(other)["dp"] == replica
        ]
        return bool(times) and statistics.median(times) > 2

    def _memory_of(self, step: int, said: Mapping[int, dict]) -> list[Anomaly]:
        if step < FIRST:
            return []  # what starts up grows
        sizes = {r: data["rss_bytes"] for r, data in said.items() if data.get("rss_bytes")}
        found = []
        for rank, size in sorted(sizes.items()):
            rest = [s for r, s in sizes.items() if r != rank]
            # What all ranks grow by is no leak of one of them.
            slope = self._memory[rank].add(size - (statistics.median(rest) if rest else 0))
            if slope is not None:
                text = f"rank {rank} grows by {slope / 1e6:.2f} MB a step"
                found.append(Anomaly("leak", step, (rank,), text))
        return found

    def _collapse(self, data: dict) -> list[Anomaly]:
        found = []
        for layer, loads in data["loads"].items():
            dead = rules.dead_experts(loads)
            if self._experts[layer].add(2 * len(dead) >= len(loads)):
                text = f"layer {layer}: {len(dead)} of {len(loads)} experts get next to no tokens"
                found.append(Anomaly("expert collapse", data["step"], (), text))
        return found

    # -- collectives --

    def _late_ranks(self, step: int, of: _Step) -> list[Anomaly]:
        if len(of.said) < 2:
            return []  # late is a word for several
        if self._layout.ep > 1:
            return []  # who has the experts that are asked has more to do (see experts.py)
        work = {rank: work_of(data, of.entries.get(rank, ())) for rank, data in of.said.items()}
        self.work = work
        seconds = statistics.fmean(data["seconds"] for data in of.said.values())
        if self._layout.pp > 1:  # stages wait in turn: what each waited for a core adds up
            queued = sum(part.queued for part in work.values())
            seconds = max(seconds - queued, *(part.own for part in work.values()))
        beyond = {rank: self._beyond_usual(rank, part) for rank, part in work.items()}
        late: dict[int, float] = {}
        for rank in sorted(work):
            others = [r for r in self._peers(rank) or work if r in work and r != rank]
            if others and all(beyond[r] is not None for r in (rank, *others)):
                late[rank] = beyond[rank] - statistics.median(beyond[r] for r in others)
        if late and seconds:
            self.late_now.append({rank: by / seconds for rank, by in late.items()})
            self.late.add(step, self.late_now[-1])
        # Neighbours that take cores take caches, too, which no clock tells: by how much a rank goes
        # up and down here with nobody late, says what is much.
        above = {}
        for rank, by in late.items():
            before = self._differ[rank]
            swing = rules.quartile_sigma(before) if len(before) >= SWING else math.inf
            alike = work[rank].own - by  # what it would take if it were like the others
            above[rank] = by > max(LATE * alike, STEP_SHARE * seconds, NOISE * swing)
        # What is usual is learned with a delay in which a fault is found: it never enters.
        self._not_learned.append(late)
        if any(of_rank.going_on for of_rank in self._late.values()):
            self._not_learned.clear()
        if len(self._not_learned) > DELAY:
            for rank, by in self._not_learned.popleft().items():
                self._differ[rank].append(by)
        found = []
        for rank, by in late.items():
            if not self._late[rank].add(above[rank]):
                continue
            alike = work[rank].own - by
            rest = [part.data for r, part in work.items() if r != rank]
            data = work[rank].data - statistics.median(rest) > by / 2
            where = ", mostly in its data" if data else ""
            text = f"rank {rank} comes {1e3 * by:.1f} ms late to its collectives"
            if alike > by / 100:  # of next to no work it is no share
                text += f" (+{100 * by / alike:.0f} % of its own work)"
            text += where
            found.append(Anomaly("late data" if data else "slow rank", step, (rank,), text))
        return found

    def _beyond_usual(self, rank: int, part: Work) -> float | None:
        """Own seconds where others do the same work; else those beyond what it took at first, and
        None as long as that is not known.

        Who waits for cores shares them, and their caches: the same work then takes more CPU time.
        Beside others that do the same it shows whether it is one rank's; where there are none, what
        the CPU's clock has more is taken for the host's."""
        if self._peers(rank):
            return part.own
        first = self._usual[rank]
        if len(first) < FIRST:
            first.append(part)
            return None
        shares = part.queued > SHARES * part.own
        more = part.cpu - statistics.median(before.cpu for before in first)
        own = part.own - max(0.0, more) * shares
        return own - statistics.median(before.own for before in first)

    def _peers(self, rank: int) -> list[int]:
        """The others that do the same work: those in the same stage."""
        if rank not in self._alike:
            ranks = range(self.world_size)
            stages = {other: self._layout.coordinates(other)["pp"] for other in ranks}
            alike = [r for r in ranks if stages[r] == stages[rank] and r != rank]
            self._alike[rank] = alike
        return self._alike[rank]

    def _slow_links(self, step: int, entries: Mapping[int, list[Entry]]) -> list[Anomaly]:
        """A message takes from when both ends are there until it has come; what the receiver waited
        for a core is the host's."""
        times: dict[tuple[int, int], list[float]] = defaultdict(list)
        of_all = [entry for of_rank in entries.values() for entry in of_rank]
        messages = any(entry.op == "recv" for entry in of_all)
        for message in transfers_of(of_all) if messages else ():
            times[message.source, message.target].append(message.seconds)
        found = []
        for (source, target), of_step in times.items():
            # The shortest of a step is the link's; the others may have met something on their way.
            taken, before = min(of_step), self._transfers[source, target]
            if len(before) < FIRST:
                before.append(taken)
                continue
            usual = statistics.median(before)
            if self._links[source, target].add(taken > max(3 * usual, usual + 1e-3)):
                text = (
                    f"link {source} -> {target} takes {1e3 * taken:.1f} ms a message, and took "
                    f"{1e3 * usual:.1f}"
                )
                found.append(Anomaly("slow link", step, (source, target), text))
        return found

    # -- the whole run --

    def _whole_run(self, step: int, of: _Step) -> list[Anomaly]:
        found = []
        data = next(iter(of.said.values()))
        seconds = max(d["seconds"] for d in of.said.values())
        # The longest of the ranks: all wait for whom the host lets wait.
        queued = max(d.get("queued_s") or 0.0 for d in of.said.values())
        if self._busy.add(queued > BUSY * seconds):
            share = 100 * queued / seconds
            text = f"the host is busy: ranks wait for a core in {share:.0f} % of a step"
            found.append(Anomaly("busy host", step, (), text))
        # What neighbours cost beside cores (caches), no clock tells: then the host is what is told.
        if self._run.add(seconds - queued) and not self._busy.going_on:
            text = f"steps take longer: {1e3 * seconds:.0f} ms"
            self._slow_run = self._slow_run or Anomaly("slow run", step, (), text)
        if data.get("loss") is not None and not self._broken:
            if self._divergence.add(data["loss"]):
                text = f"the loss rises again, to {data['loss']:.3f}"
                found.append(Anomaly("divergence", step, (), text))
            if self._plateau.add(data["loss"]):
                found.append(Anomaly("plateau", step, (), f"the loss stays at {data['loss']:.3f}"))
        return found

    def _settled(self, step: int) -> list[Anomaly]:
        """A slow run whose cause was found meanwhile has been told already."""
        slow = self._slow_run
        if slow is None or step < slow.step + SETTLE:
            return []
        self._slow_run = None
        if self._cause_at >= slow.step - SETTLE:
            return []
        return [slow._replace(step=step)]


def desync(step: int, entries: Mapping[int, Sequence[Entry]]) -> list[Anomaly]:
    """Groups whose ranks did not do the same collectives in a step. entries: of each rank."""
    calls = {
        rank: [
            ((e.axis, e.ranks), (e.op, e.dtype, e.op in UNEVEN or e.payload_bytes, e.reason))
            for e in of_rank
            if e.op not in ("send", "recv")
        ]
        for rank, of_rank in entries.items()
    }
    found = []
    for group, did in rules.odd_calls(calls).items():
        odd = odd_one_out(did)
        axis, counts = group[0], {rank: len(what) for rank, what in did.items()}
        if len(set(counts.values())) > 1:
            how = ", ".join(f"rank {r}: {n}" for r, n in sorted(counts.items()))
            text = f"ranks differ in how many collectives over {axis} they did ({how})"
        else:
            text = f"ranks did different collectives over {axis}"
        text += "" if odd is None else f"; rank {odd} is the odd one"
        found.append(Anomaly("desync", step, () if odd is None else (odd,), text))
    return found


def work_of(said: dict, entries: list[Entry]) -> Work:
    """What a rank did of a step itself: not what it stood still in collectives, which others
    decide, and not what it waited for a core. (A sleeping rank is at work: it is late.)"""
    exposed = sum(entry.exposed_s for entry in entries)
    before = sum(entry.queued_before_s or 0.0 for entry in entries)
    standing = sum(entry.queued_s or 0.0 for entry in entries)
    # After the last one. (A rank may lose its core between two readings of a clock.)
    began = said.get("began")
    left = max((entry.start + entry.exposed_s for entry in entries), default=began)
    tail = said["seconds"] if began is None else max(0.0, began + said["seconds"] - left)
    after = min(max(0.0, (said.get("queued_s") or 0.0) - before - standing), tail)
    queued = before + after
    own = said["seconds"] - exposed - queued
    return Work(own, said.get("data_s") or 0.0, queued, said.get("cpu_s") or 0.0)
