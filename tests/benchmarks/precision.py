"""What a short format saves on this machine, as ratios within one run.

    python tests/benchmarks/precision.py

1. What the detector says of each product of the model, and of attention.
2. Forward, backward and AdamW of the 7.9 M model in one process of one thread: tokens a CPU-second
   in bf16 with fp32 masters over those of fp32, native or rounded as the detector chose, and each
   way by itself. Where both ways are slower than fp32, that is said.
3. What the analyzer's cheap mode adds to a step in which it listens, and to a run in which it
   listens every fifth step.

Turns are taken in short rounds, and the median of the rounds' ratios is printed: a machine that is
slow for a while is slow for both.
"""

import statistics
import tempfile
import time

import torch

from picolab.model import initialise
from picolab.precision import PrecisionAnalyzer
from picolab.precision.hardware import HardwareDetector
from picolab.specs import TrainConfig
from picolab.training.build import build
from picolab.training.precision_named import of_config
from picolab.training.trainer import adamw

ROUNDS = 5
STEP = dict(model="tiny", hidden=256, layers=8, heads=8, kv_heads=4, ffn=688, vocab=4096, seq=256)


def config_of(precision: str, products: str = "auto") -> TrainConfig:
    from picolab.specs import assemble

    return assemble(**STEP, micro_batch=4, precision=precision, products=products)


def step_of(config: TrainConfig, analyzer_mode: str | None = None):
    """One training step, ready to be called again."""
    model = initialise(build(config.model, config.torch_dtype), 0)
    precision = of_config(config)
    precision.prepare(model, None)
    optimizer = adamw(model.parameters(), config)
    draw = torch.Generator().manual_seed(0)
    size = (config.micro_batch, config.model.seq + 1)
    tokens = torch.randint(config.model.vocab, size, generator=draw)
    analyzer = PrecisionAnalyzer(model, ["bf16"], mode="cheap") if analyzer_mode else None

    def backward() -> None:
        (model.loss(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()).backward()

    def step() -> None:
        optimizer.zero_grad()
        if analyzer is None:
            backward()
        else:
            with analyzer.listening():
                backward()
            analyzer.report()
        optimizer.step()
        precision.after_step(True)

    return step


def cpu_seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio(one, other) -> float:
    """How many times the CPU time of `other` is that of `one`."""
    one(), other()
    return statistics.median(cpu_seconds(other) / cpu_seconds(one) for _ in range(ROUNDS))


def main() -> None:
    torch.set_num_threads(1)
    config = config_of("bf16")
    model, tokens = config.model, config.micro_batch * config.model.seq
    parameters = sum(p.numel() for p in build(model).parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {tokens} tokens a step, one thread")
    with tempfile.TemporaryDirectory() as folder:  # measured now, whatever was seen before
        detector = HardwareDetector(folder=folder)
        for name, inputs, outputs in (
            ("qkv", model.hidden, (model.heads + 2 * model.kv_heads) * model.head_dim),
            ("gate, up", model.hidden, 2 * model.ffn),
            ("down", model.ffn, model.hidden),
            ("head", model.hidden, model.vocab),
        ):
            for which, timed in detector.products(
                "bf16", tokens=tokens, inputs=inputs, outputs=outputs
            ).items():
                print(f"{name:9} {which:3} {timed}")
        size = (config.micro_batch, model.heads, model.kv_heads, model.seq, model.head_dim)
        print(f"attention     {detector.attention('bf16', size)}")
    exact = step_of(config_of("fp32"))
    for products in ("auto", "native", "rounded"):
        found = ratio(step_of(config_of("bf16", products)), exact)
        print(f"bf16, fp32 masters, {products:8} {found:5.2f} times fp32's tokens a CPU-second")
    found = ratio(exact, step_of(config_of("fp32"), "cheap"))
    print(
        f"the analyzer's cheap mode: {found - 1:+.1%} of a step in which it listens, "
        f"{(found - 1) / 5:+.1%} of a run in which that is every fifth"
    )


if __name__ == "__main__":
    main()
