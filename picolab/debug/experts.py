"""Rules for models with experts: choices, the gradients of experts, the balance loss.

choices         each rank noted which of its tokens goes to which expert, and so did one process
experts         their gradients are sums over edp, not over all replicas
balance loss    its own gradient is known of one process; where gradients are off by a multiple
                of just that, it was scaled or counted wrongly
"""

import torch

from picolab.debug.cause import Cause, reduction_cause
from picolab.debug.evidence import Evidence, number_text, ranks_text, slice_of

CHOICE, BALANCE, BUCKET = "the choice of experts", "the balance loss", "ep: gradient bucket"


def by_choice(evidence: Evidence, point: str) -> Cause | None:
    """Of a layer whose input is right: does each token go to its experts?"""
    layer, wrong = int(point.split(".")[1]), {}
    for seen in evidence.ranks:
        if layer in seen.routed:
            whole = evidence.reference.routed[0][seen.place["dp"], 0, layer]
            right = evidence.tokens_of(seen, whole).flatten(0, 1)
            if not torch.equal(right, seen.routed[layer]):
                wrong[seen.rank] = int((right != seen.routed[layer]).any(1).sum())
    if not wrong:
        return None
    told = f"the input of {point} is right, and on {ranks_text(list(wrong))} tokens go to others"
    told += f" than their experts ({next(iter(wrong.values()))} tokens of the first rank)"
    by_rank = {seen.rank: seen for seen in evidence.ranks}
    for line in evidence.recipe.layout.lines("tp"):
        choices = [by_rank[rank].routed[layer] for rank in line if layer in by_rank[rank].routed]
        if any(not torch.equal(choices[0], other) for other in choices[1:]):
            text = "ranks of tp send the same token to different experts, so parts of different "
            return Cause(CHOICE, "differs over tp", f"{text}experts are added up", told)
    if evidence.size("cp") > 1:
        text = "what is dropped or chosen is decided over other tokens than the pool's, one "
        return Cause(CHOICE, "pool", f"{text}micro-batch of one replica, all ranks of cp", told)
    return Cause(CHOICE, "other", "tokens go to the wrong experts", told)


def by_balance(evidence: Evidence) -> Cause | None:
    """Whether the gradients that all ranks hold are off by a multiple of the balance loss's."""
    alone, times = evidence.reference.of_balance, set()
    for seen in evidence.ranks:
        names = [
            name
            for name, (piece, _) in seen.gradients.items()
            if name in alone and "ep" not in piece.axes
        ]
        if not names:
            return None
        found, right, of_balance = (
            torch.cat([tensor.double().flatten() for tensor in tensors])
            for tensors in (
                [seen.gradients[name][1] for name in names],
                [slice_of(seen.gradients, name, evidence.reference.gradients) for name in names],
                [slice_of(seen.gradients, name, alone) for name in names],
            )
        )
        off = evidence.ratio(found - right, of_balance)
        if off is None or not abs(off) > evidence.exact:
            return None
        times.add(round(1 + off, 6))
    if len(times) != 1:
        return None
    value = times.pop()
    sizes = {axis: evidence.size(axis) for axis in ("tp", "cp", "dp", "ep")}
    sizes["the micro-batches"] = evidence.recipe.accumulate
    same = [axis for axis, size in sizes.items() if size == value]
    as_many = f", as many as {' or '.join(same)} has" if same else ""
    return Cause(
        BALANCE,
        "times",
        f"the balance loss counts {number_text(value)} times{as_many}: each of its pools should "
        "count once, whoever computes it",
        "every gradient is off by the same multiple of what the balance loss alone adds to it",
    )


def by_experts(evidence: Evidence) -> Cause | None:
    """The gradients of what every replica holds are right. Are the experts'?"""
    names = sorted(evidence.of_experts & set(evidence.reference.gradients))
    if not names:
        return None
    found, right = {}, {}
    for seen in evidence.ranks:
        mine = [name for name in names if name in seen.gradients]
        if not mine:
            return None
        found[seen.rank] = torch.cat([seen.gradients[name][1].flatten() for name in mine])
        whole = evidence.reference.gradients
        slices = [slice_of(seen.gradients, name, whole).flatten() for name in mine]
        right[seen.rank] = torch.cat(slices)
    what = evidence.signature("edp", found, right)
    if what == "right":
        return None
    seen = "all gradients are right but those of experts"
    if isinstance(what, str):
        return reduction_cause(BUCKET, what, seen)
    ratios = [evidence.ratio(found[rank], right[rank]) for rank in found]
    if None not in ratios and max(ratios) - min(ratios) <= evidence.exact * abs(ratios[0]):
        times = number_text(ratios[0])
        as_many = ", as many as ep has ranks" if times == str(evidence.size("ep")) else ""
        return Cause(
            BUCKET,
            "times",
            f"gradients of experts are {times} times too large{as_many}: a rank's experts have "
            "seen the tokens of all of its ep group, so what is averaged or summed over replicas "
            "is over edp",
            seen,
        )
    for line in evidence.lines("ep"):
        parts = [right[other.rank] for other in line]
        if len({part.shape for part in parts}) > 1:
            return None
        if not all(evidence.close(found[other.rank], sum(parts)) for other in line):
            return None
    return Cause(
        BUCKET,
        "over all replicas",
        "gradients of different experts are added up: they were summed over all of dp and cp, where"
        " only the ranks of edp hold the same ones",
        f"{seen}, and each is the sum of those that the ranks of its ep group should have",
    )
