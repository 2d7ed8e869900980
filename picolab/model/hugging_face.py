"""Llama weights in the files of the Hugging Face Hub: in, straight into any layout, and out.

A folder there holds `config.json` (the shape) and the tensors in one file, `model.safetensors`, or
in several with `model.safetensors.index.json` (name -> file) beside them. The model is the same as
ours, under other names:

    embed.weight                        model.embed_tokens.weight
    layers.3.attention.q.weight         model.layers.3.self_attn.q_proj.weight
    layers.3.mlp_norm.weight            model.layers.3.post_attention_layernorm.weight
    head.weight                         lm_head.weight        (not there where it is tied)

and nothing is transposed or permuted: both pair the halves of a head for the rotation (Meta's own
files pair neighbours; rows of q and k must be permuted on the way from those).

safetensors reads a slice of a tensor without reading the rest, and every piece of a parameter knows
its slice (parameters.py). So a rank reads what it holds and no more:

    parallel = parallelize(Transformer(hf_config(folder)), "dp2tp2")
    load_hf(folder, parallel.model)

Everything is checked before the first number is written: a name that is missing or too many, a
shape, a file that ends early. Of config.json every key must be understood: it is read, or has the
one value that a plain Llama computes with, or is known to change no number. Whatever else stands
there is refused by its name and value, since a model that computes something else gives other
logits without a word. Nothing here uses the network. Families: Llama (with Llama 3's stretched
rotary positions), Qwen2 and Qwen3, and with experts Mixtral and Qwen3-MoE
(hugging_face_families.py), whose experts are separate matrices there and one tensor here. Leaves
out: other rope scaling, other biases, sliding windows, quantised weights, tokenizers.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from picolab.model.hugging_face_families import FAMILIES, LLAMA, Family, family_of
from picolab.model.parameters import Piece, fill, global_tensors
from picolab.model.transformer import Transformer
from picolab.specs import ModelConfig
from picolab.specs.hugging_face_config import FIELDS, POINTER, json_object
from picolab.specs.model_config import Llama3Rope

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_BYTES = 5_000_000_000

_OUTSIDE = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
Build = Callable[[ModelConfig], Transformer]

# What Hugging Face's LlamaConfig takes where config.json is silent; families have their own.
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
# Where the base of the rotary positions may stand; the first that is there holds (see `_flat`).
_THETA = ("rope_scaling.rope_theta", "rope_parameters.rope_theta", "rope_theta")
# Llama3Rope's field -> the key there.
_LLAMA3 = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_seq": "original_max_position_embeddings",
}
# What else bears on the computation, and the one value that is computed here.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "quantization_config": None,
    "sliding_window": None,
    "use_sliding_window": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "use_qk_norm": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "partial_rotary_factor": 1.0,
    **dict.fromkeys(("rope_scaling.rope_type", "rope_parameters.rope_type"), "default"),
    **dict.fromkeys(("rope_scaling.type", "rope_parameters.type"), "default"),
    "rope_scaling.partial_rotary_factor": 1.0,
    "rope_parameters.partial_rotary_factor": 1.0,
}
# What changes no logit, by what it is about (transformers 4 wrote here how to sample as well).
_HARMLESS = {
    "who wrote it, from what": "_name_or_path name_or_path transformers_version unsloth_version "
    "is_llama_config transformers.js_config",
    "how it is kept and began": "torch_dtype dtype initializer_range use_bfloat16 torchscript",
    "how it is run": "use_cache _attn_implementation _attn_implementation_autoset is_decoder",
    "what a token is": "bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id "
    "decoder_start_token_id tokenizer_class prefix",
    "what a label is": "id2label label2id problem_type finetuning_task task_specific_params",
    "what else is returned": "output_attentions output_hidden_states return_dict",
    "how to sample": "max_length min_length do_sample temperature top_k top_p num_beams "
    "repetition_penalty length_penalty no_repeat_ngram_size",
}


def hf_config(folder: str | Path) -> ModelConfig:
    """The shape that a folder's config.json describes. ValueError for another family's, or one that
    says anything that is not understood.
    """
    path = Path(folder).expanduser() / "config.json"
    if not path.is_file():
        raise ValueError(f"there is no config.json in {path.parent}, so it holds no model")
    there = json_object(path)
    if there.get("num_key_value_heads", "silent") is None:  # null is not the family's default
        there["num_key_value_heads"] = there.get("num_attention_heads")
    there = _flat(there)
    scaling = _llama3_rope(path, there)
    family = FAMILIES.get(there.get("model_type"))
    if family is None:
        raise ValueError(
            f"{path} says model_type: {_json(there.get('model_type'))}; what is read here is "
            f"{', '.join(FAMILIES)}"
        )
    _refuse_other_types(path, there)
    _refuse_what_is_not_computed(path, there, family)
    there = {**_DEFAULTS, **family.defaults, **there}
    there.setdefault("num_key_value_heads", there.get("num_attention_heads"))
    needed = [key for field, key in FIELDS.items() if field != "head_dim" and key not in there]
    if needed:
        raise ValueError(f"{path} does not say {needed[0]}; it is not the config of a Llama")
    shape = {field: there[key] for field, key in FIELDS.items() if key in there} | family.fixed
    for field, keys in family.fields.items():
        said = [key for key in keys if key in there]
        if not said:
            raise ValueError(f"{path} does not say {keys[0]}, which a {family.model_type} needs")
        shape[field] = there[said[0]]
    shape["rope_theta"] = next((there[key] for key in _THETA if key in there), family.theta)
    return ModelConfig(name=path.parent.name or "custom", rope_scaling=scaling, **shape)


def load_hf(
    folder: str | Path,
    model: Transformer | None = None,
    *,
    build: Build = Transformer,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Transformer:
    """Give a model the weights of a folder; returns it.

    build: makes a model of a config on the meta device; for one with experts, `training.build`.

    model: None builds a whole one. Else any Transformer of that shape, cut in any way, on the meta
    device or with values (which are written over in place): each piece gets its slice. dtype: of
    what is built here, None for the model's own (fp32); weights are cast to it.

    Raises ValueError, with the model untouched, if the folder's weights are of another shape, a
    name is missing or too many, or a file is not complete.
    """
    folder = Path(folder).expanduser()
    config = hf_config(folder)
    pieces = _pieces(config, build)
    if model is None:
        model = build(config)
        dtype = dtype or torch.float32
    _check_same_shape(folder, config, model.config)
    with _Files(folder) as files:
        files.check(pieces, config)

        def value(piece: Piece) -> torch.Tensor:
            return _assembled(hf_names(piece, config), piece, files.read)

        if config.tied and "lm_head.weight" in files:
            _check_head_is_embedding(folder, files, model)
        return fill(model, value, device, dtype)


def save_hf(
    model: Transformer | Mapping[str, torch.Tensor],
    config: ModelConfig,
    folder: str | Path,
    *,
    build: Build = Transformer,
    file_bytes: int = FILE_BYTES,
) -> Path:
    """Write weights so that `transformers` and `load_hf` read them. Returns the folder.

    model: a whole Transformer, or whole tensors by our global names, as every layout's
    `state_dict()` gives them (all ranks gather, one rank saves). build: as of `load_hf`.
    file_bytes: above it the tensors go to several files, with an index.

    The folder is written beside and renamed. Raises ValueError if it is there already, for names
    that are missing or too many, and for wrong shapes; OSError if the disk takes no more.
    """
    safetensors = _safetensors()
    folder = Path(folder).expanduser()
    tensors = global_tensors(model) if isinstance(model, torch.nn.Module) else dict(model)
    family, pieces = family_of(config), _pieces(config, build)
    if family is LLAMA and config.hidden % config.heads:
        raise ValueError(
            f"{config.heads} heads do not divide hidden {config.hidden}, and transformers reads no "
            "Llama where they do not; save a checkpoint, or take a shape where they do"
        )
    _check_tensors(tensors, pieces)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; give a new folder, so that nothing is lost")
    theirs = {
        their: part.contiguous().cpu()
        for name, tensor in tensors.items()
        for their, part in _taken_apart(hf_names(pieces[name], config), tensor)
    }
    groups = _groups(theirs, file_bytes)
    files = [SINGLE]
    if len(groups) > 1:
        files = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    beside.mkdir(parents=True)
    try:
        for file, names in zip(files, groups, strict=True):
            part = {name: theirs[name] for name in names}
            safetensors.torch.save_file(part, beside / file, metadata={"format": "pt"})
        if len(groups) > 1:
            size = sum(t.numel() * t.element_size() for t in theirs.values())
            of_name = {n: file for file, names in zip(files, groups) for n in names}
            index = {"metadata": {"total_size": size}, "weight_map": of_name}
            (beside / INDEX).write_text(json.dumps(index, indent=1))
        dtype = str(next(iter(theirs.values())).dtype).removeprefix("torch.")
        (beside / "config.json").write_text(json.dumps(_to_hf(config, family, dtype), indent=1))
        beside.replace(folder)
    except safetensors.SafetensorError as error:
        raise OSError(
            f"weights cannot be written to {folder}: {error}; what was there is unharmed"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


Names = str | list["Names"]  # of one tensor, or of those that are stacked in it, dim by dim


def hf_names(piece: Piece, config: ModelConfig) -> Names:
    """Hugging Face's name of one of our global tensors, or of all that are stacked in it: of
    experts, [expert] or [expert][gate, up]."""
    kind = "bias" if piece.name.endswith(".bias") else "weight"
    part = piece.name.removesuffix(f".{kind}")
    if part in _OUTSIDE:
        return f"{_OUTSIDE[part]}.weight"
    _, layer, inside = part.split(".", 2)
    theirs, prefix = family_of(config).in_layer[inside], f"model.layers.{layer}"
    if isinstance(theirs, str):
        return f"{prefix}.{theirs}.{kind}"
    names: list[Names] = []
    for e in range(config.experts):
        of_one = [f"{prefix}.{name.format(e=e)}.weight" for name in theirs]
        names.append(of_one if len(of_one) > 1 else of_one[0])
    return names


def _assembled(names: Names, piece: Piece, read: Callable, depth: int = 0) -> torch.Tensor:
    """The piece's slice, of one tensor of theirs or stacked from several."""
    if 0 in piece.local_shape:  # a rank beyond the end of an uneven split
        return torch.empty(piece.local_shape)
    if isinstance(names, str):
        return read(names, piece.ranges[depth:])
    parts = [_assembled(names[i], piece, read, depth + 1) for i in piece.ranges[depth]]
    return torch.stack(parts)


def _taken_apart(names: Names, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(names, str):
        yield names, tensor
    else:
        for inside, part in zip(names, tensor, strict=True):
            yield from _taken_apart(inside, part)


class _Files:
    """The safetensors files of a folder, open: which has what, and slices of it.

    Where there is an index, it alone says in which file a tensor is: another file may hold a stale
    copy, from an earlier save or another split.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, object] = {}
        self._file_of: dict[str, str] = {}

    def __enter__(self) -> "_Files":
        indexed = None if (self.folder / SINGLE).is_file() else self._indexed()
        files = [SINGLE] if indexed is None else sorted(set(indexed.values()))
        self._check_no_other_shards(files)
        held = {name: set(self._opened(name).keys()) for name in files}
        if indexed is None:
            indexed = dict.fromkeys(held[SINGLE], SINGLE)
        self._check_index(indexed, held)
        self._file_of = indexed
        return self

    def __exit__(self, *_) -> None:
        for file in self._open.values():
            file.__exit__(None, None, None)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def check(self, pieces: dict[str, Piece], config: ModelConfig) -> None:
        """Exactly these tensors, with these shapes. Tied ones sometimes keep the head as well,
        which `load_hf` compares."""
        expected = {
            name: tuple(like.shape)
            for piece in pieces.values()
            for name, like in _taken_apart(
                hf_names(piece, config), torch.empty(piece.shape, device="meta")
            )
        }
        missing = [name for name in expected if name not in self]
        if missing:
            raise ValueError(
                f"{self.folder} lacks {_some(missing)}; its weights are not complete, or its "
                "config.json is another model's"
            )
        allowed = {"lm_head.weight"} if config.tied else set()
        extra = [
            name
            for name in sorted(self._file_of.keys() - expected.keys() - allowed)
            if not _is_buffer(name)
        ]
        if extra:
            raise ValueError(
                f"{self.folder} has {_some(extra)}, for which a Llama of its config.json has no "
                "place; it is another model's"
            )
        for name, right in expected.items():
            shape = tuple(self._slice(name).get_shape())
            if shape != right:
                raise ValueError(
                    f"{name} in {self.folder} is {shape}, and by its config.json it should be "
                    f"{right}"
                )

    def read(self, name: str, ranges: Sequence[range]) -> torch.Tensor:
        """This slice of the tensor of this name, and no other byte of it."""
        return self._slice(name)[tuple(slice(held.start, held.stop) for held in ranges)]

    def _slice(self, name: str):
        return self._open[self._file_of[name]].get_slice(name)

    def _indexed(self) -> dict[str, str]:
        """The index: which file has a tensor."""
        if not (self.folder / INDEX).is_file():
            pickles = [path.name for path in self.folder.glob("pytorch_model*.bin")]
            hint = f"{pickles[0]} is a pickle, which could run any code; " if pickles else ""
            raise ValueError(
                f"there is no {SINGLE} and no {INDEX} in {self.folder}; {hint}"
                "give a folder whose weights are in safetensors files"
            )
        try:
            of_name = dict(json.loads((self.folder / INDEX).read_text())["weight_map"])
            plain = bool(of_name) and all(name == Path(name).name for name in of_name.values())
        except (ValueError, KeyError, TypeError):
            plain = False
        if not plain:
            raise ValueError(
                f"{self.folder / INDEX} does not map tensors to files beside it; copy it again"
            )
        names = sorted(set(of_name.values()))
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise ValueError(f"{self.folder} lacks {_some(absent)}, which its index names")
        return of_name

    def _check_no_other_shards(self, files: list[str]) -> None:
        shards = sorted(path.name for path in self.folder.glob("model-*-of-*.safetensors"))
        others = [name for name in shards if name not in files]
        if others:
            raise ValueError(
                f"{self.folder} also has {_some(others)}, which is none of its weights' files "
                f"({_some(files)}); one of the two saves is stale, take it away"
            )

    def _check_index(self, of_name: dict[str, str], held: dict[str, set[str]]) -> None:
        absent = [name for name, file in of_name.items() if name not in held[file]]
        if absent:
            raise ValueError(
                f"{self.folder / of_name[absent[0]]} lacks {_some(absent)}, which the index says "
                "is there; index and files are of different saves"
            )
        for file, names in held.items():
            unnamed = sorted(name for name in names - of_name.keys() if not _is_buffer(name))
            if unnamed:
                raise ValueError(
                    f"{self.folder / file} holds {_some(unnamed)}, which the index does not name; "
                    "index and files are of different saves"
                )

    def _opened(self, name: str):
        safetensors = _safetensors()
        try:
            self._open[name] = safetensors.safe_open(self.folder / name, framework="pt").__enter__()
        except safetensors.SafetensorError as error:
            with (self.folder / name).open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    raise ValueError(
                        f"{self.folder / name} is a pointer of git-lfs and not the weights "
                        "themselves; `git lfs pull` in the clone fetches them"
                    ) from None
            raise ValueError(
                f"{self.folder / name} is not a complete safetensors file ({error}); copy it again"
            ) from None
        return self._open[name]


def _is_buffer(name: str) -> bool:
    """Older files also keep the rotary positions' frequencies, which follow from theta."""
    return name.endswith("rotary_emb.inv_freq")


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "Hugging Face weights need safetensors, which is not installed here: "
            "pip install -e '.[torch]' in the checkout"
        ) from error
    return safetensors


def _pieces(config: ModelConfig, build: Build) -> dict[str, Piece]:
    """Every global tensor of a whole model, by name. On the meta device this costs nothing."""
    whole = build(config)
    return {piece.name: piece for p in whole.parameters() for piece in p.pieces}


def _flat(there: dict) -> dict:
    """What config.json says (null says nothing), with the rotary positions unfolded:
    `rope_scaling.factor`. As transformers 5 reads it: rope_scaling, if it is there and not empty,
    stands for all of rope_parameters.
    """
    there = dict(there)
    scaling, parameters = there.pop("rope_scaling", None), there.pop("rope_parameters", None)
    place, rope = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters or {})
    unfolded = {f"{place}.{key}": v for key, v in rope.items()} if isinstance(rope, dict) else None
    there |= {place: rope} if unfolded is None else unfolded
    return {key: value for key, value in there.items() if value is not None}


def _llama3_rope(path: Path, there: dict) -> Llama3Rope | None:
    """Llama 3's rope scaling, if that is what the flattened config says; it is taken out of it."""
    for place in ("rope_scaling", "rope_parameters"):
        kinds = {f"{place}.{key}" for key in ("rope_type", "type")} & there.keys()
        if {there[kind] for kind in kinds} != {"llama3"}:
            continue
        missing = [key for key in _LLAMA3.values() if f"{place}.{key}" not in there]
        if missing:
            raise ValueError(f"{path} says {place}.rope_type: llama3 and not {place}.{missing[0]}")
        for kind in kinds:
            del there[kind]
        found = {field: there.pop(f"{place}.{key}") for field, key in _LLAMA3.items()}
        try:
            return Llama3Rope(**found)
        except ValueError as error:
            raise ValueError(f"{path}, {place}: {error}") from None
    return None


def _refuse_other_types(path: Path, there: dict) -> None:
    kinds = {FIELDS["tied"]: bool, **dict.fromkeys((FIELDS["norm_eps"], *_THETA), int | float)}
    for key in {*FIELDS.values(), *_THETA} & there.keys():
        kind, value = kinds.get(key, int), there[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{path} says {key}: {_json(value)}, which is of another type")


def _refuse_what_is_not_computed(path: Path, there: dict, family: Family) -> None:
    harmless = [key for keys in _HARMLESS.values() for key in keys.split()]
    read = [key for keys in family.fields.values() for key in keys]
    understood = {*FIELDS.values(), *_THETA, *harmless, *read, *family.harmless, "model_type"}
    layers = ["full_attention"] * (there.get("num_hidden_layers") or 0)
    only = _ONLY | family.only | {"architectures": [family.architecture], "layer_types": layers}
    wrong = [
        f"{key}: {_json(value)} "
        + (f"(read here: {_json(only[key])})" if key in only else "(not known here)")
        for key, value in there.items()
        if key not in understood and (key not in only or value != only[key])
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} says {', '.join(wrong[:3])}{more}; what is read here is a plain "
            f"{family.model_type.capitalize()}: silu, no other biases, no sliding window, rotary "
            "positions that are not scaled but as Llama 3's, and nothing that is not known"
        )


def _json(value) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:56]} ..."


def _to_hf(config: ModelConfig, family: Family, dtype: str) -> dict:
    # (transformers takes no integer for a float)
    rope = {"rope_type": "default", "rope_theta": float(config.rope_theta)}
    if config.rope_scaling is not None:
        rope |= {key: getattr(config.rope_scaling, field) for field, key in _LLAMA3.items()}
        rope |= {key: float(value) for key, value in rope.items() if key.endswith("factor")}
        rope["rope_type"] = "llama3"
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_act": "silu",
        **({} if config.qkv_bias else {"attention_bias": False, "mlp_bias": False}),
        **{key: getattr(config, field) for field, key in FIELDS.items()},
        **{keys[0]: getattr(config, field) for field, keys in family.fields.items()},
        **family.only,
        "rms_norm_eps": float(config.norm_eps),
        "rope_theta": float(config.rope_theta),
        "rope_parameters": rope,
        "torch_dtype": dtype,
    }


def _check_same_shape(folder: Path, there: ModelConfig, here: ModelConfig) -> None:
    """All that the weights depend on; the longest sequence is not among it."""
    of_experts = ("experts", "experts_per_token", "expert_ffn", "router_renormalise")
    for field in (*FIELDS, "rope_theta", "rope_scaling", "qk_norm", "qkv_bias", *of_experts):
        one, other = getattr(there, field), getattr(here, field)
        if field != "seq" and one != other:
            raise ValueError(
                f"the weights in {folder} are of another model: {field} is {one} there and "
                f"{other} here; build the model from hf_config(folder)"
            )


def _check_head_is_embedding(folder: Path, files: _Files, model: Transformer) -> None:
    for parameter in model.parameters():
        for piece in parameter.pieces:
            if piece.name == "embed.weight" and not torch.equal(
                files.read(f"{_OUTSIDE['embed']}.weight", piece.ranges),
                files.read("lm_head.weight", piece.ranges),
            ):
                raise ValueError(
                    f"{folder} says that head and embedding are tied, and holds two that differ; "
                    'set "tie_word_embeddings": false in its config.json'
                )


def _check_tensors(tensors: Mapping[str, torch.Tensor], pieces: dict[str, Piece]) -> None:
    missing = [name for name in pieces if name not in tensors]
    extra = [name for name in tensors if name not in pieces]
    if missing or extra:
        what = f"lack {_some(missing)}" if missing else f"have {_some(extra)} too many"
        raise ValueError(f"the tensors to save {what}; they are not those of this config")
    for name, piece in pieces.items():
        if tuple(tensors[name].shape) != piece.shape:
            raise ValueError(f"{name} should be {piece.shape}, but is {tuple(tensors[name].shape)}")


def _groups(tensors: dict[str, torch.Tensor], file_bytes: int) -> list[list[str]]:
    """Names in order, a new file where the next tensor would make one larger than file_bytes."""
    groups, size = [[]], 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if groups[-1] and size + own > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    return groups


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
