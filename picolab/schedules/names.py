"""From the name of a schedule to the schedule: `make("interleaved-v4", 4, 8)`."""

from collections.abc import Callable

from picolab.schedules.generators import gpipe, interleaved, one_f_one_b
from picolab.schedules.ir import Schedule
from picolab.schedules.split_generators import dualpipe_v, zb_h1, zb_v
from picolab.specs.schedule_name import ScheduleName

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "1f1b": one_f_one_b,
    "gpipe": gpipe,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "zb-v": zb_v,
    "dualpipe-v": dualpipe_v,
}


def make(name: str, ranks: int, micro_batches: int) -> Schedule:
    """The schedule of that name on so many ranks of a pipeline.

    Raises ValueError for a name or a size that does not exist.
    """
    family, stages_a_rank = ScheduleName.parse(name)
    if family == "interleaved":
        return interleaved(ranks, micro_batches, stages_a_rank)
    return SCHEDULES[family](ranks, micro_batches)
