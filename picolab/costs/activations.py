"""Bytes that a layer keeps for the backward pass, operator by operator.

Whatever an operator needs again to take its gradient stays in memory from the forward pass on. The
list below says which tensors those are; the tables in print are sums of it:

    GPT, scores kept, dropout      sbh (34 + 5as/h)     arXiv 2205.05198, table 2
    Llama, flash attention         4h + 2(a+k)d + 4f numbers a token, and statistics

s tokens, b sequences, h hidden, a heads and k key-value heads of width d, f ffn. Each tensor is cut
over tp ("tp"), or lies between tp's matrices and is cut there only with sequence parallelism
("sp"). cp leaves a rank s/cp tokens.

What is recomputed in the backward pass is not kept:

    none         everything stays
    selective    what is cheap to have again is dropped: the norms' outputs, the activation function
                 and its product, scores and their dropout (arXiv 2205.05198, section 5)
    full         only the layer's input stays; all of one layer is there while it is recomputed

Left out: what a ring of cp buffers, and the fragments that an allocator cannot use.
"""

from typing import Literal, NamedTuple

from picolab.costs.memory import dtype_bytes
from picolab.costs.parameters import has_experts
from picolab.specs import ModelConfig

Recompute = Literal["none", "selective", "full"]
RECOMPUTE = ("none", "selective", "full")
Attention = Literal["flash", "scores"]


class Kept(NamedTuple):
    """A tensor that a layer keeps, for each token."""

    tensor: str
    numbers: float
    split: Literal["tp", "sp"]
    bytes: int | None = None
    """of a number; None: the activations' dtype"""
    cheap: bool = False
    """selective recomputation drops it"""
    statistics: bool = False
    """a few fp32 numbers a token, which the tables in print leave out"""


def kept(
    config: ModelConfig,
    layer: int = 0,
    *,
    seq: int | None = None,
    attention: Attention = "flash",
    dropout: bool = False,
) -> list[Kept]:
    """What one layer keeps for each token of a sequence of `seq`.

    attention: "flash" keeps the output and one log-sum-exp a head (arXiv 2205.14135), "scores" the
    softmax over all tokens. dropout: its masks, a byte a number.
    """
    seq = config.seq if seq is None else seq
    hidden = config.hidden
    stats = 2 if config.family == "gpt" else 1  # LayerNorm's mean and scale, RMSNorm's scale
    norm_statistics = Kept("statistics of a norm", stats, "sp", 4, statistics=True)
    mask = [Kept("dropout's mask", hidden, "sp", 1)] if dropout else []
    return [
        Kept("input of the attention's norm", hidden, "sp"),
        norm_statistics,
        Kept("input of q, k and v", hidden, "sp", cheap=True),
        *_attention(config, seq, attention, dropout),
        *mask,
        Kept("input of the MLP's norm", hidden, "sp"),
        norm_statistics,
        Kept("input of the MLP", hidden, "sp", cheap=True),
        *_mlp(config, layer),
        *mask,
    ]


def _attention(config: ModelConfig, seq: int, attention: Attention, dropout: bool) -> list[Kept]:
    heads, low = config.heads, config.latent
    if low is None:
        queries, keys = heads * config.head_dim, config.kv_heads * config.head_dim
        values, found = keys, []
    else:
        queries = keys = heads * (low.nope_dim + low.rope_dim)
        values = heads * low.value_dim
        found = [
            Kept("compressed queries, keys and values", low.q_rank + low.kv_rank, "sp"),
            Kept("the same, normalised", low.q_rank + low.kv_rank, "sp", cheap=True),
        ]
    if config.qk_norm:
        found.append(Kept("queries and keys before their norms", queries + keys, "tp", cheap=True))
        per_head = heads + config.kv_heads
        found.append(Kept("statistics of their norms", per_head, "tp", 4, statistics=True))
    found.append(Kept("queries and keys", queries + keys, "tp"))
    if attention == "flash":
        found.append(Kept("log-sum-exp of the scores", heads, "tp", 4, statistics=True))
    else:
        found.append(Kept("softmax of the scores", heads * seq, "tp", cheap=True))
        if dropout:
            found.append(Kept("dropout's mask of the scores", heads * seq, "tp", 1, cheap=True))
            found.append(Kept("the scores after dropout", heads * seq, "tp", cheap=True))
    width = heads * (low.value_dim if low else config.head_dim)
    return [*found, Kept("values", values, "tp"), Kept("input of o", width, "tp")]


def _mlp(config: ModelConfig, layer: int) -> list[Kept]:
    if not has_experts(config, layer):
        return _matrices(config, config.ffn)
    each, hidden = config.experts_per_token, config.hidden
    return [
        Kept("the router's probabilities", config.experts, "sp", 4),
        Kept("tokens sent to experts", each * hidden, "sp"),
        *_matrices(config, (each + config.shared_experts) * config.expert_ffn),
        Kept("what experts sent back", each * hidden, "sp"),
    ]


def _matrices(config: ModelConfig, ffn: int) -> list[Kept]:
    if config.family == "gpt":
        return [
            Kept("input of GELU", ffn, "tp"),
            Kept("input of down", ffn, "tp", cheap=True),
        ]
    return [
        Kept("gate and up", 2 * ffn, "tp"),
        Kept("silu of gate", ffn, "tp", cheap=True),
        Kept("input of down", ffn, "tp", cheap=True),
    ]


def layer_activation_bytes(
    config: ModelConfig,
    layer: int = 0,
    *,
    micro_batch: int = 1,
    seq: int | None = None,
    tp: int = 1,
    sp: bool = False,
    cp: int = 1,
    recompute: Recompute = "none",
    dtype: object = "bf16",
    attention: Attention = "flash",
    dropout: bool = False,
) -> float:
    """Bytes that a layer keeps on one rank, of one micro-batch, from forward to backward.

    With "full" it is the layer's input, and the whole of one layer comes on top while it is
    recomputed. Experts: with tokens spread evenly over them. Source: arXiv 2205.05198, section 4
    and table 2; the rest by the same count.
    """
    seq = config.seq if seq is None else seq
    over_tp, between = token_bytes(
        config, layer, seq=seq, recompute=recompute, dtype=dtype, attention=attention,
        dropout=dropout,
    )  # fmt: skip
    return micro_batch * (seq / cp) * (over_tp / tp + between / (tp if sp else 1))


def token_bytes(
    config: ModelConfig,
    layer: int = 0,
    *,
    seq: int | None = None,
    recompute: Recompute = "none",
    dtype: object = "bf16",
    attention: Attention = "flash",
    dropout: bool = False,
) -> tuple[float, float]:
    """Bytes that a layer keeps for a token: of what tp cuts, and of what only sp cuts."""
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute {recompute!r} is not known; it is {', '.join(RECOMPUTE)}")
    size = dtype_bytes(dtype)
    tensors = kept(config, layer, seq=seq, attention=attention, dropout=dropout)
    if recompute == "full":
        tensors = tensors[:1]
    elif recompute == "selective":
        tensors = [tensor for tensor in tensors if not tensor.cheap]
    over_tp, between = (
        sum(t.numbers * (t.bytes or size) for t in tensors if t.split == split)
        for split in ("tp", "sp")
    )
    return over_tp, between


def end_activation_bytes(
    config: ModelConfig,
    *,
    micro_batch: int = 1,
    seq: int | None = None,
    tp: int = 1,
    sp: bool = False,
    cp: int = 1,
    dtype: object = "bf16",
) -> float:
    """Bytes of the last norm, the head and the loss on the last stage, of one micro-batch.

    The norm's input and output, its statistics, and the logits' softmax in fp32 (in the backward
    pass their gradient takes its place; where logits are bf16, both are there for a moment and the
    gradient in bf16 comes on top): 4 sbV/t, often the peak of a small model.
    """
    seq, size = config.seq if seq is None else seq, dtype_bytes(dtype)
    stats = 2 if config.family == "gpt" else 1
    between = (2 * config.hidden * size + stats * 4) / (tp if sp else 1)
    logits = config.vocab * (max(4, size) + (size if size < 4 else 0)) / tp
    return micro_batch * (seq / cp) * (between + logits)
