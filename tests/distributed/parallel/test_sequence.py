"""Sequence parallelism computes what one process computes, sends what tensor parallelism sends, and
keeps less.

The wrong versions this file catches, each run below: gradients of the norms that are not summed
over the ranks of tp (the loss is right and stays nearly right; Megatron-LM issue 1446), or are
averaged, or summed once a micro-batch; an input gradient whose own part is taken without summing;
a formula for the memory that is off by one norm. (That the bytes on the wire are equal is asserted
in tests/distributed/test_formula_ledger.py.)
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import picolab as pico
from picolab import comm, costs
from picolab.model import Transformer
from picolab.parallel import column_linear, gather, gather_linear, parallelize, scatter_sum
from picolab.specs import Layout, ModelConfig

CONFIG = ModelConfig(hidden=32, ffn=48, layers=3, heads=8, kv_heads=4, vocab=40, seq=16, tied=True)
ROWS, MICRO_BATCHES, STEPS = 4, 3, 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def train(layout, dtype=torch.float64, steps=STEPS, inputs="keep"):
    """Loss and norm of every step, the first gradients, the last parameters; one's own norms."""
    layout = Layout.parse(layout)
    model = Transformer(CONFIG, dtype=dtype)
    parallel = parallelize(model, layout, seed=7, bucket_bytes=4000, sp_inputs=inputs)
    optimizer = torch.optim.AdamW(parallel.model.parameters(), lr=1e-2, eps=1e-5)
    replica = comm.mesh().rank("dp") if layout.dp > 1 else 0
    found = {"loss": [], "norm": []}
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        shape = (MICRO_BATCHES, ROWS, CONFIG.seq)
        tokens, labels = torch.randint(CONFIG.vocab, (2, *shape), generator=generator)
        labels[torch.rand(shape, generator=generator) < 0.4] = -100
        tokens, labels = (x.chunk(layout.dp, dim=1)[replica] for x in (tokens, labels))
        found["loss"].append(float(parallel.forward_backward(tokens, labels)))
        if step == 0:
            found["gradients"] = parallel.gradients()
        found["norm"].append(parallel.clip(0.5))
        optimizer.step()
        parallel.zero_grad()
    found["state"] = parallel.state_dict()
    found["own norms"] = {
        name: parameter.detach()
        for name, parameter in parallel.model.named_parameters()
        if parameter.dim() == 1
    }
    return found


def differences(found, expected):
    """Of each kind, the largest difference relative to the number or to the tensor's norm."""
    worst = {}
    for kind in ("loss", "norm"):
        pairs = zip(found[kind], expected[kind], strict=True)
        worst[kind] = max(abs(a - b) / abs(b) for a, b in pairs)
    for kind in ("gradients", "state"):
        assert found[kind].keys() == expected[kind].keys()
        worst[kind] = max(
            float((found[kind][name] - whole).norm() / whole.norm())
            for name, whole in expected[kind].items()
        )
    return worst


LAYOUTS = {
    2: ["tp2sp"],
    4: ["tp4sp", "dp2tp2sp", "tp2pp2sp", "tp2cp2sp"],
    8: ["dp2tp2pp2sp", "tp2pp2cp2sp", "dp2tp2cp2sp"],
}


@pytest.fixture(scope="module")
def expected():
    return {dtype: train("dp1", dtype) for dtype in TOLERANCE}


def check(ranks, layouts, expected):
    for layout in layouts:
        for rank in ranks:
            for dtype, found in rank[layout].items():
                worst = differences(found, expected[dtype])
                if dtype is torch.float32:
                    del worst["state"]  # Adam divides small gradients by themselves
                assert max(worst.values()) < TOLERANCE[dtype], (layout, dtype, worst)


def all_of(layouts, dtypes):
    return {layout: {dtype: train(layout, dtype) for dtype in dtypes} for layout in layouts}


@pytest.mark.parametrize("world", [2, 4, pytest.param(8, marks=pytest.mark.weekly)])
def test_a_layout_with_sp_equals_one_process(expected, world):
    dtypes = list(TOLERANCE) if world == 2 else [torch.float64]
    ranks = pico.run(all_of, LAYOUTS[world], dtypes, world_size=world)
    check(ranks, LAYOUTS[world], expected)
    for layout in LAYOUTS[world]:
        tp = Layout.parse(layout).tp
        for first in range(0, world, tp):
            for other in range(first + 1, first + tp):
                one, two = (ranks[i][layout][torch.float64]["own norms"] for i in (first, other))
                # Replicas are the same to the bit: they were updated with the same sums.
                assert all(torch.equal(one[name], two[name]) for name in one), layout


# Mutants: each patches one line of the rank's picolab and trains as above.


def norm_gradients_not_summed():
    from picolab.parallel import tensor

    tensor.TensorParallelOptimizer.sum_norm_gradients = lambda self, parameters: None


def norm_gradients_averaged():
    all_reduce = comm.all_reduce

    def averaging(x, axis, reason, **options):
        x = all_reduce(x, axis, reason, **options)
        return x.div_(2) if reason == "sp: gradients of the norms" else x

    comm.all_reduce = averaging


def norm_gradients_summed_every_micro_batch():
    from contextlib import contextmanager

    from picolab.parallel import three_d

    @contextmanager
    def no_sync(self):
        yield
        self.placements[0].sum_norm_gradients()

    three_d.ThreeDParallelOptimizer.no_sync = no_sync


def input_gradient_not_summed():
    reduce_scatter = comm.reduce_scatter

    def own_part(x, axis, reason, dim=0, async_op=False):
        if reason == "sp: scatter input gradient":
            mine = x.chunk(2, dim)[comm.mesh().rank(axis)].contiguous()
            return comm.Pending(None, mine, 0.0, ())
        return reduce_scatter(x, axis, reason, dim=dim, async_op=async_op)

    comm.reduce_scatter = own_part


def mutated(mutant):
    mutant()
    return train("tp2sp", steps=1)


@pytest.mark.parametrize(
    "mutant",
    [
        norm_gradients_not_summed,
        norm_gradients_averaged,
        norm_gradients_summed_every_micro_batch,
        input_gradient_not_summed,
    ],
)
def test_mutants_are_caught(mutant):
    ranks, expected = pico.run(mutated, mutant, world_size=2), train("dp1", steps=1)
    worst = differences(ranks[0], expected)
    assert worst["gradients"] > 1e-3
    assert worst["loss"] < 1e-12, (
        "a loss curve does not show it at first: gradients must be compared"
    )
    # Without the sum, replicas that were equal drift apart; divided or summed alike, they do not.
    apart = any(
        not torch.equal(ranks[0]["own norms"][name], ranks[1]["own norms"][name])
        for name in ranks[0]["own norms"]
    )
    assert apart == (mutant is norm_gradients_not_summed)


# gather and scatter by themselves.


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def halves():
    mesh = comm.build_mesh("tp2")
    me, checks = mesh.rank("tp"), {}
    shards = [numbers(2, 3, 4, seed=i) for i in (0, 1)]
    wholes = [numbers(2, 6, 4, seed=i) for i in (2, 3)]
    total = wholes[0] + wholes[1]

    x = shards[me].clone().requires_grad_()
    y = gather(x)
    y.backward(wholes[me])
    checks["gather joins"] = torch.equal(y, torch.cat(shards, 1))
    checks["gather sums gradients"] = torch.equal(x.grad, total.chunk(2, 1)[me])

    x = wholes[me].clone().requires_grad_()
    y = scatter_sum(x)
    y.backward(shards[me])
    checks["scatter sums"] = torch.equal(y, total.chunk(2, 1)[me])
    checks["scatter joins gradients"] = torch.equal(x.grad, torch.cat(shards, 1))

    w, dy, results = numbers(5, 4, seed=9 + me), numbers(2, 6, 5, seed=me), []
    for layer in (gather_linear, lambda x, w: F.linear(gather(x), w)):
        x, w_leaf = shards[me].clone().requires_grad_(), w.clone().requires_grad_()
        y = layer(x, w_leaf)
        y.backward(dy)
        results.append((y.detach(), x.grad, w_leaf.grad))
    checks["gather_linear is linear of gather"] = all(
        torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(*results)
    )

    before = len(comm.ledger().snapshot())
    gather_linear(shards[me], w.requires_grad_()).sum().backward()  # x needs no gradient
    checks["nothing sent in vain"] = len(comm.ledger().snapshot()) == before + 1
    return checks


def test_gather_and_scatter_are_conjugate():
    for checks in pico.run(halves, world_size=2):
        assert all(checks.values()), checks


# What is kept for backward.


def saved_bytes(parameters, compute, *arguments):
    """Bytes of the tensors that autograd keeps for the backward pass, each memory counted once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def pack(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = (
                memory.nbytes(),
                memory,
            )  # held, or another would get its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute(*arguments)
    del result
    return sum(size for size, _ in kept.values())


def saved_by_layout(dtype):
    n, tokens = torch.distributed.get_world_size(), torch.zeros(ROWS, CONFIG.seq, dtype=torch.long)
    found = []
    for layout, inputs in ((f"tp{n}", "keep"), (f"tp{n}sp", "keep"), (f"tp{n}sp", "gather")):
        model = Transformer(CONFIG, dtype=dtype)
        model = parallelize(model, layout, seed=7, sp_inputs=inputs).model
        found.append(saved_bytes(model.parameters(), model.loss, tokens, tokens))
    x = numbers(ROWS, CONFIG.seq, CONFIG.hidden).to(dtype).requires_grad_()
    return *found, saved_bytes([model.norm.weight], model.norm, x)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_less_is_kept_for_backward(n, dtype):
    """By the share (1 - 1/n) of what the 2L + 1 norms keep: B S (k D + 1) elements each, with k = 2
    on the CPU (x and the normalised x; a fused kernel keeps x alone), and 1 for 1/sqrt(...)."""
    size, norms = torch.finfo(dtype).bits // 8, 2 * CONFIG.layers + 1
    for whole, split, again, norm in pico.run(saved_by_layout, dtype, world_size=n):
        assert norm == ROWS * CONFIG.seq * (2 * CONFIG.hidden + 1) * size
        assert whole - split == norms * norm * (n - 1) // n
        assert whole - split != (norms - 1) * norm * (n - 1) // n, "mutant: the last norm forgotten"
        kept, gathered = (
            costs.sp_input_bytes(CONFIG, n, micro_batch=ROWS, dtype=dtype, sp_inputs=inputs)
            for inputs in ("keep", "gather")
        )
        assert split - again == kept - gathered > 0


# Inputs that are gathered again, and what travels beside the products.


class Products(TorchDispatchMode):
    """Notes every matrix product."""

    def __init__(self, events):
        super().__init__()
        self._events = events

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            self._events.append("product")
        return function(*args, **(kwargs or {}))


def backward_in_order(at_once=False):
    """What backward of each column-parallel product does, event by event; and that "gather" gives
    what "keep" gives, to the bit."""
    events, results = {}, []
    for name in ("all_reduce", "all_gather", "reduce_scatter"):
        real = getattr(comm, name)

        def noted(*args, name=name, real=real, **kw):
            here.append(f"start {name}")
            if at_once and kw.pop("async_op", False):  # the mutant
                return comm.Pending(None, real(*args, **kw), 0.0, ())
            found = real(*args, **kw)
            if kw.get("async_op"):
                wait = found.wait
                found.wait = lambda: (here.append(f"end {name}"), wait())[1]
            return found

        setattr(comm, name, noted)
    n, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    w = numbers(6, 8, seed=rank).double().requires_grad_()
    for kind in ("whole", "keep", "gather"):
        here: list[str] = []
        x = numbers(2, 4 if kind == "whole" else 4 // n, 8).double().requires_grad_()
        y = column_linear(x, w) if kind == "whole" else gather_linear(x, w, "tp", kind)
        here.clear()
        with Products(here):
            gradients = torch.autograd.grad(y.square().sum(), (x, w))
        events[kind] = list(here)
        results.append(gradients)
    return events, all(map(torch.equal, *results[1:]))


def in_tp(*args):
    comm.build_mesh(f"tp{torch.distributed.get_world_size()}")
    return backward_in_order(*args)


ORDER = {
    "whole": ["product", "start all_reduce", "product", "end all_reduce"],
    "keep": ["product", "start reduce_scatter", "product", "end reduce_scatter"],
    "gather": [
        *("start all_gather", "product", "start reduce_scatter"),
        *("end all_gather", "product", "end reduce_scatter"),
    ],
}


def test_the_weights_gradient_is_computed_while_others_travel():
    """The mutant waits where it starts: nothing is ever under way during a product."""
    for events, equal in pico.run(in_tp, world_size=2):
        assert events == ORDER and equal
    for events, _ in pico.run(in_tp, True, world_size=2):
        assert not any(event.startswith("end") for of in events.values() for event in of)


def test_inputs_gathered_again_change_no_number():
    for sp in (pico.run(train, "tp2sp", inputs="gather", world_size=2)[0],):
        worst = differences(sp, train("dp1"))
        assert max(worst.values()) < 1e-12, worst


# Bad input.


def test_what_cannot_be_split_is_refused_before_anything_starts():
    for layout, says in (
        ("dp2sp", "sp splits activations over the ranks of tp, and tp is 1; .* works is dp2$"),
        ("tp4sp", "sp splits a sequence into tp = 4 equal parts, and seq is 18 .take 16 or 20."),
        ("tp2cp3sp", "cp=3 cuts .* 6 equal chunks, .*; sp splits .* cp . tp = 6 equal parts"),
    ):
        seq = 18 if layout == "tp4sp" else 16
        with pytest.raises(ValueError, match=says):
            parallelize(Transformer(CONFIG.replace(seq=seq)), layout)


def shorter():
    parallel = parallelize(Transformer(CONFIG), "tp2sp")
    tokens = torch.zeros(1, 1, 7, dtype=torch.long)
    with pytest.raises(ValueError) as caught:
        parallel.forward_backward(tokens, tokens)
    return str(caught.value)


def test_another_length_that_does_not_divide_is_refused():
    for sentence in pico.run(shorter, world_size=2):
        assert "over tp=2 ranks" in sentence and "7 tokens" in sentence
        assert sentence.endswith("take 6 or 8")
