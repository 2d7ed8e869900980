"""The mystery runs of chapter 4. How a case is made: picolab/exercises/mystery_case.py.

In fp16, with products that are rounded alike on every machine. A run that is right is off from one
process by no more than fp32's order of additions: what is rounded stands in the same micro-batches.
"""

from picolab.exercises.mystery_case import Suspect

_FP16 = {
    "precision": "fp16",
    "products": "rounded",
    "clip": 0.1,  # at work in every step, as in chapter 1
}

_HEALTHY = Suspect(
    "nothing is wrong: what was seen is what a loss scale does",
    None,
    (),
    "losses, norms and scales would be one process's, and the ledger would equal the formula",
)
_ALONE = Suspect(
    "each rank decides by its own gradients whether a step is skipped",
    "overflow-decided-alone",
    ("loss", "norm", "ledger", "scale"),
    "the first loss would be right, the ledger would lack 'precision: does any rank object?', and "
    "ranks would skip different steps and have different scales",
)
_ALONE_DP = Suspect(
    "each rank decides by its own gradients whether a step is skipped",
    "overflow-decided-alone",
    ("ledger",),
    "all numbers would be right, since gradients that were summed over dp are the same on both "
    "ranks; only the ledger would lack 'precision: does any rank object?'",
)
_STAY = Suspect(
    "gradients are never divided by the loss scale",
    "gradients-stay-scaled",
    ("norm",),
    "the norm would be as many times one process's as the loss scale is, in every step, and "
    "clipping would hide the length from the loss",
)
_CLIPPED = Suspect(
    "gradients are clipped before they are divided by the loss scale",
    "clipped-while-scaled",
    ("loss", "norm"),
    "the first loss would be right, the norm as many times too large as the scale is, and the "
    "loss would hardly fall: what is left after dividing is nothing to AdamW's eps",
)
_LAST = Suspect(
    "gradients are divided by the scale of the step before",
    "divided-by-the-last-scale",
    ("norm",),
    "the norm would be 2 times or half of one process's in the step after each change of the "
    "scale, and right in all others",
)
_NEVER = Suspect(
    "the loss scale stays where it is after an overflow",
    "scale-never-falls",
    ("loss", "norm", "scale"),
    "from the first overflow on every step would be skipped, and the loss would stand still",
)
_AT_ONCE = Suspect(
    "the loss scale doubles after every good step, and not after several in a row",
    "scale-grows-at-once",
    ("loss", "norm", "scale"),
    "every second step would be skipped",
)
_AVERAGED = Suspect(
    "gradients are averaged over the replicas, although the loss was divided by the global count "
    "of tokens",
    "dp-gradients-averaged",
    ("norm",),
    "the norm would be half of one process's in every step, and nothing else would show it",
)
_MISSING = Suspect(
    "gradients are not summed over the replicas",
    "dp-gradients-missing",
    ("loss", "norm", "ledger", "shards"),
    "the first loss would be right, the ledger would lack the gradient buckets, and copies would "
    "drift apart",
)
_SAME_DATA = Suspect(
    "both replicas read the same part of the batch",
    "dp-same-data",
    ("loss", "norm"),
    "the first loss, before any update, would be that of other text",
)
_NOT_SCALED = Suspect(
    "micro-batches' gradients are added up without dividing by how many there are",
    "micro-batches-not-scaled",
    ("loss", "norm", "scale"),
    "the first loss would be right, the norm 4 times too large, the number of micro-batches, and "
    "the scale would be held 4 times lower",
)

CASES = ()
