"""What a training run is, in one frozen object that every rank is given.

Everything that decides the numbers of a run is a field of `TrainConfig`, and stands nowhere else:
name, type, default and explanation. `pico.train`, `picolab train` and `pico.panel` show these
fields as their own (settings.py). How a run is launched and kept (`RunOptions`) changes no number.

It lies here, below the rooms that train, because the command line explains it without torch.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from picolab.specs.expert_copies import parse_copies
from picolab.specs.layout import Layout
from picolab.specs.model_config import ModelConfig
from picolab.specs.precision import (
    OLDER_SPELLING,
    PRECISIONS,
    Dtype,
    Numbers,
    PrecisionName,
)
from picolab.specs.schedule_name import ScheduleName

if TYPE_CHECKING:
    import torch

# Of what a model may have beyond a plain Llama decoder.
TRAINED_EXTENSIONS = (
    "experts",
    "normalised queries and keys",
    "biases of queries, keys and values",
)
# torch's DDP takes 25 MB (arXiv 2006.15704, section 3.2). A small model would be one bucket then,
# and nothing of its communication could overlap with the backward pass.
DEFAULT_BUCKET_BYTES = 1_000_000


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
    precision: PrecisionName | None = None
    """Which numbers are computed with. "bf16", "fp16" and "fp8" keep fp32 parameters, gradients and
    moments, and compute in the short format; "bf16-pure" is bf16 alone; "adaptive" chooses a format
    for each layer, by what was measured. None: what dtype says."""
    dtype: Dtype | None = None
    """The older spelling, for "fp32", "fp64" and "bf16" (which is "bf16-pure"). None: the dtype of
    the parameters that `precision` has."""
    products: Literal["auto", "native", "rounded"] = "auto"
    """How matrices are multiplied in a short format: by the processor's own instructions, or with
    rounded inputs in fp32. "auto" times both, at the shapes of the model, and takes the faster."""
    lr: float = 3e-3
    """The peak of the learning rate, reached after the warm-up; then it falls, half a cosine, to a
    tenth."""
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
    """Of the initial weights and of the order of the text: the same seed gives the same losses, in
    every layout up to rounding."""
    bucket_bytes: int = DEFAULT_BUCKET_BYTES
    """Size of a data-parallel gradient bucket."""
    sp_inputs: Literal["keep", "gather"] = "keep"
    """With sp: keep the gathered inputs of the matrices for backward, or gather them again there:
    two all-gathers a layer more, and 1/tp of the memory for them."""
    expert_copies: str | None = None
    """Experts that have copies: "0@1 3@2" is 0 on rank 1 of ep too, and 3 on rank 2; "2:0@1" is in
    layer 2 only. Rows are shared out among copies, and their gradients summed. None: each expert is
    on one rank of an ep group."""
    memory_budget: int | str | None = None
    """The most bytes of live tensors that a rank may have, such as "40MB" (1e6) or "38MiB" (2**20):
    blocks keep, compute again or offload what backward needs, whichever is fastest within it. It
    changes no number. None: everything is kept."""
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
        object.__setattr__(self, "betas", _pair("betas", self.betas, "AdamW takes two numbers"))
        cost = _pair("stage_cost_s", self.stage_cost_s, "give seconds of a forward and a backward")
        object.__setattr__(self, "stage_cost_s", cost)
        if self.memory_budget is not None:
            object.__setattr__(self, "memory_budget", bytes_of("memory_budget", self.memory_budget))
        self._choose_precision()
        self._check_numbers()
        others = [name for name in model.extensions if name not in TRAINED_EXTENSIONS]
        if others:
            raise ValueError(
                f"{model.name} has {' and '.join(others)}, which cannot be trained; "
                "take a Llama shape, such as 'tiny', or 'tiny-moe'"
            )
        self.layout.check(model)
        parse_copies(self.expert_copies, model, self.layout)
        if self.layout.pp > 1:
            name = ScheduleName.parse(self.layout.schedule)
            name.check_micro_batches(self.layout.pp, self.accumulate)
            if self.layout.sp and self.sp_inputs == "gather" and name.splits_backward:
                raise ValueError(
                    f"sp_inputs='gather' gathers a product's input again in its backward, and "
                    f"{name} keeps that input for its weight gradient; take sp_inputs='keep', or "
                    "1f1b"
                )
        if self.memory_budget is not None:
            check_budget(self)

    def _choose_precision(self) -> None:
        """Both spellings are known afterwards, and agree."""
        if self.dtype is not None and self.dtype not in OLDER_SPELLING:
            raise ValueError(
                f"dtype is {self.dtype!r}; it is the older spelling of precision and takes "
                f"{', '.join(OLDER_SPELLING)}; precision takes {', '.join(PRECISIONS)}"
            )
        precision = self.precision
        if precision is None:
            precision = OLDER_SPELLING[self.dtype or "fp32"]
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; training takes {', '.join(PRECISIONS)}")
        dtype = PRECISIONS[precision].parameters
        if self.dtype not in (None, dtype):
            raise ValueError(
                f"precision {precision!r} has parameters in {dtype}, and dtype is {self.dtype!r}; "
                "give precision alone"
            )
        object.__setattr__(self, "precision", precision)
        object.__setattr__(self, "dtype", dtype)

    def _check_numbers(self) -> None:
        for name in ("steps", "micro_batch", "accumulate", "bucket_bytes"):
            _check_integer(name, getattr(self, name), least=1)
        _check_integer("seed", self.seed, least=0)
        for name, least in (("warmup", 0), ("eval_every", 1)):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), least)
        if self.products not in ("auto", "native", "rounded"):
            raise ValueError(f"products is {self.products!r}; it is 'auto', 'native' or 'rounded'")
        if self.sp_inputs not in ("keep", "gather"):
            raise ValueError(f"sp_inputs is {self.sp_inputs!r}; it is 'keep' or 'gather'")
        for name in ("lr", "eps") if self.clip is None else ("lr", "eps", "clip"):
            _check_number(name, getattr(self, name), "above 0", lambda value: value > 0)
        _check_number("weight_decay", self.weight_decay, "0 or more", lambda value: value >= 0)
        for beta in self.betas:
            _check_number("betas", beta, "at least 0 and below 1", lambda value: 0 <= value < 1)
        for cost in self.stage_cost_s:
            _check_number("stage_cost_s", cost, "0 or more", lambda value: value >= 0)

    @property
    def sequences_per_step(self) -> int:
        """The global batch."""
        return self.layout.dp * self.accumulate * self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        return self.sequences_per_step * self.model.seq

    @property
    def numbers(self) -> Numbers:
        """The dtypes of the precision."""
        return PRECISIONS[self.precision]

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Of the parameters."""
        import torch

        return {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}[self.dtype]

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


def check_budget(config: TrainConfig) -> None:
    """ValueError for runs that cannot keep a memory budget: their memory is another in each step,
    or waits for more than its backward."""
    if config.precision == "adaptive":
        raise ValueError(
            "a memory budget is planned once, and precision 'adaptive' changes what layers keep; "
            "take another precision, or leave memory_budget out"
        )
    if config.layout.pp > 1:
        name = ScheduleName.parse(config.layout.schedule)
        if name.splits_backward or name.stages_a_rank > 1:
            raise ValueError(
                f"a memory budget counts what waits for its backward, and {name} keeps other "
                "things as well (what weight gradients need later, several stages a rank); take "
                "1f1b or gpipe, or leave memory_budget out"
            )


def assemble(**settings) -> TrainConfig:
    """A TrainConfig from its own fields and those of a ModelConfig, mixed: the latter change the
    model.

    assemble(model="tiny", layers=2, steps=5). ValueError for a name that is neither.
    """
    shape_names = {field.name for field in fields(ModelConfig)}
    check_names(settings, shape_names | {field.name for field in fields(TrainConfig)})
    shape = {n: value for n, value in settings.items() if n in shape_names and value is not None}
    rest = {n: value for n, value in settings.items() if n not in shape_names}
    model = rest.pop("model", TrainConfig.model)
    if shape:
        model = (ModelConfig.preset(model) if isinstance(model, str) else model).replace(**shape)
    return TrainConfig(model=model, **rest)


def check_names(given: Iterable[str], known: set[str]) -> None:
    """ValueError, with the likely name, for a setting that is not among the known ones."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            own = sorted(field.name for field in fields(TrainConfig))
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(own)}"
            raise ValueError(f"training has no setting {name!r}; {hint}")


def _absolute(data: str | Path) -> str:
    """Ranks may have another working directory, so a path is made absolute where it was given."""
    if not isinstance(data, str | Path) or not str(data):
        raise ValueError(f"data is {data!r}; it is 'stdlib', 'random' or the path of text")
    return str(data) if data in ("stdlib", "random") else str(Path(data).expanduser().absolute())


def _pair(name: str, value, hint: str) -> tuple:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; {hint}")
    return tuple(value)


_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def bytes_of(name: str, value) -> int:
    """A number of bytes: an integer, or a text with a unit."""
    found = re.fullmatch(r"\s*([\d_.]+)\s*([A-Za-z]*)\s*", str(value))
    unit = found and _UNITS.get(found[2].lower())
    try:
        nbytes = round(float(found[1]) * unit) if unit and not isinstance(value, bool) else 0
    except ValueError:
        nbytes = 0
    if nbytes < 1:
        raise ValueError(
            f"{name} is {value!r}; it is a number of bytes, such as '40MB' (1e6) or '38MiB' (2**20)"
        )
    return nbytes


def _check_integer(name: str, value, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")


def _check_number(name: str, value, what: str, holds) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} is {value!r}; it must be a number {what}")
