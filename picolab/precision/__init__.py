"""Precision: which numbers a training computes with, what that costs, and who decides.

    formats.py    what a format can hold, and how a number is rounded to it
    blocks.py     fp8 numbers with a scale for every 32 of them
    products.py   a linear's products in a short format, native or rounded
    hardware.py   which of the two is faster here, and what a format is worth: timed
    fp8.py        the same with operands of 8 bits, and their scales
    lower.py      a model whose products are short, and all else where it belongs
    scaler.py     the loss scale of fp16
    powers.py     how large the numbers of a tensor are
    analyzer.py   what a format would do to each layer
    selector.py   which layer in which format, by what was measured
    adjuster.py   whether a step may be taken, and whose precision is raised if not
    adaptive.py   these four on one model

With torch missing, importing this room says what to install.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "picolab.precision needs PyTorch, which is not installed here: "
        "pip install -e '.[torch]' in the checkout"
    ) from error

from picolab.precision.adaptive import AdaptiveMixedPrecision
from picolab.precision.adjuster import DynamicPrecisionAdjuster
from picolab.precision.analyzer import PrecisionAnalyzer
from picolab.precision.blocks import Blocks, to_blocks
from picolab.precision.formats import FORMATS, Format, Lost, cast, lost, round_to
from picolab.precision.fp8 import Fp8Product
from picolab.precision.hardware import HardwareDetector
from picolab.precision.powers import lost_at, powers
from picolab.precision.products import LowProduct, Ways
from picolab.precision.scaler import LossScaler
from picolab.precision.selector import AdaptivePrecisionSelector, Choice, Cost

__all__ = [
    "FORMATS",
    "AdaptiveMixedPrecision",
    "AdaptivePrecisionSelector",
    "Blocks",
    "Choice",
    "Cost",
    "DynamicPrecisionAdjuster",
    "Format",
    "Fp8Product",
    "HardwareDetector",
    "LossScaler",
    "Lost",
    "LowProduct",
    "PrecisionAnalyzer",
    "Ways",
    "cast",
    "lost",
    "lost_at",
    "powers",
    "round_to",
    "to_blocks",
]
