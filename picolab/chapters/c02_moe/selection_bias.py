"""Exercise: the selection bias, step after step (chapter 2, section 3).

Several steps in a row, each with the bias that the learner's step before it returned: so what goes
wrong slowly (a sign, a bias that is moved by a replica's own loads) is told where it begins.
"""

from collections.abc import Iterator

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_biased_step(scores, bias, k, rate, axis):
    import picolab as pico

    replicas = pico.comm.mesh().size(axis)
    raise NotImplementedError(
        f"{len(scores)} micro-batches, {replicas} replicas, {len(bias)} biases"
    )


def solution(scores, bias, k, rate, axis):
    import torch

    import picolab as pico

    chosen, weights = [], []
    loads = torch.zeros(len(bias), dtype=torch.int64)
    for of in scores:
        order = (of + bias).sort(dim=-1, descending=True, stable=True).indices[:, :k]
        own = of.gather(-1, order)  # without the bias
        chosen.append(order)
        weights.append(own / own.sum(-1, keepdim=True).clamp(min=1e-20))
        loads += order.flatten().bincount(minlength=len(bias))
    loads = pico.comm.all_reduce(loads, axis, "moe: loads of experts").to(bias.dtype)
    moved = bias + rate * torch.sign(loads.mean() - loads)
    return chosen, weights, moved - moved.mean()


def judge(learner, attempt: Attempt) -> None:
    mesh, axis = comm.mesh(), attempt.case.values["axis"]
    ranks = list(mesh.ranks(axis))
    for about, sizes, experts, k, kind, steps in attempt.case.values["settings"]:
        bias = torch.zeros(experts, dtype=torch.float64)
        if kind in ("close", "mild", "strong"):
            size = {"close": 0.15, "mild": 0.4, "strong": 2.0}[kind]
            bias = size * attempt.tensor(experts)
            bias -= bias.mean()
        if kind == "not zero in the mean":
            bias = 0.7 + 0.4 * attempt.tensor(experts)
        skew = attempt.tensor(experts)
        for step in range(steps):
            attempt.setting(f"{about}, step {step + 1}" if steps > 1 else about)
            lines = [[_scores(attempt, t, experts, skew, kind) for t in of] for of in sizes]
            apart = ranks[1] - ranks[0]  # ranks of another axis have the same tokens
            mine = attempt.rank // apart % len(ranks)
            given = {
                "scores": lines[mine], "bias": bias, "k": k, "rate": 0.05, "axis": axis,
            }  # fmt: skip
            result = attempt.call(learner, given)
            attempt.only("all_reduce")
            attempt.along(axis)
            moved = _compare(attempt, result, lines, mine, bias, k, 0.05)
            hint = "it moves by the loads of all replicas, and of the others' a rank is only told"
            attempt.budget("all_reduce", count=1, at_least=1, hint=hint)
            attempt.budget(
                "all_reduce", payload_bytes=8 * experts, least_bytes=4 * experts, hint=hint
            )
            # The right one: a rank that is wrong must still take part in the next step.
            bias = moved


def _scores(attempt: Attempt, tokens: int, experts: int, skew, kind: str) -> torch.Tensor:
    # Close loads: which of them are above the mean is another set for each wrong rule.
    found = attempt.tensor(tokens, experts)
    found = (found + (0.2 if kind == "close" else 1.5) * skew).sigmoid()
    if kind == "ties":
        found = (4 * found).round() / 4
    if kind == "zeros":
        found[:, ::2] = 0
        found[::3] = 0
    if kind == "stairs":  # experts 0, 1 and 2 have none, 2 thirds and 1 third
        found[:] = 0.1
        found[torch.arange(tokens), torch.arange(tokens) % 3 // 2 + 1] = 0.9
    if kind == "equal":
        found = torch.full_like(found, 0.5)
    return found


def _routed(scores, bias, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return order, scores.gather(-1, order)


def _shares(of: torch.Tensor) -> torch.Tensor:
    return of / of.sum(-1, keepdim=True).clamp(min=1e-20)


def _moved(bias, loads, rate: float) -> torch.Tensor:
    found = bias + rate * torch.sign(loads.double().mean() - loads.double())
    return found - found.mean()


def _loads(lines, bias, k: int) -> torch.Tensor:
    of = [_routed(one, bias, k)[0].flatten() for one in lines]
    return torch.cat(of).bincount(minlength=len(bias))


def _compare(attempt: Attempt, result, lines, mine: int, bias, k: int, rate: float):
    """What is wrong; the bias of the next step."""
    every = [of for line in lines for of in line]
    loads = _loads(every, bias, k)
    right = _moved(bias, loads, rate)
    if not attempt.returned(result, "experts", "weights", "bias"):
        return right
    experts, weights, moved = result
    for name, of in (("experts", experts), ("weights", weights)):
        kind = f"a list of {len(of)}" if isinstance(of, list | tuple) else type(of).__name__
        if not attempt.require(
            isinstance(of, list | tuple) and len(of) == len(lines[mine]),
            f"{name} is {kind}; asked for is a list, one tensor for each of the "
            f"{len(lines[mine])} micro-batches",
        ):
            return right
    within = bias  # as it would be if it moved after each micro-batch
    for micro, of in enumerate(lines[mine]):
        where = f"[{micro}]"
        biases = bias, within, right
        if not _choice(attempt, f"experts{where}", experts[micro], of, biases, k):
            return right
        within = _moved(within, _loads([line[micro] for line in lines], within, k), rate)
        order, own = _routed(of, bias, k)
        biased = (of + bias).gather(-1, order)
        asked = _shares(own)
        mistakes = {
            "the bias is in the weights, and moves the choice only": (
                _shares(biased), biased, biased / biased.sum(-1, keepdim=True),
            ),
            "they were not renormalised among the chosen ones": own,
            "a softmax was taken: a weight is the score over the sum of the chosen scores": (
                own.softmax(-1), biased.softmax(-1),
            ),
            "they are shares of all experts' scores, and asked for are those of the chosen ones": (
                own / of.sum(-1, keepdim=True).clamp(min=1e-20)
            ),
            "they are in the order of the scores, and the experts in that of score + bias": (
                _shares(own.sort(dim=-1, descending=True).values)
            ),
        }  # fmt: skip
        if not attempt.equal(f"weights{where}", weights[micro], asked, mistakes=mistakes):
            return right
    own_loads = _loads(lines[mine], bias, k)
    raw = loads.double()
    attempt.equal(
        "bias",
        moved,
        right,
        mistakes={
            "it did not move": bias,
            "the largest of the replicas' loads was taken, and asked for is their sum": _moved(
                bias, torch.stack([_loads(line, bias, k) for line in lines]).amax(0), rate
            ),
            "it moved the wrong way: an expert with more than the mean is asked less readily": (
                _moved(bias, loads, -rate)
            ),
            "it moved by this replica's own loads: replicas would choose by different biases": (
                _moved(bias, own_loads, rate)
            ),
            "replicas moved their own biases, and these were averaged: add up loads": sum(
                _moved(bias, _loads(line, bias, k), rate) for line in lines
            )
            / len(lines),
            "the mean was not taken off after the move": bias + rate * torch.sign(raw.mean() - raw),
            "the mean of the move alone was taken off, and asked for is that of the new bias": bias
            + _minus_mean(rate * torch.sign(raw.mean() - raw)),
            "the mean load was rounded to a whole number: a load beside it may be on the other "
            "side": tuple(
                _minus_mean(bias + rate * torch.sign(whole - raw))
                for whole in (raw.mean().floor(), raw.mean().ceil(), raw.mean().round())
            ),
            "shares of micro-batches (or of replicas) were added up, each as much as another "
            "whatever tokens it has: add up counts": (
                lambda: tuple(_moved(bias, loads, rate) for loads in _of_shares(lines, bias, k))
            ),
            "it moved by the distance to the mean, and should by its sign alone": (
                _minus_mean(bias + rate * (raw.mean() - raw)),
                _minus_mean(bias + rate * (raw.mean() - raw) / raw.mean().clamp(min=1)),
                _minus_mean(bias + rate * (raw.mean() - raw) / raw.sum().clamp(min=1)),
                bias + rate * (raw.mean() - raw),
            ),
            "it moved once for each micro-batch, and the step is the whole": (
                lambda: _each(bias, lines, k, rate)
            ),
            "it moved by the loads of the choice without the bias": _moved(
                bias, _loads(every, bias * 0, k), rate
            ),
            "it moved by the loads of the last micro-batch alone": _moved(
                bias, _loads([line[-1] for line in lines], bias, k), rate
            ),
            "it moved by first choices alone: each of the k counts": _moved(
                bias, _loads(every, bias, 1), rate
            ),
            "it is the change alone: the bias that comes in is what moves": _moved(
                bias * 0, loads, rate
            ),
            "it moved by sums of scores, and loads are counted": _moved(
                bias, sum(of.sum(0) for of in every), rate
            ),
            "loads above the mean lower it, and those below do not raise it": _minus_mean(
                bias - rate * (raw > raw.mean()).double()
            ),
            "loads were compared with their median": _minus_mean(
                bias + rate * torch.sign(raw.median() - raw)
            ),
            "a load that is exactly the mean moves nothing: sign(0) is 0": (
                _minus_mean(bias + rate * (1 - 2 * (raw > raw.mean()).double())),
                _minus_mean(bias + rate * (1 - 2 * (raw >= raw.mean()).double())),
            ),
        },
    )
    return right


def _of_shares(lines, bias, k: int) -> Iterator[torch.Tensor]:
    for pools in (lines, [[of] for line in lines for of in line]):
        yield sum(_loads(pool, bias, k) / max(sum(map(len, pool)), 1) for pool in pools)


def _minus_mean(of: torch.Tensor) -> torch.Tensor:
    return of - of.mean()


def _each(bias, lines, k: int, rate: float) -> tuple[torch.Tensor, ...]:
    """Moved after each micro-batch: with the choice of the moved bias, or of the first one."""
    along = alone = bias
    for micro in range(max(map(len, lines))):
        of = [line[micro] for line in lines if micro < len(line)]
        along = _moved(along, _loads(of, along, k), rate)
        alone = _moved(alone, _loads(of, bias, k), rate)
    return along, alone


def _choice(attempt: Attempt, name: str, got, scores, biases, k: int) -> bool:
    bias, within, after = biases  # of the step; moved within it; of the next one
    right = _routed(scores, bias, k)[0]
    ok = isinstance(got, torch.Tensor) and not got.is_floating_point() and got.shape == right.shape
    if not ok:
        return attempt.equal(name, got, right)
    if torch.equal(got.long(), right):
        return True
    plain = _routed(scores, bias * 0, k)[0]
    wanted = scores + bias
    token = int((got != right).any(-1).nonzero()[0])
    if torch.equal(got.long(), plain):
        why = "chosen by the scores alone, without the bias"
    elif torch.equal(got.long(), _routed(scores, within, k)[0]):
        why = "chosen by a bias that moved after the micro-batch before; it stays for the step"
    elif torch.equal(got.long(), _routed(scores, after, k)[0]):
        why = "chosen by the bias of the next step: first choose, then move it"
    elif torch.equal(got.long(), _routed(scores, -bias, k)[0]):
        why = "chosen by scores minus bias"
    elif torch.equal(got.long(), _routed(scores * 0, (scores * bias), k)[0]):
        why = "chosen by scores times bias"
    elif int(got.min()) < 0 or int(got.max()) >= len(bias):
        why = "there is no such expert"
    elif torch.equal(wanted.gather(-1, got.long()), wanted.gather(-1, right)):
        why = "of equal ones the lower number goes first"
    elif torch.equal(got.long().sort(-1).values, right.sort(-1).values):
        why = "the right experts in another order: the highest score + bias goes first"
    else:
        mine = [round(wanted[token, e].item(), 4) for e in got[token].tolist()]
        best = [round(wanted[token, e].item(), 4) for e in right[token].tolist()]
        why = f"their score + bias are {mine}, and the highest are {best}"
    return attempt.require(
        False,
        f"{name}: token {token} goes to the experts {got[token].tolist()}, and should to "
        f"{right[token].tolist()}: {why}",
    )


EXERCISE = Exercise(
    id="moe.balance.bias",
    goal="Balance without a loss: to each expert's score a bias is added for the *choice*, and "
    "never for the weights. It stays as it is for the whole step; then it moves by the loads of "
    "all replicas and all micro-batches, down for an expert with more than the mean, up for one "
    "with less.",
    interface="`my_biased_step(scores, bias, k, rate, axis)` returns `experts, weights, bias`. "
    "scores: a list of M tensors (T, E), sigmoids from 0 to 1, this replica's micro-batches, T "
    "another in each, perhaps 0. bias: (E,), the same on all ranks. experts: a list of M tensors "
    "(T, k), the highest score + bias first, of equal ones the lower number. weights: a list of M "
    "tensors (T, k), in the same order: the chosen scores over their sum, which is taken as 1e-20 "
    "at least. The new bias: rate * sign(mean load - load) is added, and then its mean taken off. "
    "A load is how many of the k choices of all tokens fell on an expert. "
    "`pico.comm.all_reduce(t, axis, reason)` sums in place and returns t.",
    budget="One all-reduce of E numbers over `axis`; ranks of other axes have the same tokens.",
    hints=(
        "Two orders of one table: which experts, by score + bias, and what they weigh, by score. "
        "Which of the two does a gradient go through?",
        "`order = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :k]`, then "
        "`scores.gather(-1, order)`. Counts of all micro-batches first, one all-reduce, one move.",
        "`torch.sign(loads.mean() - loads)` with loads as floating-point numbers: a load that is "
        "the mean exactly moves nothing. `moved - moved.mean()` at the end.",
    ),
    stub_function=my_biased_step,
    solution_function=solution,
    why="An auxiliary loss bends every weight of the router for balance's sake, against what the "
    "tokens would want. The bias touches the choice alone: a token's output, once its experts are "
    "chosen, is what it was, and no gradient knows of it, so it can be moved by a rule instead of "
    "by an optimizer (arXiv 2408.15664; DeepSeek-V3 with a rate of 0.001). The sign bounds the "
    "step whatever the loads are. Moved within a step, the later micro-batches would choose by "
    "another bias than the earlier ones, and one process by another than many. Taking off the mean "
    "changes no choice; it keeps the numbers from drifting away. In bf16 a step of 0.001 on a bias "
    "of 1 is lost: keep it in fp32 (`pico.source('picolab.moe.balance.move_bias')`).",
    judge=judge,
    cases=(
        Case(
            "dp2",
            values={
                "axis": "dp",
                "settings": (
                    # (Many experts first: a wrong rule moves another set of them.)
                    ("11 experts, one micro-batch", ((13,), (17,)), 11, 3, "mild", 1),
                    ("11 experts, close loads", ((11, 17), (11, 3)), 11, 3, "close", 1),
                    ("a load that is the mean", ((3, 6), (9, 3)), 3, 1, "stairs", 1),
                    ("a bias of zeros", ((6,), (6,)), 4, 2, "", 1),
                    ("2 micro-batches", ((6, 5), (4, 9)), 5, 2, "strong", 4),
                    ("one expert a token", ((8, 3), (2, 6)), 3, 1, "", 3),
                    ("scores that are often equal", ((9,), (8,)), 6, 2, "ties", 3),
                    ("all scores equal", ((5,), (6,)), 7, 3, "equal", 2),
                    ("scores that are 0", ((5, 4), (6, 1)), 4, 2, "zeros", 2),
                    ("a replica without tokens", ((0, 0), (7, 5)), 5, 2, "", 2),
                    ("all experts chosen: even loads", ((4,), (3,)), 3, 3, "strong", 1),
                    ("24 experts", ((31, 18), (40, 11)), 24, 4, "", 3),
                    ("a bias with a mean", ((5, 4), (7, 3)), 5, 2, "not zero in the mean", 2),
                ),
            },
        ),
        Case(
            "dp3",
            values={
                "axis": "dp",
                "settings": (("3 replicas", ((4, 8), (0, 5), (1, 2)), 5, 2, "strong", 3),),
            },
        ),
        Case(
            "dp2tp2",
            values={
                "axis": "dp",
                "settings": (
                    ("over dp; ranks of tp have the same tokens", ((4, 7), (5, 1)), 4, 2, "", 2),
                ),
            },
        ),
    ),
    blocked=("picolab.moe.balance.move_bias", "picolab.moe.router.choose"),
    timeout=5.0,
)
