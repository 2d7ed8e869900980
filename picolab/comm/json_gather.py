"""Plain data from every rank to every rank, as JSON in tensors.

torch's own way, `all_gather_object`, sends pickles, and whoever can put bytes on the wire can then
run code in the ranks. Lists of names and shapes do not need that.
"""

import json
from typing import Any

import torch

from picolab.comm.collectives import all_gather
from picolab.comm.mesh import device, mesh


def all_gather_json(value: Any, axis: str, reason: str) -> list[Any]:
    """Every rank's value, in the order of the axis. value: whatever JSON can say; tuples arrive as
    lists."""
    if mesh().size(axis) == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device())
    sizes = all_gather(torch.tensor([len(text)], device=device()), axis, reason).tolist()
    # An all-gather wants the same shape of all.
    padded = torch.cat((text, text.new_zeros(max(sizes) - len(text))))
    rows = all_gather(padded, axis, reason).view(len(sizes), -1).cpu()
    return [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes)]
