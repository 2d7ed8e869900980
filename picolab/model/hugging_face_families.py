"""What the families of models call their tensors and settings on the Hugging Face Hub.

Of each: its `model_type`, its class there, the names of the parts of a layer, the keys of
config.json that it has beyond a plain Llama's, and the values that it computes with here. Experts
are separate matrices there, and one tensor of ours: `{e}` stands for the number of an expert.

    llama       as it is
    qwen2       the same with biases of queries, keys and values
    qwen3       the same with normalised queries and keys
    mixtral     a router and experts w1 (gate), w3 (up), w2 (down); weights add up to 1
    qwen3_moe   the same under other names, a width of their own, normalised queries and keys; only
                with norm_topk_prob do weights add up to 1
"""

from dataclasses import dataclass, field

from picolab.specs import ModelConfig

_ATTENTION = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
}
_HEAD_NORMS = {
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}
_WINDOW = ("max_window_layers", "sliding_window")  # read only with use_sliding_window
_DENSE = {
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Family:
    model_type: str
    architecture: str
    in_layer: dict[str, str | tuple[str, ...]]
    """Ours -> theirs; of experts a name for each matrix that is stacked in ours."""
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """ModelConfig's field -> the keys that may say it, beyond a plain Llama's."""
    defaults: dict[str, object] = field(default_factory=dict)
    """Keys that may be left out."""
    only: dict[str, object] = field(default_factory=dict)
    """Keys with the one value that is computed here."""
    harmless: tuple[str, ...] = ()
    fixed: dict[str, object] = field(default_factory=dict)
    """Fields of ModelConfig that every model of the family has so."""
    theta: float = 10_000.0
    """Base of the rotary positions where config.json is silent."""


_OF_ROUTERS = ("router_aux_loss_coef", "output_router_logits")
LLAMA = Family("llama", "LlamaForCausalLM", _ATTENTION | _DENSE)
QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    _ATTENTION | _DENSE,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768},
    harmless=_WINDOW,
    fixed={"qkv_bias": True},
)
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    _ATTENTION | _HEAD_NORMS | _DENSE,
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32_768},
    harmless=_WINDOW,
    fixed={"qk_norm": True},
)
MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    _ATTENTION
    | {
        "mlp.router": "block_sparse_moe.gate",
        "mlp.experts.gate_up": (
            "block_sparse_moe.experts.{e}.w1",
            "block_sparse_moe.experts.{e}.w3",
        ),
        "mlp.experts.down": ("block_sparse_moe.experts.{e}.w2",),
    },
    fields={
        "experts": ("num_local_experts",),
        "experts_per_token": ("num_experts_per_tok",),
        "expert_ffn": ("intermediate_size",),
    },
    defaults={
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
    },
    theta=1_000_000.0,
    only={"router_jitter_noise": 0.0},
    harmless=_OF_ROUTERS,
    fixed={"router_renormalise": True},
)
QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    _ATTENTION
    | _HEAD_NORMS
    | {
        "mlp.router": "mlp.gate",
        "mlp.experts.gate_up": ("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"),
        "mlp.experts.down": ("mlp.experts.{e}.down_proj",),
    },
    fields={
        "experts": ("num_experts", "num_local_experts"),
        "experts_per_token": ("num_experts_per_tok",),
        "expert_ffn": ("moe_intermediate_size",),
        "router_renormalise": ("norm_topk_prob",),
    },
    defaults={
        "norm_topk_prob": False,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
    },
    only={"decoder_sparse_step": 1, "mlp_only_layers": []},
    harmless=(*_OF_ROUTERS, *_WINDOW),
    fixed={"qk_norm": True},
)
FAMILIES = {family.model_type: family for family in (LLAMA, QWEN2, QWEN3, MIXTRAL, QWEN3_MOE)}


def family_of(config: ModelConfig) -> Family:
    """Which family has this shape; ValueError, with what is not in any, for another."""
    dense, sparse = (QWEN3, QWEN3_MOE) if config.qk_norm else (LLAMA, MIXTRAL)
    family = sparse if config.experts else dense
    if config.qkv_bias and family is LLAMA:
        family = QWEN2
    unlike = {
        "qkv_bias": config.qkv_bias and family is not QWEN2,
        "shared_experts": config.shared_experts > 0,
        "dense_layers": config.dense_layers > 0,
        "router_score": config.router_score != "softmax",
        "router_scale": config.router_scale != 1,
        "router_groups": config.router_groups > 1,
        "router_choice": config.router_choice != "token",
        "router_bias": config.router_bias > 0,
        "capacity": config.capacity is not None,
        "expert_ffn": family is MIXTRAL and config.expert_ffn != config.ffn,
        "router_renormalise": family is MIXTRAL and not config.router_renormalise,
    }
    others = [name for name, there in unlike.items() if there]
    if others:
        raise ValueError(
            f"{config.name} has {others[0]} = {getattr(config, others[0])!r}, which no model of "
            f"the families {', '.join(FAMILIES)} has; nobody would compute the same with its files"
        )
    return family
