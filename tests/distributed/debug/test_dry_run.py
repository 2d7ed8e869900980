"""A dry run says what rank 0 of many would do, and equals the formula's ledger.

Wrong version this catches: a dry run that counts the collectives of the ranks that exist (one),
which are none."""

import pytest

import picolab as pico


def one_step(layout):
    import torch

    from picolab.model import Transformer
    from picolab.parallel import parallelize

    config = pico.ModelConfig.preset("tiny").replace(layers=4)
    parallel = parallelize(Transformer(config), layout)
    tokens = torch.zeros(2, 1, config.seq, dtype=torch.int64)
    parallel.forward_backward(tokens, tokens)
    parallel.grad_norm()
    return sum(p.numel() for p in parallel.model.parameters())


@pytest.mark.parametrize("layout", ["dp512", "tp4", "dp256tp4", "dp8cp4tp2", "dp1024tp2sp"])
def test_rank_zero_of_many_does_what_the_formula_says(layout):
    dry = pico.dry_run(one_step, layout, layout)
    config = pico.ModelConfig.preset("tiny").replace(layers=4)
    expected = pico.costs.step_ledger(config, layout, micro_batch=1, accumulate=2)
    found = dry.ledger.by("op", "axis", "reason")
    # What is compared once, before the first step, is no part of one.
    found = {key: total for key, total in found.items() if not key[2].startswith("start: ")}
    assert {k: (t.count, t.payload_bytes) for k, t in found.items()} == {
        k: (e.count, e.payload_bytes) for k, e in expected.items()
    }
    assert dry.value == sum(p.numel for p in pico.costs.local_parameters(config, layout))
    world = pico.Layout.parse(layout).world
    assert f"rank 0 of {world:,}" in repr(dry) and "values are not" in repr(dry)


def test_a_layout_beyond_sense_is_refused():
    with pytest.raises(ValueError, match="dp4ep4 spreads experts, and which rows travel depends"):
        pico.dry_run(one_step, "dp4ep4", "dp4ep4")
    with pytest.raises(ValueError, match="a dry run goes up to 65,536"):
        pico.dry_run(print, "dp100000")
