"""What a diagnosis ends in: which part of the step, what is wrong with it, and what was seen."""

from dataclasses import dataclass

DATA = "the data"
POSITIONS = "the positions"
LABELS = "the labels"
START = "the initial values"
SCALE = "the scale of the loss"
SAMPLES = "the weights of the samples"
GRADIENTS = "the gradients of parameters"
NORM_MEMBERS = "the members of the gradient norm"


@dataclass(frozen=True)
class Cause:
    """What is most likely wrong: `where` names a reduction by its reason, or another part of the
    step; `what` is missing, doubled, averaged, ... `text` and what was `seen` are for people."""

    where: str
    what: str
    text: str
    seen: str

    def __str__(self) -> str:
        return f"{self.text}. Seen: {self.seen}."


_SUMMANDS = {
    "dp: gradient bucket": "each replica has the gradient of its own samples",
    "zero: gradient bucket": "each rank has its rows of the gradient of its own samples",
    "zero: updated parameters": "each rank has stepped its own rows",
    "dp: count of valid tokens": "each replica knows the count of its own labels",
    "dp: loss": "each replica has the loss of its own samples",
    "tp: embedding output": "each rank has the embeddings of the tokens in its own rows, and zeros",
    "tp: row-parallel output": "each rank has a summand of the layer's output",
    "tp: column-parallel input gradient": "each rank has what its own outputs add to the gradient",
    "tp: cross entropy maximum": "each rank knows the largest of its own logits",
    "tp: cross entropy sums": "each rank has the exponentials of its own logits",
    "tp: gradient norm": "each rank has the squares of its own shards",
    "tp: gradients of heads' norms": "each rank has those norms' gradients of its own heads",
    "ep: gradient bucket": "each rank has its experts' gradients of its ep group's tokens",
    "ep: gradients of copies": "each rank has the gradient of the rows that came to its copy",
    "sp: scatter output": "each rank has a summand of the layer's output, for all tokens",
    "sp: scatter input gradient": "each rank has what its own outputs add to the gradient",
    "sp: gradients of the norms": "each rank has the norms' gradients of its own tokens",
    "pp: tied embedding gradient": "the first stage has the gradient of looking up, the last that "
    "of the head",
    "pp: loss": "the last stage knows the loss, the others have zero",
    "pp: gradient norm": "each stage has the squares of its own layers",
}


def reduction_cause(reason: str, what: str, seen: str) -> Cause:
    """The cause in which one reduction is wrong: missing, doubled or averaged."""
    word = reason.split(":")[0]
    axis = {"dp": "the replicas", "zero": "the replicas", "sp": "tp", "ep": "edp"}.get(word, word)
    axis = "the ranks that hold the expert" if "copies" in reason else axis
    own = f" ({_SUMMANDS[reason]})" if reason in _SUMMANDS else ""
    text = {
        "missing": f"the sum {reason!r} over {axis} is missing{own}",
        "doubled": f"the sum {reason!r} over {axis} is doubled: sums are summed again",
        "averaged": f"{reason!r} is averaged over {axis}, and should be summed{own}",
    }[what]
    return Cause(reason, what, text, seen)


def mean_of_means(seen: str) -> Cause:
    return Cause(
        "dp: count of valid tokens",
        "local",
        "each replica divides by its own count of valid tokens, and the results are averaged: a "
        "mean of means, in which the tokens of a replica with few of them weigh more",
        seen,
    )
