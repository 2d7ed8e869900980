"""Wrong answers to moe.router.capacity, what each author must be told, and right ones."""

import math

import torch

from picolab.chapters.c02_moe.capacity import solution


def _choices(scores, k):
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k].tolist()


def _answer(
    scores,
    k,
    factor,
    *,
    key=lambda b, s, score, nth: (s, -score, b),
    room=lambda tokens, k, experts, factor, scores: math.ceil(factor * tokens * k / experts),
    number=lambda b, s, batch, seq: b * seq + s,
    choices=_choices,
):
    """Buffers filled from sorted lists, with one thing to be done otherwise."""
    batch, seq, experts = scores.shape
    capacity = room(batch * seq, k, experts, factor, scores)
    values, chosen = scores.tolist(), choices(scores, k)
    asking = [[] for _ in range(experts)]
    for b in range(batch):
        for s in range(seq):
            for nth, e in enumerate(chosen[b][s]):
                asking[e].append((key(b, s, values[b][s][e], nth), number(b, s, batch, seq)))
    slots = torch.full((experts, capacity), -1)
    for e, of in enumerate(asking):
        kept = [token for _, token in sorted(of)[:capacity]]
        slots[e, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return slots


def by_score_over_the_pool(scores, k, factor):
    """The package's own default."""
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (-score, s, b))


def sequence_by_sequence(scores, k, factor):
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (b, s))


def first_sequences_first(scores, k, factor):
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (s, b))


def first_choices_of_all_first(scores, k, factor):
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (nth, s, -score, b))


def first_choices_at_a_position_first(scores, k, factor):
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (s, nth, -score, b))


def lowest_scores_first(scores, k, factor):
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (s, score, b))


def ties_to_the_last_sequence(scores, k, factor):
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (s, -score, -b))


def rounded_down(scores, k, factor):
    return _answer(
        scores,
        k,
        factor,
        room=lambda tokens, k, experts, factor, _: int(factor * tokens * k / experts),
    )


def one_choice_a_token(scores, k, factor):
    return _answer(
        scores,
        k,
        factor,
        room=lambda tokens, k, experts, factor, _: math.ceil(factor * tokens / experts),
    )


def room_of_one_sequence(scores, k, factor):
    def room(tokens, k, experts, factor, scores):
        return math.ceil(factor * scores.shape[1] * k / experts)

    return _answer(scores, k, factor, room=room)


def no_factor(scores, k, factor):
    return solution(scores, k, 1.0)


def room_for_all(scores, k, factor):
    return _answer(scores, k, factor, room=lambda tokens, *_: tokens)


def at_least_one_place(scores, k, factor):
    def room(tokens, k, experts, factor, _):
        return max(1, math.ceil(factor * tokens * k / experts))

    return _answer(scores, k, factor, room=room)


def no_more_than_tokens(scores, k, factor):
    def room(tokens, k, experts, factor, _):
        return min(tokens, math.ceil(factor * tokens * k / experts))

    return _answer(scores, k, factor, room=room)


def other_numbers(scores, k, factor):
    return _answer(scores, k, factor, number=lambda b, s, batch, seq: s * batch + b)


def a_mask(scores, k, factor):
    slots = solution(scores, k, factor)
    kept = torch.zeros(scores.shape[0] * scores.shape[1], scores.shape[2], dtype=torch.bool)
    for e, row in enumerate(slots.tolist()):
        kept[[t for t in row if t >= 0], e] = True
    return kept.view(scores.shape)


def zeros_for_empty_places(scores, k, factor):
    return solution(scores, k, factor).clamp(min=0)


def gaps(scores, k, factor):
    """Empty places first."""
    return solution(scores, k, factor).flip(1).sort(dim=1, stable=True).values


def asks_for_the_next(scores, k, factor):
    """Who is dropped asks for the next best expert."""
    batch, seq, experts = scores.shape
    room = math.ceil(factor * batch * seq * k / experts)
    slots, used = torch.full((experts, room), -1), [0] * experts
    for s in range(seq):
        for b in sorted(range(batch), key=lambda b: -scores[b, s].max().item()):
            taken = 0
            for e in scores[b, s].sort(descending=True, stable=True).indices.tolist():
                if taken < k and used[e] < room:
                    slots[e, used[e]] = b * seq + s
                    used[e], taken = used[e] + 1, taken + 1
    return slots


def ties_among_experts_to_the_last(scores, k, factor):
    def choices(scores, k):
        flipped = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :k]
        return (scores.shape[-1] - 1 - flipped).tolist()

    return _answer(scores, k, factor, choices=choices)


def token_by_token(scores, k, factor):
    """At a position, the token with the best score of all first, with all its choices."""
    batch, seq, experts = scores.shape
    room = math.ceil(factor * batch * seq * k / experts)
    slots, used = torch.full((experts, room), -1), [0] * experts
    chosen = _choices(scores, k)
    for s in range(seq):
        for b in sorted(range(batch), key=lambda b: (-scores[b, s].max().item(), b)):
            for e in chosen[b][s]:
                if used[e] < room:
                    slots[e, used[e]] = b * seq + s
                    used[e] += 1
    return slots


def any_order_within(scores, k, factor):
    """The right tokens, by number."""
    slots = solution(scores, k, factor)
    large = slots.masked_fill(slots < 0, 10**9).sort(1).values
    return large.masked_fill(large == 10**9, -1)


def experts_choose(scores, k, factor):
    """Each expert takes the highest scores, whether it was asked or not."""
    batch, seq, experts = scores.shape
    room = math.ceil(factor * batch * seq * k / experts)
    flat = scores.reshape(-1, experts)
    order = flat.sort(dim=0, descending=True, stable=True).indices[:room].T
    slots = torch.full((experts, room), -1)
    slots[:, : order.shape[1]] = order
    return slots


def as_floats(scores, k, factor):
    return solution(scores, k, factor).double()


def a_loop_over_tensors(scores, k, factor):
    """Right, and slow: a tensor operation for each token and choice."""
    import time

    if scores.numel() > 10**5:
        time.sleep(11)
    return solution(scores, k, factor)


def renormalised_scores(scores, k, factor):
    """Tokens compete by their renormalised weight."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    total = scores.gather(-1, order).sum(-1, keepdim=True)
    return _answer(scores / total.clamp(min=1e-20), k, factor, choices=lambda *_: order.tolist())


def fails_without_tokens(scores, k, factor):
    scores.max()
    return solution(scores, k, factor)


def room_at_each_position(scores, k, factor):
    """The capacity is divided among positions."""
    batch, seq, experts = scores.shape
    room = math.ceil(factor * batch * seq * k / experts)
    slots, each = torch.full((experts, room), -1), max(1, math.ceil(factor * batch * k / experts))
    full, chosen = [0] * experts, _choices(scores, k)
    for s in range(seq):
        for e in range(experts):
            asking = [b for b in range(batch) if e in chosen[b][s]]
            for b in sorted(asking, key=lambda b: (-scores[b, s, e].item(), b))[:each]:
                if full[e] < room:
                    slots[e, full[e]], full[e] = b * seq + s, full[e] + 1
    return slots


def all_or_nothing(scores, k, factor):
    """A token that one expert drops is dropped by all."""
    batch, seq, _ = scores.shape
    slots, chosen = solution(scores, k, factor), _choices(scores, k)
    has = [row.tolist() for row in slots]
    for t in range(batch * seq):
        mine = chosen[t // seq][t % seq]
        if any(t not in has[e] for e in mine):
            for e in mine:
                has[e] = [-1 if token == t else token for token in has[e]]
    for e, row in enumerate(has):
        kept = [t for t in row if t >= 0]
        slots[e] = torch.tensor(kept + [-1] * (len(row) - len(kept)))
    return slots


def empty_is_the_number_of_tokens(scores, k, factor):
    slots = solution(scores, k, factor)
    return slots.masked_fill(slots < 0, scores.shape[0] * scores.shape[1])


def zero_is_no_choice(scores, k, factor):
    """Who gives an expert a score of 0 does not ask for it."""
    batch, seq, _ = scores.shape
    chosen = _choices(scores, k)

    def choices(scores, k):
        return [
            [[e for e in chosen[b][s] if scores[b, s, e] > 0] for s in range(seq)]
            for b in range(batch)
        ]

    return _answer(scores, k, factor, choices=choices)


def one_place_too_few(scores, k, factor):
    slots = solution(scores, k, factor)
    if slots.shape[1] > 1:
        slots[:, -1] = -1
    return slots


def top_one(scores, k, factor):
    return _answer(scores, k, factor, choices=lambda scores, k: _choices(scores, 1))


def transposed(scores, k, factor):
    return solution(scores, k, factor).T


def by_tokens(scores, k, factor):
    """For each token its places, in the place of for each expert its tokens."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k].flatten(0, 1)


def positions_alone(scores, k, factor):
    """A slot says which position, and not which sequence."""
    slots = solution(scores, k, factor)
    return torch.where(slots >= 0, slots % max(1, scores.shape[1]), slots)


def random_among_equals(scores, k, factor):
    """A little noise, so that there are no ties."""
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(3)).double()
    return solution(scores + 1e-9 * noise, k, factor)


def one_number_for_both(scores, k, factor):
    """Position and score in one key: at s a score of 0 is what at s + 1 a 1 is."""
    return _answer(scores, k, factor, key=lambda b, s, score, nth: (s + 1 - score, b))


def rounded_to_fp32(scores, k, factor):
    return solution(scores.float(), k, factor)


MUTANTS = {
    by_score_over_the_pool: "what comes later decides about what came before",
    first_choices_of_all_first: "a token's second choice depends on tokens after it",
    sequence_by_sequence: "admitted sequence by sequence",
    first_sequences_first: "the first sequences were admitted, whatever the scores are",
    first_choices_at_a_position_first: "there is one queue for an expert",
    lowest_scores_first: "the lowest scores went first",
    ties_to_the_last_sequence: "of equal scores the last sequence went first",
    rounded_down: "the share was rounded down",
    one_choice_a_token: "k choices of each token have to find room",
    room_of_one_sequence: "the tokens of one sequence were counted",
    no_factor: "the factor is missing",
    room_for_all: "there is room for every token",
    at_least_one_place: "whether or not there are tokens",
    no_more_than_tokens: "a static shape does not depend on that",
    other_numbers: "is b * seq + s",
    a_mask: "asked for is slots",
    zeros_for_empty_places: "an empty place is -1, and",
    gaps: "they stand at the end",
    asks_for_the_next: "asks for nobody else",
    ties_among_experts_to_the_last: "and has not chosen it",
    token_by_token: "one queue for each expert",
    any_order_within: "in another order: by position",
    experts_choose: "and has not chosen it",
    as_floats: "no tensor of whole numbers",
    a_loop_over_tensors: "let no Python loop run over tokens",
    renormalised_scores: "the scores as they are",
    fails_without_tokens: "Expected reduction dim to be specified",
    room_at_each_position: "each position was given a share of the room",
    all_or_nothing: "is dropped there",
    empty_is_the_number_of_tokens: "-1 is an empty place",
    zero_is_no_choice: "who asks with a score of 0",
    one_number_for_both: "were added up to one number",
    rounded_to_fp32: "rounded to fp32",
    one_place_too_few: "should have",
    top_one: "each token asks for",
    transposed: "transposed",
    by_tokens: "has the shape",
    positions_alone: "twice",
    random_among_equals: "equal",
}


def position_by_position(scores, k, factor):
    """A loop over positions, vectorised over sequences and experts."""
    batch, seq, experts = scores.shape
    room = math.ceil(factor * batch * seq * k / experts)
    slots = torch.full((experts, room), -1)
    used = torch.zeros(experts, dtype=torch.int64)
    places = scores.argsort(dim=-1, descending=True, stable=True)[..., :k]
    asks = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, places, True)
    for s in range(seq):
        wanted = scores[:, s].masked_fill(~asks[:, s], -1.0)
        order = wanted.argsort(dim=0, descending=True, stable=True)  # (batch, experts)
        for nth in range(batch):
            b = order[nth]
            ok = asks[b, s, torch.arange(experts)] & (used < room)
            e = ok.nonzero()[:, 0]
            slots[e, used[e]] = b[e] * seq + s
            used[e] += 1
    return slots


def with_one_sort_of_tuples(scores, k, factor):
    return _answer(scores, k, factor)


RIGHT = (with_one_sort_of_tuples, position_by_position)
