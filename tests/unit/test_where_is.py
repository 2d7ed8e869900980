"""The table "where is ..." of summary/00_architecture.md: it says which lines to change, so it must
be right about them.

    python tests/unit/test_where_is.py --fix     writes the table anew (`make format` does it, too)

Every mechanism is a name in the package; file and lines follow from it. The cell that teaches it
exists in the chapter, and torch's twin can be imported.
"""

import importlib
import inspect
import json
import operator
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = ROOT / "summary" / "00_architecture.md"
BEGIN = "<!-- where is: written by tests/unit/test_where_is.py --fix -->"
END = "<!-- end of where is -->"
DIST = "torch.distributed"


class Row(NamedTuple):
    what: str
    name: str  # module:object
    cell: str  # notebook#cell, or nothing
    twin: str  # module:object, or nothing


BASICS = "01_4d_basics"
THREE_D = "03_3d_parallel"
MOE = "02_moe"
PRECISION = "04_mixed_precision"
MEMORY = "05_memory"
MONITORING = "06_monitoring"
ROWS = [
    Row("rank grid, process groups", "picolab.comm.mesh:Mesh", f"{BASICS}#axes-grid",
        f"{DIST}.device_mesh:init_device_mesh"),
    Row("ring all-reduce", "picolab.comm.ring:ring_all_reduce", f"{BASICS}#ring-exercise-stub",
        f"{DIST}:all_reduce"),
    Row("parameters by global name, cuts", "picolab.model.parameters:Piece", "",
        f"{DIST}.tensor:DTensor"),
    Row("gathering what is cut", "picolab.parallel.whole:gather", "",
        f"{DIST}.checkpoint.state_dict:get_model_state_dict"),
    Row("gradient norm", "picolab.parallel.whole:square_norm",
        f"{BASICS}_exercises#ex-norm-global-stub", "torch.nn.utils:clip_grad_norm_"),
    Row("data parallel: naive", "picolab.parallel.data:naive_sync", f"{BASICS}#dp-naive", ""),
    Row("data parallel: buckets", "picolab.parallel.buckets:GradientBuckets",
        f"{BASICS}#dp-buckets", "torch.nn.parallel:DistributedDataParallel"),
    Row("ZeRO: naive", "picolab.parallel.zero:naive_reduce", f"{THREE_D}#zero-by-hand", ""),
    Row("ZeRO: rows and buckets", "picolab.parallel.zero:ZeroOptimizer", f"{THREE_D}#zero-source",
        "torch.distributed.optim:ZeroRedundancyOptimizer"),
    Row("ZeRO 3: gathered while used", "picolab.parallel.zero_gather:GatheredModel",
        f"{THREE_D}#zero-three",
        f"{DIST}.fsdp:fully_shard"),
    Row("tensor parallel: what is split", "picolab.parallel.tensor:TensorParallelOptimizer",
        f"{BASICS}#tp-split-by-hand", f"{DIST}.tensor.parallel:parallelize_module"),
    Row("tensor parallel: f and g", "picolab.parallel.tensor_comm:column_linear",
        f"{BASICS}#tp-f-and-g", f"{DIST}.tensor.parallel:ColwiseParallel"),
    Row("sequence parallel", "picolab.parallel.tensor_comm:scatter_sum", f"{BASICS}#tp-sequence",
        f"{DIST}.tensor.parallel:SequenceParallel"),
    Row("random streams", "picolab.parallel.random_streams:RandomStreams", "", ""),
    Row("vocabulary-parallel loss", "picolab.parallel.vocabulary:VocabularyParallelLoss",
        f"{BASICS}_exercises#ex-tp-vocab-loss-stub", f"{DIST}.tensor.parallel:loss_parallel"),
    Row("pipeline: the executor", "picolab.parallel.pipeline:PipelineParallelOptimizer",
        f"{BASICS}#pp-order", f"{DIST}.pipelining:Schedule1F1B"),
    Row("pipeline: schedules as data", "picolab.schedules.generators:one_f_one_b",
        f"{BASICS}_exercises#ex-pp-one-f-one-b-stub", f"{DIST}.pipelining:Schedule1F1B"),
    Row("pipeline: interleaved", "picolab.schedules.generators:interleaved",
        f"{THREE_D}_exercises#ex-pp-interleaved-stub",
        f"{DIST}.pipelining:ScheduleInterleaved1F1B"),
    Row("pipeline: ZB-H1", "picolab.schedules.split_generators:zb_h1", f"{THREE_D}#zoo-source",
        f"{DIST}.pipelining:ScheduleInterleavedZeroBubble"),
    Row("pipeline: ZB-V", "picolab.schedules.split_generators:zb_v", f"{THREE_D}#zoo-run",
        f"{DIST}.pipelining:ScheduleZBVZeroBubble"),
    Row("pipeline: DualPipeV", "picolab.schedules.split_generators:dualpipe_v",
        f"{THREE_D}#zoo-run", f"{DIST}.pipelining:ScheduleDualPipeV"),
    Row("pipeline: B and W apart", "picolab.parallel.split_backward:LaterWeightGradients",
        f"{THREE_D}#zoo-split",
        f"{DIST}.pipelining._backward:stage_backward_weight"),
    Row("pipeline: stages by measured cost", "picolab.costs.stages:balanced_stages",
        f"{THREE_D}#slow-stages", ""),
    Row("ring attention", "picolab.parallel.ring:ring_attention", f"{BASICS}#cp-ring",
        f"{DIST}.tensor.experimental:context_parallel"),
    Row("merging by log-sum-exp", "picolab.parallel.ring:merge", f"{BASICS}#cp-merge", ""),
    Row("Ulysses", "picolab.parallel.ulysses:ulysses_attention", "", ""),
    Row("attention over gathered keys", "picolab.parallel.gathered:gathered_attention", "", ""),
    Row("zig-zag split", "picolab.parallel.sequence_split:split_sequence",
        f"{BASICS}_exercises#ex-cp-zigzag-stub", ""),
    Row("router: scores, choice, capacity", "picolab.moe.router:Router", f"{MOE}#route-by-hand",
        ""),
    Row("experts as one product", "picolab.moe.experts:grouped_linear", f"{MOE}#route-source",
        "torch:_grouped_mm"),
    Row("rows to experts and back", "picolab.moe.dispatch:Travelling", f"{MOE}#a2a-raw",
        f"{DIST}:all_to_all_single"),
    Row("balance: loss", "picolab.moe.balance:aux_loss", f"{MOE}#aux-gradient", ""),
    Row("balance: bias", "picolab.moe.balance:move_bias", f"{MOE}#bias-work", ""),
    Row("balance: experts that move", "picolab.moe.placement:LoadBalancer", f"{MOE}#cures-run",
        ""),
    Row("hot experts with copies", "picolab.moe.copies:sum_gradients", f"{MOE}#copies-run", ""),
    Row("experts on ranks", "picolab.moe.strategy:MoEParallelStrategy", f"{MOE}#axes-run",
        ""),
    Row("experts under tp and cp", "picolab.parallel.experts:split_experts", "", ""),
    Row("number formats, rounding", "picolab.precision.formats:round_to",
        f"{PRECISION}#format-bits", ""),
    Row("block format", "picolab.precision.blocks:to_blocks", f"{PRECISION}#bits-compare", ""),
    Row("products in a short format", "picolab.precision.products:LowProduct",
        f"{PRECISION}#product-source", "torch:autocast"),
    Row("which way of multiplying is faster", "picolab.precision.hardware:HardwareDetector",
        f"{PRECISION}#ways-compare", ""),
    Row("loss scale", "picolab.precision.scaler:LossScaler", f"{PRECISION}#scale-machine",
        "torch.amp:GradScaler"),
    Row("what a format does to a layer", "picolab.precision.analyzer:damage",
        f"{PRECISION}#damage-table", ""),
    Row("format of each layer", "picolab.precision.selector:AdaptivePrecisionSelector",
        f"{PRECISION}#select-look", ""),
    Row("whose precision is raised", "picolab.precision.adjuster:DynamicPrecisionAdjuster",
        f"{PRECISION}#spike-run", ""),
    Row("a state to go back to", "picolab.training.snapshot:Snapshot", f"{PRECISION}#spike-run",
        ""),
    Row("live bytes, by what they are for", "picolab.memory.watch:Watch",
        f"{MEMORY}#count-by-hand", f"{DIST}._tools.mem_tracker:MemTracker"),
    Row("bytes of a rank, predicted", "picolab.memory.prediction:predicted",
        f"{MEMORY}#zero-predict", ""),
    Row("what a block keeps, module by module", "picolab.costs.saved:saved_bytes",
        f"{MEMORY}#block-compare", ""),
    Row("recompute", "picolab.memory.scheduler:BlockRunner", f"{MEMORY}#again-by-hand",
        "torch.utils.checkpoint:checkpoint"),
    Row("offload", "picolab.memory.offload:Offload", f"{MEMORY}#away-by-hand",
        "torch.autograd.graph:save_on_cpu"),
    Row("pool of buffers", "picolab.memory.pool:MemoryPool", f"{MEMORY}#pool-by-hand", ""),
    Row("a memory budget: the plan", "picolab.memory.scheduler:MemoryScheduler",
        f"{MEMORY}#plan-measured", ""),
    Row("garbage, aligned", "picolab.memory.collector:GarbageCollector",
        f"{MEMORY}#collect-run", ""),
    Row("the composition", "picolab.parallel.three_d:placements", f"{BASICS}#close-layout-run", ""),
    Row("one training step", "picolab.training.trainer:train_step", "", ""),
    Row("events: what is in them", "picolab.monitoring.event_kinds:table", "", ""),
    Row("events: reading a run", "picolab.monitoring.event_files:RunFiles", "", ""),
    Row("is this out of the ordinary: the rules", "picolab.monitoring.rules:Spike",
        f"{MONITORING}#detector-by-hand", ""),
    Row("what is wrong, and whose it is", "picolab.monitoring.anomalies:AnomalyDetector",
        f"{MONITORING}#slow-system", ""),
    Row("when somebody is told: the life of an alert", "picolab.monitoring.alerts:AlertManager",
        f"{MONITORING}#alert-rule", ""),
    Row("alert rules in a file", "picolab.monitoring.alert_rules:Rule", "", ""),
    Row("alerts that outlive the monitor", "picolab.monitoring.alert_history:AlertHistory", "", ""),
    Row("a webhook that holds nobody up", "picolab.monitoring.notifiers:Webhook", "", ""),
    Row("the whole monitor", "picolab.monitoring.system:BasicMonitoringSystem", "", ""),
    Row("faults of a run, to be found", "picolab.debug.run_faults:InRun", "", ""),
    Row("who waits for whom", "picolab.monitoring.who_waits:of_standstill", "", ""),
    Row("what a rank does, readable when it cannot speak", "picolab.monitoring.beacon:Beacon", "",
        ""),
    Row("one step, module by module", "picolab.debug.step_trace:compare_steps", "", ""),
    Row("metrics", "picolab.monitoring.collector:MetricsCollector", "", ""),
    Row("observers", "picolab.monitoring.observer:Observer", "00_start_here#start-observer-run",
        ""),
    Row("formula ledger", "picolab.costs.ledger:step_ledger", f"{BASICS}#dp-ledger", ""),
    Row("what a layer keeps", "picolab.costs.activations:kept", "", ""),
    Row("which links a group talks over", "picolab.costs.bandwidth:group_bandwidth", "", ""),
    Row("every layout, judged", "picolab.planner.search:search", f"{THREE_D}#plan-all", ""),
    Row("why a step is slow: its graph", "picolab.monitoring.critical_path:StepGraph", "", ""),
    Row("why a step is slow: causes, what if", "picolab.monitoring.what_if:Replays", "", ""),
    Row("the auto-tuner", "picolab.training.tune:tune", "", ""),
    Row("the oracle", "picolab.debug.oracle:verify", f"{BASICS}#close-verify", ""),
]  # fmt: skip


def found(name: str):
    module, path = name.split(":")
    return operator.attrgetter(path)(importlib.import_module(module))


def lines(name: str) -> str:
    thing = found(name)
    source, start = inspect.getsourcelines(thing)
    path = Path(inspect.getsourcefile(thing)).relative_to(ROOT)
    return f"[`{path}`](../{path}), {start}-{start + len(source) - 1}"


def table() -> str:
    rows = [
        "| mechanism | file, lines | cell that teaches it | torch's twin |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        cell = f"`{row.cell.replace('#', '` · `')}`" if row.cell else ""
        twin = f"`{row.twin.replace(':', '.')}`" if row.twin else ""
        rows.append(f"| {row.what} | {lines(row.name)} | {cell} | {twin} |")
    return "\n".join([BEGIN, *rows, END])


def written() -> str:
    text = SUMMARY.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def test_the_table_says_where_things_are():
    assert written() == table(), "write it anew: python tests/unit/test_where_is.py --fix"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_cells_and_twins_exist(row):
    if row.twin:
        assert callable(found(row.twin))
    if row.cell:
        notebook, cell = row.cell.split("#")
        cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
        assert cell in [of["id"] for of in cells]


def test_mutant_a_line_too_far_is_seen(monkeypatch):
    real = inspect.getsourcelines
    moved = lambda thing: (real(thing)[0], real(thing)[1] + 1)  # noqa: E731
    monkeypatch.setattr(inspect, "getsourcelines", moved)
    assert written() != table()


if __name__ == "__main__":
    if sys.argv[1:] != ["--fix"]:
        sys.exit("usage: python tests/unit/test_where_is.py --fix")
    SUMMARY.write_text(SUMMARY.read_text().replace(written(), table()))
