"""The transformer: a Llama-family decoder (RMSNorm, rotary positions, grouped-query attention,
SwiGLU).

    tokens -> embed -> layers * [x + attention(norm(x)); x + mlp(norm(x))] -> norm -> head -> logits

It is written so that it can be cut without being rewritten: attention reads the number of its heads
from the matrix it holds, and each layer has two matrices that read the residual stream (qkv,
gate_up) and two that write to it (o, down). The first pair is cut by rows and the second by columns
under tensor parallelism; nothing in this file knows of that.

Initial values: normal with mean 0. Matrices that read have std 1/sqrt(fan-in), so that they keep
the size of what they read; the two that write to the residual stream are divided by sqrt(2 *
layers) in addition, so that the stream's variance does not grow with depth (GPT-2's rule, section
2.3 of its report). The head reads too; the first loss is therefore about ln(vocabulary) + 1/2. The
embedding has std 1, or, where it is tied to the head, the head's. Norm weights are 1. Biases of
queries, keys and values, if the config has them, are drawn like the weights of their matrices, as
`torch.nn.Linear` does. (Zero would do; but what then is there after a step is one update, of which
AdamW makes small gradients' rounding visible, and a bias that is added twice does not show.)

Letters in names: B batch, S sequence, D hidden, N query heads, K key-value heads, E size of a head,
F ffn, V vocabulary. Twin: `transformers.LlamaForCausalLM` (same names of its parts in other words;
tests/unit/model compares with an independent implementation). Leaves out: other biases, a
key-value cache, rope scaling but Llama 3's.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from picolab.costs.parameters import BUILT
from picolab.model.layers import Dropout, Embedding, Linear, RMSNorm, RotaryTables, rotate
from picolab.model.parameters import Piece, initialise
from picolab.specs import ModelConfig

IGNORED = -100  # a label that is not counted (padding, the prompt of an instruction)

Tables = tuple[torch.Tensor, torch.Tensor]  # cos and sin
RunBlock = Callable[[nn.Module, torch.Tensor, Tables], torch.Tensor]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
FeedForward = Callable[[ModelConfig, int, torch.dtype], nn.Module]


class Transformer(nn.Module):
    """tokens_BS -> logits_BSV. On the meta device (shapes only) until `initialise` or `load` fills
    it.

    feed_forward: factory (config, layer, dtype) -> module for the second half of each block;
    default SwiGLU. dropout: the share of both residual branches' outputs and of the heads' that is
    set to zero while training (Llama has none). A device other than "meta" fills the model at once,
    from `seed`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        feed_forward: FeedForward | None = None,
        device: torch.device | str = "meta",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}; it is a share, at least 0 and below 1")
        _check_family(config, feed_forward)
        self.config = config
        table, std = (config.vocab, config.hidden), config.hidden**-0.5
        self.embed = Embedding(Piece("embed.weight", table, std=std if config.tied else 1.0), dtype)
        self.layers = nn.ModuleList(
            Block(config, layer, feed_forward or SwiGLU, dtype, dropout)
            for layer in range(config.layers)
        )
        self.norm = RMSNorm("norm.weight", config.hidden, config.norm_eps, dtype)
        self.head = Linear([Piece("head.weight", table, std=std)], dtype)
        if config.tied:
            self.head.weight = self.embed.weight
        self.rotary = RotaryTables(config.head_dim, config.rope_theta, config.rope_scaling)
        # A module, so that whoever wants to listen can hook it; replaced where logits are cut.
        self.cross_entropy: nn.Module = CrossEntropy()
        # Ranks that share what lies between the layers, along the sequence (sequence parallelism).
        self.sequence_shares = 1
        # Places in `layers` before which a pipeline does something else first: where another one of
        # a rank's stages begins.
        self.breaks: frozenset[int] = frozenset()
        # The dtype of what flows between layers, where it is not that of the parameters.
        self.activations: torch.dtype | None = None
        # How a block is run: replaced by whoever recomputes it or moves what it keeps.
        self.run_block: RunBlock = run_block
        if torch.device(device).type != "meta":
            initialise(self, seed, device)

    def forward(self, x: torch.Tensor, positions_S: torch.Tensor | None = None) -> torch.Tensor:
        """tokens (B, S) -> logits (B, S, V). `positions_S`: each token's place in the sequence, if
        not 0 ... S-1.

        A pipeline stage is a model without its embedding, its head or both (None), and some of the
        layers: it takes what the stage before gave, (B, S, D), and returns the same.
        """
        if self.embed is not None:
            x = self.embed(x)
        length = x.shape[1] * self.sequence_shares
        tables = self.rotary(length, x.device, x.dtype, positions_S)
        for block in self.layers:
            x = self.run_block(block, x, tables)
        return x if self.head is None else self.head(self.norm(x))

    def loss(
        self,
        tokens_BS: torch.Tensor,
        labels_BS: torch.Tensor,
        positions_S: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The *sum* of the losses of all labels that count. Dividing it by the global number of
        them is the trainer's.
        """
        return self.cross_entropy(self(tokens_BS, positions_S), labels_BS)


class Block(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        feed_forward: FeedForward,
        dtype: torch.dtype,
        dropout: float = 0.0,
    ):
        super().__init__()
        name, size, eps = f"layers.{layer}", config.hidden, config.norm_eps
        self.attention_norm = RMSNorm(f"{name}.attention_norm.weight", size, eps, dtype)
        self.attention = Attention(config, layer, dtype)
        self.mlp_norm = RMSNorm(f"{name}.mlp_norm.weight", size, eps, dtype)
        self.mlp = feed_forward(config, layer, dtype)
        self.drop = Dropout(dropout)
        self.attention.drop.p = dropout

    def forward(self, x_BSD: torch.Tensor, tables: Tables) -> torch.Tensor:
        x_BSD = x_BSD + self.drop(self.attention(self.attention_norm(x_BSD), tables))
        return x_BSD + self.drop(self.mlp(self.mlp_norm(x_BSD)))


class Attention(nn.Module):
    """Causal attention in which N query heads share K key-value heads (GQA, arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        name, size = f"layers.{layer}.attention", config.hidden
        self.head_dim = config.head_dim
        queries, keys = config.heads * self.head_dim, config.kv_heads * self.head_dim
        std = size**-0.5
        # Where these are cut, a key-value head and the queries that read it stay together.
        groups, heads = config.kv_heads, config.heads
        q_k_v = [
            Piece(f"{name}.q.weight", (queries, size), std=std, blocks=groups, finer=heads),
            Piece(f"{name}.k.weight", (keys, size), std=std, blocks=groups, shared=True),
            Piece(f"{name}.v.weight", (keys, size), std=std, blocks=groups, shared=True),
        ]
        self.qkv = Linear(q_k_v, dtype, [bias_of(p) for p in q_k_v] if config.qkv_bias else ())
        # Replaced where a sequence is split over ranks: (q_BNSE, k_BKSE, v_BKSE) -> out_BNSE.
        self.attend: Attend = causal_attention
        std = (queries * 2 * config.layers) ** -0.5
        o = Piece(f"{name}.o.weight", (size, queries), std=std, blocks=groups, finer=heads)
        self.o = Linear([o], dtype)
        # RMSNorm over each head's query and key, before they are rotated (Qwen3).
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm, self.k_norm = (
                RMSNorm(f"{name}.{of}_norm.weight", self.head_dim, config.norm_eps, dtype)
                for of in ("q", "k")
            )
        self.drop = Dropout(0.0, cut_by_tp=True)

    def forward(self, x_BSD: torch.Tensor, tables: Tables) -> torch.Tensor:
        # The heads held here: all of them, or a tensor-parallel rank's share.
        heads, kv_heads, _ = (size // self.head_dim for size in self.qkv.sizes)
        heads_BSHE = self.qkv(x_BSD).unflatten(-1, (-1, self.head_dim))
        # q and k lie side by side, so one call rotates both.
        qk_BSHE, v_BSKE = heads_BSHE.split([heads + kv_heads, kv_heads], dim=2)
        if self.q_norm is not None:
            q_BSNE, k_BSKE = qk_BSHE.split([heads, kv_heads], dim=2)
            qk_BSHE = torch.cat((self.q_norm(q_BSNE), self.k_norm(k_BSKE)), dim=2)
        q_BSNE, k_BSKE = rotate(qk_BSHE, *tables).split([heads, kv_heads], dim=2)
        out_BNSE = self.attend(
            q_BSNE.transpose(1, 2), k_BSKE.transpose(1, 2), v_BSKE.transpose(1, 2)
        )
        return self.o(self.drop(out_BNSE.transpose(1, 2).flatten(2)))


def bias_of(matrix: Piece) -> Piece:
    """The bias of a matrix's outputs, which is cut where its rows are cut."""
    name = f"{matrix.name.removesuffix('.weight')}.bias"
    return replace(matrix, name=name, shape=matrix.shape[:1])


def causal_attention(
    q_BNSE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor
) -> torch.Tensor:
    """Each token attends to itself and all before it: torch's own kernel, K heads shared by N."""
    grouped = q_BNSE.shape[1] != k_BKSE.shape[1]
    return F.scaled_dot_product_attention(
        q_BNSE, k_BKSE, v_BKSE, is_causal=True, enable_gqa=grouped
    )


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202).

    part, ffn: its name in the layer, and its inner width if that is not config.ffn.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype = torch.float32,
        *,
        part: str = "mlp",
        ffn: int | None = None,
    ):
        super().__init__()
        name, size, ffn = f"layers.{layer}.{part}", config.hidden, ffn or config.ffn
        std = size**-0.5
        self.gate_up = Linear(
            [
                Piece(f"{name}.gate.weight", (ffn, size), std=std),
                Piece(f"{name}.up.weight", (ffn, size), std=std),
            ],
            dtype,
        )
        std = (ffn * 2 * config.layers) ** -0.5
        self.down = Linear([Piece(f"{name}.down.weight", (size, ffn), std=std)], dtype)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        gate_BSF, up_BSF = self.gate_up(x_BSD).split(self.gate_up.sizes, dim=-1)
        return self.down(F.silu(gate_BSF) * up_BSF)


def run_block(block: nn.Module, x_BSD: torch.Tensor, tables: Tables) -> torch.Tensor:
    return block(x_BSD, tables)


class CrossEntropy(nn.Module):
    """`cross_entropy`, as a layer."""

    def forward(self, logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits_BSV, labels_BS)


def cross_entropy(logits_BSV: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
    """The sum over labels that count (not -100) of -log softmax(logits)[label], in fp32 or
    better.
    """
    logits_BSV = logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32))
    return F.cross_entropy(
        logits_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _check_family(config: ModelConfig, feed_forward: FeedForward | None) -> None:
    """Some published shapes are there to calculate with; say so rather than build another model."""
    supplied = {name for name in BUILT if name != "experts" or feed_forward}
    missing = [name for name in config.extensions if name not in supplied]
    if missing:
        hint = "; experts come from moe.feed_forward" if "experts" in missing else ""
        raise ValueError(
            f"{config.name} has {' and '.join(missing)}, which this model does not build{hint}; "
            "take a Llama shape, such as 'tiny' or 'llama-3-8b'"
        )
