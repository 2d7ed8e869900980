"""The detector on made-up events of four ranks: what it names, and the wrong ways to look.

Wrong versions these catch: judging after the reduction, judging how long phases last (the slow
rank's is the shortest), taking a rank that waits for a core for a slow one, comparing stages of a
pipeline with each other, counting a slow rank a second time as a slow run, accusing somebody of
what all do.
"""

import math
import random

import pytest

from picolab.monitoring import Entry, Event, anomalies
from picolab.monitoring import step_split as step_split_module
from picolab.monitoring.anomalies import AnomalyDetector, Work
from picolab.monitoring.run_state import RunState
from picolab.monitoring.step_split import step_split

STEPS, AT = 90, 50
TRANSFER = 0.002


def run(
    *,
    slow=None,
    always=None,
    queued=None,
    change=None,
    layout="dp4",
    own=0.030,
    seed=0,
    steps=STEPS,
):
    """Events of a run in which each rank works, and all meet in one gradient bucket and a loss.

    slow        rank -> seconds that it works longer from step AT on; always: from the beginning on
    queued      rank -> of its work, seconds without a core, from AT on
    change      (step, rank, data, entries): anything else"""
    draw, world = random.Random(seed), 4
    ranks, events, now = tuple(range(world)), [], 10.0
    for step in range(steps):
        late = step >= AT
        work = {
            rank: own * draw.gauss(1, 0.01)
            + (always or {}).get(rank, 0.0)
            + ((slow or {}).get(rank, 0.0) + (queued or {}).get(rank, 0.0)) * late
            for rank in ranks
        }
        last = max(work.values())
        for rank in ranks:
            waits = last - work[rank] + TRANSFER
            core = (queued or {}).get(rank, 0.0) * late
            about = (rank, step, "all_reduce", "dp", ranks, "fp32")
            entries = [
                Entry(*about, 4096, 6144.0, "dp: gradient bucket", now + work[rank], waits, waits,
                      None, core, 0.0),
                Entry(*about, 8, 12.0, "dp: loss", now + last + TRANSFER, 1e-4, 1e-4,
                      None, 0.0, 0.0),
            ]  # fmt: skip
            loss = (5 * 0.98**step + 2) * draw.gauss(1, 0.02)
            data = dict(
                step=step, steps=steps, layout=layout, loss=loss, own_loss=loss,
                own_grad_norm=1.5 * draw.gauss(1, 0.05), grad_norm=1.0, tokens=512,
                began=now, seconds=last + TRANSFER + 1e-4, data_s=0.001, queued_s=core,
                rss_bytes=int(3e8 + draw.gauss(0, 3e4)), skipped=False,
            )  # fmt: skip
            if change is not None:
                change(step, rank, data, entries)
            events.append(Event("ledger", rank, now, {"entries": entries}))
            events.append(Event("step", rank, now, data))
        now += last + 0.01
    return events


def found(events, **options):
    detector = AnomalyDetector(**options)
    for event in events:
        detector.add(event)
    return detector.found


def names(anomalies):
    return [(a.name, a.ranks) for a in anomalies]


def at_step(step, rank, **changes):
    """Change these fields of one rank's step by factors."""

    def change(s, r, data, entries):
        if (s, r) == (step, rank):
            for key, factor in changes.items():
                data[key] *= factor

    return change


def test_a_clean_run_accuses_nobody():
    for seed in range(10):
        assert found(run(seed=seed, steps=300)) == []


def test_of_next_to_no_work_late_is_no_share():
    (only,) = found(run(own=0.0, slow={2: 0.030}))
    assert (only.name, only.ranks) == ("slow rank", (2,)) and "%" not in only.text


@pytest.mark.parametrize("slower", [0.15, 0.30])
def test_the_slow_rank_is_the_one_that_comes_late(slower):
    for seed in range(5):
        events = run(slow={2: slower * 0.030}, seed=seed)
        (only,) = found(events)
        assert (only.name, only.ranks) == ("slow rank", (2,)) and only.step - AT <= 15
        assert f"+{100 * slower:.0f} %" in only.text or "comes" in only.text


def test_phases_last_equally_long_on_all_ranks(monkeypatch):
    """The mutant judges the wall time of the step's work (backward with the wait in it), and of a
    rank 30 % slower it sees nothing; what it sees of waiting points at everybody else."""
    events = run(slow={2: 0.009})
    walls = {e.rank: e.data["seconds"] for e in events if e.kind == "step" and e.data["step"] == 60}
    assert max(walls.values()) == min(walls.values())
    entries = [x for e in events if e.kind == "ledger" for x in e.data["entries"] if x.step == 60]
    split = step_split(entries, walls)
    assert split[2].waiting_s == min(part.waiting_s for part in split.values())
    wall = lambda said, entries: Work(said["seconds"], said["data_s"], said["queued_s"])  # noqa: E731
    monkeypatch.setattr(anomalies, "work_of", wall)
    assert not any(a.ranks for a in found(events))


def test_late_because_of_its_data():
    def stall(step, rank, data, entries):
        if rank == 1 and step >= AT:
            data["data_s"] += 0.012

    assert names(found(run(slow={1: 0.012}, change=stall))) == [("late data", (1,))]


def test_a_rank_without_a_core_is_not_slow(monkeypatch):
    """Rank 3 comes as late as a slow one, because it waits for a core: the host is busy, and nobody
    is accused. The mutant does not take that off."""
    events = run(queued={3: 0.009})
    assert names(found(events)) == [("busy host", ())]
    busy = run(queued={rank: 0.012 + 0.002 * rank for rank in range(4)})
    assert names(found(busy)) == [("busy host", ())]
    real = anomalies.work_of

    def blind(said, entries):
        untold = [entry._replace(queued_before_s=None, queued_s=None) for entry in entries]
        return real(said | {"queued_s": 0.0}, untold)

    monkeypatch.setattr(anomalies, "work_of", blind)
    assert ("slow rank", (3,)) in names(found(events))


def test_all_ranks_slow_is_a_slow_run_and_nobodys_fault():
    (only,) = found(run(slow=dict.fromkeys(range(4), 0.006)))
    assert (only.name, only.ranks) == ("slow run", ()) and only.step - AT <= 40


def test_stages_of_a_pipeline_are_compared_with_what_they_were():
    """Stage 1 always works twice as long, and is no patient; stage 3 becomes one."""
    uneven = {1: 0.030}
    assert names(found(run(layout="pp4", always=uneven))) == []
    assert names(found(run(layout="pp4", always=uneven, slow={3: 0.009}))) == [("slow rank", (3,))]
    assert names(found(run(always=uneven))) == [("slow rank", (1,))]  # of replicas it is one


def test_a_slow_stage_among_ranks_that_wait_for_cores():
    """Each stage waits 15 ms for a core, and the others for it in turn: a step takes 121 ms in
    place of 46, of which the 6.6 ms of the slow stage are little. (Measured against that step it
    was not worth a word.)"""

    def in_turn(step, rank, data, entries):
        whole, core = 0.075, 0.015
        first, last = entries
        waits = first.exposed_s + whole - core
        entries[0] = first._replace(
            start=first.start + core, seconds=waits, exposed_s=waits, queued_before_s=core
        )
        entries[1] = last._replace(start=last.start + whole)
        data["seconds"] += whole
        data["queued_s"] = core

    events = run(layout="pp4", own=0.044, change=in_turn)
    assert names(found(events)) == []
    events = run(layout="pp4", own=0.044, slow={1: 0.0066}, change=in_turn)
    assert names(found(events)) == [("slow rank", (1,))]


def test_a_stage_that_shares_its_core_is_not_slow(monkeypatch):
    """It has no like, so that what a neighbour costs it (caches) looks as if it were slow. But then
    it waits for cores, too, and takes more CPU time: by as much as it is late. Where it waits for
    none, or takes no more CPU time (it sleeps), it is slow. The mutant does not look."""

    def shared(cpu, queued):
        def change(step, rank, data, entries):
            late = 0.009 * (rank == 3 and step >= AT)
            data["cpu_s"] = 0.020 + late * cpu
            data["queued_s"] = 0.004 * queued
            entries[0] = entries[0]._replace(queued_before_s=0.004 * queued)

        all_found = found(run(layout="pp4", slow={3: 0.009}, change=change))
        return [(a.name, a.ranks) for a in all_found if a.ranks]  # (the run is slow either way)

    assert shared(cpu=True, queued=True) == []
    assert shared(cpu=False, queued=True) == [("slow rank", (3,))]
    assert shared(cpu=True, queued=False) == [("slow rank", (3,))]
    monkeypatch.setattr(anomalies, "SHARES", math.inf)
    assert shared(cpu=True, queued=True) == [("slow rank", (3,))]


def test_each_ranks_own_value_is_judged_before_the_reduction():
    """One rank's own loss is three times as high; the mean of four has grown by a half at most.
    The mutant looks at the reduced value, which all ranks have."""
    events = run(change=at_step(AT, 2, own_loss=3.0))
    assert names(found(events)) == [("loss spike", (2,))]
    events = run(change=at_step(AT, 1, own_grad_norm=8.0))
    assert names(found(events)) == [("gradient spike", (1,))]

    def reduced(step, rank, data, entries):
        if step == AT:
            data["own_loss"] = data["loss"] * 1.5

    assert [ranks for _, ranks in names(found(run(change=reduced)))] == [()]


@pytest.mark.parametrize(("layout", "whom"), [("dp4", (1,)), ("pp4", ()), ("cp4", ())])
def test_a_spike_that_all_see_who_have_the_samples_is_nobodys(layout, whom, monkeypatch):
    """A steep text makes the gradient of each stage large, and one stage's first of all; in another
    replica it is that rank's. The mutant knows of no samples that are shared."""

    def steep(step, rank, data, entries):
        if step == AT:
            data["own_grad_norm"] *= {1: 9.0}.get(rank, 3.0)

    events = run(layout=layout, change=steep)
    assert names(found(events)) == [("gradient spike", whom)]
    monkeypatch.setattr(AnomalyDetector, "_of_the_samples", lambda *_: False)
    assert names(found(events)) == [("gradient spike", (1,))]


def test_of_two_replicas_the_one_with_the_high_loss_is_named():
    """All its ranks have that loss. Who asks whether others see the samples must not ask them."""

    def high(step, rank, data, entries):
        if (step, rank) in ((AT, 0), (AT, 1)):
            data["own_loss"] *= 3.0

    assert names(found(run(layout="dp2tp2", change=high))) == [("loss spike", (0, 1))]


def test_no_number_is_told_at_once_and_once():
    detector = AnomalyDetector(world_size=4)
    told = {"step": 3, "loss": math.nan, "grad_norm": math.nan, "own_loss": 2.0}
    assert detector.add(Event("not finite", 0, 0.0, told | {"own_grad_norm": 1.0})) == []
    bad = told | {"own_loss": math.nan, "own_grad_norm": math.nan}
    (only,) = detector.add(Event("not finite", 2, 0.0, bad))
    assert (only.name, only.ranks, only.step) == ("not finite", (2,), 3)
    assert detector.add(Event("not finite", 2, 0.0, bad | {"step": 4})) == []


def test_a_step_that_all_agreed_to_skip_is_no_fault():
    def overflow(step, rank, data, entries):
        if step == AT:
            data |= {"skipped": True, "own_grad_norm": math.inf}

    assert found(run(change=overflow)) == []


def test_a_rank_that_grows_alone():
    def leak(step, rank, data, entries):
        data["rss_bytes"] += int(2e6) * step  # all: the ledger, say
        if rank == 3 and step >= AT:
            data["rss_bytes"] += int(1e6) * (step - AT)

    (only,) = found(run(change=leak))
    assert (only.name, only.ranks) == ("leak", (3,)) and only.step - AT <= 40


def test_a_rank_that_left_something_out():
    def skipped(step, rank, data, entries):
        if (step, rank) == (AT, 1):
            del entries[:]

    def other(step, rank, data, entries):
        if (step, rank) == (AT, 2):
            entries[1] = entries[1]._replace(op="broadcast")

    assert names(found(run(change=skipped))) == [("desync", (1,))]
    assert names(found(run(change=other))) == [("desync", (2,))]
    assert found(run(change=skipped))[0].step == AT


def test_a_link_that_became_slow():
    def messages(step, rank, data, entries):
        about = dict(axis="pp", reason="pp: activation", payload_bytes=512, ring_bytes=512.0)
        first = entries[0]._replace(**about, queued_before_s=0.0)
        if rank > 0:
            slow = 0.006 * (rank == 2 and step >= AT)
            entries.append(
                first._replace(op="recv", peer=rank - 1, start=data["began"] + 0.02 + 0.01 * rank,
                               seconds=3e-4 + slow, exposed_s=3e-4 + slow)
            )  # fmt: skip
        if rank < 3:
            entries.append(
                first._replace(op="send", peer=rank + 1, start=data["began"] + 0.015 + 0.01 * rank,
                               seconds=1e-4, exposed_s=1e-4)
            )  # fmt: skip

    hits = [a for a in found(run(change=messages)) if a.name == "slow link"]
    assert [a.ranks for a in hits] == [(1, 2)] and hits[0].step - AT <= 10
    assert "6" in hits[0].text


def ring(late=None, slow_link=0.0):
    """Three hops of a ring of four, in each step; the last to issue a hop lets all leave it.

    late        rank -> seconds that it issues each hop later, from AT on
    slow_link   seconds that what rank 1 sends takes longer to come"""

    def change(step, rank, data, entries):
        first = entries[0]._replace(axis="cp", reason="cp: keys and values", queued_before_s=0.0)
        behind = late if late and step >= AT else {}
        for hop in range(3):
            began = data["began"] + 0.005 + 0.008 * hop
            all_there = began + max(behind.values(), default=0.0)
            start = began + behind.get(rank, 0.0)
            stood = all_there - start + 2e-4 + slow_link * (rank == 2 and step >= AT)
            times = dict(start=start, seconds=stood, exposed_s=stood)
            none = dict(start=start + stood, seconds=0.0, exposed_s=0.0)
            entries.append(first._replace(op="send", peer=(rank + 1) % 4, **times))
            entries.append(first._replace(op="recv", peer=(rank - 1) % 4, **none))

    return change


def links(change):
    return [a.ranks for a in found(run(change=change, layout="cp4")) if a.name == "slow link"]


def test_a_link_of_a_ring(monkeypatch):
    """Rank 3 comes late to every hop: nobody's link is slow. The mutant waits for the neighbours of
    a hop only, as its two messages do, and takes the far side's lateness for the link's."""
    assert links(ring(slow_link=0.006)) == [(1, 2)]
    assert links(ring(late={3: 0.006})) == []

    def neighbours_only(entries):
        waits = dict(enumerate(step_split_module.waiting_of(entries)))
        return [
            step_split_module.Transfer(waits[i + 1][0].peer, e.rank, e.exposed_s - waited)
            for i, (e, waited) in waits.items()
            if e.op == "send"
        ]

    monkeypatch.setattr(anomalies, "transfers_of", neighbours_only)
    assert links(ring(late={3: 0.006})) == [(0, 1)]


def test_experts_that_nobody_asks_any_more():
    detector, hits = AnomalyDetector(world_size=2), []
    for step in range(40):
        even, dead = [50, 60, 45, 55, 52, 48, 61, 49], [210, 205, 3, 0, 1, 0, 1, 0]
        loads = {"0": even, "1": dead if step >= 20 else even}
        data = {"step": step, "loads": loads, "dropped": [0, 0], "imbalance": [1, 1]}
        hits += detector.add(Event("experts", 0, 0.0, data))
    (only,) = hits
    assert (only.name, only.ranks) == ("expert collapse", ()) and 20 <= only.step <= 30


@pytest.mark.parametrize(
    ("failure", "name"), [("hang", "hang"), ("signal", "dead rank"), ("mismatch", "mismatch")]
)
def test_how_the_run_ended(failure, name):
    data = {"state": "failed", "error": "rank 2 failed: it\nmore", "failure": failure, "rank": 2}
    assert names(found([Event("state", -1, 0.0, data)])) == [(name, (2,))]
    assert names(found([Event("state", -1, 0.0, data | {"rank": None})])) == [(name, ())]
    assert found([Event("state", -1, 0.0, {"state": "done"})]) == []


def test_a_rank_that_never_writes_is_told_and_the_others_are_judged():
    events = [event for event in run(slow={2: 0.009}) if event.rank != 3]
    assert names(found(events, world_size=4)) == [("silent rank", (3,)), ("slow rank", (2,))]
    state = RunState(events, world_size=4)
    assert "nothing was heard of rank 3" in state.sentence()
    assert "nothing was heard" not in RunState(events, world_size=3).sentence()


def test_a_run_that_goes_back_is_judged_again():
    """Twenty steps are done again, without anything wrong; the mutant has forgotten who told what
    of them when the first rank tells it, and takes the others' for missing."""
    events, again = run(steps=60), run(steps=80, seed=1)[2 * 4 * 40 :]
    assert found([*events, *again]) == []
    spiked = run(steps=80, seed=1, change=at_step(50, 2, own_loss=3.0))[2 * 4 * 40 :]
    assert names(found([*events, *spiked])) == [("loss spike", (2,))]


def test_where_ranks_differ_anyway_more_is_asked_for(monkeypatch):
    """Of two ranks on one busy core now the one and now the other gets more of it, for some
    steps, and no clock tells. Who is late by that is not accused; who is late by far more is.
    The mutant takes any 8 % for a fault."""

    def take_turns(step, rank, data, entries):
        if rank < 2 and step > 0:
            swing = 0.010 * (-1) ** (step // 9) * (1 if rank else -1)
            entries[0] = entries[0]._replace(exposed_s=entries[0].exposed_s + swing)

    assert not any(a.ranks for a in found(run(change=take_turns, own=0.06)))
    assert names(found(run(change=take_turns, own=0.06, slow={2: 0.040}))) == [("slow rank", (2,))]
    monkeypatch.setattr(anomalies, "NOISE", 0.0)
    assert any(a.ranks for a in found(run(change=take_turns, own=0.06)))
