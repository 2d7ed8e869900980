"""What failures cost a run that saves its state: how often to save, and what is lost anyway."""

import math


def checkpoint_interval(save_s: float, mtbf_s: float) -> float:
    """Seconds between two checkpoints that lose least: sqrt(2 * save * MTBF).

    Source: Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974).
    Holds where saving is short against the interval, and the interval against the MTBF.
    """
    _check(save_s, mtbf_s)
    return math.sqrt(2 * save_s * mtbf_s)


def checkpoint_waste(interval_s: float, save_s: float, mtbf_s: float) -> float:
    """Share of the time that is lost: save/interval + interval/(2 MTBF), to first order.

    The first term is saving, the second the work since the last checkpoint, half an interval on the
    mean, done again after each failure. Left out: the restart itself, another restart/MTBF.
    """
    _check(save_s, mtbf_s)
    if not interval_s > 0:
        raise ValueError(f"interval_s is {interval_s}; it must be positive")
    return save_s / interval_s + interval_s / (2 * mtbf_s)


def _check(save_s: float, mtbf_s: float) -> None:
    for name, value in (("save_s", save_s), ("mtbf_s", mtbf_s)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
