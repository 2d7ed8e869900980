"""A decoder's shape: the numbers from which its weights, its memory and its traffic follow.

The model that picolab trains is the Llama family's decoder (RMSNorm, rotary positions,
grouped-query attention, SwiGLU), which may have experts (Mixtral), normalised queries and keys
(Qwen3), and biases of queries, keys and values (Qwen2). `ModelConfig` describes it, and with a few
more fields the published models that the chapters calculate with: latent attention (DeepSeek-V3)
and the older GPT block. `extensions` says what a config has beyond a plain Llama decoder.

Not described: dropout, sliding windows, rope scaling but Llama 3's, multi-token prediction.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

_CHANGED = " (changed)"

Score = Literal["softmax", "sigmoid"]
Chooser = Literal["token", "expert"]
Drop = Literal["score", "position"]
Over = Literal["micro-batch", "sequence", "global batch"]
_WORDS = {"router_score": Score, "router_choice": Chooser, "drop": Drop, "aux_over": Over}


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Queries, and keys with values, are first projected down to a small rank, normalised, and
    projected up again.
    """

    q_rank: int
    """Width of the compressed query."""
    kv_rank: int
    """Width of the compressed key and value; with the rotated key all that a cache must keep."""
    nope_dim: int
    """Part of a head's query and key that carries no position."""
    rope_dim: int
    """Part that is rotated; its key is shared by all heads."""
    value_dim: int
    """Width of a head's value."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_positive("LatentAttention", field.name, getattr(self, field.name))
        if self.rope_dim % 2:
            raise ValueError(
                f"rope_dim {self.rope_dim} is odd: rotary positions rotate pairs, make it even"
            )


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """How Llama 3.1 and later stretch the rotary positions to a longer context (arXiv 2407.21783):
    frequencies that turn fewer than `low` times in the original context are divided by `factor`,
    those that turn more than `high` times stay, and between the two it is blended.
    """

    factor: float
    """Of the context."""
    low: float
    """Turns in the original context, up to which a frequency is divided."""
    high: float
    """Turns from which on it is not."""
    original_seq: int
    """The context that the model was first trained with."""

    def __post_init__(self):
        for field in ("factor", "low", "high"):
            value = getattr(self, field)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise ValueError(f"Llama3Rope: {field} is {value!r}; it is a number above 0")
        _check_positive("Llama3Rope", "original_seq", self.original_seq)
        if self.low >= self.high:
            raise ValueError(
                f"Llama3Rope: low is {self.low!r} and high {self.high!r}; low is the smaller"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder. Raises ValueError, with the cure, for a shape that cannot be built.

    `ModelConfig.preset("tiny").replace(layers=8)` is the usual way to make one.
    """

    name: str = "custom"
    hidden: int
    """Width of the residual stream."""
    ffn: int
    """Inner width of a dense MLP."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; each serves heads / kv_heads query heads (arXiv 2305.13245)."""
    vocab: int
    """Size of the vocabulary."""
    seq: int
    """Longest sequence, in tokens; what training uses unless it is told otherwise."""
    head_dim: int | None = None
    """Width of one head; None means hidden // heads, and the finished config holds that number."""
    tied: bool = False
    """The head is the embedding's matrix, used twice and counted once."""
    rope_theta: float = 10_000.0
    """Base of the rotary positions' wavelengths (arXiv 2104.09864)."""
    rope_scaling: Llama3Rope | None = None
    """How the rotary positions are stretched; None: not at all."""
    norm_eps: float = 1e-5
    """Added to the mean square before its root, in every norm."""

    experts: int = 0
    """Routed experts a layer; 0 means that every MLP is dense."""
    experts_per_token: int = 0
    """How many of them a token is sent to."""
    expert_ffn: int = 0
    """Inner width of one expert."""
    shared_experts: int = 0
    """Experts that every token passes, besides the routed ones."""
    dense_layers: int = 0
    """How many layers, from the first, keep a dense MLP in a model with experts."""
    router_score: Score = "softmax"
    """How the router's logits become scores: over all experts, or each for itself."""
    router_renormalise: bool = True
    """A token's weights are divided by their sum, so that they add up to router_scale."""
    router_scale: float = 1.0
    """What a token's weights are multiplied by."""
    router_groups: int = 1
    """Experts lie in so many equal groups, and a token chooses within the best of them."""
    router_groups_kept: int = 1
    """In how many groups a token may choose: those whose two best scores have the largest sum."""
    router_choice: Chooser = "token"
    """Who chooses: each token its experts, or each expert its tokens (arXiv 2202.09368)."""
    router_bias: float = 0.0
    """How far a step moves the bias that a score gets for the choice alone; 0: there is none."""
    capacity: float | None = None
    """An expert takes at most this times its even share of a micro-batch's choices, and drops the
    others. None: it takes all."""
    drop: Drop = "score"
    """What an overfull expert drops: the lowest scores, or what comes last in the micro-batch."""
    aux_loss: float = 0.0
    """Weight of the loss that evens out the experts' loads; 0: there is none."""
    aux_over: Over = "micro-batch"
    """Over which tokens loads are to be even."""
    z_loss: float = 0.0
    """Weight of the mean square of the logits' log-sum-exp, which keeps logits small; 0: none."""

    qk_norm: bool = False
    """RMSNorm over each head's query and key (Qwen3)."""
    qkv_bias: bool = False
    """Queries, keys and values have a bias each (Qwen2); o has none."""
    latent: LatentAttention | None = None
    """Latent attention in place of grouped-query; kv_heads and head_dim are then not used."""
    family: Literal["llama", "gpt"] = "llama"
    """"gpt": learned positions, LayerNorm, biases everywhere but in the head, a two-matrix MLP."""

    def __post_init__(self):
        for field in ("hidden", "ffn", "layers", "heads", "kv_heads", "vocab", "seq"):
            _check_positive(self.name, field, getattr(self, field))
        if self.family not in ("llama", "gpt"):
            raise ValueError(f"family {self.family!r} is not known; families are 'llama' and 'gpt'")
        self._check_heads()
        self._check_experts()
        for field in ("rope_theta", "norm_eps"):
            value = getattr(self, field)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not value > 0:
                raise ValueError(f"{self.name}: {field} is {value!r}; it must be positive")
        for field in ("tied", "qk_norm", "qkv_bias", "router_renormalise"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(
                    f"{self.name}: {field} is {getattr(self, field)!r}; it is True or False"
                )
        if self.qkv_bias and (self.family == "gpt" or self.latent):
            raise ValueError(
                f"{self.name}: qkv_bias is of the family 'llama' without latent attention ('gpt' "
                "has its biases anyway); leave it out"
            )

    def _check_heads(self) -> None:
        if self.head_dim is None:
            if self.hidden % self.heads:
                raise ValueError(
                    f"{self.name}: {self.heads} heads do not divide hidden {self.hidden}; "
                    f"take {_nearest_divisor(self.hidden, self.heads)} heads, or give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        _check_positive(self.name, "head_dim", self.head_dim)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: {self.kv_heads} kv_heads do not divide {self.heads} heads; "
                f"take {_nearest_divisor(self.heads, self.kv_heads)} kv_heads"
            )
        if self.family == "llama" and self.latent is None and self.head_dim % 2:
            raise ValueError(
                f"{self.name}: head_dim {self.head_dim} is odd, and rotary positions rotate pairs; "
                f"change hidden or heads so that hidden / heads is even"
            )

    def _check_experts(self) -> None:
        fields = ("experts", "experts_per_token", "expert_ffn", "shared_experts", "dense_layers")
        for field in fields:
            _check_integer(self.name, field, getattr(self, field), least=0)
        if self.experts == 0:
            given = [field for field in fields if getattr(self, field)]
            if given:
                raise ValueError(
                    f"{self.name}: {given[0]} is given but experts is 0; set experts too"
                )
            return
        if self.family == "gpt":
            raise ValueError(f"{self.name}: experts are described for the family 'llama' only")
        _check_positive(self.name, "expert_ffn", self.expert_ffn)
        if not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"{self.name}: experts_per_token is {self.experts_per_token}; "
                f"it must be between 1 and experts ({self.experts})"
            )
        if self.dense_layers >= self.layers:
            raise ValueError(
                f"{self.name}: dense_layers is {self.dense_layers} of {self.layers} layers, "
                f"so no layer has experts; lower it, or set experts to 0"
            )
        self._check_router()

    def _check_router(self) -> None:
        for field, words in _WORDS.items():
            allowed = get_args(words)
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{self.name}: {field} is {getattr(self, field)!r}; it is "
                    f"{' or '.join(map(repr, allowed))}"
                )
        for field in ("router_bias", "aux_loss", "z_loss", "router_scale", "capacity"):
            value, positive = getattr(self, field), field in ("router_scale", "capacity")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None and field == "capacity":
                continue
            if not number or not 0 <= value < math.inf or (positive and not value):
                raise ValueError(
                    f"{self.name}: {field} is {value!r}; it is a number "
                    f"{'above 0' if positive else 'of 0 or more'}"
                    + (", or None to drop nothing" if field == "capacity" else "")
                )
        groups, kept = self.router_groups, self.router_groups_kept
        _check_positive(self.name, "router_groups", groups)
        if self.experts % groups:
            raise ValueError(
                f"{self.name}: {groups} router_groups do not divide {self.experts} experts; take "
                f"{_nearest_divisor(self.experts, groups)}"
            )
        if not isinstance(kept, int) or not 1 <= kept <= groups:
            raise ValueError(
                f"{self.name}: router_groups_kept is {kept!r}; it is between 1 and router_groups "
                f"({groups})"
            )
        if self.experts_per_token > kept * (self.experts // groups):
            raise ValueError(
                f"{self.name}: a token chooses {self.experts_per_token} experts, and "
                f"{kept} of {groups} groups have {kept * (self.experts // groups)}; keep more "
                "groups"
            )
        if self.router_choice == "expert":
            given = [
                name
                for name, there in {
                    "capacity": self.capacity is not None,
                    "aux_loss": self.aux_loss > 0,
                    "router_bias": self.router_bias > 0,
                    "router_groups": groups > 1,
                }.items()
                if there
            ]
            if given:
                raise ValueError(
                    f"{self.name}: where experts choose, each takes its even share, so {given[0]} "
                    "has nothing to do; leave it out"
                )

    @property
    def pools_tokens(self) -> bool:
        """Whether what a router does with a token depends on the others of its micro-batch."""
        experts_choose = self.experts > 0 and self.router_choice == "expert"
        return bool(self.capacity or self.aux_loss or self.z_loss) or experts_choose

    @property
    def extensions(self) -> tuple[str, ...]:
        """What this model has that the plain Llama decoder has not; () for a plain one."""
        present = {
            "the GPT block": self.family == "gpt",
            "experts": self.experts > 0,
            "latent attention": self.latent is not None,
            "normalised queries and keys": self.qk_norm,
            "biases of queries, keys and values": self.qkv_bias,
        }
        return tuple(name for name, there in present.items() if there)

    def replace(self, **changes: Any) -> "ModelConfig":
        """The same shape with some fields changed; `tiny` is then called "tiny (changed)", unless a
        name is given.

        A head_dim that followed from hidden and heads follows the new ones.
        """
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(self)})
        if unknown:
            raise ValueError(
                f"a model has no field {unknown[0]!r}; {_did_you_mean(unknown[0], self)}"
            )
        if all(getattr(self, field) == value for field, value in changes.items()):
            return self
        if self.name != "custom":
            changes.setdefault("name", f"{self.name.removesuffix(_CHANGED)}{_CHANGED}")
        if self.head_dim * self.heads == self.hidden:
            changes.setdefault("head_dim", None)
        return dataclasses.replace(self, **changes)

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """A shape by name; `ModelConfig.presets()` lists them."""
        if name not in _PRESETS:
            close = difflib.get_close_matches(str(name).lower(), _PRESETS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"no model is called {name!r}; {hint}names are {', '.join(_PRESETS)}")
        return cls(name=name, **_PRESETS[name])

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        return tuple(_PRESETS)


def _check_integer(name: str, field: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: {field} is {value!r}; it must be an integer of at least {least}")


def _check_positive(name: str, field: str, value: Any) -> None:
    _check_integer(name, field, value, least=1)


def _nearest_divisor(of: int, wanted: int) -> int:
    wanted = min(wanted, of)
    near = (n for step in range(wanted) for n in (wanted - step, wanted + step))
    return next(n for n in near if of % n == 0)


def _did_you_mean(field: str, config: ModelConfig) -> str:
    names = [known.name for known in dataclasses.fields(config)]
    close = difflib.get_close_matches(field, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"fields are {', '.join(names)}"


# Published shapes are those of the checkpoints' config.json; the paper stands beside each.
_PRESETS: dict[str, dict[str, Any]] = {
    # Ours: small enough that four ranks on two cores take many steps a second.
    "tiny": dict(hidden=128, ffn=352, layers=4, heads=8, kv_heads=4, vocab=256, seq=128),
    # Two of its eight experts are as wide as one MLP of `tiny`: apart from the router, equal work.
    "tiny-moe": dict(
        hidden=128, ffn=352, layers=4, heads=8, kv_heads=4, vocab=256, seq=128,
        experts=8, experts_per_token=2, expert_ffn=176, aux_loss=0.01,
    ),
    # arXiv 2307.09288
    "llama-2-7b": dict(
        hidden=4096, ffn=11008, layers=32, heads=32, kv_heads=32, vocab=32_000, seq=4096
    ),
    # arXiv 2407.21783, table 3
    "llama-3-8b": dict(
        hidden=4096, ffn=14_336, layers=32, heads=32, kv_heads=8, vocab=128_256, seq=8192,
        rope_theta=500_000.0,
    ),
    "llama-3-70b": dict(
        hidden=8192, ffn=28_672, layers=80, heads=64, kv_heads=8, vocab=128_256, seq=8192,
        rope_theta=500_000.0,
    ),
    "llama-3.1-405b": dict(
        hidden=16_384, ffn=53_248, layers=126, heads=128, kv_heads=8, vocab=128_256, seq=131_072,
        rope_theta=500_000.0,
    ),
    # arXiv 2401.04088, table 1
    "mixtral-8x7b": dict(
        hidden=4096, ffn=14_336, layers=32, heads=32, kv_heads=8, vocab=32_000, seq=32_768,
        rope_theta=1_000_000.0, experts=8, experts_per_token=2, expert_ffn=14_336,
    ),
    # arXiv 2412.19437, section 4.2; without its multi-token prediction module
    "deepseek-v3": dict(
        hidden=7168, ffn=18_432, layers=61, heads=128, kv_heads=128, vocab=129_280, seq=4096,
        norm_eps=1e-6, experts=256, experts_per_token=8, expert_ffn=2048, shared_experts=1,
        dense_layers=3, router_score="sigmoid", router_scale=2.5, router_groups=8,
        router_groups_kept=4, router_bias=0.001,
        latent=LatentAttention(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
    ),
    # arXiv 2505.09388, table 2
    "qwen3-235b-a22b": dict(
        hidden=4096, ffn=12_288, layers=94, heads=64, kv_heads=4, vocab=151_936, seq=32_768,
        head_dim=128, rope_theta=1_000_000.0, norm_eps=1e-6, qk_norm=True,
        experts=128, experts_per_token=8, expert_ffn=1536, aux_loss=0.001,
        aux_over="global batch",
    ),
    # arXiv 2005.14165, table 2.1
    "gpt-3-175b": dict(
        hidden=12_288, ffn=49_152, layers=96, heads=96, kv_heads=96, vocab=50_257, seq=2048,
        tied=True, family="gpt",
    ),
}  # fmt: skip
