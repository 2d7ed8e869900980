"""A pipeline schedule as data: written down, checked, and timed before anything runs. No torch.

The same `Schedule` drives the clock simulator here and the executor in `picolab.parallel`.
"""

from picolab.schedules.generators import gpipe, interleaved, one_f_one_b
from picolab.schedules.ir import Action, Schedule
from picolab.schedules.names import SCHEDULES, make
from picolab.schedules.simulator import Simulation, simulate
from picolab.schedules.split_generators import dualpipe_v, zb_h1, zb_v
from picolab.schedules.timeline import Span, Timeline, Transfer
from picolab.schedules.validator import ScheduleError, validate

__all__ = [
    "SCHEDULES",
    "Action",
    "Schedule",
    "ScheduleError",
    "Simulation",
    "Span",
    "Timeline",
    "Transfer",
    "dualpipe_v",
    "gpipe",
    "interleaved",
    "make",
    "one_f_one_b",
    "simulate",
    "validate",
    "zb_h1",
    "zb_v",
]
