"""The cheat sheet of chapter 4, as data. What a line is, and how it is worked out and rendered:
picolab/interview/cheatsheet.py.
"""

from picolab.interview.cheatsheet import Line, Section, Sheet

_SETUP = {"tiny": 'pico.ModelConfig.preset("tiny")'}
_FORMATS = "tests/unit/precision/test_formats.py"
_MEMORY = "tests/unit/costs/test_memory.py"

_SECTIONS = [
    Section(
        "A format",
        "m bits of mantissa, e0 exponent of the smallest normal number; b bits of an element, s of "
        "a scale for n of them",
        [
            Line(
                "a number is off by at most this share, bf16",
                "1/2**(m+1)",
                "m=7",
                'pico.costs.rounding_unit("bf16")',
                "%",
                "format-count-compare",
            ),
            Line(
                "the same of an fp8 number with more mantissa (the other has a bit less)",
                "1/2**(m+1)",
                "m=3",
                'pico.costs.rounding_unit("e4m3")',
                "%",
                _FORMATS,
                "tested",
            ),
            Line(
                "counting by one ends here, bf16",
                "2**(m+1)",
                "m=7",
                '1 / pico.costs.rounding_unit("bf16")',
                "",
                "format-count-compare",
            ),
            Line(
                "least loss scale that saves a gradient g, a power of two, in fp16",
                "2**(e0 - m)/g",
                "e0=-14, m=10, g=1/2**30",
                'pico.costs.least_loss_scale(1 / 2**30, "fp16")',
                "",
                "range-compare",
            ),
            Line(
                "bits of a number, tiles with an fp32 scale",
                "b + s/n",
                "b=8, s=32, n=128",
                "pico.costs.scaled_bits(8, 32, 128)",
                "",
                "bits-compare",
            ),
            Line(
                "the same for MX",
                "b + s/n",
                "b=8, s=8, n=32",
                "pico.costs.scaled_bits(8, 8, 32)",
                "",
                "bits-compare",
            ),
        ],
    ),
    Section(
        "What the products read",
        "t tokens, L layers, h hidden, a and k widths of queries and of keys, V vocabulary; y, dx "
        "and dW, each operand twice",
        [
            Line(
                "numbers that a head's three products read",
                "2*(t*h + h*V + t*V)",
                "t=512, h=128, V=256",
                'pico.costs.operand_numbers(tiny, 512)["head"]',
                "",
                "adaptive-compare",
            ),
            Line(
                "numbers that queries, keys and values read, all layers",
                "L*2*(t*h + h*(a + 2*k) + t*(a + 2*k))",
                "L=4, t=512, h=128, a=128, k=64",
                'pico.costs.operand_numbers(tiny, 512)["qkv"]',
                "",
                "adaptive-compare",
            ),
        ],
    ),
    Section(
        "What is kept",
        "N parameters; master, gradient and two moments",
        [
            Line(
                "bf16 with masters, a parameter",
                "4 + 4 + 4 + 4",
                "",
                "pico.costs.state_bytes(1, param_bytes=4, grad_bytes=4, master_bytes=0, "
                "moment_bytes=8).total",
                "bytes",
                _MEMORY,
                "tested",
            ),
            Line(
                "bf16 alone",
                "2 + 2 + 2 + 2",
                "",
                "pico.costs.state_bytes(1, param_bytes=2, grad_bytes=2, master_bytes=0, "
                "moment_bytes=4).total",
                "bytes",
                _MEMORY,
                "tested",
            ),
            Line(
                "to go back to, in adaptive: parameter and moments",
                "4*N + 2*4*N",
                "N=1e6",
                "pico.costs.state_bytes(1e6, param_bytes=0, grad_bytes=0, master_bytes=4, "
                "moment_bytes=8).total",
                "bytes",
                "adaptive-losses",
            ),
        ],
    ),
]

SHEET = Sheet(
    stem="cheatsheet_precision",
    title="picolab, chapter 4: precision in numbers",
    notebook="04_mixed_precision",
    setup=_SETUP,
    sections=_SECTIONS,
)
