"""The mystery runs of chapter 5. How a case is made: picolab/exercises/mystery_case.py.

No number of these runs is wrong; what is asked is where bytes are. Twelve steps are enough to see
what grows.
"""

from picolab.exercises.mystery_case import Mystery, Suspect

_SHORT = {"steps": 12, "clip": 0.1}

_HEALTHY = Suspect(
    "nothing is wrong: what was seen is what such a run takes",
    None,
    (),
    "from the first step on, each step would end with as many bytes as the one before it, and no "
    "line would have left anything",
)
_ACTIVATIONS = Suspect(
    "somebody keeps activations whole, of every step",
    "activations-kept",
    ("memory", "lines"),
    "each step would end with so much more than the one before; one line would have left bytes "
    "that are all numbers of tensors that somebody holds",
)
_VIEWS = Suspect(
    "somebody keeps small parts of activations, of every step",
    "views-kept",
    ("memory", "lines"),
    "each step would end with so much more than the one before; one line would have left far more "
    "bytes than the tensors over them have numbers",
)
_THREE = Suspect(
    "somebody keeps activations whole, of the last three steps",
    "activations-kept-for-three-steps",
    ("memory", "lines"),
    "it would grow for three steps and then stand still; the bytes that are left would be numbers "
    "of tensors",
)
_CIRCLES = Suspect(
    "each step leaves objects that refer to themselves, with activations in them, and the "
    "collector is off",
    "circles-and-no-collector",
    ("memory", "lines"),
    "each step would end with so much more than the one before, held by circles of objects: a full "
    "collection frees all of it",
)
_LOSSES = Suspect(
    "a list keeps the losses of the training steps with what backward leaves of their graphs",
    "losses-kept-with-their-graph",
    ("lines",),
    "what is left would be 4 bytes a micro-batch: backward has let go of what its operators kept, "
    "and nodes of a graph are no tensors",
)
_GRAPHS = Suspect(
    "a list keeps losses that are never differentiated, and with them all that their operators "
    "keep",
    "evaluated-with-a-graph",
    ("memory", "lines"),
    "each step would end with a whole forward's activations more, made in many lines of the model "
    "and held by autograd alone",
)
_MISSING = Suspect(
    "gradients are not summed over the replicas",
    "dp-gradients-missing",
    ("loss", "norm", "ledger", "shards"),
    "the ledger would lack the gradient buckets, and copies would drift apart; bytes would be "
    "right",
)

CASES = (
    Mystery(
        "memory.mystery.1",
        "A list of 64 numbers a block",
        "dp2",
        "'For a plot at the end we keep the last token's hidden vector of each block: 64 numbers, "
        "256 bytes. With 2 blocks and 4 micro-batches that is 2 KB a step. Memory grows by a "
        "hundred times as much, in every step, evenly. I have added up the list: it is 2 KB a "
        "step. So it cannot be ours, and I suspect the collector, or that something keeps graphs.'",
        "D",
        "lines",
        "One line has left all of it, the one that makes a block's result; and the tensors over it "
        "have next to no numbers. A view is a shape over a storage: 64 numbers of a block's result "
        "keep the result, whole, and adding up the list counts the shapes. `clone()` copies 256 "
        "bytes and lets the rest go. Had activations been kept whole, the numbers would be as many "
        "as the bytes; had a graph kept them, nothing in Python would hold them; and a "
        "circle of objects would be said so. Detaching does not help: it cuts the graph off, not "
        "the storage.",
        (_CIRCLES, _GRAPHS, _HEALTHY, _VIEWS, _LOSSES, _ACTIVATIONS, _THREE),
        _SHORT,
        memory=True,
    ),
    Mystery(
        "memory.mystery.2",
        "Twelve losses",
        "dp2",
        "'After each step we look at the loss once more, of one micro-batch, with the new weights, "
        "and put it into a list: twelve numbers by the end. Since then memory grows, by the same "
        "amount each step, far more than a number. Somebody says that a list of losses is the "
        "classic leak, somebody else that it is not, since backward frees what a graph holds; he "
        "has kept the training losses in a list for years. Both lists are there.'",
        "F",
        "lines",
        "What is left was made in many lines of the model, all of them those whose results a "
        "backward needs, and nothing in Python holds it but for the losses, 4 bytes each: autograd "
        "does. So a graph is alive that no backward has gone through. Both are right: a backward "
        "lets go of what its operators kept, so a training loss in a list costs a few bytes and "
        "the graph's nodes; a loss that is only looked at still has everything. `with "
        "torch.no_grad():` around it, or `loss.item()` in the list. What one hook or one ring "
        "buffer keeps would come from one line, and be tensors.",
        (_VIEWS, _HEALTHY, _ACTIVATIONS, _LOSSES, _CIRCLES, _GRAPHS, _MISSING),
        _SHORT,
        memory=True,
    ),
    Mystery(
        "memory.mystery.3",
        "Two thirds more after one step",
        "dp2",
        "'I have measured tensors before the first step and after it: two thirds more, by 8 bytes "
        "a parameter, and nothing in our code allocates that. At this rate a run of a hundred "
        "steps needs seventy times the memory, so I stopped it. We have a hook that looks at "
        "activations, and a list of losses; one of them must be it.'",
        "B",
        "memory",
        "It grows once. The 8 bytes a parameter are AdamW's two moments, which it makes at its "
        "first step and not before; from then on each step ends with the same bytes, as "
        "in a right run, and no line has left anything. Two measurements are no rate. What "
        "a run takes is seen from its second step on, and at the peak of a step, not at its end. A "
        "ring buffer would look alike for a while: it grows for as many steps as it keeps.",
        (_ACTIVATIONS, _HEALTHY, _THREE, _LOSSES, _VIEWS, _GRAPHS, _CIRCLES),
        _SHORT,
        memory=True,
        seen="torch.optim's states are made at the first step; pytorch's forum has the question "
        "many times",
    ),
)
