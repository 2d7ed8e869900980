"""The mystery runs of chapter 1. How a case is made: picolab/exercises/mystery_case.py."""

from picolab.exercises.mystery_case import Mystery, Suspect

# Low enough to be at work in every step of a right run: then the length of the gradient decides
# nothing, and a fault that changes only that does not move the loss.
_ALWAYS_CLIPPED = {"clip": 0.1}

_HEALTHY = Suspect(
    "nothing is wrong: the same sums in another order, rounded",
    None,
    (),
    "loss and norm would be off by no more than a right run's, the ledger would equal the formula, "
    "copies would be equal, and no rank would wait for another longer than in a right run",
)
_NOT_SUMMED = Suspect(
    "gradients are never summed over the replicas",
    "dp-gradients-missing",
    ("loss", "norm", "ledger", "shards"),
    "the ledger would lack the gradient buckets, and the replicas would drift apart",
)
_SUMMED_TWICE = Suspect(
    "the sum of the gradients over the replicas is taken twice",
    "dp-gradients-doubled",
    ("norm", "ledger"),
    "the norm would be 2 times one process's, and the ledger would have every bucket twice",
)
_OWN_START = Suspect(
    "each replica starts from random values of its own",
    "dp-replicas-differ",
    ("loss", "norm", "shards"),
    "copies over dp would differ from the start, and the first loss would not be one process's",
)
_SAME_DATA = Suspect(
    "all replicas read the same part of the batch",
    "dp-same-data",
    ("loss", "norm"),
    "the first loss, before any update, would be that of other text; copies would stay equal",
)
_FORGOTTEN = Suspect(
    "gradients are cleared before every micro-batch, so only the last one counts",
    "micro-batches-forgotten",
    ("loss", "norm"),
    "the first loss would be right, and the norm at once too small, by no constant factor",
)
_EVERY_MICRO_BATCH = Suspect(
    "gradients are summed over the replicas after every micro-batch, earlier sums included",
    "dp-every-micro-batch",
    ("loss", "norm", "ledger"),
    "the ledger would have every bucket once a micro-batch, and the norm would be several times "
    "too large: early micro-batches count again and again",
)
_NO_SYNC = Suspect(
    "gradients are summed over the replicas after every micro-batch, where once a step would do",
    "no-sync-forgotten",
    ("ledger",),
    "loss and norm would be right, and the ledger would have every bucket once a micro-batch",
)
_TINY_BUCKETS = Suspect(
    "every parameter's gradient is sent on its own, instead of many in one bucket",
    "bucket-per-parameter",
    ("ledger",),
    "the ledger would have many more all-reduces of gradients, and the same bytes in all",
)
_WIDE = Suspect(
    "gradients are sent in fp64, where the model is fp32",
    "gradients-in-fp64",
    ("ledger",),
    "the ledger would have as many all-reduces of gradients as the formula, of twice the bytes",
)
_LATE_1 = Suspect(
    "rank 1 is late in every step: its input is slow",
    "rank-1-late",
    ("spans",),
    "all numbers would be right; rank 1 would take longer and not wait, the other would wait",
)
_LATE_0 = Suspect(
    "rank 0 is late in every step: it writes a log while the others want to go on",
    "rank-0-late",
    ("spans",),
    "all numbers would be right; rank 0 would take longer and not wait, the other would wait",
)
_ROW_MISSING = Suspect(
    "the outputs of row-parallel layers are not summed over tp",
    "tp-row-output-missing",
    ("loss", "norm", "ledger", "shards"),
    "the ledger would lack 'tp: row-parallel output', and the first loss would be wrong already",
)
_INPUT_GRADIENT = Suspect(
    "gradients of the inputs of column-parallel layers are not summed over tp",
    "tp-input-gradient-missing",
    ("loss", "norm", "ledger", "shards"),
    "the first loss would be right, since only backward is wrong; the ledger would lack that sum, "
    "and the copies of the norms would drift apart over tp",
)
_SHARDS_ALIKE = Suspect(
    "every tp rank fills its shard from the same random numbers",
    "tp-shards-alike",
    ("loss", "norm", "shards"),
    "the shards would be copies of one another at the start, and inside the layers for ever: equal "
    "shards get equal gradients",
)
_NORM_OF_A_SHARD = Suspect(
    "the gradient norm is that of a rank's own shards: it is not summed over tp",
    "tp-norm-missing",
    ("loss", "norm", "ledger", "shards"),
    "the first loss would be right and the norm too small; the ledger would lack 'tp: gradient "
    "norm', and since each rank clips by its own, copies of the norms' weights would drift apart",
)
_NORM_COUNTS_COPIES = Suspect(
    "the gradient norm counts weights that all tp ranks hold once on each of them",
    "tp-norm-counts-replicas",
    ("loss", "norm"),
    "the first loss would be right and the norm too large, by about a per cent: the weights that "
    "count too often are few",
)

CASES = (
    Mystery(
        "4d.mystery.1",
        "The loss has not moved",
        "dp2",
        "A colleague has rewritten the training loop. 'The loss is what it was before, to "
        "every digit that I print, so I merged it.' Since then clipping is at work in every "
        "step, says somebody else, wherever the threshold is put.",
        "D",
        "norm",
        "The norm is the number of micro-batches (4) times one process's, in every step, so "
        "each micro-batch's loss was differentiated without being divided. The loss cannot "
        "show it: clipping brings a gradient of any length down to the same one, and AdamW "
        "divides by its size once more. A sum over 2 replicas taken twice or averaged would "
        "give 2 or 1/2, and an all-reduce too many would stand in the ledger.",
        (
            _HEALTHY,
            _SUMMED_TWICE,
            _FORGOTTEN,
            Suspect(
                "micro-batches' gradients are added up without dividing by how many there are",
                "micro-batches-not-scaled",
                ("norm",),
                "the norm would be 4 times one process's (4 micro-batches), and nothing else "
                "would show it, as long as clipping is at work",
            ),
            _NOT_SUMMED,
            _OWN_START,
            _SAME_DATA,
        ),
        _ALWAYS_CLIPPED,
    ),
    Mystery(
        "4d.mystery.2",
        "It learns, but a little worse",
        "tp2",
        "'With tp2 the loss goes down nicely. It is only a little above the run on one GPU, "
        "and never catches up. I have counted the collectives: they are all there.'",
        "B",
        "shards",
        "Both halves of every matrix start with the same numbers. Inside the layers they stay "
        "equal to the last bit, because equal halves get equal gradients: a layer has half as "
        "many different weights as it should. (Embedding and head drift apart, since their "
        "halves stand for different tokens.) Every reduction is there and right, so the "
        "ledger has nothing to show; loss and norm are off, as they would be for many "
        "reasons. Only looking at what the ranks hold names it.",
        (
            _ROW_MISSING,
            _SHARDS_ALIKE,
            _INPUT_GRADIENT,
            _NORM_OF_A_SHARD,
            _NORM_COUNTS_COPIES,
            Suspect(
                "the cross entropy's sums over the vocabulary are taken twice over tp",
                "tp-loss-sums-doubled",
                ("loss", "norm", "ledger"),
                "the first loss would be far off, and the ledger would have 'tp: cross entropy "
                "sums' twice",
            ),
            _HEALTHY,
        ),
    ),
    Mystery(
        "4d.mystery.3",
        "Right, and dear",
        "dp2",
        "'Loss and gradient norm are those of one GPU, digit for digit: I would sign that this "
        "is correct. But on our cluster, where the wire between two machines is slow, it is "
        "hardly faster than one.'",
        "F",
        "ledger",
        "The gradient buckets go over the wire once a micro-batch: 4 times the formula's "
        "count and 4 times its bytes. (More all-reduces of the same bytes would be small "
        "buckets; as many of twice the bytes, a wide dtype.) Since each micro-batch's own "
        "gradients were summed and then added up, every number is right, and only what was "
        "sent shows it.",
        (
            _WIDE,
            _EVERY_MICRO_BATCH,
            _LATE_1,
            _HEALTHY,
            _SUMMED_TWICE,
            _NO_SYNC,
            _TINY_BUCKETS,
        ),
        _ALWAYS_CLIPPED,
    ),
    Mystery(
        "4d.mystery.4",
        "Three digits agree",
        "cp2",
        "Two ranks share each sequence. 'Against one GPU the loss agrees to about three "
        "digits, sometimes above, sometimes below. Attention sums in another order there, "
        "so I put it down to fp32.'",
        "E",
        "loss",
        "The very first loss, before any update, is off by thousands of times what rounding "
        "makes: so the forward pass is wrong, and neither gradients nor their sums can be the "
        "cause. "
        "It is off by very little, so the tokens are asked about their true successors: wrong "
        "labels would cost far more and keep the loss up for good. What remains is a rotation "
        "by wrong positions, which so small a model hardly uses. A large one does.",
        (
            Suspect(
                "gradients are not summed over the ranks that share a sequence",
                "cp-not-synchronised",
                ("loss", "norm", "ledger", "shards"),
                "the first loss would be right; the ledger would lack the gradient buckets, "
                "and copies would drift apart over cp",
            ),
            Suspect(
                "tokens are split zig-zag over the ranks, and labels in one piece each",
                "cp-labels-contiguous",
                ("loss", "norm"),
                "the first loss would be off by per cents, and it would end far above one "
                "process's: most tokens are asked about a word that stands elsewhere",
            ),
            Suspect(
                "gradients of keys and values that another rank's queries cause get lost",
                "cp-key-gradients-lost",
                ("loss", "norm"),
                "the first loss would be right to the last digits, since only backward is wrong",
            ),
            _HEALTHY,
            Suspect(
                "tokens are split zig-zag over the ranks, and rotated by the positions of a "
                "split in one piece each",
                "cp-positions-contiguous",
                ("loss", "norm"),
                "the first loss would be off, by little, and the run would go on close to one "
                "process's",
            ),
            Suspect(
                "the logged loss is averaged over the ranks of cp, where a sum is meant",
                "dp-loss-averaged",
                ("loss",),
                "the loss would be exactly half of one process's, and the norm would be right",
            ),
        ),
    ),
    Mystery(
        "4d.mystery.5",
        "The test that demands equality",
        "dp2tp2",
        "A test of the team says `assert loss_of_dp2tp2 == loss_of_one_gpu`. It fails in "
        "most steps. 'Somewhere a reduction is wrong, "
        "and the release has to wait until we have found it.'",
        "G",
        "loss",
        "The difference is in the seventh or eighth digit, and a right dp2tp2 is off by as "
        "much: four ranks add the same numbers in another order, and fp32 rounds each sum (the "
        "unit roundoff is 6e-8). It does not grow from step to step as a bug's does. Nothing "
        "is wrong but the test: it should allow a few units of rounding, or compare in fp64, "
        "where rounding shrinks by 2^29 and a bug stays as large as it is.",
        (
            _ROW_MISSING,
            _NOT_SUMMED,
            _SHARDS_ALIKE,
            _OWN_START,
            Suspect(
                "the count of tokens that the loss is divided by is summed over dp twice",
                "dp-count-doubled",
                ("loss", "norm", "ledger"),
                "the loss would be half of one process's",
            ),
            _NORM_OF_A_SHARD,
            _HEALTHY,
            _INPUT_GRADIENT,
        ),
        seen="PyTorch's documentation, 'Numerical accuracy' (results that are equal on paper "
        "need not be equal bit for bit)",
    ),
    Mystery(
        "4d.mystery.6",
        "The all-reduce is slow",
        "dp2",
        "'Every number is right. But the profile of rank 0 says that it spends most of its "
        "time in all-reduce. We need a faster network.'",
        "C",
        "spans",
        "Rank 0 is in the all-reduce for so long because nobody can finish one before the "
        "last rank has come: it waits, and the wire is idle. The rank to blame is the one that "
        "never waits, rank 1, which reads its input slowly. No number shows it, for all of "
        "them are right, and a faster network would change nothing.",
        (
            _TINY_BUCKETS,
            _HEALTHY,
            _LATE_1,
            _NO_SYNC,
            _LATE_0,
            _WIDE,
            _SAME_DATA,
        ),
        _ALWAYS_CLIPPED,
    ),
    Mystery(
        "4d.mystery.7",
        "One matrix, two stages",
        "pp2",
        "Two pipeline stages; the head is the embedding, so the first and the last stage both "
        "hold that matrix. 'The loss goes down as it should. But whenever we load a "
        "checkpoint, it jumps.'",
        "A",
        "shards",
        "The two stages hold the same matrix at the start and different ones at the end: each "
        "has updated it with its own gradient alone. A checkpoint keeps one of the two, hence "
        "the jump. The ledger shows it as well, since the exchange of that gradient is "
        "missing there; the loss alone never would.",
        (
            Suspect(
                "first and last stage do not add up their gradients of the shared matrix",
                "pp-tied-gradient-missing",
                ("loss", "norm", "ledger", "shards"),
                "the first loss would be right; the embedding's two copies would drift apart "
                "over pp, and the ledger would lack their exchange",
            ),
            Suspect(
                "the gradient norm counts the shared matrix on both stages",
                "pp-norm-counts-tied-twice",
                ("loss", "norm"),
                "the first loss would be right and the norm too large in every step; the two "
                "copies would stay equal",
            ),
            Suspect(
                "the squares of the gradient norm are averaged over the stages, where a sum is "
                "meant",
                "pp-norm-averaged",
                ("loss", "norm"),
                "the first loss would be right and the norm too small by the root of 2 (stages)"
                " in the first step; the two copies would stay equal",
            ),
            Suspect(
                "every stage draws its layers from the same random numbers",
                "pp-stages-alike",
                ("loss", "norm"),
                "the first loss, before any update, would not be one process's; the two "
                "copies would stay equal",
            ),
            _FORGOTTEN,
            _HEALTHY,
        ),
        {"tied": True},
    ),
)
