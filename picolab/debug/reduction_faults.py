"""Faults of the catalogue that are one sum treated wrongly: left out, taken twice, or averaged.

Each names the sum by the reason that its caller gives, and says where such a mistake was reported.
"""

from picolab.debug.faults import reduction

_PICOTRON = "huggingface/picotron"
_LEARNING = "picotron-learning"
_COMPOSED = "NVIDIA/Megatron-LM issue 7452"
_NORM = "NVIDIA/Megatron-LM PRs 5916 and 6080 (gradient norm under-counted)"
_CONTEXT_LOSS = "NVIDIA/Megatron-LM issues 673 and 906 (how the loss is scaled when ranks share it)"
_LIKE = "the same mistake as its neighbours, at another place"

reduction(
    "dp-gradients",
    "dp: gradient bucket",
    "whole gradients",
    {
        "missing": f"{_PICOTRON}, data_parallel.py:39 (gradients stay unequal on the replicas)",
        "doubled": "pytorch issue 160285, NVIDIA/Megatron-LM PR 5956 (gradients exactly doubled)",
        "averaged": _CONTEXT_LOSS,
    },
)
reduction(
    "dp-count",
    "dp: count of valid tokens",
    "dp",
    {
        "missing": "pytorch/torchtitan PR 2206 (each rank divided by its own count)",
        "doubled": "huggingface/transformers PR 35438 (a wrong count, the loss off by a factor)",
    },
)
reduction(
    "dp-loss",
    "dp: loss",
    "dp or cp",
    {
        "missing": f"{_PICOTRON}, utils.py:94 (ranks log a loss that is not the batch's)",
        "doubled": "pytorch/torchtitan PR 105 (the loss was reduced over the whole mesh)",
        "averaged": _LIKE,
    },
)
reduction(
    "tp-row-output",
    "tp: row-parallel output",
    "tp without sp",
    {
        "missing": f"{_LEARNING}, RowParallelLinear (it has no all-reduce)",
        "doubled": "huggingface/text-generation-inference issue 1036 (the bias added tp times)",
        "averaged": _LIKE,
    },
)
reduction(
    "tp-input-gradient",
    "tp: column-parallel input gradient",
    "tp without sp",
    {
        "missing": "NVIDIA/Megatron-LM issue 1446 (gradients of norms differ over tp)",
        "doubled": "tenstorrent/tt-metal PR 31748 (two all-reduces in the backward pass)",
        "averaged": _LIKE,
    },
)
reduction(
    "tp-embedding",
    "tp: embedding output",
    "tp without sp",
    {"missing": _LIKE, "doubled": _LIKE, "averaged": _LIKE},
)
reduction(
    "tp-loss-maximum",
    "tp: cross entropy maximum",
    "tp",
    # (Twice is harmless, and an average too: softmax does not depend on what is subtracted.)
    {"missing": f"{_COMPOSED}, finding 1 (every rank has another loss)"},
)
reduction(
    "tp-loss-sums",
    "tp: cross entropy sums",
    "tp",
    {
        "missing": f"{_COMPOSED}, finding 1 (every rank has another loss)",
        "doubled": f"{_COMPOSED}, finding 2 (the loss is off by log(tp))",
    },
)
reduction(
    "tp-norm",
    "tp: gradient norm",
    "tp",
    {"missing": _NORM, "doubled": _LIKE, "averaged": _LIKE},
)


reduction(
    "sp-norm-gradients",
    "sp: gradients of the norms",
    "sp",
    {
        "missing": "NVIDIA/Megatron-LM issue 1446 (gradients of norms differ over tp)",
        "doubled": _LIKE,
        "averaged": _LIKE,
    },
)
reduction(
    "pp-loss",
    "pp: loss",
    "pp",
    {"missing": f"{_PICOTRON}, utils.py:94 (the loss is 0 on every rank but the last stage's)"},
)
reduction(
    "pp-norm",
    "pp: gradient norm",
    "pp",
    {"missing": _LIKE, "doubled": _LIKE, "averaged": _LIKE},
)
