"""Exercise: what operators leave for their backward, to the byte (chapter 5, section 3).

Small programs, given as data. What is right is not derived here: the judge runs each program with
torch and adds up the storages that autograd really keeps. Only to name a mistake it has rules of
its own, each of which can be broken.
"""

import math
import random

import torch
import torch.nn.functional as F

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise


def my_saved_bytes(values, steps):
    raise NotImplementedError(f"{len(values)} values are given to {len(steps)} operators")


def solution(values, steps):
    import math

    def nbytes(of):
        return math.prod(of["shape"]) * of["itemsize"]

    known = {name: {**of, "home": name} for name, of in values.items()}  # home: whose storage
    size = {name: nbytes(of) for name, of in values.items()}  # of storages
    kept = {}
    for step in steps:
        operator, result = step["operator"], step["result"]
        operands = [known[name] for name in step["operands"]]
        grad = any(of["grad"] for of in operands)
        home = operands[0]["home"] if operator == "view" else result
        known[result] = {**step, "grad": grad, "home": home}
        size.setdefault(home, nbytes(step))
        old, new = [], {}
        if operator in ("linear", "bmm", "mul"):  # a gradient of one needs the other
            a, b = operands
            old = [b] * a["grad"] + [a] * b["grad"]
        elif operator in ("relu", "sigmoid", "softmax", "exp"):  # a derivative of the result
            old = [known[result]]
        elif operator in ("silu", "gelu", "square", "embedding"):  # of the input
            old = [operands[0]]
        elif operator == "dropout":
            new = {"mask": nbytes(step)}
        elif operator == "norm":
            old, new = operands[:2], {"statistics": 2 * nbytes(step) // step["shape"][-1]}
        elif operator == "attention":
            rows, width = math.prod(step["shape"][:-1]), max(4, step["itemsize"])
            old, new = [*operands, known[result]], {"log-sum-exp": rows * width}
        elif operator == "entropy":
            old = [operands[1]]
            new = {"log-softmax": nbytes(operands[0]), "weight": step["itemsize"]}
        if grad:
            kept |= {of["home"]: size[of["home"]] for of in old}
            kept |= {(result, what): bytes_of for what, bytes_of in new.items()}
    return sum(size for name, size in kept.items() if not values.get(name, {}).get("parameter"))


def judge(learner, attempt: Attempt) -> None:
    for about, inputs, program in _programs():
        attempt.setting(about)
        values, steps, kept = _run(inputs, program)
        answer = attempt.call(learner, {"values": values, "steps": steps})
        attempt.only()
        attempt.budget(count=0)
        if not _is_right(attempt, answer, values, steps, kept):
            return
        attempt.counts("bytes kept", answer, kept, kept, "bytes")


def _is_right(attempt: Attempt, answer, values, steps, kept: int) -> bool:
    if not attempt.require(
        isinstance(answer, int) and not isinstance(answer, bool),
        f"it returns {answer!r}; asked for is a number of bytes, as an int",
    ):
        return False
    if answer == kept:
        return True
    why, wholesale = (
        [says for says, rule in rules.items() if _derived(values, steps, rule) == answer]
        for rules in (_MISTAKES, _WHOLESALE)
    )
    why = why or wholesale
    text = f"it says {answer:,} bytes, and autograd keeps {kept:,}"
    operators = list(dict.fromkeys(step["operator"] for step in steps))
    of = f": {', or '.join(why[:2])}" if why else f" (of {', '.join(operators)})"
    return attempt.require(False, text + of)


# -- what is right: torch, asked


def _run(inputs: dict, program: list) -> tuple[dict, list, int]:
    """The program as data, and the bytes that autograd keeps when torch has run it."""
    tensors = {name: of for name, (of, _) in inputs.items()}
    values = {
        name: {**_form(of), "grad": of.requires_grad, "parameter": parameter}
        for name, (of, parameter) in inputs.items()
    }
    own = {of.untyped_storage().data_ptr() for of, parameter in inputs.values() if parameter}
    saved, steps = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        for result, operator, operands, *how in program:
            function = how[0] if how else OPERATORS[operator]
            tensors[result] = function(*(tensors[name] for name in operands))
            form = _form(tensors[result])
            steps.append({"operator": operator, "operands": operands, "result": result, **form})
    storages = [of.untyped_storage() for of in saved]  # (alive: no address is another's)
    sizes = {one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in own}
    return values, steps, sum(sizes.values())


def _form(tensor: torch.Tensor) -> dict:
    return {"shape": tuple(tensor.shape), "itemsize": tensor.itemsize}


OPERATORS = {
    "linear": F.linear,
    "bmm": torch.bmm,
    "add": torch.add,
    "mul": torch.mul,
    "scale": lambda x: x * 0.5,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: F.softmax(x, -1),
    "exp": torch.exp,
    "silu": F.silu,
    "gelu": F.gelu,
    "square": torch.square,
    "dropout": lambda x: F.dropout(x, 0.1, True),
    "norm": lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias),
    "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "entropy": F.cross_entropy,
    "embedding": F.embedding,
    "copy": torch.clone,
}
_POINTWISE = ("scale", "relu", "sigmoid", "softmax", "exp", "silu", "gelu", "square", "dropout")


def _given(*shape, dtype=torch.float32, grad=True):
    return torch.randn(shape).to(dtype).requires_grad_(grad), False


def _parameter(*shape, dtype=torch.float32, grad=True):
    return torch.randn(shape).to(dtype).requires_grad_(grad), True


def _labels(*shape, most):
    return torch.randint(0, most, shape), False


def _programs():
    """About, inputs: name -> (tensor, whether it is a parameter), and operators."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        bits = f"{dtype}"[6:]

        def given(*shape, grad=True, dtype=dtype):
            return _given(*shape, dtype=dtype, grad=grad)

        def parameter(*shape, grad=True, dtype=dtype):
            return _parameter(*shape, dtype=dtype, grad=grad)

        for name in (*_POINTWISE, "copy"):
            yield f"{name}, {bits}", {"x": given(5, 7)}, [("y", name, ("x",))]
        w = parameter(11, 7)
        yield f"linear, {bits}", {"x": given(5, 7), "w": w}, [_l("y", "x", "w")]
        of = {"x": given(5, 7, grad=False), "w": w}
        yield f"linear of text, which wants no gradient, {bits}", of, [_l("y", "x", "w")]
        of = {"x": given(5, 7), "w": parameter(11, 7, grad=False)}
        yield f"linear, its weight frozen, {bits}", of, [_l("y", "x", "w")]
        of = {"x": given(5, 7), "w": (*w[:1], False)}
        yield f"linear, by what is no parameter, {bits}", of, [_l("y", "x", "w")]
        of = {"a": given(3, 5, 7), "b": given(3, 7, 2)}
        yield f"bmm, {bits}", of, [("y", "bmm", ("a", "b"))]
        for grads in ((True, True), (True, False), (False, True), (False, False)):
            of = {name: given(6, 5, grad=g) for name, g in zip("ab", grads)}
            yield f"mul, gradients {grads}, {bits}", of, [("y", "mul", ("a", "b"))]
        of = {"a": given(6, 5), "b": given(1, 5)}
        yield f"mul by a row, {bits}", of, [("y", "mul", ("a", "b"))]
        yield f"mul by itself, {bits}", {"a": given(6, 5)}, [("y", "mul", ("a", "a"))]
        of = {"a": given(6, 5), "b": given(6, 5)}
        yield f"add, {bits}", of, [("y", "add", ("a", "b"))]
        yield f"norm, {bits}", {"x": given(5, 7), **_norm(parameter, 7)}, [_n("y", "x")]
        of = {"x": given(2, 3, 5, 7, grad=False), **_norm(parameter, 7)}
        yield f"norm of what wants no gradient, {bits}", of, [_n("y", "x")]
        of = {"x": given(5, 7, grad=False), **_norm(parameter, 7, grad=False)}
        yield f"norm, nothing wants a gradient, {bits}", of, [_n("y", "x")]
        of = {"x": given(5, 7), "g": given(7), "c": parameter(7)}  # (torch keeps the bias, too)
        yield f"norm by what is no parameter, {bits}", of, [_n("y", "x")]
        of = {"x": given(5, 7, grad=False), "g": given(7), "c": parameter(7)}
        yield f"norm of what wants no gradient by what is no parameter, {bits}", of, [_n("y", "x")]
        of = {name: given(2, 3, 5, 8) for name in "qkv"}
        yield f"attention, {bits}", of, [("y", "attention", ("q", "k", "v"))]
        of = {"q": given(2, 3, 5, 8), "k": given(2, 3, 9, 8), "v": given(2, 3, 9, 8)}
        yield (
            f"attention, more keys than queries, {bits}",
            of,
            [("y", "attention", ("q", "k", "v"))],
        )
        of = {"x": given(13, 11), "labels": _labels(13, most=11)}
        yield f"entropy, {bits}", of, [("y", "entropy", ("x", "labels"))]
        of = {"i": _labels(3, 5, most=11), "w": parameter(11, 7)}
        yield f"embedding, {bits}", of, [("y", "embedding", ("i", "w"))]
        of = {"i": _labels(3, 5, most=11), "w": given(11, 7)}
        yield f"embedding of what is no parameter, {bits}", of, [("y", "embedding", ("i", "w"))]
        yield f"no operator, {bits}", {"x": given(5, 7)}, []
        none = {"x": given(0, 7), "w": w}
        yield f"no tokens, {bits}", none, [_l("a", "x", "w"), _p("y", "relu", "a")]
        yield from _compositions(bits, given, parameter)
    yield from _random_ones()


def _l(result, x, w):
    return result, "linear", (x, w)


def _p(result, operator, x):
    return result, operator, (x,)


def _n(result, x):
    return result, "norm", (x, "g", "c")


def _norm(parameter, size, grad=True):
    return {"g": parameter(size, grad=grad), "c": parameter(size, grad=grad)}


def _v(result, x, how):
    return result, "view", (x,), how


def _columns(begin, end):
    return lambda x: x[..., begin:end]


def _compositions(bits, given, parameter):
    x, w = given(9, 6), parameter(14, 6)
    of = {"x": x, "w": w, "u": parameter(14, 6), "o": parameter(6, 14)}
    relu = [_l("a", "x", "w"), _p("b", "relu", "a"), _l("y", "b", "o")]
    yield f"linear, relu, linear, {bits}", of, relu
    silu = [_l("a", "x", "w"), _p("b", "silu", "a"), _l("y", "b", "o")]
    yield f"linear, silu, linear, {bits}", of, silu
    swiglu = [_l("a", "x", "w"), _l("b", "x", "u"), _p("s", "silu", "a"), ("m", "mul", ("s", "b"))]
    yield f"SwiGLU of two products, {bits}", of, [*swiglu, _l("y", "m", "o")]
    fused = {"x": x, "w": parameter(28, 6), "o": of["o"]}
    halves = [_l("h", "x", "w"), _v("a", "h", _columns(0, 14)), _v("b", "h", _columns(14, 28))]
    rest = [_p("s", "silu", "a"), ("m", "mul", ("s", "b")), _l("y", "m", "o")]
    yield f"SwiGLU of one product, {bits}", fused, [*halves, *rest]
    part = [_l("h", "x", "w"), _v("a", "h", _columns(3, 4)), _p("y", "square", "a")]
    yield f"one column of a product, {bits}", fused, part
    copied = [part[0], part[1], _p("b", "copy", "a"), _p("y", "square", "b")]
    yield f"a copy of one column, {bits}", fused, copied
    deep = [part[0], _v("a", "h", _columns(2, 9)), _v("b", "a", lambda t: t[1:3])]
    yield f"a view of a view, {bits}", fused, [*deep, _p("y", "gelu", "b")]
    turned = {"x": given(9, 14), "w": w}
    back = [_v("t", "w", torch.t), _l("y", "x", "t")]
    yield f"a weight that is turned round, {bits}", turned, back
    turned = {"x": x, "w": w, "i": _labels(4, most=14)}
    yield f"a head tied to the embedding, {bits}", turned, [
        ("e", "embedding", ("i", "w")), _p("s", "scale", "e"), _l("y", "s", "w"),
    ]  # fmt: skip
    yield f"a residual stream, {bits}", {**of, **_norm(parameter, 6)}, [
        _n("n", "x"), *(_l("a", "n", "w"), _p("b", "gelu", "a"), _l("d", "b", "o")),
        _p("e", "dropout", "d"), ("r", "add", ("x", "e")), _n("y", "r"),
    ]  # fmt: skip
    qkv = {"x": given(2, 5, 12), "w": parameter(36, 12)}

    def heads(begin):
        return lambda t: t[..., begin : begin + 12].view(2, 5, 3, 4).transpose(1, 2)

    split = [_l("h", "x", "w"), *(_v(n, "h", heads(12 * i)) for i, n in enumerate("qkv"))]
    yield f"attention of one product's views, {bits}", qkv, [
        *split, ("y", "attention", ("q", "k", "v"))]  # fmt: skip
    rotated = [*split, _p("r", "scale", "q"), _p("l", "scale", "k")]
    yield f"attention, queries and keys changed, values a view, {bits}", qkv, [
        *rotated, ("y", "attention", ("r", "l", "v"))]  # fmt: skip
    scores = {name: given(3, 5, 4) for name in "qkv"}
    yield f"attention by hand, {bits}", scores, [
        _v("t", "k", lambda k: k.transpose(1, 2)), ("s", "bmm", ("q", "t")), _p("c", "scale", "s"),
        _p("p", "softmax", "c"), ("y", "bmm", ("p", "v")),
    ]  # fmt: skip
    mask = {"x": x, "m": (torch.rand(9, 6) > 0.5, False)}
    yield f"a mask of one byte a number, {bits}", mask, [("y", "mul", ("x", "m"))]
    loss = {"x": x, "w": w, "labels": _labels(9, most=14)}
    yield f"head and loss, {bits}", loss, [_l("z", "x", "w"), ("y", "entropy", ("z", "labels"))]
    part_of = [_l("z", "x", "w"), _v("a", "z", _columns(0, 13)), ("y", "entropy", ("a", "few"))]
    few = {"x": x, "w": w, "few": _labels(9, most=13)}
    yield f"a loss over some columns, {bits}", few, part_of


def _random_ones():
    draw = random.Random(5)
    for number in range(40):
        shape = draw.choice([(3, 5), (7, 1), (2, 11), (1, 1), (4, 8)])
        dtype = draw.choice([torch.float32, torch.bfloat16, torch.float64])
        grads = [draw.random() < 0.7 for _ in range(3)]
        inputs = {n: _given(*shape, dtype=dtype, grad=g) for n, g in zip("abc", grads)}
        inputs["p"] = _parameter(*shape, dtype=dtype)
        names, program = list(inputs), []
        for i in range(draw.randint(3, 12)):
            operator = draw.choice((*_POINTWISE, "mul", "mul", "add", "view", "copy"))
            operands = (draw.choice(names), draw.choice(names))
            new = f"t{i}"
            if operator == "view":
                program.append(_v(new, operands[0], lambda t: t.view_as(t)))
            else:
                program.append((new, operator, operands[: 1 + (operator in ("mul", "add"))]))
            names.append(new)
        yield f"{len(program)} operators drawn at random, program {number}", inputs, program


# -- what a mistake gives


def _derived(values, steps, mistake: str = "") -> int:
    """By rules, one of which may be broken."""
    known = {name: dict(of, home=name) for name, of in values.items()}
    size = {name: _nbytes(of) for name, of in values.items()}
    if mistake == "all want gradients":
        known = {name: dict(of, grad=True) for name, of in known.items()}
    kept: list[tuple] = []
    for step in steps:
        operator, result, operands = step["operator"], step["result"], step["operands"]
        own = mistake != "views are apart" and operator == "view"
        home = known[operands[0]]["home"] if own else result
        grad = any(known[name]["grad"] for name in operands)
        known[result] = dict(step, grad=grad, home=home)
        size.setdefault(home, _nbytes(step))
        if not grad and mistake != "no gradient":
            continue
        old, new = _needs(step, known, mistake)
        whole = mistake != "a part is enough"
        kept += [
            (known[n]["home"], size[known[n]["home"]] if whole else _nbytes(known[n])) for n in old
        ]
        kept += [((result, what), nbytes) for what, nbytes in new.items()]
    if mistake == "parameters too":
        parameters = ()
    else:
        parameters = {name for name, of in values.items() if of["parameter"]}
    if mistake == "constants never":
        parameters = {*parameters, *(name for name, of in values.items() if not of["grad"])}
    if mistake == "leaves never":
        parameters = {*parameters, *(name for name, of in values.items() if of["grad"])}
    kept = [(name, nbytes) for name, nbytes in kept if name not in parameters]
    return sum(n for _, n in (kept if mistake == "as often as kept" else set(kept)))


def _nbytes(of) -> int:
    return math.prod(of["shape"]) * of["itemsize"]


def _needs(step, known, mistake: str) -> tuple[list[str], dict[str, int]]:
    """Names that are kept, and what is made to be kept."""
    operator, result, operands = step["operator"], step["result"], list(step["operands"])
    if mistake == "all results":
        return [result], {}
    if mistake == "all inputs":
        return operands, {}
    if operator in ("linear", "bmm", "mul"):
        a, b = operands
        if mistake == "itself":
            return [a] * known[a]["grad"] + [b] * known[b]["grad"], {}
        if mistake == "no gradient":
            return [a, b], {}
        if mistake == "weights never" and operator == "linear":
            return [a] * known[b]["grad"], {}
        return [b] * known[a]["grad"] + [a] * known[b]["grad"], {}
    by_result, by_input = operator in _BY_RESULT, operator in _BY_INPUT
    if by_result or by_input:
        by_result = (by_result or mistake == "by result") and mistake != "by input"
        return [result] if by_result else operands[:1], {}
    if operator == "dropout":
        return [], {"mask": _nbytes(step) // (step["itemsize"] if mistake == "small masks" else 1)}
    if operator == "norm":
        rows = math.prod(step["shape"][:-1])
        each = 4 if mistake == "all statistics fp32" else step["itemsize"]
        new = {"mean": rows * each, "1/deviation": rows * each}
        if mistake == "one statistic":
            del new["mean"]
        old = operands[: 1 if mistake == "weights never" else 2]
        return old, {} if mistake == "no statistics" else new
    if operator == "attention":
        rows = math.prod(step["shape"][:-1])
        each = {"all statistics fp32": 4, "statistics as wide": step["itemsize"]}.get(mistake)
        if mistake == "a row of the keys":
            rows = math.prod(known[operands[1]]["shape"][:-1])
        new = {"log-sum-exp": rows * (each or max(4, step["itemsize"]))}
        if mistake == "scores":
            new = {"scores": rows * step["shape"][-2] * step["itemsize"]}
        if mistake == "no statistics":
            new = {}
        without = mistake in ("scores", "no result")
        return [*operands, *([] if without else [result])], new
    if operator == "entropy":
        new = {"log-softmax": _nbytes(known[operands[0]]), "weight": step["itemsize"]}
        if mistake == "no sum of weights":
            del new["weight"]
        if mistake == "logits too":
            return operands, new
        return [] if mistake == "no labels" else operands[1:], new
    if operator == "embedding":
        tables = mistake == "tables too"
        return [] if mistake == "no labels" else operands[: 1 + tables], {}
    return [], {}


_BY_RESULT, _BY_INPUT = ("relu", "sigmoid", "softmax", "exp"), ("silu", "gelu", "square")
_MISTAKES = {
    "a view has no memory of its own, and keeps all of the storage that it is of": (
        "views are apart"
    ),
    "a view of a part keeps the whole storage": "a part is enough",
    "a storage that several operators keep is there once": "as often as kept",
    "parameters are there anyway, and are not counted, nor views of them": "parameters too",
    "where no operand wants a gradient nothing is kept": "no gradient",
    "an operand is kept only where the other one wants a gradient": "all want gradients",
    "of a product each one's gradient needs the other, not itself": "itself",
    "what wants no gradient itself is kept where another's gradient needs it": "constants never",
    "silu, gelu and square need their input again, not their result": "by result",
    "relu, sigmoid, softmax and exp need their result, and not their input": "by input",
    "here the mask of dropout is as wide as the numbers": "small masks",
    "the statistics of norm and of attention are kept, too": "no statistics",
    "fused attention keeps no scores; it keeps its result and a log-sum-exp a row": "scores",
    "labels and indices are needed again, and kept": "no labels",
    "norm keeps two numbers a row": "one statistic",
    "norm's statistics are as wide as its numbers here, a log-sum-exp too where those are wider "
    "than 4 bytes": "all statistics fp32",
    "a log-sum-exp has 4 bytes at least": "statistics as wide",
    "log-sum-exps are one a row of the result, as many as queries": "a row of the keys",
    "fused attention keeps its result, too": "no result",
    "entropy keeps a sum of weights beside, one number of the result's": "no sum of weights",
    "entropy keeps its log-softmax, and needs the logits not again": "logits too",
    "a weight is left out because it is a parameter, else it counts": "weights never",
    "what is given and wants a gradient counts, unless it is a parameter": "leaves never",
    "an embedding needs its indices again, not its table": "tables too",
}
_WHOLESALE = {  # (which much else may give, too)
    "that is every operator's result, whether its backward needs it or not": "all results",
    "that is every operator's input, whether its backward needs it or not": "all inputs",
}


EXERCISE = Exercise(
    id="memory.saved.operator",
    goal="Work out how many bytes autograd keeps for the backward pass of a small program, before "
    "it is run: of every operator what its derivative needs, each storage once, no parameters.",
    interface="`my_saved_bytes(values, steps)` returns the bytes, an int. `values[name]`, given "
    "from outside: a dict with 'shape', 'itemsize' (bytes of a number), 'grad' (does it want a "
    "gradient?) and 'parameter'. `steps`: a list of operators in order, each a dict with "
    "'operator', 'operands' (names), 'result' (a new name), and the result's 'shape' and "
    "'itemsize'. A result wants a gradient if any operand does; where none does nothing is kept. "
    "linear(x, weight), bmm(a, b), mul(a, b) (may broadcast), add(a, b), scale (by a constant), "
    "relu, sigmoid, softmax, exp, silu, gelu, square, embedding(indices, weight), view (any: some "
    "columns, turned round; shares its operand's storage), copy. norm(x, weight, bias) is a fused "
    "layer norm: a mean and a 1/deviation a row, as wide as its numbers (on a GPU fp32). "
    "attention(q, k, v) is fused, as flash: no scores, and a log-sum-exp a row of the result, of 4 "
    "bytes or the itemsize, whichever is more. entropy(logits, labels) is the mean cross-entropy: "
    "log-softmax first, then it picks; torch keeps a sum of weights beside, one number of the "
    "result's. dropout keeps what it multiplies by, on a CPU as wide as the numbers (on a GPU one "
    "byte). norm, attention and entropy keep all of it where any operand wants a gradient.",
    budget="To the byte, for every program; nothing is sent.",
    hints=(
        "Write down the derivative of each operator. Which of its letters are numbers of the "
        "forward pass: an operand, the result, or neither? Of a product of two, each one's "
        "gradient has the *other* in it, and is only asked for where it is wanted.",
        "A name is not a storage. Give each name a home: its own, or its operand's home if it is "
        "a view. Collect homes in a set or a dict, with the bytes of the whole storage; in the end "
        "leave out those whose home is a parameter.",
        "relu, sigmoid, softmax, exp: the result. silu, gelu, square, embedding: the first "
        "operand. add, scale, view, copy: nothing. norm: x, its weight and two numbers a row. "
        "attention: q, k, v, the result and its log-sum-exps. entropy: log-softmax (as large as "
        "the logits' own numbers), labels, one number; the logits are not needed again.",
    ),
    stub_function=my_saved_bytes,
    solution_function=solution,
    why="Nothing is kept because it was computed; it is kept because a derivative has it in it. So "
    "a sum costs nothing, a product both sides, relu no more than what the next product keeps "
    "anyway, and silu one tensor more; that is why the tables in print differ by architecture. "
    "What is kept is a *storage*: values that are a third of one fused product keep all of it, "
    "which is `attention.qkv` in `pico.costs.saved_bytes`. A fused operator keeps what its kernel "
    "was written to keep: attention without scores has s numbers a head where it had s*s (arXiv "
    "2205.14135; the table of operators: 2205.05198, section 4).",
    judge=judge,
    cases=(Case("dp1", "small programs"),),
    blocked=("picolab.costs.saved.saved_bytes",),
)
