"""Which layers a pipeline stage holds."""

from picolab.costs.slices import even_slices


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each stage: contiguous, as even as they go, spare ones on the first stages.

    The last stage also has the head, so it is never among those with one layer more. Raises
    ValueError if a stage would be without layers.
    """
    if stages > layers:
        raise ValueError(
            f"{layers} layers cannot be dealt out to {stages} stages: one would have none; "
            f"pp{layers} is the most"
        )
    return even_slices(layers, stages)
