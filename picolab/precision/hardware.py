"""What this machine is fast at: not what it can do, but what it was seen to do.

A format that the processor has instructions for is not yet faster. One core with AVX512-BF16
multiplies in bf16 three times as fast as in fp32; one with AVX2 alone is slower, by 4 for W's
gradient and by 60 for x's. fp8 is slower than bf16 wherever it is emulated, and on GPUs for small
matrices. So the detector multiplies: each product of a linear (y, dx, dw), at the shapes and with
the layouts of the operands that the model has, in each format and by both ways of products.py.
That takes a second once; what was found is kept in a file, and the same machine gives the same
answer, and a run the same numbers, from then on.

    detector = HardwareDetector()
    detector.products("bf16", tokens=1024, inputs=256, outputs=768)
    # y 2.9 times fp32's speed, native; dx ...

Twin: `torchao.float8`'s thresholds on N and K, which are a table of H100 measurements.
"""

import functools
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from picolab.launch import rundirs
from picolab.model import PLAIN
from picolab.precision.formats import find
from picolab.precision.fp8 import Fp8Product
from picolab.precision.products import ROUNDED, Ways, multiply
from picolab.show.files import write_beside

PRODUCTS = ("y", "dx", "dw")
ROUNDS = 5
ENOUGH_S = 0.1
"""No way is tried again that has taken so long already."""


class Timed(NamedTuple):
    """Seconds of one product, the best of a few."""

    fp32: float
    native: float
    rounded: float

    @property
    def way(self) -> str:
        return "native" if self.native < self.rounded else "rounded"

    @property
    def speed(self) -> float:
        """Of the faster way, in fp32's."""
        return self.fp32 / min(self.native, self.rounded)

    def __str__(self) -> str:
        word = "faster" if self.speed >= 1 else "slower"
        ratio = max(self.speed, 1 / self.speed)
        other = max(self.native, self.rounded) / min(self.native, self.rounded)
        return f"{ratio:.1f} times {word} than fp32 ({self.way}; the other way takes {other:.1f})"


class HardwareDetector:
    """Answers by measurements, each made once on a machine.

    folder: where they are kept; None: beside the run directories. device: what is asked.
    """

    def __init__(self, device: torch.device | str = "cpu", folder: str | Path | None = None):
        self.device = torch.device(device)
        self._file = Path(folder or rundirs.root().parent) / "products.json"
        self._machine = "; ".join(
            [_name(self.device), f"torch {torch.__version__}", f"{torch.get_num_threads()} threads"]
        )

    def capabilities(self) -> dict[str, str]:
        """Format -> why this device has it, or has not. Having it says nothing about its speed."""
        if self.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(self.device)
            here = f"compute capability {major}.{minor}"
            needs = {"tf32": 80, "bf16": 80, "fp16": 70, "e4m3": 89, "e5m2": 89, "mx": 100}
            at = 10 * major + minor
            found = {
                name: f"{'yes' if at >= least else 'no'}: {here}, of {least / 10:.1f} and more"
                for name, least in needs.items()
            }
            return {"fp32": "yes", **found}
        flags = torch.backends.cpu.get_cpu_capability()
        rounded = "by rounding: emulated with fp32 products"
        return {
            "fp32": "yes",
            "tf32": "no: only some GPUs have it",
            "bf16": f"yes, {flags}: ask how fast",
            "fp16": f"yes, {flags}: ask how fast",
            "e4m3": rounded,
            "e5m2": rounded,
            "mx": rounded,
        }

    def require(self, format: str) -> None:
        """ValueError if the device does not have the format."""
        known = self.capabilities()
        if format not in known:
            raise ValueError(f"there is no format {format!r}; there are {', '.join(known)}")
        if known[format].startswith("no"):
            raise ValueError(f"{_name(self.device)} does not have {format} ({known[format]})")

    def products(self, format: str, *, tokens: int, inputs: int, outputs: int) -> dict[str, Timed]:
        """y, dx and dw of a linear, timed in fp32 and, by both ways, in bf16 or fp16."""
        dtype, sizes = find(format).dtype, (tokens, inputs, outputs)
        shape = f"{format} {tokens}x{inputs}x{outputs}"
        named = {
            f"{shape} {which} {way}": functools.partial(self._product, which, way, dtype, sizes)
            for which in PRODUCTS
            for way in Timed._fields
        }
        seconds = iter(self._seconds(named).values())
        return {which: Timed(*(next(seconds) for _ in Timed._fields)) for which in PRODUCTS}

    def one_way(self, format: str, *, tokens: int, inputs: int, outputs: int) -> dict[str, float]:
        """Seconds of y, dx and dw in a format that has one way: fp64, fp32, or fp8 as it is
        emulated, by bf16's products (each by its faster way) of operands that are cast before."""
        sizes = (tokens, inputs, outputs)
        way, ways = format, ROUNDED
        if format == "fp8":
            ways = self.ways("bf16", tokens=tokens, inputs=inputs, outputs=outputs)
            way = " ".join([format, *ways])
        elif format not in ("fp64", "fp32"):
            raise ValueError(f"{format} has two ways, see `products`; one have fp64, fp32 and fp8")
        named = {
            f"{tokens}x{inputs}x{outputs} {which} {way}": functools.partial(
                self._make, which, format, ways, sizes
            )
            for which in PRODUCTS
        }
        return dict(zip(PRODUCTS, self._seconds(named).values()))

    def ways(self, format: str, *, tokens: int, inputs: int, outputs: int) -> Ways:
        """The faster way of each product."""
        found = self.products(format, tokens=tokens, inputs=inputs, outputs=outputs)
        return Ways(**{which: found[which].way for which in PRODUCTS})

    def attention(self, format: str, shape: tuple[int, int, int, int, int]) -> Timed:
        """Causal attention, forward and backward. shape: B, N query, K key-value heads, S, E."""
        dtype, name = find(format).dtype, f"{format} attention {'x'.join(map(str, shape))}"
        named = {
            f"{name} {way}": lambda way=way: _attention(shape, way, dtype, self.device)
            for way in Timed._fields
        }
        return Timed(*self._seconds(named).values())

    def _operands(self, which: str, sizes: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
        tokens, inputs, outputs = sizes
        x, w, dy = (
            torch.randn(shape, device=self.device)
            for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
        )
        return {"y": (x, w), "dx": (dy, w), "dw": (dy, x)}[which]

    def _make(self, which: str, format: str, ways: Ways, sizes) -> Callable[[], object]:
        a, b = self._operands(which, sizes)
        if format == "fp8":
            # (the weight's working copy is made by the first call, as by a step's first product)
            product, short = Fp8Product("current", ways), a.bfloat16()
            return lambda: getattr(product, which)(short, b)
        exact = torch.float64 if format == "fp64" else torch.float32
        a, b = a.to(exact), b.to(exact)
        return lambda: getattr(PLAIN, which)(a, b)

    def _product(self, which: str, way: str, dtype: torch.dtype, sizes) -> Callable[[], object]:
        a, b = self._operands(which, sizes)
        if way == "fp32":
            return lambda: getattr(PLAIN, which)(a, b)
        a = a.to(dtype)
        # (as it will be: the working copy of a weight is in the form that is multiplied)
        b = b.to(dtype) if way == "native" or which == "dw" else b.to(dtype).float()
        return lambda: multiply(which, a, b, dtype, way)

    def _seconds(self, named: Mapping[str, Callable]) -> dict[str, float]:
        """From the file, or measured now."""
        known = _read(self._file).get(self._machine, {})
        missing = {name: make for name, make in named.items() if name not in known}
        if missing:
            found = {name: self._time(make()) for name, make in missing.items()}
            everything = _read(self._file)
            known = everything.setdefault(self._machine, {})
            known |= {name: seconds for name, seconds in found.items() if name not in known}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_beside(self._file, json.dumps(everything, indent=1, sort_keys=True))
        return {name: known[name] for name in named}

    def _time(self, compute: Callable[[], object]) -> float:
        # On a CPU that others use too, what a product costs is the CPU time of this process.
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        best = spent = float("inf")
        for round_ in range(ROUNDS + 1):
            self._wait()
            began = clock()
            compute()
            self._wait()
            took = clock() - began
            spent = took if round_ == 0 else spent + took
            # The first one asks for memory; it counts only if it took too long to be repeated.
            if round_ or took > ENOUGH_S:
                best = min(best, took)
            if spent > ENOUGH_S and best < float("inf"):
                break
        return best

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def attend_rounded(attend: Callable, dtype: torch.dtype) -> Callable:
    """Attention of the same numbers, in fp32, its output rounded."""

    def rounded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q.float(), k.float(), v.float()).to(dtype)

    return rounded


def _attention(shape, way: str, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    from picolab.model.transformer import causal_attention

    batch, heads, kv_heads, seq, size = shape
    if seq > 1:  # what a first call loads is no part of what it takes
        _attention((1, heads, kv_heads, 1, size), way, dtype, device)()
    used = torch.float32 if way == "fp32" else dtype
    q, k, v = (
        torch.randn(batch, n, seq, size, device=device).to(used).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    )
    attend = attend_rounded(causal_attention, dtype) if way == "rounded" else causal_attention

    def both() -> None:
        y = attend(q, k, v)
        y.backward(torch.ones_like(y))

    return both


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    # (a virtual machine may call two generations of processors the same)
    wanted = ("vendor_id", "cpu family", "model\t", "stepping", "model name")
    said = {line.partition(":")[0]: line.partition(":")[2].strip() for line in reversed(lines)}
    return " ".join(value for key, value in said.items() if key.startswith(wanted))


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # none yet, or cut off: measured again
        return {}
