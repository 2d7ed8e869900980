"""What the monitor counts, in real steps: states and kept activations to the byte of the formula in
each kind of layout and precision, and a total that is there. (What torch's own tracker sees:
test_tracker.py.)

Wrong versions kept below: memory that is freed by resizing and not noticed, gradients counted where
autograd made them and not where they went, a pass that keeps nothing, an output that is sent with
its graph, and a block that ZeRO 3 gathers while another stage is computed.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

import picolab as pico
from picolab import comm, costs, launch
from picolab.memory import LeakFinder, MemoryMonitor, predicted, prediction, watch
from picolab.monitoring import events
from picolab.parallel import pipeline, zero_gather
from picolab.training import TrainConfig, train_rank

SHAPE = dict(hidden=48, ffn=80, layers=4, heads=6, kv_heads=3, vocab=97, seq=32)
EXPERTS = dict(experts=4, experts_per_token=2, expert_ffn=24, aux_loss=0.01)
CONFIG = TrainConfig(
    model=pico.ModelConfig(**SHAPE), data="random", steps=2, micro_batch=2, products="rounded"
)
STATES = ("parameters", "gradients", "optimizer")


@pytest.fixture(scope="module")
def world():
    with launch.World(2, quiet=True) as made:
        yield made


def monitored(configs, patch=None):
    """This rank's reports of one run after the other: what was seen, what the run counts itself,
    how many rows each expert got."""
    with comm.unhurried():
        return [one_monitored(config, patch) for config in configs]


def one_monitored(config, patch):
    said, write = {}, events.write

    def keep(kind, /, **data):
        said[kind] = data
        write(kind, **data)

    events.write = keep
    undo = patch() if patch else None
    try:
        report = train_rank(config, observers=[MemoryMonitor()])
    finally:
        events.write = write
        if undo:
            undo()
    return said["memory"], report.memory, said.get("experts"), report.losses


def check_states(config, rank, seen, counted):
    formula = costs.rank_states(config.model, config.layout, rank, precision=config.precision)
    assert sum(seen["at_peak"].values()) == seen["most"]["total"]
    assert max(seen["phases"].values()) == seen["most"]["total"]
    for name in STATES:
        assert counted[name] == formula[name]
        if name != "gradients" or config.layout.zero < 2:
            assert seen["most"][name] == formula[name], (str(config.layout), name)
    for name, nbytes in predicted(config, rank).items():
        off = seen["most"][name] / nbytes - 1
        assert abs(off) < 0.02, (str(config.layout), rank, name, off)
    if config.layout.zero == 3:
        most = costs.gathered_bytes(config.model, config.layout, rank)
        assert seen["most"]["gathered"] >= most
    else:
        assert seen["most"]["gathered"] == 0


LAYOUTS = [
    "dp2", "tp2", "tp2sp", "pp2", "pp2:gpipe", "pp2:interleaved-v2", "cp2",
    "dp2zero1", "dp2zero2", "dp2zero3",
]  # fmt: skip


def check_all_states(world, configs):
    """Of activations the least of three looks counts, where one has too much (see
    `check_all_saved`)."""
    for rank, found in enumerate(world.run(monitored, configs)):
        for config, (seen, counted, _, _) in zip(configs, found):
            try:
                check_states(config, rank, seen, counted)
            except AssertionError:
                looks = [seen, *(look[0] for look in world.run(monitored, [config] * 2)[rank])]
                least = min(looks, key=lambda look: look["most"]["activations"])
                check_states(config, rank, least, counted)


def test_categories_are_the_formulas_in_every_layout(world):
    check_all_states(world, [replace(CONFIG, layout=of, accumulate=2) for of in LAYOUTS])


PRODUCT = [
    f"{split}{zero}{schedule}"
    for split in ("dp4", "dp2tp2", "dp2tp2sp", "dp2cp2", "dp2pp2", "tp2pp2", "tp2pp2sp", "cp2pp2")
    for zero in ("", "zero1", "zero2", "zero3")
    for schedule in ("", ":gpipe", ":interleaved-v2")
    if ("pp" in split or not schedule) and ("dp" in split or "cp" in split or not zero)
]


@pytest.mark.weekly
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_so_they_are_for_splits_with_zero_and_schedules(accumulate):
    layouts = [of for of in PRODUCT if accumulate > 1 or "pp" not in of]
    with launch.World(4, quiet=True) as four:
        check_all_states(
            four, [replace(CONFIG, layout=of, accumulate=accumulate) for of in layouts]
        )


def comes_across_the_border():
    """ZeRO 3 lets the next use come, whichever stage it is of."""
    real = zero_gather._in_order
    zero_gather._in_order = lambda model: [(0, modules) for _, modules in real(model)]
    return lambda: setattr(zero_gather, "_in_order", real)


@pytest.mark.weekly
def test_mutant_a_block_that_comes_while_another_stage_is_computed():
    config = replace(CONFIG, layout="dp2pp2zero3:interleaved-v2", accumulate=4)
    with launch.World(4, quiet=True) as four:
        for patch in (None, comes_across_the_border):
            seen, counted, *_ = four.run(monitored, [config], patch)[0][0]
            if patch is None:
                check_states(config, 0, seen, counted)
    with pytest.raises(AssertionError, match="activations"):
        check_states(config, 0, seen, counted)


def test_copies_of_experts_are_predicted(world):
    model = CONFIG.model.replace(**EXPERTS)
    config = replace(CONFIG, model=model, layout="dp2ep2", expert_copies="0@1 1:2@0 1:3@0")
    for rank, ((seen, counted, *_),) in enumerate(world.run(monitored, [config])):
        for name in STATES:
            assert predicted(config, rank)[name] == counted[name] == seen["most"][name]


class Fails(pico.Observer):
    def gradients(self, run):
        raise ArithmeticError("on purpose")


def watched_after_a_failure(config):
    """What of torch is another's after a run that failed while it was watched."""
    found, resize = [], torch.UntypedStorage.resize_
    for observer in (MemoryMonitor(steps=(0,)), LeakFinder(skip=0)):
        with pytest.raises(ArithmeticError, match="on purpose"):
            train_rank(config, observers=[observer, Fails()])
        found.append(_get_current_dispatch_mode() is not None)
        found.append(torch.UntypedStorage.resize_ is not resize)
    return found


def test_nobody_watches_after_a_run_that_failed(world):
    assert not any(map(any, world.run(watched_after_a_failure, replace(CONFIG, layout="dp2"))))


def kept_of(seen, layer):
    name = f"layers.{layer}"
    of = {module: n for module, n in seen["kept"].items() if f"{module}.".startswith(f"{name}.")}
    return {module.removeprefix(name).removeprefix("."): nbytes for module, nbytes in of.items()}


def check_saved(config, rank, seen, experts):
    """Each module of each layer, and of the ends, to the byte."""
    layout, model = config.layout, config.model
    options = dict(
        micro_batch=config.micro_batch, precision=config.precision, tp=layout.tp,
        tp_rank=layout.coordinates(rank)["tp"], sp=layout.sp, cp=layout.cp,
    )  # fmt: skip
    for layer in range(model.layers):
        rows = None
        if layout.ep > 1:
            loads = experts["loads"][layer]
            each = model.experts // layout.ep
            rows = loads[rank * each : (rank + 1) * each]
        formula = costs.saved_bytes(model, layer, products=config.products, rows=rows, **options)
        assert kept_of(seen, layer) == formula, (str(layout), config.precision, layer)
    ends = costs.saved_ends(model, **options)
    for name, nbytes in ends.items():
        assert nbytes <= seen["kept"].get(name, 0) <= nbytes + 32, (str(layout), name)


def check_all_saved(world, configs):
    """gloo lets go of what it sent some time after it was waited for, and on a busy machine that is
    seen as kept; where a module has too much, the least of three looks counts."""
    for config, (seen, _, experts, _) in zip(configs, world.run(monitored, configs)[0]):
        try:
            check_saved(config, 0, seen, experts)
        except AssertionError:
            looks = [seen, *(look[0] for look in world.run(monitored, [config, config])[0])]
            modules = {module for look in looks for module in look["kept"]}
            kept = {name: min(look["kept"].get(name, 0) for look in looks) for name in modules}
            check_saved(config, 0, {**seen, "kept": kept}, experts)


DENSE = [
    replace(CONFIG, layout=layout, precision=precision, dtype=None)
    for layout, precision in [
        *itertools.product(["dp2"], ["fp32", "fp64", "bf16", "fp16", "fp8", "bf16-pure"]),
        *itertools.product(["tp2", "tp2sp", "cp2"], ["fp32", "bf16"]),
    ]
]
MORE = CONFIG.model.replace(qk_norm=True, qkv_bias=True)
DENSE += [
    replace(CONFIG, model=MORE, layout=layout, precision=precision, dtype=None)
    for layout, precision in [
        *itertools.product(["dp2"], ["fp32", "fp64", "bf16", "bf16-pure"]),
        *itertools.product(["tp2", "tp2sp", "cp2"], ["bf16"]),
    ]
]
SPARSE = [
    replace(
        CONFIG,
        model=CONFIG.model.replace(**EXPERTS | more),
        layout=layout,
        precision=name,
        dtype=None,
    )
    for layout, name, more in [
        ("dp2", "fp32", {}),
        ("dp2", "bf16", {}),
        ("dp2", "fp64", {}),
        ("dp2", "fp32", {"shared_experts": 1}),
        ("dp2ep2", "fp32", {}),
        ("dp2ep2", "bf16", {}),
        ("tp2", "bf16", {"shared_experts": 1}),
        ("tp2sp", "fp32", {"shared_experts": 1}),
        ("tp2sp", "bf16", {"shared_experts": 1}),
        ("tp2sp", "bf16", {}),
        ("cp2", "fp32", {}),
        ("cp2", "bf16", {"aux_loss": 0.0}),
    ]
]


def test_each_operators_saved_bytes_are_the_formulas(world):
    check_all_saved(world, DENSE)


def test_so_are_those_of_experts(world):
    check_all_saved(world, SPARSE)


def test_watching_changes_no_number(world):
    config = replace(CONFIG, layout="dp2zero3", steps=3)
    (*_, losses) = world.run(monitored, [config])[0][0]
    assert losses == world.run(train_rank, config)[0].losses


def no_resizing():
    real, watch.Watch._resized = watch.Watch._resized, lambda self, storage: None
    return lambda: setattr(watch.Watch, "_resized", real)


def nothing_kept():
    real, watch.Watch._keep = watch.Watch._keep, lambda self, born: born.clear()
    return lambda: setattr(watch.Watch, "_keep", real)


def where_autograd_made_them():
    real = watch.Watch.follow_gradients

    def follow(self, parameters):
        for parameter in parameters:
            hook = parameter.register_hook(lambda g: self.call([g], "gradients"))
            self._hooks.append(hook)

    watch.Watch.follow_gradients = follow
    return lambda: setattr(watch.Watch, "follow_gradients", real)


def sent_with_its_graph():
    """A stage's output keeps the stage's input alive, as long as gloo has not said that it went."""
    real = pipeline.PipelineParallelOptimizer._give

    def give(self, action, result, target):
        real(self, action, result, target)
        if self._sending:
            pending, _ = self._sending.pop()
            self._sending.append((pending, result))

    pipeline.PipelineParallelOptimizer._give = give
    return lambda: setattr(pipeline.PipelineParallelOptimizer, "_give", real)


def test_mutant_an_output_that_is_sent_with_its_graph(world):
    config = replace(CONFIG, layout="pp2:interleaved-v2", accumulate=4)
    right, wrong = (world.run(monitored, [config], patch) for patch in (None, sent_with_its_graph))
    for rank in range(2):
        assert right[rank][0][0]["most"]["activations"] < wrong[rank][0][0]["most"]["activations"]
    check_states(config, 0, *right[0][0][:2])
    with pytest.raises(AssertionError, match="activations"):
        check_states(config, 0, *wrong[0][0][:2])


def test_mutant_one_micro_batch_in_flight(world, monkeypatch):
    config = replace(CONFIG, layout="pp2", accumulate=2)
    seen, counted, *_ = world.run(monitored, [config])[0][0]
    monkeypatch.setattr(
        prediction, "activations", lambda *args: max(prediction.stage_bytes(*args).values())
    )
    with pytest.raises(AssertionError, match="activations"):
        check_states(config, 0, seen, counted)


def test_mutants_in_layouts(world):
    for patch, layout in ((no_resizing, "dp2zero3"), (where_autograd_made_them, "dp2")):
        config = replace(CONFIG, layout=layout, accumulate=2)
        seen, counted, *_ = world.run(monitored, [config], patch)[0][0]
        with pytest.raises(AssertionError):
            check_states(config, 0, seen, counted)
    seen, _, experts, _ = world.run(monitored, DENSE[:1], nothing_kept)[0][0]
    with pytest.raises(AssertionError):
        check_saved(DENSE[0], 0, seen, experts)


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="they are numbers of steps, from 0"):
        MemoryMonitor(steps=(-1,))
