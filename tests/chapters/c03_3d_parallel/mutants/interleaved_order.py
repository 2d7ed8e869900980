"""Wrong answers to 3d.pp.interleaved, what each author must be told, and right ones."""

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


RIGHT = (by_sorting, by_a_generator, a_shorter_warm_up)
