"""The cheat sheet of chapter 2, as data. What a line is, and how it is worked out and rendered:
picolab/interview/cheatsheet.py.
"""

from picolab.interview.cheatsheet import Line, Section, Sheet

_SETUP = {
    "tiny": 'pico.ModelConfig.preset("tiny-moe")',
    "mixtral": 'pico.ModelConfig.preset("mixtral-8x7b")',
}
_COSTS = "tests/unit/costs/test_experts.py"
_PARAMETERS = "tests/unit/costs/test_parameters.py"
_MIXTRAL = "L=32, h=4096, f=14336, E=8, k=2, a=4096, v=1024, V=32000"

_SECTIONS = [
    Section(
        "Parameters",
        "L layers, h hidden, f width of an expert, E experts, k of them a token, a and v widths of "
        "queries and of keys, V vocabulary",
        [
            Line(
                "all of Mixtral",
                "L*(2*h*a + 2*h*v + h*E + 3*h*f*E + 2*h) + 2*V*h + h",
                _MIXTRAL,
                "pico.costs.parameters(mixtral).total",
                "",
                "scale-active-compare",
            ),
            Line(
                "active: those that one token passes",
                "L*(2*h*a + 2*h*v + h*E + 3*h*f*k + 2*h) + 2*V*h + h",
                _MIXTRAL,
                "pico.costs.parameters(mixtral).active",
                "",
                "scale-active-compare",
            ),
            Line(
                "routed experts of a layer on a rank of ep, e ranks",
                "E*3*h*f/e",
                "E=8, h=4096, f=14336, e=8",
                "pico.costs.held_parameters(mixtral, [0], ep=8).experts",
                "",
                _PARAMETERS,
                "tested",
            ),
        ],
    ),
    Section(
        "Capacity and drops, by chance",
        "T tokens that are looked at together, E experts, k choices a token, c capacity factor",
        [
            Line(
                "rows that an expert takes (rounded up)",
                "c*T*k/E",
                "c=1.25, T=1024, k=1, E=8",
                "pico.costs.expert_capacity(1024, 8, 1, 1.25)",
                "",
                "drop-guess-compare",
            ),
            Line(
                "share of choices beyond it, where a fair router has a mean load of Tk/E",
                "",
                "c=1, T=512, k=1, E=8",
                "pico.costs.dropped_share(512, 8, 1, 1.0)",
                "%",
                "drop-guess-compare",
            ),
        ],
    ),
    Section(
        "What travels for experts on ranks",
        "e ranks of ep, d replicas, T tokens of a rank, k choices a token, h hidden, b bytes of a "
        "number, N numbers of all experts; one layer, one micro-batch",
        [
            Line(
                "rows there and back, and their gradients, dropless",
                "4*(e-1)/e*T*k*h*b",
                "e=4, T=1024, k=2, h=128, b=4",
                'pico.costs.expert_parallel_bytes(tiny, 4, 1024, dtype="fp32")',
                "bytes",
                "a2a-compare",
            ),
            Line(
                "gradients of experts, over the replicas of an expert",
                "2*(d/e-1)/(d/e)*N/e*b",
                "d=4, e=2, N=1e6, b=4",
                'pico.costs.ring_bytes("all_reduce", 4 * 1e6 / 2, 2)',
                "bytes",
                "axes-table",
            ),
            Line(
                "nodes that a token's choices lie in, of g, by chance",
                "",
                "",
                "pico.costs.distinct_groups(256, 8, 8)",
                "",
                "scale-nodes-compare",
            ),
        ],
    ),
]

SHEET = Sheet(
    stem="cheatsheet_moe",
    title="picolab, chapter 2: experts in numbers",
    notebook="02_moe",
    setup=_SETUP,
    sections=_SECTIONS,
)
