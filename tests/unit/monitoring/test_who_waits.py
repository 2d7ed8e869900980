"""What is said of ranks that wait: made of beacons as ranks write them, in a folder.

Mutants: the last difference in place of the first; calls compared without their step, which lets a
skipped step go by; waiting for all of a group, also for those who have entered; a rank left out."""

import json

import pytest

from picolab.monitoring import blame, who_waits
from picolab.monitoring.beacon import Beacon, parse
from picolab.monitoring.events import Event
from picolab.monitoring.ledger import Entry, RankLedger
from picolab.monitoring.standstill import NAME, RankThen, Standstill, left_in, load
from picolab.monitoring.who_waits import Told, of_folder, of_going_on, of_standstill

ALL = (0, 1, 2, 3)
STACK = """\
  File "/x/picolab/training/trainer.py", line 111, in train_step
    run.tokens_MBS, run.labels_MBS = next_batch(run.text, config, run.device)
  File "/home/me/loader.py", line 88, in next_batch
    wait()
  File "/usr/lib/python3.11/threading.py", line 320, in wait
    waiter.acquire()"""


class Rank:
    """One, and what it does: `do("dp", "loss")`, `do(..., goes_on=True)` if it comes out again."""

    def __init__(self, folder, rank):
        self.folder, self.rank, self.ledger = folder, rank, RankLedger()
        self.path = folder / f"beacon.{rank}"
        self.ledger.attach(rank, Beacon(self.path))

    def do(self, axis, why="loss", *, op="all_reduce", size="[8]", ranks=ALL, goes_on=True):
        what = f"{op} over {axis} of ranks {tuple(ranks)}: float32{size} ({axis}: {why})"
        self._enter(what, axis, goes_on)

    def message(self, op, peer, why="activations", goes_on=True):
        way = "to" if op == "send" else "from"
        what = f"{op} over pp of ranks {ALL}: float32[8] {way} {peer} (pp: {why})"
        self._enter(what, (op, "pp", peer), goes_on)

    def _enter(self, what, group, goes_on):
        self.ledger.enter(what, group)
        if goes_on:
            self.ledger.go_on()

    def then(self, **about):
        return RankThen.of_beacon(self.path, **about)


@pytest.fixture
def ranks(tmp_path):
    found = [Rank(tmp_path, rank) for rank in ALL]
    for rank in found:
        rank.ledger.step = 5
        for _ in range(3):
            rank.do("dp")
    return found


def diagnosed(ranks, told=None, **about):
    at = {r.rank: r.then(**about.pop(f"rank{r.rank}", {})) for r in ranks}
    return of_standstill(Standstill(at, **about), told)


def all_but(ranks, left_out, **what):
    for rank in ranks:
        if rank.rank != left_out:
            rank.do("dp", goes_on=False, **what)


def test_who_never_entered_and_what_it_does_instead(ranks):
    all_but(ranks, 2)
    found = diagnosed(ranks, rank2={"stack": STACK})
    assert found.verdict == (
        "rank 2 never entered all_reduce #4 on dp (dp: loss), in which ranks 0, 1, 3 wait: it is "
        "in data loading, loader.py:88 (next_batch)"
    )
    assert (found.rank, found.kind) == (2, "hang") and not found.ok
    assert found.edges == [(0, 2), (1, 2), (3, 2)]
    row = found.rows[2]
    assert (row.call, row.shape, row.step, row.waits_for) == (
        "all_reduce #3 on dp", "float32[8]", 5, ()
    )  # fmt: skip
    assert "rank 2 never" in repr(found) and "rank 2 never" in found._repr_html_()
    assert json.loads(json.dumps(found.as_dict()))["rank"] == 2
    assert found.table().wrong == {2} and "loader.py" in found.stacks_text()


def test_who_has_entered_is_not_waited_for(ranks):
    """Rank 3 was let out of the collective that the others are still in: only rank 2 is missing."""
    all_but(ranks, 2)
    ranks[3].ledger.go_on()
    found = diagnosed(ranks)
    assert found.rank == 2 and found.edges == [(0, 2), (1, 2)]
    readings = {r.rank: r.then().reading for r in ranks}
    mutant = {rank: others for rank in (0, 1) if (others := blame.awaits(rank, readings, {}))}
    assert all(3 in others for others in mutant.values())


def test_stopped_returned_and_elsewhere(ranks):
    all_but(ranks, 2)
    found = diagnosed(ranks, rank2={"state": "stopped"})
    assert found.verdict.startswith("rank 2 is stopped by a signal (SIGSTOP), and never entered")
    found = diagnosed(ranks, rank2={"state": "returned"})
    assert (
        found.verdict.endswith("in which ranks 0, 1, 3 wait: it has returned") and found.rank == 2
    )
    ranks[2].do("world", "an extra one", goes_on=False)
    found = diagnosed(ranks)
    assert found.rank == 2 and "it stands in all_reduce #1 on world (world: an ext" in found.verdict


@pytest.mark.parametrize(
    "what, says",
    [
        (
            {"size": "[5]"},
            "rank 1 entered all_reduce #4 on dp (dp: loss) with float32[5], the others with "
            "float32[8]",
        ),
        (
            {"op": "all_gather"},
            "rank 1's call #4 on dp is all_gather float32[8] (dp: loss), the others' all_reduce "
            "float32[8] (dp: loss)",
        ),
        (
            {"why": "norm"},
            "rank 1 entered all_reduce #4 on dp for 'dp: norm' with float32[8], the others for "
            "'dp: loss' with float32[8]",
        ),
    ],
)
def test_the_first_call_in_which_they_part_ways(ranks, what, says):
    for rank in ranks:
        rank.do("dp", **(what if rank.rank == 1 else {}))
        rank.do("dp", size="[9]" if rank.rank == 3 else "[8]", goes_on=False)
    found = diagnosed(ranks)
    assert (found.verdict, found.rank, found.kind) == (says, 1, "mismatch")
    assert {call.number for call in found.difference.values()} == {4}
    calls = {r.rank: r.then().calls for r in ranks}
    last = max(  # the mutant: the last difference, and so another rank
        (blame.Difference(of) for n in (4, 5)
         if (of := {r: c for r, cs in calls.items() for c in cs if c.number == n})),
        key=lambda d: d.calls[0].number,
    )  # fmt: skip
    assert last.rank == 3
    left_out = {r: of for r, of in calls.items() if r != 1}  # and the one that ignores a rank
    assert blame.first_difference(left_out).rank == 3


def test_of_two_that_differ_neither_is_wrong(ranks):
    for rank in ranks[:2]:
        rank.do("tp", ranks=(0, 1), size=f"[{rank.rank}]", goes_on=False)
    found = diagnosed(ranks[:2])
    assert found.rank is None and found.kind == "mismatch"
    assert "rank 0 with float32[0], rank 1 with float32[1]; no majority" in found.verdict


def test_a_step_that_one_rank_left_out(ranks, monkeypatch):
    """Calls of other steps meet, alike in all that is sent: the step tells. The mutant that does
    not look at it sees nothing."""
    for rank in ranks:
        rank.ledger.step = 7 if rank.rank == 0 else 6
        rank.do("dp")
    found = diagnosed(ranks)
    assert (found.rank, found.kind) == (0, "desync")
    assert found.verdict == (
        "rank 0 entered all_reduce #4 on dp (dp: loss) in step 7, the others in step 6"
    )
    sense = blame.sense
    monkeypatch.setattr(blame, "sense", lambda call: sense(call)[:-1])
    assert diagnosed(ranks).kind == "unknown" and diagnosed(ranks).rank is None


def test_messages(ranks):
    """A stage that never sends: those after it wait along a chain, the one before for its gradient.
    What has been sent and not taken is nobody's fault."""
    for source, to in ((0, 1), (1, 2), (2, 3)):
        ranks[source].message("send", to)
        ranks[to].message("recv", source)
    ranks[0].message("send", 1)
    ranks[0].message("recv", 1, "gradients", goes_on=False)
    ranks[1].message("recv", 0)
    ranks[2].message("recv", 1, goes_on=False)
    ranks[3].message("recv", 2, goes_on=False)
    found = diagnosed(ranks, rank1={"stack": STACK})
    assert found.rank == 1 and found.edges == [(0, 1), (2, 1), (3, 2)]
    assert found.verdict.startswith(
        "rank 1 never sent the message on pp for which rank 0 (recv #1, pp: gradients) and rank 2 "
        "(recv #2, pp: activations) wait: it is in data loading"
    )


def test_a_circle_and_a_transfer_that_does_not_end(ranks):
    for rank in ranks[:2]:
        rank.message("recv", 1 - rank.rank, goes_on=False)
    found = diagnosed(ranks[:2])
    assert found.rank is None and found.verdict == (
        "ranks 0, 1 wait for each other: rank 0 stands in recv #1 from rank 1 on pp (pp: "
        "activations), rank 1 stands in recv #1 from rank 0 on pp (pp: activations)"
    )
    for rank in ranks:
        rank.do("dp", goes_on=False)
    found = diagnosed(ranks)
    assert found.rank is None and "nobody is missing from one" in found.verdict


def test_ranks_that_are_at_work(ranks):
    found = diagnosed(ranks, quiet_s=3.2)
    assert (found.kind, found.rank) == ("unknown", None) and found.verdict == (
        "no rank waits for another: all are at work, or in loops of their own (nothing had moved "
        "for 3 s)"
    )


def test_a_mismatch_that_is_none_of_sizes(ranks):
    """What one rank sent over its extra collective, gloo took for the others' next bucket."""
    all_but(ranks, 1)
    ranks[1].do("world", "an extra one", goes_on=False)
    found = diagnosed(ranks, failure="mismatch", rank=1, what="rank 1 entered a collective of ...")
    assert (found.rank, found.kind) == (1, "mismatch") and found.verdict == (
        "rank 1 never entered all_reduce #4 on dp (dp: loss), in which ranks 0, 2, 3 wait: it "
        "stood in all_reduce #1 on world (world: an extra one)"
    )


def entry(rank, step, axis="dp"):
    return Entry(
        rank, step, "all_reduce", axis, ALL, "float32", 32, 48.0, "dp: loss", 0.0, 0.0, 0.0
    )


def told(skipped=(), steps=4):
    events = []
    for step in range(steps):
        for rank in ALL:
            if (rank, step) not in skipped:
                events.append(Event("ledger", rank, 0.0, {"entries": [entry(rank, step)] * 3}))
            events.append(Event("step", rank, 0.0, {"step": step}))
    return Told.of(events, 4)


def test_the_ledgers_tell_where_it_began(ranks):
    assert told().parted is None and told().steps == dict.fromkeys(ALL, 4)
    all_but(ranks, 2)
    found = diagnosed(ranks, told({(2, 1)}), failure="early return", rank=2, what="rank 2 returned")
    assert (found.rank, found.kind, found.since) == (2, "desync", 1)
    assert found.verdict == (
        "in step 1 ranks differ in how many collectives over dp they did (rank 0: 3, rank 1: 3, "
        "rank 2: 0, rank 3: 3); rank 2 is the odd one; rank 2 returned"
    )


def test_how_it_ended_and_what_the_others_waited_for(ranks):
    all_but(ranks, 3)
    gone = {f"rank{r}": {"state": "gone"} for r in ALL}
    found = diagnosed(ranks, failure="signal", rank=3, what="rank 3 failed: killed", **gone)
    assert (found.rank, found.kind) == (3, "dead rank")
    assert found.verdict == (
        "rank 3 failed: killed; it never entered all_reduce #4 on dp (dp: loss), in which ranks "
        "0, 1, 2 stood"
    )


def test_it_is_kept_whole(ranks, tmp_path):
    all_but(ranks, 2)
    at = {r.rank: r.then(stack=STACK) for r in ranks}
    before = Standstill(at, "hang", 2, "a hang", 3.5)
    before.save(tmp_path)
    assert load(tmp_path) == before and load(tmp_path / "gone") is None
    assert oct((tmp_path / NAME).stat().st_mode & 0o777) == "0o600"
    at[0].stack = "x" * 10**6
    for _ in range(500):
        ranks[0].do("dp", "y" * 900)
    at[0].calls = ranks[0].then().calls
    Standstill({r: at[0] for r in range(8)}).save(tmp_path)
    assert (tmp_path / NAME).stat().st_size < 8 * 64_000


# -- folders --


def about(folder, **more):
    (folder / "run.json").write_text(json.dumps({"world_size": 4, **more}))


def test_a_folder_that_is_none_or_has_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"there is no run directory .*; `picolab runs ls` lists"):
        of_folder(tmp_path / "gone")
    found = of_folder(tmp_path)
    assert found.kind == "unknown" and found.verdict.startswith("there is nothing of a run in")
    assert repr(found) == found.verdict


def test_a_folder_of_another_version(tmp_path):
    about(tmp_path, state="failed")
    assert "it is an older version's, or the disk was full" in of_folder(tmp_path).verdict
    (tmp_path / NAME).write_text(json.dumps({"version": 9, "ranks": {}}))
    found = of_folder(tmp_path)
    assert (
        found.kind == "unknown" and "another version of picolab (its format is 9" in found.verdict
    )
    (tmp_path / NAME).write_text("{")
    with pytest.raises(ValueError, match=r"where\.json is damaged"):
        of_folder(tmp_path)


@pytest.mark.parametrize(
    "state, says", [("done", "it ended as it should"), ("stopped", "while it")]
)
def test_nothing_is_wrong(tmp_path, state, says):
    about(tmp_path, state=state)
    found = of_folder(tmp_path)
    assert found.ok and found.verdict.startswith("nothing is wrong as far as the files tell: ")
    assert says in found.verdict


def wrote(folder, ranks, steps, odd):
    """Events of these ranks: two calls a step, of which rank `odd` leaves one out in step 1."""
    for rank in ranks:
        events = []
        for step in range(steps):
            calls = [entry(rank, step)] * (1 if (rank, step) == (odd, 1) else 2)
            events.append(Event("ledger", rank, step + 0.1, {"entries": calls}))
            events.append(Event("step", rank, step + 0.2, {"step": step}))
        text = "".join(event.to_json() + "\n" for event in events)
        (folder / f"events.{rank}.jsonl").write_text(text)


def test_a_run_that_ended_well_and_was_wrong(tmp_path):
    about(tmp_path, state="done")
    wrote(tmp_path, ALL, steps=3, odd=3)
    found = of_folder(tmp_path)
    assert (found.rank, found.kind, found.since) == (3, "desync", 1)
    assert found.verdict.endswith("rank 3 is the odd one, and no word of it was raised")


def test_a_rank_that_wrote_nothing_keeps_no_step_from_being_judged(tmp_path):
    """Its disk was full. Who waits until all have told a step judges none, and keeps them all."""
    about(tmp_path, state="done")
    wrote(tmp_path, (0, 1, 2), steps=40, odd=2)
    found = of_folder(tmp_path)
    assert (found.rank, found.kind, found.since) == (2, "desync", 1)


def test_a_run_whose_kernel_was_killed(ranks, tmp_path):
    about(tmp_path, state="running")
    all_but(ranks, 1)
    found = of_folder(tmp_path)
    assert found.kind == "unknown" and found.rank is None and len(found.rows) == 4
    assert "ended without a note; if it stood still: rank 1 never entered" in found.verdict


def test_a_run_that_goes_on(ranks, tmp_path, monkeypatch):
    """While something moves, nothing hangs, wherever ranks are. Only who stands still is asked."""
    monkeypatch.setattr(who_waits, "LOOKS_S", 0.05)
    all_but(ranks, 2)
    asked = []

    def look(ask):
        asked.append(ask)
        return left_in(tmp_path, 4)

    found = of_going_on(look, told)
    assert found.rank == 2 and asked[-1] and sum(asked) == 1
    assert found.verdict.endswith("wait (nothing had moved for 0 s)")

    def moves(ask):
        ranks[0].do("dp")
        return look(ask)

    found = of_going_on(moves, told)
    assert found.ok and "ranks move, and its 4 rank(s) did the same" in found.verdict
    assert of_going_on(moves, lambda: told({(1, 2)})).rank == 1
    assert of_going_on(lambda ask: None, told).ok

    def moves_when_asked(ask):  # a signal ends some waits
        if ask:
            ranks[0].do("dp")
        return look(ask)

    assert of_going_on(moves_when_asked, told).ok


def test_the_words_of_a_call():
    gather = parse("all_gather over tp of ranks (0, 1): bfloat16[2, 8] (tp: why (really))")
    assert gather[:5] == ("all_gather", "tp", (0, 1), "bfloat16", "[2, 8]")
    assert gather.reason == "tp: why (really)" and not gather.is_message
    hop = parse("send over cp of ranks (0, 1, 2): float32[4] to 1 while receiving from 2 (cp: hop)")
    assert (hop.to, hop.source, hop.reason, hop.is_message) == (1, 2, "cp: hop", False)
    raw = parse("recv of ranks (0, 1): int64[] from 0 (torch.distributed.recv)")
    assert (raw.axis, raw.source, raw.is_message) == ("", 0, True)
    barrier = parse("barrier over world of ranks (0, 1) (barrier)")
    assert barrier[:5] == ("barrier", "world", (0, 1), "", "") and barrier.reason == "barrier"
    assert parse("batch_isend_irecv (recv): float32[3] (torch.distributed)").shape == "[3]"
    assert parse("all_reduce over dp of ranks (0, 1, 2").ranks == (0, 1, 2)
