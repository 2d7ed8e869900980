"""A device, by the numbers on its data sheet: what a formula divides by.

They are peaks that no program reaches; a share of them (MFU) is what a run is measured by. A CPU
has no entry: its peak is measured with a matrix product, not looked up.
"""

import difflib
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device. Rates are for one device and dense (not 2:4 sparse) arithmetic."""

    name: str
    peak_flops: float
    """bf16 matrix operations per second, a multiplication and an addition counted as two."""
    memory_bytes: float
    """Device memory; GB is 1e9."""
    memory_bytes_per_s: float
    """Bandwidth between the device and its memory."""
    link_bytes_per_s: float
    """What it can send to its neighbours in a node: one direction (data sheets add up both)."""
    source: str
    network_bytes_per_s: float = 50e9
    """What it can send to another node, one direction: its own card (networks are sold in bits, 400
    Gb/s are 50 GB/s)."""
    node_size: int = 8
    """Devices in a node, joined by the fast links."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("name", "source") and not value > 0:
                raise ValueError(f"{self.name}: {field.name} is {value}; it must be positive")

    @classmethod
    def preset(cls, name: str) -> "Hardware":
        """A device by name; `Hardware.presets()` lists them."""
        if name not in _PRESETS:
            close = difflib.get_close_matches(str(name).lower(), _PRESETS, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"no device is called {name!r}; {hint}names are {', '.join(_PRESETS)}")
        return _PRESETS[name]

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        return tuple(_PRESETS)


_PRESETS = {
    device.name: device
    for device in (
        Hardware(
            name="a100-80gb",
            peak_flops=312e12,
            memory_bytes=80e9,
            memory_bytes_per_s=2.039e12,
            link_bytes_per_s=300e9,
            network_bytes_per_s=25e9,
            source="NVIDIA A100 data sheet, SXM 80 GB; peak also in arXiv 2104.04473, section 5; "
            "network of a DGX A100, a card of 200 Gb/s for each GPU",
        ),
        Hardware(
            name="h100-sxm",
            peak_flops=989e12,
            memory_bytes=80e9,
            memory_bytes_per_s=3.35e12,
            link_bytes_per_s=450e9,
            source="NVIDIA H100 data sheet, SXM; half of the 1,979 TFLOP/s given with sparsity; "
            "network as in arXiv 2407.21783, section 3.3.1: a card of 400 Gb/s for each GPU",
        ),
        Hardware(
            name="h200-sxm",
            peak_flops=989e12,
            memory_bytes=141e9,
            memory_bytes_per_s=4.8e12,
            link_bytes_per_s=450e9,
            source="NVIDIA H200 data sheet, SXM; half of the 1,979 TFLOP/s given with sparsity",
        ),
    )
}
