"""Mixture of experts: many feed-forwards in a layer, of which each token passes a few.

    router.py      which experts a token goes to, and with what weight
    experts.py     the layer: its experts as one parameter, computed together
    dispatch.py    rows of tokens to the ranks of their experts, and back
    balance.py     loads that are even: a loss, and a bias
    copies.py      hot experts on several ranks, trained as one
    placement.py   experts that move to other ranks, with their optimizer's state
    strategy.py    the placement: experts on ranks, and what is done once a step

`feed_forward` is what `Transformer` takes as its factory. With torch missing, importing this room
says what to install.
"""

from picolab.specs.needed import torch_needed

try:
    import torch  # noqa: F401
except ImportError as error:
    raise torch_needed("picolab.moe needs", error) from error

from picolab.moe.dispatch import ExpertCommunication
from picolab.moe.experts import (
    ExpertLayer,
    SwiGLUExperts,
    feed_forward,
    grouped_linear,
    naive_grouped_linear,
)
from picolab.moe.placement import LoadBalancer
from picolab.moe.router import Routed, Router, saved_choices
from picolab.moe.strategy import MoEParallelStrategy, expert_layers

__all__ = [
    "ExpertCommunication",
    "ExpertLayer",
    "LoadBalancer",
    "MoEParallelStrategy",
    "Routed",
    "Router",
    "SwiGLUExperts",
    "expert_layers",
    "feed_forward",
    "grouped_linear",
    "naive_grouped_linear",
    "saved_choices",
]
