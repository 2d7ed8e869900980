"""Ranks that hold copies of a parameter start from the same numbers, or the first that does not is
named. Wrong versions these catch: a checksum that is blind to the order of rows, of columns or to
a sign, and an axis whose copies nobody compares.
"""

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm
from picolab.model import Transformer, initialise, slices
from picolab.parallel import parallelize, same_start
from picolab.parallel.same_start import check_same_start, checksum
from picolab.parallel.tensor import TensorParallelOptimizer
from picolab.specs import Layout, ModelConfig

CONFIG = ModelConfig(hidden=16, ffn=24, layers=2, heads=4, kv_heads=2, vocab=20, seq=8)


def sentence(build, *args):
    """What a rank is told; the entries of the ledger where it is told nothing."""
    try:
        build(*args)
    except ValueError as error:
        return str(error)
    entries = [e for e in comm.ledger().snapshot() if e.reason == same_start.REASON]
    assert all(e.step is None for e in entries)
    return [(e.axis, e.op) for e in entries]


def seeded(layout, with_values, alike):
    seed = 3 if alike else dist.get_rank()
    comm.ledger().flush()
    if with_values:
        parallelize(Transformer(CONFIG, device="cpu", seed=seed), layout)
    else:
        parallelize(Transformer(CONFIG), layout, seed=seed)


def changed(layout, name, rank):
    """Alike, but for one number of one parameter on one rank. tp has cut before there were values,
    so by hand."""
    parsed = Layout.parse(layout)
    comm.build_mesh(layout)
    model = Transformer(CONFIG.replace(tied=True))
    if parsed.tp > 1:
        TensorParallelOptimizer(axis="tp").shard(model)
    initialise(model, 3)
    for parameter in model.parameters():
        for piece, part in slices(parameter):
            if piece.name == name and dist.get_rank() == rank:
                part.view(-1)[-1] += 1e-6
    check_same_start(model, parsed.data_axis)


def all_cases(cases):
    return [sentence(*case) for case in cases]


def test_unequal_replicas_are_refused_once_by_name():
    k = "layers.1.attention.k.weight"
    cases = [
        (seeded, "dp2", True, True),
        (seeded, "dp2", True, False),
        (seeded, "cp2", False, False),
        (seeded, "tp2", False, False),
        (seeded, "pp2", False, False),
        (changed, "dp2", k, 1),
        (changed, "tp2", "layers.1.mlp_norm.weight", 1),
        (changed, "tp2", k, 1),
    ]
    for told in pico.run(all_cases, cases, world_size=2):
        equal, drawn, by_cp, by_tp, by_pp, one, norm, own = told
        assert equal == [("dp", "all_reduce")] and isinstance(own, list)  # a shard is its own
        assert "embed.weight, and 15 more parameters, should start alike on ranks 0, 1" in drawn
        assert "on rank 1 it has other numbers than on rank 0; give all ranks the same" in drawn
        for axis, text in (("cp", by_cp), ("tp", by_tp), ("pp", by_pp)):
            assert f"the seed is 0 on rank 0, 1 on rank 1; these ranks make up one {axis}" in (
                text.replace(f"model (axis {axis})", axis)
            )
        assert one.startswith(f"{k} should start alike on ranks 0, 1, which hold copies of it")
        assert norm.startswith("layers.1.mlp_norm.weight") and "(axis tp)" in norm


def test_copies_of_heads_and_the_rank_that_differs():
    """tp4 of two key-value heads: ranks 2 and 3 hold the same one. In dp4 rank 2 is named."""
    k = "layers.1.attention.k.weight"
    cases = [(changed, "tp4", k, 3), (changed, "dp4", k, 2)]
    told = pico.run(all_cases, cases, world_size=4)
    assert isinstance(told[0][0], list) and "alike on ranks 2, 3" in told[2][0] == told[3][0]
    assert all("on rank 2 it has other numbers than on rank 0" in of_rank[1] for of_rank in told)


def test_a_tied_embedding_on_two_stages():
    def stages():
        model = Transformer(CONFIG.replace(tied=True), device="cpu", seed=dist.get_rank())
        parallelize(model, "pp2")

    with pytest.raises(pico.RankFailure, match=r"embed\.weight should start alike .*axis pp"):
        pico.run(stages, world_size=2)


def test_the_checksum_sees_places_signs_and_bits():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
        others = [x.flip(0), x.flip(1), -x, x.clone(), 2 * x, x.roll(1), x.T.contiguous()]
        others[3][2, 2] = torch.nextafter(x[2, 2].float(), x[2, 2].float() * 2).to(dtype) + 0.01
        assert checksum(x) == checksum(x.clone()) not in {checksum(other) for other in others}
    assert checksum(torch.ones(4)) != checksum(2 * torch.ones(4))
    assert checksum(torch.empty(0, 5)) == checksum(torch.empty(0, 5))
    # Mutant: a plain sum is blind to places.
    assert float(x.double().sum()) == pytest.approx(float(x.flip(0).double().sum()))
