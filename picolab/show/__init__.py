"""How anything is shown, and how a typed number is read. No torch."""

from picolab.show.numbers import Typed, read

__all__ = ["Typed", "read"]
