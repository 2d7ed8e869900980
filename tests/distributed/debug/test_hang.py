"""Every hang and desync of the catalogue, in real runs: whose it is, said from what is left in the
run directory after the ranks were killed. And what a reader's own program can do wrong.

A push has a handful; a week all of them, with more culprits. Printed: who it was, and the verdict.
"""

import json
import random
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import cli
from picolab.debug.run_faults import CATALOGUE, InRun
from picolab.monitoring import blame
from picolab.monitoring.beacon import Call, read_calls
from picolab.monitoring.standstill import NAME, load
from picolab.monitoring.who_waits import of_standstill

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import detection

NEVER = "never entered all_reduce #"
# fault -> kinds that it may be called, and what the verdict must say of it
SAYS = {
    "hang: sleeps": (
        {"hang"},
        (NEVER, "wait: it is in the forward and backward pass, run_faults."),
    ),
    "hang: spins": ({"hang"}, (NEVER, "(_spin)")),
    "hang: holds the GIL": ({"hang"}, (NEVER, "run_faults.py")),
    "hang: stopped": ({"hang"}, ("is stopped by a signal (SIGSTOP), and never entered",)),
    "hang: stage stuck": ({"hang"}, ("never sent the message on pp for which rank",)),
    "dead rank": ({"dead rank"}, ("killed (SIGKILL)", NEVER)),
    "skipped step": ({"desync"}, ("is the odd one; rank", "returned, and")),
    "wrong shape": ({"mismatch"}, ("(dp: loss) with float64[5], the others with float64[]",)),
    "extra collective": ({"mismatch", "hang"}, (NEVER, "stood in all_reduce #1 on world", "extra")),
}
PUSH = ("hang: holds the GIL", "hang: stage stuck", "skipped step", "wrong shape", "dead rank")


def broken(name, seed):
    draw = random.Random(f"{name} {seed}")
    settings = detection.RUNS[name]["settings"] | {"steps": 12, "data": "random", "seed": seed}
    rank, at = draw.randrange(4), 4 + draw.randrange(3)
    with pytest.raises(pico.RankFailure) as caught:
        pico.train(**settings, observers=[InRun(name, rank=rank, at=at)], progress=False, timeout=2)
    return rank, at, caught.value


def check(name, seed):
    rank, at, failure = broken(name, seed)
    found = pico.diagnose(failure)
    print(f"{name}, seed {seed}: rank {rank} at step {at}; {found.kind}: {found.verdict}")
    kinds, says = SAYS[name]
    assert found.rank == rank, found
    assert found.kind in kinds, found
    for text in says:
        assert text in found.verdict.replace("it stands in", "stood in"), found
    assert [row.rank for row in found.rows] == [0, 1, 2, 3]
    assert any(rank in row.waits_for for row in found.rows) or name == "wrong shape"
    if name == "skipped step":
        assert found.since == at
    return rank, failure, found


@pytest.mark.parametrize("name", PUSH)
def test_whose_fault_it_is(name):
    _, failure, found = check(name, 0)
    if isinstance(failure, pico.RankHang):  # one way to blame
        assert failure.rank == found.rank


@pytest.mark.weekly
@pytest.mark.parametrize("name", SAYS)
def test_whose_fault_it_is_with_other_culprits(name):
    for seed in range(1, 4):
        check(name, seed)


def test_the_whole_catalogue_is_asked():
    ends = {name for name, fault in CATALOGUE.items() if fault.ends and name != "NaN"}
    assert set(SAYS) == ends


@pytest.fixture(scope="module")
def hung():
    """A run that hung and was killed."""
    return check("hang: sleeps", 0)


def test_a_killed_run_is_read_from_its_folder(hung, capsys):
    rank, failure, found = hung
    run_dir = failure.run_dir
    assert not list(run_dir.glob("beacon.*")) and not list(run_dir.glob("stack.*"))
    assert (run_dir / NAME).stat().st_size < 4 * 60_000
    for of in (run_dir, str(run_dir), run_dir.name):
        assert pico.diagnose(of) == found
    assert cli.main(["debug", str(run_dir), "--stacks"]) == 0
    out = capsys.readouterr().out
    assert found.verdict in out and "rank 0:\n" in out and "in _wait" in out
    assert cli.main(["debug", str(run_dir), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rank"] == rank and [rank] == sorted({to for _, to in told["edges"]})
    assert told["rows"][rank]["where"].startswith("run_faults.py:")
    assert cli.main(["debug"]) == 0 and found.verdict in capsys.readouterr().out  # the newest


def test_who_is_missing_is_told_by_those_who_wait(hung):
    """Also if nothing is left of the culprit itself: no beacon, no stack (its disk was full)."""
    rank, failure, _ = hung
    kept = load(failure.run_dir)
    del kept.ranks[rank]
    found = of_standstill(kept)
    assert found.rank == rank and f"rank {rank} never entered all_reduce" in found.verdict


class Kept(pico.Observer):
    """Tells at the end what the beacon has kept."""

    def end(self, run):
        calls = read_calls(pico.comm.ledger()._beacon.path)
        pico.emit(calls=[list(call) for call in calls])


def test_ranks_that_do_the_same_are_not_told_apart():
    """In runs without a fault, over all kinds of groups: no two calls of one number differ, and
    nothing is said to be wrong."""
    for layout in ("dp2tp2", "pp2cp2", "dp2zero3"):
        accumulate = 2 if "pp" in layout else 1
        result = pico.train(
            layout=layout, steps=3, accumulate=accumulate, data="random", progress=False,
            observers=[Kept()], **detection.SMALL,
        )  # fmt: skip
        kept = {e.rank: e.data["calls"] for e in result.events if e.kind == "values"}
        calls = {rank: [Call(*call) for call in of] for rank, of in kept.items()}
        assert len(calls) == result.layout.world and all(len(of) > 10 for of in calls.values())
        assert blame.first_difference(calls) is None, layout
        found = pico.diagnose(result)
        assert (
            found == result.diagnose()
            and found.ok
            and "did the same collectives in 3 step(s)" in found.verdict
        )


# -- a reader's own program --


def hang_of(fn, world=3, **options):
    with pytest.raises(pico.RankHang) as caught:
        pico.run(fn, world_size=world, timeout=1.5, quiet=True, **options)
    return pico.diagnose(caught.value)


def test_messages_that_nobody_sends():
    def ring():
        rank, world = dist.get_rank(), dist.get_world_size()
        dist.recv(torch.ones(4), (rank - 1) % world)  # all receive first, and nobody sends
        dist.send(torch.ones(4), (rank + 1) % world)

    found = hang_of(ring)
    assert found.rank is None and found.verdict.startswith("ranks 0, 1, 2 wait for each other")
    assert sorted(found.edges) == [(0, 2), (1, 0), (2, 1)]

    def forgets():
        rank = dist.get_rank()
        if rank == 2:
            dist.recv(torch.ones(4), 1)
        elif rank == 1:
            dist.recv(torch.ones(4), 0)
            dist.send(torch.ones(4), 2)
        else:
            time.sleep(60)

    found = hang_of(forgets)
    assert found.rank == 0 and "rank 0 never sent the message for which rank 1" in found.verdict
    assert "test_hang.py:" in found.verdict


def test_what_only_torch_knows():
    """DDP sums gradients from C++, in backward: no beacon has it, torch's flight recorder does."""

    def ddp():
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
        if dist.get_rank() == 1:
            time.sleep(60)
        model(torch.ones(2, 4)).sum().backward()

    found = hang_of(ddp)
    assert found.rank == 1
    assert "rank 1 never entered all_reduce on world (as torch's flight recorder" in found.verdict


def test_while_it_hangs_and_after_it_was_stopped():
    def hangs():
        for step in range(200):
            if dist.get_rank() == 1 and step == 150:
                time.sleep(60)
            dist.all_reduce(torch.ones(2))
            time.sleep(0.01)

    job = pico.run(hangs, world_size=3, wait=False, quiet=True)
    until, live = time.monotonic() + 60, pico.diagnose(job)
    while live.ok and time.monotonic() < until:
        assert live.verdict.startswith("nothing is wrong as far as can be seen: ")
        live = pico.diagnose(job)
    assert live.rank == 1 and "rank 1 never entered all_reduce #151 on raw" in live.verdict
    assert "time.sleep(60)" in live.stacks[1]
    job.stop()
    after = pico.diagnose(job)
    verdict = live.verdict.removesuffix(" (nothing had moved for 2 s)")
    assert after.rank == live.rank and after.verdict.startswith(verdict + " (nothing had moved")


def test_what_is_no_run():
    with pytest.raises(ValueError, match="a int is no run: give a Job, the result of a run"):
        pico.diagnose(3)
    with pytest.raises(ValueError, match="there is no run directory"):
        pico.diagnose("20200101-000000-0001-none")
