"""`pico.timetable()`: the collection in six evenings."""

from picolab.show.table import Table

EVENINGS = (
    (1, "00_start_here, 01_4d_basics", 75, "collectives, data and tensor parallelism", "yes"),
    (
        2,
        "01_4d_basics to its end, 01_4d_basics_exercises",
        90,
        "pipeline and context parallelism, all axes at once; the two starred exercises",
        "yes",
    ),
    (3, "03_3d_parallel", 75, "which layout to choose", "to come"),
    (4, "04_mixed_precision, 05_memory", 90, "number formats; where the bytes are", "to come"),
    (5, "02_moe", 75, "experts: routing, balance, all-to-all", "to come"),
    (6, "06_monitoring, practice", 75, "finding the slow rank; interview questions", "to come"),
)


def timetable() -> Table:
    """Which chapters in which evening, how long they take, what they are about, what is there."""
    columns = ["evening", "chapters", "minutes", "about", "here"]
    return Table(columns, [list(row) for row in EVENINGS], "The collection in six evenings")
