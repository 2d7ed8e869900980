"""Training: real text, real ranks, one step that can be read on one page.

What decides a run's numbers, `TrainConfig`, is described in specs/train_config.py, without torch.

    text.py      which bytes are the i-th sequence, and who reads them
    trainer.py   `train`, what a rank does, and one step
    checkpoint.py, checkpoint_plan.py   a run that was cut off goes on, on any layout
    folder.py, integrity.py             which checkpoint is meant, and whether it is whole
    resume.py                           what may differ when a run goes on, and what is then said
    torchrun.py  the same run where torchrun started the ranks
    result.py    what comes back
    measure.py   this machine as a Hardware, for the planner

With torch missing, importing this room says what to install.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "picolab.training needs PyTorch, which is not installed here: "
        "pip install -e '.[torch]' in the checkout"
    ) from error

from picolab.specs import TrainConfig
from picolab.training.checkpoint import Checkpoints
from picolab.training.measure import measure
from picolab.training.result import TrainResult
from picolab.training.text import Text
from picolab.training.torchrun import is_rank, train_here
from picolab.training.trainer import NonFiniteLoss, train, train_rank

__all__ = [
    "Checkpoints",
    "NonFiniteLoss",
    "Text",
    "TrainConfig",
    "TrainResult",
    "is_rank",
    "measure",
    "train",
    "train_here",
    "train_rank",
]
