"""f, g, and the layers that are made of them.

The wrong versions this file catches: f that reduces in place a gradient which the residual branch
holds too, g in place without telling autograd (picotron has both), row-parallel without g,
q/k/v as three matrices (three all-reduces backward where one is enough), and layers that are not
shards of the same matrix.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import picolab as pico
from picolab import comm
from picolab.model import Linear, Piece, Transformer, initialise
from picolab.parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    column_linear,
    f,
    g,
    g_,
    parallelize,
)
from picolab.specs import ModelConfig


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def reasons():
    return [entry.reason for entry in comm.ledger().snapshot()]


# f and g by themselves.


def conjugates():
    comm.build_mesh("tp2")
    me, checks = comm.mesh().rank("tp"), {}
    mine, whole = numbers(3, 4, seed=me), numbers(3, 4, seed=0) + numbers(3, 4, seed=1)

    x = numbers(3, 4, seed=9).requires_grad_()
    y = f(x)
    checks["f is the identity"] = torch.equal(y, x)
    y.backward(mine)
    checks["f sums gradients"] = torch.allclose(x.grad, whole, rtol=0, atol=1e-15)

    for name, operator in (("g", g), ("g_", g_)):
        leaf = mine.clone().requires_grad_()
        x = leaf * 1.0
        y = operator(x)
        checks[f"{name} sums"] = torch.allclose(y, whole, rtol=0, atol=1e-15)
        y.backward(whole)
        checks[f"{name} hands the gradient on"] = torch.equal(leaf.grad, whole)
        checks[f"{name} changes its argument"] = not torch.equal(x.detach(), mine)
    return checks


def test_f_and_g_are_conjugate():
    for checks in pico.run(conjugates, world_size=2):
        assert checks.pop("g changes its argument") is False
        assert all(checks.values()), checks


def shared_gradient(in_place):
    """out = f(x) + r: autograd hands one and the same gradient to f and to r."""
    comm.build_mesh("tp2")

    class InPlaceF(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, dy):
            return comm.all_reduce(dy, "tp", "mutant")

    x, r = numbers(2, 3).requires_grad_(), numbers(2, 3, seed=1).requires_grad_()
    side = r * 1.0  # made before f, so autograd comes to it after f
    out = (InPlaceF.apply(x) if in_place else f(x)) + side
    out.backward(torch.ones_like(out))
    return x.grad, r.grad


def test_f_leaves_the_other_branch_alone():
    ones = torch.ones(2, 3, dtype=torch.float64)
    x, r = pico.run(shared_gradient, False, world_size=2)[0]
    assert torch.equal(x, 2 * ones) and torch.equal(r, ones)
    x, r = pico.run(shared_gradient, True, world_size=2)[0]
    assert torch.equal(r, 2 * ones), "the mutant should have doubled the residual's gradient"


def saved_output(mutant):
    """exp keeps its output for its backward; g_ on it must not go unnoticed."""
    comm.build_mesh("tp2")

    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return comm.all_reduce(x.detach(), "tp", "mutant").view_as(x)

        @staticmethod
        def backward(ctx, dy):
            return dy

    x = numbers(2, 3).requires_grad_()
    y = x.exp()
    out = Careless.apply(y) if mutant else g_(y)
    try:
        out.sum().backward()
    except RuntimeError as error:
        return str(error)
    return float((x.grad - x.detach().exp()).abs().max())


def test_g_in_place_tells_autograd():
    assert "modified by an inplace operation" in pico.run(saved_output, False, world_size=2)[0]
    wrong = pico.run(saved_output, True, world_size=2)[0]
    assert isinstance(wrong, float) and wrong > 0.1, "the mutant is silently wrong"


def fused_and_plain():
    comm.build_mesh("tp2")
    w, x, dy = numbers(5, 4, seed=comm.mesh().rank("tp")), numbers(2, 3, 4), numbers(2, 3, 5)
    results = []
    for layer in (lambda x, w: column_linear(x, w), lambda x, w: F.linear(f(x), w)):
        x_leaf, w_leaf = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = layer(x_leaf, w_leaf)
        y.backward(dy)
        results.append((y.detach(), x_leaf.grad, w_leaf.grad))
    before = len(reasons())
    column_linear(x, w.requires_grad_()).sum().backward()  # x needs no gradient: nothing to send
    assert len(reasons()) == before
    column_linear(x.requires_grad_(), w.detach()).sum().backward()  # a frozen weight
    assert len(reasons()) == before + 1
    return [float((a - b).abs().max()) for a, b in zip(*results)]


def test_column_linear_is_linear_of_f():
    for differences in pico.run(fused_and_plain, world_size=2):
        assert max(differences) < 1e-14


# An MLP, against one process and against torch's DTensor.

IN, INNER = 12, 16


def parallel_mlp(row=RowParallelLinear):
    up = ColumnParallelLinear(Linear([Piece("up", (INNER, IN), std=0.3)], torch.float64))
    down = row(Linear([Piece("down", (IN, INNER), std=0.3)], torch.float64))
    return initialise(nn.Sequential(up, nn.GELU(), down), seed=1)


def plain_mlp():
    up, down = (
        Linear([Piece("up", (INNER, IN), std=0.3)]),
        Linear([Piece("down", (IN, INNER), std=0.3)]),
    )
    initialise(nn.ModuleList([up, down]), seed=1, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(IN, INNER, False), nn.GELU(), nn.Linear(INNER, IN, False))
    with torch.no_grad():
        model.double()[0].weight.copy_(up.weight)
        model[2].weight.copy_(down.weight)
    return model


def against_dtensor(world):
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = comm.build_mesh(f"tp{world}")
    models = {"ours": parallel_mlp(), "dtensor": plain_mlp(), "one process": plain_mlp()}
    parallelize_module(
        models["dtensor"], mesh.device_mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()}
    )
    results = {}
    for name, model in models.items():
        before = len(reasons())
        x = numbers(3, 5, IN).requires_grad_()
        y = model(x)
        y.backward(numbers(3, 5, IN, seed=2))
        results[name] = [y.detach(), x.grad]
        for index, dim in ((0, 0), (2, 1)):
            gradient = model[index].weight.grad
            if name == "ours":
                gradient = comm.all_gather(gradient, "tp", "check", dim=dim)
            results[name].append(gradient.full_tensor() if name == "dtensor" else gradient)
        if name == "ours":
            assert [r for r in reasons()[before:] if r != "check"] == [
                "tp: row-parallel output",
                "tp: column-parallel input gradient",
            ]
    return {
        other: max(
            float((a - b).norm() / b.norm()) for a, b in zip(results["ours"], results[other])
        )
        for other in ("dtensor", "one process")
    }


@pytest.mark.parametrize("world", [2, 4])
def test_an_mlp_equals_dtensor_and_one_process(world):
    for differences in pico.run(against_dtensor, world, world_size=world):
        assert max(differences.values()) < 1e-13


def without_g():
    comm.build_mesh("tp2")

    class NoReduction(RowParallelLinear):
        def forward(self, x):
            return F.linear(x, self.weight)

    x = numbers(3, 5, IN)
    found, expected = parallel_mlp(NoReduction)(x), plain_mlp()(x)
    return float((found - expected).norm() / expected.norm())


def test_mutant_row_parallel_without_g_is_caught():
    assert pico.run(without_g, world_size=2)[0] > 0.1


# A whole model's all-reduces.

CONFIG = ModelConfig(hidden=32, ffn=48, layers=3, heads=4, kv_heads=2, vocab=40, seq=6)


def model_ledger(separate):
    if separate:  # the mutant: q, k and v each with a matrix and an f of its own
        ColumnParallelLinear.forward = lambda self, x: torch.cat(
            [column_linear(x, w, self.axis) for w in self.weight.split(self.sizes)], dim=-1
        )
    parallel = parallelize(Transformer(CONFIG), "tp2")
    tokens = torch.randint(CONFIG.vocab, (2, 7), generator=torch.Generator().manual_seed(0))
    loss = parallel.model.loss(tokens[:, :-1], tokens[:, 1:])
    forward = len(reasons())
    loss.backward()
    begun = reasons().index("tp: embedding output")  # after what is compared at the start
    names, forward = reasons()[begun:], forward - begun
    payloads = {
        entry.payload_bytes for entry in comm.ledger().snapshot() if "parallel" in entry.reason
    }
    return names[:forward], names[forward:], payloads


def test_two_all_reduces_forward_and_two_backward_a_layer():
    for forward, backward, payloads in pico.run(model_ledger, False, world_size=2):
        assert forward == [
            "tp: embedding output",
            *["tp: row-parallel output"] * (2 * CONFIG.layers),
            "tp: cross entropy maximum",
            "tp: cross entropy sums",
        ]
        assert backward == ["tp: column-parallel input gradient"] * (2 * CONFIG.layers + 1)
        assert payloads == {2 * CONFIG.seq * CONFIG.hidden * 4}


def test_mutant_without_fusion_is_caught():
    _, backward, _ = pico.run(model_ledger, True, world_size=2)[0]
    assert len(backward) == 5 * CONFIG.layers + 1


def frozen_embedding():
    """Nothing below the first layer needs a gradient, so its f has nothing to send."""
    model = Transformer(CONFIG)
    model.embed.weight.requires_grad_(False)
    model.layers[0].attention_norm.weight.requires_grad_(False)
    parallel = parallelize(model, "tp2")
    tokens = torch.zeros(1, 6, dtype=torch.long)
    parallel.model.loss(tokens, tokens).backward()
    assert parallel.model.embed.weight.grad is None
    return reasons().count("tp: column-parallel input gradient")


def test_frozen_parameters_stay_frozen_when_they_are_split():
    assert pico.run(frozen_embedding, world_size=2).values == [2 * CONFIG.layers] * 2


def test_another_feed_forward_is_refused():
    def build():
        with pytest.raises(ValueError, match="no rule to split a Identity"):
            parallelize(Transformer(CONFIG, feed_forward=lambda *_: nn.Identity()), "tp2")
        return True

    assert pico.run(build, world_size=2)[0]
