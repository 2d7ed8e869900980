"""Our GPipe and 1F1B are the orders in which torch.distributed.pipelining really works.

torch's schedules run on four real ranks with a real stage each, which writes down every forward and
backward as it happens. That is asked instead of the order torch displays, because the one that
torch 2.13 displays for 1F1B counts the forwards of the last rank from 1, and its loop does not.

Wrong versions this catches: a warm-up that is one too long or too short, backwards in reverse.
"""

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.schedules import Action, gpipe, one_f_one_b

STAGES = 4


def what_torch_does(name, counts):
    """The text of each step's actions on this rank, one step for each count of micro-batches."""
    from torch.distributed import pipelining

    class Recording(pipelining.PipelineStage):
        def forward_one_chunk(self, index, *args, **kwargs):
            order.append(f"F{index}")
            return super().forward_one_chunk(index, *args, **kwargs)

        def backward_one_chunk(self, index, *args, **kwargs):
            order.append(f"B{index}")
            return super().backward_one_chunk(index, *args, **kwargs)

    rank, world = dist.get_rank(), dist.get_world_size()
    orders = []
    for count in counts:
        order = []
        module = torch.nn.Linear(4, 4)
        stage = Recording(module, rank, world, torch.device("cpu"))
        schedule = getattr(pipelining, name)(stage, count, loss_fn=torch.nn.functional.mse_loss)
        batch = torch.randn(count, 4)
        given = (batch,) if rank == 0 else ()
        target = {"target": batch} if rank == world - 1 else {}
        schedule.step(*given, **target)
        assert module.weight.grad is not None
        orders.append(" ".join(order))
    return orders


@pytest.mark.parametrize(
    ("name", "ours", "counts"),
    [("ScheduleGPipe", gpipe, [1, 3, 8]), ("Schedule1F1B", one_f_one_b, [4, 5, 8])],
)
def test_same_order_on_every_rank(name, ours, counts):
    result = pico.run(what_torch_does, name, counts, world_size=STAGES)
    for rank in range(STAGES):
        for count, order in zip(counts, result[rank], strict=True):
            assert order.split() == text(ours(STAGES, count).actions[rank]), (rank, count)
            assert order.split() != text(mutant(ours(STAGES, count).actions[rank]))


def text(row: tuple[Action, ...]) -> list[str]:
    return [f"{kind}{micro_batch}" for kind, _, micro_batch in row]


def mutant(row):
    """Forwards one late, as in what torch displays."""
    return [a._replace(micro_batch=a.micro_batch + (a.kind == "F")) for a in row]
