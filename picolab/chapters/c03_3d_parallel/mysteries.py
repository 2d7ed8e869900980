"""The mystery runs of chapter 3. How a case is made: picolab/exercises/mystery_case.py."""

from picolab.exercises.mystery_case import Mystery, Suspect

# As in chapter 1: at work in every step, so that what changes only the length of the gradient
# moves no loss.
_ALWAYS_CLIPPED = {"clip": 0.1}

_HEALTHY = Suspect(
    "nothing is wrong: what was seen is what this layout does",
    None,
    (),
    "loss and norm would be off by no more than a right run's, and the ledger would equal the "
    "formula in count and bytes, however many they are",
)
_AVERAGED = Suspect(
    "gradients are averaged over the replicas where they are scattered, as FSDP does, although the "
    "loss was divided by the global count of tokens",
    "zero-gradients-averaged",
    ("norm",),
    "the norm would be half of one process's in every step, and nothing else would show it",
)
_MISSING = Suspect(
    "each rank keeps its rows of its own gradient, and nobody sums",
    "zero-gradients-missing",
    ("loss", "norm", "ledger"),
    "the first loss would be right, and the ledger would lack the gradient buckets",
)
_NORM = Suspect(
    "each rank clips by the norm of its own shards",
    "zero-norm-missing",
    ("loss", "norm", "ledger"),
    "the first loss would be right and the norm too small, and the ledger would lack 'dp: gradient "
    "norm'",
)
_EVERY = Suspect(
    "gradients are summed over the ranks after every micro-batch, earlier sums included",
    "zero-every-micro-batch",
    ("loss", "norm", "ledger"),
    "the first loss would be right, the norm several times too large, and the ledger would have "
    "all-reduces of gradients that the formula does not know",
)
_BORDER = Suspect(
    "every rank but the first takes gradients that begin a row before its own rows",
    "zero-border-off-by-one",
    ("loss", "norm"),
    "the first loss would be right, the norm off by no constant factor, and every line of the "
    "ledger would be right: the right bytes of the wrong rows",
)
_STALE = Suspect(
    "after the step nobody fetches the rows that the others have stepped",
    "zero-parameters-missing",
    ("loss", "norm", "ledger"),
    "the first loss would be right, and the ledger would lack 'zero: updated parameters'",
)
_FORGOTTEN = Suspect(
    "gradients are cleared before every micro-batch, so only the last one counts",
    "micro-batches-forgotten",
    ("loss", "norm"),
    "the first loss would be right, and the norm at once too small, by no constant factor",
)
_LATE = Suspect(
    "rank 1 is late in every step: its input is slow",
    "rank-1-late",
    ("spans",),
    "all numbers would be right; rank 1 would take longer and not wait, the other would wait",
)

CASES = (
    Mystery(
        "3d.mystery.1",
        "More memory, and a little worse",
        "dp2zero2",
        "'We went from DDP to ZeRO-2 to save memory. It does, and it learns; only a little worse "
        "than before. With one micro-batch a step everything is as it was, so I suspect rounding "
        "in the accumulation.'",
        "D",
        "ledger",
        "The ledger has all-reduces of gradients beside the one reduce-scatter: after each of the "
        "4 micro-batches but the last, what was added up so far is summed over the ranks, and the "
        "sums go into the next sum. Over two ranks the first micro-batch then counts 8 times, the "
        "second 4 and the third 2: the norm is several times too large, by no constant factor, "
        "and clipping hides the length but not the direction. With one micro-batch there is no "
        "earlier one. Gradients of micro-batches are either added up and sent once, or each is "
        "sent into the shard and added there; not half of each.",
        (_AVERAGED, _FORGOTTEN, _BORDER, _EVERY, _NORM, _HEALTHY, _STALE),
        _ALWAYS_CLIPPED,
    ),
    Mystery(
        "3d.mystery.2",
        "Four and a half times the traffic",
        "dp2zero3",
        "'Since we turned stage 3 on, the network counters say that we send 4.5 times as many "
        "bytes as with DDP. The paper says 1.5. And the loss is not DDP's either: the seventh "
        "digit differs. Somewhere no_sync is forgotten, and gradients go out four times.'",
        "B",
        "ledger",
        "Every line of the ledger equals the formula. What is sent more often are *parameters*: "
        "stage 3 gathers them in the forward and in the backward of each micro-batch, and a step "
        "has 4, so it sends (1 + 2 * 4) / 2 = 4.5 times an all-reduce. The paper's 1.5 is for one "
        "micro-batch. Gradients go out once, and the seventh digit is fp32 that adds in another "
        "order. Nothing is wrong but the choice: with accumulation, stage 2, or parameters that "
        "stay gathered for the step, would send less and hold more.",
        (_EVERY, _HEALTHY, _AVERAGED, _MISSING, _NORM, _LATE),
        _ALWAYS_CLIPPED,
        seen="arXiv 1910.02054, section 7.2.2, counts one forward and one backward a step; "
        "DeepSpeed's and FSDP's documentation advise on accumulation",
    ),
)
