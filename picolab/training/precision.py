"""What a precision has to say in a step: what is computed in which format, and whether the
gradients may be used.

The base trains as parameters are and never objects. A lower one replaces the products of the model
(precision/lower.py) and keeps the parameters as they are: they are the masters. A loss scaler
objects when a gradient overflowed: then the step is skipped, and training goes on with the next.
All ranks must skip the same steps, or replicas drift apart and the next collective pairs a step
with another; so a rank that objects is agreed with, by `agreed`.
"""

import functools

import torch

from picolab import comm
from picolab.model import Linear, Transformer
from picolab.monitoring import events
from picolab.parallel import ThreeDParallelOptimizer
from picolab.precision.fp8 import Fp8Product, Fp8Scaling
from picolab.precision.hardware import HardwareDetector
from picolab.precision.lower import forget, linears, lower, shape_of
from picolab.precision.products import LowProduct, Ways
from picolab.precision.scaler import LossScaler, finite
from picolab.specs import Layout, TrainConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Parameters, gradients and optimizer state have one dtype; every step is taken."""

    scale: float = 1.0
    """Gradients are those of so many times the loss, until `unscale`."""

    def prepare(self, model: Transformer, parallel: ThreeDParallelOptimizer | None) -> None:
        """The model has values, and nothing has been computed. parallel: None in one process."""

    def before_step(self, run) -> None:
        """Before the step's batch is read. run: the trainer's `Run`."""

    def unscale(self, parallel: ThreeDParallelOptimizer) -> None:
        """Gradients are complete: make them those of the loss."""

    def ready(self, parallel: ThreeDParallelOptimizer) -> bool:
        """Everybody has seen the gradients. May the step be taken? All ranks say the same."""
        return True

    def judge(self, run, loss: float, norm: float) -> int | None:
        """The step would be taken, and these are its loss and its gradient's norm: None, or, the
        state having been put back to its beginning, the step to go on from. All ranks say the
        same."""

    def after_step(self, taken: bool) -> None:
        """The step was taken, or not."""

    def memory(self) -> dict[str, int]:
        """Bytes that it keeps from one step to the next, by category."""
        return {}

    def state_dict(self) -> dict:
        """What it remembers from one step to the next, as JSON can say it."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""


class LowPrecision(Precision):
    """Products in a short format. The parameters are the masters, or, in "bf16-pure", are short
    themselves."""

    def __init__(self, config: TrainConfig):
        self.config, self.format = config, config.numbers.activations

    def prepare(self, model: Transformer, parallel: ThreeDParallelOptimizer | None) -> None:
        config, dtype = self.config, DTYPES[self.format]
        layout = config.layout if parallel is not None else None
        ways = self._ways(model, layout)
        keep = layout is None or layout.zero < 3
        self.products = lower(
            model,
            dtype,
            lambda linear: Ways(*ways["products"][_key(linear)]),
            attention=ways["attention"],
            experts=ways["experts"],
            keep=keep,
            make=functools.partial(self.product, keep),
        )

    def product(self, keep: bool, name: str, ways: Ways) -> LowProduct:
        """That of the linear whose (first) weight has this name."""
        return LowProduct(DTYPES[self.format], ways, keep)

    def after_step(self, taken: bool) -> None:
        forget(self.products)

    def load_state_dict(self, state: dict) -> None:
        forget(self.products)

    def _ways(self, model: Transformer, layout) -> dict:
        """How each product is computed, the same on all ranks: the first one times the shapes of
        all, while the others wait."""
        shapes = sorted({_key(linear) for linear in linears(model)})
        if self.config.products != "auto":
            way = self.config.products
            each = {shape: (way,) * 3 for shape in shapes}
            return {"products": each, "attention": way, "experts": way}
        everyone = [shapes]
        if layout is not None:
            everyone = comm.all_gather_json(shapes, "world", "precision: shapes of products")
        wanted = sorted({shape for of in everyone for shape in of})
        found = None
        if layout is None or comm.mesh().rank("world") == 0:
            found = self._measure(wanted, layout)
        if layout is not None:
            found = comm.all_gather_json(found, "world", "precision: ways of products")[0]
        return found

    def _measure(self, shapes: list[str], layout) -> dict:
        """Asked once on a machine; the detector remembers."""
        config, model = self.config, self.config.model
        cp, tp = (1, 1) if layout is None else (layout.cp, layout.tp)
        detector, tokens = HardwareDetector(comm.device()), config.micro_batch * model.seq // cp
        timed = {}
        for shape in shapes:
            inputs, outputs = map(int, shape.split("x"))
            timed[shape] = detector.products(
                self.format, tokens=tokens, inputs=inputs, outputs=outputs
            )
        heads = -(-model.heads // tp), -(-model.kv_heads // tp)
        size = (config.micro_batch, *heads, model.seq, model.head_dim)
        attention, experts = detector.attention(self.format, size), "rounded"
        if model.experts:
            rows = max(1, tokens * model.experts_per_token // model.experts)
            ways = detector.ways(
                self.format, tokens=rows, inputs=model.hidden, outputs=2 * model.expert_ffn
            )
            experts = "native" if set(ways) == {"native"} else "rounded"
        events.write(
            "products",
            format=self.format,
            tokens=tokens,
            products={s: {k: str(v) for k, v in each.items()} for s, each in timed.items()},
            attention=str(attention),
        )
        return {
            "products": {s: [of.way for of in each.values()] for s, each in timed.items()},
            "attention": attention.way,
            "experts": experts,
        }


class ScaledPrecision(LowPrecision):
    """fp16: the loss is scaled, and a step whose gradients overflowed is skipped by all ranks."""

    def __init__(self, config: TrainConfig, scaler: LossScaler | None = None):
        super().__init__(config)
        self.scaler = scaler or LossScaler()

    @property
    def scale(self) -> float:
        return self.scaler.scale

    def unscale(self, parallel: ThreeDParallelOptimizer) -> None:
        self.scaler.unscale(parallel.parameters())

    def ready(self, parallel: ThreeDParallelOptimizer) -> bool:
        return agreed(finite(parallel.parameters()))

    def after_step(self, taken: bool) -> None:
        if not taken and self.scaler.exhausted:
            raise FloatingPointError(
                f"gradients are not finite although the loss is scaled by {self.scale:g} only, so "
                "it is not fp16's range; try a lower lr, a longer warmup or a tighter clip"
            )
        self.scaler.update(overflow=not taken)
        super().after_step(taken)

    def state_dict(self) -> dict:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if "scale" in state:  # (else the checkpoint is of another precision's run)
            self.scaler.load_state_dict(state)


class Fp8Precision(LowPrecision):
    """fp8 operands, bf16 between layers; the head stays in bf16, since the loss takes its output's
    exponential. Delayed scaling is agreed on once a step."""

    def __init__(self, config: TrainConfig, scaling: Fp8Scaling = "current"):
        super().__init__(config)
        self.scaling = scaling

    def product(self, keep: bool, name: str, ways: Ways) -> LowProduct:
        if name in ("head.weight", "embed.weight"):  # (a tied head is the embedding)
            return super().product(keep, name, ways)
        return Fp8Product(self.scaling, ways, keep)

    @property
    def fp8_products(self) -> list[Fp8Product]:
        return [product for product in self.products if isinstance(product, Fp8Product)]

    def after_step(self, taken: bool) -> None:
        super().after_step(taken)
        if self.scaling == "delayed" and self.fp8_products:
            amax = torch.stack([product.amax for product in self.fp8_products]).to(comm.device())
            for axis in amax_axes(self.config.layout):
                comm.all_reduce(amax, axis, f"{axis}: largest of each operand", op="max")
            for product, mine in zip(self.fp8_products, amax.cpu()):
                product.remember(mine)


def amax_axes(layout: Layout) -> list[str]:
    """Over which ranks the largest element of one tensor of the model is spread: tokens over
    replicas and cp, columns over tp."""
    return [axis for axis in (layout.data_axis, "tp") if layout.size(axis) > 1]


def agreed(mine: bool) -> bool:
    """True on all ranks if it is true on all, else False on all: one number a step."""
    answer = torch.tensor(int(not mine), device=comm.device())
    return not comm.all_reduce(answer, "world", "precision: does any rank object?", op="max").item()


def _key(linear: Linear) -> str:
    return "x".join(map(str, shape_of(linear)))
