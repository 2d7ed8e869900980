"""How tokens come to experts that are on other ranks, and back.

The experts are dealt out over the ranks of an axis, which hold different tokens: rank 0 has experts
0 ... E/n-1, and so on. Rows are sorted by expert, so those for one rank lie together:

    1. counts      each rank tells each other how many rows it will send for which expert
    2. there       an all-to-all whose blocks have these sizes
    3. regroup     rows came rank by rank; put those of one expert together
       ...         the experts
    4. regroup back, and back by the same all-to-all the other way round

Backward runs the same way in reverse: the gradient of what came back goes to the experts, and their
input's gradient comes home. Every rank takes part in each exchange, whether it has rows or not:
one that stays away leaves the others waiting for ever.

Rows set out before the shared experts are computed, and are waited for after (`arrived`), so that
the exchange hides behind them; in backward likewise, since autograd takes what was made last first.

**Copies.** An expert may be on several ranks (copies.py). Rows are put into the order of the ranks'
slots then, and counts are of slots; nothing else changes.

**By an all-gather** (`how="all-gather"`), the simple version: every rank gets all rows and picks
those of its experts; what they made goes back by a reduce-scatter. A row goes to all ranks then and
not to one, so it sends n times as much; but in blocks of one size, without sizes to be agreed on
(ranks of few experts each, and many choices a token, make the difference small).

Source: GShard, arXiv 2006.16668, section 3.2; the regrouping is megablocks' (2211.15841). Leaves
out: blocks of one fixed size, two levels of exchange, a payload of fewer bits.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.autograd.function import once_differentiable

from picolab import comm
from picolab.costs import ExpertSlots

COUNTS = "ep: rows for each expert"
THERE, THERE_GRADIENT = "ep: rows to experts", "ep: gradients of rows from experts"
BACK, BACK_GRADIENT = "ep: rows back", "ep: gradients of rows back"

How = Literal["all-to-all", "all-gather"]


class ExpertCommunication:
    """Takes rows to the ranks of their experts. axis None: all experts are here. how: each row to
    the rank of its expert, or all rows to all ranks. slots: which experts a rank has, where some
    are on several.

    With it a rank computes with E / n experts the rows of n ranks; without it, with all experts
    its own rows, and nothing is sent.
    """

    def __init__(
        self,
        axis: str | None = "ep",
        how: How = "all-to-all",
        slots: ExpertSlots | None = None,
    ):
        if how not in ("all-to-all", "all-gather"):
            raise ValueError(f"how is {how!r}; rows travel by 'all-to-all' or 'all-gather'")
        self.axis, self.how, self.slots = axis, how, slots

    @property
    def ranks(self) -> int:
        return 1 if self.axis is None else comm.axis_size(self.axis)

    def share_out(self, rows_E: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where there are copies: how many of the rows, which are sorted by expert, go to each slot
        of each rank, and the rows in the order of these slots."""
        rows, me = rows_E.tolist(), comm.mesh().rank(self.axis)
        first = [sum(rows[:expert]) for expert in range(len(rows))]
        shares = self.slots.share_out(rows, me)
        runs = [
            torch.arange(first[expert] + share.start, first[expert] + share.stop)
            for held, of_rank in zip(self.slots.held, shares)
            for expert, share in zip(held, of_rank)
        ]
        rows_S = torch.tensor([len(run) for run in runs], dtype=rows_E.dtype)
        return rows_S.to(rows_E.device), torch.cat(runs).to(rows_E.device)

    def dispatch(self, x_AD: torch.Tensor, rows_E: torch.Tensor) -> "Travelling":
        """Rows sorted by expert (by slot, where there are copies), and how many there are of each,
        set out."""
        if self.ranks == 1:
            return AtHome(x_AD, rows_E.tolist())
        kind = Travelling if self.how == "all-to-all" else Everywhere
        return kind(x_AD, rows_E, self.axis, self._sizes(len(rows_E)))

    def _sizes(self, experts: int) -> list[int]:
        """How many experts each rank has."""
        if self.slots is not None:
            return self.slots.sizes
        if experts % self.ranks:
            raise ValueError(f"{self.axis}={self.ranks} ranks do not divide {experts} experts")
        return [experts // self.ranks] * self.ranks


class AtHome:
    """Nothing travels: every expert is here."""

    def __init__(self, x_AD: torch.Tensor, rows: list[int]):
        self._x, self.rows = x_AD, rows

    def arrived(self) -> torch.Tensor:
        return self._x

    def back(self, y_AD: torch.Tensor) -> torch.Tensor:
        return y_AD


class Travelling:
    """Rows under way to the ranks of their experts."""

    def __init__(self, x_AD: torch.Tensor, rows_E: torch.Tensor, axis: str, sizes: list[int]):
        n, here = comm.mesh().size(axis), sizes[comm.mesh().rank(axis)]
        theirs = comm.all_to_all(rows_E, axis, COUNTS, [here] * n, sizes)
        self.sent = [sum(of_rank) for of_rank in _split(rows_E.tolist(), sizes)]
        # [rank that they come from][expert here]
        self._from = theirs.view(n, here).tolist()
        came = [sum(of_rank) for of_rank in self._from]
        self.rows = [sum(of_expert) for of_expert in zip(*self._from)]
        """Of each expert that is here."""
        self._there = Exchange(axis, self.sent, came, THERE, THERE_GRADIENT)
        self._back = Exchange(axis, came, self.sent, BACK, BACK_GRADIENT)
        self._x = self._there.start(x_AD)

    def arrived(self) -> torch.Tensor:
        """The rows of all ranks for the experts that are here, sorted by expert."""
        return _transposed(self._there.wait(self._x), self._from)

    def back(self, y_AD: torch.Tensor) -> torch.Tensor:
        """What experts made of them, to where they came from, in the order in which they set
        out."""
        by_expert = [list(of_expert) for of_expert in zip(*self._from)]
        return self._back.wait(self._back.start(_transposed(y_AD, by_expert)))


class Everywhere:
    """All rows on all ranks. The ranks' rows are padded to as many as the largest has."""

    def __init__(self, x_AD: torch.Tensor, rows_E: torch.Tensor, axis: str, sizes: list[int]):
        n, me = comm.mesh().size(axis), comm.mesh().rank(axis)
        of_rank = comm.all_gather(rows_E.unsqueeze(0), axis, COUNTS).tolist()
        most = max(map(sum, of_rank))
        mine = _split(range(len(rows_E)), sizes)[me]
        self._axis, self._own, self._shape = axis, len(x_AD), (n * most, x_AD.shape[1])
        padded = torch.cat((x_AD, x_AD.new_zeros(most - len(x_AD), x_AD.shape[1])))
        self._x = _GatherRows.apply(padded, axis)
        # Where the rows of my experts are among all: expert by expert, rank by rank.
        places = []
        for expert in mine:
            for rank, rows in enumerate(of_rank):
                first = rank * most + sum(rows[:expert])
                places += range(first, first + rows[expert])
        self._places = torch.tensor(places, dtype=torch.int64, device=x_AD.device)
        self.rows = [sum(rows[expert] for rows in of_rank) for expert in mine]

    def arrived(self) -> torch.Tensor:
        return self._x.index_select(0, self._places)

    def back(self, y_AD: torch.Tensor) -> torch.Tensor:
        everybodys = y_AD.new_zeros(self._shape).index_add(0, self._places, y_AD)
        return _ScatterRows.apply(everybodys, self._axis)[: self._own]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return comm.all_gather(x, axis, THERE)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.reduce_scatter(dy, ctx.axis, THERE_GRADIENT), None


class _ScatterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return comm.reduce_scatter(x, axis, BACK)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return comm.all_gather(dy, ctx.axis, BACK_GRADIENT), None


def _split(items: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """In runs of these sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [items[end - size : end] for size, end in zip(sizes, ends)]


def _transposed(x: torch.Tensor, sizes: list[list[int]]) -> torch.Tensor:
    """Rows in blocks [i][j] of these sizes, put into the order [j][i]."""
    blocks = x.split([size for of_one in sizes for size in of_one])
    columns = len(sizes[0])
    return torch.cat([block for j in range(columns) for block in blocks[j::columns]])


class Exchange:
    """An all-to-all of blocks of rows, differentiable, in two halves.

    to, came: rows for each rank, and from each. `start` returns a tensor that is filled when
    `wait` has returned it.
    """

    def __init__(
        self, axis: str, to: Sequence[int], came: Sequence[int], reason: str, gradient: str
    ):
        self.axis, self.to, self.came = axis, list(to), list(came)
        self.reason, self.gradient = reason, gradient
        self.pending: comm.Pending | None = None

    def start(self, x: torch.Tensor) -> torch.Tensor:
        return _Start.apply(x, self)

    def wait(self, x: torch.Tensor) -> torch.Tensor:
        return _Wait.apply(x, self)


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, exchange):
        ctx.exchange = exchange
        exchange.pending = comm.all_to_all(
            x, exchange.axis, exchange.reason, exchange.came, exchange.to, async_op=True
        )
        return exchange.pending.tensor

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return ctx.exchange.pending.wait(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, exchange):
        ctx.exchange = exchange
        exchange.pending.wait()
        exchange.pending = None  # or what came would be there until backward, needed or not
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        exchange = ctx.exchange
        exchange.pending = comm.all_to_all(
            dy, exchange.axis, exchange.gradient, exchange.to, exchange.came, async_op=True
        )
        return dy, None  # `_Start` has the gradient, once it has come
