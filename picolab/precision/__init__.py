"""Precision: which numbers a training computes with, what that costs, and who decides.

    formats.py    what a format can hold, and how a number is rounded to it

With torch missing, importing this room says what to install.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "picolab.precision needs PyTorch, which is not installed here: "
        "pip install -e '.[torch]' in the checkout"
    ) from error

from picolab.precision.formats import FORMATS, Format, Lost, cast, lost, round_to

__all__ = ["FORMATS", "Format", "Lost", "cast", "lost", "round_to"]
