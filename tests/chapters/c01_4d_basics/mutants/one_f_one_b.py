"""Wrong answers to 4d.pp.1f1b, what each author must be told, and right ones."""

from picolab import comm, schedules
from picolab.chapters.c01_4d_basics.one_f_one_b import solution


def _with_warm_up(warm_up, micro_batches, cool_down=True):
    order = [f"F{i}" for i in range(warm_up)]
    for i in range(warm_up, micro_batches):
        order += [f"F{i}", f"B{i - warm_up}"]
    if cool_down:
        order += [f"B{i}" for i in range(max(micro_batches - warm_up, 0), micro_batches)]
    return order


def gpipe(stage, stages, micro_batches):
    return [f"{kind}{i}" for kind in "FB" for i in range(micro_batches)]


def no_warm_up(stage, stages, micro_batches):
    return _with_warm_up(0, micro_batches)


def one_warm_up_too_few(stage, stages, micro_batches):
    return _with_warm_up(min(max(stages - 2 - stage, 0), micro_batches), micro_batches)


def one_warm_up_too_many(stage, stages, micro_batches):
    return _with_warm_up(min(stages - stage, micro_batches), micro_batches)


def same_warm_up_everywhere(stage, stages, micro_batches):
    return _with_warm_up(min(stages - 1, micro_batches), micro_batches)


def warm_up_grows_with_the_stage(stage, stages, micro_batches):
    return _with_warm_up(min(stage, micro_batches), micro_batches)


def no_cool_down(stage, stages, micro_batches):
    warm_up = min(stages - 1 - stage, micro_batches)
    return _with_warm_up(warm_up, micro_batches, cool_down=False)


def more_warm_up_than_micro_batches(stage, stages, micro_batches):
    return _with_warm_up(stages - 1 - stage, micro_batches)


def backward_first(stage, stages, micro_batches):
    warm_up = min(stages - 1 - stage, micro_batches)
    order = [f"F{i}" for i in range(warm_up)]
    for i in range(warm_up, micro_batches):
        order += [f"B{i - warm_up}", f"F{i}"]
    return order + [f"B{i}" for i in range(micro_batches - warm_up, micro_batches)]


def cool_down_from_the_end(stage, stages, micro_batches):
    order = solution(stage, stages, micro_batches)
    warm_up = min(stages - 1 - stage, micro_batches)
    return order[: len(order) - warm_up] + order[len(order) - warm_up :][::-1]


def forgets_the_last(stage, stages, micro_batches):
    return solution(stage, stages, micro_batches - 1)


def counts_from_one(stage, stages, micro_batches):
    return [f"{a[0]}{int(a[1:]) + 1}" for a in solution(stage, stages, micro_batches)]


def returns_nothing(stage, stages, micro_batches):
    solution(stage, stages, micro_batches)


def lower_case(stage, stages, micro_batches):
    return [action.lower() for action in solution(stage, stages, micro_batches)]


def reads_its_rank(stage, stages, micro_batches):
    import torch.distributed as dist

    return solution(dist.get_rank(), stages, micro_batches)


def waits_in_turn(stage, stages, micro_batches):
    order = []
    for i in range(micro_batches):
        order += [f"F{i}", f"B{i}"]
    return order if stage else solution(stage, stages, micro_batches)


def sends_itself(stage, stages, micro_batches):
    comm.barrier("pp", "one step")
    return solution(stage, stages, micro_batches)


def asks_the_package(stage, stages, micro_batches):
    row = schedules.make("1f1b", stages, micro_batches).actions[stage]
    return [f"{action.kind}{action.micro_batch}" for action in row]


def gpipe_for_three_stages(stage, stages, micro_batches):
    one = gpipe if stages == 3 else solution
    return one(stage, stages, micro_batches)


def gpipe_beyond_eight(stage, stages, micro_batches):
    one = gpipe if micro_batches > 8 else solution
    return one(stage, stages, micro_batches)


def flips_the_bits(stage, stages, micro_batches):
    return _with_warm_up(min((stages - 1) ^ stage, micro_batches), micro_batches)


def knows_what_was_shown(stage, stages, micro_batches):
    table = {(stages, m): solution(stage, stages, m) for m in range(1, 9)}
    return table[(stages, micro_batches)] if stages in (2, 4) else []


def half_the_stages(stage, stages, micro_batches):
    warm_up = stages - 1 - stage if stages < 5 else (stages - stage) // 2
    return _with_warm_up(min(warm_up, micro_batches), micro_batches)


def returns_one_string(stage, stages, micro_batches):
    return " ".join(solution(stage, stages, micro_batches))


def returns_pairs(stage, stages, micro_batches):
    return [(action[0], int(action[1:])) for action in solution(stage, stages, micro_batches)]


def is_a_generator(stage, stages, micro_batches):
    yield from solution(stage, stages, micro_batches)


def divides_by_the_stages_behind(stage, stages, micro_batches):
    micro_batches // (stages - 1)
    return solution(stage, stages, micro_batches)


def does_the_first_twice(stage, stages, micro_batches):
    return ["F0", *solution(stage, stages, micro_batches)]


def asks_the_others(stage, stages, micro_batches):
    import torch.distributed as dist

    orders = [None] * dist.get_world_size()
    dist.all_gather_object(orders, solution(stage, stages, micro_batches))
    return orders[0]


def last_stage_waits(stage, stages, micro_batches):
    if stage == stages - 1 and stages > 1:
        return gpipe(stage, stages, micro_batches)
    return solution(stage, stages, micro_batches)


def keeps_count(stage, stages, micro_batches):
    order, forwards, backwards = [], 0, 0
    while backwards < micro_batches:
        if forwards < micro_batches and forwards - backwards < stages - stage:
            order.append(f"F{forwards}")
            forwards += 1
        else:
            order.append(f"B{backwards}")
            backwards += 1
    return order


def sorts_by_time(stage, stages, micro_batches):
    room = stages - stage
    times = [(2 * i, f"F{i}") for i in range(micro_batches)]
    times += [(2 * (i + room) - 1, f"B{i}") for i in range(micro_batches)]
    return tuple(action for _, action in sorted(times))


MUTANTS = {
    gpipe: "at F1 of stage 1, the activations of 2 micro-batches would be held",
    no_warm_up: "Stage 0 does nothing from 1 to 4, when it waits for B0 of stage 1; it could do F1",
    waits_in_turn: "4 stages, 2 micro-batches: it takes",
    one_warm_up_too_few: "time units, and 9 are enough",
    one_warm_up_too_many: "a backward has to come first",
    same_warm_up_everywhere: "at F1 of stage 1, the activations of 2",
    warm_up_grows_with_the_stage: "rank 0 waits for B0 of stage 1 from rank 1",
    no_cool_down: "B0 of stage 0: this backward is never done",
    more_warm_up_than_micro_batches: "F1 of stage 0: micro-batches are numbered 0 to 0",
    backward_first: "B0 of stage 1: comes before its forward",
    cool_down_from_the_end: "messages arrive in the order in which they were sent",
    forgets_the_last: "F0 of stage 0: this forward is never done",
    counts_from_one: "micro-batches are numbered 0 to 0",
    returns_nothing: "my_order(0, 2, 1) returns None",
    lower_case: "has 'f0' in it; an action is written",
    reads_its_rank: "and not on the rank it runs in",
    sends_itself: "it uses barriers; allowed are none at all",
    asks_the_package: "is what this exercise asks you to write",
    gpipe_for_three_stages: "3 stages, 2 micro-batches: at F1 of stage 2",
    gpipe_beyond_eight: "9 micro-batches: at F3 of stage 0, the activations of 4",
    flips_the_bits: "3 stages, 3 micro-batches: at F2 of stage 1",
    knows_what_was_shown: "F0 of stage 0: this forward is never done",
    half_the_stages: "5 stages, 3 micro-batches: it takes",
    returns_one_string: "returns a str; asked for is a list",
    returns_pairs: "has ('F', 0) in it; an action is written",
    is_a_generator: "returns a generator",
    divides_by_the_stages_behind: "ZeroDivisionError",
    does_the_first_twice: "F0 of stage 0",
    asks_the_others: "it uses `all_gather_object`",
    last_stage_waits: "at F1 of stage 1, the activations of 2 micro-batches",
}
RIGHT = (keeps_count, sorts_by_time)
