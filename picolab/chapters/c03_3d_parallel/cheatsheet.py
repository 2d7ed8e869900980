"""The cheat sheet of chapter 3, as data. What a line is, and how it is worked out and rendered:
picolab/interview/cheatsheet.py.
"""

from picolab.interview.cheatsheet import Line, Section, Sheet

_SETUP = {
    "tiny": 'pico.ModelConfig.preset("tiny")',
    "llama70": 'pico.ModelConfig.preset("llama-3-70b")',
    "h100": 'pico.Hardware.preset("h100-sxm")',
}

_STATES = "pico.costs.state_bytes"
_BUBBLE = "pico.costs.bubble_of_total"
_ZERO = "tests/unit/costs/test_zero.py"
_ZOO = "tests/unit/schedules/test_zoo.py"
_COST = "F=1, B=1, W=1"


def _zero(stage: int, formula: str, where: str = "zero-bytes-table", how: str = "measured") -> Line:
    return Line(
        f"a parameter at ZeRO-{stage}, fp32, AdamW",
        formula,
        "P=4, G=4, M=8, d=4",
        f"{_STATES}(1, **pico.costs.BYTES_16_FP32, zero={stage}, dp=4).total",
        "bytes",
        where,
        how,
    )


_SECTIONS = [
    Section(
        "ZeRO: what a rank keeps",
        "P parameter, G gradient, C master copy, M Adam's moments; N of them on d ranks",
        [
            _zero(1, "P + G + M/d"),
            _zero(2, "P + (G + M)/d", "zero-bytes-compare"),
            _zero(3, "(P + G + M)/d"),
            Line(
                "llama70 at ZeRO-2, bf16 with fp32 gradients, on d ranks",
                "N*(P + (G + C + M)/d)",
                "N=pico.costs.parameters(llama70).total, P=2, G=4, C=4, M=8, d=64",
                f"{_STATES}(pico.costs.parameters(llama70).total, "
                "**pico.costs.BYTES_18_FP32_GRADIENTS, zero=2, dp=64).total",
                "bytes",
                "plan-by-hand",
                "computed",
            ),
            Line(
                "the same at ZeRO-3",
                "N*(P + G + C + M)/d",
                "N=pico.costs.parameters(llama70).total, P=2, G=4, C=4, M=8, d=64",
                f"{_STATES}(pico.costs.parameters(llama70).total, "
                "**pico.costs.BYTES_18_FP32_GRADIENTS, zero=3, dp=64).total",
                "bytes",
                _ZERO,
                "tested",
            ),
        ],
    ),
    Section(
        "ZeRO: what a rank sends in a step",
        "N numbers of g and p bytes, d ranks, m micro-batches; ring",
        [
            Line(
                "stages without sharded parameters: what an all-reduce sends",
                "(d-1)/d*N*(g + p)",
                "d=4, N=1e9, g=4, p=4",
                "pico.costs.zero_bytes(1e9, 4, zero=2)",
                "bytes",
                "zero-traffic-table",
            ),
            Line(
                "parameters sharded: gathered in each forward and each backward",
                "(d-1)/d*N*(g + 2*m*p)",
                "d=4, N=1e9, g=4, p=4, m=4",
                "pico.costs.zero_bytes(1e9, 4, zero=3, micro_batches=4)",
                "bytes",
                "zero-traffic-compare",
            ),
            Line(
                "that, over the all-reduce of the gradients",
                "(1 + 2*m)/2",
                "m=4",
                "pico.costs.zero_bytes(1e9, 4, zero=3, micro_batches=4) / "
                'pico.costs.ring_bytes("all_reduce", 4e9, 4)',
                "",
                "zero-traffic-compare",
            ),
        ],
    ),
    Section(
        "Bubbles: idle share of the total",
        "p ranks, m micro-batches, v stages a rank; F, B, W of a micro-batch on a rank, B of the "
        "input alone; links free",
        [
            Line(
                "GPipe and 1F1B",
                "(p-1)/(m + p-1)",
                "p=4, m=8",
                f"{_BUBBLE}(4, 8)",
                "%",
                "zoo-table",
            ),
            Line(
                "interleaved",
                "(p-1)/(v*m + p-1)",
                "p=4, m=8, v=2",
                f'{_BUBBLE}(4, 8, "interleaved")',
                "%",
                "zoo-table",
            ),
            Line(
                "ZB-H one (W put off; W no longer than F or B)",
                "(p-1)*(F + B - W)/(m*(F + B + W) + (p-1)*(F + B - W))",
                f"p=4, m=8, {_COST}",
                f'{_BUBBLE}(4, 8, "zb-h1")',
                "%",
                "zoo-table",
            ),
            Line(
                "ZB-V (there and back)",
                "(p-1)*B/2/(m*(F + B + W) + (p-1)*B/2)",
                f"p=4, m=8, {_COST}",
                f'{_BUBBLE}(4, 8, "zb-v")',
                "%",
                "zoo-table",
            ),
            Line(
                "DualPipeV (F = B = W)",
                "(p-1)*F/2/(m*(F + B + W) + (p-1)*F/2)",
                f"p=4, m=8, {_COST}",
                f'{_BUBBLE}(4, 8, "dualpipe-v")',
                "%",
                "zoo-table",
            ),
        ],
    ),
    Section(
        "What is held: micro-batches of a stage",
        "p ranks, m micro-batches, v stages a rank, r the rank",
        [
            Line(
                "interleaved, rank r",
                "min((v-1)*p + 2*(p-1-r) + 1, v*m)",
                "p=4, m=8, v=2, r=0",
                'pico.costs.in_flight("interleaved", 4, 8, rank=0)',
                "",
                _ZOO,
                "tested",
            ),
            Line(
                "ZB-H one, every rank",
                "min(p, m)",
                "p=4, m=8",
                'pico.costs.in_flight("zb-h1", 4, 8, rank=3)',
                "",
                "zoo-held-compare",
            ),
            Line(
                "ZB-V, in halves of a rank",
                "min(2*p, m + 1 + r, 2*m)",
                "p=4, m=8, r=0",
                'pico.costs.in_flight("zb-v", 4, 8, rank=0)',
                "",
                _ZOO,
                "tested",
            ),
        ],
    ),
]

SHEET = Sheet(
    stem="cheatsheet_3d",
    title="picolab, chapter 3: ZeRO, schedules and layouts in numbers",
    notebook="03_3d_parallel",
    setup=_SETUP,
    sections=_SECTIONS,
)
