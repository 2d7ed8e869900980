"""Every way of communicating is in the ledger, once, whatever its name and from wherever imported.

Wrong versions these catch: a judge before which `all_gather_object` or a method of a process group
sends nothing; a call of `picolab.comm` counted twice.
"""

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as differentiable
from torch.distributed import all_reduce as imported_before

import picolab as pico
from picolab import comm
from picolab.comm.every_call import EveryCall


def _two():
    return [torch.ones(2), torch.ones(2)]


def _root(value):
    return value if dist.get_rank() == 0 else None


def _batch(x):
    other = 1 - dist.get_rank()
    both = [(dist.isend, x), (dist.irecv, torch.empty(4))]
    for work in dist.batch_isend_irecv([dist.P2POp(how, t, other) for how, t in both]):
        work.wait()


def _messages(x):
    dist.send(x, 1) if dist.get_rank() == 0 else dist.recv(torch.empty(4))


def _object_messages(x):
    dist.send_object_list([x], 1) if dist.get_rank() == 0 else dist.recv_object_list([None], 0)


def _differentiated(x):
    differentiable.all_reduce(x.requires_grad_()).sum().backward()


def _operator(x):
    op = torch.ops._c10d_functional
    op.wait_tensor(op.all_reduce(x, "sum", dist.group.WORLD.group_name))


def _ddp(x):
    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))


# A way -> the ops it is an entry of, on rank 0, in their order.
WAYS = {
    "all_reduce": (lambda x: dist.all_reduce(x), ["all_reduce"]),
    "with an operation": (lambda x: dist.all_reduce(x, op=dist.ReduceOp.MAX), ["all_reduce"]),
    "imported before": (lambda x: imported_before(x), ["all_reduce"]),
    "a group's method": (lambda x: dist.group.WORLD.allreduce([x]).wait(), ["all_reduce"]),
    "coalesced": (lambda x: dist.all_reduce_coalesced([x, x.clone()]), ["all_reduce"]),
    "reduce": (lambda x: dist.reduce(x, 0), ["reduce"]),
    "gather": (lambda x: dist.gather(x, _root([x.clone(), x.clone()]), 0), ["gather"]),
    "scatter": (lambda x: dist.scatter(x, _root([x.clone(), x.clone()]), 0), ["scatter"]),
    "broadcast": (lambda x: dist.broadcast(x, 0), ["broadcast"]),
    "all_gather": (lambda x: dist.all_gather([x.clone(), x.clone()], x), ["all_gather"]),
    "reduce_scatter": (lambda x: dist.reduce_scatter(x[:2], _two()), ["reduce_scatter"]),
    "all_to_all": (lambda x: dist.all_to_all(_two(), _two()), ["all_to_all"]),
    "all_to_all_single": (lambda x: dist.all_to_all_single(x.clone(), x), ["all_to_all"]),
    "send": (_messages, ["send"]),
    "batch_isend_irecv": (_batch, ["send", "recv"]),
    "broadcast_object_list": (
        lambda x: dist.broadcast_object_list([x], 0),
        ["broadcast_object_list"] * 2,
    ),
    "all_gather_object": (
        lambda x: dist.all_gather_object([None, None], x),
        ["all_gather_object"] * 2,
    ),
    "gather_object": (
        lambda x: dist.gather_object(x, _root([None, None]), 0),
        ["gather_object"] * 2,
    ),
    "scatter_object_list": (
        lambda x: dist.scatter_object_list([None], [x, x], 0),
        ["scatter_object_list"] * 3,
    ),
    "send_object_list": (_object_messages, ["send_object_list"] * 2),
    "functional all_reduce": (
        lambda x: functional.all_reduce(x, "sum", dist.group.WORLD) + 0,
        ["all_reduce"],
    ),
    "functional all_gather": (
        lambda x: functional.all_gather_tensor(x, 0, dist.group.WORLD) + 0,
        ["all_gather"],
    ),
    "functional all_to_all": (
        lambda x: functional.all_to_all_single(x, None, None, dist.group.WORLD) + 0,
        ["all_to_all"],
    ),
    "operator": (_operator, ["all_reduce"]),
    "differentiated": (_differentiated, ["all_reduce"] * 2),
    "barrier": (lambda x: dist.barrier(), ["barrier"]),
    "monitored_barrier": (lambda x: dist.monitored_barrier(), ["barrier"]),
    "DDP's constructor": (_ddp, ["all_gather", "broadcast", "broadcast"]),
    "the package's, in pairs": (lambda x: comm.all_reduce(x, "world", "sum"), ["all_reduce"]),
    "the package's shift": (lambda x: comm.shift(x, "world", "ring"), ["send", "recv"]),
    "a new group": (lambda x: dist.new_group([0, 1]), []),
    "nothing": (lambda x: x + 1, []),
}


@pytest.fixture(scope="module")
def seen():
    """way -> the entries that it left, on rank 0."""

    def look():
        comm.build_mesh("dp2")
        found = {}
        for name, (way, _) in WAYS.items():
            before = len(comm.ledger().kept)
            with EveryCall():
                way(torch.ones(4))
            found[name] = comm.ledger().kept[before:]
        return found

    return pico.run(look, world_size=2)[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_seen_once(seen, way):
    assert [entry.op for entry in seen[way]] == WAYS[way][1]
    assert all(entry.ranks == (0, 1) for entry in seen[way])


@pytest.mark.parametrize("way", ["send", "batch_isend_irecv", "the package's shift"])
def test_a_message_says_who_is_at_its_other_end(seen, way):
    assert {entry.peer for entry in seen[way]} == {1}


@pytest.mark.parametrize(
    "way,payload",
    [
        ("a group's method", 16),
        ("gather", 32),
        ("all_to_all", 16),
        ("functional all_gather", 32),
        ("reduce", 16),
    ],
)
def test_the_payload_is_that_of_the_ledger(seen, way, payload):
    assert [entry.payload_bytes for entry in seen[way]] == [payload]


def test_what_writes_into_a_result_of_autograd_is_named():
    def on_a_rank():
        leaf = torch.ones(3, requires_grad=True)
        with EveryCall() as every:
            dist.all_reduce(2 * leaf)
            dist.broadcast(2 * leaf, src=0)
            dist.all_reduce((2 * leaf).detach())
            dist.all_reduce(leaf)
            with torch.no_grad():
                dist.all_reduce(2 * leaf)
        return every.followed

    assert pico.run(on_a_rank, world_size=2, backend="gloo")[0] == ["all_reduce", "broadcast"]
