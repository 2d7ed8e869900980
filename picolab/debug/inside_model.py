"""Rules that look inside the model: the first tensor that is wrong, on the way out and on the way back.

Every rank noted what left certain points of the model in the first micro-batch (embedding, norms,
attention, MLP), and later the gradient there; one process did too. Of a wrong tensor, and of a
wrong one only, everything that is computed from it is wrong as well. So the first wrong point tells
which operation is to blame, and the signature over tp (evidence.py) what is wrong with its sum.
"""

import torch

from picolab.debug.cause import Cause, reduction_cause
from picolab.debug.evidence import Evidence, number_text
from picolab.model.transformer import IGNORED

# Who reads a point through a column-parallel matrix, and what all-reduces the output of one.
_READERS = {"norm": "the head", "attention_norm": "qkv", "mlp_norm": "gate and up"}
_FORWARD = {"embed": "tp: embedding output"} | dict.fromkeys(
    ("attention", "mlp"), "tp: row-parallel output"
)


def by_forward(evidence: Evidence) -> Cause | None:
    for point in _points(evidence):
        what = _at(evidence, "forward", point)
        if what == "right":
            continue
        reason = _FORWARD.get(point.split(".")[-1])
        seen = f"in the first forward pass everything before the output of {point} is right, and it"
        if reason and isinstance(what, str):
            return reduction_cause(reason, what, f"{seen} is not; {_signature_text(what, 'tp')}")
        times = f" is {number_text(what)} x the right one" if what is not None else " is not"
        return Cause(point, "forward", f"the forward pass goes wrong at {point}", f"{seen}{times}")
    return None


def by_loss(evidence: Evidence) -> Cause | None:
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
            return reduction_cause(
                reason,
                what,
                "all activations are right, and the loss is the one that this mistake gives: "
                f"{float(found[0][0]):.6g} on rank 0, and should be {float(right[0][0]):.6g}",
            )
    return Cause(
        "the loss",
        "other",
        "the loss goes wrong",
        "every activation of the first forward pass is right, and the sum of "
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


def by_backward(evidence: Evidence) -> Cause | None:
    """The forward pass is right. Where, from the end, is the first wrong gradient?"""
    points = _points(evidence)[::-1]
    for i, point in enumerate(points):
        what = _at(evidence, "backward", point)
        if what == "right":
            continue
        before = f"gradients from the loss down to that of {points[i - 1]}" if i else "the loss"
        seen = f"the forward pass and {before} are right, and the gradient of {point}'s output"
        reads = _READERS.get(point.split(".")[-1])
        if reads and evidence.size("tp") > 1 and isinstance(what, str):
            return reduction_cause(
                "tp: column-parallel input gradient",
                what,
                f"{seen}, which {reads} reads, is not; {_signature_text(what, 'tp')}",
            )
        times = f" is {number_text(what)} x the right one" if what is not None else " is not"
        return Cause(
            point, "backward", f"the backward pass goes wrong at {point}", f"{seen}{times}"
        )
    return None


def _points(evidence: Evidence) -> list[str]:
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
