"""Rules that look inside the model: the first tensor that is wrong, on the way out or back.

Every rank noted what left certain points of the model in the first micro-batch (embedding, norms,
attention, MLP), and later the gradient there; one process did too. Of a wrong tensor, and of a
wrong one only, everything that is computed from it is wrong as well. So the first wrong point tells
which operation is to blame, and the signature over tp (evidence.py) what is wrong with its sum.
"""

import torch

from picolab.costs import even_slices
from picolab.debug.cause import Cause, reduction_cause
from picolab.debug.evidence import Evidence, number_text, slice_of
from picolab.debug.experts import by_choice
from picolab.model.transformer import IGNORED

# Who reads a point through a column-parallel matrix, and what sums the output of one.
_READERS = {"norm": "the head", "attention_norm": "qkv", "mlp_norm": "gate and up"}
_FORWARD = {
    "embed": ("tp: embedding output", "sp: embedding output"),
    "attention": ("tp: row-parallel output", "sp: scatter output"),
}
_FORWARD["mlp"] = _FORWARD["attention"]
_BACKWARD = ("tp: column-parallel input gradient", "sp: scatter input gradient")


def by_forward(evidence: Evidence) -> Cause | None:
    for point in _points(evidence):
        what = _at(evidence, "forward", point)
        if what == "right":
            continue
        kind = point.split(".")[-1]
        if kind == "mlp" and (cause := by_choice(evidence, point)):
            return cause
        seen = f"in the first forward pass all before the output of {point} is right, and it is not"
        if kind in _FORWARD and isinstance(what, str):
            reason = _FORWARD[kind][evidence.recipe.layout.sp]
            return reduction_cause(reason, what, f"{seen}; {_meaning(what)}")
        if isinstance(what, float):
            seen += f": it is {number_text(what)} x the right one"
        if kind == "attention" and evidence.size("cp") > 1:
            text = f"the forward pass goes wrong at {point}, where ranks of cp use the keys and "
            text += "values of all of them"
            return Cause(point, "forward", text, seen)
        return Cause(point, "forward", f"the forward pass goes wrong at {point}", seen)
    return None


def by_loss(evidence: Evidence) -> Cause | None:
    """Every activation is right. Is the loss that is made of them?"""
    found, right = {}, {}
    for seen in evidence.ranks:
        if seen.sums:  # a stage that computes the loss
            found[seen.rank] = torch.tensor(seen.sums, dtype=torch.float64)
            columns = evidence.columns(seen)
            each = [
                evidence.reference.token_losses[seen.place["dp"], m][:, columns].double().sum()
                for m in range(len(seen.sums))
            ]
            right[seen.rank] = torch.stack(each)
    first = min(found)
    if evidence.signature("tp", found, right) == "right":
        return None
    told = (
        f"the first micro-batch's losses add up to {float(found[first][0]):.6g} on rank {first}, "
        f"and should to {float(right[first][0]):.6g}"
    )
    for (reason, what), value in _loss_candidates(evidence).items():
        if all(evidence.close(found[r][0], value[r]) for r in found):
            seen = f"all activations are right, and the loss is what this mistake gives: {told}"
            return reduction_cause(reason, what, seen)
    return Cause("the loss", "other", "the loss goes wrong", f"all activations are right; {told}")


def _loss_candidates(evidence: Evidence) -> dict[tuple[str, str], dict[int, torch.Tensor]]:
    """What the first micro-batch's loss would be on each rank, if one reduction of the
    vocabulary-parallel loss were wrong; computed from the reference's own logits."""
    n, start = evidence.size("tp"), evidence.reference.start
    table = start["embed.weight" if evidence.recipe.tied else "head.weight"]
    maximum, sums = "tp: cross entropy maximum", "tp: cross entropy sums"
    candidates: dict[tuple[str, str], dict[int, torch.Tensor]] = {}
    cuts = even_slices(len(table), n)
    for seen in evidence.ranks if n > 1 else ():
        replica, columns = seen.place["dp"], evidence.columns(seen)
        x_BSD = evidence.reference.forward[replica]["norm"][:, columns].double()
        logits_BSV = x_BSD @ table.double().T
        labels_BS = evidence.recipe.part(0, 0, replica)[1][:, columns]
        counted_BS = labels_BS != IGNORED
        label_BS = labels_BS.clamp(min=0)
        shards = [logits_BSV[..., cut.start : cut.stop] for cut in cuts]
        whole_BS = logits_BSV.amax(-1)
        target_BS = logits_BSV.gather(-1, label_BS.unsqueeze(-1)).squeeze(-1)
        owner_BS = sum((label_BS >= cut.start).int() for cut in cuts) - 1
        own_BS = torch.stack([shard.amax(-1) for shard in shards])

        def loss(total_BS, target_BS, counted_BS=counted_BS):
            return (total_BS.log() - target_BS)[counted_BS].sum()

        def total(shard, maximum_BS):
            return (shard - maximum_BS.unsqueeze(-1)).exp().sum(-1)

        all_BS, mine = total(logits_BSV, whole_BS), owner_BS == seen.place["tp"]
        right_BS = target_BS - whole_BS
        its_BS = own_BS.gather(0, owner_BS.long().unsqueeze(0)).squeeze(0)
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


def by_backward(evidence: Evidence) -> Cause | None:
    """The forward pass is right. Where, from the end, is the first wrong gradient?"""
    points = _points(evidence)[::-1]
    for i, point in enumerate(points):
        what = _at(evidence, "backward", point)
        if what == "right":
            continue
        before = f"gradients from the loss down to that of {points[i - 1]}" if i else "the loss"
        kind = point.split(".")[-1]
        seen = f"the forward pass and {before} are right, and the gradient of {point}'s output"
        if kind in _READERS:
            seen += f", which {_READERS[kind]} reads,"
        seen += " is not"
        if kind in _READERS and isinstance(what, str):
            reason = _BACKWARD[evidence.recipe.layout.sp]
            return reduction_cause(reason, what, f"{seen}; {_meaning(what)}")
        if isinstance(what, float):
            seen += f": it is {number_text(what)} x the right one"
        if kind == "attention_norm" and _only_keys(evidence, point):
            text = "gradients of keys and values do not come home, or not all of them"
            seen += "; of this layer's weights that of q has the right gradient, and k's and v's "
            seen += "have not"
            return Cause("cp: gradients of keys and values", "other", text, seen)
        return Cause(point, "backward", f"the backward pass goes wrong at {point}", seen)
    return None


def _only_keys(evidence: Evidence, point: str) -> bool:
    """Whether of q, k and v of the layer only what travels between ranks of cp has gone wrong. (A
    product, a norm or a cut that is wrong would show in q too, or in none of them.)"""
    right = evidence.reference.gradients

    def wrong(of: str) -> bool:
        name = f"{point.removesuffix('_norm')}.{of}.weight"
        return any(
            not evidence.close(seen.gradients[name][1], slice_of(seen.gradients, name, right))
            for seen in evidence.ranks
            if name in seen.gradients
        )

    return evidence.size("cp") > 1 and not wrong("q") and wrong("k") and wrong("v")


def _points(evidence: Evidence) -> list[str]:
    """The places in the model, in the order of the forward pass."""
    return list(next(iter(evidence.reference.forward.values())))


def _at(evidence: Evidence, kind: str, point: str):
    """The signature over tp of a tensor at a point of the first forward or backward pass."""
    at = [seen for seen in evidence.ranks if point in getattr(seen, kind)]
    found = {seen.rank: getattr(seen, kind)[point] for seen in at}
    of = getattr(evidence.reference, kind)
    right = {seen.rank: evidence.share(seen, of[seen.place["dp"]][point]) for seen in at}
    return evidence.signature("tp", found, right) if found else "right"


def _meaning(what: str) -> str:
    return {
        "missing": "what the ranks of tp hold adds up to the right tensor",
        "doubled": "it is exactly tp times the right tensor",
        "averaged": "it is exactly 1/tp of the right tensor",
    }[what]
