"""From what differs to what is most likely wrong.

What is known is in an `Evidence`: what one process computed, what each rank did. Which fault was
switched on, or that one was, is not in it. Rules are asked in the order of a training step, since a
wrong start makes everything after it wrong too; each looks at one kind of evidence, and the first
that recognises something answers:

    moved parameters    whether they changed before the optimizer's turn
    data                which sequences each replica read
    positions           whether tokens, positions and labels are cut alike
    start               whether parameters are what one process starts from
    count               of valid tokens, that every loss is divided by
    forward, loss       the first tensor in the model that is wrong           (inside_model.py)
    samples             how often each one counts in the gradient             (samples.py)
    balance loss        whether it counts once, where there are experts      (experts.py)
    backward            the first gradient, from the end, that is wrong       (inside_model.py)
    experts             whose gradients are sums over other ranks             (experts.py)
    gradients           of parameters, where those that flow past them are right
    what is reported    loss and norm, where gradients are right
    later steps         where all of that is right
    gathering           where all that ranks hold is right

The ledger is asked beside them: a collective that the formula has and the ranks did not do, or did
twice, is named at once, whatever came of it in the numbers. It goes first where both answer.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from picolab.debug.cause import (
    DATA,
    GRADIENTS,
    LABELS,
    NORM_MEMBERS,
    POSITIONS,
    START,
    Cause,
    mean_of_means,
    reduction_cause,
)
from picolab.debug.evidence import Evidence, LedgerLine, difference, ranks_text, slice_of
from picolab.debug.experts import by_balance, by_experts
from picolab.debug.inside_model import by_backward, by_forward, by_loss
from picolab.debug.observe import Held, Observation
from picolab.debug.samples import by_sample_weights
from picolab.model import Piece
from picolab.parallel.tensor import HEAD_NORM, HEAD_NORMS


def likely_cause(evidence: Evidence, *, ledger: bool = True) -> Cause | None:
    """The most likely cause of what differs; None if nothing does. ledger False: from the numbers
    alone, as where there is no formula to compare with."""
    numbers = next((cause for rule in _RULES if (cause := rule(evidence))), None)
    booked = _by_ledger(evidence) if ledger else None
    if booked is None or numbers is None:
        return booked or numbers
    if (numbers.where, numbers.what) == (booked.where, booked.what):
        return replace(booked, seen=f"{booked.seen}; {numbers.seen}")
    if numbers.what in _RATHER or booked.what == ROWS:
        return numbers
    return booked


# What the ledger shows as a collective that is missing, twice there or too many, and the numbers
# know better.
ROWS, ROUTER_WEIGHTS = "rows", "tp: gradient of the router's weights"
_RATHER = ("weights", "every micro-batch", "over all replicas", "differs over tp", "pool")


def _by_ledger(evidence: Evidence) -> Cause | None:
    wrong = [line for line in evidence.ledger if not line.ok]
    if not wrong:
        return None
    # How many rows go to experts follows from the numbers: where only that differs, they say why.
    firm = [line for line in wrong if line.found[0] != line.expected[0] or not _is_of_rows(line)]
    first = next((line for line in firm or wrong if line.expected[0]), wrong[0])
    (count, payload), (found, found_payload) = first.expected, first.found
    seen = f"the formula has {count} a step on each rank, the ledger {found}"
    if len(wrong) > 1:
        others = [
            f"{line.reason!r} ({line.found[0]} for {line.expected[0]}, {line.found[1]:,} bytes for "
            f"{line.expected[1]:,})"
            for line in wrong
            if line is not first
        ]
        seen += f"; others differ too: {', '.join(others)}"
    if not found:
        return reduction_cause(first.reason, "missing", seen)
    if count and (found, found_payload) == (2 * count, 2 * payload):
        return reduction_cause(first.reason, "doubled", seen)
    name = f"{first.op} over {first.axis}, {first.reason!r}"
    if not count:
        return Cause(first.reason, "extra", f"a step should not have this collective: {name}", seen)
    if found == count:
        seen = f"{payload:,} bytes a step by the formula, {found_payload:,} in the ledger"
        text = f"this collective has another size: {name}"
        return Cause(first.reason, "size" if firm else ROWS, text, seen)
    return Cause(first.reason, "number", f"this collective is not done as often: {name}", seen)


def _is_of_rows(line: LedgerLine) -> bool:
    return (line.axis == "ep" and "rows" in line.reason) or line.reason == ROUTER_WEIGHTS


def _by_moved_parameters(evidence: Evidence) -> Cause | None:
    steps = [i for seen in evidence.ranks for i, moved in enumerate(seen.moved) if moved]
    if not steps:
        return None
    seen = (
        "parameters changed between the forward pass and the optimizer's turn, first in step "
        f"{min(steps) + 1}"
    )
    if evidence.gradient_signature("dp_cp") == "missing":
        seen += ", and gradients were not summed over the replicas"
    return Cause(
        "dp: gradient bucket",
        "weights",
        "weights are synchronised where gradients should be (the argument of a post-accumulate "
        "hook is the parameter, not its gradient)",
        seen,
    )


def _by_data(evidence: Evidence) -> Cause | None:
    recipe = evidence.recipe
    owner = {
        tuple(row.tolist()): replica
        for replica in range(recipe.layout.dp)
        for micro in range(recipe.accumulate)
        for row in recipe.part(0, micro, replica)[0]
    }
    wrong: dict[int, set[int | None]] = {}
    for seen in evidence.ranks:
        right = [recipe.part(0, m, seen.place["dp"])[0] for m in range(recipe.accumulate)]
        if not all(torch.equal(a, b) for a, b in zip(seen.read, right, strict=True)):
            rows = [row for tokens in seen.read for row in tokens]
            wrong[seen.rank] = {owner.get(tuple(row.tolist())) for row in rows}
    if not wrong:
        return None
    text = "replicas do not read what they should: some samples count several times, others never"
    rank, read = next(iter(wrong.items()))
    mine = evidence.ranks[rank].place["dp"]
    if None in read or len(read) > 1:
        other = "sequences that are not its part of the global batch"
        return Cause(DATA, "other", text, f"rank {rank}, of replica {mine}, reads {other}")
    seen = f"{ranks_text(list(wrong))} read the sequences of replica {read.pop()}"
    return Cause(DATA, "repeated", text, seen)


def _by_positions(evidence: Evidence) -> Cause | None:
    """Whether tokens, positions and labels are the same places of the sequence."""
    for seen in evidence.ranks:
        columns, seq = evidence.columns(seen), evidence.recipe.config.seq
        told, labels = seen.positions, evidence.recipe.part(0, 0, seen.place["dp"])[1]
        if not torch.equal(told, columns):
            here = f"rank {seen.rank} has tokens {columns.tolist()} of each sequence and rotates"
            steps = told[1:] - told[:-1]
            what = "contiguous" if bool((steps == 1).all()) and len(told) < seq else "other"
            text = "positions are not those of the tokens: they should be the global ones, by the "
            text += "same permutation"
            return Cause(POSITIONS, what, text, f"{here} them as {told.tolist()}")
        if seen.labels is not None and not torch.equal(seen.labels, labels[:, columns]):
            text = "labels are not those of the tokens: they should be cut by the same permutation"
            here = f"rank {seen.rank} has tokens {columns.tolist()} of each sequence"
            return Cause(LABELS, "other", text, f"{here}, and labels of other ones")
    for line in evidence.lines("cp"):
        held = torch.cat([evidence.columns(seen) for seen in line]).sort().values
        if not torch.equal(held, torch.arange(evidence.recipe.config.seq)):
            text = "the ranks of cp do not have each token of a sequence once"
            return Cause(DATA, "shares", text, f"together they have {held.tolist()}")
    return None


def _by_start(evidence: Evidence) -> Cause | None:
    wrong = {
        seen.rank: [
            name
            for name, (_, tensor) in seen.start.items()
            if not evidence.close(tensor, slice_of(seen.start, name, evidence.reference.start))
        ]
        for seen in evidence.ranks
    }
    wrong = {rank: names for rank, names in wrong.items() if names}
    if not wrong:
        return None
    names = list(dict.fromkeys(name for of_rank in wrong.values() for name in of_rank))
    seen = (
        f"{len(names)} tensors, {names[0]} among them, differ from one process's before the first "
        f"step, on {ranks_text(list(wrong))}"
    )

    def alike(axis: str) -> bool:
        """Whether the ranks along an axis hold the same numbers in all that is wrong."""
        return all(
            _same_numbers(line[0].start[name][1], other.start[name][1])
            for line in evidence.lines(axis)
            for other in line[1:]
            for name in names
            if name in line[0].start and name in other.start
        )

    if _copies_differ(evidence, [seen.start for seen in evidence.ranks], names):
        return Cause(
            START,
            "replicas differ",
            "replicas do not start from the same parameters (as they would if each had a seed of "
            "its own), and nobody made them equal; summed gradients cannot bring them together",
            seen,
        )
    for axis, cut in evidence.cut_along.items():
        if set(names) <= cut and alike(axis):
            return Cause(
                START,
                "shards alike",
                "every shard starts with the same numbers: each rank filled its own part from the "
                "same seed. Equal shards get equal gradients, so they stay copies for ever, and "
                f"the model has 1/{evidence.size(axis)} of its heads and neurons",
                f"{seen}; along {axis} they are equal",
            )
    if _stages_alike(evidence, names):
        return Cause(
            START,
            "stages alike",
            "every stage starts with the same layers: each drew its own from the same seed, "
            "counting from its own first one",
            f"{seen}; they equal the first stage's in the same place",
        )
    return Cause(START, "other", "parameters do not start from the right values", seen)


def _copies_differ(evidence: Evidence, held: list[Held], names: list[str]) -> bool:
    """Whether replicas hold other numbers in the same slice of any of these. held: of each rank."""
    of_rank = {seen.rank: of for seen, of in zip(evidence.ranks, held, strict=True)}
    for name in names:
        for line in evidence.lines("edp" if name in evidence.of_experts else "dp_cp"):
            mine = [of_rank[seen.rank][name] for seen in line if name in of_rank[seen.rank]]
            copies: dict[tuple, torch.Tensor] = {}
            for piece, part in mine:
                if not torch.equal(copies.setdefault(piece.ranges, part), part):
                    return True
    return False


def _same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors were filled by the same generator: shards need not be equally large. (Of
    a size that 16 does not divide, torch draws the last 16 again.)"""
    if a.shape == b.shape:
        return torch.equal(a, b)
    n = min(a.numel(), b.numel()) - 16
    return n > 0 and torch.equal(a.flatten()[:n], b.flatten()[:n])


def _stages_alike(evidence: Evidence, names: list[str]) -> bool:
    """Whether the wrong tensors of later stages are those of the first one, layer by layer."""
    for line in evidence.lines("pp"):
        first = _by_local_layer(line[0])
        for seen in line[1:]:
            for name, tensor in _by_local_layer(seen).items():
                if name in first and not torch.equal(tensor, first[name]):
                    return False
    return evidence.size("pp") > 1 and all(name.startswith("layers.") for name in names)


def _by_local_layer(seen: Observation) -> dict[str, torch.Tensor]:
    """The stage's layers, counted from its own first one."""
    layers = {name: t for name, (_, t) in seen.start.items() if name.startswith("layers.")}
    numbers = [int(name.split(".")[1]) for name in layers]
    names = [name.split(".", 2) for name in layers]
    return {
        f"{number - min(numbers)}.{name[2]}": tensor
        for number, name, tensor in zip(numbers, names, layers.values())
    }


def _by_count(evidence: Evidence) -> Cause | None:
    right = torch.tensor(float(evidence.reference.count), dtype=torch.float64)
    found = {
        seen.rank: torch.tensor(seen.counts[0], dtype=torch.float64) for seen in evidence.ranks
    }
    what = evidence.signature("dp", found, dict.fromkeys(found, right))
    if what == "right":
        return None
    told = ", ".join(f"{int(count)} on rank {rank}" for rank, count in found.items())
    seen = f"losses are divided by {told}; {int(right)} labels count in the global batch"
    reason, own = "dp: count of valid tokens", evidence.recipe.counts()
    if isinstance(what, str):
        return reduction_cause(reason, what, seen)
    if all(int(found[s.rank]) == own[s.place["dp"]] * len(own) for s in evidence.ranks):
        return mean_of_means(seen)
    return Cause(reason, "other", "the count of valid tokens is wrong", seen)


def _by_gradients(evidence: Evidence) -> Cause | None:
    """What flows through the model is right, forward and back. Are the parameters' gradients?"""
    reference, wrong = evidence.reference, {}
    for name, whole in reference.gradients.items():
        held = [seen for seen in evidence.ranks if name in seen.gradients]
        found = {seen.rank: seen.gradients[name][1] for seen in held}
        right = {seen.rank: seen.gradients[name][0].take(whole) for seen in held}
        kinds = {axis: evidence.signature(axis, found, right) for axis in ("tp", "pp")}
        if set(kinds.values()) != {"right"}:
            wrong[name] = kinds
    if not wrong:
        return None
    some = ", ".join(list(wrong)[:3]) + (", ..." if len(wrong) > 3 else "")
    all_of_them = len(wrong) == len(reference.gradients)
    seen = (
        "gradients that flow through the first micro-batch are right, and those of "
        f"{'all ' if all_of_them else ''}{len(wrong)} parameters are not: {some}"
    )
    cut = evidence.cut_along.get("tp", set())
    for axis, reason, of in (
        ("tp", "sp: gradients of the norms", evidence.recipe.layout.sp and not cut & set(wrong)),
        ("tp", HEAD_NORMS, all(HEAD_NORM.search(name) for name in wrong)),
        ("pp", "pp: tied embedding gradient", set(wrong) == {"embed.weight"}),
    ):
        kinds = {of_name[axis] for of_name in wrong.values()}
        what = kinds.pop() if len(kinds) == 1 else None
        if of and isinstance(what, str):
            sums = "; what the ranks have adds up to the right ones" if what == "missing" else ""
            return reduction_cause(reason, what, seen + sums)
    most = max(
        difference(seen.gradients[name][1], slice_of(seen.gradients, name, reference.gradients))
        for seen in evidence.ranks
        for name in wrong
        if name in seen.gradients
    )
    seen += f"; they are off by {most:.2g} of their norm at most"
    text = f"the gradients of {'all' if all_of_them else 'some'} parameters are wrong"
    return Cause(GRADIENTS, "other", text, seen)


def _by_reported_loss(evidence: Evidence) -> Cause | None:
    right = torch.tensor(evidence.reference.losses[0], dtype=torch.float64)
    found = {
        seen.rank: torch.tensor(seen.losses[0], dtype=torch.float64) for seen in evidence.ranks
    }
    told = ", ".join(f"{float(loss):.5g}" for loss in found.values())
    seen = (
        f"gradients are right, and ranks report a loss of {told}, where {float(right):.5g} is right"
    )
    for axis, reason in (("dp_cp", "dp: loss"), ("pp", "pp: loss")):
        what = evidence.signature(axis, found, dict.fromkeys(found, right))
        if what == "right":
            return None
        if isinstance(what, str):
            return reduction_cause(reason, what, seen)
    return Cause("dp: loss", "other", "the loss that is reported is wrong", seen)


def _by_norm(evidence: Evidence) -> Cause | None:
    """Gradients are right. Of which of them is the norm that is reported?"""
    right = evidence.reference.norms[0]
    found = {seen.rank: seen.norms[0] for seen in evidence.ranks}
    if all(abs(norm - right) <= 100 * evidence.tolerance * right for norm in found.values()):
        return None
    seen = (
        "gradients are right, and the norm is "
        f"{', '.join(f'{norm:.5g}' for norm in found.values())}, where {right:.5g} is right"
    )
    for where, what, axis, square in _wrong_norms(evidence):
        if all(abs(norm**2 - square[r]) <= evidence.exact * norm**2 for r, norm in found.items()):
            seen += "; that is what this mistake gives"
            if where != NORM_MEMBERS:
                return reduction_cause(where, what, seen)
            text = "the tied embedding is counted on the first stage and again on the last"
            if what == "replicas":
                text = f"what all ranks of {axis} hold is counted once on each"
            elif what == "copies":
                text = "copies of experts are counted beside the experts"
            return Cause(where, what, f"the gradient norm has too many members: {text}", seen)
    return Cause("the gradient norm", "other", "the gradient norm is wrong", seen)


Squares = dict[int, dict[frozenset[str], float]]  # rank -> axes of a cut -> sum of squares


def _wrong_norms(evidence: Evidence) -> Iterator[tuple[str, str, str, dict[int, float]]]:
    """(where, what, axis, rank -> the square of the norm that this mistake would report), from the
    right gradients."""
    own: Squares = {seen.rank: {} for seen in evidence.ranks}
    with_tied: Squares = {seen.rank: {} for seen in evidence.ranks}
    with_copies: Squares = {seen.rank: {} for seen in evidence.ranks}
    for seen in evidence.ranks:
        held = [*seen.gradients.values(), *seen.copies["gradient"].values()]
        for number, (piece, _) in enumerate(held):
            part = piece.take(evidence.reference.gradients[piece.name]).double()
            beside = with_tied if number < len(seen.gradients) else with_copies
            for squares in (beside,) if piece.copy else (own, with_tied, with_copies):
                of = squares[seen.rank]
                of[piece.axes] = of.get(piece.axes, 0.0) + float(part.square().sum())
    axes = sorted(evidence.cut_along)
    for axis in [*axes, "pp"] if evidence.size("pp") > 1 else axes:
        n = evidence.size(axis)
        for what, times in (("missing", None), ("doubled", n), ("averaged", 1 / n)):
            yield f"{axis}: gradient norm", what, axis, _norms(evidence, own, {axis: times})
    for axis in axes:
        everywhere = {
            rank: {frozenset({axis}): sum(squares.values())} for rank, squares in own.items()
        }
        yield NORM_MEMBERS, "replicas", axis, _norms(evidence, everywhere, {})
    if with_tied != own:
        yield NORM_MEMBERS, "tied", "pp", _norms(evidence, with_tied, {})
    if with_copies != own:
        yield NORM_MEMBERS, "copies", "ep", _norms(evidence, with_copies, {})


def _norms(
    evidence: Evidence, squares: Squares, wrong: dict[str, float | None]
) -> dict[int, float]:
    """The sum that `square_norm` takes, on each rank; over an axis in `wrong` it is so many times
    too large, or (None) not taken."""
    found = {rank: dict(of) for rank, of in squares.items()}
    for axis in [*sorted(evidence.cut_along), "pp"]:
        before = {rank: dict(of) for rank, of in found.items()}
        times = wrong.get(axis, 1.0)
        for line in evidence.lines(axis):
            for seen in line:
                added = found[seen.rank] = {}
                for cut in {cut for other in line for cut in before[other.rank]}:
                    own = before[seen.rank].get(cut, 0.0)
                    if axis == "pp" or axis in cut:
                        whole = sum(before[other.rank].get(cut, 0.0) for other in line)
                        own = own if times is None else times * whole
                    added[cut - {axis}] = added.get(cut - {axis}, 0.0) + own
    return {rank: sum(of.values()) for rank, of in found.items()}


def _by_later_steps(evidence: Evidence) -> Cause | None:
    """Everything of the first step is right up to its update. What is wrong first, in the order in
    which steps compute?"""
    reference = evidence.reference
    for step, after in enumerate(reference.after):
        for kind in ("losses", "norms"):
            right = getattr(reference, kind)[step]
            found = {seen.rank: getattr(seen, kind)[step] for seen in evidence.ranks}
            off = [r for r, x in found.items() if not abs(x - right) <= evidence.tolerance * right]
            if off:
                name = {"losses": "loss", "norms": "gradient norm"}[kind]
                return _after_first(f"the {name} of step {step + 1} on {ranks_text(off)}")
        held = [seen.after[step] for seen in evidence.ranks]
        wrong = {
            seen.rank: [n for n, (piece, x) in of.items() if not _right(evidence, piece, x, after)]
            for seen, of in zip(evidence.ranks, held, strict=True)
        }
        wrong = {rank: names for rank, names in wrong.items() if names}
        if wrong:
            names = list(dict.fromkeys(name for of_rank in wrong.values() for name in of_rank))
            what = f"{names[0]} after the update of step {step + 1}, on {ranks_text(list(wrong))}"
            return _after_first(what, _copies_differ(evidence, held, names))
    return None


def _right(evidence: Evidence, piece: Piece, found: torch.Tensor, whole: dict) -> bool:
    return evidence.close(found, piece.take(whole[piece.name]))


def _after_first(first: str, replicas_differ: bool = False) -> Cause:
    """The cause where only the first wrong number is known."""
    seen = f"all of the first step is right up to its update; the first wrong number is {first}"
    if replicas_differ:
        text = "replicas drift apart: they start alike and are not stepped alike, or are changed "
        text += "after it; summed gradients cannot bring them together"
        return Cause("the update", "replicas drift", text, seen)
    text = "what is wrong comes after the first step's gradients, in its update (clipping, the "
    text += "optimizer) or with what later steps do"
    return Cause("the update", "other", text, seen)


def _by_gathering(evidence: Evidence) -> Cause | None:
    """What the ranks hold is right to the end. Is what `state_dict()` makes of it?"""
    end, wrong = evidence.reference.end, []
    for seen in evidence.ranks:
        if seen.state is not None:
            gathered = seen.state
            wrong += [
                name
                for name, right in end.items()
                if name not in gathered or not evidence.close(gathered[name], right)
            ]
    if not wrong:
        return None
    return Cause(
        "gathering",
        "other",
        "state_dict() puts together wrongly what the ranks hold: slices in another order, or not "
        "all of them",
        f"every rank's slices are right after the last step, and of the gathered tensors "
        f"{len(wrong)} are not, {wrong[0]} among them",
    )


_RULES = (
    _by_moved_parameters,
    _by_data,
    _by_positions,
    _by_start,
    _by_count,
    by_forward,
    by_loss,
    by_sample_weights,
    by_balance,
    by_backward,
    by_experts,
    _by_gradients,
    _by_reported_loss,
    _by_norm,
    _by_later_steps,
    _by_gathering,
)
