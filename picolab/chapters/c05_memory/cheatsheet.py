"""The cheat sheet of chapter 5, as data. What a line is, and how it is worked out and rendered:
picolab/interview/cheatsheet.py.
"""

from picolab.interview.cheatsheet import Line, Section, Sheet

_SETUP = {
    "tiny": 'pico.ModelConfig.preset("tiny")',
    "gpt3": 'pico.ModelConfig.preset("gpt-3-175b")',
}
_MEMORY = "tests/unit/costs/test_memory.py"
_ACTIVATIONS = "tests/unit/costs/test_activations.py"
_MONITOR = "tests/distributed/memory/test_monitor.py"
_STATES = "pico.costs.state_bytes(1, param_bytes={}, grad_bytes={}, master_bytes={}, moment_bytes=8"
_SCORES = 'pico.costs.layer_activation_bytes(gpt3, attention="scores", dropout=True, seq=2048'
_AGAIN = 'pico.costs.layer_activation_bytes(tiny.replace(hidden=64), seq=256, dtype="fp32", '


def _states(parameter: int, gradient: int, master: int, more: str = "") -> str:
    return _STATES.format(parameter, gradient, master) + f"{more}).total"


_SECTIONS = [
    Section(
        "What a parameter takes",
        "P itself, G its gradient, M its master copy, A AdamW's two moments; n replicas; bytes",
        [
            Line(
                "fp32 throughout",
                "P + G + A",
                "P=4, G=4, A=8",
                _states(4, 4, 0),
                "bytes",
                _MEMORY,
                "tested",
            ),
            Line(
                "bf16, with masters",
                "P + G + M + A",
                "P=2, G=2, M=4, A=8",
                _states(2, 2, 4),
                "bytes",
                _MEMORY,
                "tested",
            ),
            Line(
                "the same, gradients in fp32",
                "P + G + M + A",
                "P=2, G=4, M=4, A=8",
                _states(2, 4, 4),
                "bytes",
                "states-compare",
            ),
            Line(
                "ZeRO-1 of fp32, a rank",
                "P + G + A/n",
                "P=4, G=4, A=8, n=2",
                _states(4, 4, 0, ", zero=1, dp=2"),
                "bytes",
                "zero-compare",
            ),
            Line(
                "ZeRO-2 of bf16 with masters, a rank",
                "P + (G + M + A)/n",
                "P=2, G=2, M=4, A=8, n=8",
                _states(2, 2, 4, ", zero=2, dp=8"),
                "bytes",
                _MEMORY,
                "tested",
            ),
            Line(
                "ZeRO-3 of the same",
                "(P + G + M + A)/n",
                "P=2, G=2, M=4, A=8, n=8",
                _states(2, 2, 4, ", zero=3, dp=8"),
                "bytes",
                _MEMORY,
                "tested",
            ),
        ],
    ),
    Section(
        "What backward needs of our block",
        "t tokens, h hidden, f inner width, V vocabulary; a heads for queries, k for keys and for "
        "values, e numbers in one; fp32, b bytes a number; on a CPU",
        [
            Line(
                "a norm: its input over its size, one number a row, its result",
                "t*(2*h*b + 4)",
                "t=128, h=128, b=4",
                'pico.costs.saved_bytes(tiny)["attention_norm"]',
                "bytes",
                "block-compare",
            ),
            Line(
                "queries, keys, values: one storage",
                "t*(a + 2*k)*e*b",
                "t=128, a=8, k=4, e=16, b=4",
                'pico.costs.saved_bytes(tiny)["attention.qkv"]',
                "bytes",
                "block-compare",
            ),
            Line(
                "attention: rotated q and k, its result, a log-sum-exp a head",
                "t*((2*a + k)*e*b + 4*a)",
                "t=128, a=8, k=4, e=16, b=4",
                'pico.costs.saved_bytes(tiny)["attention"]',
                "bytes",
                "block-compare",
            ),
            Line(
                "gate and up",
                "t*2*f*b",
                "t=128, f=352, b=4",
                'pico.costs.saved_bytes(tiny)["mlp.gate_up"]',
                "bytes",
                "block-compare",
            ),
            Line(
                "silu of gate, and its product with up",
                "t*2*f*b",
                "t=128, f=352, b=4",
                'pico.costs.saved_bytes(tiny)["mlp"]',
                "bytes",
                "block-compare",
            ),
            Line(
                "cross-entropy: log-softmax, and labels of eight bytes",
                "t*(V*b + 8)",
                "t=128, V=256, b=4",
                'pico.costs.saved_ends(tiny)["cross_entropy"]',
                "bytes",
                _MONITOR,
                "tested",
            ),
            Line(
                "a block that is computed again: its input",
                "t*h*b",
                "t=256, h=64, b=4",
                _AGAIN + 'recompute="full")',
                "bytes",
                "again-kept-compare",
            ),
        ],
    ),
    Section(
        "At scale",
        "one layer of GPT-3, 16 bits, dropout: s tokens, h hidden, a heads; t ranks of tp; 16 "
        "bytes a token are statistics of norms, which tables in print leave out",
        [
            Line(
                "with scores",
                "s*(34*h + 16) + 5*a*s**2",
                "s=2048, h=12288, a=96",
                f"{_SCORES})",
                "bytes",
                _ACTIVATIONS,
                "tested",
            ),
            Line(
                "the scores' part of it",
                "5*a*s**2/(s*(34*h + 16) + 5*a*s**2)",
                "s=2048, h=12288, a=96",
                f"1 - 2048*(34*12288 + 16)/{_SCORES})",
                "%",
                "scores-compare",
            ),
            Line(
                "the same with tp",
                "s*(10*h + 16 + 24*h/t) + 5*a*s**2/t",
                "s=2048, h=12288, a=96, t=8",
                f"{_SCORES}, tp=8)",
                "bytes",
                _ACTIVATIONS,
                "tested",
            ),
            Line(
                "and with sequence parallelism",
                "(s*(34*h + 16) + 5*a*s**2)/t",
                "s=2048, h=12288, a=96, t=8",
                f"{_SCORES}, tp=8, sp=True)",
                "bytes",
                _ACTIVATIONS,
                "tested",
            ),
            Line(
                "computed again as a whole",
                "2*s*h",
                "s=2048, h=12288",
                'pico.costs.layer_activation_bytes(gpt3, recompute="full", seq=2048)',
                "bytes",
                _ACTIVATIONS,
                "tested",
            ),
        ],
    ),
]

SHEET = Sheet(
    stem="cheatsheet_memory",
    title="picolab, chapter 5: memory in numbers",
    notebook="05_memory",
    setup=_SETUP,
    sections=_SECTIONS,
)
