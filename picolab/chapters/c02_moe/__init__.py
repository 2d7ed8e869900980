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
    "interview.moe.global-loss": About(
        "interview_global_loss", "One balance for all replicas", 15, 3
    ),
    "interview.moe.room": About(
        "interview_room", "Room for a pool that is spread over ranks", 15, 3
    ),
    "interview.moe.clip": About(
        "interview_clip", "Clipping when a part of the model is elsewhere", 15, 3
    ),
}

_COVERED = {
    "picolab.moe.router.choose": "moe.router.topk",
    "picolab.moe.router.weigh": "moe.router.topk",
    "picolab.moe.router.admit": "moe.router.capacity",
    "picolab.moe.balance.aux_loss": "moe.balance.aux",
    "picolab.moe.placement._exchanged": "moe.placement.move",
    "picolab.moe.dispatch.Travelling": "moe.dispatch.combine",
    "picolab.moe.dispatch.Exchange": "moe.dispatch.combine",
    "picolab.moe.balance.move_bias": "moe.balance.bias",
    "picolab.moe.placement.move": "moe.placement.move",
}

CHAPTER = Chapter(
    notebook="02_moe",
    key="moe",
    title="Mixture of experts",
    evenings=(("02_moe", 66, "routing, balance, capacity; experts on ranks, and what they send"),),
    topic="moe",
    areas={
        "routing": "Routing",
        "balance": "Balance",
        "capacity": "Capacity and dropping",
        "exchange": "The all-to-all",
        "ep": "Experts on ranks",
        "experts_at_scale": "Experts at scale",
    },
    taught=tuple(f"moe-{number:03}" for number in (1, 6, 7, 10, 20, 29, 30, 31, 32, 33, 34)),
    counts={"questions": 37, "numeric": 26, "code": 3, "diagnose": 5, "warm_ups": 9},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
