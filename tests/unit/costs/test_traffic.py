"""The predicted ledger of a step, counted by hand for dp2, tp2 and dp2tp2 on `tiny`; and buckets.

Wrong versions these tests catch, kept below as mutants: buckets in forward order, over their limit,
or reduced every micro-batch; the head's input gradient forgotten; one cross-entropy reduction too
many; activations in the wrong dtype. That a *run* gives the same ledger is tested with real ranks.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.specs import ModelConfig

TINY = ModelConfig.preset("tiny")
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


def check_step(step_ledger):
    for layout, by_hand in (("dp1", {}), ("dp2", DP2), ("tp2", TP2), ("dp2tp2", DP2TP2)):
        predicted = step_ledger(TINY, layout, **STEP)
        assert {key: value[:2] for key, value in predicted.items()} == by_hand, layout
        for expected in predicted.values():
            assert expected.ring_bytes == expected.payload_bytes  # 2(n-1)/n is 1 for two ranks


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
    "gradients of the unsharded model": lambda config, layout, **step: {
        **costs.step_ledger(config, layout, **step),
        **(costs.step_ledger(config, "dp2", **step) if "dp2" in layout else {}),
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
        ("pp2", {}, "step_ledger predicts dp and tp, and pp2 also has pp; leave it out"),
        ("dp2cp2zero1", {}, "also has cp and zero; leave them out"),
        ("tp2sp", {}, "also has sp"),
        ("tp8", {}, "tp=8 does not divide kv_heads"),
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


def test_models_with_experts_are_refused():
    with pytest.raises(ValueError, match="mixtral-8x7b has experts"):
        costs.step_ledger(ModelConfig.preset("mixtral-8x7b"), "dp2", micro_batch=1)


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
