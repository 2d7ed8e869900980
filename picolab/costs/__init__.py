"""The formulas: what a model, a layout and a step cost, in numbers, bytes and operations. No torch.

Each is a function with its units and its source. "Formula" in a chapter means one of these; a test
or a comparison in the chapter holds it against what a run measured.
"""

from picolab.costs.activations import (
    RECOMPUTE,
    Kept,
    end_activation_bytes,
    kept,
    layer_activation_bytes,
    token_bytes,
)
from picolab.costs.alarms import (
    at_least,
    cusum_run_length,
    expected_largest,
    log_buckets,
    normal_tail,
)
from picolab.costs.bandwidth import Link, axis_time, group_bandwidth, link
from picolab.costs.bubbles import bubble, bubble_of_ideal, bubble_of_total, in_flight
from picolab.costs.collectives import (
    collective_time,
    fit_alpha_beta,
    half_bandwidth_bytes,
    ring_bytes,
)
from picolab.costs.compute import flops_per_token
from picolab.costs.expert_slots import ExpertSlots
from picolab.costs.experts import (
    distinct_groups,
    dropped_share,
    expert_capacity,
    expert_parallel_bytes,
    touched_experts,
)
from picolab.costs.failures import checkpoint_interval, checkpoint_waste
from picolab.costs.formats import least_loss_scale, rounding_unit, scaled_bits
from picolab.costs.ledger import Expected, step_ledger
from picolab.costs.memory import (
    BYTES_16_BF16,
    BYTES_16_FP32,
    BYTES_18_FP32_GRADIENTS,
    BYTES_20_FP16,
    RECIPES,
    StateBytes,
    copy_bytes,
    dtype_bytes,
    sp_input_bytes,
    state_bytes,
    trained_bytes,
)
from picolab.costs.operands import operand_numbers
from picolab.costs.parameters import (
    HeldParameters,
    LocalParameter,
    ParameterCount,
    held_parameters,
    local_parameters,
    parameters,
)
from picolab.costs.saved import block_work_bytes, loss_work_bytes, saved_bytes, saved_ends
from picolab.costs.slices import (
    causal_share,
    even_slices,
    head_slices,
    replica_sequences,
    zigzag_chunks,
)
from picolab.costs.stages import balanced_stages, rank_stages, stage_layers
from picolab.costs.traffic import (
    buckets,
    data_parallel_bytes,
    tensor_parallel_layer_bytes,
)
from picolab.costs.zero import gathered_bytes, rank_states, zero3_uses, zero_bytes, zero_shards
from picolab.specs import DEFAULT_BUCKET_BYTES

__all__ = [
    "BYTES_16_BF16",
    "BYTES_16_FP32",
    "BYTES_18_FP32_GRADIENTS",
    "BYTES_20_FP16",
    "DEFAULT_BUCKET_BYTES",
    "RECIPES",
    "RECOMPUTE",
    "Expected",
    "ExpertSlots",
    "HeldParameters",
    "Kept",
    "Link",
    "LocalParameter",
    "ParameterCount",
    "StateBytes",
    "at_least",
    "axis_time",
    "balanced_stages",
    "block_work_bytes",
    "bubble",
    "bubble_of_ideal",
    "bubble_of_total",
    "buckets",
    "causal_share",
    "checkpoint_interval",
    "checkpoint_waste",
    "collective_time",
    "copy_bytes",
    "cusum_run_length",
    "data_parallel_bytes",
    "distinct_groups",
    "dropped_share",
    "dtype_bytes",
    "end_activation_bytes",
    "even_slices",
    "expected_largest",
    "expert_capacity",
    "expert_parallel_bytes",
    "fit_alpha_beta",
    "flops_per_token",
    "gathered_bytes",
    "group_bandwidth",
    "half_bandwidth_bytes",
    "head_slices",
    "held_parameters",
    "in_flight",
    "kept",
    "layer_activation_bytes",
    "least_loss_scale",
    "link",
    "local_parameters",
    "log_buckets",
    "loss_work_bytes",
    "normal_tail",
    "operand_numbers",
    "parameters",
    "rank_stages",
    "rank_states",
    "replica_sequences",
    "ring_bytes",
    "rounding_unit",
    "saved_bytes",
    "saved_ends",
    "scaled_bits",
    "sp_input_bytes",
    "stage_layers",
    "state_bytes",
    "step_ledger",
    "tensor_parallel_layer_bytes",
    "token_bytes",
    "touched_experts",
    "trained_bytes",
    "zero3_uses",
    "zero_bytes",
    "zero_shards",
    "zigzag_chunks",
]
