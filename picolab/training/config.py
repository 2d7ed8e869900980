"""What a training run is, in one frozen object that every rank is given.

Everything that decides the numbers of a run is here; how it is launched and shown (backend,
timeout, progress) is not.
"""

import difflib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from picolab import costs
from picolab.parallel import IMPLEMENTED_AXES
from picolab.specs import Layout, ModelConfig

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
Dtype = Literal["fp32", "fp64", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. Raises ValueError, with what would be right, for what cannot be trained.

    One step consumes dp * accumulate * micro_batch sequences of `model.seq` tokens.
    """

    model: ModelConfig | str = "tiny"
    """A shape, or the name of a preset."""
    layout: Layout | str = "dp1"
    """Ranks per axis: "dp2tp2" is four ranks, two replicas of two halves."""
    data: str | Path = "stdlib"
    """"stdlib" (Python's own source), "random", or the path of a text file or a folder of them."""
    steps: int = 20
    """Optimizer steps."""
    micro_batch: int = 4
    """Sequences in one forward pass of one replica."""
    accumulate: int = 1
    """Micro-batches of one replica in one step: their gradients are added up."""
    dtype: Dtype = "fp32"
    """Of parameters, gradients and optimizer state. bf16 is plain bf16, without an fp32 copy."""
    lr: float = 3e-3
    """The peak of the learning rate, reached after the warm-up; see `learning_rate`."""
    warmup: int | None = None
    """Steps over which the learning rate rises from 0; None: a tenth of all, 100 at most."""
    weight_decay: float = 0.1
    """Decoupled (arXiv 1711.05101), of matrices only: norm weights are not pulled towards 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's memory of the gradient and of its square."""
    eps: float = 1e-8
    """AdamW's. Where layouts are compared take 1e-5: at 1e-8 a weight whose gradient is all but 0
    moves by the sign of its rounding error."""
    clip: float | None = 1.0
    """Largest global gradient norm; a larger gradient is scaled down to it. None: never."""
    eval_every: int | None = None
    """Steps from one evaluation on held-out text to the next; there is one at the end, too. None:
    never, and nothing is held out."""
    seed: int = 0
    """Of the initial weights and of the order of the text."""
    bucket_bytes: int = costs.DEFAULT_BUCKET_BYTES
    """Size of a data-parallel gradient bucket."""
    stage_cost_s: tuple[float, float] = (0.0, 0.0)
    """Seconds slept in each forward and each backward of a pipeline stage. For lessons: on two
    cores the stages of a real pipeline take turns, while sleeping ones overlap as devices do."""

    def __post_init__(self):
        model = ModelConfig.preset(self.model) if isinstance(self.model, str) else self.model
        if not isinstance(model, ModelConfig):
            raise ValueError(f"model is {model!r}; give a preset's name or a ModelConfig")
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "layout", Layout.parse(self.layout))
        object.__setattr__(self, "data", _absolute(self.data))
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"betas is {self.betas!r}; AdamW takes two numbers")
        object.__setattr__(self, "betas", tuple(self.betas))
        self._check_numbers()
        if model.extensions:
            raise ValueError(
                f"{model.name} has {' and '.join(model.extensions)}, which cannot be trained yet; "
                "take a plain Llama shape, such as 'tiny'"
            )
        refuse_unimplemented(self.layout)
        self.layout.check(model)

    def _check_numbers(self) -> None:
        for name in ("steps", "micro_batch", "accumulate", "bucket_bytes"):
            _check_integer(name, getattr(self, name), least=1)
        _check_integer("seed", self.seed, least=0)
        if self.eval_every is not None:
            _check_integer("eval_every", self.eval_every, least=1)
        if self.warmup is not None:
            _check_integer("warmup", self.warmup, least=0)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; training takes {', '.join(DTYPES)}")
        for name in ("lr", "eps") if self.clip is None else ("lr", "eps", "clip"):
            _check_number(name, getattr(self, name), "above 0", lambda value: value > 0)
        _check_number("weight_decay", self.weight_decay, "0 or more", lambda value: value >= 0)
        for beta in self.betas:
            _check_number("betas", beta, "at least 0 and below 1", lambda value: 0 <= value < 1)

    @property
    def sequences_per_step(self) -> int:
        """The global batch."""
        return self.layout.dp * self.accumulate * self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        return self.sequences_per_step * self.model.seq

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def learning_rate(self, step: int) -> float:
        """A straight line up to `lr` over the warm-up, then half a cosine down to a tenth of it.

        AdamW's first steps have the size of the learning rate whatever the gradient is, hence the
        warm-up; the last ones should be small, to settle. (arXiv 1608.03983 for the cosine.)
        """
        warmup = min(100, self.steps // 10) if self.warmup is None else self.warmup
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


def assemble(**settings) -> TrainConfig:
    """A TrainConfig from its own fields and those of a ModelConfig, mixed: the latter change the
    model.

    assemble(model="tiny", layers=2, steps=5). ValueError for a name that is neither.
    """
    own = {field.name for field in fields(TrainConfig)}
    shape_names = {field.name for field in fields(ModelConfig)}
    for name in settings:
        if name not in own | shape_names:
            close = difflib.get_close_matches(name, own | shape_names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(own))}"
            raise ValueError(f"training has no setting {name!r}; {hint}")
    shape = {n: value for n, value in settings.items() if n in shape_names and value is not None}
    rest = {n: value for n, value in settings.items() if n not in shape_names}
    model = rest.pop("model", "tiny")
    if shape:
        model = (ModelConfig.preset(model) if isinstance(model, str) else model).replace(**shape)
    return TrainConfig(model=model, **rest)


def refuse_unimplemented(layout: Layout) -> None:
    """ValueError for an axis that no rank could run yet."""
    used = {
        "dp": layout.dp > 1,
        "tp": layout.tp > 1,
        "pp": layout.pp > 1,
        "cp": layout.cp > 1,
        "ep": layout.ep > 1,
        "sp": layout.sp,
        "zero": layout.zero > 0,
    }
    missing = [name for name, is_used in used.items() if is_used and name not in IMPLEMENTED_AXES]
    if missing:
        raise ValueError(
            f"training runs {' and '.join(IMPLEMENTED_AXES)} so far, and {layout} also has "
            f"{' and '.join(missing)}; leave {'it' if len(missing) == 1 else 'them'} out"
        )


def _absolute(data: str | Path) -> str:
    """Ranks may have another working directory, so a path is made absolute where it was given."""
    if not isinstance(data, str | Path) or not str(data):
        raise ValueError(f"data is {data!r}; it is 'stdlib', 'random' or the path of text")
    return str(data) if data in ("stdlib", "random") else str(Path(data).expanduser().absolute())


def _check_integer(name: str, value, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")


def _check_number(name: str, value, what: str, holds) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} is {value!r}; it must be a number {what}")
