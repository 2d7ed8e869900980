"""The rule of the samples' weights: what was summed over replicas and micro-batches, and how often.

The gradient is a sum of known parts, one for each replica and micro-batch, and every weight in it
should be 1 (evidence.py finds the weights). Each mistake between the ranks has weights of its own:

    (missing, doubled and averaged sums have signatures, and are recognised by those first)
    1 for the own replica, 0 for others        never summed (of shards, that have no signature)
    dp^(M-1), ..., dp, 1 along micro-batches   summed after every micro-batch, earlier sums too
    count / own count, and that / dp           divided by the own count; and then averaged
    M everywhere; 0, ..., 0, 1                 micro-batches not scaled; forgotten but the last
"""

import torch

from picolab.debug.cause import SAMPLES, SCALE, Cause, mean_of_means, reduction_cause
from picolab.debug.evidence import Evidence, number_text


def by_sample_weights(evidence: Evidence) -> Cause | None:
    """How often each sample counts in the gradient, where that explains the gradient."""
    bucket = f"{'zero' if evidence.recipe.layout.zero else 'dp'}: gradient bucket"
    whole = evidence.gradient_signature("dp_cp")
    if whole == "right":
        return None
    weights = evidence.sample_weights
    seen = ""
    if weights is not None:
        all_RM = torch.stack(list(weights.values()))  # (ranks, replicas, micro-batches)
        seen = f"in the gradient, {_weights_text(all_RM)}, and each should count once"
    if isinstance(whole, str):
        told = {
            "missing": "what ranks with equal parameters have adds up to the right gradients",
            "doubled": "all gradients are as many times too large as there are ranks to sum over",
            "averaged": "all gradients are divided by as many as there are ranks to sum over",
        }[whole]
        return reduction_cause(bucket, whole, told if weights is None else f"{told}; {seen}")
    if weights is None:
        return None
    recipe, dp, n = evidence.recipe, evidence.size("dp"), evidence.recipe.accumulate

    def is_(expected) -> bool:
        expected = torch.as_tensor(expected, dtype=torch.float64)
        return bool(((all_RM - expected).abs() <= evidence.exact * (1 + expected.abs())).all())

    if is_(1.0):
        return None
    reason_count = "dp: count of valid tokens"
    counts = torch.tensor(recipe.counts(), dtype=torch.float64).unsqueeze(1)
    again = torch.tensor([float(evidence.size("dp_cp")) ** (n - 1 - m) for m in range(n)])
    last = torch.tensor([0.0] * (n - 1) + [1.0])
    places = [seen.place["dp"] for seen in evidence.ranks if seen.rank in weights]
    own = torch.eye(dp, dtype=torch.float64)[places].unsqueeze(2)
    if evidence.size("dp_cp") > 1:
        if is_(own):  # of shards, which do not add up as wholes do
            return reduction_cause(bucket, "missing", seen)
        if is_(again):
            return Cause(
                bucket,
                "every micro-batch",
                "gradients are summed over the replicas after every micro-batch, and what was "
                "summed already is summed again",
                seen,
            )
        if is_(counts.sum() / counts):
            return reduction_cause(reason_count, "missing", seen)
        if is_(counts.sum() / (dp * counts)):
            return mean_of_means(seen)
    if is_(float(n)):
        return Cause(
            SCALE,
            "micro-batches",
            f"gradients are too large by the number of micro-batches ({n}): each was "
            "differentiated without dividing by the whole batch's count",
            seen,
        )
    if is_(last):
        return Cause(
            SAMPLES,
            "forgotten",
            "only the last micro-batch is in the gradient: it was cleared (zero_grad) between the "
            "micro-batches",
            seen,
        )
    same = float(all_RM.max() - all_RM.min()) <= evidence.exact * float(all_RM.abs().max())
    if same:
        times = number_text(float(all_RM.mean()))
        return Cause(SCALE, "other", f"every gradient is {times} times what it should be", seen)
    return Cause(SAMPLES, "other", "the model is right, and samples do not count equally", seen)


def _weights_text(all_RM: torch.Tensor) -> str:
    """The weights in words, of the first rank, and whether the others have the same."""
    first = all_RM[0]
    rows = [
        f"samples of replica {r} count {_row_text(row)} times"
        for r, row in enumerate(first.tolist())
    ]
    where = " on every rank" if torch.allclose(all_RM, first.expand_as(all_RM)) else " on rank 0"
    if torch.allclose(first, first[:1].expand_as(first)):
        rows = [f"samples count {_row_text(first[0].tolist())} times"]
    return f"{where.strip()} {', '.join(rows)}"


def _row_text(row: list[float]) -> str:
    words = [number_text(0.0 if abs(value) < 1e-6 else value) for value in row]
    return words[0] if len(set(words)) == 1 else f"{', '.join(words)} (micro-batch by micro-batch)"
