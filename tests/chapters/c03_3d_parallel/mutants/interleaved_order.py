"""Wrong answers to 3d.pp.interleaved, what each author must be told, and right ones."""

import re

from picolab import comm, schedules
from picolab.chapters.c03_3d_parallel.interleaved_order import solution


def _order(rank, ranks, micro_batches, v, *, warm_up=None, back=lambda chunk, v: v - 1 - chunk):
    """The solution, with one thing to be done otherwise."""

    def action(kind, k):
        turn, place = divmod(k, ranks * v)
        chunk, i = divmod(place, ranks)
        chunk = back(chunk, v) if kind == "B" else chunk
        return f"{chunk * ranks + rank}{kind}{turn * ranks + i}"

    total = v * micro_batches
    warm = (v - 1) * ranks + 2 * (ranks - 1 - rank) if warm_up is None else warm_up
    warm = max(0, min(warm, total))
    order = [action("F", k) for k in range(warm)]
    for k in range(warm, total):
        order += [action("F", k), action("B", k - warm)]
    return order + [action("B", k) for k in range(total - warm, total)]


def gpipe(rank, ranks, micro_batches, v):
    return _order(rank, ranks, micro_batches, v, warm_up=v * micro_batches)


def thick_stages(rank, ranks, micro_batches, v):
    """1F1B, where an action is all stages of the rank one after the other: it cannot be."""
    warm = min(ranks - 1 - rank, micro_batches)
    rows = [("F", i) for i in range(warm)]
    for i in range(warm, micro_batches):
        rows += [("F", i), ("B", i - warm)]
    rows += [("B", i) for i in range(micro_batches - warm, micro_batches)]
    stages = [chunk * ranks + rank for chunk in range(v)]
    return [
        f"{stage}{kind}{i}"
        for kind, i in rows
        for stage in (stages if kind == "F" else stages[::-1])
    ]


def warm_up_of_1f1b(rank, ranks, micro_batches, v):
    return _order(rank, ranks, micro_batches, v, warm_up=ranks - 1 - rank)


def warm_up_too_long(rank, ranks, micro_batches, v):
    warm = (v - 1) * ranks + 2 * (ranks - rank) + 1
    return _order(rank, ranks, micro_batches, v, warm_up=warm)


def same_warm_up_everywhere(rank, ranks, micro_batches, v):
    return _order(rank, ranks, micro_batches, v, warm_up=(v - 1) * ranks + 2 * (ranks - 1))


def warm_up_of_the_other_end(rank, ranks, micro_batches, v):
    return _order(rank, ranks, micro_batches, v, warm_up=(v - 1) * ranks + 2 * rank)


def backward_from_the_first_stage(rank, ranks, micro_batches, v):
    return _order(rank, ranks, micro_batches, v, back=lambda chunk, v: chunk)


def micro_batch_by_micro_batch(rank, ranks, micro_batches, v):
    """Each micro-batch through all stages of the rank before the next."""
    stages = [chunk * ranks + rank for chunk in range(v)]
    forward = [f"{s}F{i}" for i in range(micro_batches) for s in stages]
    return forward + [f"{s}B{i}" for i in range(micro_batches) for s in stages[::-1]]


def stages_in_a_row(rank, ranks, micro_batches, v):
    """Stage s on rank s // v."""
    renamed = []
    for action in solution(rank, ranks, micro_batches, v):
        kind = "F" if "F" in action else "B"
        stage, i = action.split(kind)
        renamed.append(f"{rank * v + int(stage) // ranks}{kind}{i}")
    return renamed


def stage_of_the_rank(rank, ranks, micro_batches, v):
    """The stage counted within the rank."""
    renamed = []
    for action in solution(rank, ranks, micro_batches, v):
        kind = "F" if "F" in action else "B"
        stage, i = action.split(kind)
        renamed.append(f"{int(stage) // ranks}{kind}{i}")
    return renamed


def forgets_the_end(rank, ranks, micro_batches, v):
    found = solution(rank, ranks, micro_batches, v)
    return found[: len(found) - 1]


def names_no_stage(rank, ranks, micro_batches, v):
    return [a.lstrip("0123456789") for a in solution(rank, ranks, micro_batches, v)]


def returns_nothing(rank, ranks, micro_batches, v):
    solution(rank, ranks, micro_batches, v)


def reads_its_rank(rank, ranks, micro_batches, v):
    import torch.distributed as dist

    return solution(dist.get_rank() % ranks, ranks, micro_batches, v)


def asks_the_package(rank, ranks, micro_batches, v):
    row = schedules.make(f"interleaved-v{v}", ranks, micro_batches).actions[rank]
    return [f"{a.stage}{a.kind}{a.micro_batch}" for a in row]


def for_two_ranks_only(rank, ranks, micro_batches, v):
    one = solution if ranks == 2 else gpipe
    return one(rank, ranks, micro_batches, v)


def for_two_stages_only(rank, ranks, micro_batches, v):
    one = solution if v == 2 else gpipe
    return one(rank, ranks, micro_batches, v)


def sends_something(rank, ranks, micro_batches, v):
    comm.barrier("pp", "why not")
    return solution(rank, ranks, micro_batches, v)


def _sorted(rank, ranks, micro_batches, v, *, forwards, backwards, stage=None, warm_up=None):
    """Forwards and backwards in an order of their own, then warm-up, one and one, and the rest."""
    stage = stage or (lambda chunk: chunk * ranks + rank)
    every = [(chunk, i) for chunk in range(v) for i in range(micro_batches)]
    f = [f"{stage(c)}F{i}" for c, i in sorted(every, key=lambda one: forwards(*one))]
    b = [f"{stage(c)}B{i}" for c, i in sorted(every, key=lambda one: backwards(*one))]
    warm = min((v - 1) * ranks + 2 * (ranks - 1 - rank), len(f))
    steady = [action for pair in zip(f[warm:], b) for action in pair]
    return f[:warm] + steady + b[len(f) - warm :]


def rounds_of_v(rank, ranks, micro_batches, v):
    """Rounds as long as there are stages a rank, and not as there are ranks."""
    return _sorted(
        rank, ranks, micro_batches, v,
        forwards=lambda chunk, i: (i // v, chunk, i),
        backwards=lambda chunk, i: (i // v, -chunk, i),
    )  # fmt: skip


def one_stage_after_the_other(rank, ranks, micro_batches, v):
    """All micro-batches through a rank's first stage, then all through its second."""
    return _sorted(
        rank, ranks, micro_batches, v,
        forwards=lambda chunk, i: (chunk, i),
        backwards=lambda chunk, i: (-chunk, i),
    )  # fmt: skip


def last_in_first_out(rank, ranks, micro_batches, v):
    return _sorted(
        rank, ranks, micro_batches, v,
        forwards=lambda chunk, i: (i // ranks, chunk, i),
        backwards=lambda chunk, i: (i // ranks, -chunk, -i),
    )  # fmt: skip


def there_and_back(rank, ranks, micro_batches, v):
    """As ZB-V deals its stages out."""
    return _sorted(
        rank, ranks, micro_batches, v,
        forwards=lambda chunk, i: (i // ranks, chunk, i),
        backwards=lambda chunk, i: (i // ranks, -chunk, i),
        stage=lambda chunk: chunk * ranks + (ranks - 1 - rank if chunk % 2 else rank),
    )  # fmt: skip


def backward_before_forward(rank, ranks, micro_batches, v):
    warm = min((v - 1) * ranks + 2 * (ranks - 1 - rank), v * micro_batches)
    order = solution(rank, ranks, micro_batches, v)
    steady = order[warm : len(order) - warm]
    swapped = [action for f, b in zip(steady[::2], steady[1::2]) for action in (b, f)]
    return order[:warm] + swapped + order[len(order) - warm :]


def warm_up_without_an_end(rank, ranks, micro_batches, v):
    """More forwards than there are, where micro-batches are few."""
    warm = (v - 1) * ranks + 2 * (ranks - 1 - rank)

    def action(kind, k):
        turn, place = divmod(k, ranks * v)
        chunk, i = divmod(place, ranks)
        return f"{(v - 1 - chunk if kind == 'B' else chunk) * ranks + rank}{kind}{turn * ranks + i}"

    order = [action("F", k) for k in range(warm)]
    for k in range(warm, v * micro_batches):
        order += [action("F", k), action("B", k - warm)]
    return order + [action("B", k) for k in range(v * micro_batches - warm, v * micro_batches)]


def everybodys_lists(rank, ranks, micro_batches, v):
    return [solution(r, ranks, micro_batches, v) for r in range(ranks)]


def triples(rank, ranks, micro_batches, v):
    split = [re.split("([FB])", action) for action in solution(rank, ranks, micro_batches, v)]
    return [(int(stage), kind, int(i)) for stage, kind, i in split]


MUTANTS = {
    gpipe: "a backward has to come first",
    warm_up_of_1f1b: "comes before",
    thick_stages: "deadlock",
    warm_up_too_long: "a backward has to come first",
    same_warm_up_everywhere: "a backward has to come first",
    warm_up_of_the_other_end: "deadlock",
    backward_from_the_first_stage: "deadlock",
    micro_batch_by_micro_batch: "a backward has to come first",
    stages_in_a_row: "is on rank",
    stage_of_the_rank: "is on rank",
    forgets_the_end: "is never done",
    names_no_stage: "an action is stage, F or B, micro-batch",
    returns_nothing: "returns None",
    reads_its_rank: "is on rank",
    asks_the_package: "picolab",
    for_two_ranks_only: "a backward has to come first",
    for_two_stages_only: "a backward has to come first",
    sends_something: "it uses barriers",
    rounds_of_v: "The longest wait: rank",
    one_stage_after_the_other: "comes before its forward",
    last_in_first_out: "comes before its forward",
    there_and_back: "stage 3 is on rank 1",
    backward_before_forward: "comes before its forward",
    warm_up_without_an_end: "has '0B-1' in it",
    everybodys_lists: "in it; an action is stage, F or B, micro-batch",
    triples: "has (0, 'F', 0) in it",
}


def by_sorting(rank, ranks, micro_batches, v):
    """Two queues, sorted by when an action's turn comes."""

    def queue(kind):
        chunks = range(v) if kind == "F" else range(v - 1, -1, -1)
        turns = range(0, micro_batches, ranks)
        return [
            f"{c * ranks + rank}{kind}{i}"
            for turn in turns
            for c in chunks
            for i in range(turn, turn + ranks)
        ]

    forwards, backwards = queue("F"), queue("B")
    behind = (v - 1) * ranks + 2 * (ranks - 1 - rank)
    keyed = [(2 * k, a) for k, a in enumerate(forwards)]
    keyed += [(2 * (k + behind) + 1, a) for k, a in enumerate(backwards)]
    return [action for _, action in sorted(keyed, key=lambda one: one[0])]


def by_a_generator(rank, ranks, micro_batches, v):
    def actions(kind):
        for k in range(v * micro_batches):
            chunk = k // ranks % v
            stage = (chunk if kind == "F" else v - 1 - chunk) * ranks + rank
            yield f"{stage}{kind}{k // (ranks * v) * ranks + k % ranks}"

    forward, backward = actions("F"), actions("B")
    order = [
        action
        for _, action in zip(range((v - 1) * ranks + 2 * (ranks - 1 - rank)), forward, strict=False)
    ]
    for action in forward:
        order += [action, next(backward)]
    return tuple([*order, *backward])


def a_shorter_warm_up(rank, ranks, micro_batches, v):
    """As fast with links that cost nothing, and it holds less."""
    return _order(rank, ranks, micro_batches, v, warm_up=(v - 1) * ranks + (ranks - 1 - rank))


def as_much_as_may_be_held(rank, ranks, micro_batches, v):
    """A forward while there is room for its activations, else a backward."""
    room, held, order = (v - 1) * ranks + 2 * (ranks - 1 - rank) + 1, 0, []
    rounds = range(0, micro_batches, ranks)
    forwards, backwards = (
        [(turn + i, chunk) for turn in rounds for chunk in chunks for i in range(ranks)]
        for chunks in (range(v), range(v)[::-1])
    )
    while backwards:
        kind = "F" if forwards and held < room else "B"
        i, chunk = (forwards if kind == "F" else backwards).pop(0)
        held += 1 if kind == "F" else -1
        order.append(f"{chunk * ranks + rank}{kind}{i}")
    return order


RIGHT = (by_sorting, by_a_generator, a_shorter_warm_up, as_much_as_may_be_held)
