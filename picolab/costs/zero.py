"""ZeRO in closed form: which rows a rank keeps, what it holds, what it gathers, what it sends.

Exact, to the byte: rows are whole, and shards of unequal size are padded where they travel, so both
are counted. `state_bytes` (memory.py) and `zero_bytes` below are the formulas of the paper, where a
shard is 1/n of the numbers.
"""

from picolab.costs.collectives import ring_bytes
from picolab.costs.memory import dtype_bytes
from picolab.costs.parameters import LocalParameter, local_parameters
from picolab.costs.slices import even_slices
from picolab.specs import Layout, ModelConfig
from picolab.specs.precision import PRECISIONS, Numbers, PrecisionName

STEP_BYTES = 4  # torch's AdamW counts each parameter's steps in an fp32 scalar


def zero_shards(
    config: ModelConfig, layout: Layout | str, rank: int = 0, *, expert_copies: str | None = None
) -> list[LocalParameter]:
    """What one rank keeps of each of its `local_parameters`: its rows, dealt out over the ranks of
    the shard group as evenly as they go; without ZeRO all of them."""
    layout = Layout.parse(layout)
    parameters = local_parameters(config, layout, rank, expert_copies=expert_copies)
    if not layout.zero:
        return parameters
    index = {}
    for axis in (layout.shard_axis, "edp"):
        (line,) = (line for line in layout.lines(axis) if rank in line)
        index[axis] = line.index(rank)
    return [shard_of(p, layout, index[zero_axis(p, layout)]) for p in parameters]


def zero_axis(parameter: LocalParameter, layout: Layout) -> str:
    """Over which ranks ZeRO deals out a parameter's rows: those of the shard group, or, of experts
    that are dealt out themselves, all that have the same ones."""
    return "edp" if apart(parameter, layout) else layout.shard_axis


def apart(parameter: LocalParameter, layout: Layout) -> bool:
    """Whether it is of experts that ep deals out."""
    return layout.ep > 1 and "ep" in parameter.axes


def shard_of(parameter: LocalParameter, layout: Layout, index: int) -> LocalParameter:
    """The rows of a parameter that the index-th rank of its shard group keeps."""
    axis = zero_axis(parameter, layout)
    if layout.size(axis) == 1:
        return parameter
    rows = len(even_slices(parameter.rows, layout.size(axis))[index])
    numel = rows * parameter.width
    return parameter._replace(numel=numel, axes=parameter.axes | {axis})


def rank_states(
    config: ModelConfig,
    layout: Layout | str,
    rank: int = 0,
    *,
    dtype: object = "fp32",
    precision: PrecisionName | None = None,
    expert_copies: str | None = None,
) -> dict[str, int]:
    """Bytes of one rank's parameters, gradients and AdamW state between two steps, to the byte: all
    of one dtype, no master copy, and a step count a parameter.

    W are the numbers that the rank computes with, K those that it keeps, P its parameters, b bytes:

        stage   parameters   gradients   optimizer
        0, 1    W b          W b         2 K b + 4 P
        2       W b          K b         2 K b + 4 P
        3       K b          K b         2 K b + 4 P

    precision: goes before dtype; with one that may take steps back there is a snapshot, of what the
    optimizer steps and its state: K b + 2 K b + 4 P.
    """
    numbers = PRECISIONS.get(precision, Numbers(dtype, dtype))
    layout, size = Layout.parse(layout), dtype_bytes(numbers.parameters)
    here = local_parameters(config, layout, rank, expert_copies=expert_copies)
    whole = sum(parameter.numel for parameter in here)
    kept = zero_shards(config, layout, rank, expert_copies=expert_copies)
    mine = sum(parameter.numel for parameter in kept)
    found = {
        "parameters": size * (mine if layout.zero == 3 else whole),
        "gradients": size * (mine if layout.zero >= 2 else whole),
        "optimizer": 2 * size * mine + STEP_BYTES * len(kept),
    }
    if numbers.watched:
        found["snapshot"] = size * mine + found["optimizer"]
    return found


def zero3_uses(
    config: ModelConfig, layout: Layout | str, rank: int = 0
) -> list[list[LocalParameter]]:
    """What stage 3 gathers together, in the order of use: the embedding, each block, the last norm
    with the head (a tied one: the embedding's table again). The largest two neighbours are the most
    that a rank has whole at once."""
    layout, uses = Layout.parse(layout), {}
    parameters = local_parameters(config, layout, rank)
    for parameter in parameters:
        first, second, *_ = parameter.name.split(".")
        key = f"layers.{second}" if first == "layers" else "embed" if first == "embed" else "head"
        uses.setdefault(key, []).append(parameter)
    if config.tied and "embed" in uses and "head" in uses:
        uses["head"] += uses["embed"]
    return list(uses.values())


def gathered_bytes(
    config: ModelConfig, layout: Layout | str, rank: int = 0, *, dtype: object = "fp32"
) -> int:
    """The most bytes of whole parameters that stage 3 ever has at once on a rank: one use that is
    computed with. (The next one, under way, is lines of shards still, of as many bytes.)"""
    uses = zero3_uses(config, layout, rank)
    return dtype_bytes(dtype) * max(sum(p.numel for p in use) for use in uses)


def zero_bytes(
    params: float,
    dp: int,
    *,
    zero: int,
    param_bytes: float = 4,
    grad_bytes: float = 4,
    micro_batches: int = 1,
) -> float:
    """Bytes one rank sends in a step under a ZeRO stage, on a ring. With N numbers, of p and g
    bytes, d ranks and m micro-batches:

        stages 1, 2   (d-1)/d N (g + p)         reduce-scatter gradients, all-gather parameters
        stage 3       (d-1)/d N (g + 2 m p)     parameters in each forward and each backward

    With g = p stages 1 and 2 send what an all-reduce of gradients sends, and stage 3, of one
    micro-batch, half as much again. Source: arXiv 1910.02054, section 7. gloo's reduce-scatter
    sends twice this (pytorch issue 118911). Raises ValueError for another stage.
    """
    if zero not in (1, 2, 3):
        raise ValueError(f"zero is {zero!r}; what ZeRO sends is of stage 1, 2 or 3")
    gathers = 2 * micro_batches if zero == 3 else 1
    once = ring_bytes("reduce_scatter", params * grad_bytes, dp)
    return once + gathers * ring_bytes("all_gather", params * param_bytes, dp)
