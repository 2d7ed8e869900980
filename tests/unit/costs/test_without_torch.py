"""The rooms `specs` and `costs` work where neither torch nor numpy can be imported.

Catches an import of either that crept in, also a late one inside a formula.
"""

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy"):
            raise ImportError(f"{name} is refused here")

sys.meta_path.insert(0, Refuse())
from picolab import costs
from picolab.specs import Hardware, Layout, ModelConfig

tiny = ModelConfig.preset("tiny")
assert costs.parameters(tiny).total == 803_968
assert costs.step_ledger(tiny, "dp2tp2", micro_batch=1)
assert costs.state_bytes(1).total == 16
assert costs.flops_per_token(tiny) > 0
assert costs.collective_time("all_reduce", 8, 2, 1.0, 1.0) == 10
assert repr(Layout(dp=2)) and Hardware.preset("a100-80gb")
assert not {"torch", "numpy"} & set(sys.modules)
"""


def test_neither_torch_nor_numpy_is_needed():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
