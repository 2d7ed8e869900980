"""What a run with adaptive precision has said of its layers' formats, step by step.

    chosen      layer -> the format that was chosen for it in the first step (which is in fp32)
    changes     from which step on which layers have another one: raised after a bad step, lowered
                after many good ones
    went_back   (the bad step, the one that was gone back to, why)

A step that is taken back is done again, so of its tries the last one counts. Shares are of fp32:
of the operations in linears, and of the bytes that their products' operands have.
"""

from dataclasses import dataclass, field

LADDER = ("fp8", "fp8-blocks", "bf16", "fp32")
"""From the lowest to the highest, as precision/adaptive.py has it."""
BYTES = {"fp8": 1.0, "fp8-blocks": 1 + 1 / 32, "bf16": 2.0, "fp32": 4.0}


@dataclass
class PrecisionHistory:
    layers: list[str] = field(default_factory=list)
    changes: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    went_back: list[tuple[int, int, str]] = field(default_factory=list)
    last: int = -1
    """The newest step that is over."""
    _sizes: dict[str, int] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.layers)

    def copy(self) -> "PrecisionHistory":
        changes = [(step, dict(formats)) for step, formats in self.changes]
        return PrecisionHistory(
            list(self.layers), changes, list(self.went_back), self.last, self._sizes, self._numbers
        )

    def add(self, kind: str, data: dict) -> None:
        """An event "precision", "went back" or "lowered"."""
        step = data["step"]
        if kind == "precision":
            chosen = {name: format for name, (format, _) in data["layers"].items()}
            self.layers, self.changes = list(chosen), [(step + 1, chosen)]
            self._sizes, self._numbers = data["sizes"], data["numbers"]
        elif kind == "lowered":
            self.changes.append((step + 1, {data["layer"]: data["format"]}))
        else:
            back = data["to"]
            if back is not None:
                self.went_back.append((step, back, data["why"]))
            self.changes.append((step + 1 if back is None else back, data["layers"]))

    def formats(self, step: int) -> dict[str, str]:
        """Of each layer in this step."""
        found = dict.fromkeys(self.layers, "fp32")
        for since, formats in self.changes:
            if step >= since:
                found |= formats
        return found

    @property
    def now(self) -> dict[str, str]:
        return self.formats(self.last)

    def below_fp32(self, step: int) -> float:
        """Of the operations in linears, the share that is in a shorter format."""
        formats = self.formats(step)
        below = sum(size for name, size in self._sizes.items() if formats[name] != "fp32")
        return below / (sum(self._sizes.values()) or 1)

    def bytes_share(self, step: int) -> float:
        """Bytes of what the products read, over those in fp32."""
        formats = self.formats(step)
        read = sum(count * BYTES[formats[name]] for name, count in self._numbers.items())
        return read / (4 * sum(self._numbers.values()) or 1)
