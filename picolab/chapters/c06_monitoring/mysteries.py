"""The mystery runs of chapter 6. How a case is made: picolab/exercises/mystery_case.py.

Each rank tells its own numbers, and most of what is asked is whose it is. What is late sleeps, so
that four ranks on two cores do not have to take turns to show it.
"""

from picolab.exercises.mystery_case import Mystery, Suspect

_CLIPPED = {"clip": 0.1}  # at work in every step, as in chapter 1

_HEALTHY = Suspect(
    "nothing is wrong: what was seen is what such a run does",
    None,
    (),
    "all numbers would be one process's, each rank's own would be those of a right run, and no "
    "rank would work longer than the others by more than noise",
)

# -- slow

_LATE = Suspect(
    "rank 3's loader is slow: its batch comes late, in every step",
    "rank-3-late",
    (),
    "it would wait long for its batch in every step, and do the rest as quickly as the others",
)
_SLOW = Suspect(
    "rank 3's device is slow: it computes longer, in every micro-batch",
    "rank-3-slow",
    (),
    "its batch would be there as quickly as the others', and the rest of its work would take "
    "longer, in every step alike",
)
_PAUSES = Suspect(
    "rank 3 stops now and then: it collects garbage, or writes something",
    "rank-3-pauses",
    (),
    "most of its steps would be like the others', and every sixth much longer; a mean over steps "
    "tells neither",
)
_LINK = Suspect(
    "the link from rank 2 to rank 3 is slow",
    "link-2-3-slow",
    (),
    "rank 3's own work would be as short as the others', and it would communicate long: what lasts "
    "is its receive",
)
_EVERYBODY = Suspect(
    "all ranks compute longer: it is the machine, and none of them",
    "every-rank-slow",
    (),
    "all ranks would work longer than in a right run, none longer than the others",
)

# -- numbers

_ZEROED = Suspect(
    "one rank's gradients are not numbers, and a hook that puts zeros for what is not finite hides "
    "it",
    "not-finite-is-zero",
    ("loss", "norm", "own"),
    "one rank's own norm would be nan from some step on, with its own loss right, and every sum "
    "finite",
)
_DETACHED = Suspect(
    "one rank's loss no longer leads to its gradients",
    "rank-2-detached",
    ("loss", "norm", "own"),
    "one rank's own norm would be 0 from some step on, with its own loss right",
)
_STEEPER = Suspect(
    "one rank's gradients are eight times as large as they should be",
    "rank-2-steeper",
    ("loss", "norm", "own"),
    "one rank's own norm would be eight times as high from some step on, with its own loss right",
)
_SAME_BATCH = Suspect(
    "one rank's loader is stuck and hands out the same batch again and again",
    "rank-2-same-batch",
    ("loss", "norm", "own"),
    "one rank's own loss would fall away from the others' from some step on: it learns that batch "
    "by heart",
)
_AHEAD = Suspect(
    "one rank has dropped a batch, and is one ahead of the others since",
    "rank-2-a-batch-ahead",
    ("loss", "norm", "own"),
    "one rank's own loss would be that of other text from some step on, and all copies would stay "
    "equal",
)
_ONCE_THREE = Suspect(
    "one rank computes something wrong in one step: its loss comes out three times as high",
    "loss-three-times",
    ("loss", "norm", "own"),
    "its own loss in that step would be three times what the same tokens give elsewhere",
)
_ONCE_TEN = Suspect(
    "one rank computes something wrong in one step: its gradients come out ten times as large",
    "gradient-ten-times",
    ("loss", "norm", "own"),
    "its own loss in that step would be right, and its own norm ten times that of a right run",
)

# -- ranks that part ways

_LEFT_OUT = Suspect(
    "one rank has left a step out, collectives and all, and its calls pair with the others' of the "
    "step before",
    "a-step-left-out",
    ("loss", "norm", "ledger", "shards", "own", "calls"),
    "from some step on one rank would have entered fewer collectives than the others, by as many "
    "as a step has",
)
_RATE = Suspect(
    "one rank's learning rate is the next step's",
    "rank-2-rate-ahead",
    ("loss", "norm", "shards", "own"),
    "copies would drift apart, and all ranks would enter as many collectives as they should, in "
    "every step",
)
_MISSING = Suspect(
    "gradients are not summed over the replicas",
    "dp-gradients-missing",
    ("loss", "norm", "ledger", "shards", "own", "calls"),
    "the first loss would be right, and all ranks would enter fewer collectives than they should, "
    "from the first step on: the gradient buckets",
)
_SAME_DATA = Suspect(
    "all replicas read the same part of the batch",
    "dp-same-data",
    ("loss", "norm", "own"),
    "the first loss would be that of other text, and all ranks' own losses would be equal",
)

CASES = (
    Mystery(
        "monitoring.mystery.1",
        "A node to be exchanged",
        "dp2cp2",
        "'Steps take far too long, and the split of a step names rank 3: it computes longest, the "
        "other three wait for it. A card that is too hot computes slowly, so we have asked for "
        "another node. Its temperature looks like the others' to me, but I am told that it is "
        "always like that. Shall we wait for the exchange?'",
        "E",
        "work",
        "Rank 3 is late, and the split is right in what it says: it was outside of collectives "
        "longest. That is called computing there, whatever it did. In every step it waits for its "
        "batch, which the others have at once; all the rest takes it as long as them. A device "
        "that is slow is slow in each micro-batch, and not while there is nothing to compute. Rank "
        "2 reads the same text through a loader of its own, so it is not the file. A slow link "
        "would show on rank 3 as communication; a pause in every sixth step has the same mean and "
        "other steps; and where all are slow nobody waits. Another node for the same loader would "
        "have been as slow.",
        (_PAUSES, _SLOW, _LINK, _HEALTHY, _LATE, _EVERYBODY),
        watched=True,
    ),
    Mystery(
        "monitoring.mystery.2",
        "Nothing odd in the sums",
        "dp4",
        "'Nothing has failed: loss and norm are finite in all steps, the replicas' copies are "
        "equal, and the ledger is right to the byte. Up to step 9 the run has our reference's "
        "losses, but then it is worse, by little. I have looked at the gradients of step 12 after "
        "the sum: there is nothing odd about them, on any rank. So I would say that it has seen "
        "other text since.'",
        "B",
        "own",
        "Rank 2's own gradient norm is nan from step 9 on. Its own loss is right in that step, and "
        "so is its text: the forward pass is fine, and the backward pass is not. Zeros stand in "
        "for what is not a number before it is summed, so every sum is finite, and the run goes on "
        "with three quarters of its batch, divided by the count of all of it. That one of four "
        "summands is zero no sum tells. A gradient that was only cut off would be 0 and not nan, "
        "one that is too large would say so, and a loader that is stuck or a batch ahead would "
        "show in rank 2's own loss. What one rank alone knows has to be asked of it, before "
        "anything is reduced; a hook that repairs it first should count what it repairs.",
        (_SAME_BATCH, _ZEROED, _DETACHED, _MISSING, _HEALTHY, _STEEPER, _AHEAD),
        _CLIPPED,
        watched=True,
    ),
    Mystery(
        "monitoring.mystery.3",
        "As many calls as there should be",
        "dp4",
        "'At the end we compared the replicas' weights, for the first time: rank 2's are not the "
        "others'. Nothing was raised, and every rank's log ends with step 24. I have added up the "
        "collectives over the whole run, and each rank has entered as many as the formula says. So "
        "it is nothing that communicates; I suspect a learning rate, or rank 2's data.'",
        "F",
        "calls",
        "In the end the counts are equal, but not on the way: in step 9 rank 2 entered none, since "
        "then it has been a step behind, and in its last step it entered twice as many. So its "
        "tenth step was summed with the others' ninth. Operations, sizes and order are the same, "
        "and what pairs is the k-th call of each rank with the k-th of the others, whichever step "
        "it is of. All have stepped by the same sums; but rank 2 with the learning rate of the "
        "step after, and so its copies drift off, by little. Without the one more step in the end "
        "the others would have waited for it for ever, and somebody would have looked. A learning "
        "rate that is a step ahead and nothing else would drift like this with all calls in place. "
        "The number of calls so far is a number to compare in every step.",
        (_AHEAD, _HEALTHY, _MISSING, _ZEROED, _RATE, _LEFT_OUT, _SAME_DATA),
        _CLIPPED,
        watched=True,
    ),
    Mystery(
        "monitoring.mystery.4",
        "Rank 2 again",
        "dp4",
        "'In step 13 the loss jumps; a step later it is back. The "
        "monitor names rank 2: its own loss went up, before anything was reduced, and the others' "
        "did not. It is the second finding about that node this week. We take it out tonight, and "
        "go back to the checkpoint before.'",
        "D",
        "loss",
        "One process has the same loss in step 13, to rounding, and a right dp4's rank 2 has the "
        "same loss of its own. So it goes with the tokens and not with the device: rank 2's part "
        "of that batch is random bytes, as of a file that is compressed, and no model predicts "
        "these. Own numbers tell whose it is, and a rank has more of its own than its device: its "
        "share of the batch, too. Had the device been wrong, another one would not have the same "
        "number for the same tokens. To do that step again elsewhere is the test, and costs less "
        "than a node; what to do about the text is another question, and going back would only "
        "bring it again.",
        (_ONCE_THREE, _ONCE_TEN, _SAME_DATA, _HEALTHY, _AHEAD, _MISSING, _ZEROED),
        _CLIPPED,
        watched=True,
        odd=(12, 2),
        seen="arXiv 2204.02311, section 5.1 (PaLM: spikes come of certain batches and a certain "
        "state, and batches were skipped)",
    ),
)
