"""A shape from a Hugging Face `config.json` on this disk, to calculate with.

Costs need sizes only. So what changes no size (rope scaling, how to sample) is not looked at here;
`model.hf_config`, which has to compute the same logits, understands every key or refuses.
Families: Llama and Mistral, Mixtral, Qwen2, Qwen3 with and without experts, DeepSeek-V3.
"""

import json
from pathlib import Path
from typing import Any

from picolab.specs.model_config import LatentAttention, ModelConfig

# ModelConfig's field -> the key in config.json, of a plain Llama.
FIELDS = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocab": "vocab_size",
    "seq": "max_position_embeddings",
    "head_dim": "head_dim",
    "tied": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}
# What else a family has.
_MORE = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "mixtral": {
        "experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
        "expert_ffn": "intermediate_size",
    },
    "qwen3_moe": {
        "experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
        "expert_ffn": "moe_intermediate_size",
    },
    "deepseek_v3": {
        "experts": "n_routed_experts",
        "experts_per_token": "num_experts_per_tok",
        "expert_ffn": "moe_intermediate_size",
        "shared_experts": "n_shared_experts",
        "dense_layers": "first_k_dense_replace",
    },
}
_LATENT = {
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "value_dim": "v_head_dim",
}
# What would add parameters or layers of another kind, and the values that do not.
_ONLY: dict[str, tuple] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "decoder_sparse_step": (1, None),
    "mlp_only_layers": ([], None),
    "moe_layer_freq": (1, None),
}


POINTER = b"version https://git-lfs"  # how a file begins that git-lfs has not fetched


def json_object(path: Path) -> dict[str, Any]:
    """What a JSON file says. ValueError if it is no object, or not the file itself."""
    try:
        with path.open("rb") as file:
            raw = file.read()
        if raw.startswith(POINTER):
            raise ValueError(
                f"{path} is a pointer of git-lfs and not the file itself; `git lfs pull` in the "
                "clone fetches it"
            )
        there = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON object ({error}); copy it again") from None
    if not isinstance(there, dict):
        raise ValueError(f"{path} is not a JSON object but {type(there).__name__}; copy it again")
    return there


def read_config(path: str | Path) -> ModelConfig:
    """The shape in a config.json, or in the folder that has one. ValueError, with the key, for what
    is missing or not described here."""
    path = Path(path).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in {path.parent}, so it holds no model")
    there = json_object(path)
    family = there.get("model_type")
    if family not in _MORE:
        raise ValueError(
            f"{path} says model_type: {json.dumps(family)}; families that are read here are "
            f"{', '.join(_MORE)}"
        )
    for key, allowed in _ONLY.items():
        if there.get(key) not in allowed:
            raise ValueError(
                f"{path} says {key}: {json.dumps(there[key])}, which is not described here; what "
                f"is has {key}: {json.dumps(allowed[0])}"
            )
    there.setdefault("num_key_value_heads", there.get("num_attention_heads"))
    optional = {"head_dim": None, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
    fields = FIELDS | _MORE[family]
    shape: dict[str, Any] = {
        field: _value(path, there, key, optional) for field, key in fields.items()
    }
    if family == "deepseek_v3":
        latent = {field: _value(path, there, key, {}) for field, key in _LATENT.items()}
        shape |= {"latent": LatentAttention(**latent), "head_dim": None}
    if family.startswith("qwen3"):
        shape["qk_norm"] = True
    if family == "qwen2":
        shape["qkv_bias"] = True
    name = path.parent.absolute().name if path.name == "config.json" else path.stem
    return ModelConfig(name=name or "custom", **shape)


def _value(path: Path, there: dict, key: str, optional: dict) -> Any:
    if there.get(key) is None and key not in optional:
        raise ValueError(f"{path} does not say {key}, which the shape needs")
    return optional[key] if there.get(key) is None else there[key]
