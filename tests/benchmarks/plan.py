"""Does the planner rank this machine's layouts as they run? Kendall's tau over measured steps.

    python tests/benchmarks/plan.py [--steps 8] [--rounds 3] [--only dp2,tp2]

The machine is measured once (`training.measure`: matrix products of the model's shapes, alpha and
beta of each collective, memory), each layout's step is predicted from that, and then each runs:
real ranks over gloo, the same global batch, all layouts in turn, in so many rounds. A layout's time
is the median over rounds of a round's median step; the first step of a run is left out. Pairs that
were measured within 10 % of each other are ties and do not count.

    tau = (pairs in the right order - pairs in the wrong one) / pairs

The aim is 0.7. Absolute times are not the aim: what Python spends around small products is in no
formula. Run it on a machine that does nothing else.
"""

import argparse
import itertools
import statistics

import picolab as pico
from picolab.planner import Request
from picolab.planner.costing import Candidate, Costing
from picolab.show.table import Table
from picolab.specs import Layout, ModelConfig
from picolab.training.measure import measure

SHAPE = {
    "hidden": 256, "ffn": 688, "layers": 8, "heads": 8, "kv_heads": 4, "vocab": 4096, "seq": 256,
}  # fmt: skip
MICRO_BATCH, SEQUENCES = 2, 16
LAYOUTS = [
    "dp1", "dp2", "tp2", "pp2", "cp2", "dp2zero1", "dp2zero3", "pp2:interleaved", "dp4", "tp4",
    "pp4", "cp4", "dp2tp2", "dp2pp2", "tp2pp2", "dp4zero3",
]  # fmt: skip
TIE = 0.1


def predicted(config: ModelConfig, hardware, text: str) -> dict[str, float]:
    """Seconds of a step, by term."""
    layout = Layout.parse(text)
    costing = Costing(
        Request(model=config, gpus=layout.world, hardware=hardware, global_batch=SEQUENCES)
    )
    return costing.seconds(Candidate(layout, MICRO_BATCH, "none"))


def measured(text: str, steps: int) -> float:
    """The median step of one run."""
    run = pico.train(
        layout=text, data="random", steps=steps, micro_batch=MICRO_BATCH,
        accumulate=SEQUENCES // (MICRO_BATCH * Layout.parse(text).dp), progress=False, **SHAPE,
    )  # fmt: skip
    ends = [event.t for event in run.events if event.kind == "step" and event.rank == 0]
    return statistics.median(b - a for a, b in itertools.pairwise(sorted(ends)))


def kendall(times: dict[str, float], guesses: dict[str, float]) -> tuple[float, int]:
    """tau over the pairs that are no ties, and how many these are."""
    signs = []
    for a, b in itertools.combinations(times, 2):
        if abs(times[a] - times[b]) > TIE * min(times[a], times[b]):
            signs.append(1 if (times[a] < times[b]) == (guesses[a] < guesses[b]) else -1)
    return (statistics.fmean(signs) if signs else 0.0), len(signs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(LAYOUTS))
    options = parser.parse_args()
    layouts = options.only.split(",")
    config = ModelConfig.preset("tiny").replace(**SHAPE)
    hardware = measure(config, micro_batch=MICRO_BATCH)
    print(hardware.to_json())
    terms = {text: predicted(config, hardware, text) for text in layouts}
    guesses = {text: sum(found.values()) for text, found in terms.items()}
    seen: dict[str, list[float]] = {text: [] for text in layouts}
    for _ in range(options.rounds):
        for text in layouts:
            seen[text].append(measured(text, options.steps))
    times = {text: statistics.median(found) for text, found in seen.items()}
    rows = []
    for text in sorted(layouts, key=times.get):
        shares = {term: s / guesses[text] for term, s in terms[text].items() if s > 0}
        shown = ", ".join(f"{term} {100 * share:.0f} %" for term, share in shares.items())
        rows.append([text, times[text], guesses[text], guesses[text] / times[text], shown])
    print(Table(["layout", "measured s", "predicted s", "ratio", "predicted shares"], rows))
    tau, pairs = kendall(times, guesses)
    print(f"Kendall's tau {tau:.2f} over {pairs} pairs of {len(layouts)} layouts (aim: 0.7)")


if __name__ == "__main__":
    main()
