"""Of each exercise the nearest that the chapter's cells have, as ../test_given_away.py asks."""

import gc
import json
import math
import weakref
from collections import defaultdict
from functools import reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import picolab as pico
from picolab.memory.scheduler import Cost, Measured

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "05_memory.ipynb"


def cell(cell_id: str, until: str = "\n\n\n#", **known) -> dict:
    """The names that this cell defines. known: what cells before it have defined."""
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    (text,) = ("".join(cell["source"]) for cell in cells if cell["id"] == cell_id)
    names = {
        "__name__": "__main__", "pico": pico, "torch": torch, "math": math, "F": F,
        "weakref": weakref, "defaultdict": defaultdict, "tree_leaves": tree_leaves,
        "TorchDispatchMode": TorchDispatchMode,
    }  # fmt: skip
    names |= known
    exec(compile(text.partition(until)[0], "chapter", "exec"), names)
    return names


OPERATORS = {
    "linear": F.linear, "bmm": torch.bmm, "add": torch.add, "mul": torch.mul, "relu": F.relu,
    "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(-1), "exp": torch.exp,
    "silu": F.silu, "gelu": F.gelu, "square": torch.square, "copy": torch.clone,
    "scale": lambda x: x * 0.5, "dropout": lambda x: F.dropout(x, 0.1, True),
    "norm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
    "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
}  # fmt: skip


def hooks():
    """Section 3 asks autograd, operator by operator, and counts what it puts away."""
    kept_by = cell("saved-hooks")["kept_by"]

    def adapted(values, steps):
        dtypes = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
        total, form = 0, dict(values)
        for step in steps:
            if step["operator"] in OPERATORS:
                given = [
                    torch.zeros(form[name]["shape"], dtype=dtypes[form[name]["itemsize"]])
                    .requires_grad_(form[name]["grad"])
                    for name in step["operands"]
                ]  # fmt: skip
                total += sum(kept_by(OPERATORS[step["operator"]], *given)) * step["itemsize"]
            grad = any(form[name]["grad"] for name in step["operands"])
            form[step["result"]] = {**step, "grad": grad}
        return total

    return adapted


def run_again():
    """Section 4's function, with the other inputs bound."""
    function_of = cell("again-by-hand")["Again"]

    def adapted(function, inputs):
        at = next(i for i, one in enumerate(inputs) if getattr(one, "requires_grad", False))

        def of_one(x):
            return function(*inputs[:at], x, *inputs[at + 1 :])

        return function_of.apply(of_one, inputs[at])

    return adapted


def sent_away():
    """Section 5's hooks, over the memory that is given."""
    away_type = cell("away-by-hand")["Away"]

    def adapted(blocks, x, far, stays):
        class Away(away_type):
            def pack(self, tensor):
                storage = tensor.contiguous().clone().untyped_storage()
                return far.put(storage), tensor.dtype, tensor.shape

            def unpack(self, packed):
                ticket, dtype, shape = packed
                far.fetch(ticket)
                near = torch.empty(0, dtype=dtype).set_(far.take(ticket))
                far.free(ticket)
                return near[: math.prod(shape)].view(shape)

        with Away(None).hooks():
            return reduce(lambda x, block: block(x), blocks, x)

    return adapted


def pool_by_size():
    """Section 5's pool, whose buffers are slabs."""
    by_size = cell("pool-by-hand")["BySize"]

    def adapted(cap, least, source):
        class Pool(by_size):
            def lease(self, nbytes):
                size = least
                while size < nbytes:
                    size *= 2
                slab = self.idle[size].pop() if self.idle[size] else source.take(size)
                return Lease(self, slab)

        class Lease:
            def __init__(self, pool, slab):
                self.pool, self.slab = pool, slab

            def free(self, after=None):
                self.pool.idle[self.slab.size].append(self.slab)
                self.slab = None

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.free()

        return Pool()

    return adapted


def measured(blocks, end, pool) -> Measured:
    costs = [
        {choice: Cost(kept, work, us * 1e-6) for choice, (kept, work, us) in block.items()}
        for block in blocks
    ]
    return Measured(tuple(costs), end=end, pool=pool)


def greedy():
    """Section 6's rule."""
    rule = cell("plan-greedy")["greedy"]

    def adapted(blocks, end, pool, budget):
        if any("keep" not in block for block in blocks):
            return [next(iter(block)) for block in blocks]
        chosen = rule(measured(blocks, end, pool), budget)
        if chosen is None:
            raise ValueError(f"{budget} is too little")
        return chosen

    return adapted


def scheduler():
    """The package's, which the chapter calls: blocked."""

    def adapted(blocks, end, pool, budget):
        return list(pico.memory.MemoryScheduler(measured(blocks, end, pool)).choose(budget).choices)

    return adapted


def collected():
    """What section 7's ranks do: full passes by the step's number alone."""

    def adapted(step, steps, every, growth):
        passes = []
        gc.disable()
        gc.collect()
        for i in range(steps):
            step(i)
            if (i + 1) % every == 0:
                gc.collect()
                passes.append(i)
        gc.enable()
        return passes

    return adapted


NEAREST = {
    "memory.saved.operator": [hooks],
    "memory.checkpoint.function": [run_again],
    "memory.offload.hooks": [sent_away],
    "memory.pool.lease": [pool_by_size],
    "memory.plan.knapsack": [greedy, scheduler],
    "memory.collect.aligned": [collected],
}
