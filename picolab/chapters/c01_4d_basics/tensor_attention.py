"""Exercise: attention under tensor parallelism, as a module (chapter 1, section 4).

A learner's module may hold its share in any arrangement. So its parameters are told apart by their
values: every number of the whole matrices occurs once, and with it goes one gradient.
"""

import torch

from picolab import comm, costs
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

HEAD = 3  # the size of a head


def my_attention(draw, hidden, heads, kv_heads):
    import picolab as pico

    tp = pico.comm.mesh().size("tp")
    raise NotImplementedError(f"deal {kv_heads} key-value heads out to {tp} ranks")


def solution(draw, hidden, heads, kv_heads):
    import torch

    import picolab as pico

    tp, me = pico.comm.mesh().size("tp"), pico.comm.mesh().rank("tp")
    size, group = 3, heads // kv_heads  # of a head; query heads that share a key-value head
    own = pico.costs.even_slices(kv_heads, tp)[me]
    of_k = slice(own.start * size, own.stop * size)
    of_q = slice(own.start * group * size, own.stop * group * size)

    class ToAll(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, dy):
            return pico.comm.all_reduce(dy.clone(), "tp", "attention: input gradient")

    class Added(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return pico.comm.all_reduce(x.clone(), "tp", "attention: output")

        @staticmethod
        def backward(ctx, dy):
            return dy

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            q, k, v = (draw(n * size, hidden) for n in (heads, kv_heads, kv_heads))
            o = draw(hidden, heads * size)  # drawn whole, in the model's order; then sliced
            mine = q[of_q], k[of_k], v[of_k], o[:, of_q]
            self.q, self.k, self.v, self.o = (torch.nn.Parameter(w.clone()) for w in mine)

        def forward(self, x):
            x = ToAll.apply(x)  # once for q, k and v
            q, k, v = (
                (x @ w.T).unflatten(-1, (-1, size)).transpose(1, 2)
                for w in (self.q, self.k, self.v)
            )
            k, v = (one.repeat_interleave(group, 1) for one in (k, v))
            attend = torch.nn.functional.scaled_dot_product_attention
            y = attend(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            return Added.apply(y @ self.o.T)

    return Attention()


def judge(learner, attempt: Attempt) -> None:
    mesh, values = comm.mesh(), attempt.case.values
    heads, kv_heads, hidden = values["heads"], values["kv_heads"], values["hidden"]
    shapes = [
        (heads * HEAD, hidden),
        (kv_heads * HEAD, hidden),
        (kv_heads * HEAD, hidden),
        (hidden, heads * HEAD),
    ]
    seed = int(attempt.tensor(1).abs() * 1e6)
    stream, asked = torch.Generator().manual_seed(seed), []

    def draw(rows, columns):
        asked.append((rows, columns))
        return torch.randn((rows, columns), generator=stream, dtype=torch.float64)

    draw.__qualname__ = "draw"  # for error messages
    arguments = {"draw": draw, "hidden": hidden, "heads": heads, "kv_heads": kv_heads}
    module = attempt.call(learner, arguments)
    if not attempt.require(
        isinstance(module, torch.nn.Module), "my_attention returns no torch.nn.Module"
    ):
        return
    if not attempt.require(
        asked == shapes,
        f"it draws {', '.join(map(str, asked)) or 'nothing'}, and the whole matrices are "
        f"{', '.join(map(str, shapes))}: a rank that draws its share alone has another model, and "
        "under one seed all ranks have the same shards",
    ):
        return
    again = torch.Generator().manual_seed(seed)
    whole = [torch.randn(shape, generator=again, dtype=torch.float64) for shape in shapes]
    # The replicas of dp have tokens of their own.
    x, dy = attempt.tensor(2, mesh.size("dp"), 2, 4, hidden)[:, mesh.rank("dp")]
    mine, every = x.clone().requires_grad_(), x.clone().requires_grad_()
    with attempt.watching() as forward:
        y = module(mine)
    if not attempt.require(
        isinstance(y, torch.Tensor) and y.requires_grad,
        "what the module returns is no tensor that requires a gradient",
    ):
        return
    with attempt.watching():
        y.backward(dy)
    whole = [weight.requires_grad_() for weight in whole]
    right, summands = _attention(every, whole, heads, kv_heads, mesh)
    grad = torch.autograd.grad
    dx = torch.stack([grad(part, every, dy, retain_graph=True)[0] for part in summands])
    right.backward(dy)
    attempt.only("all_reduce")
    attempt.along("tp")
    _compare(attempt, module, (y, right, summands), (mine, every, dx), whole, kv_heads)
    attempt.require(
        len(forward) <= 1, f"forward takes {len(forward)} all-reduces, and one is enough"
    )
    both = 2 * x.numel() * x.element_size()
    attempt.budget("all_reduce", count=2, at_least=2, axis="tp")
    attempt.budget("all_reduce", payload_bytes=both, least_bytes=both, axis="tp")


def _attention(x, weights, heads: int, kv_heads: int, mesh):
    """Over all heads in one process, and what each rank's heads add to the output."""
    q, k, v = ((x @ w.T).unflatten(-1, (-1, HEAD)).transpose(1, 2) for w in weights[:3])
    k, v = (one.repeat_interleave(heads // kv_heads, 1) for one in (k, v))
    attend = torch.nn.functional.scaled_dot_product_attention
    y = attend(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    summands = []
    for own in costs.even_slices(kv_heads, mesh.size("tp")):
        columns = _columns(own, heads // kv_heads)
        summands.append(y[..., columns] @ weights[3][:, columns].T)
    return y @ weights[3].T, torch.stack(summands)


def _columns(own, group: int) -> slice:
    return slice(own.start * group * HEAD, own.stop * group * HEAD)


def _compare(attempt: Attempt, module, outputs, inputs, whole, kv_heads: int) -> None:
    (y, right, summands), (mine, every, dx), mesh = outputs, inputs, comm.mesh()
    me = mesh.rank("tp")
    own = costs.even_slices(kv_heads, mesh.size("tp"))[me]
    group = whole[0].shape[0] // whole[1].shape[0]
    rows, columns = slice(own.start * HEAD, own.stop * HEAD), _columns(own, group)
    cuts = (columns, slice(None)), (rows, slice(None)), (rows, slice(None)), (slice(None), columns)
    values = torch.cat([w.detach()[cut].flatten() for w, cut in zip(whole, cuts)])
    gradients = torch.cat([w.grad[cut].flatten() for w, cut in zip(whole, cuts)])

    held = [p for p in module.parameters() if p.requires_grad]
    count = sum(p.numel() for p in held)
    attempt.counted.append(("numbers held", "", count, values.numel()))
    if not attempt.require(
        count == values.numel(),
        f"it holds {count} numbers as parameters, and this rank's heads have {values.numel()} of "
        f"{sum(w.numel() for w in whole)}: whole heads of q, k and v, and their columns of o",
    ):
        return
    theirs = torch.cat([p.detach().flatten() for p in held])
    order, wanted = theirs.argsort(), values.argsort()
    if not attempt.require(
        torch.equal(theirs[order], values[wanted]),
        "its parameters are not this rank's share: rank r has the key-value heads of slice r of "
        "`pico.costs.even_slices(kv_heads, tp)`, the query heads that share them, and their "
        "columns of o",
    ):
        return
    if not attempt.equal(
        "the output",
        y,
        right,
        mistakes={
            "it is what this rank's heads add: the ranks' summands are to be added up": summands[me]
        },
        parts={"tp": summands.detach()},
    ):
        return
    attempt.equal(
        "the gradient of x",
        mine.grad,
        every.grad,
        mistakes=_of_x(every, dx[me]),
        parts={"tp": dx},
    )
    missing = [p for p in held if p.grad is None]
    if attempt.require(not missing, f"{len(missing)} parameters have no gradient"):
        got = torch.cat([p.grad.flatten() for p in held])
        attempt.equal(
            "the gradient of this rank's weights",
            got[order],
            gradients[wanted],
            mistakes={
                "it is tp times too large: dy is whole on every rank already, so the output's "
                "backward adds nothing up": gradients[wanted] * mesh.size("tp")
            },
        )


def _of_x(every, own) -> dict:
    tp = comm.mesh().size("tp")
    return {
        "it is what this rank's heads add: all heads have read x, so an all-reduce is missing in "
        "backward, where x comes in": own,
        "it is tp times too large: dy is whole on every rank already, so the output's backward "
        "adds nothing up": every.grad * tp,
    }


EXERCISE = Exercise(
    id="4d.tp.attention",
    goal="Multi-head attention cut over tp, as a module that trains: forward and backward equal "
    "the "
    "whole layer's, and a rank holds only the weights of its own heads.",
    interface="`my_attention(draw, hidden, heads, kv_heads)` returns a `torch.nn.Module`; "
    "`module(x)` "
    "takes x (B, S, hidden), the same on all ranks of tp, and returns the output, whole on each. "
    "It "
    "is `softmax(q k^T / sqrt(3), causal) v`, head by head, times o; no biases; a head has size 3. "
    "`draw(rows, columns)` gives the next matrix of the *model's* random numbers, the same stream "
    "on every rank, in the order q (heads * 3, hidden), k and v (kv_heads * 3, hidden), "
    "o (hidden, heads * 3), as torch stores them. Key-value heads are dealt out by "
    "`pico.costs.even_slices(kv_heads, tp)`, a slice a rank; query heads j * heads / kv_heads and "
    "the following share key-value head j, and go with it. For the attention itself there is "
    "`torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)`, with "
    "`repeat_interleave` or `enable_gqa=True`; to add up "
    '`pico.comm.all_reduce(x, "tp", reason)`, in place. The two autograd functions are yours.',
    budget="One all-reduce forward and one backward, each of as many bytes as x has.",
    hints=(
        "Where is something whole, and where is it a summand? Forward: x, the heads, the output. "
        "Backward, from the other end: dy, the heads' gradients, dx.",
        "Heads never meet each other before o. So cut q, k and v by rows, whole heads at a time, "
        "and "
        "o by the columns that these heads feed. q, k and v read the same x: what stands between "
        "it "
        "and the three of them must stand there once.",
        "Two autograd functions: one does nothing forward and all-reduces a copy of dy backward, "
        "the "
        "other the reverse. `x = first(x)`, then q, k, v, attention, `second(y @ o.T)`. Draw all "
        "four matrices whole and keep `torch.nn.Parameter(q[rows].clone())` and so on.",
    ),
    stub_function=my_attention,
    solution_function=solution,
    why="Every head is computed by one rank, from x to its part of o; only there are summands, "
    "and one "
    "all-reduce adds them up. Backward is the mirror image: dy is whole everywhere, and what each "
    "rank's heads add to dx is a summand. One function in front of q, k and v together means one "
    "all-reduce instead of three. Drawing whole and slicing makes the model the same at any tp; a "
    "rank that draws its own share under the common seed gets a copy of its neighbour's, gets the "
    "same "
    "gradients, and stays a copy. Under GQA the key-value heads are the unit: with more ranks than "
    "those, frameworks copy them. (Megatron-LM: `ColumnParallelLinear`, `RowParallelLinear`; "
    "arXiv 1909.08053, section 3.)",
    judge=judge,
    cases=(
        Case("tp2", "4 heads, each with keys of its own", {"heads": 4, "kv_heads": 4, "hidden": 7}),
        Case(
            "tp2",
            "6 query heads share 3: two ranks have 2 and 1",
            {"heads": 6, "kv_heads": 3, "hidden": 5},
        ),
        Case("dp2tp2", "two replicas", {"heads": 4, "kv_heads": 2, "hidden": 6}),
        Case("tp4", "8 query heads share 4", {"heads": 8, "kv_heads": 4, "hidden": 9}),
    ),
    blocked=(
        "picolab.parallel.tensor_comm.f",
        "picolab.parallel.tensor_comm.g",
        "picolab.parallel.tensor_comm.g_",
        "picolab.parallel.tensor_comm.column_linear",
        "picolab.parallel.tensor_comm.gather_linear",
        "picolab.parallel.tensor_comm.scatter_sum",
    ),
    timeout=5.0,
)
