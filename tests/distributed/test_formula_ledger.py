"""The formula ledger and the measured one are equal, in count and payload, to the byte, on every
rank.

`costs.step_ledger` says which collectives one rank does in one optimizer step, and why. Here a step
is run and every entry is compared; an entry too many fails as one too few does. The model divides
by nothing: five layers, six key-value heads, a vocabulary of 37, so ranks of tp and stages of pp
send different bytes. The wrong versions this file catches: a collective more or less than the
formula knows (one f a matrix instead of one a layer half, an all-reduce in every micro-batch, a
gradient norm reduced twice), other payloads, other buckets, other reasons, and a formula that takes
every rank for the first (kept below).
"""

import pytest
import torch

import picolab as pico
from picolab import comm, costs
from picolab.model import Transformer
from picolab.parallel import parallelize
from picolab.specs import Layout, ModelConfig

CONFIG = ModelConfig(
    hidden=24, ffn=50, layers=5, heads=12, kv_heads=6, head_dim=4, vocab=37, seq=16
)
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
CASES = [
    dict(accumulate=1),
    dict(accumulate=3, bucket_bytes=4000, tied=True),
    dict(accumulate=2, micro_batch=3, seq=8, bucket_bytes=1),
    dict(accumulate=2, dtype="fp64", bucket_bytes=20_000, qkv_bias=True),
    dict(accumulate=5, dtype="bf16", bucket_bytes=2000),
    dict(accumulate=2, sp_inputs="gather"),
]
LAYOUTS = {
    2: [
        *("dp2", "tp2", "tp2sp", "pp2", "cp2", "pp2:gpipe", "pp2:zb-v"),
        *("dp2zero1", "dp2zero2", "dp2zero3", "cp2zero3"),
    ],
    3: ["dp3zero1", "dp3zero3"],
    4: [
        *("dp4", "tp4", "tp4sp", "pp4", "cp4"),
        *("dp2tp2", "dp2pp2", "tp2pp2", "dp2cp2", "tp2cp2", "pp2cp2"),
        *("dp2tp2sp", "tp2pp2sp", "tp2cp2sp", "tp2pp2sp:zb-h1"),
        *("dp2tp2zero2", "dp2pp2zero1", "dp2pp2zero3", "dp4zero3shard2", "dp4zero1shard2"),
        *("dp2cp2zero3", "dp2tp2spzero1"),
    ],
    8: ["dp2tp2pp2", "dp2tp2cp2", "tp2pp2cp2", "tp2pp2cp2sp", "tp4pp2sp"],
}


def one_step(
    layout,
    *,
    accumulate,
    micro_batch=2,
    seq=16,
    dtype="fp32",
    tied=False,
    qkv_bias=False,
    **options,
):
    """One optimizer step as the trainer does it; what the ledger gained, by (op, axis, reason)."""
    layout = Layout.parse(layout)
    model = Transformer(CONFIG.replace(tied=tied, qkv_bias=qkv_bias), dtype=DTYPES[dtype])
    parallel = parallelize(model, layout, **options)
    before = len(comm.ledger().snapshot())
    data_MBS = torch.randint(CONFIG.vocab, (accumulate, micro_batch, seq + 1))
    parallel.forward_backward(data_MBS[..., :-1], data_MBS[..., 1:])
    parallel.clip(1.0)
    parallel.after_step()
    entries = comm.ledger().snapshot().entries[before:]
    return pico.monitoring.Ledger(entries).by("op", "axis", "reason")


ALL = [layout for group in LAYOUTS.values() for layout in group]


def in_a_push(layout_index: int, case: int) -> bool:
    """Of each layout the first case and one more, so that every other case meets many layouts."""
    if "sp_inputs" in CASES[case]:
        return "sp" in ALL[layout_index]
    return case in (0, 1 + layout_index % (len(CASES) - 2))


PAIRS = [
    pytest.param(layout, case, marks=[] if in_a_push(index, case) else pytest.mark.weekly)
    for index, layout in enumerate(ALL)
    for case in range(len(CASES))
    # A split backward keeps its inputs (`TrainConfig` refuses the two together).
    if not ("sp_inputs" in CASES[case] and ":zb" in layout)
]


def steps(pairs):
    return {(layout, case): one_step(layout, **CASES[case]) for layout, case in pairs}


@pytest.fixture(scope="module")
def measured(request):
    """(layout, case) -> the ledger of each rank, in three runs; of all pairs that are asked for."""
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    asked = [spec.params for spec in asked if spec and {"layout", "case"} <= set(spec.params)]
    pairs = {(layout, 0) for layout in ALL} | {(one["layout"], one["case"]) for one in asked}
    found = {}
    for world, layouts in LAYOUTS.items():
        wanted = sorted(pair for pair in pairs if pair[0] in layouts)
        ranks = list(pico.run(steps, wanted, world_size=world))
        found |= {key: [rank[key] for rank in ranks] for key in ranks[0]}
    return found


def differing(found, formula):
    """The reasons whose count, payload or bytes on the wire are not the formula's."""
    return [
        key
        for key in found.keys() | formula.keys()
        if key not in found
        or key not in formula
        or (found[key].count, found[key].payload_bytes) != formula[key][:2]
        or found[key].ring_bytes != pytest.approx(formula[key].ring_bytes, rel=1e-12)
    ]


@pytest.mark.parametrize("layout, case", PAIRS)
def test_formula_equals_measurement(measured, layout, case):
    options = dict(micro_batch=2) | CASES[case]
    config = CONFIG.replace(**{k: options.pop(k, False) for k in ("tied", "qkv_bias")})
    ranks = measured[layout, case]
    assert len(ranks) == Layout.parse(layout).world
    for rank, found in enumerate(ranks):
        assert not differing(found, costs.step_ledger(config, layout, rank=rank, **options)), rank


@pytest.mark.parametrize("layout", ["pp2", "dp2tp2", "tp2cp2", "tp2pp2sp"])
def test_mutant_one_formula_for_all_ranks_is_caught(measured, layout):
    """Which would do if every size were divided evenly and every stage were alike."""
    formula = costs.step_ledger(CONFIG, layout, micro_batch=2)
    assert not differing(measured[layout, 0][0], formula)
    assert any(differing(found, formula) for found in measured[layout, 0][1:])


@pytest.mark.parametrize(
    ("layout", "other"), [("tp2sp", "tp2"), ("tp4sp", "tp4"), ("dp2tp2sp", "dp2tp2")]
)
def test_sequence_parallelism_sends_the_same_bytes(measured, layout, other):
    """Measured, over tp: an all-reduce is a reduce-scatter and an all-gather. What sp adds is one
    small all-reduce for the norms."""
    both = [case for case in range(len(CASES)) if {(layout, case), (other, case)} <= set(measured)]
    assert 0 in both
    for case in both:
        settings = CASES[case]
        if "sp_inputs" in settings:
            continue  # it sends more
        for split, whole in zip(measured[layout, case], measured[other, case]):
            sent = [
                sum(
                    totals.ring_bytes
                    for (_, axis, reason), totals in ledger.items()
                    if axis == "tp" and reason != "sp: gradients of the norms"
                )
                for ledger in (split, whole)
            ]
            assert sent[0] == pytest.approx(sent[1], rel=1e-12)
            norms = split["all_reduce", "tp", "sp: gradients of the norms"]
            size = costs.dtype_bytes(settings.get("dtype", "fp32"))
            elements = (2 * CONFIG.layers + 1) * CONFIG.hidden
            assert (norms.count, norms.payload_bytes) == (1, elements * size)


def test_stages_of_sequence_parallel_ranks_send_less(measured):
    sends = [
        measured[layout, 0][0]["send", "pp", "pp: activations"].payload_bytes
        for layout in ("tp2pp2", "tp2pp2sp")
    ]
    assert sends[0] == 2 * sends[1]


def twice_as_often(layout):
    """Mutants: a step whose gradients are synchronised in every micro-batch, and one without
    fusion.
    """
    from picolab.parallel import data, tensor, tensor_comm

    if layout == "dp2":
        naive = data.naive_sync
        data.DataParallelOptimizer._start = lambda self, bucket: None
        data.DataParallelOptimizer.finish = lambda self: naive(self.model)
    else:
        tensor.ColumnParallelLinear.forward = lambda self, x: torch.cat(
            [tensor_comm.column_linear(x, w) for w in self.weight.split(self.sizes)], dim=-1
        )
    return one_step(layout, accumulate=1)


@pytest.mark.parametrize("layout", ["dp2", "tp2"])
def test_mutants_do_not_match_the_formula(layout):
    found = pico.run(twice_as_often, layout, world_size=2)[0]
    formula = costs.step_ledger(CONFIG, layout, micro_batch=2)
    assert differing(found, formula)
