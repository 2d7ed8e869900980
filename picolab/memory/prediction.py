"""What a monitored step will be seen to take, before there is a rank: formula beside measured.

    predicted(config, rank)        {"parameters": ..., "activations": ..., ...}: the most of each

States are those of `costs.rank_states`. Gradients are whole while they are added up, whatever stage
of ZeRO cuts them afterwards. Activations are what the modules of a stage leave for backward
(`costs.saved_bytes`), as often as the rank's own order of forwards and backwards has micro-batches
waiting. With a split backward more waits than is counted here, and it is left out; so are
temporaries and buffers of collectives, which are measured only.
"""

from picolab import costs, schedules
from picolab.specs import TrainConfig
from picolab.specs.schedule_name import ScheduleName


def predicted(config: TrainConfig, rank: int = 0, rows: dict | None = None) -> dict[str, int]:
    """Bytes by category on one rank. rows: of experts that ep deals out, layer -> how many rows
    each of this rank's gets (nobody knows them before)."""
    layout = config.layout
    states = costs.rank_states(
        config.model, layout, rank, precision=config.precision, expert_copies=config.expert_copies
    )
    found = {name: states[name] for name in ("parameters", "gradients", "optimizer")}
    if layout.zero >= 2:
        whole = sum(p.numel for p in costs.local_parameters(config.model, layout, rank))
        size = costs.dtype_bytes(config.numbers.parameters)
        if config.accumulate > 1:
            found["gradients"] = whole * size
        else:
            del found["gradients"]  # as many as have come, and not gone: less than all
    if layout.pp == 1 or not ScheduleName.parse(layout.schedule).splits_backward:
        found["activations"] = activations(config, rank, rows)
    return found


def activations(config: TrainConfig, rank: int = 0, rows: dict | None = None) -> int:
    """The most that waits for its backward at one time."""
    layout, kept = config.layout, stage_bytes(config, rank, rows)
    if layout.pp == 1:
        return kept[0]
    schedule = schedules.make(layout.schedule, layout.pp, config.accumulate)
    most = waiting = 0
    for action in schedule.actions[layout.coordinates(rank)["pp"]]:
        if action.kind == "F":
            waiting += kept[action.stage]
        elif action.kind == "B":
            waiting -= kept[action.stage]
        most = max(most, waiting)
    return most


def stage_bytes(config: TrainConfig, rank: int, rows: dict | None = None) -> dict[int, int]:
    """Stage -> what one micro-batch leaves there."""
    layout, model = config.layout, config.model
    options = dict(
        micro_batch=config.micro_batch, precision=config.precision, tp=layout.tp,
        tp_rank=layout.coordinates(rank)["tp"], sp=layout.sp, cp=layout.cp,
    )  # fmt: skip
    products = "native" if config.products == "native" else "rounded"
    ends = costs.saved_ends(model, **options)
    came = boundary_bytes(config)
    place, found = layout.coordinates(rank)["pp"], {}
    for stage, layers in costs.rank_stages(model.layers, layout, place).items():
        total = ends.get("embed", 0) if stage == 0 else came
        for layer in layers:
            of_layer = (rows or {}).get(layer)
            saved = costs.saved_bytes(model, layer, products=products, rows=of_layer, **options)
            total += sum(saved.values())
        if stage == len(layout.stage_ranks) - 1:
            total += sum(nbytes for name, nbytes in ends.items() if name != "embed")
        elif ends.get("embed"):  # what the last layer gives is sent, and not kept
            total -= came
        found[stage] = total
    return found


def boundary_bytes(config: TrainConfig) -> int:
    """What one stage of a pipeline sends to the next, of one micro-batch."""
    layout, model = config.layout, config.model
    tokens = config.micro_batch * model.seq // layout.cp // (layout.tp if layout.sp else 1)
    return tokens * model.hidden * costs.dtype_bytes(config.numbers.activations)
