"""Which layers a pipeline stage holds, and which stages a rank.

As even as they go is right where layers are all that costs time. The first stage also has the
embedding and the last the head, which with a large vocabulary costs as much as several layers; the
slowest stage sets the pace, all others wait for it in every micro-batch. `balanced_stages` divides
by costs, such as those that `parallel.stage_costs.measure` finds.
"""

from collections.abc import Sequence
from functools import cache
from numbers import Real

from picolab.costs.slices import even_slices
from picolab.specs import Layout


def stage_layers(layers: int, stages: int, by_hand: Sequence[int] = ()) -> list[range]:
    """The layers of each stage: contiguous, as even as they go, spare ones on the first stages; or
    as many as `by_hand` says for each.

    The last stage also has the head, so it is never among those with one layer more. Raises
    ValueError if a stage would be without layers.
    """
    if by_hand:
        if len(by_hand) != stages or sum(by_hand) != layers or min(by_hand) < 1:
            raise ValueError(
                f"{list(by_hand)} does not deal out {layers} layers to {stages} stages"
            )
        ends = [sum(by_hand[: i + 1]) for i in range(stages)]
        return [range(start, stop) for start, stop in zip([0, *ends], ends)]
    if stages > layers:
        raise ValueError(
            f"{layers} layers cannot be dealt out to {stages} stages: one would have none; "
            f"pp{layers} is the most"
        )
    return even_slices(layers, stages)


def rank_stages(layers: int, layout: Layout, place: int) -> dict[int, range]:
    """stage -> its layers, of all stages on the rank at that place on pp."""
    ranks = layout.stage_ranks
    dealt = stage_layers(layers, len(ranks), layout.stages)
    return {stage: dealt[stage] for stage, rank in enumerate(ranks) if rank == place}


def balanced_stages(
    layer_costs: Sequence[Real], stages: int, *, first: Real = 0, last: Real = 0
) -> tuple[int, ...]:
    """How many layers each stage gets so that the slowest is as fast as it can be, and of such
    divisions the most even one. For `Layout(stages=...)`.

    layer_costs  of each layer, in any one unit
    first, last  what the first stage costs besides (the embedding), and the last (norm, head, loss)

    Exact, by dynamic programming over (layers dealt out, stages filled), in O(stages * layers^2).
    Source of the idea: PipeDream's partitioner, arXiv 1806.03377, section 3.2, with one rank a
    stage. Raises ValueError for fewer layers than stages.
    """
    n = len(layer_costs)
    stage_layers(n, stages)  # refuses too few layers
    sums = [sum(layer_costs[:i]) for i in range(n + 1)]

    def cost(stage: int, start: int, stop: int) -> Real:
        extra = (first if stage == 0 else 0) + (last if stage == stages - 1 else 0)
        return sums[stop] - sums[start] + extra

    @cache
    def slowest(stage: int, start: int) -> Real:
        """Of the stages from this one on, if they get the layers from `start` on."""
        if stage == stages - 1:
            return cost(stage, start, n)
        return min(
            max(cost(stage, start, stop), slowest(stage + 1, stop))
            for stop in range(start + 1, n - (stages - 2 - stage))
        )

    limit = slowest(0, 0)

    @cache
    def evenest(stage: int, start: int) -> tuple[Real, tuple[int, ...]] | None:
        """The sum of squares of the stages' costs, none above the limit, and their layers."""
        found = []
        last_stop = n - (stages - 1 - stage)
        for stop in [n] if stage == stages - 1 else range(start + 1, last_stop + 1):
            own = cost(stage, start, stop)
            rest = (0, ()) if stage == stages - 1 else evenest(stage + 1, stop)
            if own <= limit and rest is not None:
                found.append((own * own + rest[0], (stop - start, *rest[1])))
        # Of equally even ones that with more layers in front: what stage_layers does.
        return min(found, key=lambda one: (one[0], [-n for n in one[1]])) if found else None

    best = evenest(0, 0)
    assert best is not None, "the division that gave the limit is one"
    return best[1]
