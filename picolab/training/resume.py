"""Going on with a run: what must be as it was, what is adapted, and what is said.

    must be the same    the model (but for its name), dtype, the text and its order (so data and
                        seed, which the text itself checks: see text.py), sequences in a step
    how a step is cut   layout, micro_batch, accumulate, bucket_bytes, sp_inputs, stage_cost_s,
                        expert_copies, products, memory_budget: they change rounding and speed,
                        nothing is said; of another stage of ZeRO, that the shards are cut anew
    may be changed      all else (lr, warmup, steps, betas, clip, ...): one line for each that is

A *step* belongs to the run: so many sequences, then one update. On another number of replicas the
same settings would make another batch of it, silently another run. So `accumulate` follows:

    dp2, micro_batch 4, accumulate 1: 8 sequences    ->    dp1, micro_batch 4, accumulate 2: 8

and where no integer does it, the settings are refused, with the nearest that work. The lr is one of
a schedule, and a longer run bends that from the first step on, so its next value is said too.
"""

import dataclasses
import json
from pathlib import Path

from picolab.specs import Layout, ModelConfig, TrainConfig
from picolab.specs.precision import OLDER_SPELLING

CUTS = {
    "layout", "micro_batch", "accumulate", "bucket_bytes", "sp_inputs", "stage_cost_s", "products",
    "expert_copies", "memory_budget",
}  # fmt: skip
CHECKED = {"model", "dtype", "seed"}
SCHEDULE = ("lr", "warmup", "steps")


def record(config: TrainConfig) -> dict:
    """The settings as a checkpoint keeps them: what JSON makes of them."""
    return json.loads(json.dumps({**dataclasses.asdict(config), "layout": str(config.layout)}))


def adapt(path: Path, about: dict, config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The settings to go on with from a checkpoint, and a line for each that is not as it was.

    about: its checkpoint.json. ValueError where the run would be another one.
    """
    lines = []
    wanted, together = _sequences(about), config.layout.dp * config.micro_batch
    if wanted != config.sequences_per_step and wanted % together == 0:
        accumulate = wanted // together
        lines.append(
            f"resume: accumulate {config.accumulate} -> {accumulate}, so that a step of "
            f"{config.layout} stays {wanted} sequences ({wanted * config.model.seq:,} tokens)"
        )
        config = dataclasses.replace(config, accumulate=accumulate)
    check(path, about, config)
    before, now = (
        (layout.zero, layout.shard)
        for layout in (Layout.parse(about["config"]["layout"]), config.layout)
    )
    if before != now:
        lines.append(
            f"resume: the checkpoint is of {about['config']['layout']}, with ZeRO {before[0]}, and "
            f"this is {config.layout}, with {now[0]}: shards are cut anew, no number changes"
        )
    return config, lines + _differences(about, config)


def check(path: Path, about: dict, config: TrainConfig) -> None:
    """ValueError if this is not the run that the checkpoint is of; says what would be."""
    there, here = {**_defaults(ModelConfig), **about["config"]["model"]}, record(config)["model"]
    there["dtype"], here["dtype"] = about["config"]["dtype"], config.dtype
    del here["name"]
    for field in here:
        if there.get(field) != here[field]:
            raise ValueError(
                f"the checkpoint {path} is of another model: {field} is {there.get(field)!r} there "
                f"and {here[field]!r} here; give the same shape and dtype"
            )
    if about["step"] >= config.steps:
        raise ValueError(
            f"the checkpoint {path} has {about['step']} steps behind it, and this run ends after "
            f"{config.steps}; steps counts all of them, so give more"
        )
    if _sequences(about) != config.sequences_per_step:
        wanted, layout = _sequences(about), config.layout
        raise ValueError(
            f"a step of the run in {path} is {wanted} sequences, and {layout} with micro_batch "
            f"{config.micro_batch} and accumulate {config.accumulate} makes "
            f"{config.sequences_per_step} of it; give {_nearest(wanted, config)}"
        )


def _sequences(about: dict) -> int:
    settings = about["config"]
    dp = Layout.parse(settings["layout"]).dp
    return dp * settings["micro_batch"] * settings["accumulate"]


def _nearest(wanted: int, config: TrainConfig) -> str:
    """Settings that make `wanted` sequences a step: of this dp if there are any."""
    dp = config.layout.dp
    if wanted % dp == 0:
        each = wanted // dp
        sizes = [size for size in range(1, each + 1) if each % size == 0]
        size = min(sizes, key=lambda size: abs(size - config.micro_batch))
        return f"micro_batch={size} and accumulate={each // size}"
    fewer = max(size for size in range(1, min(dp, wanted) + 1) if wanted % size == 0)
    more = next((size for size in range(dp, wanted + 1) if wanted % size == 0), None)
    either = f"dp{fewer}" if more is None else f"dp{fewer} or dp{more}"
    return f"a layout whose dp divides {wanted}, such as {either}"


def _differences(about: dict, config: TrainConfig) -> list[str]:
    there, here = {**_defaults(TrainConfig), **about["config"]}, record(config)
    there["precision"] = there["precision"] or OLDER_SPELLING[there["dtype"]]
    changed = [name for name in here.keys() - CUTS - CHECKED if there[name] != here[name]]
    lines = [f"resume: {name} {there[name]} -> {here[name]}" for name in sorted(changed)]
    if set(SCHEDULE) & set(changed):
        before = dataclasses.replace(config, **{name: there[name] for name in SCHEDULE})
        old, new = (each.learning_rate(about["step"]) for each in (before, config))
        lines.append(
            f"resume: the learning rate of step {about['step']} is {new:.3g}; by the settings of "
            f"the checkpoint it is {old:.3g}"
        )
    return lines


def _defaults(kind: type) -> dict:
    """For settings that are younger than the checkpoint: it was written when they had no choice."""
    given = {field.name: field.default for field in dataclasses.fields(kind)}
    plain = {name: value for name, value in given.items() if value is not dataclasses.MISSING}
    return json.loads(json.dumps(plain))
