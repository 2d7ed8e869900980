"""Ranks that hold copies of a parameter start from the same numbers, or the first that does not is
named. Wrong versions these catch, each run below: a check of the first parameter alone, a sum of
values for a checksum, one that is blind to the order of rows, of columns or to a sign, an axis
whose copies nobody compares, and a group whose ranks hold no copies (tp's of a matrix, all replicas
of an expert that ep deals out).
"""

import math

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm
from picolab.model import Transformer, slices
from picolab.parallel import parallelize, same_start
from picolab.parallel.same_start import check_same_start, checksum
from picolab.specs import Layout, ModelConfig
from picolab.training.build import build

CONFIG = ModelConfig(hidden=16, ffn=24, layers=2, heads=4, kv_heads=2, vocab=20, seq=8)
EXPERTS = dict(experts=4, experts_per_token=2, expert_ffn=8)


def sentence(case, *args):
    """What a rank is told; the entries of the ledger where it is told nothing."""
    try:
        case(*args)
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


def changed(layout, name, rank, change="one number"):
    """Alike, but for one parameter on one rank."""
    config = CONFIG if "ep" not in layout else CONFIG.replace(**EXPERTS)
    model = parallelize(build(config), layout, seed=3).model
    for parameter in model.parameters():
        for piece, part in slices(parameter):
            if piece.name == name and dist.get_rank() == rank:
                if change == "one number":
                    part.view(-1)[-1] += 1e-6
                else:
                    part.copy_(part.flip(0).clone())
    comm.ledger().flush()
    check_same_start(model, Layout.parse(layout).data_axis)


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


# -- wrong versions --


def first_parameter_only(patch):
    real = same_start._compare
    patch.setattr(same_start, "_compare", lambda axis, names, c: real(axis, names[:2], c[:2]))


def sum_of_values(patch):
    patch.setattr(same_start, "checksum", lambda x: int(2**40 * math.fsum(x.flatten().tolist())))


def nobody_compares_tp(patch):
    patch.setattr(same_start, "_copies", lambda piece, data_axis: iter([data_axis]))


def all_are_copies_over_tp(patch):
    patch.setattr(same_start, "_copies", lambda piece, data_axis: iter(["tp"]))


def experts_are_copies_everywhere(patch):
    patch.setattr(same_start, "_copies", lambda piece, data_axis: iter([data_axis]))


def everything_is_dealt_out_as_experts(patch):
    patch.setattr(same_start, "_copies", lambda piece, data_axis: iter(["edp"]))


K, NORM, EXPERT = (
    f"layers.1.{part}" for part in ("attention.k.weight", "mlp_norm.weight", "mlp.experts.down")
)
# mutant -> the case that it gets wrong, and whether ranks should be told anything there
MUTANTS = {
    first_parameter_only: (("dp2", K, 1), True),
    sum_of_values: (("dp2", K, 1, "rows in another order"), True),
    nobody_compares_tp: (("tp2", NORM, 1), True),
    all_are_copies_over_tp: (("tp2", K, 9), False),
    experts_are_copies_everywhere: (("dp2ep2", EXPERT, 9), False),
    everything_is_dealt_out_as_experts: (("dp2ep2", K, 1), True),
}


def right_and_wrong():
    found = {}
    for mutant, (case, _) in MUTANTS.items():
        right = sentence(changed, *case)
        with pytest.MonkeyPatch.context() as patch:
            mutant(patch)
            found[mutant.__name__] = (right, sentence(changed, *case))
    return found


def test_mutants_tell_the_wrong_thing():
    for found in pico.run(right_and_wrong, world_size=2):
        for mutant, (_, told) in MUTANTS.items():
            right, wrong = found[mutant.__name__]
            assert isinstance(right, str) == told, (mutant, right)
            assert isinstance(wrong, str) != told, (mutant, wrong)


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
