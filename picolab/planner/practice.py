"""What a formula cannot know: how good the code is that runs on the device.

A data sheet's rate is reached by no program. `Efficiency` says which share of each is, `Practice`
what the code does that moves bytes or flops: kernels of attention, overlap, dropout. One set of
efficiencies is used for every device, model and layout; `published.py` says which rows it was
fitted to, and a test prints how far the others are off. Measured hardware needs none: its rates
were reached.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from picolab.costs import RECIPES
from picolab.costs.activations import Attention
from picolab.costs.memory import copy_bytes, trained_bytes
from picolab.specs import Hardware
from picolab.specs.precision import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of a data sheet's rates that code reaches, the same everywhere."""

    matrices: float
    """of the format's matrix_flops, in products with a weight"""
    attention: float
    """of the activations' matrix_flops, in attention's own products"""
    memory: float
    """of memory_bytes_per_s, in everything that is no matrix product"""
    links: float
    """of link and network, in collectives (nccl-tests' bus bandwidth over the data sheet's)"""

    @classmethod
    def of(cls, hardware: Hardware) -> "Efficiency":
        return REACHED if hardware.measured else FITTED


REACHED = Efficiency(matrices=1, attention=1, memory=1, links=1)
FITTED = Efficiency(matrices=0.75, attention=0.49, memory=0.83, links=0.76)
"""Fitted to four published runs, see `published.py`."""


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What the code does, where codes differ."""

    states: str = "bf16, fp32 gradients and master"
    """in which dtypes parameters, gradients and optimizer are kept: a name of costs.RECIPES, or of
    a precision that `picolab.training` has"""
    copies: int = 0
    """bytes of a number of a linear's weight, of a working copy that is there while a step is
    computed (with ZeRO 3, only while a product is)"""
    dtype: str = "bf16"
    """of activations"""
    products: str | None = None
    """in which linears multiply; None: as activations"""
    attention: Attention = "flash"
    """"flash" skips the half above the causal diagonal, "scores" computes and keeps the square"""
    dropout: bool = False
    overlap: bool = True
    """gradients, parameters and a ring's keys and values travel while something is computed"""
    whole_gradients: bool = False
    """ZeRO 2 and 3 add gradients up whole and send them once a step, as `parallel.zero` does;
    otherwise they are sharded all the time, and travel after every micro-batch"""
    eager: bool = False
    """what a layer keeps is what eager operators of our own block keep (`costs.saved_bytes`), and
    what is alive only for a moment is counted, too: a peak to be held against a monitor's"""
    scatter: bool = False
    """a pipeline's boundary is sent in tp parts, through tp cards (arXiv 2104.04473, section 4.1);
    with sp it always is"""
    reserved: float = 0.06
    """share of the memory that no tensor gets: the CUDA context, NCCL's buffers, fragments"""

    @property
    def multiplied(self) -> str:
        """The format of a linear's operands."""
        return self.products or self.dtype

    @property
    def recipe(self) -> Mapping[str, int]:
        return RECIPES[self.states] if self.states in RECIPES else trained_bytes(self.states)


PRACTICES = MappingProxyType(
    {
        "today": Practice(),
        # arXiv 2104.04473: fused softmax but no flash attention, dropout, gradients at the end
        "megatron-2021": Practice(
            states="fp16, fp32 copies of both",
            dtype="fp16",
            attention="scores",
            dropout=True,
            overlap=False,
            scatter=True,
        ),
        # what `picolab.training` does on the cores of a machine: what travels takes their time too
        "picolab": Practice(
            states="fp32",
            dtype="fp32",
            overlap=False,
            whole_gradients=True,
            eager=True,
            reserved=0.0,
        ),
        # the same with the bytes of another precision; how fast its products are, hardware says
        **{
            f"picolab-{name}": Practice(
                states=name,
                dtype=numbers.activations,
                products="fp8" if name == "fp8" else None,
                copies=copy_bytes(name),
                overlap=False,
                whole_gradients=True,
                eager=True,
                reserved=0.0,
            )
            for name, numbers in PRECISIONS.items()
            if name != "fp32"
        },
    }
)
