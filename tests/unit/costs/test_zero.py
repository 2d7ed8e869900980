"""ZeRO's formulas: shards add up, and the closed forms are those of the paper.

Wrong versions this file catches: rows dealt out so that some are lost (ranks' shards would not add
up), gradients sharded from the wrong stage on, every rank like the first, stage 3 that sends what
stage 2 sends. What runs measure is held against these in tests/distributed.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.specs import Layout, ModelConfig

TINY = ModelConfig.preset("tiny").replace(vocab=257, layers=3, ffn=47)
layouts = st.builds(
    Layout,
    dp=st.integers(2, 5),
    tp=st.integers(1, 2),
    pp=st.integers(1, 3),
    cp=st.integers(1, 2),
    zero=st.integers(1, 3),
)


def check_shares(shards, layout, config):
    """The shards of a group are the whole, name by name, and as even as whole rows allow."""
    for line in layout.lines(layout.shard_axis):
        whole = costs.local_parameters(config, layout, line[0])
        of_ranks = [shards(config, layout, rank) for rank in line]
        for parameter, *parts in zip(whole, *of_ranks, strict=True):
            assert {part.name for part in parts} == {parameter.name}
            assert sum(part.rows for part in parts) == parameter.rows
            assert max(part.rows for part in parts) - min(part.rows for part in parts) <= 1
            assert all(part.axes == parameter.axes | {layout.shard_axis} for part in parts)


@given(layouts, st.booleans())
def test_shards_add_up(layout, tied):
    check_shares(costs.zero_shards, layout, TINY.replace(tied=tied, qkv_bias=tied))


def test_of_a_group():
    check_shares(costs.zero_shards, Layout(dp=4, zero=3, shard=2), TINY)
    ranks = [costs.zero_shards(TINY, "dp4zero3shard2", rank) for rank in range(4)]
    assert ranks[0] == ranks[2] and ranks[1] == ranks[3] and ranks[0] != ranks[1]


def test_mutant_every_rank_like_the_first():
    with pytest.raises(AssertionError):
        check_shares(lambda *of: costs.zero_shards(*of[:2], 0), Layout(dp=2, zero=1), TINY)


def test_a_norm_of_few_rows_leaves_ranks_with_nothing():
    config = ModelConfig(hidden=2, ffn=3, layers=1, heads=1, kv_heads=1, head_dim=2, vocab=3, seq=4)
    last = {p.name: p.numel for p in costs.zero_shards(config, "dp3zero1", 2)}
    assert last["norm.weight"] == 0 and last["layers.0.mlp.gate_up.weight"] == 2 * 2


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_states_are_those_of_the_paper_where_all_divides(zero):
    config = ModelConfig.preset("tiny")
    layout = Layout(dp=2, zero=zero)
    states = costs.rank_states(config, layout)
    params = costs.parameters(config).total
    paper = costs.state_bytes(params, **costs.BYTES_16_FP32, zero=zero, dp=2)
    steps = 4 * len(costs.local_parameters(config, layout))
    assert states["parameters"] == paper.parameters
    assert states["gradients"] == paper.gradients
    assert states["optimizer"] == paper.optimizer + steps


def test_bytes_sent():
    """Stage 2 sends what data parallelism sends, stage 3 half as much again; and more with every
    micro-batch."""
    sent = costs.data_parallel_bytes(1e6, 8)
    assert costs.zero_bytes(1e6, 8, zero=1) == costs.zero_bytes(1e6, 8, zero=2) == sent
    assert costs.zero_bytes(1e6, 8, zero=3) == pytest.approx(1.5 * sent)
    assert costs.zero_bytes(1e6, 8, zero=3, micro_batches=4) == pytest.approx(4.5 * sent)
    with pytest.raises(ValueError, match="zero is 0; what ZeRO sends is of stage 1, 2 or 3"):
        costs.zero_bytes(1, 2, zero=0)


@given(layouts)
def test_the_ledgers_bytes_are_the_closed_form_but_for_padding(layout):
    """On the average of the ranks of a group, of one micro-batch. The embedding is not gathered
    again in backward, nor are, without a pipeline, the last norm and the head."""
    reasons = "zero: "
    n, size = layout.size(layout.shard_axis), 4
    ledger = costs.step_ledger(TINY, layout, micro_batch=1, bucket_bytes=10_000)
    sent = sum(e.ring_bytes for (_, _, why), e in ledger.items() if why.startswith(reasons))
    held = costs.local_parameters(TINY, layout)
    params = sum(p.numel for p in held)
    once = ("embed", "norm", "head") if layout.pp == 1 else ("embed",)
    once = sum(p.numel for p in held if p.name.startswith(once))
    formula = costs.zero_bytes(params, n, zero=layout.zero)
    if layout.zero == 3:
        formula -= (n - 1) / n * once * size
    padding = 3 * n * size * sum(p.width for p in held)
    assert formula <= sent + 1e-6 and sent <= formula + padding


def test_what_stage_three_gathers():
    uses = costs.zero3_uses(TINY.replace(tied=True), "dp2zero3")
    names = [[p.name.rpartition("layers.")[2] for p in use] for use in uses]
    assert names[0] == ["embed.weight"] and names[-1] == ["norm.weight", "embed.weight"]
    assert len(uses) == 2 + TINY.layers
    largest = max(sum(p.numel for p in use) for use in uses)
    assert costs.gathered_bytes(TINY.replace(tied=True), "dp2zero3") == 4 * largest
