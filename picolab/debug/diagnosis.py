"""From what differs to what is most likely wrong.

What is known is in an `Evidence`: what one process computed, what each rank did. Which fault was
switched on, or that one was, is not in it. The rules are asked in order, each looks at one kind of
evidence, and the first that recognises something answers. The order is that of a training step,
since a wrong start makes everything after it wrong too:

    the ledger          a collective that the formula has and the ranks did not do (or did twice)
    the data            which sequences each replica read
    the start           whether parameters are what one process starts from
    the count           of valid tokens, that every loss is divided by
    the forward pass    the first place in the model where a tensor is wrong
    the loss            all activations right, and their loss wrong
    the samples         how often each counts in the gradient
    the backward pass   the first place, from the end, where a gradient is wrong
    what is reported    loss and norm, where gradients are right
    (what the signature of a reduction and the weights of the samples are: see evidence.py)
"""

from dataclasses import dataclass

import torch

from picolab.debug.evidence import Evidence, number_text, ranks_text, slice_of
from picolab.model.transformer import IGNORED

DATA = "the data"
START = "the initial values"
SCALE = "the scale of the loss"
SAMPLES = "the weights of the samples"
NORM_MEMBERS = "the members of the gradient norm"


@dataclass(frozen=True)
class Cause:
    """What is most likely wrong: `where` names a reduction by its reason, or another part of the
    step; `what` is missing, doubled, averaged, ... Its text is for people."""

    where: str
    what: str
    text: str

    def __str__(self) -> str:
        return self.text


def diagnose(evidence: Evidence, *, ledger: bool = True) -> Cause | None:
    """The most likely cause of what differs; None if nothing does. ledger False: from the numbers
    alone, as where there is no formula to compare with."""
    rules = _RULES if ledger else [rule for rule in _RULES if rule is not _by_ledger]
    return next((cause for rule in rules if (cause := rule(evidence))), None)


def _reduction_cause(reason: str, what: str, seen: str) -> Cause:
    """The sentence for one reduction; `seen` is the evidence."""
    axis = reason.split(":")[0]
    meaning = {
        "missing": f"the all-reduce {reason!r} is missing: every rank of {axis} keeps its own "
        "summand",
        "doubled": f"the all-reduce {reason!r} is doubled: the sum over {axis} is summed again",
        "averaged": f"{reason!r} is divided by the number of ranks in {axis}: it is averaged, and "
        "should be summed",
    }[what]
    return Cause(reason, what, f"{meaning}. Seen: {seen}")


# -- the rules --


def _by_moved_parameters(evidence: Evidence) -> Cause | None:
    steps = [i for seen in evidence.ranks for i, moved in enumerate(seen.moved) if moved]
    if not steps:
        return None
    weights, alone = evidence.sample_weights, ""
    if weights is not None and _only_own(evidence, weights):
        alone = "; and the gradients were not summed over the replicas"
    return Cause(
        "dp: gradient bucket",
        "weights",
        "weights are synchronised where gradients should be: parameters changed between the "
        f"forward pass and the optimizer's turn (first in step {min(steps) + 1}){alone}. The "
        "argument of a post-accumulate hook is the parameter, not its gradient",
    )


def _by_ledger(evidence: Evidence) -> Cause | None:
    wrong = [line for line in evidence.ledger if not line.ok]
    if not wrong:
        return None
    first = next((line for line in wrong if line.expected[0]), wrong[0])
    count, found = first.expected[0], first.found[0]
    seen = f"the formula has {count} a step on each rank, the ledger {found}"
    others = [f"{line.reason!r} ({line.expected[0]}, found {line.found[0]})" for line in wrong]
    if len(wrong) > 1:
        seen += f"; all that differ: {', '.join(others)}"
    if not count:
        return Cause(
            first.reason,
            "extra",
            f"there is a collective that the step should not have: {first.op} over {first.axis}, "
            f"{first.reason!r}. Seen: {seen}",
        )
    if not found:
        return _reduction_cause(first.reason, "missing", seen)
    if first.reason == "dp: gradient bucket" and found == count * evidence.recipe.accumulate:
        # With two micro-batches this is also twice; the weights of the samples tell which.
        cause = _by_sample_weights(evidence)
        if cause is not None and cause.where == first.reason:
            return cause
    if found == 2 * count and first.found[1] == 2 * first.expected[1]:
        return _reduction_cause(first.reason, "doubled", seen)
    return Cause(
        first.reason,
        "count" if found != count else "size",
        f"{first.reason!r} is done {found} times a step with {first.found[1]:,} bytes in all, and "
        f"should be {count} times with {first.expected[1]:,}",
    )


def _by_data(evidence: Evidence) -> Cause | None:
    recipe, replicas = evidence.recipe, range(evidence.recipe.layout.dp)
    owner = {
        tuple(row.tolist()): (replica, micro)
        for replica in replicas
        for micro in range(recipe.accumulate)
        for row in recipe.part(0, micro, replica)[0]
    }
    wrong = {}
    for seen in evidence.ranks:
        mine = seen.place["dp"]
        for micro, tokens in enumerate(seen.read):
            if not torch.equal(tokens, recipe.part(0, micro, mine)[0]):
                rows = {owner.get(tuple(row.tolist())) for row in tokens}
                wrong.setdefault(seen.rank, (mine, {row and row[0] for row in rows}))
    if not wrong:
        return None
    rank, (mine, read) = next(iter(wrong.items()))
    if None in read or len(read) > 1:
        what, text = "other", "sequences that are not this replica's part of the global batch"
    else:
        what, text = "repeated", f"the sequences of replica {read.pop()}"
    return Cause(
        DATA,
        what,
        f"ranks do not read what they should: {ranks_text(list(wrong))}; rank {rank}, in replica "
        f"{mine}, reads {text}. The gradient counts some samples several times and others never",
    )


def _by_start(evidence: Evidence) -> Cause | None:
    wrong = {
        seen.rank: [
            name
            for name, (_, tensor) in seen.start.items()
            if not evidence.close(tensor, slice_of(seen.start, name, evidence.reference.start))
        ]
        for seen in evidence.ranks
    }
    wrong = {rank: names for rank, names in wrong.items() if names}
    if not wrong:
        return None
    names = list(dict.fromkeys(name for of_rank in wrong.values() for name in of_rank))
    some = f"{len(names)} tensors, {names[0]} among them, on {ranks_text(list(wrong))}"

    def alike(axis: str) -> bool:
        """Whether the ranks along an axis hold the same numbers in all that is wrong."""
        return all(
            torch.equal(line[0].start[name][1], seen.start[name][1])
            for line in evidence.lines(axis)
            for seen in line[1:]
            for name in names
        )

    if not alike("dp"):
        return Cause(
            START,
            "replicas differ",
            f"replicas do not start from the same parameters ({some}): they were drawn from "
            "different seeds, and nobody made them equal. Summed gradients cannot bring them "
            "together again",
        )
    cut = all(evidence.ranks[0].start[name][0].dim is not None for name in names)
    if evidence.size("tp") > 1 and cut and alike("tp"):
        return Cause(
            START,
            "shards alike",
            f"every shard starts with the same numbers ({some}): each rank filled its own part "
            "from the same seed. Equal shards get equal gradients, so they stay copies for ever, "
            f"and the model has 1/{evidence.size('tp')} of its heads and neurons",
        )
    return Cause(
        START, "other", f"parameters do not start from what one process starts from: {some}"
    )


def _by_count(evidence: Evidence) -> Cause | None:
    right = evidence.reference.count
    found = {seen.rank: torch.tensor(float(seen.counts[0]), dtype=torch.float64) for seen in evidence.ranks}
    rights = {rank: torch.tensor(float(right), dtype=torch.float64) for rank in found}
    what = evidence.signature("dp", found, rights)
    if what == "right":
        return None
    told = ", ".join(f"{int(count)} on rank {rank}" for rank, count in found.items())
    seen = f"losses are divided by {told}; {right} labels count in the global batch"
    if isinstance(what, str):
        return _reduction_cause("dp: count of valid tokens", what, seen)
    own = {line.rank: evidence.recipe.counts()[line.place["dp"]] for line in evidence.ranks}
    if all(int(found[rank]) == own[rank] * evidence.size("dp") for rank in found):
        return _mean_of_means(seen)
    return Cause(
        "dp: count of valid tokens", "other", f"the count of valid tokens is wrong: {seen}"
    )


def _mean_of_means(seen: str) -> Cause:
    return Cause(
        "dp: count of valid tokens",
        "local",
        "each replica divides by its own count of valid tokens, and the results are averaged: a "
        f"mean of means, in which tokens of replicas with few of them weigh more. Seen: {seen}",
    )


_FORWARD = {"embed": "tp: embedding output"} | dict.fromkeys(
    ("attention", "mlp"), "tp: row-parallel output"
)


def _by_forward(evidence: Evidence) -> Cause | None:
    for point in _points(evidence, "forward"):
        what = _at(evidence, "forward", point)
        if what == "right":
            continue
        reason = _FORWARD.get(point.split(".")[-1])
        seen = f"in the first forward pass everything before the output of {point} is right, and it"
        if reason and isinstance(what, str):
            return _reduction_cause(reason, what, f"{seen} is not; {_signature_text(what, 'tp')}")
        times = f" is {number_text(what)} times too large" if isinstance(what, float) else " is not"
        return Cause(
            point, "forward", f"the forward pass goes wrong at {point}. Seen: {seen}{times}"
        )
    return None


def _by_loss(evidence: Evidence) -> Cause | None:
    """Every activation is right. Is the loss that is made of them?"""
    parts = evidence.reference.sums
    found, right = {}, {}
    for seen in evidence.ranks:
        found[seen.rank] = torch.tensor(seen.sums, dtype=torch.float64)
        mine = [parts[seen.place["dp"], micro] for micro in range(len(seen.sums))]
        right[seen.rank] = torch.tensor(mine, dtype=torch.float64)
    if evidence.signature("tp", found, right) == "right":
        return None
    for (reason, what), value in _loss_candidates(evidence).items():
        if all(evidence.close(found[r][0], loss) for r, loss in value.items()):
            return _reduction_cause(
                reason,
                what,
                "all activations are right, and the loss is the one that this mistake gives: "
                f"{float(found[0][0]):.6g} on rank 0, and should be {float(right[0][0]):.6g}",
            )
    return Cause(
        "the loss",
        "other",
        "the loss goes wrong: every activation of the first forward pass is right, and the sum of "
        f"the losses is {float(found[0][0]):.6g} on rank 0, and should be {float(right[0][0]):.6g}",
    )


def _loss_candidates(evidence: Evidence) -> dict[tuple[str, str], dict[int, torch.Tensor]]:
    """What the first micro-batch's loss would be on each rank, if one reduction of the
    vocabulary-parallel loss were wrong; computed from the reference's own logits."""
    n, table = evidence.size("tp"), evidence.reference.start
    maximum, sums = "tp: cross entropy maximum", "tp: cross entropy sums"
    candidates: dict[tuple[str, str], dict[int, torch.Tensor]] = {}
    if n == 1 or "norm" not in next(iter(evidence.reference.forward.values())):
        return candidates
    for seen in evidence.ranks:
        replica = seen.place["dp"]
        x_BSD = evidence.reference.forward[replica]["norm"].double()
        logits_BSV = x_BSD @ table["embed.weight"].double().T  # tied to the head
        labels_BS = evidence.recipe.part(0, 0, replica)[1]
        counted_BS = labels_BS != IGNORED
        label_BS1 = labels_BS.clamp(min=0).unsqueeze(-1)
        shards = logits_BSV.chunk(n, dim=-1)
        whole_BS = logits_BSV.amax(-1)
        target_BS = logits_BSV.gather(-1, label_BS1).squeeze(-1)
        owner_BS = label_BS1.squeeze(-1) // shards[0].shape[-1]
        own_BS = torch.stack([shard.amax(-1) for shard in shards])

        def loss(total_BS, target_BS, counted_BS=counted_BS):
            return (total_BS.log() - target_BS)[counted_BS].sum()

        def total(shard, maximum_BS):
            return (shard - maximum_BS.unsqueeze(-1)).exp().sum(-1)

        all_BS, mine = total(logits_BSV, whole_BS), owner_BS == seen.place["tp"]
        right_BS = target_BS - whole_BS
        its_BS = own_BS.gather(0, owner_BS.unsqueeze(0)).squeeze(0)
        values = {
            (maximum, "missing"): loss(
                sum(total(shard, m) for shard, m in zip(shards, own_BS)), target_BS - its_BS
            ),
            (sums, "missing"): loss(
                total(shards[seen.place["tp"]], whole_BS), right_BS.masked_fill(~mine, 0)
            ),
            (sums, "doubled"): loss(n * all_BS, n * right_BS),
            (sums, "averaged"): loss(all_BS / n, right_BS / n),
        }
        for key, value in values.items():
            candidates.setdefault(key, {})[seen.rank] = value
    return candidates


def _by_sample_weights(evidence: Evidence) -> Cause | None:
    weights = evidence.sample_weights
    if weights is None:
        return None
    recipe, dp, n = evidence.recipe, evidence.size("dp"), evidence.recipe.accumulate
    all_RM = torch.stack(list(weights.values()))  # (ranks, replicas, micro-batches)

    def is_(expected) -> bool:
        expected = torch.as_tensor(expected, dtype=torch.float64)
        return bool(((all_RM - expected).abs() <= evidence.exact * (1 + expected.abs())).all())

    if is_(1.0):
        return None
    seen = f"in the gradient, {_weights_text(all_RM)}, and each should count once"
    bucket, reason_count = "dp: gradient bucket", "dp: count of valid tokens"
    counts = torch.tensor(recipe.counts(), dtype=torch.float64).unsqueeze(1)
    again = torch.tensor([float(dp) ** (n - 1 - m) for m in range(n)])
    last = torch.tensor([0.0] * (n - 1) + [1.0])
    if dp > 1:
        if _only_own(evidence, weights):
            return _reduction_cause(bucket, "missing", seen)
        if is_(float(dp)):
            return _reduction_cause(bucket, "doubled", seen)
        if is_(1 / dp):
            return _reduction_cause(bucket, "averaged", seen)
        if is_(again):
            return Cause(
                bucket,
                "every micro-batch",
                "gradients are summed over the replicas after every micro-batch, and what was "
                f"summed already is summed again. Seen: {seen}",
            )
        if is_(counts.sum() / counts):
            return _reduction_cause(reason_count, "missing", seen)
        if is_(counts.sum() / (dp * counts)):
            return _mean_of_means(seen)
    if is_(float(n)):
        return Cause(
            SCALE,
            "micro-batches",
            f"gradients are too large by the number of micro-batches ({n}): each was "
            f"differentiated without dividing by the whole batch's count. Seen: {seen}",
        )
    if is_(last):
        return Cause(
            SAMPLES,
            "forgotten",
            "only the last micro-batch is in the gradient: it was cleared (zero_grad) between the "
            f"micro-batches. Seen: {seen}",
        )
    same = float(all_RM.max() - all_RM.min()) <= evidence.exact * float(all_RM.abs().max())
    if same:
        times = number_text(float(all_RM.mean()))
        return Cause(SCALE, "other", f"every gradient is {times} times what it should be")
    return Cause(
        SAMPLES, "other", f"the model is right, and samples do not count equally. Seen: {seen}"
    )


def _only_own(evidence: Evidence, weights: dict[int, torch.Tensor]) -> bool:
    """Whether each rank's gradient is made of its own replica's samples."""
    if evidence.size("dp") == 1:
        return False
    for seen in evidence.ranks:
        others = weights[seen.rank].clone()
        mine = others[seen.place["dp"]].clone()
        others[seen.place["dp"]] = 0
        if float(others.abs().max()) > evidence.exact or float(mine.abs().min()) < evidence.exact:
            return False
    return True


def _weights_text(all_RM: torch.Tensor) -> str:
    """The weights in words, of the first rank, and whether the others have the same."""
    first = all_RM[0]
    rows = [
        f"samples of replica {r} count {_row_text(row)} times"
        for r, row in enumerate(first.tolist())
    ]
    where = " on every rank" if torch.allclose(all_RM, first.expand_as(all_RM)) else " on rank 0"
    if torch.allclose(first, first[:1].expand_as(first)):
        rows = [f"samples count {_row_text(first[0].tolist())} times"]
    return f"{where.strip()} {', '.join(rows)}"


def _row_text(row: list[float]) -> str:
    words = [number_text(0.0 if abs(value) < 1e-6 else value) for value in row]
    return words[0] if len(set(words)) == 1 else f"{', '.join(words)} (micro-batch by micro-batch)"


def _by_backward(evidence: Evidence) -> Cause | None:
    """The forward pass is right. Where, from the end, is the first wrong gradient?"""
    points = _points(evidence, "backward")[::-1]
    for i, point in enumerate(points):
        what = _at(evidence, "backward", point)
        if what == "right":
            continue
        reader = {"norm": "the head", "attention_norm": "qkv", "mlp_norm": "gate and up"}
        reads = reader.get(point.split(".")[-1])
        after = f"down to that of {points[i - 1]}" if i else "the loss included"
        seen = f"the forward pass is right, gradients are right {after}, and that of the output of"
        if reads and evidence.size("tp") > 1 and isinstance(what, str):
            return _reduction_cause(
                "tp: column-parallel input gradient",
                what,
                f"{seen} {point}, which {reads} reads, is not; {_signature_text(what, 'tp')}",
            )
        times = f" {number_text(what)} times too large" if isinstance(what, float) else " not"
        return Cause(
            point,
            "backward",
            f"the backward pass goes wrong at {point}. Seen: {seen} {point} is{times}",
        )
    return None


def _by_reported_loss(evidence: Evidence) -> Cause | None:
    found = {seen.rank: torch.tensor(seen.losses[0], dtype=torch.float64) for seen in evidence.ranks}
    right = {rank: torch.tensor(evidence.reference.losses[0], dtype=torch.float64) for rank in found}
    what = evidence.signature("dp", found, right)
    if what == "right":
        return None
    told = ", ".join(f"{float(loss):.5g}" for loss in found.values())
    seen = f"gradients are right, and ranks report a loss of {told} for {float(right[0]):.5g}"
    if isinstance(what, str):
        return _reduction_cause("dp: loss", what, seen)
    return Cause("dp: loss", "other", f"the loss that is reported is wrong. Seen: {seen}")


def _by_norm(evidence: Evidence) -> Cause | None:
    """Gradients are right. Of what is the norm that is reported?"""
    reference, tp = evidence.reference, evidence.size("tp")
    right = reference.norms[0]
    found = {seen.rank: seen.norms[0] for seen in evidence.ranks}
    if all(abs(norm - right) <= 100 * evidence.tolerance * right for norm in found.values()):
        return None
    own, replicas = {}, {}
    for seen in evidence.ranks:
        own[seen.rank] = replicas[seen.rank] = 0.0
        for name, (piece, _) in seen.gradients.items():
            square = float(
                slice_of(seen.gradients, name, reference.gradients).double().square().sum()
            )
            if piece.dim is None:
                replicas[seen.rank] += square
            else:
                own[seen.rank] += square
    whole = {
        seen.rank: sum(own[other.rank] for other in line)
        for line in evidence.lines("tp")
        for seen in line
    }
    told = ", ".join(f"{norm:.5g}" for norm in found.values())
    seen = f"gradients are right, and the norm is {told} where {right:.5g} is right"
    reason = "tp: gradient norm"
    candidates = {
        (reason, "missing"): lambda r: own[r] + replicas[r],
        (reason, "doubled"): lambda r: tp * whole[r] + replicas[r],
        (reason, "averaged"): lambda r: whole[r] / tp + replicas[r],
        (NORM_MEMBERS, "replicas"): lambda r: whole[r] + tp * replicas[r],
    }
    for (where, what), square in candidates.items() if tp > 1 else ():
        if all(abs(norm**2 - square(r)) <= evidence.exact * norm**2 for r, norm in found.items()):
            if where == reason:
                return _reduction_cause(where, what, f"{seen}: that of this mistake")
            return Cause(
                where,
                what,
                f"the gradient norm counts parameters that every rank of tp holds {tp} times, once "
                f"on each. Seen: {seen}: that of this mistake",
            )
    return Cause(reason, "other", f"the gradient norm is wrong. Seen: {seen}")


def _by_later_steps(evidence: Evidence) -> Cause | None:
    """Everything of the first step is right up to its update."""
    reference, later = evidence.reference, 100 * evidence.tolerance
    for seen in evidence.ranks:
        for kind, found, right in (
            ("loss", seen.losses, reference.losses),
            ("gradient norm", seen.norms, reference.norms),
        ):
            for step, (a, b) in enumerate(zip(found, right)):
                if not abs(a - b) <= later * abs(b):
                    return _update_cause(f"the {kind} of step {step + 1} on rank {seen.rank}")
        for name, (_, tensor) in seen.end.items():
            if not evidence.close(tensor, slice_of(seen.end, name, reference.end)):
                return _update_cause(f"{name} at the end, on rank {seen.rank}")
    return None


def _update_cause(what: str) -> Cause:
    return Cause(
        "the update",
        "other",
        "the first step is right up to its gradients, so what is wrong comes after them: clipping, "
        f"the optimizer, or gradients that were kept from the step before. First seen: {what}",
    )


def _points(evidence: Evidence, kind: str) -> list[str]:
    """The places in the model, in the order of the forward pass."""
    return list(next(iter(evidence.reference.forward.values())))


def _at(evidence: Evidence, kind: str, point: str):
    """The signature over tp of a tensor at a point of the first forward or backward pass."""
    found = {s.rank: getattr(s, kind)[point] for s in evidence.ranks if point in getattr(s, kind)}
    of = getattr(evidence.reference, kind)
    right = {s.rank: of[s.place["dp"]][point] for s in evidence.ranks if s.rank in found}
    return evidence.signature("tp", found, right) if found else "right"


def _signature_text(what: str, axis: str) -> str:
    return {
        "missing": f"what the ranks of {axis} hold adds up to the right tensor",
        "doubled": f"it is exactly {axis} times the right tensor",
        "averaged": f"it is exactly 1/{axis} of the right tensor",
    }[what]


_RULES = [
    _by_moved_parameters,
    _by_ledger,
    _by_data,
    _by_start,
    _by_count,
    _by_forward,
    _by_loss,
    _by_sample_weights,
    _by_backward,
    _by_reported_loss,
    _by_norm,
    _by_later_steps,
]
