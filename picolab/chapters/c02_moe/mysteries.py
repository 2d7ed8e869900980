"""The mystery runs of chapter 2. How a case is made: picolab/exercises/mystery_case.py.

In fp64: in fp32 rounding may now and then send a token to another expert, which is no fault and
would look like one.
"""

from picolab.exercises.mystery_case import Mystery, Suspect

_EXPERTS = {
    "dtype": "fp64",
    "experts": 8,
    "experts_per_token": 2,
    "expert_ffn": 88,
    "aux_loss": 0.01,
    "clip": 0.1,  # at work in every step, as in chapter 1
}

_HEALTHY = Suspect(
    "nothing is wrong: what was seen is what this model does with this text",
    None,
    (),
    "loss, norm and loads would be one process's, and the ledger would equal the formula",
)
_UNDIVIDED = Suspect(
    "gradients of experts are ep times too large: they are sums over the ep ranks' tokens already, "
    "and were scaled as if they were not",
    "ep-gradients-undivided",
    ("loss", "norm", "loads"),
    "the first loss would be right, and the norm too large by less than ep times, since only "
    "experts are; the ledger would equal the formula",
)
_OVER_ALL = Suspect(
    "gradients of experts are summed over all replicas, as those of attention are, although ranks "
    "of ep hold different experts",
    "ep-experts-over-all-replicas",
    ("loss", "norm", "ledger", "loads"),
    "the first loss would be right, and the ledger would have more bytes in the gradient buckets "
    "over dp than the formula",
)
_MISSING = Suspect(
    "gradients of what all ranks hold are not summed over the replicas",
    "dp-gradients-missing",
    ("loss", "norm", "ledger", "shards", "loads"),
    "the first loss would be right, the ledger would lack the gradient buckets, and copies of "
    "attention would drift apart",
)
_AVERAGED = Suspect(
    "gradients of what all ranks hold are averaged over the replicas, although the loss was "
    "divided by the global count of tokens",
    "dp-gradients-averaged",
    ("loss", "norm", "loads"),
    "the first loss would be right, and the norm too small by less than dp times, since experts "
    "are summed over no replicas",
)
_SAME_DATA = Suspect(
    "all replicas read the same part of the batch",
    "dp-same-data",
    ("loss", "norm", "loads"),
    "the first loss, before any update, would be that of other text, and so would the loads",
)
_OWN_START = Suspect(
    "each replica starts from random values of its own, the router among them",
    "dp-replicas-differ",
    ("loss", "norm", "shards", "loads"),
    "copies over dp would differ from the start, and the first loads would not be one process's",
)
_NOT_SCALED = Suspect(
    "micro-batches' gradients are added up without dividing by how many there are",
    "micro-batches-not-scaled",
    ("loss", "norm", "loads"),
    "the first loss would be right, and the norm nearly 4 times too large, the number of "
    "micro-batches (the balance loss has its own divisor)",
)

CASES = (
    Mystery(
        "moe.mystery.1",
        "As before, with a larger norm",
        "dp2ep2",
        "'Since the experts are spread over two ranks the gradient norm is higher, by a quarter or "
        "so. It learns, and every expert has its tokens. An expert now sees the tokens of two "
        "ranks instead of one, so larger gradients are what I would expect; I raised the clipping "
        "threshold.'",
        "D",
        "norm",
        "The norm is off from the first step, by a factor that is neither 1 nor 2 and changes: so "
        "one group of parameters is off by a constant and another is not. The first loss is right, "
        "so forward is; every line of the ledger is right, so nothing is summed too often or too "
        "seldom. What is left is a factor on the experts alone. An expert's gradient is a sum over "
        "the rows of all ranks of ep, since they came to it: nothing is left to add, to divide or "
        "to multiply. Where a framework averages gradients over dp, an expert's has to be divided "
        "by dp too, and not by the edp ranks that it is reduced over, or it is ep times too large. "
        "That an expert sees more tokens is no reason: the loss was divided by the tokens of all.",
        (_HEALTHY, _OVER_ALL, _SAME_DATA, _UNDIVIDED, _NOT_SCALED, _AVERAGED, _MISSING),
        _EXPERTS,
    ),
    Mystery(
        "moe.mystery.2",
        "The router has collapsed",
        "dp2ep2",
        "'Look at the loads: in the first step the busiest expert has half as many tokens again as "
        "the mean, and after 24 steps more than twice as many. The balance loss is off, I know, "
        "but before any training the router is random and must be even. The two ranks cannot "
        "agree on what they count, or on what they train.'",
        "B",
        "loads",
        "One process has the same loads, to the token, and the same losses and norms; the ledger "
        "equals the formula. So nothing that ranks do is at fault. A random router is even over "
        "random *tokens*; this text is Python's source, of which one byte in four or so is a "
        "space, and a router that has not been trained sends equal tokens to equal experts, "
        "wherever they stand. Whether it is a collapse shows later: do loads become more uneven, "
        "until experts die, or do they follow the text? A balance loss or a bias would even them "
        "out; whether that is wanted, over a few sequences or over a global batch, is another "
        "question.",
        (_UNDIVIDED, _HEALTHY, _OWN_START, _SAME_DATA, _MISSING, _OVER_ALL),
        {**_EXPERTS, "aux_loss": 0.0},
        seen="arXiv 2501.11873, section 1 (what a balance loss over a micro-batch does to text of "
        "one subject)",
    ),
)
