"""Interleaved 1F1B, ZB-H1, ZB-V and DualPipeV are the orders that torch.distributed.pipelining has.

torch computes the order of every rank when a schedule is made, and runs that; so the orders are
compared, on stages without a model. (Its GPipe and 1F1B run a loop instead and only display an
order: test_torch_order.py in tests/distributed watches them run.) torch has whole backwards in
schedules that split some: ours are a B and a W next to one another.
"""

import pytest

pytest.importorskip("torch")

from torch.distributed import pipelining
from torch.distributed.pipelining import schedules as theirs
from torch.distributed.pipelining.stage import _PipelineStageBase

from picolab.schedules import Action, make


class Stage(_PipelineStageBase):
    """A stage that is only asked where it stands."""

    def __init__(self, index: int, stages: int, ranks: int, rank: int):
        self.stage_index, self.num_stages = index, stages
        self.group_size, self.group_rank, self.group = ranks, rank, None
        self.has_backward, self.submod = True, None

    def _create_grad_recv_info(self, *args, **kwargs): ...
    def _prepare_forward_infra(self, *args, **kwargs): ...
    def _prepare_backward_infra(self, *args, **kwargs): ...
    def _get_init_p2p_neighbors_ops(self):
        return []


def torchs(kind: str, ours) -> list[list[Action]]:
    """The order of each rank, in our words."""
    ranks = ours.ranks
    mine = [Stage(s, ours.stages, ranks, 0) for s, at in enumerate(ours.placement) if at == 0]
    loss = {"loss_fn": lambda *_: None}
    order = getattr(pipelining, kind)(mine, ours.micro_batches, **loss).pipeline_order
    return [[a for one in order[rank] if one for a in in_our_words(one)] for rank in range(ranks)]


def in_our_words(action) -> list[Action]:
    if action.sub_actions:
        return [a for one in action.sub_actions for a in in_our_words(one)]
    kinds = {
        theirs.FORWARD: "F",
        theirs.BACKWARD_INPUT: "B",
        theirs.BACKWARD_WEIGHT: "W",
        theirs.FULL_BACKWARD: "BW",
    }[action.computation_type]
    return [Action(kind, action.stage_index, action.microbatch_index) for kind in kinds]


def whole(row) -> list[Action]:
    """Without W: what a schedule that does not split has for B and W together."""
    return [a for a in row if a.kind != "W"]


CASES = [
    ("ScheduleInterleaved1F1B", "interleaved", [(2, 2), (3, 6), (4, 8)]),
    ("ScheduleInterleaved1F1B", "interleaved-v3", [(2, 4), (3, 9), (4, 4)]),
    ("ScheduleInterleavedZeroBubble", "zb-h1", [(2, 2), (3, 6), (4, 8), (5, 10)]),
    ("ScheduleZBVZeroBubble", "zb-v", [(2, 3), (3, 5), (4, 9), (5, 6)]),
    ("ScheduleDualPipeV", "dualpipe-v", [(2, 4), (3, 7), (4, 8), (5, 12)]),
]


@pytest.mark.parametrize(("kind", "name", "sizes"), CASES)
def test_the_same_order_on_every_rank(kind, name, sizes):
    for ranks, micro_batches in sizes:
        ours = make(name, ranks, micro_batches)
        right = torchs(kind, ours)
        if not ours.splits_backward:
            right = [whole(row) for row in right]
        for rank, row in enumerate(ours.actions):
            assert list(row) == right[rank], (name, ranks, micro_batches, rank)
        # Mutant: of two neighbours the later first.
        row = list(ours.actions[0])
        row[-1], row[-2] = row[-2], row[-1]
        assert row != right[0]
