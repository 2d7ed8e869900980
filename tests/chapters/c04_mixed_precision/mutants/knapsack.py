"""Wrong answers to precision.select.knapsack, what each author must be told, and right ones."""

import inspect
import itertools
import math
import time

import torch

from picolab.chapters.c04_mixed_precision.knapsack import solution


def _spent(damage, chosen):
    return math.fsum(of[i] for of, i in zip(damage, chosen))


def _greedy(seconds, damage, budget, worth):
    chosen = [0] * len(seconds)
    while True:
        steps = []
        for layer, (times, damages) in enumerate(zip(seconds, damage)):
            for i, (time_i, damage_i) in enumerate(zip(times, damages)):
                saved = times[chosen[layer]] - time_i
                other = [*chosen[:layer], i, *chosen[layer + 1 :]]
                if saved > 0 and _spent(damage, other) <= budget:
                    steps.append((worth(saved, damage_i - damages[chosen[layer]]), layer, i))
        if not steps:
            return chosen
        _, layer, i = max(steps)
        chosen[layer] = i


def greedy_by_ratio(seconds, damage, budget):
    return _greedy(seconds, damage, budget, lambda saved, more: saved / more if more else math.inf)


def greedy_by_seconds(seconds, damage, budget):
    return _greedy(seconds, damage, budget, lambda saved, more: saved)


def greedy_by_damage(seconds, damage, budget):
    return _greedy(seconds, damage, budget, lambda saved, more: -more)


def layer_by_layer(seconds, damage, budget):
    chosen = []
    for times, damages in zip(seconds, damage):
        fitting = [i for i, d in enumerate(damages) if d <= budget]
        chosen.append(min(fitting, key=lambda i: (times[i], damages[i])))
        budget -= damages[chosen[-1]]
    return chosen


def equal_parts(seconds, damage, budget):
    return [
        min((i for i, d in enumerate(damages) if d <= budget / len(seconds)), key=times.__getitem__)
        for times, damages in zip(seconds, damage)
    ]


def each_within_the_budget(seconds, damage, budget):
    """The budget of all layers is taken for each one's."""
    return [
        min((i for i, d in enumerate(damages) if d <= budget), key=times.__getitem__)
        for times, damages in zip(seconds, damage)
    ]


def the_fastest(seconds, damage, budget):
    return [min(range(len(times)), key=times.__getitem__) for times in seconds]


def never_lower(seconds, damage, budget):
    return [0] * len(seconds)


def all_or_nothing(seconds, damage, budget):
    """One format for all layers."""
    formats = range(min(map(len, seconds), default=1))
    fitting = [f for f in formats if _spent(damage, [f] * len(seconds)) <= budget]
    best = min(fitting, key=lambda f: sum(of[f] for of in seconds))
    return [best] * len(seconds)


def less_than_the_budget(seconds, damage, budget):
    return _dynamic(seconds, damage, budget, lambda d: d < budget or d == 0)


def _dynamic(seconds, damage, budget, fits):
    partials = [(0.0, 0.0, ())]
    for times, damages in zip(seconds, damage):
        longer = [
            (d + more, s + t, (*chosen, i))
            for d, s, chosen in partials
            for i, (t, more) in enumerate(zip(times, damages))
            if fits(d + more)
        ]
        partials, least = [], math.inf
        for one in sorted(longer):
            if one[1] < least:
                least = one[1]
                partials.append(one)
    return list(partials[-1][2])


def with_an_epsilon(seconds, damage, budget):
    """So that rounding takes nothing away: and 1e-30 is nothing."""
    return _dynamic(seconds, damage, budget, lambda d: d <= budget + 1e-9)


def every_combination(seconds, damage, budget):
    began, best = time.monotonic(), (math.inf, None)
    for chosen in itertools.product(*(range(len(of)) for of in seconds)):
        if _spent(damage, chosen) <= budget:
            best = min(best, (math.fsum(of[i] for of, i in zip(seconds, chosen)), chosen))
        if time.monotonic() - began > 11:  # (it would go on until it is ended)
            break
    return list(best[1])


def on_a_grid(seconds, damage, budget):
    """The textbook's table: damages rounded up to a thousandth of the budget."""
    if not 0 < budget < math.inf:
        return solution(seconds, damage, budget)
    room = 1000
    least = [(0.0, ())] * (room + 1)
    for times, damages in zip(seconds, damage):
        whole = [math.ceil(d / budget * room) if d <= budget else room + 1 for d in damages]
        least = [
            min(
                (least[r - d][0] + t, (*least[r - d][1], i))
                for i, (t, d) in enumerate(zip(times, whole))
                if d <= r
            )
            for r in range(room + 1)
        ]
    return list(least[room][1])


def a_grid_that_rounds_down(seconds, damage, budget):
    if not 0 < budget < math.inf:
        return solution(seconds, damage, budget)
    rounded = [
        [math.floor(d / budget * 200) / 200 if d < math.inf else d for d in of] for of in damage
    ]
    return solution(seconds, rounded, 1.0)


def drops_too_much(seconds, damage, budget):
    """Only ten of the partial decisions are kept, the fastest."""
    partials = [(0.0, 0.0, ())]
    for times, damages in zip(seconds, damage):
        partials = sorted(
            (
                (s + t, d + more, (*chosen, i))
                for s, d, chosen in partials
                for i, (t, more) in enumerate(zip(times, damages))
                if d + more <= budget
            ),
        )[:10]
        partials = [(s, d, chosen) for s, d, chosen in partials]
    return list(min(partials)[2])


def more_damage_is_faster(seconds, damage, budget):
    """Formats are taken to be in the order of their speed: the last that fits."""
    fast = [[max(times) - i for i in range(len(times))] for times in seconds]
    return solution(fast, damage, budget)


def harmless_ones_forgotten(seconds, damage, budget):
    """Without a budget nothing is lowered, though some formats do no damage."""
    return [0] * len(seconds) if budget == 0 else solution(seconds, damage, budget)


def needs_a_finite_budget(seconds, damage, budget):
    return solution(seconds, damage, int(budget * 1024) / 1024)


def needs_a_layer(seconds, damage, budget):
    most = max(max(of) for of in seconds)
    return solution(seconds, damage, budget) if most else []


def infinite_damage_is_taken(seconds, damage, budget):
    """inf - inf is no number, and no number is over the budget."""
    return _dynamic(seconds, damage, budget, lambda d: not d - d + d > budget)


def never_infinite_damage(seconds, damage, budget):
    """Also where any damage is accepted."""
    barred = [[t if d < math.inf else 1e9 for t, d in zip(*of)] for of in zip(seconds, damage)]
    return solution(barred, damage, budget)


def as_a_tensor(seconds, damage, budget):
    return torch.tensor(solution(seconds, damage, budget))


def names(seconds, damage, budget):
    return [("fp32", "bf16", "fp8", "fp4")[i] for i in solution(seconds, damage, budget)]


def the_least_time_alone(seconds, damage, budget):
    chosen = solution(seconds, damage, budget)
    return math.fsum(of[i] for of, i in zip(seconds, chosen))


def one_too_many(seconds, damage, budget):
    return [*solution(seconds, damage, budget), 0]


def counted_from_one(seconds, damage, budget):
    return [i + 1 for i in solution(seconds, damage, budget)]


def by_the_package(seconds, damage, budget):
    from picolab.precision import AdaptivePrecisionSelector, Cost

    name = lambda i: "fp32" if i == 0 else str(i)  # noqa: E731
    costs = {
        str(layer): {name(i): Cost(t, d) for i, (t, d) in enumerate(zip(times, damages))}
        for layer, (times, damages) in enumerate(zip(seconds, damage))
    }
    found = AdaptivePrecisionSelector(budget, {}).select(costs)
    return [0 if of.format == "fp32" else int(of.format) for of in found.values()]


def sorts_its_input(seconds, damage, budget):
    chosen = solution(seconds, damage, budget)
    for times in seconds:
        times.sort()
    return chosen


def spends_in_its_input(seconds, damage, budget):
    """What is over the budget is barred where it stands."""
    for times, damages in zip(seconds, damage):
        for i, d in enumerate(damages):
            if d > budget:
                times[i] = math.inf
    return solution(seconds, damage, budget)


_known: dict = {}


def remembers_by_size(seconds, damage, budget):
    """Answers are kept, under a key that says too little."""
    return list(_known.setdefault(len(seconds), tuple(solution(seconds, damage, budget))))


def the_examples_alone(seconds, damage, budget):
    return (
        solution(seconds, damage, budget)
        if len(seconds) < 8
        else greedy_by_ratio(seconds, damage, budget)
    )


def by_local_search(seconds, damage, budget):
    """From the greedy answer on: change two layers at a time, as long as it helps."""
    chosen = greedy_by_ratio(seconds, damage, budget)
    spent, better = _spent(damage, chosen), True
    while better:
        better = False
        for a, b in itertools.combinations(range(len(chosen)), 2):
            for i, j in itertools.product(range(len(seconds[a])), range(len(seconds[b]))):
                more = damage[a][i] - damage[a][chosen[a]] + damage[b][j] - damage[b][chosen[b]]
                less = seconds[a][chosen[a]] - seconds[a][i] + seconds[b][chosen[b]] - seconds[b][j]
                if less > 1e-9 and spent + more <= budget:
                    chosen[a], chosen[b], better = i, j, True
                    spent = _spent(damage, chosen)
    return chosen


def relaxed(seconds, damage, budget):
    """The linear relaxation, rounded down: a multiplier for damage, found by bisection."""

    def at(price):
        pairs = zip(seconds, damage)
        return [
            min(range(len(t)), key=lambda i: t[i] + price * (d[i] if d[i] < math.inf else 1e30))
            for t, d in pairs
        ]

    if budget == math.inf:
        return the_fastest(seconds, damage, budget)
    low, high = 0.0, 1e35
    for _ in range(300):
        middle = (low + high) / 2
        if _spent(damage, at(middle)) <= budget:
            high = middle
        else:
            low = middle
    return at(high)


def reads_the_judges_frames(seconds, damage, budget):
    for frame in inspect.stack():
        for name in ("best", "right", "chosen"):
            if isinstance(frame.frame.f_locals.get(name), list):
                return frame.frame.f_locals[name]
    return greedy_by_ratio(seconds, damage, budget)


def with_a_relative_epsilon(seconds, damage, budget):
    return solution(seconds, damage, budget * (1 + 1e-9))


def remembers_by_size_and_budget(seconds, damage, budget):
    """The key still says too little."""
    key = len(seconds), budget
    return list(_known.setdefault(key, tuple(solution(seconds, damage, budget))))


MUTANTS = {
    greedy_by_ratio: "most seconds a damage first",
    each_within_the_budget: "of all layers together",
    greedy_by_seconds: "steps that save most seconds first",
    greedy_by_damage: "is possible within the budget",
    layer_by_layer: "is possible within the budget",
    equal_parts: "an equal part of the budget for each layer",
    the_fastest: "and the budget is",
    never_lower: "fp32 throughout",
    all_or_nothing: "is possible within the budget",
    less_than_the_budget: "Damage may be the whole budget",
    with_an_epsilon: "and the budget is 3.9443e-30",
    every_combination: "combinations multiply with each layer",
    on_a_grid: "is possible within the budget",
    a_grid_that_rounds_down: "and the budget is",
    drops_too_much: "is possible within the budget",
    more_damage_is_faster: "is possible within the budget",
    harmless_ones_forgotten: "a format that does no damage, and no budget",
    needs_a_finite_budget: "cannot convert float infinity",
    needs_a_layer: "max() arg is an empty sequence",
    infinite_damage_is_taken: "a format of infinite damage",
    never_infinite_damage: "the same, and any damage is accepted",
    as_a_tensor: "asked for is a list of whole numbers",
    names: "asked for is a list of whole numbers",
    the_least_time_alone: "asked for is a list of whole numbers",
    one_too_many: "it returns 3 choices for 2 layers",
    counted_from_one: "a layer has [2, 2] formats",
    by_the_package: "is what this exercise asks you to write",
    sorts_its_input: "it changed its input `seconds`",
    spends_in_its_input: "it changed its input `seconds`",
    remembers_by_size: "room for one of them",
    the_examples_alone: "14 layers",
    by_local_search: "is possible within the budget",
    relaxed: "is possible within the budget",
    reads_the_judges_frames: "most seconds a damage first",
    with_a_relative_epsilon: "9.09e-13 too much",
    remembers_by_size_and_budget: "as many layers and as much room, other numbers",
}


def branch_and_bound(seconds, damage, budget):
    """Depth first, with what the remaining layers can save at best; and with a memory."""
    n = len(seconds)
    fastest = [0.0] * (n + 1)
    for layer in reversed(range(n)):
        fastest[layer] = fastest[layer + 1] + min(seconds[layer])
    fronts = [{0.0: (0.0, ())}]  # the least seconds for each damage, layer after layer
    upper = math.fsum(
        times[i] for times, i in zip(seconds, greedy_by_ratio(seconds, damage, budget))
    )
    for layer in range(n):
        front = {}
        for spent, (took, chosen) in fronts[-1].items():
            for i, (t, d) in enumerate(zip(seconds[layer], damage[layer])):
                if spent + d > budget or took + t + fastest[layer + 1] > upper * (1 + 1e-12):
                    continue
                known = front.get(spent + d)
                if known is None or took + t < known[0]:
                    front[spent + d] = took + t, (*chosen, i)
        kept, least = {}, math.inf
        for spent in sorted(front):
            if front[spent][0] < least:
                kept[spent], least = front[spent], front[spent][0]
        fronts.append(kept)
    return list(min(fronts[-1].values())[1])


def from_the_last_layer(seconds, damage, budget):
    """The recursion, with the budget that is left; what was found is kept as a staircase."""
    stairs = [[(0.0, 0.0, None)]]  # behind layer i: (damage, seconds, choice), both strict
    for times, damages in reversed(list(zip(seconds, damage))):
        every = sorted(
            (d + more, s + t, i)
            for d, s, _ in stairs[-1]
            for i, (t, more) in enumerate(zip(times, damages))
            if d + more <= budget
        )
        stairs.append([])
        for one in every:
            if not stairs[-1] or one[1] < stairs[-1][-1][1]:
                stairs[-1].append(one)
    chosen, (spent, took, choice) = [], stairs[-1][-1]
    for layer, (times, damages) in enumerate(zip(seconds, damage)):
        chosen.append(choice)
        for d, s, following in stairs[len(seconds) - 1 - layer]:
            if d + damages[choice] == spent and s + times[choice] == took:
                spent, took, choice = d, s, following
                break
    return chosen


RIGHT = (branch_and_bound, from_the_last_layer)
