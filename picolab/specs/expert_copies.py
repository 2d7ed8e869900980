"""Which experts are on further ranks of ep than their own, as text and as data.

    "0@1 3@2"      in every layer of experts: 0 is on rank 1 of ep too, and 3 on rank 2
    "2:0@1"        in layer 2 only; what is said of a layer goes before what is said of all

As data, layer -> rank of ep -> the experts of other ranks that it has copies of. It is no part of
a `Layout`: which experts are hot is known of a run, and not of a grid of ranks.
"""

import re
from collections.abc import Mapping, Sequence

from picolab.specs.layout import Layout
from picolab.specs.model_config import ModelConfig

Copies = tuple[tuple[int, ...], ...]
"""Rank of ep -> experts."""
_ONE = re.compile(r"(?:(?P<layer>\d{1,6}):)?(?P<expert>\d{1,6})@(?P<rank>\d{1,6})")


def parse_copies(text: str | None, config: ModelConfig, layout: Layout) -> dict[int, Copies]:
    """Of the layers that have copies. ValueError for what no such run can have."""
    if not text:
        return {}
    if layout.ep == 1 or not config.experts:
        raise ValueError(
            f"expert_copies is {text!r}, and {layout} of {config.name} deals out no experts; give "
            "a model with experts and an ep of 2 or more, or leave it out"
        )
    if layout.zero:
        raise ValueError(
            f"expert_copies is {text!r}, and ZeRO cuts an expert's rows over the ranks that have "
            f"the same ones; take {layout} without zero"
        )
    layers = range(config.dense_layers, config.layers)
    said: dict[int | None, list[tuple[int, int]]] = {}
    for word in text.replace(",", " ").split():
        found = _ONE.fullmatch(word)
        if found is None:
            raise ValueError(
                f"expert_copies has {word!r}; a copy is EXPERT@RANK, of one layer LAYER:EXPERT@RANK"
            )
        layer = None if found["layer"] is None else int(found["layer"])
        expert, rank = int(found["expert"]), int(found["rank"])
        _check(word, layer, expert, rank, layers, config.experts, layout.ep)
        if (expert, rank) in said.setdefault(layer, []):
            raise ValueError(f"expert_copies has {word!r} twice")
        said[layer].append((expert, rank))
    of_all = said.get(None, [])
    found = {layer: _by_rank(said.get(layer, of_all), layout.ep) for layer in layers}
    return {layer: copies for layer, copies in found.items() if any(copies)}


def copies_text(plan: Mapping[int, Sequence[Sequence[int]]]) -> str:
    """What `parse_copies` reads."""
    return " ".join(
        f"{layer}:{expert}@{rank}"
        for layer, copies in sorted(plan.items())
        for rank, experts in enumerate(copies)
        for expert in experts
    )


def _check(word: str, layer: int | None, expert: int, rank: int, layers, experts, ep) -> None:
    for what, value, last in (("expert", expert, experts - 1), ("rank of ep", rank, ep - 1)):
        if value > last:
            raise ValueError(f"expert_copies has {word!r}, and the last {what} is {last}")
    if layer is not None and layer not in layers:
        raise ValueError(
            f"expert_copies has {word!r}, and layers with experts are {layers[0]} to {layers[-1]}"
        )
    if expert * ep // experts == rank:
        raise ValueError(
            f"expert_copies has {word!r}, and expert {expert} is at home on rank {rank} of ep; "
            "name another rank"
        )


def _by_rank(pairs: Sequence[tuple[int, int]], ep: int) -> Copies:
    return tuple(tuple(sorted(e for e, to in pairs if to == rank)) for rank in range(ep))
