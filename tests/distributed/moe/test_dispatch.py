"""Rows to experts on other ranks and back: equal to one process, bit for bit, whoever has rows.

The wrong versions this file catches: regrouping that mixes up ranks and experts, a way back by
other sizes than the way there, a rank without rows that stays away.
"""

import time

import pytest
import torch

import picolab as pico
from picolab import comm
from picolab.model import initialise
from picolab.moe import ExpertCommunication, ExpertLayer, dispatch
from picolab.moe.strategy import MoEParallelStrategy, share_loss
from picolab.parallel import parallelize
from picolab.specs import ModelConfig
from picolab.training.build import build

CONFIG = ModelConfig(
    hidden=16, ffn=24, layers=2, heads=2, kv_heads=2, vocab=32, seq=8, experts=8,
    experts_per_token=2, expert_ffn=8, shared_experts=1,
)  # fmt: skip


def batch(rows: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, 8, 16, dtype=dtype, generator=generator)


class OneLayer(torch.nn.Module):
    """As much of a model as a strategy looks at."""

    def __init__(self, dtype):
        super().__init__()
        block = torch.nn.Module()
        block.mlp = ExpertLayer(CONFIG, 0, dtype)
        self.layers, self.config = torch.nn.ModuleList([block]), CONFIG


def run_layer(layer, x_BSD, probe):
    """Output, and gradients by name."""
    x_BSD = x_BSD.requires_grad_()
    out = layer(x_BSD)
    (out * probe).sum().backward()
    return out.detach(), x_BSD.grad, {n: p.grad for n, p in layer.named_parameters()}


def on_ranks(dtype, mutant=None, favourite=None, how="all-to-all"):
    n, me = torch.distributed.get_world_size(), torch.distributed.get_rank()
    comm.build_mesh(pico.Layout(dp=n, ep=n))
    if mutant == "regroup":
        real = dispatch._transposed
        dispatch._transposed = lambda x, sizes: real(x, [list(s) for s in zip(*sizes)])
    model = OneLayer(dtype)
    MoEParallelStrategy(8, n).shard(model)
    layer = initialise(model, seed=2).layers[0].mlp
    layer.communication = ExpertCommunication("ep", how)
    if favourite is not None:
        prefer(layer, favourite)
    x, probe = batch(4, dtype).chunk(n)[me], batch(4, dtype).sin().chunk(n)[me]
    result = run_layer(layer, x.clone(), probe)
    entries = [e for e in comm.ledger().snapshot().entries if e.axis == "ep"]
    return *result, layer.router.counts_E, [(e.op, e.reason, e.payload_bytes) for e in entries]


def prefer(layer, experts):
    """Every token goes to these two."""
    with torch.no_grad():
        layer.router.weight.zero_()
    layer.router._choice = lambda scores: torch.zeros_like(scores, dtype=torch.bool).index_fill_(
        1, torch.tensor(experts), True
    )


def alone(dtype, favourite=None):
    layer = initialise(OneLayer(dtype), seed=2).layers[0].mlp
    if favourite is not None:
        prefer(layer, favourite)
    return run_layer(layer, batch(4, dtype), batch(4, dtype).sin())


@pytest.mark.parametrize("ep", [2, 4])
def test_outputs_and_experts_gradients_are_those_of_one_process_bit_for_bit(ep):
    out, dx, gradients = alone(torch.float32)
    ranks = list(pico.run(on_ranks, torch.float32, world_size=ep))
    assert torch.equal(torch.cat([rank[0] for rank in ranks]), out)
    assert torch.equal(torch.cat([rank[1] for rank in ranks]), dx)
    for name in ("experts.gate_up", "experts.down"):
        assert torch.equal(torch.cat([rank[2][name] for rank in ranks]), gradients[name])
    # Of what every rank has, each has a summand.
    for name in ("router.weight", "shared.down.weight"):
        total = sum(rank[2][name].double() for rank in ranks)
        torch.testing.assert_close(total.float(), gradients[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(ranks[0][2]["router.weight"], gradients["router.weight"])
    # What travelled: rows there and back, forward and backward, and how many before.
    for rank in ranks:
        payloads = dict(reason_and_bytes for _, *reason_and_bytes in rank[4])
        assert payloads[dispatch.COUNTS] == 8 * 8 and len(rank[4]) == 5
        sent = 4 // ep * 8 * 2 * 16 * 4  # tokens, 2 of them each, 16 numbers of 4 bytes
        assert payloads[dispatch.THERE] == payloads[dispatch.BACK_GRADIENT] == sent
        assert payloads[dispatch.BACK] == payloads[dispatch.THERE_GRADIENT]
    assert sum(dict(r[1:] for r in rank[4])[dispatch.BACK] for rank in ranks) == ep * sent


@pytest.mark.parametrize("favourite", [None, (1, 6)])
def test_all_rows_to_all_ranks_is_the_same_and_sends_more(favourite):
    out, dx, gradients = alone(torch.float64, favourite)
    options = dict(favourite=favourite, world_size=2)
    ranks = list(pico.run(on_ranks, torch.float64, how="all-gather", **options))
    pairs = [(torch.cat([rank[0] for rank in ranks]), out)]
    pairs.append((torch.cat([rank[1] for rank in ranks]), dx))
    for name in ("experts.gate_up", "experts.down"):
        pairs.append((torch.cat([rank[2][name] for rank in ranks]), gradients[name]))
    for found, right in pairs:
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-13)
    ops = [op for op, *_ in ranks[0][4]]
    assert ops == ["all_gather", "all_gather", "reduce_scatter", "all_gather", "reduce_scatter"]
    few = {
        reason: payload for _, reason, payload in pico.run(on_ranks, torch.float64, **options)[0][4]
    }
    many = {reason: payload for _, reason, payload in ranks[0][4]}
    assert many[dispatch.THERE] == 2 * few[dispatch.THERE]
    with pytest.raises(ValueError, match="how is 'ring'; rows travel by 'all-to-all' or"):
        ExpertCommunication("ep", "ring")


def test_mutant_ranks_and_experts_mixed_up():
    out, *_ = alone(torch.float64)
    ranks = list(pico.run(on_ranks, torch.float64, mutant="regroup", world_size=2))
    assert not torch.allclose(torch.cat([rank[0] for rank in ranks]), out)


@pytest.mark.parametrize("favourite", [(0, 1), (1, 6)])
def test_a_rank_without_rows_takes_part(favourite):
    """With (0, 1) three of four ranks have none."""
    out, *_ = alone(torch.float64, favourite)
    ranks = list(pico.run(on_ranks, torch.float64, favourite=favourite, world_size=4, timeout=30))
    assert torch.equal(torch.cat([rank[0] for rank in ranks]), out)
    for rank in ranks:
        assert rank[2]["experts.down"].shape == (2, 16, 8)
    idle = ranks[1][2]["experts.down"]
    assert not idle.any()


def identity():
    mesh = comm.build_mesh(pico.Layout(dp=2, ep=2))
    torch.manual_seed(mesh.rank("dp"))
    rows = torch.tensor([3, 0, 2, 4] if mesh.rank("dp") else [1, 5, 0, 0])
    x = torch.randn(int(rows.sum()), 6, requires_grad=True)
    travelling = ExpertCommunication("ep").dispatch(x, rows)
    came = travelling.arrived()
    assert len(came) == sum(travelling.rows) and travelling.sent == rows.view(2, 2).sum(1).tolist()
    back = travelling.back(came)
    assert torch.equal(back, x)
    back.square().sum().backward()
    return torch.equal(x.grad, 2 * x)


def test_there_and_back_is_nothing():
    assert list(pico.run(identity, world_size=2)) == [True, True]


def overlapped():
    """When the shared expert was computed, and when rows were under way."""
    n = 2
    comm.build_mesh(pico.Layout(dp=n, ep=n))
    model = OneLayer(torch.float32)
    MoEParallelStrategy(8, n).shard(model)
    layer, spans = initialise(model, seed=2).layers[0].mlp, []
    layer.shared.register_forward_pre_hook(lambda *_: spans.append(time.monotonic()))
    layer.shared.register_forward_hook(lambda *_: spans.append(time.monotonic()))
    layer(batch(2))
    (there,) = [e for e in comm.ledger().snapshot().entries if e.reason == dispatch.THERE]
    # (an entry begins where it is waited for; its seconds count from when it set out)
    waited, end = there.start, there.start + there.exposed_s
    return end - there.seconds <= spans[0] <= spans[1] <= waited


def test_rows_are_under_way_while_shared_experts_are_computed():
    assert all(pico.run(overlapped, world_size=2))


def over_global_batch(layout, rows):
    """One step's gradients, whole; the loss looks at the loads of all replicas."""
    config = CONFIG.replace(aux_loss=0.5, aux_over="global batch")
    parallel = parallelize(build(config, torch.float64), layout, seed=1)
    data = torch.randint(32, (1, 4, 9), generator=torch.Generator().manual_seed(3))
    mine = data.chunk(parallel.layout.dp, 1)[comm.mesh().rank("dp")] if rows else data
    parallel.forward_backward(mine[..., :-1], mine[..., 1:])
    return parallel.gradients()


def test_a_loss_over_the_global_batch_is_that_of_one_large_pool():
    (right,) = pico.run(over_global_batch, "dp1", False, world_size=1)
    found = pico.run(over_global_batch, "dp2ep2", True, world_size=2)[0]
    for name, gradient in right.items():
        assert float((found[name] - gradient).norm()) <= 1e-12 * float(gradient.norm()), name


def test_mutant_loads_of_one_replica(monkeypatch):
    (right,) = pico.run(over_global_batch, "dp1", False, world_size=1)

    def forgetful(layout, rows):
        from picolab.moe import strategy

        strategy._OverBatch.__call__ = lambda self, counts, tokens: (counts, tokens)
        return over_global_batch(layout, rows)

    found = pico.run(forgetful, "dp2ep2", True, world_size=2)[0]
    name = "layers.0.mlp.router.weight"
    assert float((found[name] - right[name]).norm()) > 1e-3 * float(right[name].norm())


def experts_choose(layout):
    config = CONFIG.replace(router_choice="expert")
    parallel = parallelize(build(config, torch.float64), layout, seed=1)
    data = torch.randint(32, (2, 2, 9), generator=torch.Generator().manual_seed(3))
    parallel.forward_backward(data[..., :-1], data[..., 1:])
    return parallel.gradients()


def test_experts_choose_among_the_tokens_of_all_ranks_of_cp():
    (right,) = pico.run(experts_choose, "dp1", world_size=1)
    found = pico.run(experts_choose, "cp2ep2", world_size=2)[0]
    for name, gradient in right.items():
        assert float((found[name] - gradient).norm()) <= 1e-12 * float(gradient.norm()), name


def test_experts_that_cannot_be_dealt_out():
    with pytest.raises(ValueError, match="8 experts cannot be dealt out evenly to 3 ranks; take 2"):
        MoEParallelStrategy(8, 3)
    with pytest.raises(ValueError, match=r"ep=2 does not divide experts \(7\)"):
        pico.Layout.parse("dp2ep2").check(CONFIG.replace(experts=7))
    model = build(CONFIG)
    with pytest.raises(ValueError, match="the strategy is for 4 experts, and there are 8"):
        MoEParallelStrategy(4, 1).shard(model)
    share_loss(model, 4)
    assert model.layers[0].mlp.loss_share == 0.25
