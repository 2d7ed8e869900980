"""Chapter 5, memory: where the bytes go, and what to give up for fewer."""

from picolab.chapters.c05_memory.at_scale import one_card_table, published_table
from picolab.chapters.c05_memory.frontier_figure import frontier_figure
from picolab.chapters.c05_memory.held_figure import held_figure
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = [
    "CHAPTER",
    "collecting",
    "example_blocks",
    "frontier_figure",
    "gpt_layer",
    "held_figure",
    "litter",
    "one_card_table",
    "plan_of",
    "product_work",
    "published_table",
]


def collecting(every: int, apart: int):
    """The observer of section 7: on each rank a full pass after every so many steps, later by so
    many on each next one."""
    from picolab.chapters.c05_memory.watched_runs import Collecting

    return Collecting(every, apart)


def litter(objects: int):
    """The observer of section 7: circles of objects in each step, in a program with a history."""
    from picolab.chapters.c05_memory.watched_runs import Litter

    return Litter(objects)


def gpt_layer(x, weights: dict, heads: int):
    """The layer of section 8: GPT's, with scores and dropout."""
    from picolab.chapters.c05_memory import counted_layers

    return counted_layers.gpt_layer(x, weights, heads)


def product_work(config, run_block) -> int:
    """Of section 4: operations of a block's matrix products in a step, when it is run so."""
    from picolab.chapters.c05_memory import counted_layers

    return counted_layers.product_work(config, run_block)


def plan_of(result) -> dict:
    """What a run under a budget has told of rank 0: the plan, the curve, the blocks."""
    from picolab.chapters.c05_memory import watched_runs

    return watched_runs.plan_of(result)


def example_blocks():
    """The blocks of section 6, with made-up bytes and seconds, as the scheduler takes them."""
    from picolab.chapters.c05_memory import watched_runs

    return watched_runs.example_blocks()


_EXERCISES: dict[str, About] = {}

_COVERED: dict[str, str] = {}

CHAPTER = Chapter(
    notebook="05_memory",
    key="memory",
    title="Memory",
    evenings=(("05_memory", 67, "where the bytes go, and what to give up for fewer"),),
    topic="memory",
    areas={},
    taught=(),
    counts={"questions": 0, "numeric": 0, "code": 0, "diagnose": 0},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
