"""Of each exercise the nearest that the chapter's cells have, as ../test_given_away.py asks."""

import json
import math
from pathlib import Path

import torch
import torch.distributed as dist

import picolab as pico

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "04_mixed_precision.ipynb"


def cell(cell_id: str, **known) -> dict:
    """The names that this cell defines. known: what cells before it have defined."""
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    (text,) = ("".join(cell["source"]) for cell in cells if cell["id"] == cell_id)
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist, "math": math}
    names |= known
    exec(compile(text, "chapter", "exec"), names)
    return names


def rounding():
    """The package's rounding, whose numbers are turned into bits."""

    def adapted(bits, exponent, mantissa):
        x = pico.precision.round_to(bits.view(torch.float32), "bf16").float()
        return (x.view(torch.int32) >> (23 - mantissa)) & 0xFFFF

    return adapted


def by_chance():
    """What the cure of section 3 calls: blocked, as what is asked for."""

    def adapted(x, generator):
        return pico.precision.round_to(x, "bf16", stochastic=generator).bfloat16()

    return adapted


def machine():
    """The machine of section 4, and what two ranks say to each other there."""

    def adapted(gradients, scale, streak, patience, settings):
        overflow = torch.tensor(float(not all(g.isfinite().all() for g in gradients[:1])))
        dist.all_reduce(overflow, op=dist.ReduceOp.MAX)
        patient = pico.precision.LossScaler(scale, interval=settings["interval"])
        patient.streak, patient.patience = streak, patience
        patient.update(overflow=bool(overflow))
        found = None if overflow else [g if g is None else g.float() / scale for g in gradients]
        return found, patient.scale, patient.streak, patient.patience

    return adapted


def amaxes():
    """A maximum over all ranks, as in section 4, and the scale of section 2."""
    cell("product-by-hand")

    def adapted(tensors, history, scales, largest):
        own = [t.abs().max().float() if t.numel() else torch.zeros(()) for t in tensors]
        amax = torch.stack(own)
        dist.all_reduce(amax, op=dist.ReduceOp.MAX)
        history = torch.cat([history[1:], amax[None]])
        found = [
            2.0 ** math.floor(math.log2(top / most)) if most else old
            for top, most, old in zip(largest.tolist(), history.amax(0).tolist(), scales.tolist())
        ]
        return torch.tensor(found), history

    return adapted


def selection():
    """The package's selector, which the chapter calls: blocked."""

    def adapted(seconds, damage, budget):
        costs = {
            f"layer {i}": {
                "fp32" if f == 0 else str(f): pico.precision.Cost(*of)
                for f, of in enumerate(zip(seconds[i], damage[i]))
            }
            for i in range(len(seconds))
        }
        chosen = pico.precision.AdaptivePrecisionSelector(budget).select(costs).values()
        return [0 if of.format == "fp32" else int(of.format) for of in chosen]

    return adapted


def linear():
    """The product of section 2, with one scale for a tensor, without its rounding to bf16."""
    product = cell("product-by-hand")["Fp8Linear"]

    def adapted(x, weight, block):
        return product.apply(x.flatten(0, -2), weight).float().view(*x.shape[:-1], -1)

    return adapted


def linear_of_tiles():
    """The same with the tiles of section 8 instead of its own scale."""

    def adapted(x, weight, block):
        names = cell("product-by-hand")
        tiles = cell("tiles-table", draw=torch.Generator().manual_seed(0))["tiles"]
        names["scaled"] = lambda t, format: tiles(t, math.gcd(block, t.shape[-1]))
        return names["Fp8Linear"].apply(x, weight).float()

    return adapted


NEAREST = {
    "precision.format.round": [rounding],
    "precision.format.stochastic": [by_chance],
    "precision.scale.machine": [machine],
    "precision.scale.amax": [amaxes],
    "precision.select.knapsack": [selection],
    "precision.block.linear": [linear, linear_of_tiles],
}
