"""The collectives compute what torch's do, and the ledger says what they moved.

Wrong versions these catch: an all-gather along a dim that only concatenates along dim 0, a ledger
that takes the world's size for every group (then sub-group traffic is wrong), an asynchronous
entry written at the issue."""

import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm


def test_the_mesh_is_slices_of_one_arange_and_equals_torchs():
    def look():
        m = comm.build_mesh("dp2tp2")
        mine = {axis: m.ranks(axis) for axis in ("dp", "tp", "pp", "world")}
        theirs = torch.distributed.device_mesh.init_device_mesh(
            "cpu", (2, 2), mesh_dim_names=("dp", "tp")
        )
        same = all(
            tuple(dist.get_process_group_ranks(theirs.get_group(axis))) == m.ranks(axis)
            for axis in ("dp", "tp")
        )
        return mine, m.coordinates, m.size("tp"), m.size("pp"), same

    grid = torch.arange(4).reshape(1, 2, 1, 2)  # pp, dp, cp, tp
    for rank, (ranks, coordinates, tp, pp, same) in enumerate(pico.run(look, world_size=4)):
        dp_index, tp_index = divmod(rank, 2)
        assert ranks["tp"] == tuple(grid[0, dp_index, 0, :].tolist())
        assert ranks["dp"] == tuple(grid[0, :, 0, tp_index].tolist())
        assert ranks["pp"] == (rank,) and ranks["world"] == (0, 1, 2, 3)
        assert coordinates == {"pp": 0, "dp": dp_index, "cp": 0, "tp": tp_index}
        assert (tp, pp, same) == (2, 1, True)
        # Mutant: reshape(..., tp, dp) would put tensor-parallel neighbours two ranks apart.
        assert ranks["tp"] != tuple(
            grid.reshape(1, 2, 1, 2).transpose(1, 3)[0, tp_index, 0, :].tolist()
        )


def along_derived_axes():
    mesh, found = comm.build_mesh("dp2cp2ep2"), {}
    for axis in ("dp_cp", "ep", "edp"):
        x = comm.all_reduce(torch.tensor([10.0 ** mesh.rank("world")]), axis, "who is there?")
        found[axis] = mesh.ranks(axis), x.item()
    alias = comm.build_mesh("dp4")
    return found, alias.group("dp_cp") is alias.group("dp"), alias.size("ep")


def test_derived_axes_regroup_the_ranks():
    for rank, (found, same, alone) in enumerate(pico.run(along_derived_axes, world_size=4)):
        assert found["dp_cp"] == ((0, 1, 2, 3), 1111.0)
        # ep is the inner part of dp x cp: neighbours; edp are those who hold the same experts.
        assert found["ep"] == (((0, 1), 11.0) if rank < 2 else ((2, 3), 1100.0))
        assert found["edp"] == (((0, 2), 101.0) if rank % 2 == 0 else ((1, 3), 1010.0))
        assert same and alone == 1  # no second group where the ranks are those of another axis


def every_collective():
    comm.build_mesh("dp2tp2")
    m = comm.mesh()
    me, t = m.rank("world"), m.rank("tp")
    out = {}
    out["all_reduce"] = comm.all_reduce(torch.full((6,), float(me)), "tp", "r").tolist()
    out["max"] = comm.all_reduce(torch.full((6,), float(me)), "dp", "r", op="max").tolist()
    shard = torch.arange(6.0).reshape(2, 3) + 100 * t
    out["gather0"] = comm.all_gather(shard, "tp", "r")
    out["gather1"] = comm.all_gather(shard, "tp", "r", dim=1)
    whole = torch.arange(8.0).reshape(2, 4) * (t + 1)
    out["scatter1"] = comm.reduce_scatter(whole, "tp", "r", dim=1)
    uneven = comm.all_to_all(
        torch.arange(3.0) + 10 * t, "tp", "r", [1, 1] if t == 0 else [2, 2], [1, 2]
    )
    out["all_to_all"] = uneven.tolist()
    out["broadcast"] = comm.broadcast(torch.tensor([float(me)]), "tp", "r", source=1).item()
    if t == 0:
        comm.send(torch.tensor([me + 0.5]), 1, "tp", "r")
    else:
        out["recv"] = comm.recv(torch.empty(1), 0, "tp", "r").item()
    out["exchange"] = comm.exchange(
        torch.tensor([float(me)]), 1 - t, torch.empty(1), 1 - t, "tp", "r"
    ).item()
    comm.barrier("dp", "r")
    pending = comm.all_reduce(torch.ones(4), "dp", "async", async_op=True)
    issued = len(comm.ledger().kept)
    out["pending"] = pending.wait().tolist()
    out["written at wait"] = len(comm.ledger().kept) - issued
    pending.wait()  # a second wait changes nothing
    out["alone"] = comm.all_reduce(torch.ones(2), "pp", "an axis of size 1").tolist()
    return out


@pytest.fixture(scope="module")
def run():
    return pico.run(every_collective, world_size=4)


def test_values(run):
    for rank, out in enumerate(run):
        dp, tp = divmod(rank, 2)
        assert out["all_reduce"] == [float(2 * dp + 2 * dp + 1)] * 6
        assert out["max"] == [2.0 + tp] * 6
        parts = [torch.arange(6.0).reshape(2, 3) + 100 * t for t in (0, 1)]
        assert torch.equal(out["gather0"], torch.cat(parts, 0))
        assert torch.equal(out["gather1"], torch.cat(parts, 1))
        assert torch.equal(out["scatter1"], (torch.arange(8.0).reshape(2, 4) * 3).chunk(2, 1)[tp])
        assert out["all_to_all"] == ([0.0, 10.0] if tp == 0 else [1.0, 2.0, 11.0, 12.0])
        assert out["broadcast"] == 2 * dp + 1.0
        assert tp == 0 or out["recv"] == 2 * dp + 0.5
        assert out["exchange"] == float(2 * dp + 1 - tp)
        assert out["pending"] == [2.0] * 4 and out["written at wait"] == 1
        assert out["alone"] == [1.0, 1.0]


def test_the_ledger_says_what_was_moved(run):
    mine = run.ledger.rank(0)
    assert all(e.ranks == ((0, 1) if e.axis == "tp" else (0, 2)) for e in mine)
    totals = {
        key: (t.count, t.payload_bytes, t.ring_bytes) for key, t in mine.by("op", "axis").items()
    }
    assert totals == {
        ("all_reduce", "tp"): (1, 24, 24.0),
        ("all_reduce", "dp"): (2, 24 + 16, 40.0),
        ("all_gather", "tp"): (2, 2 * 48, 48.0),
        ("reduce_scatter", "tp"): (1, 32, 16.0),
        ("all_to_all", "tp"): (1, 12, 6.0),
        ("broadcast", "tp"): (1, 4, 2.0),
        ("send", "tp"): (2, 8, 8.0),
        ("recv", "tp"): (1, 4, 0.0),
        ("barrier", "dp"): (1, 0, 0.0),
    }
    assert not [e for e in run.ledger if e.axis == "pp"]
    # Mutant: the world's size in place of the group's. It would book 1.5 B for an all-reduce over
    # two ranks.
    assert pico.costs.ring_bytes("all_reduce", 24, 4) != pico.costs.ring_bytes("all_reduce", 24, 2)
    for entry in run.ledger:
        assert entry.seconds >= entry.exposed_s >= 0


def test_a_wrong_axis_and_a_wrong_world_get_a_sentence():
    def wrong():
        sentences = []
        for call in (
            lambda: comm.build_mesh("dp4tp2"),
            lambda: comm.all_reduce(torch.ones(1), "zz", "r"),
            lambda: comm.reduce_scatter(torch.ones(3), "world", "r"),
        ):
            try:
                call()
            except ValueError as error:
                sentences.append(str(error))
        return sentences

    layout, axis, rows = pico.run(wrong, world_size=2)[0]
    assert "needs 8 ranks (pp*dp*cp*tp), but 2 are running" in layout
    assert "the mesh has no axis 'zz'" in axis
    assert "cannot split 3 rows" in rows


def test_outside_a_rank_a_collective_says_where_it_belongs():
    with pytest.raises(RuntimeError, match="no process group here"):
        comm.all_reduce(torch.ones(1), "world", "r")


def test_a_shift_round_the_ring_is_a_send_and_a_receive():
    def round_trip():
        m = comm.mesh()
        x = torch.full((2, 3), float(m.rank("world")))
        seen = []
        for _ in range(m.size("world")):
            x = comm.shift(x, "world", "round")
            seen.append(int(x[0, 0]))
        return seen

    run = pico.run(round_trip, world_size=3)
    assert list(run) == [[2, 1, 0], [0, 2, 1], [1, 0, 2]]
    mine = run.ledger.rank(0)
    assert [(e.op, e.payload_bytes, e.ring_bytes) for e in mine] == [
        ("send", 24, 24.0),
        ("recv", 24, 0.0),
    ] * 3


def test_shifts_under_way_are_booked_when_they_are_waited_for():
    """Two at once; what is sent has no other owner, and other tensors take its size meanwhile."""

    def two_hops():
        m, ledger = comm.mesh(), comm.ledger()
        me, booked = m.rank("world"), []
        pendings = [
            comm.shift(torch.full((1000, 3), 10.0 * hop + me), "world", f"hop {hop}", async_op=True)
            for hop in range(2)
        ]
        others = [torch.full((1000, 3), -1.0) for _ in range(20)]
        booked.append(len(ledger.kept))
        time.sleep(0.2)  # compute, behind which they hide
        for pending in pendings[::-1]:
            arrived = pending.wait()
            assert pending.done() and torch.equal(pending.wait(), arrived) and len(others) == 20
            booked.append((int(arrived[0, 0]), arrived.shape, len(ledger.kept)))
            assert bool((arrived == arrived[0, 0]).all())
        return booked

    run = pico.run(two_hops, world_size=3)
    for rank, booked in enumerate(run):
        left, shape = (rank - 1) % 3, torch.Size([1000, 3])
        assert booked == [0, (10 + left, shape, 2), (left, shape, 4)]
    entries = list(run.ledger.rank(0))
    assert [(e.op, e.reason, e.payload_bytes, e.ring_bytes) for e in entries] == [
        (op, f"hop {hop}", 12_000, 12_000.0 if op == "send" else 0.0)
        for hop in (1, 0)
        for op in ("send", "recv")
    ]
    for send, recv in zip(entries[::2], entries[1::2]):
        assert send.seconds - send.exposed_s >= 0.2 and recv.seconds == recv.exposed_s == 0


def test_a_pair_swaps_below_a_size_and_computes_the_same():
    """Between two ranks small all-reduces are a swap and an addition: the same bits as gloo's."""
    from picolab.comm import collectives

    def both():
        torch.manual_seed(dist.get_rank())
        limit, worst = collectives.PAIR_BYTES // 8, []
        for n, op in ((1, "sum"), (7, "max"), (limit, "sum"), (limit + 1, "sum")):
            x = torch.randn(n, dtype=torch.float64)
            expected = x.clone()
            kind = dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX
            collectives._all_reduce(expected, op=kind)
            pairs = collectives._goes_in_pairs(comm.mesh(), "world", x, op)
            comm.all_reduce(x, "world", "r", op=op)
            gathered = comm.all_gather(x, "world", "same on both")
            worst.append((pairs, torch.equal(x, expected), torch.equal(*gathered.chunk(2))))
        return worst

    run = pico.run(both, world_size=2)
    assert list(run) == [[(True, True, True)] * 3 + [(False, True, True)]] * 2
    first = run.ledger.rank(0).where(op="all_reduce").entries[0]
    assert (first.payload_bytes, first.ring_bytes) == (8, 8.0)  # booked as what it is


def test_what_autograd_follows_is_not_written_over_behind_its_back():
    def on_a_rank():
        comm.build_mesh("tp2")
        leaf = torch.ones(3, requires_grad=True)
        for collective in (comm.all_reduce, comm.broadcast):
            with pytest.raises(ValueError, match=r"call it in an `autograd\.Function`"):
                collective(2 * leaf, "tp", "a result of autograd")
        with torch.no_grad():  # as in the forward of an autograd.Function
            comm.all_reduce(2 * leaf, "tp", "followed by nobody")
        comm.all_reduce((2 * leaf).detach(), "tp", "detached")
        return comm.all_reduce(leaf, "tp", "a leaf has no past that would be wrong")[0].item()

    assert list(pico.run(on_a_rank, world_size=2, backend="gloo")) == [2.0, 2.0]


def into_gaps():
    comm.build_mesh("dp2")
    x, told = torch.zeros(4, 6), []
    columns, rows = x[:, ::2], torch.ones(4, 3)
    for call in (
        lambda: comm.all_reduce(columns, "dp", "a test"),
        lambda: comm.broadcast(columns, "dp", "a test"),
        lambda: comm.recv(columns, 0, "dp", "a test"),
        lambda: comm.exchange(rows, 0, columns, 0, "dp", "a test"),
    ):
        with pytest.raises(ValueError, match="not contiguous") as error:
            call()
        told.append(str(error.value))
    # What is only read may have gaps.
    whole = comm.all_gather(rows.T, "dp", "a test")
    assert torch.equal(whole, torch.ones(6, 4)) and not x.any()
    return told


def test_what_would_be_written_into_gaps_is_refused():
    """gloo writes shape (4, 3) into the first 12 numbers in memory, neighbours and all."""
    for told in pico.run(into_gaps, world_size=2):
        assert told[0].startswith("all_reduce writes into a tensor of shape (4, 3) that is not")
        assert "x.contiguous()" in told[3]


def moments(asynchronous):
    """Sleeps of one collective outside, inside and after `unhurried`."""
    from picolab.comm import collectives

    found, sleep = [], collectives.time.sleep
    collectives.time = SimpleNamespace(sleep=lambda seconds: (slept.append(seconds), sleep(0)))
    for around in (nullcontext(), comm.unhurried(), nullcontext()):
        slept = []
        with around:
            done = comm.all_reduce(torch.ones(3), "world", "a test", async_op=asynchronous)
            if asynchronous:
                done.wait()
        found.append(slept)
    return found


def test_who_counts_bytes_leaves_the_library_a_moment_after_each_wait():
    for asynchronous in (False, True):
        assert pico.run(moments, asynchronous)[0] == [[], [5e-4], []]
