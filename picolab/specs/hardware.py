"""A device and its links, by the numbers on its data sheet: what a formula divides by.

They are peaks that no program reaches; a share of them (MFU) is what a run is measured by. Links
inside a node and between nodes are told apart, since they differ by a factor of ten. A CPU has no
entry: `picolab.training.measure` makes one from this machine, with rates that a program did reach
(`measured`), and says how many cores the ranks share.

A device may also come from a JSON file: `Hardware.load("mine.json")`, with the fields below.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device. Rates are for one device and dense (not 2:4 sparse) arithmetic."""

    name: str
    peak_flops: float
    """Matrix operations per second, a multiplication and an addition counted as two: in bf16 on a
    data sheet, in fp32 where it is `measured`."""
    memory_bytes: float
    """Device memory; GB is 1e9."""
    memory_bytes_per_s: float
    """Bandwidth between the device and its memory."""
    link_bytes_per_s: float
    """What it can send to its neighbours in a node: one direction (data sheets add up both)."""
    network_bytes_per_s: float
    """What it can send to other nodes through the network card that is its own: one direction
    (networks are sold in bits, 400 Gb/s are 50 GB/s)."""
    node_size: int = 8
    """Devices that reach each other over the links of a node."""
    link_alpha_s: float = 3e-6
    """Seconds of the shortest message inside a node. Data sheets are silent: of the order of the
    latencies that NCCL calculates with (src/graph/tuning.cc)."""
    network_alpha_s: float = 10e-6
    """The same between nodes."""
    source: str
    measured: bool = False
    """The rates are what a program reached, so that no efficiency is to be taken off."""
    cores: int | None = None
    """Cores that all ranks share; more ranks than that take turns. None: each has a device."""
    collectives: Mapping[str, tuple[float, float]] | None = None
    """Measured collectives: op -> (seconds a message, bytes a second), in place of the links."""
    rates: Mapping[str, float] | None = None
    """Format -> matrix operations per second in it, where they are others than peak_flops. In fp64
    those of tensor (or matrix) cores, which multiply it as it is, and in fp32 not those in tf32."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "source"):
                if not isinstance(value, str):
                    raise ValueError(f"hardware: {field.name} is {value!r}; it must be a text")
            elif field.name == "measured":
                if not isinstance(value, bool):
                    raise ValueError(f"{self.name}: measured is {value!r}; it is true or false")
            elif field.name == "collectives":
                self._check_collectives()
            elif field.name == "rates":
                for format, rate in dict(self.rates or {}).items():
                    self._check_number(f"rates[{format!r}]", rate)
            elif not (value is None and field.name == "cores"):
                self._check_number(field.name, value, whole=field.type in (int, int | None))

    def _check_number(self, field: str, value: Any, whole: bool = False) -> None:
        kinds = int if whole else int | float
        if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
            what = "a positive integer" if whole else "positive"
            raise ValueError(f"{self.name}: {field} is {value!r}; it must be {what}")

    def _check_collectives(self) -> None:
        if self.collectives is None:
            return
        pairs = {}
        for op, pair in dict(self.collectives).items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(
                    f"{self.name}: collectives[{op!r}] is {pair!r}; it is two numbers, seconds a "
                    f"message and bytes a second"
                )
            for value in pair:
                self._check_number(f"collectives[{op!r}]", value)
            pairs[op] = tuple(pair)
        object.__setattr__(self, "collectives", pairs)

    def matrix_flops(self, format: str) -> float:
        """Matrix operations per second of operands in this format: "fp64", "fp32", "bf16", "fp16",
        "fp8". Of one that it does not know, peak_flops."""
        return (self.rates or {}).get(format, self.peak_flops)

    def knows(self, format: str) -> bool:
        """Whether the format has a rate of its own, or peak_flops is in it."""
        return format in (self.rates or {}) or format in self.peak_formats

    @property
    def peak_formats(self) -> tuple[str, ...]:
        """What peak_flops is in."""
        return ("fp32",) if self.measured else ("bf16", "fp16")

    @classmethod
    def preset(cls, name: str) -> "Hardware":
        """A device by name, or by the beginning of one: "h100". `presets()` lists them."""
        word = str(name).lower()
        found = [one for one in _PRESETS if one == word or one.startswith(f"{word}-")]
        if not found:
            close = difflib.get_close_matches(word, _PRESETS, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"no device is called {name!r}; {hint}names are {', '.join(_PRESETS)}")
        return _PRESETS[found[0]]

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        return tuple(_PRESETS)

    @classmethod
    def load(cls, path: str | Path) -> "Hardware":
        """A device from a JSON file: an object with the fields of this class."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no file {path}; a device is a name or a JSON file")
        try:
            there = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(there, dict):
            raise ValueError(f"{path} holds {there!r:.40}; a device is an object of fields")
        known = {field.name: field for field in fields(cls)}
        for name in sorted(there.keys() - known.keys()):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"fields are {', '.join(known)}"
            raise ValueError(f"{path}: a device has no field {name!r}; {hint}")
        for name, field in known.items():
            if name not in there and field.default is dataclasses.MISSING:
                raise ValueError(
                    f"{path}: the field {name!r} is missing; the h100-sxm has "
                    f"{getattr(_PRESETS['h100-sxm'], name)!r} there"
                )
        return cls(**there)

    def to_json(self) -> str:
        """What `load` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)


_PRESETS = {
    device.name: device
    for device in (
        Hardware(
            name="a100-80gb",
            peak_flops=312e12,
            rates={"fp64": 19.5e12, "fp32": 19.5e12},
            memory_bytes=80e9,
            memory_bytes_per_s=2.039e12,
            link_bytes_per_s=300e9,
            network_bytes_per_s=25e9,
            source="NVIDIA A100 data sheet, SXM 80 GB; peak also in arXiv 2104.04473, section 5; "
            "network: DGX A100 data sheet, a 200 Gb/s ConnectX-6 a GPU",
        ),
        Hardware(
            name="h100-sxm",
            peak_flops=989e12,
            rates={"fp64": 67e12, "fp32": 67e12, "fp8": 1979e12},
            memory_bytes=80e9,
            memory_bytes_per_s=3.35e12,
            link_bytes_per_s=450e9,
            network_bytes_per_s=50e9,
            source="NVIDIA H100 data sheet, SXM; half of the 1,979 TFLOP/s given with sparsity; "
            "network: DGX H100 data sheet, a 400 Gb/s ConnectX-7 a GPU",
        ),
        Hardware(
            name="h200-sxm",
            peak_flops=989e12,
            rates={"fp64": 67e12, "fp32": 67e12, "fp8": 1979e12},
            memory_bytes=141e9,
            memory_bytes_per_s=4.8e12,
            link_bytes_per_s=450e9,
            network_bytes_per_s=50e9,
            source="NVIDIA H200 data sheet, SXM; half of the 1,979 TFLOP/s given with sparsity; "
            "network: DGX H200 data sheet, a 400 Gb/s ConnectX-7 a GPU",
        ),
        Hardware(
            name="b200-sxm",
            peak_flops=2.25e15,
            rates={"fp64": 37e12, "fp32": 75e12, "fp8": 4.5e15},
            memory_bytes=180e9,
            memory_bytes_per_s=8e12,
            link_bytes_per_s=900e9,
            network_bytes_per_s=50e9,
            source="NVIDIA DGX B200 data sheet, an eighth of its 1,440 GB and 64 TB/s; peak: half "
            "of the 4.5 PFLOP/s with sparsity of the HGX B200 data sheet; network: a 400 Gb/s "
            "ConnectX-7 a GPU",
        ),
        Hardware(
            name="mi300x",
            peak_flops=1307.4e12,
            rates={"fp64": 163.4e12, "fp32": 163.4e12, "fp8": 2614.9e12},
            memory_bytes=192e9,
            memory_bytes_per_s=5.3e12,
            link_bytes_per_s=448e9,
            network_bytes_per_s=50e9,
            source="AMD Instinct MI300X data sheet; link: seven Infinity Fabric links of 64 GB/s "
            "one way; network: a 400 Gb/s card a device, as in MI300X platforms of eight",
        ),
    )
}
