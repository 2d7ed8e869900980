"""What a short format saves on this machine, as ratios within one run.

    python tests/benchmarks/precision.py

1. What the detector says of each product of the model, and of attention.
2. Forward, backward and AdamW of the 7.9 M model in one process of one thread: tokens a CPU-second
   in bf16 with fp32 masters over those of fp32, native or rounded as the detector chose, and each
   way by itself. Where both ways are slower than fp32, that is said.
3. Where a step's CPU time goes, in fp32 and in bf16 (torch's profiler, which costs some itself).
4. What the analyzer's cheap mode adds to a step in which it listens, and to a run in which it
   listens every fifth step.
5. What a gradient loses where it is reduced in bf16 instead of fp32, over 2, 4 and 8 ranks: a
   chain in which each rank rounds what it passes on (a ring's own arithmetic, done here by one
   process), its error beside the exact sum's norm, and a formula. Of normal terms of variance 1 the
   partial sum of k has variance k; n terms and n - 1 partial sums are rounded, each with the
   variance ulp^2 / 12, where ulp = 2^-7 of the power of two below the number. (Found is 5 % more:
   a sum of short numbers has few bits too many, and is often exactly halfway.)

Turns are taken in short rounds, and the median of the rounds' ratios is printed: a machine that is
slow for a while is slow for both.
"""

import math
import statistics
import tempfile
import time

import torch
from torch.profiler import ProfilerActivity, profile

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


KINDS = {
    "products": ("aten::mm",),
    "attention": ("aten::_scaled_dot_product",),
    "copies and casts": ("aten::copy_",),
    "loss": ("aten::_log_softmax", "aten::nll_loss"),
    "optimizer": ("aten::_fused_adamw_",),
}


def where(step, rounds: int = 3) -> dict[str, float]:
    """Kind of operation -> ms of CPU time in a step, Python's share among the others."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(rounds):
            step()
    spent = dict.fromkeys([*KINDS, "all else"], 0.0)
    for event in found.key_averages():
        kinds = [kind for kind, names in KINDS.items() if event.key.startswith(names)]
        spent[kinds[0] if kinds else "all else"] += event.self_cpu_time_total / 1e3 / rounds
    return spent


def reduced(n: int) -> tuple[float, float, float]:
    """Of n ranks' gradients, shares of the norm: bf16's error, its formula's, and fp32's error."""
    draw = torch.Generator().manual_seed(0)
    terms = torch.randn(n, 2**18, generator=draw)
    exact = terms.double().sum(0)

    def chain(dtype: torch.dtype) -> float:
        passed_on = terms[0].to(dtype)
        for term in terms[1:]:
            passed_on = passed_on + term.to(dtype)  # (bf16 is added in fp32 inside, and rounded)
        return float((passed_on.double() - exact).norm() / exact.norm())

    def below(size: float, deviation: float) -> float:
        return math.erf(size / deviation / math.sqrt(2))

    def rounding(variance: int) -> float:
        """The mean of ulp^2 / 12."""
        s = math.sqrt(variance)
        parts = (4.0**e * (below(2.0 ** (e + 1), s) - below(2.0**e, s)) for e in range(-40, 8))
        return 4.0**-7 / 12 * sum(parts)

    formula = math.sqrt((n * rounding(1) + sum(map(rounding, range(2, n + 1)))) / n)
    return chain(torch.bfloat16), formula, chain(torch.float32)


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
    spent = {name: where(step_of(config_of(name))) for name in ("fp32", "bf16")}
    print("ms a step, fp32 and bf16: ", end="")
    print(", ".join(f"{k} {spent['fp32'][k]:.0f} {spent['bf16'][k]:.0f}" for k in spent["fp32"]))
    found = ratio(exact, step_of(config_of("fp32"), "cheap"))
    print(
        f"the analyzer's cheap mode: {found - 1:+.1%} of a step in which it listens, "
        f"{(found - 1) / 5:+.1%} of a run in which that is every fifth"
    )
    for n in (2, 4, 8):
        found, formula, fp32 = reduced(n)
        print(
            f"gradients reduced in bf16 over {n} ranks: {found:.2%} of the sum's norm is lost, "
            f"formula {formula:.2%}; in fp32 {fp32:.1e}"
        )


if __name__ == "__main__":
    main()
