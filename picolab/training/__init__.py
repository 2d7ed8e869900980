"""Training: real text, real ranks, one step that can be read on one page.

    text.py      which bytes are the i-th sequence, and who reads them
    config.py    everything that decides a run's numbers
    trainer.py   `train`, what a rank does, and one step
    result.py    what comes back

With torch missing, importing this room says what to install.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "picolab.training needs PyTorch, which is not installed here: pip install 'picolab[torch]'"
    ) from error

from picolab.training.config import TrainConfig
from picolab.training.result import TrainResult
from picolab.training.text import Text
from picolab.training.trainer import NonFiniteLoss, train, train_rank

__all__ = ["NonFiniteLoss", "Text", "TrainConfig", "TrainResult", "train", "train_rank"]
