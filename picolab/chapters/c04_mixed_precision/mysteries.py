"""The mystery runs of chapter 4. How a case is made: picolab/exercises/mystery_case.py.

In fp16, with products that are rounded alike on every machine. A run that is right is off from one
process by no more than fp32's order of additions: what is rounded stands in the same micro-batches.
"""

from picolab.exercises.mystery_case import Mystery, Suspect

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
_STAGES = Suspect(
    "each stage clips by the norm of its own gradients",
    "pp-norm-missing",
    ("loss", "norm", "ledger"),
    "the first loss would be right and the norm too small, and the ledger would lack 'pp: gradient "
    "norm'",
)
_CLIPPED = Suspect(
    "gradients are clipped before they are divided by the loss scale",
    "clipped-while-scaled",
    ("loss", "norm", "scale"),
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
    ("loss", "norm", "ledger", "shards", "scale"),
    "the first loss would be right, the ledger would lack the gradient buckets, and copies would "
    "drift apart",
)
_SAME_DATA = Suspect(
    "both replicas read the same part of the batch",
    "dp-same-data",
    ("loss", "norm", "scale"),
    "the first loss, before any update, would be that of other text",
)
_NOT_SCALED = Suspect(
    "micro-batches' gradients are added up without dividing by how many there are",
    "micro-batches-not-scaled",
    ("loss", "norm", "scale"),
    "the first loss would be right, the norm 4 times too large, the number of micro-batches, and "
    "the scale would be held 4 times lower",
)

CASES = (
    Mystery(
        "precision.mystery.1",
        "A breakthrough in step 10",
        "pp2",
        "'Look at the loss: 3.96 in step 9, 1.84 in step 10, 0.87 in step 11, and it stays low. "
        "All that we changed was fp16; perhaps rounding regularises. The second stage's log says "
        "that one step was skipped because of an overflow, which I am told is normal. I have not "
        "looked at held-out text yet.'",
        "E",
        "scale",
        "In step 9 the last stage finds an overflow, skips the step and halves its scale. The "
        "first stage found none: it takes the step and keeps its scale. From then on the loss is "
        "multiplied by the scale of the last stage, and what the first one logs and steps by is "
        "divided by its own, which is 2 or 4 times as large. Its losses are half or a quarter of "
        "what they are, and so are its gradients, which is why the norm is off by no "
        "constant factor; AdamW hardly minds, so the model learns on, as well as before and no "
        "better. Shards, stages and ZeRO's rows differ from rank to rank, so a decision that each "
        "rank makes from its own gradients has to be agreed on, before anybody steps: one number, "
        "its maximum over all ranks. In plain dp the gradients are the same on all ranks, and "
        "nobody would notice.",
        (_LAST, _HEALTHY, _STAGES, _STAY, _ALONE, _NOT_SCALED, _CLIPPED),
        _FP16,
        scaler={"scale": 2.0**18, "interval": 5},
    ),
    Mystery(
        "precision.mystery.2",
        "Half of the batches are thrown away",
        "dp2",
        "'For nine steps the loss stands still, and the gradient norm is nan or inf. Then it "
        "learns, but again and again a step has the norm inf and does nothing: of 24 steps hardly "
        "more than half are updates. One of the two replicas must be broken, and drags the other "
        "one along.'",
        "B",
        "scale",
        "One process has the same losses, the same scales, and skips the same steps; the ledger "
        "equals the formula. The run begins with a scale of 2^28, which is far too high for this "
        "model. Each overflow halves it, and after nine of them it is at 2^19, where gradients "
        "fit. Then it is doubled after every 4 good steps until something overflows again: that "
        "is how it finds out what fits, and what it costs is the one step. With the usual "
        "interval of 1,000 or 2,000 steps nobody minds; 4 is for a run of 24. A norm that is not "
        "finite is that of gradients which nobody used. Trouble it would be if skips came without "
        "growth before them, or if the scale fell on and on: then what overflows is not the "
        "scale's doing.",
        (_SAME_DATA, _HEALTHY, _MISSING, _ALONE_DP, _AT_ONCE, _AVERAGED, _NEVER),
        _FP16,
        scaler={"scale": 2.0**28, "interval": 4},
        seen="NVIDIA/apex issue 318 and zai-org/CogVideo issue 233, where the same messages are "
        "taken for a fault",
    ),
)
