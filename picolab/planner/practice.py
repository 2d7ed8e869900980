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

from picolab.costs import BYTES_16_FP32, BYTES_18_FP32_GRADIENTS
from picolab.costs.activations import Attention
from picolab.specs import Hardware


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of a data sheet's rates that code reaches, the same everywhere."""

    matrices: float
    """of peak_flops, in matrix products and in attention"""
    memory: float
    """of memory_bytes_per_s, in everything that is no matrix product"""
    links: float
    """of link and network, in collectives (nccl-tests' bus bandwidth over the data sheet's)"""

    @classmethod
    def of(cls, hardware: Hardware) -> "Efficiency":
        return REACHED if hardware.measured else FITTED


REACHED = Efficiency(matrices=1, memory=1, links=1)
FITTED = Efficiency(matrices=0.7, memory=0.7, links=0.7)
"""Fitted, see `published.py`."""


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What the code does, where codes differ."""

    recipe: Mapping[str, int] = BYTES_18_FP32_GRADIENTS
    """bytes of parameter, gradient, master copy and moments"""
    dtype: str = "bf16"
    """of activations"""
    attention: Attention = "flash"
    """"flash" skips the half above the causal diagonal, "scores" computes and keeps the square"""
    dropout: bool = False
    overlap: bool = True
    """gradients and parameters travel while the backward and forward passes compute"""
    scatter: bool = False
    """a pipeline's boundary is sent in tp parts, through tp cards (arXiv 2104.04473, section 4.1);
    with sp it always is"""
    reserved: float = 0.06
    """share of the memory that no tensor gets: the CUDA context, NCCL's buffers, fragments"""


TODAY = Practice()
PRACTICES = MappingProxyType(
    {
        "today": TODAY,
        # arXiv 2104.04473: fused softmax but no flash attention, dropout, gradients at the end
        "megatron-2021": Practice(attention="scores", dropout=True, overlap=False, scatter=True),
        # what `picolab.training` does: fp32, buckets that overlap
        "picolab": Practice(recipe=BYTES_16_FP32, dtype="fp32", reserved=0.0),
    }
)
