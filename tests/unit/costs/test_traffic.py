"""The predicted ledger of a step, counted by hand on `tiny` for each axis; and buckets.

Wrong versions these tests catch, kept below as mutants: buckets in forward order, over their limit,
or reduced every micro-batch; the head's input gradient forgotten; one cross-entropy reduction too
many; activations in the wrong dtype; K and V sent once; every stage taken for the first. That a
*run* gives the same ledger is tested with real ranks.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.specs import Layout, ModelConfig

TINY = ModelConfig.preset("tiny")
COUNTS = "ep: rows for each expert"
STEP = dict(micro_batch=2, accumulate=3, seq=64)


def entry(axis, reason):
    return ("all_reduce", axis, f"{axis}: {reason}")


# Two ranks: an all-reduce of B bytes sends B. One activation is 2 x 64 x 128 numbers of 4 bytes.
ACTIVATION = 65_536
DP2 = {
    entry("dp", "count of valid tokens"): (1, 8),
    # 803,968 parameters x 4 bytes; the buckets are added up in test_tinys_buckets_by_hand.
    entry("dp", "gradient bucket"): (4, 3_215_872),
    entry("dp", "loss"): (1, 8),
}
TP2 = {
    entry("tp", "embedding output"): (3, 3 * ACTIVATION),
    entry("tp", "row-parallel output"): (24, 24 * ACTIVATION),  # 2 a layer x 4 layers x 3
    entry("tp", "column-parallel input gradient"): (27, 27 * ACTIVATION),  # (2 x 4 + head) x 3
    entry("tp", "cross entropy maximum"): (3, 3 * 512),  # 2 x 64 fp32 numbers
    entry("tp", "cross entropy sums"): (3, 3 * 1024),
    entry("tp", "gradient norm"): (1, 8),
}
# Half of the matrices and all nine norms: (803,968 - 1,152)/2 + 1,152 parameters.
DP2TP2 = {**DP2, **TP2, entry("dp", "gradient bucket"): (2, 402_560 * 4)}


TP2SP = {
    ("reduce_scatter", "tp", "sp: embedding output"): (3, 3 * ACTIVATION),
    ("all_gather", "tp", "sp: gather input"): (27, 27 * ACTIVATION),
    ("reduce_scatter", "tp", "sp: scatter output"): (24, 24 * ACTIVATION),
    ("all_gather", "tp", "sp: gather output gradient"): (27, 27 * ACTIVATION),  # 24, embedding 3
    ("reduce_scatter", "tp", "sp: scatter input gradient"): (27, 27 * ACTIVATION),
    ("all_reduce", "tp", "sp: gradients of the norms"): (1, 9 * 128 * 4),
    **{key: value for key, value in TP2.items() if "cross entropy" in key[2] or "norm" in key[2]},
}
PP2 = {entry("pp", "loss"): (1, 8), entry("pp", "gradient norm"): (1, 8)}
PP2_FIRST = PP2 | {
    ("send", "pp", "pp: activations"): (3, 3 * ACTIVATION),
    ("recv", "pp", "pp: gradients of activations"): (3, 3 * ACTIVATION),
}
PP2_LAST = PP2 | {
    ("recv", "pp", "pp: activations"): (3, 3 * ACTIVATION),
    ("send", "pp", "pp: gradients of activations"): (3, 3 * ACTIVATION),
}
# K and V of 2 x 32 tokens, 4 heads x 16, 4 bytes: 32,768. One hop, 4 layers, 3 micro-batches.
KEYS, GRADIENTS = "cp: keys and values", "cp: gradients of keys and values"
CP2 = {
    **{(op, "cp", KEYS): (24, 24 * 32_768) for op in ("send", "recv")},  # forward and backward
    **{(op, "cp", GRADIENTS): (12, 12 * 32_768) for op in ("send", "recv")},
    ("all_reduce", "cp", "dp: gradient bucket"): DP2[entry("dp", "gradient bucket")],
    ("all_reduce", "cp", "dp: loss"): (1, 8),
}
BY_HAND = [
    ("dp1", 0, {}),
    *(("dp2", rank, DP2) for rank in (0, 1)),
    *(("tp2", rank, TP2) for rank in (0, 1)),
    ("dp2tp2", 3, DP2TP2),
    *(("tp2sp", rank, TP2SP) for rank in (0, 1)),
    ("pp2", 0, PP2_FIRST),
    ("pp2", 1, PP2_LAST),
    *(("cp2", rank, CP2) for rank in (0, 1)),
]
# What one of two ranks sends of a payload.
SENT = {"all_reduce": 1, "all_gather": 0.5, "reduce_scatter": 0.5, "send": 1, "recv": 0}


def check_step(step_ledger):
    for layout, rank, by_hand in BY_HAND:
        predicted = step_ledger(TINY, layout, rank=rank, **STEP)
        assert {key: value[:2] for key, value in predicted.items()} == by_hand, layout
        for (op, _, _), expected in predicted.items():
            assert expected.ring_bytes == SENT[op] * expected.payload_bytes


def test_a_step_counted_by_hand():
    check_step(costs.step_ledger)


def changed(key, count_factor=1.0, payload_factor=1.0):
    """A step_ledger that is wrong in one entry."""

    def wrong(config, layout, **step):
        predicted = costs.step_ledger(config, layout, **step)
        if key in predicted:
            right = predicted[key]
            payload = right.payload_bytes * payload_factor
            predicted[key] = costs.Expected(right.count * count_factor, payload, payload)
        return predicted

    return wrong


MUTANTS = {
    "gradients reduced every micro-batch": changed(entry("dp", "gradient bucket"), 3, 3),
    "the head's input gradient forgotten": changed(
        entry("tp", "column-parallel input gradient"), 24 / 27, 24 / 27
    ),
    "q, k, v and gate, up not fused": changed(
        entry("tp", "column-parallel input gradient"), 63 / 27, 63 / 27
    ),
    "the two sums of the cross entropy apart": changed(entry("tp", "cross entropy sums"), 2),
    "loss in fp32": changed(entry("dp", "loss"), 1, 0.5),
    "dtype taken for bf16": lambda config, layout, **step: costs.step_ledger(
        config, layout, dtype="bf16", **step
    ),
    "every stage like the first": lambda config, layout, rank, **step: costs.step_ledger(
        config, layout, **step
    ),
    "K and V sent once": changed(("send", "cp", KEYS), 0.5, 0.5),
    "heads of the queries sent": changed(("send", "cp", KEYS), 1, 2),
    "whole activations between stages": changed(("send", "pp", "pp: activations"), 1, 2),
    "gradients of the norms one by one": changed(
        ("all_reduce", "tp", "sp: gradients of the norms"), 9
    ),
    "gradients of the unsharded model": lambda config, layout, **step: {
        **costs.step_ledger(config, layout, **step),
        **(costs.step_ledger(config, "dp2", **step | {"rank": 0}) if "dp2" in layout else {}),
    },
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_ledger_is_caught(name):
    with pytest.raises(AssertionError):
        check_step(MUTANTS[name])


def test_gradients_do_not_depend_on_the_batch():
    key = entry("dp", "gradient bucket")
    small = costs.step_ledger(TINY, "dp4", micro_batch=1, accumulate=1)
    large = costs.step_ledger(TINY, "dp4", micro_batch=16, accumulate=8)
    assert small[key] == large[key]
    assert small[key].ring_bytes == 1.5 * small[key].payload_bytes  # 2(n-1)/n for four ranks


@pytest.mark.parametrize("layout", ["tp2", "tp4", "dp2tp2", "tp2pp2", "tp2cp2"])
def test_sp_sends_what_tp_sends_and_less_between_stages(layout):
    for rank in range(Layout.parse(layout).world):
        whole, split = (
            costs.step_ledger(TINY, text, rank=rank, **STEP) for text in (layout, f"{layout}sp")
        )
        over_tp = [
            sum(expected.ring_bytes for key, expected in ledger.items() if key[1] == "tp")
            for ledger in (whole, split)
        ]
        norms = split["all_reduce", "tp", "sp: gradients of the norms"].ring_bytes
        # On each stage too: an embedding's two halves are on the first, a head's on the last.
        assert over_tp[1] - norms == pytest.approx(over_tp[0], rel=1e-15)
        for key, expected in whole.items():
            if key[1] == "pp" and "activations" in key[2]:
                assert split[key].payload_bytes * 2 == expected.payload_bytes


def test_ranks_send_what_they_hold():
    """257 tokens, 3 kv heads: the first rank of tp has 129 and 2, the second 128 and 1."""
    config = TINY.replace(hidden=96, vocab=257, heads=6, kv_heads=3, tied=True)
    first, second = (
        costs.step_ledger(config, "tp2pp2cp2", rank=rank, micro_batch=2, seq=64) for rank in (0, 1)
    )
    tie = ("send", "pp", "pp: tied embedding gradient")
    assert (first[tie].payload_bytes, second[tie].payload_bytes) == (129 * 384, 128 * 384)
    ring = ("send", "cp", KEYS)
    assert first[ring].payload_bytes == 2 * second[ring].payload_bytes


def test_seq_is_the_configs_unless_given():
    assert costs.step_ledger(TINY, "tp2", micro_batch=1) == costs.step_ledger(
        TINY, "tp2", micro_batch=1, seq=TINY.seq
    )


@pytest.mark.parametrize(
    ("dtype", "size", "scalar"), [("bf16", 2, 4), ("fp32", 4, 4), ("fp64", 8, 8)]
)
def test_cross_entropy_is_in_fp32_at_least(dtype, size, scalar):
    predicted = costs.step_ledger(TINY, "dp2tp2", micro_batch=1, seq=10, dtype=dtype)
    assert predicted[entry("tp", "embedding output")].payload_bytes == 10 * 128 * size
    assert predicted[entry("tp", "cross entropy maximum")].payload_bytes == 10 * scalar
    assert predicted[entry("tp", "cross entropy sums")].payload_bytes == 20 * scalar
    assert predicted[entry("dp", "gradient bucket")].payload_bytes == 402_560 * size
    assert predicted[entry("tp", "gradient norm")].payload_bytes == 8


def test_a_tied_head_is_reduced_once():
    tied = costs.step_ledger(TINY.replace(tied=True), "dp2", micro_batch=1)
    assert tied[entry("dp", "gradient bucket")].payload_bytes == 3_215_872 - 256 * 128 * 4


@given(dp=st.integers(1, 8), tp=st.sampled_from([1, 2, 4]), accumulate=st.integers(1, 4))
def test_the_closed_forms_are_sums_over_the_ledger(dp, tp, accumulate):
    layout = f"dp{dp}tp{tp}"
    predicted = costs.step_ledger(TINY, layout, micro_batch=2, accumulate=accumulate, seq=32)
    axes = {axis for _, axis, _ in predicted}
    assert axes == {axis for axis, n in (("dp", dp), ("tp", tp)) if n > 1}
    if dp > 1:
        held = sum(parameter.numel for parameter in costs.local_parameters(TINY, layout))
        sent = predicted[entry("dp", "gradient bucket")].ring_bytes
        # One rounding for each bucket.
        assert sent == pytest.approx(costs.data_parallel_bytes(held, dp), rel=1e-15)
    if tp > 1:
        layer = costs.tensor_parallel_layer_bytes(TINY, tp, micro_batch=2, seq=32)
        head = layer / 4
        rows = predicted[entry("tp", "row-parallel output")].ring_bytes
        columns = predicted[entry("tp", "column-parallel input gradient")].ring_bytes
        assert rows + columns == accumulate * (TINY.layers * layer + head)


def test_tensor_parallel_layer_by_the_textbook():
    """8 (t-1)/t * 2 s b h bytes in bf16."""
    config = ModelConfig.preset("llama-3-8b")
    sent = costs.tensor_parallel_layer_bytes(config, 8, micro_batch=1, seq=8192, dtype="bf16")
    assert sent == 8 * 7 / 8 * 2 * 8192 * 4096


@pytest.mark.parametrize(
    ("layout", "step", "sentence"),
    [
        (
            "dp2ep2",
            {},
            "ep=2 has nothing to spread, the model has no experts",
        ),
        ("tp6", {}, "tp=6 leaves ranks with nothing of kv_heads"),
        ("cp2", dict(seq=10), "= 4 equal chunks, and seq is 10"),
        ("tp4sp", dict(seq=10), "tp = 4 equal parts, and seq is 10"),
        ("dp2", dict(rank=2), "rank 2 is not in dp2"),
        ("dp2", dict(micro_batch=0), "micro_batch is 0; it must be an integer of 1 or more"),
        ("dp2", dict(accumulate=-1), "accumulate is -1"),
        ("dp2", dict(seq=0), "seq is 0"),
        ("dp2", dict(bucket_bytes=0), "bucket_bytes is 0; a bucket holds at least 1 byte"),
        ("dp2", dict(dtype="fp17"), "'fp17' is not a dtype"),
    ],
)
def test_bad_input_gets_a_sentence(layout, step, sentence):
    with pytest.raises(ValueError, match=sentence):
        costs.step_ledger(TINY, layout, **{"micro_batch": 1, **step})


def test_models_that_are_not_built_are_refused():
    with pytest.raises(ValueError, match="deepseek-v3 has latent attention"):
        costs.step_ledger(ModelConfig.preset("deepseek-v3"), "dp2", micro_batch=1)


def test_what_experts_send_by_the_formula_in_print():
    """Even loads: 4 (e-1)/e T k h bytes a layer and micro-batch, there and back, twice; and a rank
    that is sent twice the rows gives back twice as many."""
    config = ModelConfig.preset("mixtral-8x7b")
    step = dict(micro_batch=2, seq=512, accumulate=3, dtype="bf16")
    found = costs.step_ledger(config, "dp8ep8", **step)
    rows = {key: of for key, of in found.items() if key[1] == "ep" and key[2] != COUNTS}
    right = 4 * 7 / 8 * (2 * 512) * 2 * 4096 * 2 * 32 * 3
    assert len(rows) == 5 - 1 + 1 and "ep: gradient norm" in {key[2] for key in rows}
    del rows["all_reduce", "ep", "ep: gradient norm"]
    assert sum(of.ring_bytes for of in rows.values()) == pytest.approx(right, rel=1e-12)
    even = [[2 * 512 * 2 * 32 * 3 // 8] * 8] * 8
    assert costs.step_ledger(config, "dp8ep8", **step, routed=even) == found
    hot = [[2 * row[0], 0, *row[2:]] for row in even]
    back = "all_to_all", "ep", "ep: rows back"
    for rank, times in ((0, 2), (1, 0), (2, 1)):
        skewed = costs.step_ledger(config, "dp8ep8", **step, routed=hot, rank=rank)
        assert skewed[back].payload_bytes == times * found[back].payload_bytes


# ---- buckets


def check_buckets(buckets, sizes, limit):
    groups = buckets(sizes, limit)
    order = [index for group in groups for index in group]
    assert order == list(reversed(range(len(sizes))))  # every parameter once, in reverse order
    filled = [sum(sizes[index] for index in group) for group in groups]
    assert all(len(group) == 1 or fill <= limit for group, fill in zip(groups, filled, strict=True))
    for group, fill, after in zip(groups, filled, groups[1:]):
        assert fill + sizes[after[0]] > limit, f"{group} was closed too early"


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 150))
def test_buckets(sizes, limit):
    check_buckets(costs.buckets, sizes, limit)


def forward_order(sizes, limit):
    last = len(sizes) - 1
    return [[last - index for index in group] for group in costs.buckets(sizes[::-1], limit)]


def closed_when_over(sizes, limit):
    """Wrong: the parameter that goes over the limit is still taken."""
    groups, filled = [[]], 0
    for index in reversed(range(len(sizes))):
        if filled > limit:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += sizes[index]
    return groups


def one_each(sizes, limit):
    return [[index] for index in reversed(range(len(sizes)))]


def last_one_lost(sizes, limit):
    return costs.buckets(sizes, limit)[:-1]


@pytest.mark.parametrize("wrong", [forward_order, closed_when_over, one_each, last_one_lost])
def test_wrong_buckets_are_caught(wrong):
    with pytest.raises(AssertionError):
        check_buckets(wrong, [3, 4, 5, 6], 10)


def test_buckets_by_hand():
    assert costs.buckets([], 10) == []
    assert costs.buckets([5, 5, 5], 10) == [[2, 1], [0]]  # exactly full is not over
    assert costs.buckets([1, 50, 1], 10) == [[2], [1], [0]]  # a large one stands alone


def test_tinys_buckets_by_hand():
    """fp32: head 131,072; norm 512; a layer 738,304: down 180,224, gate_up 360,448, 512, o 65,536,
    qkv 131,072, 512; embedding 131,072. Added up backwards, closed before 1,000,000."""
    sizes = [4 * parameter.numel for parameter in costs.local_parameters(TINY, "dp2")]
    groups = costs.buckets(sizes, costs.DEFAULT_BUCKET_BYTES)
    layer, down = 738_304, 180_224
    assert [sum(sizes[index] for index in group) for group in groups] == [
        131_072 + 512 + layer,
        layer + down,
        layer - down + down,
        layer - down + 131_072,
    ]
