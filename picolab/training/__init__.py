"""Training: real text, real ranks, one step that can be read on one page.

What decides a run's numbers, `TrainConfig`, is described in specs/train_config.py, without torch.

    text.py      which bytes are the i-th sequence, and who reads them
    start.py     `train`: what is checked, and the start of the ranks
    trainer.py, eager_adamw.py   what a rank does, and one step
    checkpoint.py, checkpoint_plan.py   a run that was cut off goes on, on any layout
    folder.py, integrity.py, hashing_writer.py   which checkpoint is meant, whether it is whole
    resume.py                           what may differ when a run goes on, and what is then said
    torchrun.py  the same run where torchrun started the ranks
    result.py    what comes back
    observers.py, probe.py, snapshot.py   what is told, kept and gone back to beside the steps
    measure.py   this machine as a Hardware, for the planner
    tune.py, tune_log.py, tune_result.py   which layout is fastest here: trials, and their evidence

With torch missing, importing this room says what to install. It is not imported here, which takes
seconds: `train` is the first thing of a notebook, and the kernel needs torch for its result only.
"""

import importlib
import importlib.util

try:
    if importlib.util.find_spec("torch") is None:
        raise ImportError
except ImportError as error:
    raise ImportError(
        "picolab.training needs PyTorch, which is not installed here: "
        "pip install -e '.[torch]' in the checkout"
    ) from error

from picolab.specs import TrainConfig
from picolab.training.start import train
from picolab.training.text import Text

_LAZY = {
    "Checkpoints": "checkpoint",
    "NonFiniteLoss": "trainer",
    "Probe": "probe",
    "TrainResult": "result",
    "TuneResult": "tune_result",
    "train_here": "torchrun",
    "train_rank": "trainer",
}

__all__ = ["Text", "TrainConfig", "train", *_LAZY]


def __getattr__(name):
    if name in _LAZY:
        module = importlib.import_module(f"picolab.training.{_LAZY[name]}")
        globals()[name] = getattr(module, name)
        return globals()[name]
    raise AttributeError(f"picolab.training has no {name!r}")
