"""`pico.timetable()`: the collection in evenings."""

from picolab import chapters
from picolab.show.table import Table

TO_COME = (
    ("02_moe", 75, "experts: routing, balance, all-to-all"),
    ("03_3d_parallel", 75, "which layout to choose, and why a step is slow"),
    ("04_mixed_precision", 65, "number formats, and who decides"),
    ("05_memory", 67, "where the bytes go, and what to give up for fewer"),
    ("06_monitoring", 56, "what goes wrong, and how a trainer notices"),
)


def timetable() -> Table:
    """Which chapters in which evening, how long they take, what they are about, what is there."""
    here = [evening for chapter in chapters.all_chapters() for evening in chapter.evenings]
    there = {chapter.notebook for chapter in chapters.all_chapters()}
    rows = [[*evening, "yes"] for evening in here]
    rows += [[*row, "to come"] for row in TO_COME if row[0].partition(",")[0] not in there]
    columns = ["evening", "chapters", "minutes", "about", "here"]
    rows = [[number, *row] for number, row in enumerate(rows, 1)]
    return Table(columns, rows, f"The collection in {len(rows)} evenings")
