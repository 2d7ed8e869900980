"""This machine as a `Hardware`: the rates that its ranks reach, for the planner.

    mine = measure("tiny", micro_batch=4)
    pico.plan("tiny", 4, mine, global_batch=32)

A data sheet says what a device could do; here it is timed what it does, in as many ranks at once as
there are cores, because ranks that compute at the same time share caches, memory and clock:

    peak_flops           matrix products of the model's own shapes, forward and both of backward,
                         weighted as the model has them, in fp32
    rates                the same in the formats of `precision`, as the detector found them beside
                         fp32. Not of "adaptive", whose formats are chosen in the run
    memory_bytes_per_s   an elementwise product of two tensors of the MLP's width
    collectives          seconds at several sizes, between all ranks, through `picolab.comm`; alpha
                         and beta of `costs.collective_time`, by least squares of relative errors

Medians of repetitions, since a disturbance only ever adds. Latencies of Python around the products
are in no rate: the smaller the model, the more is missing, the same for all layouts. What is
computed here is a ranking of layouts; `tests/benchmarks/plan.py` holds it against measured steps.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal

import psutil
import torch
import torch.distributed as dist

from picolab import comm, costs, launch
from picolab.costs.parameters import require_llama
from picolab.model import Transformer
from picolab.model.layers import Linear
from picolab.planner.request import resolve_model
from picolab.precision.hardware import HardwareDetector
from picolab.specs import Hardware, Layout, ModelConfig
from picolab.specs.precision import PRECISIONS, PrecisionName
from picolab.training.one_thread import one_thread

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
SIZES = (4_096, 65_536, 1_048_576, 4_194_304)
"""bytes of a payload"""
_WHY = "measure: alpha and beta"


def measure(
    model: ModelConfig | str = "tiny",
    *,
    micro_batch: int = 4,
    seq: int | None = None,
    ranks: int | None = None,
    repeats: int = 7,
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    precision: PrecisionName = "fp32",
) -> Hardware:
    """Time this machine at the shapes of a plain Llama model. Takes some seconds.

    ranks: that run at the same time; None: one a core, and two at least, since one has nobody to
    talk to. precision: "fp64", "bf16", "fp16" or "fp8" asks the detector, too, how many times
    fp32's speed the model's products have in it (`Hardware.rates`); it answers from its file or
    measures once.
    Raises ValueError for numbers that make no sense.
    """
    config = resolve_model(model)
    config = config.replace(seq=config.seq if seq is None else seq, name=config.name)
    require_llama(config)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = max(2, cores or 1) if ranks is None else ranks
    for name, value, least in (("ranks", ranks, 2), ("repeats", repeats, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; it is a whole number of {least} or more")
    found = launch.run(
        measure_rank, config, micro_batch, repeats, world_size=ranks, backend=backend, quiet=True
    )
    each = list(found)
    device = each[0]["device"]
    collectives = {
        op: fit(op, ranks, [(size, max(one[op][size] for one in each)) for size in SIZES])
        for op in OPS
    }
    alpha, rate = collectives["all_reduce"]
    flops = statistics.median(one["flops"] for one in each)
    # What attention computes in, and linears.
    formats = {PRECISIONS[precision].activations, "fp8" if precision == "fp8" else "fp32"}
    rates = {
        format: flops * speed(config, format, micro_batch * config.seq, device=device)
        for format in sorted(formats - {"fp32"})
    }
    memory = each[0]["memory_bytes"] if device == "cuda" else psutil.virtual_memory().total / ranks
    return Hardware(
        name=f"this machine ({device})",
        peak_flops=flops,
        rates=rates or None,
        memory_bytes=memory,
        memory_bytes_per_s=statistics.median(one["bandwidth"] for one in each),
        link_bytes_per_s=rate,
        network_bytes_per_s=rate,
        node_size=2**20,
        link_alpha_s=alpha,
        network_alpha_s=alpha,
        measured=True,
        cores=None if device == "cuda" else cores,
        collectives=collectives,
        source=f"measured with {ranks} ranks at once, torch {torch.__version__}, {config.name}, "
        f"micro-batch {micro_batch} of {config.seq} tokens",
    )


@one_thread()
def speed(
    config: ModelConfig,
    format: str,
    tokens: int,
    detector: HardwareDetector | None = None,
    device: str = "cpu",
) -> float:
    """Of all products of the model's linears in a format, each by the faster way, in fp32's.

    detector: asked in place of this machine's `HardwareDetector`."""
    detector = detector or HardwareDetector(device)
    exact = found = 0.0
    for (rows, columns), count in shapes(config).items():
        size = dict(tokens=tokens, inputs=columns, outputs=rows)
        if format in ("bf16", "fp16"):
            for timed in detector.products(format, **size).values():
                exact += count * timed.fp32
                found += count * min(timed.native, timed.rounded)
        else:
            exact += count * sum(detector.one_way("fp32", **size).values())
            found += count * sum(detector.one_way(format, **size).values())
    return exact / found


def measure_rank(config: ModelConfig, micro_batch: int, repeats: int) -> dict:
    """In a rank: flops and bytes a second, and seconds of each collective at each size."""
    comm.build_mesh(Layout(dp=dist.get_world_size()))
    device = comm.device()
    tokens = micro_batch * config.seq
    flops, seconds = 0.0, 0.0
    for (rows, columns), count in shapes(config).items():
        flops += count * 3 * 2 * tokens * rows * columns
        seconds += count * _products(tokens, rows, columns, device, repeats)
    wide = torch.ones(tokens * config.ffn, device=device)
    factor, out = torch.full_like(wide, 0.5), torch.empty_like(wide)
    product = _time(lambda: torch.mul(wide, factor, out=out), device, repeats)
    found = {
        "device": device.type,
        "flops": flops / seconds,
        "bandwidth": 3 * wide.nbytes / product,
        "memory_bytes": _device_memory(device),
    }
    for op in OPS:
        found[op] = {size: _time(_collective(op, size, device), device, repeats) for size in SIZES}
    return found


def shapes(config: ModelConfig) -> dict[tuple[int, int], int]:
    """(rows, columns) -> how many matrices of the model have them."""
    found: dict[tuple[int, int], int] = {}
    for module in Transformer(config, device="meta").modules():
        if isinstance(module, Linear):
            shape = tuple(module.weight.shape)
            found[shape] = found.get(shape, 0) + 1
    return found


def _products(tokens: int, rows: int, columns: int, device: torch.device, repeats: int) -> float:
    """Seconds of y = x W^T, dx = dy W and dW = dy^T x."""
    x, w = torch.ones(tokens, columns, device=device), torch.ones(rows, columns, device=device)
    dy = torch.ones(tokens, rows, device=device)

    def three():
        return x @ w.T, dy @ w, dy.T @ x

    return _time(three, device, repeats)


def _collective(op: str, size: int, device: torch.device) -> Callable[[], object]:
    """A call that moves a payload of so many bytes between all ranks (send: round a ring)."""
    n = dist.get_world_size()
    x = torch.ones(size // 4 // n * n, device=device)
    if op == "all_gather":
        part = x[: x.numel() // n].clone()
        return lambda: comm.all_gather(part, "dp", _WHY)
    if op == "send":
        return lambda: comm.shift(x, "dp", _WHY)
    return lambda: getattr(comm, op)(x, "dp", _WHY)


def _time(call: Callable, device: torch.device, repeats: int) -> float:
    """The median of its seconds, after two calls that warm up."""
    times = []
    for i in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _device_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def fit(op: str, n: int, times: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """alpha (seconds a message) and the rate (bytes a second) of `costs.collective_time`.

    The time is linear in both: alpha times what it takes with alpha 1, plus beta times what it
    takes with beta 1. Least squares of relative errors, so that small sizes count too; a fit below
    zero is cut off at the smallest time that was seen.
    """
    rows = []
    for size, seconds in times:
        messages = costs.collective_time(op, size, n, 1, 0)
        travels = costs.collective_time(op, size, n, 0, 1)
        rows.append((messages / seconds, travels / seconds))
    aa = sum(a * a for a, _ in rows)
    ab = sum(a * b for a, b in rows)
    bb = sum(b * b for _, b in rows)
    sa, sb = sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    alpha, beta = (sa * bb - sb * ab) / determinant, (sb * aa - sa * ab) / determinant
    if alpha <= 0:
        alpha, beta = 1e-9, sb / bb
    elif beta <= 0:
        alpha, beta = sa / aa, 1e-15
    return alpha, 1 / beta
