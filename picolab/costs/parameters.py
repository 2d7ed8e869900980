"""How many parameters a model has, where they are, and which of them one rank holds.

A count by name matching goes wrong sooner or later ("attention" is also in "post_attention_norm"),
so nothing here looks at names: each part is written down as the product of its sizes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from picolab.costs.slices import even_slices, head_slices
from picolab.costs.stages import rank_stages
from picolab.specs import Layout, ModelConfig
from picolab.specs.expert_copies import parse_copies


@dataclass(frozen=True, repr=False)
class ParameterCount:
    """Parameters by part. embedding + attention + mlp + router + norm + head == total."""

    total: int
    active: int
    """Those that one token passes: total without the experts that it is not sent to. The embedding
    and the head are in it, as in the published figures."""
    embedding: int
    """The token embedding, and learned positions where there are any."""
    attention: int
    mlp: int
    """Dense MLPs and all experts."""
    router: int
    norm: int
    head: int
    """0 if the head is tied: its matrix is the embedding's."""
    per_layer: tuple[int, ...]
    """Parameters of each layer; they differ where only some layers have experts."""

    def rows(self) -> list[list]:
        """[label, parameters] for each part there is, the total, and the active ones if fewer."""
        parts = ("embedding", "attention", "mlp", "router", "norm", "head")
        rows = [[part, getattr(self, part)] for part in parts if getattr(self, part)]
        rows.append(["total", self.total])
        if self.active != self.total:
            rows.append(["active", self.active])
        return rows

    def __repr__(self) -> str:
        parts = ", ".join(f"{label} {count:,}" for label, count in self.rows())
        return f"ParameterCount({parts})"


def parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of a model.

    A layer of the Llama family (h hidden, a heads, k kv heads, d head_dim, f ffn; arXiv 2302.13971,
    section 2.2, and 2305.13245 for kv heads):

        attention  h*a*d + 2*h*k*d + a*d*h     q; k and v; o
        mlp        3*h*f                       gate, up, down
        norm       2*h

    and once: the embedding V*h, the last norm h, and the head V*h unless tied. With experts
    (arXiv 2401.04088, section 2) the MLP stands there once for each expert, and the router adds
    h*experts. Not counted: DeepSeek-V3's router bias, which no gradient trains.
    """
    hidden, gpt = config.hidden, config.family == "gpt"
    bias = 1 if gpt else 0
    attention = attention_weights(config) + bias * (3 * config.heads * config.head_dim + hidden)
    attention += (config.heads + 2 * config.kv_heads) * config.head_dim if config.qkv_bias else 0
    norm = 2 * hidden * (1 + bias) + _inner_norms(config)
    mlps = [mlp_weights(config, layer) for layer in range(config.layers)]
    mlp_bias = bias * (config.ffn + hidden)

    embedding = config.vocab * hidden + (config.seq * hidden if gpt else 0)
    head = 0 if config.tied else config.vocab * hidden
    last_norm = hidden * (1 + bias)
    per_layer = tuple(attention + norm + mlp.held + mlp_bias + mlp.router for mlp in mlps)
    total = embedding + sum(per_layer) + last_norm + head
    return ParameterCount(
        total=total,
        active=total - sum(mlp.held - mlp.passed for mlp in mlps),
        embedding=embedding,
        attention=attention * config.layers,
        mlp=sum(mlp.held + mlp_bias for mlp in mlps),
        router=sum(mlp.router for mlp in mlps),
        norm=norm * config.layers + last_norm,
        head=head,
        per_layer=per_layer,
    )


def attention_weights(config: ModelConfig) -> int:
    """Numbers in the matrices of one layer's attention (no biases, no norms).

    Latent attention: arXiv 2405.04434, section 2.1. Queries go down to q_rank and up again; keys
    and values go down to kv_rank together with the one rotated key, and up again.
    """
    hidden, heads = config.hidden, config.heads
    if config.latent is None:
        return hidden * config.head_dim * (2 * heads + 2 * config.kv_heads)
    low = config.latent
    query = hidden * low.q_rank + low.q_rank * heads * (low.nope_dim + low.rope_dim)
    key_value = hidden * (low.kv_rank + low.rope_dim)
    key_value += low.kv_rank * heads * (low.nope_dim + low.value_dim)
    return query + key_value + heads * low.value_dim * hidden


def has_experts(config: ModelConfig, layer: int) -> bool:
    """Whether a layer's MLP is a set of experts."""
    return config.experts > 0 and layer >= config.dense_layers


class MlpWeights(NamedTuple):
    held: int  # in the matrices of the MLP, or of all its experts
    passed: int  # of those, what one token passes
    router: int


def mlp_weights(config: ModelConfig, layer: int) -> MlpWeights:
    """Numbers in the matrices of one layer's MLP (no biases)."""
    matrices = 2 if config.family == "gpt" else 3
    if not has_experts(config, layer):
        dense = matrices * config.hidden * config.ffn
        return MlpWeights(dense, dense, 0)
    one = matrices * config.hidden * config.expert_ffn
    return MlpWeights(
        held=(config.experts + config.shared_experts) * one,
        passed=(config.experts_per_token + config.shared_experts) * one,
        router=config.hidden * config.experts,
    )


def _inner_norms(config: ModelConfig) -> int:
    """Weights of the norms inside one layer's attention."""
    latent = config.latent.q_rank + config.latent.kv_rank if config.latent else 0
    return latent + (2 * config.head_dim if config.qk_norm else 0)


class LocalParameter(NamedTuple):
    name: str
    numel: int  # of this rank's shard
    axes: frozenset[str]  # along which it is cut, as a model's pieces are; equal on all others
    width: int = 1  # numbers in a row: what ZeRO deals out is rows

    @property
    def rows(self) -> int:
        return self.numel // self.width

    @property
    def sharded(self) -> bool:
        return bool(self.axes)


def local_parameters(
    config: ModelConfig,
    layout: Layout | str,
    rank: int = 0,
    *,
    expert_copies: str | None = None,
) -> list[LocalParameter]:
    """The parameters that one rank of the layout holds, in the model's order, by global names.

    Of Llama decoders, with experts or without. q, k and v are one matrix, and so are gate and up;
    tp splits all matrices (arXiv 1909.08053, section 3) and replicates the norms; sizes that do not
    divide are dealt out by `even_slices`, heads by `head_slices`. Stages
    of pp hold different layers; the first has the embedding, the last the last norm and the head
    (also a tied one: it is the embedding once more, unless both stages are on one rank). A rank
    with several stages holds the layers of all. Experts are dealt out over ep, and the router is
    whole on each rank. dp and cp split no parameter; ZeRO does, and these are what a rank computes
    with (`zero_shards`: what it keeps). Not listed: a router's bias, which no gradient trains.
    expert_copies: as in TrainConfig; a copy is as large as its expert.

    Raises ValueError for other models.
    """
    layout = Layout.parse(layout)
    require_llama(config, but=BUILT)
    layout.check(config)
    place = layout.coordinates(rank)
    copies = parse_copies(expert_copies, config, layout)
    of_ep = rank // layout.stride("ep") % layout.ep

    def mine(size: int) -> int:
        return len(even_slices(size, layout.tp)[place["tp"]])

    hidden, ffn = config.hidden, mine(config.ffn)
    heads = head_slices(config.heads, config.kv_heads, layout.tp, place["tp"])
    queries, keys = (len(held) * config.head_dim for held in heads)
    table = mine(config.vocab) * hidden
    stages = rank_stages(config.layers, layout, place["pp"])
    first, last = 0 in stages, layout.stage_count - 1 in stages
    cut, whole = frozenset({"tp"}), frozenset()
    q_k_v = queries + 2 * keys
    found = [LocalParameter("embed.weight", table, cut, hidden)] if first else []

    def dense(name: str, ffn: int) -> list[LocalParameter]:
        return [
            LocalParameter(f"{name}.gate_up.weight", 2 * ffn * hidden, cut, hidden),
            LocalParameter(f"{name}.down.weight", hidden * ffn, cut, ffn),
        ]

    def sparse(name: str, layer: int) -> list[LocalParameter]:
        here, wide = config.experts // layout.ep, mine(config.expert_ffn)
        if layer in copies:
            here += len(copies[layer][of_ep])
        apart, one = frozenset({"ep", "tp"}), hidden * wide
        shared = config.shared_experts * config.expert_ffn
        return [
            LocalParameter(f"{name}.router.weight", config.experts * hidden, whole, hidden),
            LocalParameter(f"{name}.experts.gate_up", here * 2 * one, apart, 2 * one),
            LocalParameter(f"{name}.experts.down", here * one, apart, one),
            *(dense(f"{name}.shared", mine(shared)) if shared else []),
        ]

    for i in (layer for layers in stages.values() for layer in layers):
        found += [
            LocalParameter(f"layers.{i}.attention_norm.weight", hidden, whole),
            LocalParameter(f"layers.{i}.attention.qkv.weight", q_k_v * hidden, cut, hidden),
        ]
        if config.qkv_bias:
            found.append(LocalParameter(f"layers.{i}.attention.qkv.bias", q_k_v, cut))
        found += [
            LocalParameter(f"layers.{i}.attention.o.weight", hidden * queries, cut, queries),
        ]
        if config.qk_norm:
            found += [
                LocalParameter(f"layers.{i}.attention.{of}_norm.weight", config.head_dim, whole)
                for of in "qk"
            ]
        found.append(LocalParameter(f"layers.{i}.mlp_norm.weight", hidden, whole))
        mlp = f"layers.{i}.mlp"
        found += sparse(mlp, i) if has_experts(config, i) else dense(mlp, ffn)
    if last:
        found.append(LocalParameter("norm.weight", hidden, whole))
        if not (config.tied and first):
            found.append(LocalParameter("head.weight", table, cut, hidden))
    return found


@dataclass(frozen=True)
class HeldParameters:
    """What one rank holds of some layers, by what else could cut it."""

    dense: int
    """Everything but routed experts: ZeRO may shard it over dp and cp."""
    experts: int
    """Of routed experts, already cut over tp and ep: held again by every ep-th rank of dp * cp."""

    @property
    def total(self) -> int:
        return self.dense + self.experts


def held_parameters(
    config: ModelConfig,
    layers: Iterable[int],
    *,
    tp: int = 1,
    ep: int = 1,
    first: bool = False,
    last: bool = False,
) -> HeldParameters:
    """Parameters of the rank of tp with the largest share, for any model: of these layers, and of
    the embedding (first) and the last norm and the head (last; also a tied one, unless the
    embedding is there too).

    tp cuts matrices and experts (and leaves norms, routers and latent attention's way down whole),
    ep experts. For Llama decoders equal to the sum of `local_parameters`.
    """
    hidden, gpt = config.hidden, config.family == "gpt"

    def share(size: int) -> int:
        return -(-size // tp)

    norm = hidden * (2 if gpt else 1)
    attention = 2 * norm + _inner_norms(config)
    if config.latent is None:
        of_rank = head_slices(config.heads, config.kv_heads, tp, 0)
        queries, keys = (len(held) * config.head_dim for held in of_rank)
        rows = queries + 2 * keys
        attention += hidden * (rows + queries) + (rows + hidden if gpt else 0)
        attention += rows if config.qkv_bias else 0
    else:
        low, heads = config.latent, share(config.heads)
        attention += hidden * (low.q_rank + low.kv_rank + low.rope_dim)
        attention += heads * low.q_rank * (low.nope_dim + low.rope_dim)
        attention += heads * (low.kv_rank * (low.nope_dim + low.value_dim) + low.value_dim * hidden)

    matrices = 2 if gpt else 3
    dense = matrices * hidden * share(config.ffn) + (share(config.ffn) + hidden if gpt else 0)
    one = matrices * hidden * share(config.expert_ffn)
    around = config.shared_experts * one + hidden * config.experts
    routed = -(-config.experts // ep) * one
    table = share(config.vocab) * hidden

    layers = list(layers)
    sparse = sum(has_experts(config, layer) for layer in layers)
    held = len(layers) * attention + (len(layers) - sparse) * dense + sparse * around
    if first:
        held += table + (config.seq * hidden if gpt else 0)
    if last:
        held += norm + (0 if config.tied and first else table)
    return HeldParameters(held, sparse * routed)


# What a model of ours may have beyond a plain Llama decoder.
BUILT = ("experts", "normalised queries and keys", "biases of queries, keys and values")


def require_llama(config: ModelConfig, but: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless this is the plain Llama decoder, but for these extensions."""
    others = [name for name in config.extensions if name not in but]
    if others:
        raise ValueError(
            f"{config.name} has {' and '.join(others)}; this formula is for plain Llama "
            f"decoders, such as 'tiny' or 'llama-3-8b'"
        )
