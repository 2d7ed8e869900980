"""Which numbers a training step is made of, by the name of its precision. No torch.

    precision   parameters, gradients,   activations, inputs   loss scaled   bytes a parameter
                moments                  of products
    fp64        fp64                     fp64                  no            32
    fp32        fp32                     fp32                  no            16
    bf16        fp32                     bf16                  no            16
    bf16-pure   bf16                     bf16                  no            8
    fp16        fp32                     fp16                  yes           16
    fp8         fp32                     bf16; e4m3, e5m2      no            16
    adaptive    fp32                     fp32; each layer's    no            16

In the mixed ones the parameters *are* the fp32 masters: what the optimizer steps, what is reduced,
saved and gathered. A product makes its working copy of them, and whoever looks at the model sees no
second set of parameters. That is also why they cost as many bytes as fp32; what they save is
activations and time. In "adaptive" each linear has a format of its own, chosen by what was measured
and changed as the run goes on; what flows between layers stays fp32, and a copy of the parameters
and moments, 12 bytes a parameter, is kept to go back to.
"""

from dataclasses import dataclass
from typing import Literal

PrecisionName = Literal["fp64", "fp32", "bf16", "bf16-pure", "fp16", "fp8", "adaptive"]
Dtype = Literal["fp32", "fp64", "bf16"]
OLDER_SPELLING = {"fp32": "fp32", "fp64": "fp64", "bf16": "bf16-pure"}
"""What `dtype=` says, as a precision."""


@dataclass(frozen=True)
class Numbers:
    """The dtypes of one precision."""

    parameters: Dtype
    """Of parameters, gradients (also where they travel) and moments."""
    activations: str
    """Of what flows between layers, and travels between ranks."""
    scaled: bool = False
    """Whether the loss is scaled, and a step may be skipped."""
    watched: bool = False
    """Whether steps may be taken back, for which a state is kept to go back to."""

    @property
    def travelling(self) -> tuple[str, str]:
        """Of activations that are sent, and of gradients and parameters."""
        return self.activations, self.parameters

    @property
    def mixed(self) -> bool:
        return self.parameters != self.activations

    @property
    def agreed(self) -> bool:
        """Whether all ranks agree on each step before it is taken."""
        return self.scaled or self.watched


PRECISIONS: dict[str, Numbers] = {
    "fp64": Numbers("fp64", "fp64"),
    "fp32": Numbers("fp32", "fp32"),
    "bf16": Numbers("fp32", "bf16"),
    "bf16-pure": Numbers("bf16", "bf16"),
    "fp16": Numbers("fp32", "fp16", scaled=True),
    "fp8": Numbers("fp32", "bf16"),
    "adaptive": Numbers("fp32", "fp32", watched=True),
}
