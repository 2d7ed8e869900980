"""Chapter 2, mixture of experts: routing, balance, capacity, and experts on ranks."""

from picolab.chapters.c02_moe.matrix_figure import sent_matrix, traffic_matrix
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER", "planted", "sent", "sent_matrix", "traffic_matrix"]


def planted(hot: int = 0, row_s: float = 0.0):
    """The observer of sections 3 and 6: experts that are favoured, and rows that take time."""
    from picolab.chapters.c02_moe.planted_run import Planted

    return Planted(hot, row_s)


def sent():
    """The observer that tells which rank sends how many rows to which."""
    from picolab.chapters.c02_moe.sent_rows import Sent

    return Sent()


_EXERCISES = {
    "moe.router.topk": About("top_k", "Top-k routing, and its gradient by hand", 20, 3),
    "moe.dispatch.combine": About(
        "dispatch", "Rows to their experts and back, with gradients", 25, 5, starred=True
    ),
    "moe.router.capacity": About("capacity", "Capacity without a look ahead", 20, 4),
    "moe.balance.aux": About("global_aux", "The balance loss over a global batch", 20, 4),
    "moe.balance.bias": About("selection_bias", "The selection bias, step after step", 15, 3),
    "moe.placement.move": About(
        "moving_experts", "Experts move, with their optimizer's state", 25, 4, starred=True
    ),
}

_COVERED = {
    "picolab.moe.dispatch.Travelling": "moe.dispatch.combine",
    "picolab.moe.dispatch.Exchange": "moe.dispatch.combine",
    "picolab.moe.balance.move_bias": "moe.balance.bias",
    "picolab.moe.placement.move": "moe.placement.move",
}

CHAPTER = Chapter(
    notebook="02_moe",
    key="moe",
    title="mixture of experts",
    evenings=(("02_moe", 64, "routing, balance, capacity; experts on ranks, and what they send"),),
    topic="moe",
    areas={
        "routing": "Routing",
        "balance": "Balance",
        "capacity": "Capacity and drops",
        "dispatch": "Dispatch and combine",
        "parallelism": "Experts among the other axes",
        "scale": "At scale",
    },
    taught=(),
    counts={"questions": 30, "numeric": 15, "code": 4, "diagnose": 5, "warm_ups": 8},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
