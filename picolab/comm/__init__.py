"""Communication: the device mesh, every collective, and the ledger that records each one.

    comm.build_mesh("dp2tp2")
    comm.all_reduce(x, "tp", reason="tp: row-parallel output")
    comm.ledger().snapshot().table()

With torch missing, importing this room says what to install.
"""

from picolab.specs.needed import torch_needed

try:
    import torch  # noqa: F401
except ImportError as error:
    raise torch_needed("picolab.comm needs", error) from error

from picolab.comm.collectives import (
    Pending,
    all_gather,
    all_reduce,
    all_to_all,
    barrier,
    broadcast,
    exchange,
    ledger,
    recv,
    reduce_scatter,
    send,
    shift,
    unhurried,
)
from picolab.comm.json_gather import all_gather_json
from picolab.comm.mesh import Mesh, axis_size, build_mesh, device, mesh
from picolab.comm.raw import watch
from picolab.comm.ring import ring_all_reduce

__all__ = [
    "Mesh",
    "Pending",
    "all_gather",
    "all_gather_json",
    "all_reduce",
    "all_to_all",
    "axis_size",
    "barrier",
    "broadcast",
    "build_mesh",
    "device",
    "exchange",
    "ledger",
    "mesh",
    "recv",
    "reduce_scatter",
    "ring_all_reduce",
    "send",
    "shift",
    "unhurried",
    "watch",
]
