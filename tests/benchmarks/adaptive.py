"""Does a model that is trained in formats chosen by layer learn what an fp32 one does?

    python tests/benchmarks/adaptive.py [--steps 200] [--seeds 3] [--first 0] [--plant 1e5]
        [--only-planted]

`tiny` on Python's own source, one rank: fp32, adaptive, and every product in fp8 with one scale a
tensor. Then the same with planted outliers: where each layer's MLP narrows, one token of each
sequence is so many times as large, as the first tokens of large models are (arXiv 2402.17762).
Printed is the loss on text that was held out, as a share of fp32's in the same model with the same
seed, and which part of the products' work ran below fp32. The aim of adaptive: within 1 %, with at
least 80 % below fp32; static fp8 shall miss it where the outlier is planted. Nothing is asserted.
"""

import argparse
import statistics

from tqdm import tqdm

import picolab as pico
from picolab.show.table import Table
from picolab.specs import TrainConfig


class Planted(pico.Observer):
    """One token of each sequence is `factor` times as large where each MLP narrows."""

    def __init__(self, factor: float):
        self.factor = factor
        self.share = self.formats = None

    def start(self, run):
        def plant(_, args):
            scale = args[0].new_ones(args[0].shape[-2], 1)
            scale[0] = self.factor
            return (args[0] * scale,)

        if self.factor != 1:
            for layer in run.model.layers:
                layer.mlp.down.register_forward_pre_hook(plant)

    def end(self, run):
        adaptive = getattr(run.precision, "adaptive", None)
        if adaptive is not None:
            self.share, self.formats = adaptive.share_below_fp32(), adaptive.adjuster.formats


def trained(config: TrainConfig, factor: float) -> tuple[float, float | None, dict | None]:
    """In a rank: the last held-out loss, the share below fp32, each layer's format."""
    from picolab.training import train_rank

    planted = Planted(factor)
    report = train_rank(config, observers=[planted])
    return list(report.eval_losses.values())[-1], planted.share, planted.formats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--plant", type=float, default=1e5)
    parser.add_argument("--only-planted", action="store_true")
    options = parser.parse_args()
    factors = (options.plant,) if options.only_planted else (1, options.plant)
    cases = [(p, factor) for factor in factors for p in ("fp32", "adaptive", "fp8")]
    found: dict[tuple, list] = {case: [] for case in cases}
    with tqdm(total=options.seeds * len(cases), unit="run") as told:
        for seed in range(options.first, options.first + options.seeds):
            for precision, factor in cases:
                told.set_description(f"{precision}, seed {seed}")
                config = TrainConfig(
                    steps=options.steps, eval_every=options.steps, seed=seed, precision=precision
                )
                (one,) = pico.run(trained, config, factor, world_size=1, quiet=True, timeout=600)
                found[precision, factor].append(one)
                told.update()
    rows = []
    for precision, factor in cases:
        losses = [loss for loss, *_ in found[precision, factor]]
        exact = [loss for loss, *_ in found["fp32", factor]]
        apart = [loss / of - 1 for loss, of in zip(losses, exact, strict=True)]
        shares = [share for _, share, _ in found[precision, factor] if share is not None]
        rows.append(
            [
                precision + (f", a token x {factor:g}" if factor != 1 else ""),
                f"{statistics.mean(losses):.4f}",
                ", ".join(f"{of:+.2%}" for of in apart),
                f"{min(shares):.0%}" if shares else "",
            ]
        )
    print(Table(["precision", "held-out loss", "beside fp32's, by seed", "below fp32"], rows))
    odd = found["adaptive", options.plant][0][2]
    print(
        f"seed {options.first}, planted:",
        ", ".join(f"{n} {f}" for n, f in odd.items() if f != "fp8"),
    )


if __name__ == "__main__":
    main()
