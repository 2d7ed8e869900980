"""What an expression of a question bank may name: functions, constants, fields of their results.

An allow-list, one by one. Whoever adds a function asks of it: does it compute and nothing else, and
what does it build in a loop? The argument that says how often goes into `MOST`. No module and no
class is on the list (but Layout, which is frozen data), so that no name leads on to another.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache

LAYERS, RANKS = 256, 8192
"""the most a model and a layout may have"""

_COSTS = (
    *("BYTES_16_BF16", "BYTES_16_FP32", "BYTES_18_FP32_GRADIENTS", "BYTES_20_FP16"),
    *("at_least", "cusum_run_length", "expected_largest", "log_buckets", "normal_tail"),
    *("bubble_of_ideal", "bubble_of_total", "buckets", "causal_share", "checkpoint_interval"),
    *("checkpoint_waste", "collective_time", "data_parallel_bytes", "distinct_groups"),
    *("dropped_share", "dtype_bytes", "end_activation_bytes", "even_slices", "expert_capacity"),
    *("expert_parallel_bytes", "flops_per_token", "group_bandwidth", "half_bandwidth_bytes"),
    *("held_parameters", "in_flight", "layer_activation_bytes", "least_loss_scale"),
    *("local_parameters", "operand_numbers", "parameters", "ring_bytes", "rounding_unit"),
    *("saved_bytes", "saved_ends", "scaled_bits", "stage_layers", "state_bytes", "step_ledger"),
    *("tensor_parallel_layer_bytes", "touched_experts", "zero_bytes"),
)
PLAIN: dict[str, Callable] = {
    **{function.__name__: function for function in (min, max, round, abs, sum, len)},
    **{f.__name__: f for f in (math.ceil, math.floor, math.log2, math.sqrt)},
}
# What a call builds in a loop: the argument that says how often, and the most it may be.
MOST = {
    "costs.at_least": {"k": 1024},
    "costs.distinct_groups": {"experts": 4096},
    "costs.dropped_share": {"tokens": 2**16},
    "costs.even_slices": {"n": 4096},
    "costs.saved_bytes": {"tp": 4096},
    "costs.saved_ends": {"tp": 4096},
    "costs.stage_layers": {"stages": 4096},
    "costs.step_ledger": {"accumulate": 256},
    "schedules.make": {"ranks": 32, "micro_batches": 128},
    "ModelConfig.replace": {"layers": LAYERS, "heads": 512, "kv_heads": 512, "experts": 4096},
    "round": {"ndigits": 15},
}


@lru_cache(maxsize=1)
def names() -> Mapping[str, object]:
    """The functions and constants of the package, by the dotted names that an expression uses."""
    from picolab import costs, schedules
    from picolab.planner.published import published
    from picolab.specs import Hardware, Layout, ModelConfig

    return {
        **PLAIN,
        **{f"costs.{name}": getattr(costs, name) for name in _COSTS},
        "schedules.make": schedules.make,
        "schedules.simulate": schedules.simulate,
        "planner.published": published,
        "ModelConfig.preset": ModelConfig.preset,
        "Hardware.preset": Hardware.preset,
        "Layout": Layout,
        "Layout.parse": Layout.parse,
    }


@lru_cache(maxsize=1)
def types() -> tuple[dict[type, set[str]], dict[type, set[str]]]:
    """type -> fields that can be read, type -> methods that can be called."""
    from picolab import costs
    from picolab.planner import Published
    from picolab.schedules import Schedule, Simulation
    from picolab.specs import Hardware, Layout, ModelConfig

    readable = {
        costs.ParameterCount: {field.name for field in fields(costs.ParameterCount)},
        costs.StateBytes: {field.name for field in fields(costs.StateBytes)}
        | {"optimizer", "total"},
        costs.HeldParameters: {"dense", "experts", "total"},
        costs.LocalParameter: {"name", "numel", "sharded"},
        costs.Expected: set(costs.Expected._fields),
        Hardware: {field.name for field in fields(Hardware)},
        Layout: {field.name for field in fields(Layout)} | {"world"},
        ModelConfig: {field.name for field in fields(ModelConfig)} - {"latent", "rope_scaling"},
        Simulation: {"makespan", "ideal", "bubble_of_total", "bubble_of_ideal", "peak_in_flight"},
        Schedule: {"stages", "micro_batches", "ranks"},
        Published: {"gpus", "seq", "global_batch", "tflops", "seconds", "printed_share", "mfu"},
    }
    callable_ = {
        ModelConfig: {"replace"},
        Layout: {"coordinates", "grid"},
        dict: {"items", "keys", "values"},
    }
    return readable, callable_
