"""Wrong answers to 3d.plan.budget, what each author must be told, and right ones."""

import itertools
import random

from picolab.chapters.c03_3d_parallel.better_plan import solution


def everything_is_dp(gpus, node, ask):
    return f"dp{gpus}"


def zero_3_always(gpus, node, ask):
    return f"dp{gpus}zero3"


def as_always(gpus, node, ask):
    return f"dp{gpus // (8 * min(8, gpus // 8))}tp8pp{min(8, gpus // 8)}"


def tp_over_everything(gpus, node, ask):
    return f"tp{gpus}"


def the_first_that_fits(gpus, node, ask):
    for tp, pp in itertools.product((8, 4, 2, 1), (8, 4, 2, 1)):
        if gpus % (tp * pp) == 0:
            name = f"dp{gpus // (tp * pp)}tp{tp}pp{pp}"
            if ask(name).fits:
                return name
    return f"dp{gpus}zero3"


def asks_about_all(gpus, node, ask):
    best = None
    for tp, pp, zero in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 3)):
        if gpus % (tp * pp) == 0 and gpus // (tp * pp) > 1:
            name = f"dp{gpus // (tp * pp)}tp{tp}pp{pp}zero{zero}"
            answer = ask(name)
            if answer.fits and (best is None or answer.step_s < best[0]):
                best = answer.step_s, name
    return best[1]


def without_a_pipeline(gpus, node, ask):
    found = []
    for tp, zero in itertools.product((2, 4, 8), (1, 2, 3)):
        name = f"dp{gpus // tp}tp{tp}zero{zero}"
        answer = ask(name)
        if answer.fits:
            found.append((answer.step_s, name))
    return min(found)[1]


def the_leanest(gpus, node, ask):
    found = []
    for tp, pp in itertools.product((1, 2, 4, 8), (1, 2, 4, 8)):
        if gpus % (tp * pp) == 0 and gpus // (tp * pp) > 1:
            name = f"dp{gpus // (tp * pp)}tp{tp}pp{pp}zero3"
            answer = ask(name)
            if answer.fits:
                found.append((answer.memory_bytes, name))
    return min(found)[1]


def the_slowest(gpus, node, ask):
    found = []
    for tp in (1, 2, 4, 8):
        name = f"dp{gpus // tp}tp{tp}zero3"
        answer = ask(name)
        if answer.fits:
            found.append((answer.step_s, name))
    return max(found)[1]


def searches_with_the_planner(gpus, node, ask):
    import picolab as pico

    return str(pico.plan("llama-3-70b", gpus, "h100", global_batch=4 * gpus).best[0].layout)


def judges_with_the_planner(gpus, node, ask):
    import picolab as pico

    found = pico.plan("llama-3-70b", layout=f"dp{gpus}zero3", hardware="h100", global_batch=256)
    return str(found.verdict.layout)


def of_other_ranks(gpus, node, ask):
    return "dp8tp4pp2zero2"


def no_layout(gpus, node, ask):
    return f"{gpus} cards, zero 3"


def asks_what_is_no_layout(gpus, node, ask):
    ask("tp3")
    return solution(gpus, node, ask)


def returns_the_answer(gpus, node, ask):
    return ask(solution(gpus, node, ask))


def returns_nothing(gpus, node, ask):
    solution(gpus, node, ask)


def learnt_by_heart(gpus, node, ask):
    return {16: "dp16zero3", 64: "dp8tp4pp2spzero2:zb-v"}.get(gpus, f"dp{gpus // 64}tp8pp8")


def forgets_zero(gpus, node, ask):
    best = solution(gpus, node, ask)
    head, _, schedule = best.partition(":")
    head = head[: head.index("zero")] + head[head.index("zero") + 5 :]
    return head + (f":{schedule}" if schedule else "")


def best_of_dead_ones(gpus, node, ask):
    """Takes what does not fit for fast."""
    names = [f"dp{gpus}zero{zero}" for zero in (1, 2, 3)]
    return min(names, key=lambda name: ask(name).step_s or 0)


def _asked(ask, names):
    """The fastest of these; what is refused or dies is passed over."""
    steps = {}
    for name in names:
        try:
            answer = ask(name)
        except ValueError:
            continue
        if answer.fits:
            steps[name] = answer.step_s
    return min(steps, key=steps.get)


def _cuts(gpus, node):
    return [
        (tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8)
        if tp <= node and gpus % (tp * pp) == 0
    ]  # fmt: skip


def tp_of_a_node(gpus, node, ask):
    return _asked(ask, [f"dp{gpus // node // pp}tp{node}spzero1pp{pp}" for pp in (1, 2)])


def takes_nothing_for_0_seconds(gpus, node, ask):
    names = [f"dp{gpus // tp // pp}tp{tp}zero2pp{pp}" for tp, pp in _cuts(gpus, node)]
    return min(names, key=lambda name: ask(name).step_s or 0)


def at_random(gpus, node, ask):
    draw, cuts = random.Random(0), _cuts(gpus, node)
    names = []
    for _ in range(40):
        tp, pp = draw.choice(cuts)
        names.append(f"dp{gpus // tp // pp}tp{tp}zero{draw.randrange(4)}pp{pp}")
    return _asked(ask, names)


def counts_no_refusals(gpus, node, ask):
    """Forty answers, and what is refused for nothing."""
    answers, best = 0, None
    for zero, tp, pp in itertools.product((2, 3, 1), range(1, node + 1), range(1, 17)):
        name = f"dp{gpus // tp // pp}tp{tp}zero{zero}pp{pp}"
        try:
            answer = ask(name)
        except ValueError:
            continue
        answers += 1
        if answer.fits and (best is None or answer.step_s < best[0]):
            best = answer.step_s, name
        if answers == 40:
            break
    return best[1]


def on_one_node(gpus, node, ask):
    return f"dp{node}zero3"


def with_its_time(gpus, node, ask):
    name = f"dp{gpus}zero3"
    return name, ask(name).step_s


def there_and_back_over_two(gpus, node, ask):
    return _asked(ask, [f"dp{gpus // tp // 2}tp{tp}spzero2pp2:zb-v" for tp in (2, 4, 8)])


def as_llama_3(gpus, node, ask):
    stages = 16 if gpus >= 16 * node else 1
    pipeline = f"pp{stages}" if stages > 1 else ""
    return f"dp{gpus // node // stages}tp{node}sp{pipeline}zero1"


MUTANTS = {
    zero_3_always: "micro-batch 2, full recompute",
    asks_about_all: "that was question 41, and there are 40",
    everything_is_dp: "does not live",
    as_always: "% more",
    tp_over_everything: "% more",
    the_first_that_fits: "% more",
    without_a_pipeline: "% more",
    the_leanest: "% more",
    the_slowest: "% more",
    searches_with_the_planner: "through `ask` alone",
    judges_with_the_planner: "through `ask` alone",
    of_other_ranks: "is no layout of",
    no_layout: "is no layout of",
    asks_what_is_no_layout: "ValueError",
    returns_the_answer: "it returns a Answer",
    returns_nothing: "it returns None",
    learnt_by_heart: "% more",
    forgets_zero: "does not live",
    tp_of_a_node: "% more",
    takes_nothing_for_0_seconds: "does not live",
    at_random: "% more",
    counts_no_refusals: "that was question 41",
    on_one_node: "is no layout of",
    with_its_time: "it returns a tuple",
    there_and_back_over_two: "% more",
    as_llama_3: "% more",
}


def a_beam(gpus, node, ask):
    """The three best cuts, each with its details."""
    seen = {}

    def time(tp, pp, cp, zero, schedule):
        dp = gpus // (tp * pp * cp)
        if tp * pp * cp > gpus or gpus % (tp * pp * cp) or (dp * cp == 1 and zero):
            return float("inf")
        name = f"dp{dp}tp{tp}pp{pp}cp{cp}" + ("sp" if tp > 1 else "") + f"zero{zero}"
        name += f":{schedule}" if pp > 1 else ""
        if name not in seen:
            if len(seen) == 40:
                return float("inf")
            seen[name] = ask(name).step_s or float("inf")
        return seen[name]

    cuts = [(tp, pp, 1, 3 if pp == 1 else 2, "zb-v") for tp in (1, 2, 4) for pp in (1, 2, 4)]
    ranked = sorted(cuts, key=lambda cut: time(*cut))
    finer = []
    for tp, pp, _, zero, schedule in ranked[:3]:
        finer += [(tp, pp, cp, zero, schedule) for cp in (2, 4)]
        finer += [(max(1, tp // 2), pp, cp, zero, schedule) for cp in (1, 2, 4)]
        finer += [(tp, pp, 1, 5 - zero, schedule)]
    for choice in finer:
        time(*choice)
    return min(seen, key=seen.get)


def in_two_loops(gpus, node, ask):
    names = [f"dp{gpus}zero3"]
    for tp, pp in itertools.product((1, 2, 4), (1, 2, 4)):
        dp = gpus // (tp * pp)
        sp = "sp" if tp > 1 else ""
        if pp > 1 and dp > 1:
            names.append(f"dp{dp}tp{tp}pp{pp}{sp}zero2:zb-v")
        if dp > 2:
            names.append(f"dp{dp // 2}tp{tp}pp{pp}cp2{sp}zero2:zb-h1")
            names.append(f"dp{dp // 2}tp{tp}pp{pp}cp2{sp}zero3:zb-h1")
    times = {name: ask(name).step_s for name in names[:40]}
    living = {name: step for name, step in times.items() if step is not None}
    return min(living, key=living.get)


def downhill(gpus, node, ask):
    """One choice at a time from the middle, with what was asked remembered."""
    seen = {}

    def step(tp, pp, zero, schedule):
        name = f"dp{gpus // tp // pp}" + (f"tp{tp}sp" if tp > 1 else "") + f"zero{zero}"
        name += f"pp{pp}:{schedule}" if pp > 1 else ""
        if name not in seen and len(seen) < 40:
            answer = ask(name)
            seen[name] = answer.step_s if answer.fits else 1e9 + answer.memory_bytes
        return seen.get(name, float("inf"))

    best = (2, 2, 2, "zb-v")
    while True:
        tp, pp, zero, schedule = best
        near = [(tp // 2, pp, zero, schedule), (tp * 2, pp, zero, schedule)]
        near += [(tp, pp // 2, zero, schedule), (tp, pp * 2, zero, schedule)]
        near += [(tp // 2, pp * 2, zero, schedule), (tp * 2, pp // 2, zero, schedule)]
        near += [(tp, pp, other, schedule) for other in (1, 2, 3) if other != zero]
        near += [(tp, 1, 3, schedule), (tp, 1, 2, schedule)]
        near += [(tp, pp, zero, other) for other in ("interleaved", "1f1b") if other != schedule]
        near = [one for one in near if 1 <= one[0] <= node and one[1] >= 1]
        near = [one for one in near if gpus % (one[0] * one[1]) == 0]
        found = min([best, *near], key=lambda one: step(*one))
        if found == best:
            return min(seen, key=seen.get)
        best = found


RIGHT = (a_beam, in_two_loops, downhill)
