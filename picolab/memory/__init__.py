"""Memory: where a rank's bytes go, and a budget for them.

    watch.py       every storage of the process, from birth to death
    monitor.py     a step's bytes by category, phase, module and time
    prediction.py  the same, before there is a rank
    leaks.py       what outlives its step, by the line that made it
    pool.py        buffers that are taken once, lent, and lent again
    offload.py     what autograd keeps, in a far memory until it is needed
    scheduler.py   which block keeps, computes again or offloads: exact, and how it is done
    collector.py   garbage collected by all ranks at the same step
    manager.py     a budget, kept: measure, choose, run
    limit.py       a device's memory, on a machine that has more
    advice.py      after an out-of-memory: what would have fitted

With torch missing, importing this room says what to install.
"""

from picolab.specs.needed import torch_needed

try:
    import torch  # noqa: F401
except ImportError as error:
    raise torch_needed("picolab.memory needs", error) from error

from picolab.memory.advice import Fitting, advise, fitting
from picolab.memory.collector import GarbageCollector
from picolab.memory.leaks import Leak, LeakFinder
from picolab.memory.limit import LimitPassed, MemoryLimit
from picolab.memory.manager import SmartMemoryManager
from picolab.memory.monitor import MemoryMonitor, MemoryReport
from picolab.memory.offload import Offload, far_file
from picolab.memory.pool import MemoryPool, PoolFull
from picolab.memory.prediction import predicted
from picolab.memory.scheduler import BlockRunner, MemoryPlan, MemoryScheduler
from picolab.memory.watch import Watch

__all__ = [
    "BlockRunner",
    "Fitting",
    "GarbageCollector",
    "Leak",
    "LeakFinder",
    "LimitPassed",
    "MemoryLimit",
    "MemoryMonitor",
    "MemoryPlan",
    "MemoryPool",
    "MemoryReport",
    "MemoryScheduler",
    "Offload",
    "PoolFull",
    "SmartMemoryManager",
    "Watch",
    "advise",
    "far_file",
    "fitting",
    "predicted",
]
