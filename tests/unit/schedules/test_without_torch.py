"""The room `schedules` works where neither torch nor numpy can be imported, nor does it load costs.

Catches an import of any of them that crept in, also a late one.
"""

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "plotly"):
            raise ImportError(f"{name} is refused here")

sys.meta_path.insert(0, Refuse())
from picolab.schedules import Schedule, make, simulate, validate

schedule = validate(make("1f1b", 4, 8), activation_cap=4, sends="fused")
assert Schedule.parse(str(schedule)) == schedule
assert "27.3 %" in repr(simulate(schedule)) and repr(schedule)
assert not {"torch", "numpy", "plotly", "picolab.costs"} & set(sys.modules)

from picolab.monitoring.gantt_figure import gantt
from picolab.monitoring.schedule_slider import schedule_slider
assert "simulated" in repr(gantt(simulate(schedule))) and repr(schedule_slider())
"""


def test_neither_torch_nor_numpy_is_needed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
