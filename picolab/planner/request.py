"""What is asked of the planner, with names resolved: a model, devices, a step."""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from picolab import costs
from picolab.planner.practice import PRACTICES, Efficiency, Practice
from picolab.specs import Hardware, ModelConfig
from picolab.specs.layout import check_world_size


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A model, so many devices, and one optimizer step of `global_batch` sequences of `seq`."""

    model: ModelConfig | str
    """A shape, a preset's name, or a folder (or config.json) of a Hugging Face model."""
    gpus: int
    hardware: Hardware | str
    """A device, a preset's name ("h100"), or a JSON file."""
    seq: int | None = None
    """Tokens of a sequence; None: the model's."""
    global_batch: int
    """Sequences of one optimizer step."""
    practice: Practice | str | None = None
    """How the code is written: a Practice, or a name of PRACTICES. None: "today", and "picolab"
    where the hardware is measured, since that is what runs there."""
    imbalance: float = 1.0
    """Of routing: the rows of the rank of ep with the most, over the mean. It is waited for. Runs
    report it (the event "experts"); 1: all ranks have as many."""
    efficiency: Efficiency | None = None
    """None: the fitted one, or none taken off where the hardware is measured."""

    def __post_init__(self):
        check_world_size(self.gpus)
        config = resolve_model(self.model)
        seq = config.seq if self.seq is None else self.seq
        for name, value in (("seq", seq), ("global_batch", self.global_batch)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it is a whole number of 1 or more")
        if not isinstance(self.imbalance, int | float) or not 1 <= self.imbalance < math.inf:
            raise ValueError(
                f"imbalance is {self.imbalance!r}; it is the largest load over the mean, 1 or more"
            )
        hardware = resolve_hardware(self.hardware)
        default = "picolab" if hardware.measured else "today"
        resolved = {
            "seq": seq,
            "model": config.replace(seq=seq, name=config.name),
            "hardware": hardware,
            "practice": _resolve_practice(default if self.practice is None else self.practice),
            "efficiency": self.efficiency or Efficiency.of(hardware),
        }
        for name, value in resolved.items():
            object.__setattr__(self, name, value)

    def replace(self, **changes) -> "Request":
        return dataclasses.replace(self, **changes)

    @property
    def memory_bytes(self) -> float:
        """What a rank may use of its device."""
        return self.hardware.memory_bytes * (1 - self.practice.reserved)

    @cached_property
    def model_flops(self) -> float:
        """Of one step, by the one convention: forward and backward, the full square of attention,
        nothing that is recomputed."""
        return costs.flops_per_token(self.model, self.seq) * self.tokens

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.global_batch * self.seq


def resolve_model(model: ModelConfig | str | Path) -> ModelConfig:
    """A shape from a preset's name, or from a Hugging Face folder or config.json on this disk."""
    if isinstance(model, ModelConfig):
        return model
    if str(model) in ModelConfig.presets():
        return ModelConfig.preset(str(model))
    path = Path(model).expanduser()
    if path.exists() or path.name == "config.json":
        from picolab.specs.hugging_face_config import read_config

        return read_config(path)
    return ModelConfig.preset(str(model))  # says which names are near


def resolve_hardware(hardware: Hardware | str | Path) -> Hardware:
    if isinstance(hardware, Hardware):
        return hardware
    if str(hardware).endswith(".json"):
        return Hardware.load(hardware)
    return Hardware.preset(str(hardware))


def _resolve_practice(practice: Practice | str) -> Practice:
    if isinstance(practice, Practice):
        return practice
    if practice not in PRACTICES:
        close = difflib.get_close_matches(str(practice), PRACTICES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"no practice is called {practice!r}; {hint}names are {', '.join(PRACTICES)}"
        )
    return PRACTICES[practice]
