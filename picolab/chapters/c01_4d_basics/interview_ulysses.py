"""Exercise: Ulysses attention, heads for tokens and back (question 4d-029)."""

import torch

from picolab import comm
from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise
from picolab.exercises.diagnosis import near


def my_ulysses(q, k, v, attend):
    import picolab as pico

    cp = pico.comm.mesh().size("cp")
    raise NotImplementedError(f"give each of {cp} ranks all tokens of some heads")


def solution(q, k, v, attend):
    import torch

    import picolab as pico

    cp = pico.comm.mesh().size("cp")
    # (S/c, heads, E) -> (c, S/c, heads/c, E): the heads of rank i are block i.
    each = [x.unflatten(1, (cp, -1)).transpose(0, 1) for x in (q, k, v)]
    sizes = [x.shape[2] for x in each]
    blocks = torch.cat(each, dim=2).contiguous()  # q, k and v for one rank, side by side
    arrived = pico.comm.all_to_all(blocks, "cp", "tokens of all ranks, some heads")
    # Block i is rank i's tokens: one behind the other, they are the sequence.
    out_SHE = attend(*arrived.flatten(0, 1).split(sizes, dim=1))
    back = out_SHE.unflatten(0, (cp, -1)).contiguous()  # block i: the tokens of rank i
    returned = pico.comm.all_to_all(back, "cp", "all heads, some tokens")
    return returned.transpose(0, 1).flatten(1, 2)  # block i was the heads of rank i


def judge(learner, attempt: Attempt) -> None:
    mesh, values = comm.mesh(), attempt.case.values
    cp, me, head = mesh.size("cp"), mesh.rank("cp"), 2
    tokens, heads, kv_heads = values["tokens"], values["heads"], values["kv_heads"]
    drawn = attempt.tensor(mesh.size("dp"), cp * tokens, heads + 2 * kv_heads, head)
    whole = drawn[mesh.rank("dp")].split([heads, kv_heads, kv_heads], dim=1)
    own = slice(me * tokens, (me + 1) * tokens)
    problems = []

    def attend(q, k, v):
        problems.extend(_about(q, k, v, whole))
        return _dense(q, k, v)

    given = {name: x[own].clone() for name, x in zip("qkv", whole)}
    out = attempt.call(learner, {**given, "attend": attend})
    attempt.along("cp")
    attempt.only("all_to_all")
    expected = _dense(*whole)[own]
    if problems:
        attempt.wrong(problems[0])
    elif isinstance(out, torch.Tensor) and out.shape == expected.shape:
        order = _order_of_heads(out, expected)
        if order is not None and order != list(range(heads)):
            attempt.wrong(
                f"out has the heads in the order {', '.join(map(str, order))}: what came back "
                "from a rank are its heads, one rank's behind the other's"
            )
        else:
            attempt.equal("out", out, expected)
    else:
        attempt.equal("out", out, expected)
    sent = tokens * (2 * heads + 2 * kv_heads) * head * drawn.element_size()
    attempt.budget("all_to_all", axis="cp", count=2, at_least=2)
    attempt.budget("all_to_all", axis="cp", payload_bytes=sent, least_bytes=sent)


def _dense(q, k, v):
    """Causal attention of (S, N, E) to (S, K, E), each key-value head to N/K query heads."""
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("snd,tnd->nst", q, k) / q.shape[-1] ** 0.5
    hidden = torch.ones(len(q), len(k)).triu(1).bool()
    return torch.einsum("nst,tnd->snd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def _about(q, k, v, whole) -> list[str]:
    """What is wrong with what attend was given, in a sentence."""
    seq, heads, kv_heads = len(whole[0]), whole[0].shape[1], whole[1].shape[1]
    if len(q) != seq or len(k) != seq or len(v) != seq:
        return [
            f"attend was given {len(q)} queries, {len(k)} keys and {len(v)} values a head, and a "
            f"head needs those of all {seq} tokens"
        ]
    if not k.shape[1] or q.shape[1] % k.shape[1] or k.shape != v.shape:
        return [
            f"attend was given {q.shape[1]} query heads, {k.shape[1]} of keys and {v.shape[1]} of "
            "values: it takes whole groups"
        ]
    found = [_heads_of(given, all_of_it) for given, all_of_it in zip((q, k, v), whole)]
    if None not in (_heads_of(k, whole[2]), _heads_of(v, whole[1])):
        return ["attend was given the values as keys and the keys as values"]
    rounded = [_heads_of(given.float(), x.float()) for given, x in zip((q, k, v), whole)]
    if None in found and None not in rounded:
        return ["attend was given numbers that are only nearly right: rounded on the way to fp32?"]
    if any(one is None for one in found):
        return [
            "attend was given a head that mixes several heads or tokens: a view that cuts (S/c, "
            "heads) in another way moves numbers between them (transpose before you flatten)"
        ]
    if any(rows != list(range(seq)) for one in found for _, rows in one):
        return [
            "attend was given the tokens in another order than the sequence's, and its mask is "
            "causal"
        ]
    of_q, of_k, of_v = ([index for index, _ in one] for one in found)
    group = q.shape[1] // k.shape[1]
    wanted = [index // (heads // kv_heads) for index in of_q]
    got = [(of_k[i // group], of_v[i // group]) for i in range(len(of_q))]
    if got != [(index, index) for index in wanted]:
        return [
            f"attend was given the query heads {_listed(of_q)} with the key heads {_listed(of_k)}: "
            f"query head j belongs to key-value head j // {heads // kv_heads}"
        ]
    return []


def _heads_of(given, whole) -> list[tuple[int, list[int]]] | None:
    """For each head of `given`: which head of the model it is, and which tokens its rows are."""
    found = []
    for head in given.unbind(1):
        for index, candidate in enumerate(whole.unbind(1)):
            same = (head.unsqueeze(1) == candidate.unsqueeze(0)).all(-1)  # (row, token)
            if (same.sum(1) == 1).all():
                found.append((index, same.int().argmax(1).tolist()))
                break
        else:
            return None
    return found


def _order_of_heads(out, expected) -> list[int] | None:
    """Which head each head of out is; None if one of them is none of the expected."""
    order = []
    for index, head in enumerate(out.unbind(1)):
        same = [near(head, one, 1e-9) for one in expected.unbind(1)]
        if not any(same):
            return None
        # The first token sees itself alone, so all heads of a group are alike there.
        order.append(index if same[index] else same.index(True))
    return order


def _listed(indices: list[int]) -> str:
    return ", ".join(map(str, indices))


EXERCISE = Exercise(
    id="interview.4d.ulysses",
    goal="Causal attention over a sequence that is cut into c contiguous pieces, one a rank of "
    "`cp`. You have `attend`, which needs a head's *whole* sequence: so exchange, such that every "
    "rank has all tokens of some heads, and exchange back.",
    interface="`my_ulysses(q, k, v, attend)` returns out, (S/c, N, E): this rank's tokens, all "
    "heads in their order. q is (S/c, N, E), k and v are (S/c, K, E), c divides N and K, and query "
    "head j belongs to key-value head j // (N/K). `attend(q, k, v)` takes (S, n, E), (S, k, E) and "
    "(S, k, E), S the whole sequence in its order and query head j of n to key-value head "
    "j // (n/k), and returns (S, n, E). To exchange there is `pico.comm.all_to_all(x, "
    '"cp", reason)`: x has c blocks of rows, (c, ...), block j goes to rank j, and the result has '
    "as block i what rank i had for this one.",
    budget="Two all-to-alls: q, k and v in one, the result in the other. Keys and values travel "
    "with their own number of heads.",
    hints=(
        "Write the shape at each station, with the dim along which the ranks differ in front: "
        "before, rank r has its tokens of all heads; after, its heads of all tokens. An "
        'all-to-all exchanges dim 0 of x for "which rank". What must dim 0 be before it?',
        "It is the rank whose *heads* they are: `x.unflatten(1, (cp, -1)).transpose(0, 1)`. "
        "Afterwards dim 0 is the rank whose *tokens* they are, so flattening dims 0 and 1 is the "
        "sequence. Put q, k and v of one rank side by side along the dim of heads.",
        "Back: `out.unflatten(0, (cp, -1))` has as block i the tokens of rank i; after the "
        "exchange block i is the heads of rank i: `.transpose(0, 1).flatten(1, 2)`.",
    ),
    stub_function=my_ulysses,
    solution_function=solution,
    why='An all-to-all is a transposition between "which rank" and the first dim, so everything '
    "else is putting the right dim first: heads on the way there, tokens on the way back. Joining "
    "q, k and v must happen *within* each rank's block; joined along the heads before the cut, a "
    "rank would get query heads alone. Heads stay in contiguous groups, so a rank's query heads "
    "find their key-value heads on the same rank. Each message is 1/c of the tokens times 1/c of "
    "the heads, so a rank sends (c-1)/c of its share, and less as c grows.",
    judge=judge,
    cases=(
        Case("cp2", "4 heads, each with its own keys", {"tokens": 3, "heads": 4, "kv_heads": 4}),
        Case("cp3", "6 query heads on 3 of keys", {"tokens": 2, "heads": 6, "kv_heads": 3}),
        Case("dp2cp2", "8 query heads on 2", {"tokens": 2, "heads": 8, "kv_heads": 2}),
        Case("cp4", "16 query heads on 8", {"tokens": 1, "heads": 16, "kv_heads": 8}),
    ),
    blocked=(
        "picolab.parallel.ulysses.ulysses_attention",
        "picolab.parallel.ulysses.exchange_blocks",
    ),
    timeout=5.0,
)
