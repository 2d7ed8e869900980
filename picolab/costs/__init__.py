"""The formulas: what a model, a layout and a step cost, in numbers, bytes and operations. No torch.

Each is a function with its units and its source. "Formula" in a chapter means one of these; a test
or a comparison in the chapter holds it against what a run measured.
"""

from picolab.costs.bandwidth import group_bandwidth
from picolab.costs.bubbles import bubble_of_ideal, bubble_of_total, in_flight
from picolab.costs.collectives import collective_time, fit_alpha_beta, ring_bytes
from picolab.costs.compute import flops_per_token
from picolab.costs.failures import checkpoint_interval, checkpoint_waste
from picolab.costs.ledger import Expected, step_ledger
from picolab.costs.memory import (
    BYTES_16_BF16,
    BYTES_16_FP32,
    BYTES_18_FP32_GRADIENTS,
    BYTES_20_FP16,
    RECIPES,
    StateBytes,
    dtype_bytes,
    sp_input_bytes,
    state_bytes,
)
from picolab.costs.parameters import (
    LocalParameter,
    ParameterCount,
    local_parameters,
    parameters,
)
from picolab.costs.slices import even_slices, head_slices, replica_sequences, zigzag_chunks
from picolab.costs.stages import stage_layers
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
    "Expected",
    "LocalParameter",
    "ParameterCount",
    "StateBytes",
    "bubble_of_ideal",
    "bubble_of_total",
    "buckets",
    "checkpoint_interval",
    "checkpoint_waste",
    "collective_time",
    "data_parallel_bytes",
    "dtype_bytes",
    "even_slices",
    "fit_alpha_beta",
    "flops_per_token",
    "gathered_bytes",
    "group_bandwidth",
    "head_slices",
    "in_flight",
    "local_parameters",
    "parameters",
    "rank_states",
    "replica_sequences",
    "ring_bytes",
    "sp_input_bytes",
    "stage_layers",
    "state_bytes",
    "step_ledger",
    "tensor_parallel_layer_bytes",
    "zero3_uses",
    "zero_bytes",
    "zero_shards",
    "zigzag_chunks",
]
