"""What each layer, the embedding and the head really cost here, to deal out layers by it.

    found = measure(ModelConfig.preset("tiny"), micro_batch=2)
    Layout(pp=4, stages=found.balanced(4))

Forward and backward of each part alone, on one device, the best of several rounds: whatever else
the machine does only ever adds. A formula could count operations instead (`costs.compute`), but
would have to know how fast a small matrix is beside a large one, and what a softmax over the
vocabulary takes; this is measured in a second. Layers are of one shape here and cost the same, so
all get the median of theirs: a stage is not made smaller because its layers were disturbed.

Leaves out: what stages send, and that tensor parallel ranks do less of each part (measure a model
of a rank's sizes for that).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from picolab import costs
from picolab.model import Transformer
from picolab.specs import ModelConfig


class StageCosts(NamedTuple):
    """Seconds of one micro-batch, forward and backward."""

    embedding: float
    layers: tuple[float, ...]
    head: float
    """With the last norm and the loss."""

    def balanced(self, stages: int) -> tuple[int, ...]:
        """How many layers each stage gets: see `costs.balanced_stages`."""
        return costs.balanced_stages(self.layers, stages, first=self.embedding, last=self.head)

    def of(self, sizes: Sequence[int]) -> list[float]:
        """What each stage costs if the layers are dealt out so."""
        parts = costs.stage_layers(len(self.layers), len(sizes), sizes)
        found = [sum(self.layers[i] for i in part) for part in parts]
        found[0] += self.embedding
        found[-1] += self.head
        return found


def measure(
    config: ModelConfig,
    *,
    micro_batch: int = 1,
    rounds: int = 5,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StageCosts:
    """Time each part of a model of that shape, in this process."""
    if micro_batch < 1 or rounds < 1:
        raise ValueError(f"micro_batch {micro_batch} and rounds {rounds} are 1 or more")
    return measure_model(
        Transformer(config, device=device, dtype=dtype), micro_batch=micro_batch, rounds=rounds
    )


def measure_model(model: Transformer, *, micro_batch: int = 1, rounds: int = 5) -> StageCosts:
    """The same of a whole model that is there. Its gradients are dropped."""
    config, device = model.config, next(model.parameters()).device
    tokens_BS = torch.randint(config.vocab, (micro_batch, config.seq), device=device)
    x_BSD = model.embed(tokens_BS).detach().requires_grad_()
    tables = model.rotary(config.seq, device, x_BSD.dtype)

    def head() -> torch.Tensor:
        return model.cross_entropy(model.head(model.norm(x_BSD)), tokens_BS)

    parts: list[Callable[[], torch.Tensor]] = [
        lambda: model.embed(tokens_BS),
        *(lambda block=block: model.run_block(block, x_BSD, tables) for block in model.layers),
        head,
    ]
    best = [float("inf")] * len(parts)
    for round_ in range(rounds + 1):
        for i, part in enumerate(parts):
            seconds = _seconds(part, device)
            if round_:  # the first one asks for memory
                best[i] = min(best[i], seconds)
        model.zero_grad()
        x_BSD.grad = None
    alike = statistics.median(best[1:-1])
    return StageCosts(best[0], (alike,) * config.layers, best[-1])


def _seconds(part: Callable[[], torch.Tensor], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    y = part()
    y.backward(torch.ones_like(y))
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
