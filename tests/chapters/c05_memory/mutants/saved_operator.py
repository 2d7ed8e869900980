"""Wrong answers to memory.saved.operator, what each author must be told, and right ones."""

import math

import torch

from picolab.chapters.c05_memory.saved_operator import OPERATORS, solution


def _nbytes(of):
    return math.prod(of["shape"]) * of["itemsize"]


def _with(values, **changes):
    return {name: {**of, **changes} for name, of in values.items()}


def views_are_apart(values, steps):
    """A view counts with its own numbers, as if it were a copy."""
    apart = [{**s, "operator": "copy"} if s["operator"] == "view" else s for s in steps]
    return solution(values, apart)


def parameters_too(values, steps):
    return solution(_with(values, parameter=False), steps)


def every_result(values, steps):
    """What the forward makes is what the backward needs."""
    wanted, total = {name for name, of in values.items() if of["grad"]}, 0
    for step in steps:
        if wanted & set(step["operands"]):
            wanted.add(step["result"])
            total += _nbytes(step) if step["operator"] != "view" else 0
    return total


def every_input(values, steps):
    known = dict(values) | {step["result"]: step for step in steps}
    names = {name for step in steps for name in step["operands"]}
    return sum(_nbytes(known[n]) for n in names if not known[n].get("parameter"))


def whatever_wants_gradients(values, steps):
    """Each product keeps both sides."""
    return solution(_with(values, grad=True), steps)


def only_what_wants_gradients(values, steps):
    """Masks, labels and text are taken to be there anyway."""
    constants = {name: {**of, "parameter": not of["grad"]} for name, of in values.items()}
    parameters = {name: {**of, "parameter": True} for name, of in values.items() if of["parameter"]}
    return solution(constants | parameters, steps)


def bf16_is_fp32(values, steps):
    """Four bytes a number, where two would do."""
    wide = {name: {**of, "itemsize": _wide(of)} for name, of in values.items()}
    return solution(wide, [{**step, "itemsize": _wide(step)} for step in steps])


def _wide(of):
    return 4 if of["itemsize"] == 2 else of["itemsize"]


def relu_keeps_its_input(values, steps):
    names = ("relu", "sigmoid", "softmax", "exp")
    return solution(
        values, [{**s, "operator": "silu"} if s["operator"] in names else s for s in steps]
    )


def silu_keeps_its_result(values, steps):
    names = ("silu", "gelu", "square")
    return solution(
        values, [{**s, "operator": "relu"} if s["operator"] in names else s for s in steps]
    )


def _more(values, steps, operator, change):
    """The solution, and something for each operator of this name that is followed."""
    total, wanted = solution(values, steps), {n for n, of in values.items() if of["grad"]}
    for step in steps:
        if wanted & set(step["operands"]):
            wanted.add(step["result"])
            total += change(step) if step["operator"] == operator else 0
    return total


def no_statistics(values, steps):
    return _more(
        values, steps, "norm", lambda step: -2 * math.prod(step["shape"][:-1]) * step["itemsize"]
    )


def attention_with_scores(values, steps):
    def change(step):
        rows, width = math.prod(step["shape"][:-1]), step["itemsize"]
        return rows * step["shape"][-2] * width - rows * max(4, width) - _nbytes(step)

    return _more(values, steps, "attention", change)


def statistics_in_fp32(values, steps):
    """As on a GPU."""

    def change(step):
        return 2 * math.prod(step["shape"][:-1]) * (4 - step["itemsize"])

    return _more(values, steps, "norm", change)


def masks_of_a_byte(values, steps):
    return _more(values, steps, "dropout", lambda s: math.prod(s["shape"]) * (1 - s["itemsize"]))


def labels_forgotten(values, steps):
    labels = {step["operands"][1] for step in steps if step["operator"] == "entropy"}
    labels |= {step["operands"][0] for step in steps if step["operator"] == "embedding"}
    known = {n: {**of, "parameter": of["parameter"] or n in labels} for n, of in values.items()}
    return solution(known, steps)


def logits_too(values, steps):
    known = dict(values) | {step["result"]: step for step in steps}
    return _more(values, steps, "entropy", lambda step: _nbytes(known[step["operands"][0]]))


def _measured(values, steps, count):
    """Run it, and ask hooks. (A view is made up: any of the right storage will do.)"""
    tensors = {}
    for name, of in values.items():
        dtype = {1: torch.bool, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
        tensor = torch.ones(of["shape"], dtype=dtype[of["itemsize"]])
        uses = {(s["operator"], s["operands"].index(name)) for s in steps if name in s["operands"]}
        if ("entropy", 1) in uses or ("embedding", 0) in uses:
            tensor = torch.zeros(of["shape"], dtype=torch.int64)
        tensors[name] = tensor.requires_grad_(of["grad"]) if of["grad"] else tensor
    own = {tensors[n].untyped_storage().data_ptr() for n, of in values.items() if of["parameter"]}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        for step in steps:
            operands = [tensors[name] for name in step["operands"]]
            if step["operator"] == "view":
                shape, (x,) = step["shape"], operands
                made = x.flatten()[: math.prod(shape)].view(shape) if x.is_contiguous() else x
                tensors[step["result"]] = made if made.shape == shape else _other(x, shape)
            else:
                tensors[step["result"]] = OPERATORS[step["operator"]](*operands)
    return count(saved, own, [tensors[n] for n, of in values.items() if of["parameter"]])


def _other(x, shape):
    return x.as_strided(shape, x.stride() if len(shape) == x.ndim else (0,) * len(shape))


def hooks_that_count_tensors(values, steps):
    """Each saved tensor by its own numbers, however often it is kept."""

    def count(saved, own, parameters):
        return sum(t.nbytes for t in saved if t.untyped_storage().data_ptr() not in own)

    return _measured(values, steps, count)


def hooks_that_know_parameters_by_name(values, steps):
    """A parameter is known as an object: and `weight.t()` is another."""

    def count(saved, own, parameters):
        kept = [t for t in saved if not any(t is p for p in parameters)]
        storages = [t.untyped_storage() for t in kept]
        return sum({one.data_ptr(): one.nbytes() for one in storages}.values())

    return _measured(values, steps, count)


def norm_without_its_weight(values, steps):
    """As if a norm's weight were always a parameter."""
    return solution(_parameters(values, steps, "norm"), steps)


def _parameters(values, steps, operator):
    """With the second operands of all of these as parameters."""
    named = {step["operands"][1] for step in steps if step["operator"] == operator}
    return {n: {**of, "parameter": of["parameter"] or n in named} for n, of in values.items()}


def embedding_keeps_its_table(values, steps):
    tables = {step["operands"][1] for step in steps if step["operator"] == "embedding"}
    given = [values[name] for name in tables if not values[name]["parameter"]]
    return solution(values, steps) + sum(map(_nbytes, given))


def a_log_sum_exp_for_each_key(values, steps):
    known = dict(values) | {step["result"]: step for step in steps}

    def change(step):
        keys = known[step["operands"][1]]["shape"][:-1]
        return (math.prod(keys) - math.prod(step["shape"][:-1])) * max(4, step["itemsize"])

    return _more(values, steps, "attention", change)


def in_megabytes(values, steps):
    return solution(values, steps) / 1e6


def as_a_list(values, steps):
    return [solution(values, steps)]


def copies_are_kept(values, steps):
    return _more(values, steps, "copy", _nbytes)


MUTANTS = {
    views_are_apart: "keeps all of the storage that it is of",
    parameters_too: "parameters are there anyway",
    every_result: "every operator's result",
    every_input: "every operator's input",
    whatever_wants_gradients: "only where the other one wants a gradient",
    only_what_wants_gradients: "what wants no gradient itself is kept",
    bf16_is_fp32: "bfloat16",
    relu_keeps_its_input: "need their result, and not their input",
    silu_keeps_its_result: "need their input again, not their result",
    no_statistics: "the statistics of norm and of attention are kept",
    attention_with_scores: "fused attention keeps no scores",
    statistics_in_fp32: "as wide as its numbers here",
    masks_of_a_byte: "the mask of dropout is as wide",
    labels_forgotten: "labels and indices are needed again",
    logits_too: "needs the logits not again",
    hooks_that_count_tensors: "a storage that several operators keep is there once",
    hooks_that_know_parameters_by_name: "parameters are there anyway",
    in_megabytes: "asked for is a number of bytes, as an int",
    as_a_list: "asked for is a number of bytes, as an int",
    copies_are_kept: "on 1 ranks, copy",
    norm_without_its_weight: "because it is a parameter, else it counts",
    embedding_keeps_its_table: "its indices again, not its table",
    a_log_sum_exp_for_each_key: "one a row of the result, as many as queries",
}


def by_a_table(values, steps):
    """Operator -> which operands, whether the result, and what is made, as functions."""
    rows = lambda s: math.prod(s["shape"][:-1])  # noqa: E731
    table = {
        **dict.fromkeys(("relu", "sigmoid", "softmax", "exp"), ((), True, None)),
        **dict.fromkeys(("silu", "gelu", "square", "embedding"), ((0,), False, None)),
        "dropout": ((), False, lambda s, _: _nbytes(s)),
        "norm": ((0, 1), False, lambda s, _: 2 * rows(s) * s["itemsize"]),
        "attention": ((0, 1, 2), True, lambda s, _: rows(s) * max(4, s["itemsize"])),
        "entropy": ((1,), False, lambda s, logits: _nbytes(logits) + s["itemsize"]),
    }
    home, of, follows, kept, made = {}, dict(values), {}, set(), 0
    for name in values:
        home[name], follows[name] = name, values[name]["grad"]
    for step in steps:
        name, operands = step["result"], step["operands"]
        of[name], follows[name] = step, any(follows[o] for o in operands)
        home[name] = home[operands[0]] if step["operator"] == "view" else name
        if step["operator"] in ("linear", "bmm", "mul"):
            kept |= {home[operands[1 - i]] for i in (0, 1) if follows[operands[i]]}
        elif follows[name] and step["operator"] in table:
            which, result, new = table[step["operator"]]
            kept |= {home[operands[i]] for i in which} | ({name} if result else set())
            made += new(step, of[operands[0]]) if new else 0
    return made + sum(_nbytes(of[n]) for n in kept if not of[n].get("parameter"))


def by_liveness(values, steps):
    """Backwards in mind: a list of (storage, bytes) for each operator, as autograd's nodes."""
    homes = {name: (name, _nbytes(of), of["parameter"]) for name, of in values.items()}
    wants = {name: of["grad"] for name, of in values.items()}
    own = {name: _nbytes(of) for name, of in values.items()}
    graph = []
    for i, step in enumerate(steps):
        kind, names, result = step["operator"], step["operands"], step["result"]
        wants[result], own[result] = any(map(wants.get, names)), _nbytes(step)
        homes[result] = homes[names[0]] if kind == "view" else (result, _nbytes(step), False)
        node = []
        if kind in ("linear", "bmm", "mul"):
            node += [homes[names[1]]] if wants[names[0]] else []
            node += [homes[names[0]]] if wants[names[1]] else []
        elif wants[result]:
            if kind in ("silu", "gelu", "square", "embedding", "norm"):
                node += [homes[name] for name in names[: 1 + (kind == "norm")]]
            if kind in ("relu", "sigmoid", "softmax", "exp", "attention"):
                node.append(homes[result])
            if kind == "attention":
                node += [homes[name] for name in names]
                each = max(4, step["itemsize"])
                node.append((i, _nbytes(step) // step["itemsize"] // step["shape"][-1] * each, 0))
            if kind == "dropout":
                node.append((i, _nbytes(step), False))
            if kind == "norm":
                node.append((i, 2 * _nbytes(step) // step["shape"][-1], False))
            if kind == "entropy":
                node += [homes[names[1]], (i, own[names[0]] + step["itemsize"], False)]
        graph += node
    return sum(nbytes for _, nbytes, parameter in set(graph) if not parameter)


RIGHT = (by_a_table, by_liveness)
