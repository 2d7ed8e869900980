"""Runs that were published, to hold the planner against.

Each row is a layout, a batch, and the TFLOP/s a GPU that its authors give. Authors count operations
differently, so a row carries its own count, and what is compared are the seconds of a step: their
count over their rate. MFU follows by this package's one convention (`costs.flops_per_token`: model
flops, the full square of attention, nothing recomputed).

    Megatron-LM   arXiv 2104.04473, table 1: 96 B s l h^2 (1 + s/6h + V/16lh), with recomputation
    Llama 3       arXiv 2407.21783, table 4. The paper does not say how it counts; taken here: model
                  flops with half the square of attention, as in Meta's lingua
                  (get_num_flop_per_token)

What a paper leaves open (micro-batch, schedule, ZeRO stage) is the planner's own choice. Llama 3's
first and last stage have a layer less (section 3.3.2); its chunks of one layer, of which the first
is empty, are chunks of two here. `FITTED` was fitted to the rows marked so, by least squares of the
logarithms; the practices were chosen with all rows in view, by what the papers say.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from picolab import costs
from picolab.planner.costing import Costing
from picolab.planner.practice import FITTED, PRACTICES, Efficiency, Practice
from picolab.planner.request import Request
from picolab.planner.verdict import Verdict, judge
from picolab.specs import Hardware, Layout, ModelConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Published:
    """One run of a paper."""

    name: str
    source: str
    model: ModelConfig
    layout: str
    """its axes; ZeRO is open, and the schedule if it has none"""
    gpus: int
    hardware: Hardware
    seq: int
    global_batch: int
    practice: Practice
    tflops: float
    """a GPU, as printed"""
    counted_flops: float
    """of a step, as the authors count"""
    recompute: tuple[str, ...] = costs.RECOMPUTE
    zero: tuple[int, ...] = (0,)
    schedules: tuple[str, ...] = ("1f1b", "interleaved")
    fitted: bool = False
    """the efficiencies were fitted to this row"""

    @property
    def seconds(self) -> float:
        return self.counted_flops / (self.tflops * 1e12 * self.gpus)

    @property
    def printed_share(self) -> float:
        """Of the peak, by the authors' own count."""
        return self.tflops * 1e12 / self.hardware.peak_flops

    @cached_property
    def mfu(self) -> float:
        flops = costs.flops_per_token(self.model, self.seq) * self.global_batch * self.seq
        return flops / (self.seconds * self.gpus * self.hardware.peak_flops)


# billions, heads, hidden, layers, tp, pp, GPUs, batch, TFLOP/s
_MEGATRON = (
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 137),
    (3.6, 32, 3072, 30, 2, 1, 64, 512, 138),
    (7.5, 32, 4096, 36, 4, 1, 128, 512, 142),
    (18.4, 48, 6144, 40, 8, 1, 256, 1024, 135),
    (39.1, 64, 8192, 48, 8, 2, 512, 1536, 138),
    (76.1, 80, 10240, 60, 8, 4, 1024, 1792, 140),
    (145.6, 96, 12288, 80, 8, 8, 1536, 2304, 148),
    (310.1, 128, 16384, 96, 8, 16, 1920, 2160, 155),
    (529.6, 128, 20480, 105, 8, 35, 2520, 2520, 163),
    (1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 163),
)
# GPUs, cp, dp, sequence, batch a dp group, TFLOP/s
_LLAMA = (
    (8192, 1, 64, 8192, 32, 430),
    (16384, 1, 128, 8192, 16, 400),
    (16384, 16, 8, 131_072, 16, 380),
)
_FITTED = (
    "Megatron 1.7B",
    "Megatron 18.4B",
    "Megatron 529.6B",
    "Llama 3 405B, 16,384 GPUs, 131,072 tokens",
)


def _megatron(billions, heads, hidden, layers, tp, pp, gpus, batch, tflops) -> Published:
    seq, vocab = 2048, 51_200
    model = ModelConfig(
        name=f"GPT {billions}B", hidden=hidden, ffn=4 * hidden, layers=layers, heads=heads,
        kv_heads=heads, vocab=vocab, seq=seq, tied=True, family="gpt",
    )  # fmt: skip
    counted = 96 * batch * seq * layers * hidden**2
    counted *= 1 + seq / (6 * hidden) + vocab / (16 * layers * hidden)
    name = f"Megatron {billions}B"
    return Published(
        name=name, source="arXiv 2104.04473, table 1", model=model,
        layout=f"tp{tp}pp{pp}dp{gpus // (tp * pp)}", gpus=gpus,
        hardware=Hardware.preset("a100-80gb"), seq=seq, global_batch=batch,
        practice=PRACTICES["megatron-2021"], tflops=tflops, counted_flops=counted,
        recompute=("full",), fitted=name in _FITTED,
    )  # fmt: skip


def _llama(gpus, cp, dp, seq, batch, tflops) -> Published:
    model = ModelConfig.preset("llama-3.1-405b").replace(seq=seq, name="llama-3.1-405b")
    chunks = "-".join("1" if chunk in (0, 63) else "2" for chunk in range(64))
    square = 12 * model.layers * model.heads * model.head_dim * seq
    counted = costs.flops_per_token(model, seq) - square / 2
    name = f"Llama 3 405B, {gpus:,} GPUs" + (f", {seq:,} tokens" if cp > 1 else "")
    return Published(
        name=name, source="arXiv 2407.21783, table 4", model=model,
        layout=f"tp8sp{f'cp{cp}' if cp > 1 else ''}pp16dp{dp}:interleaved-v4/{chunks}", gpus=gpus,
        hardware=Hardware.preset("h100-sxm"), seq=seq, global_batch=batch * dp,
        practice=PRACTICES["today"], tflops=tflops, counted_flops=counted * batch * dp * seq,
        recompute=("none", "selective"), zero=(1, 2), fitted=name in _FITTED,
    )  # fmt: skip


def predicted(row: Published, efficiency: Efficiency = FITTED) -> Verdict:
    """The verdict on a published layout; what it leaves open is chosen for speed."""
    request = Request(
        model=row.model, gpus=row.gpus, hardware=row.hardware, seq=row.seq,
        global_batch=row.global_batch, practice=row.practice, efficiency=efficiency,
    )  # fmt: skip
    costing, given = Costing(request), Layout.parse(row.layout)
    open_schedule = given.pp > 1 and not given.stages
    schedules = row.schedules if open_schedule else (given.schedule,)
    verdicts = [
        judge(
            costing, dataclasses.replace(given, zero=zero, schedule=schedule), recompute=recompute
        )
        for zero in row.zero
        for schedule in schedules
        for recompute in row.recompute
    ]
    living = [verdict for verdict in verdicts if verdict.fits]
    return min(living, key=lambda v: v.step_s) if living else verdicts[0]


PUBLISHED = tuple(_megatron(*row) for row in _MEGATRON) + tuple(_llama(*row) for row in _LLAMA)


def published(name: str) -> Published:
    """The row of this name. ValueError for one that is not there."""
    found = {row.name: row for row in PUBLISHED}
    if name not in found:
        raise ValueError(f"no published run is called {name!r}; there are {', '.join(found)}")
    return found[name]
