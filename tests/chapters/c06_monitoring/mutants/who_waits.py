"""Wrong answers to monitoring.hang.who_waits, what each author must be told, and right ones."""

from collections import Counter

from picolab.chapters.c06_monitoring.who_waits import solution


def _arrows(groups, entered, inside):
    arrows = {rank: set() for rank in inside}
    for rank, call in inside.items():
        if call is None:
            continue
        kind, whom = call
        if kind == "collective":
            arrows[rank] = {r for r in groups[whom] if entered[r][whom] < entered[rank][whom]}
        elif inside[whom] != ({"send": "recv", "recv": "send"}[kind], rank):
            arrows[rank] = {whom}
    return arrows


def _ends(arrows):
    def reach(start):
        found = set()
        todo = [*arrows[start]]
        while todo:
            one = todo.pop()
            if one not in found:
                found.add(one)
                todo.extend(arrows[one])
        return found

    reached = {rank: reach(rank) for rank in arrows}
    awaited = {one for of in arrows.values() for one in of}
    return sorted(r for r in awaited if all(r in reached[o] for o in reached[r]))


def names_the_awaited(groups, entered, inside):
    return sorted({one for of in _arrows(groups, entered, inside).values() for one in of})


def names_who_is_outside(groups, entered, inside):
    return [rank for rank, call in inside.items() if call is None]


def names_who_waits(groups, entered, inside):
    return [rank for rank, of in _arrows(groups, entered, inside).items() if of]


def names_who_did_least(groups, entered, inside):
    done = {rank: sum(of.values()) for rank, of in entered.items()}
    return [rank for rank in done if done[rank] == min(done.values())]


def knows_no_circles(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    awaited = {one for of in arrows.values() for one in of}
    return sorted(rank for rank in awaited if not arrows[rank])


def names_all_ends(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    return sorted({rank for rank, of in arrows.items() if not of} | set(_ends(arrows)))


def waits_for_the_whole_group(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    for rank, call in inside.items():
        if call is not None and call[0] == "collective":
            arrows[rank] = set(groups[call[1]]) - {rank}
    return _ends(arrows)


def waits_for_equals(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    for rank, call in inside.items():
        if call is not None and call[0] == "collective":
            name = call[1]
            arrows[rank] = {
                r for r in groups[name] if r != rank and entered[r][name] <= entered[rank][name]
            }
    return _ends(arrows)


def forgives_one_call(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    for rank, call in inside.items():
        if call is not None and call[0] == "collective":
            name = call[1]
            arrows[rank] = {r for r in groups[name] if entered[r][name] < entered[rank][name] - 1}
    return _ends(arrows)


def forgets_messages(groups, entered, inside):
    calls = {r: c if c and c[0] == "collective" else None for r, c in inside.items()}
    return solution(groups, entered, calls)


def forgets_collectives(groups, entered, inside):
    calls = {r: c if c and c[0] != "collective" else None for r, c in inside.items()}
    return solution(groups, entered, calls)


def waits_in_a_message_under_way(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    for rank, call in inside.items():
        if call is not None and call[0] != "collective":
            arrows[rank] = {call[1]}
    return _ends(arrows)


def takes_any_receive(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    for rank, call in inside.items():
        meets = {"send": "recv", "recv": "send"}.get(call[0]) if call else None
        if meets and (inside[call[1]] or ("",))[0] == meets:
            arrows[rank] = set()
    return _ends(arrows)


def names_every_circle(groups, entered, inside):
    arrows = _arrows(groups, entered, inside)
    reached = {rank: set(of) for rank, of in arrows.items()}
    for _ in arrows:
        reached = {r: of.union(*(reached[o] for o in of)) for r, of in reached.items()}
    awaited = {one for of in arrows.values() for one in of}
    return sorted(r for r in awaited if not arrows[r] or r in reached[r])


def names_one(groups, entered, inside):
    return solution(groups, entered, inside)[:1]


def goes_one_step_only(groups, entered, inside):
    """The awaited of the awaited, and no further."""
    arrows = _arrows(groups, entered, inside)
    awaited = {one for of in arrows.values() for one in of}
    return sorted({two for one in awaited for two in (arrows[one] or {one})})


def names_the_most_awaited(groups, entered, inside):
    counts = Counter(one for of in _arrows(groups, entered, inside).values() for one in of)
    most = max(counts.values(), default=0)
    return sorted(rank for rank, count in counts.items() if count == most)


def names_a_sentence(groups, entered, inside):
    found = solution(groups, entered, inside)
    return f"ranks {found}"


def empties_what_it_was_given(groups, entered, inside):
    found = solution(groups, entered, inside)
    inside.clear()
    return found


def by_colours(groups, entered, inside):
    """Tarjan's components, and those that no arrow leaves."""
    arrows = _arrows(groups, entered, inside)
    number, low, stack, found, count = {}, {}, [], [], 0

    def visit(rank):
        nonlocal count
        number[rank] = low[rank] = count
        count += 1
        stack.append(rank)
        for other in arrows[rank]:
            if other not in number:
                visit(other)
                low[rank] = min(low[rank], low[other])
            elif other in stack:
                low[rank] = min(low[rank], number[other])
        if low[rank] == number[rank]:
            part = set()
            while rank not in part:
                part.add(stack.pop())
            found.append(part)

    for rank in arrows:
        if rank not in number:
            visit(rank)
    awaited = {one for of in arrows.values() for one in of}
    last = [part for part in found if all(arrows[r] <= part for r in part)]
    return tuple(sorted(r for part in last for r in part if r in awaited))


def by_matrices(groups, entered, inside):
    import torch

    ranks = sorted(inside)
    if not ranks:
        return []
    arrows = _arrows(groups, entered, inside)
    edge = torch.zeros(len(ranks), len(ranks))
    for i, rank in enumerate(ranks):
        for other in arrows[rank]:
            edge[i, ranks.index(other)] = 1
    reach = edge.clone()
    for _ in ranks:
        reach = ((reach + reach @ edge) > 0).float()
    end = ((reach > 0) <= (reach.T > 0)).all(1) & (edge.sum(0) > 0)
    return {ranks[i] for i in end.nonzero().flatten().tolist()}


MUTANTS = {
    names_the_awaited: "a rank that waits itself is no end",
    knows_no_circles: "two that wait for each other are an end",
    names_who_is_outside: "only to blame if somebody waits",
    names_who_waits: "these are the ranks that wait",
    names_who_did_least: "cannot be compared",
    names_all_ends: "ends at which nobody waits",
    waits_for_the_whole_group: "only for those that have not entered it",
    waits_for_equals: "who has entered the same call is not waited for",
    forgives_one_call: "one fewer included",
    forgets_messages: "messages are left out",
    forgets_collectives: "collectives are left out",
    waits_in_a_message_under_way: "is under way",
    takes_any_receive: "if each names the other rank",
    names_every_circle: "waits for somebody outside of it is no end",
    names_one: "there may be several",
    goes_one_step_only: "and should",
    names_the_most_awaited: "and should",
    names_a_sentence: "no list of ranks",
    empties_what_it_was_given: "it changed its input",
}
RIGHT = (by_colours, by_matrices)
