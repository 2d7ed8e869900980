"""Bytes of the model's states: parameters, gradients, and what the optimizer keeps.

The literature says 16, 18 or 20 bytes a parameter because the dtypes differ, so the dtypes are the
inputs here and the three are names for sets of them. Activations and buffers come on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from picolab.specs import ModelConfig
from picolab.specs.precision import PRECISIONS, PrecisionName

# Set-ups for state_bytes(params, **BYTES_...). Each is what one parameter takes, in bytes.

BYTES_16_BF16: Mapping[str, int] = MappingProxyType(
    {"param_bytes": 2, "grad_bytes": 2, "master_bytes": 4, "moment_bytes": 8}
)
"""bf16 (or fp16) parameters and gradients, fp32 master copy and two Adam moments: arXiv 1910.02054,
section 3.1 (its K = 12 is master plus moments)."""

BYTES_18_FP32_GRADIENTS: Mapping[str, int] = MappingProxyType(
    {"param_bytes": 2, "grad_bytes": 4, "master_bytes": 4, "moment_bytes": 8}
)
"""The same with gradients accumulated in fp32: Megatron-LM, distributed optimizer guide, bf16."""

BYTES_20_FP16: Mapping[str, int] = MappingProxyType(
    {"param_bytes": 2, "grad_bytes": 2, "master_bytes": 8, "moment_bytes": 8}
)
"""fp16 with an fp32 copy of parameters *and* of gradients: the same guide, fp16. The gradients'
copy stands with the master because it is the optimizer's, and is sharded with it."""

BYTES_16_FP32: Mapping[str, int] = MappingProxyType(
    {"param_bytes": 4, "grad_bytes": 4, "master_bytes": 0, "moment_bytes": 8}
)
"""All in fp32: no master copy is needed. What picolab trains by default."""

RECIPES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "bf16, fp32 master": BYTES_16_BF16,
        "bf16, fp32 gradients and master": BYTES_18_FP32_GRADIENTS,
        "fp16, fp32 copies of both": BYTES_20_FP16,
        "fp32": BYTES_16_FP32,
    }
)


def trained_bytes(precision: PrecisionName) -> Mapping[str, int]:
    """What `picolab.training` keeps of one parameter, in bytes: no second copy of the masters, and,
    where steps may be taken back, one of what the optimizer steps and of its moments, which stands
    with the master because it is sharded with it. Working copies come on top, see `copy_bytes`."""
    numbers = PRECISIONS[precision]
    size = dtype_bytes(numbers.parameters)
    return MappingProxyType(
        {
            "param_bytes": size,
            "grad_bytes": size,
            "master_bytes": 3 * size if numbers.watched else 0,
            "moment_bytes": 2 * size,
        }
    )


def copy_bytes(precision: PrecisionName, products: Literal["native", "rounded"] = "native") -> int:
    """Of one number of a linear's weight, of its working copy in the short format, which is there
    from a step's first product to its end (with ZeRO 3 only during a product). As bf16 or fp16,
    which the numbers of fp8 are kept in too; rounded ones as fp32, in which they are multiplied.

    "adaptive": the most it can be, where no layer is in fp32 or, for blocks, copied twice."""
    if precision not in ("bf16", "fp16", "fp8", "adaptive"):
        return 0
    return 2 if products == "native" else 4


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one rank, by category. Uneven shards are counted as fractions."""

    parameters: float
    gradients: float
    master: float
    moments: float

    @property
    def optimizer(self) -> float:
        return self.master + self.moments

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer

    def rows(self) -> list[list]:
        """[label, bytes] for each category and the total."""
        names = ("parameters", "gradients", "master", "moments", "total")
        return [[name, getattr(self, name)] for name in names]


def state_bytes(
    params: float,
    *,
    param_bytes: float = 2,
    grad_bytes: float = 2,
    master_bytes: float = 4,
    moment_bytes: float = 8,
    zero: int = 0,
    dp: int = 1,
) -> StateBytes:
    """Bytes of the states of `params` parameters on one rank, under a ZeRO stage over dp ranks.

        stage 1   P + G + (M + A)/dp         optimizer sharded (M master, A moments)
        stage 2   P + (G + M + A)/dp         gradients too
        stage 3   (P + G + M + A)/dp         parameters too

    Source: arXiv 1910.02054, section 5 and figure 1 (7.5e9 parameters, dp 64: 120, 31.4, 16.6 and
    1.9 GB). Left out: the one or two unsharded units that stage 3 gathers to compute with. Under
    tp, give the parameters that the rank holds (`local_parameters`).
    """
    if zero not in (0, 1, 2, 3):
        raise ValueError(f"zero is {zero!r}; ZeRO stages are 0 (off), 1, 2 and 3")
    if dp < 1:
        raise ValueError(f"dp is {dp}; it must be 1 or more")
    if params < 0:
        raise ValueError(f"params is {params}; a model cannot have fewer than 0 parameters")

    def held(size: float, sharded_from_stage: int) -> float:
        return params * size / (dp if zero >= sharded_from_stage else 1)

    return StateBytes(
        parameters=held(param_bytes, 3),
        gradients=held(grad_bytes, 2),
        master=held(master_bytes, 1),
        moments=held(moment_bytes, 1),
    )


def sp_input_bytes(
    config: ModelConfig,
    tp: int,
    *,
    micro_batch: int,
    seq: int | None = None,
    dtype: object = "fp32",
    sp_inputs: Literal["keep", "gather"] = "keep",
) -> int:
    """Bytes of the column-parallel matrices' inputs that one rank keeps of one micro-batch under
    sequence parallelism: 2 L + 1 of them (qkv, gate and up; the head), b*s*h each.

    "keep": whole, as they were gathered. "gather": this rank's 1/tp, and they are gathered again in
    backward. Source: arXiv 2205.05198, section 4.2.2. All layers on one stage.
    """
    numbers = micro_batch * (config.seq if seq is None else seq) * config.hidden
    whole = (2 * config.layers + 1) * numbers * dtype_bytes(dtype)
    return whole if sp_inputs == "keep" else whole // tp


_DTYPE_BYTES = {
    **dict.fromkeys(("fp64", "float64", "double", "int64", "long"), 8),
    **dict.fromkeys(("fp32", "float32", "float", "int32", "int"), 4),
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16", "half", "int16", "short"), 2),
    **dict.fromkeys(("fp8", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool"), 1),
}


def dtype_bytes(dtype: object) -> int:
    """Bytes of one number: `dtype_bytes("bf16")` is 2. Takes torch's dtypes too, by their name."""
    name = str(dtype).removeprefix("torch.").lower()
    if name not in _DTYPE_BYTES:
        raise ValueError(
            f"{dtype!r} is not a dtype known here; known are {', '.join(_DTYPE_BYTES)}"
        )
    return _DTYPE_BYTES[name]
