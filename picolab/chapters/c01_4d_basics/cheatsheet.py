"""The cheat sheet of chapter 1, as data. What a line is, and how it is worked out and rendered:
picolab/interview/cheatsheet.py.
"""

from picolab.interview.cheatsheet import Line, Section, Sheet

_SETUP = {
    "tiny": 'pico.ModelConfig.preset("tiny")',
    "llama8": 'pico.ModelConfig.preset("llama-3-8b")',
    "llama70": 'pico.ModelConfig.preset("llama-3-70b")',
    "llama405": 'pico.ModelConfig.preset("llama-3.1-405b")',
    "h100": 'pico.Hardware.preset("h100-sxm")',
}

_RING = "pico.costs.ring_bytes"
_TIME = "pico.costs.collective_time"
_WIRE = "tests/distributed/comm/test_wire.py"
_COLLECTIVES = "tests/unit/costs/test_collectives.py"
_LEDGER = "tests/distributed/test_formula_ledger.py"
_CONTEXT = "tests/distributed/parallel/test_context.py"


def _step(layout: str, op: str, axis: str, reason: str, what: str, accumulate: int = 1) -> str:
    """The call for one line of a step's ledger."""
    sizes = f"micro_batch=1, accumulate={accumulate}"
    return f'pico.costs.step_ledger(tiny, "{layout}", {sizes})["{op}", "{axis}", "{reason}"].{what}'


_HEADS = "E=llama8.head_dim, N=llama8.heads, K=llama8.kv_heads"

_SECTIONS = [
    Section(
        "Collectives: bytes that one rank sends",
        "B payload: the whole tensor; n ranks; on a ring",
        [
            Line(
                "all-reduce",
                "2*(n-1)/n*B",
                "n=8, B=1e9",
                f'{_RING}("all_reduce", 1e9, 8)',
                "bytes",
                "ring-bytes-compare",
            ),
            *(
                Line(
                    op.replace("_", "-"),
                    "(n-1)/n*B",
                    "n=8, B=1e9",
                    f'{_RING}("{op}", 1e9, 8)',
                    "bytes",
                    test,
                    "tested",
                )
                for op, test in (
                    ("reduce_scatter", _COLLECTIVES),
                    ("all_gather", _WIRE),
                    ("all_to_all", _WIRE),
                )
            ),
            Line(
                "broadcast (mean of the ranks)",
                "(n-1)/n*B",
                "n=8, B=1e9",
                f'{_RING}("broadcast", 1e9, 8)',
                "bytes",
                _COLLECTIVES,
                "tested",
            ),
            Line(
                "send (recv and barrier: nothing)",
                "B",
                "B=1e9",
                f'{_RING}("send", 1e9, 2)',
                "bytes",
                "pp-equality",
            ),
        ],
    ),
    Section(
        "Collectives: time",
        "a (alpha) seconds a message, b (beta) seconds a byte",
        [
            Line(
                "all-reduce, ring",
                "2*(n-1)*a + 2*(n-1)/n*B*b",
                "n=8, B=1e9, a=10e-6, b=1/450e9",
                f'{_TIME}("all_reduce", 1e9, 8, 10e-6, 1/450e9)',
                "s",
                "collectives-alpha-beta",
            ),
            Line(
                "all-gather, reduce-scatter, all-to-all",
                "(n-1)*a + (n-1)/n*B*b",
                "n=8, B=1e9, a=10e-6, b=1/450e9",
                f'{_TIME}("all_gather", 1e9, 8, 10e-6, 1/450e9)',
                "s",
                _COLLECTIVES,
                "tested",
            ),
            Line(
                "broadcast, binomial tree",
                "ceil(log2(n))*(a + B*b)",
                "n=8, B=1e9, a=10e-6, b=1/450e9",
                f'{_TIME}("broadcast", 1e9, 8, 10e-6, 1/450e9)',
                "s",
                _COLLECTIVES,
                "tested",
            ),
            Line(
                "send",
                "a + B*b",
                "B=1e9, a=10e-6, b=1/450e9",
                f'{_TIME}("send", 1e9, 2, 10e-6, 1/450e9)',
                "s",
                _COLLECTIVES,
                "tested",
            ),
        ],
    ),
    Section(
        "Bytes of states",
        "P parameter, G gradient, C master copies, M Adam's moments; d ranks of dp",
        [
            Line(
                "fp32: one parameter",
                "P + G + M",
                "P=4, G=4, M=8",
                "pico.costs.state_bytes(1, **pico.costs.BYTES_16_FP32).total",
                "bytes",
                "why-bytes-compare",
            ),
            *(
                Line(
                    what,
                    "P + G + C + M",
                    given,
                    f"pico.costs.state_bytes(1, **pico.costs.{recipe}).total",
                    "bytes",
                    "why-fits",
                    "computed",
                )
                for what, given, recipe in (
                    ("bf16, fp32 master", "P=2, G=2, C=4, M=8", "BYTES_16_BF16"),
                    (
                        "bf16, fp32 gradients and master",
                        "P=2, G=4, C=4, M=8",
                        "BYTES_18_FP32_GRADIENTS",
                    ),
                    ("fp16, fp32 copies of both", "P=2, G=2, C=8, M=8", "BYTES_20_FP16"),
                )
            ),
            Line(
                "parameters of a Llama decoder (V vocabulary, k key width, f ffn)",
                "2*V*h + l*(2*h*h + 2*h*k + 3*h*f + 2*h) + h",
                "V=llama8.vocab, h=llama8.hidden, l=llama8.layers, f=llama8.ffn, "
                "k=llama8.kv_heads*llama8.head_dim",
                "pico.costs.parameters(llama8).total",
                "",
                "why-fits",
                "computed",
            ),
            Line(
                "ZeRO-2: gradients and optimizer sharded; all of llama8, bf16, fp32 gradients",
                "N*(P + (G + C + M)/d)",
                "N=pico.costs.parameters(llama8).total, P=2, G=4, C=4, M=8, d=64",
                "pico.costs.state_bytes(pico.costs.parameters(llama8).total, "
                "**pico.costs.BYTES_18_FP32_GRADIENTS, zero=2, dp=64).total",
                "bytes",
                "close-llama-why",
                "computed",
            ),
        ],
    ),
    Section(
        "Data parallel, one step",
        "N parameters of the rank, g bytes a gradient, d ranks; sums here, means in DDP",
        [
            Line(
                "payload of all gradients",
                "N*g",
                "N=pico.costs.parameters(tiny).total, g=4",
                _step("dp4", "all_reduce", "dp", "dp: gradient bucket", "payload_bytes", 4),
                "bytes",
                "dp-payload-compare",
            ),
            Line(
                "what a rank sends for it",
                "2*(d-1)/d*N*g",
                "N=pico.costs.parameters(tiny).total, g=4, d=4",
                "pico.costs.data_parallel_bytes(pico.costs.parameters(tiny).total, 4)",
                "bytes",
                _LEDGER,
                "tested",
            ),
            Line(
                "all-reduces: one a bucket",
                "",
                "",
                _step("dp4", "all_reduce", "dp", "dp: gradient bucket", "count", 4),
                "",
                "dp-ledger",
            ),
            Line(
                "with tp beside it: only the rank's own shard",
                "",
                "",
                _step("dp2tp2", "all_reduce", "dp", "dp: gradient bucket", "payload_bytes"),
                "bytes",
                "close-layout-run",
            ),
        ],
    ),
    Section(
        "Tensor parallel, one micro-batch",
        "t ranks, l layers, b sequences of s tokens, h hidden, w bytes a number",
        [
            Line(
                "all-reduces forward (g: after attention, after the MLP)",
                "2*l",
                "l=tiny.layers",
                _step("tp2", "all_reduce", "tp", "tp: row-parallel output", "count"),
                "",
                "tp-count-compare",
            ),
            Line(
                "all-reduces backward (f: before them; the head's too)",
                "2*l + 1",
                "l=tiny.layers",
                _step("tp2", "all_reduce", "tp", "tp: column-parallel input gradient", "count"),
                "",
                "tp-count-compare",
            ),
            Line(
                "payload of the forward ones",
                "2*l*b*s*h*w",
                "l=tiny.layers, b=1, s=tiny.seq, h=tiny.hidden, w=4",
                _step("tp2", "all_reduce", "tp", "tp: row-parallel output", "payload_bytes"),
                "bytes",
                "tp-ledger",
            ),
            Line(
                "what a rank sends for one layer, forward and backward",
                "8*(t-1)/t*b*s*h*w",
                "t=8, b=1, s=8192, h=llama70.hidden, w=2",
                "pico.costs.tensor_parallel_layer_bytes(llama70, 8, micro_batch=1, seq=8192, "
                'dtype="bf16")',
                "bytes",
                "tp-payload",
                "computed",
            ),
            Line(
                "the whole of tiny with sequence parallel: no byte more than without",
                "(4*l + 2)*2*(t-1)/t*b*s*h*w",
                "t=2, l=tiny.layers, b=1, s=tiny.seq, h=tiny.hidden, w=4",
                'sum(e.ring_bytes for key, e in pico.costs.step_ledger(tiny, "tp2sp", '
                'micro_batch=1).items() if key[0] != "all_reduce")',
                "bytes",
                _LEDGER,
                "tested",
            ),
            Line(
                "and once a step the gradients of the norms, which see a part of the tokens",
                "(2*l + 1)*h*w",
                "l=tiny.layers, h=tiny.hidden, w=4",
                _step("tp2sp", "all_reduce", "tp", "sp: gradients of the norms", "payload_bytes"),
                "bytes",
                _LEDGER,
                "tested",
            ),
        ],
    ),
    Section(
        "Pipeline parallel",
        "p stages, m micro-batches, r the stage; GPipe and 1F1B alike but for what they hold",
        [
            Line(
                "bubble of total: idle over all time",
                "(p-1)/(m+p-1)",
                "p=4, m=8",
                "pico.costs.bubble_of_total(4, 8)",
                "%",
                "pp-bubble-compare",
            ),
            Line(
                "bubble of ideal: idle over busy time",
                "(p-1)/m",
                "p=4, m=8",
                "pico.costs.bubble_of_ideal(4, 8)",
                "%",
                "pp-bubble-compare",
            ),
            Line(
                "length of a step, forward f, backward g units",
                "(m+p-1)*(f+g)",
                "p=4, m=8, f=1, g=2",
                'pico.schedules.simulate(pico.schedules.make("1f1b", 4, 8)).makespan',
                "",
                "tests/unit/schedules/test_simulator.py",
                "tested",
            ),
            Line(
                "activations in flight, GPipe",
                "m",
                "m=8",
                'pico.costs.in_flight("gpipe", 4, 8, rank=0)',
                "",
                "pp-held",
            ),
            Line(
                "activations in flight, 1F1B (here the first stage)",
                "min(p-r, m)",
                "p=4, m=8, r=0",
                'pico.costs.in_flight("1f1b", 4, 8, rank=0)',
                "",
                "pp-held",
            ),
            Line(
                "sent to the next stage, and back, each micro-batch",
                "b*s*h*w",
                "b=1, s=tiny.seq, h=tiny.hidden, w=4",
                _step("pp4", "send", "pp", "pp: activations", "payload_bytes"),
                "bytes",
                "pp-equality",
            ),
            Line(
                "v thin stages a rank (interleaved)",
                "(p-1)/(v*m+p-1)",
                "p=16, m=16, v=8",
                "pico.costs.bubble_of_total(16, 8*16)",
                "%",
                "close-llama-bubble",
                "computed",
            ),
        ],
    ),
    Section(
        "Context parallel, causal",
        "c ranks, l layers; K key and N query heads of E; w bytes a number",
        [
            Line(
                "ring: keys and values sent, forward and again backward",
                "2*(c-1)*l * 2*b*(s/c)*K*E*w",
                "c=4, l=tiny.layers, b=1, s=tiny.seq, K=tiny.kv_heads, E=tiny.head_dim, w=4",
                _step("cp4", "send", "cp", "cp: keys and values", "payload_bytes"),
                "bytes",
                "cp-train",
            ),
            Line(
                "ring: their gradients, backward, in fp32",
                "(c-1)*l * 2*b*(s/c)*K*E*w",
                "c=4, l=tiny.layers, b=1, s=tiny.seq, K=tiny.kv_heads, E=tiny.head_dim, w=4",
                _step("cp4", "send", "cp", "cp: gradients of keys and values", "payload_bytes"),
                "bytes",
                "cp-train",
            ),
            Line(
                "Ulysses: two all-to-alls forward a layer (q, k, v; then the output), as many back",
                "(c-1)/c*b*(s/c)*E*(N + 2*K + N)*w",
                f"c=4, b=1, s=8192, w=2, {_HEADS}",
                f'{_RING}("all_to_all", 8192//4 * 2*llama8.head_dim'
                "*(llama8.heads + 2*llama8.kv_heads), 4)"
                f' + {_RING}("all_to_all", 8192//4 * 2*llama8.head_dim*llama8.heads, 4)',
                "bytes",
                _CONTEXT,
                "tested",
            ),
            Line(
                "scores of the last rank, contiguous",
                "(2*c-1)/c**2",
                "c=4",
                "pico.costs.causal_share(3, 4)",
                "%",
                "cp-share-compare",
            ),
            Line(
                "scores of every rank, zig-zag (chunks r and its mirror image)",
                "1/c",
                "c=4",
                'pico.costs.causal_share(3, 4, "zigzag")',
                "%",
                "cp-work-table",
            ),
        ],
    ),
    Section(
        "One global gradient norm",
        "squares of every shard added up over tp and pp, every parameter counted once",
        [
            Line(
                "sent for it: a sum of squares, in fp64, over tp (and one more over pp)",
                "",
                "",
                _step("tp2", "all_reduce", "tp", "tp: gradient norm", "payload_bytes"),
                "bytes",
                "tp-ledger",
            ),
            Line(
                "numbers that every tp rank holds (the norms' weights): only one rank adds them",
                "(2*l + 1)*h",
                "l=tiny.layers, h=tiny.hidden",
                'sum(p.numel for p in pico.costs.local_parameters(tiny, "tp2") if not p.sharded)',
                "",
                "close-verify",
            ),
        ],
    ),
    Section(
        "Rules of thumb",
        "",
        [
            Line(
                "a ring all-reduce on many ranks sends nearly twice the tensor, at no n more",
                "2*(n-1)/n",
                "n=1024",
                f'{_RING}("all_reduce", 1, 1024)',
                "",
                "ring-factor-table",
                "computed",
            ),
            Line(
                "an all-reduce of fewer bytes waits for latency most of its time: merge messages",
                "n*a/b",
                "n=8, a=10e-6, b=1/450e9",
                'pico.costs.half_bandwidth_bytes("all_reduce", 8, 10e-6, 1/450e9)',
                "bytes",
                "collectives-alpha-beta",
            ),
            Line(
                "four micro-batches a stage keep the bubble below a fifth",
                "(p-1)/(m+p-1)",
                "p=8, m=32",
                "pico.costs.bubble_of_total(8, 4*8)",
                "%",
                "pp-bubble-compare",
            ),
            Line(
                "cards for the states of llama8 alone, bf16 with fp32 gradients",
                "",
                "",
                "pico.costs.state_bytes(pico.costs.parameters(llama8).total, "
                "**pico.costs.BYTES_18_FP32_GRADIENTS).total / h100.memory_bytes",
                "",
                "why-fits",
                "computed",
            ),
            Line(
                "tp stays in the node: sending a micro-batch of llama70 over NVLink, at its peak",
                "l*8*(t-1)/t*b*s*h*w/v",
                "l=llama70.layers, t=8, b=1, s=8192, h=llama70.hidden, w=2, v=450e9",
                "llama70.layers * pico.costs.tensor_parallel_layer_bytes(llama70, 8, "
                'micro_batch=1, seq=8192, dtype="bf16") / h100.link_bytes_per_s',
                "s",
                "tp-node",
                "computed",
            ),
            Line(
                "the same between nodes, over a network card for each GPU",
                "l*8*(t-1)/t*b*s*h*w/v",
                "l=llama70.layers, t=8, b=1, s=8192, h=llama70.hidden, w=2, v=50e9",
                "llama70.layers * pico.costs.tensor_parallel_layer_bytes(llama70, 8, "
                'micro_batch=1, seq=8192, dtype="bf16") / 50e9',
                "s",
                "tp-node",
                "computed",
            ),
            Line(
                "operations of training llama405 on T tokens",
                "6*N*T",
                "N=pico.costs.parameters(llama405).total, T=15.6e12",
                "6 * pico.costs.parameters(llama405).total * 15.6e12",
                "",
                "close-llama-flops",
                "computed",
            ),
            Line(
                "MFU: operations a second that count, over the card's peak",
                "F/Q",
                "F=430e12, Q=989e12",
                "430e12 / h100.peak_flops",
                "%",
                "close-llama",
                "computed",
            ),
        ],
    ),
]

SHEET = Sheet(
    stem="cheatsheet",
    title="picolab, chapter 1: the numbers of 4D parallelism",
    notebook="01_4d_basics",
    setup=_SETUP,
    sections=_SECTIONS,
)
