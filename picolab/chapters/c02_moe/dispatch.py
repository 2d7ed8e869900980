"""Exercise: rows to the ranks of their experts and back, with a gradient (chapter 2, section 5).

The experts are the judge's: it sees with which rows they are called, how often, and whether on
every rank. What comes out, and every gradient, is compared with one process that has all tokens.
"""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

_STAYED = (
    "a rank without rows takes part in every exchange, in forward and in backward, with sizes of 0 "
    "(and what one sends to another has to be what that one expects)"
)


def my_expert_layer(x, experts, weights, total, run, axis):
    import picolab as pico

    n, me = pico.comm.mesh().size(axis), pico.comm.mesh().rank(axis)
    here = range(me * total // n, (me + 1) * total // n)
    raise NotImplementedError(f"rows of {len(x)} tokens to {total} experts; here are {here}")


def solution(x, experts, weights, total, run, axis):
    import torch

    import picolab as pico

    n = pico.comm.mesh().size(axis)

    class Exchange(torch.autograd.Function):
        """Blocks of rows, one for each rank; its backward is the same the other way round."""

        @staticmethod
        def forward(ctx, rows, sent, came):
            ctx.sizes = sent, came
            return pico.comm.all_to_all(rows, axis, "ep: rows", came, sent)

        @staticmethod
        def backward(ctx, drows):
            sent, came = ctx.sizes
            return pico.comm.all_to_all(drows, axis, "ep: gradients", sent, came), None, None

    flat = experts.flatten()
    order = flat.argsort(stable=True)  # by expert, and so by rank
    token = order // experts.shape[1]
    counts = flat.bincount(minlength=total)
    theirs = pico.comm.all_to_all(counts, axis, "ep: counts").view(n, -1)  # [from rank][expert]
    sent, came = counts.view(n, -1).sum(1).tolist(), theirs.sum(1).tolist()
    rows = Exchange.apply(x[token], sent, came)
    # They came rank by rank, and are wanted expert by expert.
    here = torch.arange(total // n).repeat(n).repeat_interleave(theirs.flatten())
    regroup = here.argsort(stable=True)
    out = run(rows[regroup], theirs.sum(0).tolist())
    home = Exchange.apply(out[regroup.argsort()], came, sent)
    weighted = home * weights.flatten()[order].unsqueeze(1)
    return torch.zeros_like(x).index_add(0, token, weighted)


class _Experts:
    """What the judge knows of all experts: y = tanh(x W_e) + b_e, of every expert another one."""

    def __init__(self, attempt: Attempt, total: int, size: int):
        self.matrices = attempt.tensor(total, size, size)
        self.offsets = attempt.tensor(total, size)

    def leaves(self, here: range) -> list[torch.Tensor]:
        own = slice(here.start, here.stop)
        return [of[own].clone().requires_grad_() for of in (self.matrices, self.offsets)]


def _apply(rows: torch.Tensor, counts, matrices, offsets) -> torch.Tensor:
    parts = rows.split(list(counts))
    made = [(p @ w).tanh() + b for p, w, b in zip(parts, matrices.unbind(), offsets.unbind())]
    return torch.cat(made)


class _Run:
    """The experts of this rank, as the learner calls them."""

    def __init__(self, leaves: list[torch.Tensor], attempt: Attempt):
        self.leaves, self.attempt, self.calls = leaves, attempt, 0
        self.rows: torch.Tensor | None = None
        self.counts: list[int] = []

    def __call__(self, rows, counts):
        self.calls += 1
        counts, experts = [int(c) for c in counts], len(self.leaves[0])
        if len(counts) != experts:
            raise ValueError(
                f"`run` was given {len(counts)} counts, and {experts} experts are here: one count "
                "for each of them, 0 for one without rows"
            )
        if sum(counts) != len(rows):
            raise ValueError(
                f"`run` was given {len(rows)} rows, and counts that add up to {sum(counts)}"
            )
        if self.rows is None:
            self.rows, self.counts = rows.detach().clone(), counts
        return _apply(rows, counts, *self.leaves)


def judge(learner, attempt: Attempt) -> None:
    mesh, axis = comm.mesh(), attempt.case.values["axis"]
    ranks = list(mesh.ranks(axis))
    for about, tokens, k, how in attempt.case.values["settings"]:
        attempt.setting(about)
        _one(learner, attempt, axis, ranks, tokens, k, how)  # all of them, whatever was wrong


def _one(learner, attempt: Attempt, axis: str, ranks, tokens, k: int, how: str) -> None:
    mesh, total, size = comm.mesh(), attempt.case.values["total"], attempt.case.values["size"]
    world = mesh.size("world")
    experts = _Experts(attempt, total, size)
    x = [attempt.tensor(tokens[r % len(tokens)], size) for r in range(world)]
    weights = [attempt.tensor(len(of), k).abs() for of in x]
    chosen = [_chosen(attempt, len(of), k, total, how) for of in x]
    dy = [attempt.tensor(*of.shape) for of in x]
    for of in x:
        of[::3] = 0
    for of in weights:
        of[1::4] = 0
    me, n = mesh.rank(axis), mesh.size(axis)
    here = range(me * total // n, (me + 1) * total // n)
    leaves = experts.leaves(here)
    run = _Run(leaves, attempt)
    own = attempt.rank
    my_x, my_weights = (of[own].clone().requires_grad_() for of in (x, weights))
    given = {
        "x": my_x, "experts": chosen[own], "weights": my_weights, "total": total, "run": run,
        "axis": axis,
    }  # fmt: skip
    y = attempt.call(learner, given, may_change=("x", "weights"))
    expected = _dense(experts, [(x[r], chosen[r], weights[r], dy[r]) for r in ranks])
    # A rank that stops here would let the others wait in backward: first all, then what is wrong.
    flows = isinstance(y, torch.Tensor) and y.requires_grad
    if flows:
        with attempt.watching():
            y.backward(dy[own] if y.shape == dy[own].shape else torch.ones_like(y))
    mine = ranks.index(own)
    attempt.only("all_to_all")
    attempt.along(axis)
    if not _called(attempt, run, [(x[r], chosen[r], weights[r]) for r in ranks], here):
        return
    if not _output(attempt, y, expected, mine, x, chosen, weights, ranks):
        return
    if not attempt.require(flows, "no gradient can flow back through what it returns"):
        return
    _gradients(attempt, my_x, my_weights, leaves, expected, mine, here)
    _budgets(attempt, axis, x, chosen, ranks, me, total, size)


def _chosen(attempt: Attempt, tokens: int, k: int, total: int, how: str) -> torch.Tensor:
    """Which experts: (tokens, k), of a token all different."""
    scores = attempt.tensor(tokens, total)
    if how == "one rank's":
        scores[:, k:] -= 100.0
    if how == "few":
        scores[:, ::2] -= 100.0
    if how == "last":
        scores[:, -k:] += 100.0
    return scores.topk(k, dim=-1).indices


def _dense(experts: _Experts, ranks) -> list[dict]:
    """One process with the tokens of all ranks of the axis: outputs and every gradient."""
    leaves = [of.clone().requires_grad_() for of in (experts.matrices, experts.offsets)]
    found, loss = [], 0.0
    for x, chosen, weights, dy in ranks:
        x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
        outs = (x @ leaves[0]).tanh() + leaves[1].unsqueeze(1)  # (E, T, D)
        by_token = outs.transpose(0, 1)[torch.arange(len(x)).unsqueeze(1), chosen]  # (T, k, D)
        y = (by_token * weights.unsqueeze(-1)).sum(1)
        loss = loss + (y * dy).sum()
        found.append({"x": x, "weights": weights, "y": y, "rows": by_token})
    loss.backward()
    for of in found:
        of["dx"], of["dweights"] = of["x"].grad, of["weights"].grad
        of["experts"] = [leaf.grad for leaf in leaves]
    return found


def _called(attempt: Attempt, run: _Run, everyones, here: range) -> bool:
    if not attempt.require(
        run.calls > 0,
        "on this rank `run` was not called: without rows too it has to be, so that the experts "
        "have gradients of zeros, and exchanges of backward happen on every rank",
    ):
        return False
    if run.calls > 1:
        attempt.wrong(f"`run` was called {run.calls} times: once, with the rows of all ranks")
        return False
    counts = [sum(int((chosen == e).sum()) for _, chosen, _ in everyones) for e in here]
    if run.counts != counts:
        if sorted(run.counts) == sorted(counts) and sum(counts):
            why = "the same numbers in another order"
        elif sum(run.counts) == sum(counts):
            why = "as many rows in all: they came rank by rank, and belong expert by expert"
        elif run.counts == _dealt_in_turn(everyones, here):
            why = "experts were dealt out in turn; rank 0 has the first E/n, and so on"
        elif run.counts == [
            sum(int((of[:, 0] == e).sum()) for _, of, _ in everyones) for e in here
        ]:
            why = "first choices alone came: a row goes to each of a token's experts"
        else:
            why = f"{sum(counts)} rows are for the experts here"
        return attempt.require(
            False, f"`run` was given the counts {run.counts}, and they should be {counts}: {why}"
        )
    wanted = [x[(chosen == e).any(1)] for e in here for x, chosen, _ in everyones]
    weighed = [
        x[(chosen == e).any(1)] * weights[chosen == e].unsqueeze(1)
        for e in here
        for x, chosen, weights in everyones
    ]
    if not _same_rows(run.rows, torch.cat(wanted)) and _same_rows(run.rows, torch.cat(weighed)):
        return attempt.require(
            False,
            "rows were multiplied by their weights before the experts, which are not linear: "
            "weights belong to what comes back",
        )
    for expert, got, right in zip(
        here, run.rows.split(counts), torch.cat(wanted).split(counts), strict=True
    ):
        if not _same_rows(got, right):
            return attempt.require(
                False,
                f"expert {expert} was given as many rows as it should have, and other ones: rows "
                "came rank by rank, and within a rank by expert; put those of one expert together",
            )
    return True


def _dealt_in_turn(everyones, here: range) -> list[int]:
    n, me = len(everyones), here.start // len(here)
    experts = range(me, n * len(here), n)
    return [sum(int((chosen == e).sum()) for _, chosen, _ in everyones) for e in experts]


def _same_rows(got: torch.Tensor, right: torch.Tensor) -> bool:
    """In whatever order."""
    left = sorted(tuple(row) for row in got.tolist())
    return left == sorted(tuple(row) for row in right.tolist())


def _output(attempt, y, expected, mine: int, x, chosen, weights, ranks) -> bool:
    of, own = expected[mine], ranks[mine]
    rows = of["rows"].detach()
    plain = rows.sum(1)

    total = len(of["experts"][0])

    def y_of(weights):
        return (rows * weights.unsqueeze(-1)).sum(1)

    mistakes = {
        "the experts' outputs were added up without their weights": plain,
        "they were averaged: weights are what they are multiplied by": (
            rows.mean(1),
            of["y"] / rows.shape[1],
        ),
        "of each token only one expert's output is in it: `y[token] = ...` keeps one of several, "
        "`index_add` adds them": _one_each(rows, chosen[own], weights[own]),
        "weights are in the order of the tokens, and rows in that of their experts: take the "
        "weights in the same order": lambda: _weights_unsorted(rows, chosen[own], weights[own]),
        "weights[t, j] belongs to experts[t, j], which are in no order; it was taken for the j-th "
        "lowest number of the token": lambda: _by_number(rows, chosen[own], weights[own]),
        "the outputs were sent home in the order of the experts: bring them back into the order in "
        "which rows came, first (of a permutation, the inverse)": lambda: _not_put_back(
            expected, [chosen[r] for r in ranks], [weights[r] for r in ranks], mine, total
        ),
        "rows came home in the order of their experts, and were not brought back to their tokens": (
            lambda: _not_home(rows, chosen[own], weights[own])
        ),
        "the weights were renormalised once more; take them as they are": y_of(
            weights[own] / weights[own].sum(-1, keepdim=True).clamp(min=1e-20)
        ),
        "x itself was added: the layer's output is what experts make of it": of["y"] + x[own],
    }
    return attempt.equal("the output", y, of["y"], mistakes=mistakes)


def _by_number(rows, chosen, weights) -> torch.Tensor:
    token = torch.arange(len(rows)).unsqueeze(1)
    return (rows[token, chosen.argsort(1)] * weights.unsqueeze(-1)).sum(1)


def _not_put_back(expected, chosen, weights, mine: int, total: int) -> tuple[torch.Tensor, ...]:
    """Each rank sends home what its experts made in their order, or in that order once more."""
    n = len(expected)
    found = torch.zeros_like(expected[mine]["y"]), torch.zeros_like(expected[mine]["y"])
    for s in range(n):
        here = range(s * total // n, (s + 1) * total // n)
        of = {(r, e): (chosen[r] == e).nonzero().tolist() for r in range(n) for e in here}
        came = [(r, *row) for r in range(n) for e in here for row in of[r, e]]
        ran = [(r, *row) for e in here for r in range(n) for row in of[r, e]]
        again = [ran[came.index(row)] for row in ran]
        for y, sent in zip(found, (ran, again)):
            for (r, t, j), (other, token, nth) in zip(came, sent):
                if r == mine:
                    y[t] += weights[r][t, j] * expected[other]["rows"][token, nth].detach()
    return found


def _one_each(rows, chosen, weights) -> tuple[torch.Tensor, ...]:
    """Of each token the output of the expert with the highest number, or with the lowest."""
    if chosen.shape[1] == 1:
        return ()
    weighted = rows * weights.unsqueeze(-1)
    token = torch.arange(len(rows))
    return weighted[token, chosen.argmax(1)], weighted[token, chosen.argmin(1)]


def _weights_unsorted(rows, chosen, weights):
    """Row r of the sorted ones times the r-th weight of the unsorted."""
    order = chosen.flatten().argsort(stable=True)
    token, sorted_rows = order // chosen.shape[1], rows.flatten(0, 1)[order]
    found = torch.zeros(len(chosen), rows.shape[-1], dtype=rows.dtype)
    return found.index_add(0, token, sorted_rows * weights.flatten().unsqueeze(1))


def _not_home(rows, chosen, weights):
    order = chosen.flatten().argsort(stable=True)
    home = rows.flatten(0, 1)[order].view(rows.shape)
    return (home * weights.unsqueeze(-1)).sum(1)


def _gradients(attempt: Attempt, x, weights, leaves, expected, mine: int, here: range) -> None:
    of = expected[mine]
    for name, got, right in (
        ("the gradient of x", x.grad, of["dx"]),
        ("the gradient of weights", weights.grad, of["dweights"]),
    ):
        says = {
            "it is all zero": torch.zeros_like(right),
            "it was divided by the ranks; what comes back from an expert goes on as it is": (
                right / len(expected), right / len(expected) ** 2,
            ),
        }  # fmt: skip
        if not attempt.require(got is not None, f"{name} is None"):
            return
        if not attempt.equal(name, got, right, mistakes=says):
            return
    n = len(expected)
    for name, leaf, whole in zip(("matrices", "offsets"), leaves, of["experts"]):
        name = f"the gradient of the experts' {name}"
        right = whole[here.start : here.stop]
        if not attempt.require(
            leaf.grad is not None,
            f"{name} is None: what comes home from the experts has lost its graph (an all-to-all "
            "has no gradient of its own; give it one)",
        ):
            return
        mistakes = {
            "it is the mean over the ranks: an expert has seen the rows of all of them, and the "
            "sum is what is asked for": right / n,
        }
        if not attempt.equal(name, leaf.grad, right, mistakes=mistakes):
            return


def _budgets(attempt: Attempt, axis: str, x, chosen, ranks, me: int, total: int, size: int) -> None:
    n, width = len(ranks), size * 8
    each = total // n
    owner = [of // each for of in chosen]
    sent = chosen[ranks[me]].numel()
    came = sum(int((owner[r] == me).sum()) for r in ranks)
    # At least each pair (token, rank of some expert of it) travels, if that is another rank.
    pairs = [[int((owner[r] == s).any(1).sum()) for s in range(n)] for r in ranks]
    away = sum(pairs[me][s] for s in range(n) if s != me)
    to_here = sum(pairs[r][me] for r in range(n) if r != me)
    attempt.budget("all_to_all", count=5, at_least=5)
    attempt.budget(
        "all_to_all",
        payload_bytes=2 * (sent + came) * width + total * 8,
        least_bytes=2 * (away + to_here) * width,
    )


_SETTINGS_2 = (
    ("7 and 5 tokens, 2 experts each", (7, 5), 2, ""),
    ("one expert a token", (6, 9), 1, ""),
    ("rank 0 has no tokens", (0, 6), 2, ""),
    ("all tokens go to experts of rank 0", (4, 5), 2, "one rank's"),
    ("nobody has tokens", (0, 0), 2, ""),
    ("every other expert gets nothing", (5, 8), 2, "few"),
)

EXERCISE = Exercise(
    id="moe.dispatch.combine",
    goal="A layer of experts over real ranks. Every rank has tokens of its own, perhaps none, and "
    "E/n of the experts: rank 0 the first, and so on. Send a row to the rank of each of a token's "
    "experts, run the experts, bring the rows home, and add up weight times output. Gradients go "
    "the same way back: to x, to the weights, and to the experts, which have seen rows of all "
    "ranks.",
    interface="`my_expert_layer(x, experts, weights, total, run, axis)` returns y, shaped as x, "
    "and autograd can go back through it. x: (T, D), T another on each rank. experts: (T, k), "
    "whole numbers from 0 to total-1, of a token all different, in no order. weights: (T, k). "
    "`run(rows, counts)` is this rank's experts: rows (A, D) sorted by expert, counts a list of "
    "how many each of the total/n experts here has; it returns (A, D), and autograd knows it. Call "
    "it once on every rank, without rows too. You may use "
    "`pico.comm.all_to_all(t, axis, reason, output_splits, input_splits)`: the i-th block of "
    "`input_splits[i]` rows goes to rank i, and `output_splits[j]` rows come from rank j; without "
    "splits t is cut evenly. Like every collective it has no gradient of its own.",
    budget="Five all-to-alls: counts, rows there and back, and their gradients back and there. Not "
    "more bytes than T*k rows and what comes to this rank, twice, and the counts.",
    hints=(
        "Sort the T*k pairs (token, expert) by expert: then rows for one rank lie together. How "
        "many rows come to you is known to the others only. What comes is in the order [from "
        "rank][expert], and `run` wants [expert][from rank].",
        "An `autograd.Function` whose forward is an all-to-all of rows with the sizes (sent, came) "
        "and whose backward is one with the sizes swapped. All else (indexing, `index_add`, the "
        "product with weights) autograd knows. Counts of 0 are fine everywhere.",
        "`order = experts.flatten().argsort(stable=True)`, `token = order // k`, "
        "`counts = bincount(minlength=total)`. After the counts' all-to-all, `.view(n, -1)`, you "
        "have [from rank][expert here]: `arange(total // n).repeat(n).repeat_interleave(...)` says "
        "of each row that came which expert it is for; its stable argsort regroups, the argsort of "
        "that undoes it.",
    ),
    stub_function=my_expert_layer,
    solution_function=solution,
    why="Three permutations and one exchange, each its own inverse turned round: that is why the "
    "gradient needs no new idea. The gradient of an all-to-all is the all-to-all the other way; an "
    "expert's is a sum over the rows of all ranks, without any all-reduce. That sum is also where "
    "a known bug lives: where gradients are averaged over dp, an expert's is averaged over edp "
    "only and comes out ep times too large. Two collectives of each direction are on the critical "
    "path of every layer, so frameworks hide them behind the shared experts "
    "(`pico.source('picolab.moe.dispatch.Travelling')`), send a token once to each node instead of "
    "once for each expert (DeepEP), or in fp8. arXiv 2006.16668, section 3.2.",
    judge=judge,
    cases=(
        Case(
            "dp2ep2",
            values={"axis": "ep", "total": 4, "size": 3, "settings": _SETTINGS_2},
            if_apart=_STAYED,
        ),
        Case(
            "dp3ep3",
            values={
                "axis": "ep",
                "total": 6,
                "size": 5,
                "settings": (
                    ("3, 0 and 8 tokens, 3 experts each", (3, 0, 8), 3, ""),
                    ("all tokens go to the last expert", (2, 7, 1), 1, "last"),
                    ("nothing goes to every other expert", (6, 1, 3), 2, "few"),
                ),
            },
            if_apart=_STAYED,
        ),
        Case(
            "dp4ep2",
            values={
                "axis": "ep",
                "total": 6,
                "size": 2,
                "settings": (("over ep, which is half of the ranks", (3, 5, 0, 4), 2, ""),),
            },
            if_apart=_STAYED,
        ),
    ),
    blocked=(
        "picolab.moe.dispatch.ExpertCommunication.dispatch",
        "picolab.moe.dispatch.Travelling.__init__",
        "picolab.moe.dispatch.Exchange.start",
    ),
    timeout=5.0,
)
