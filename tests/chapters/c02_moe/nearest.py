"""Of each exercise the nearest that the chapter's cells have, as ../test_given_away.py asks."""

import json
import math
from pathlib import Path

import torch
import torch.distributed as dist

import picolab as pico

CHAPTER = Path(__file__).resolve().parents[3] / "notebooks" / "02_moe.ipynb"


def cell(cell_id: str) -> dict:
    """The names that this cell defines."""
    cells = json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]
    (text,) = ("".join(cell["source"]) for cell in cells if cell["id"] == cell_id)
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist}
    exec(compile(text, "chapter", "exec"), names)
    return names


def top_k():
    """The routing by hand, token by token, of one expert each and not renormalised."""
    names = cell("route-by-hand")

    def adapted(logits, k, renormalise, dweights):
        experts = logits.topk(k, dim=-1).indices
        weights = logits.softmax(-1).gather(-1, experts)
        eye = torch.eye(logits.shape[-1], dtype=logits.dtype)
        kept = [
            (eye[0], token.softmax(-1), int(token.argmax()), torch.ones(1, dtype=logits.dtype))
            for token in logits.reshape(-1, logits.shape[-1])
        ]
        up = dweights.reshape(-1, k)[:, :1]
        rows = [names["router_gradient"]([one], [d])[:, 0] for one, d in zip(kept, up)]
        dlogits = torch.stack(rows).view(logits.shape) if rows else logits
        return weights, experts, dlogits

    return adapted


def rows_by_hand():
    """Counts, then rows with their sizes, as the raw all-to-all has them; no way back."""

    def adapted(x, experts, weights, total, run, axis):
        group = pico.comm.mesh().group(axis)
        n = pico.comm.mesh().size(axis)
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        to = (flat // (total // n)).bincount(minlength=n)
        coming = torch.empty_like(to)
        dist.all_to_all_single(coming, to, group=group)
        rows = x.detach()[order // experts.shape[1]]
        got = torch.empty(int(coming.sum()), x.shape[1], dtype=x.dtype)
        dist.all_to_all_single(got, rows, coming.tolist(), to.tolist(), group=group)
        counts = [0] * (total // n)
        counts[0] = len(got)
        out = run(got, counts)
        home = torch.empty_like(rows)
        dist.all_to_all_single(home, out.detach(), to.tolist(), coming.tolist(), group=group)
        return x + home.sum() * weights.sum()

    return adapted


def capacity():
    """What the chapter drops by: the highest scores of the whole pool."""

    def adapted(scores, k, factor):
        experts, tokens = scores.shape[-1], scores[..., 0].numel()
        room = math.ceil(factor * tokens * k / experts)
        flat = scores.reshape(-1, experts)
        places = flat.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        asks = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, places, True)
        asked = flat.masked_fill(~asks, -1.0)
        order = asked.argsort(dim=0, descending=True, stable=True)[:room]
        slots = torch.where(asked.gather(0, order) >= 0, order, -1).T
        return torch.nn.functional.pad(slots, (0, room - slots.shape[1]), value=-1)

    return adapted


def aux():
    """The formula of the chapter, over this replica's tokens."""

    def adapted(logits, k, axis):
        leaves = [of.clone().requires_grad_() for of in logits]
        rows = torch.cat(leaves)
        p = rows.softmax(-1)
        chosen = torch.zeros_like(p).scatter(-1, rows.topk(k).indices, 1.0)
        loss = p.shape[1] * (chosen.sum(0) / (k * max(1, len(p))) * p.mean(0)).sum()
        return loss.detach(), list(torch.autograd.grad(loss, leaves))

    return adapted


def bias():
    """The loop of the chapter, with what it calls: blocked, as what is asked for."""

    def adapted(scores, bias, k, rate, axis):
        config = pico.ModelConfig.preset("tiny-moe").replace(
            experts=len(bias), experts_per_token=k, router_score="sigmoid"
        )
        chosen = [pico.moe.router.choose(of, config, bias) for of in scores]
        load = sum(of.sum(0) for of in chosen)
        experts = [of.double().topk(k).indices for of in chosen]
        weights = [of.gather(-1, one) for of, one in zip(scores, experts)]
        return experts, weights, pico.moe.balance.move_bias(bias, load, rate)

    return adapted


def move():
    """`pack` is shown, and what carries the experts is not: it is blocked."""

    def adapted(experts, router, optimizer, order, axis):
        layer = type("Layer", (), {})()
        layer.experts = torch.nn.ParameterList(experts)
        layer.router = torch.nn.ParameterList([router])
        pico.moe.placement.move(layer, order, optimizer, axis)

    return adapted


NEAREST = {
    "moe.router.topk": [top_k],
    "moe.router.capacity": [capacity],
    "moe.balance.aux": [aux],
    "moe.balance.bias": [bias],
    "moe.dispatch.combine": [rows_by_hand],
    "moe.placement.move": [move],
}
