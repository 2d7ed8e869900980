"""Of each exercise the nearest that the chapter's cells have, as ../test_given_away.py asks."""

import torch
import torch.distributed as dist

import picolab as pico
from tests.chapters.c03_3d_parallel.test_lesson_code import source


def cell(*cell_ids: str) -> dict:
    """The names that these cells define."""
    text = "\n\n".join(map(source, cell_ids))
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist}
    exec(compile(text, "chapter", "exec"), names)
    return names


def zero_ranges():
    """Rows of each parameter, as Zero1 has them."""

    def adapted(parameters, gradients, axis, step):
        n, me = pico.comm.mesh().size(axis), pico.comm.mesh().rank(axis)
        found = []
        for index, (p, g) in enumerate(zip(parameters, gradients)):
            rows = p.chunk(n)[me]
            mine = pico.comm.reduce_scatter(g, axis, "zero: gradient")
            new = step(index, 0, rows.reshape(-1), mine.reshape(-1)).view(rows.shape)
            found.append(pico.comm.all_gather(new, axis, "zero: rows"))
        return found

    return adapted


def zero_gather():
    gathered = cell("zero-three")["Gathered"]

    def adapted(x, shard, rows, axis):
        return gathered(shard, axis).linear(x)

    return adapted


def interleaved():
    """1F1B with all stages of a rank as one."""

    def adapted(rank, ranks, micro_batches, v):
        stages = [chunk * ranks + rank for chunk in range(v)]
        order = []
        for action in pico.schedules.one_f_one_b(ranks, micro_batches).actions[rank]:
            each = stages if action.kind == "F" else stages[::-1]
            order += [f"{stage}{action.kind}{action.micro_batch}" for stage in each]
        return order

    return adapted


def split():
    names = cell("zoo-split")

    def adapted(x, weight, later):
        y, kept = names["forward"]([weight], x)
        later.append(lambda: names["backward_weights"]([(weight, kept[0], torch.ones_like(y))]))
        return y

    return adapted


def stages():
    """By time alone: what the chapter's planner and layouts have."""

    def adapted(times, keeps, stages, first, last, room):
        return [len(part) for part in pico.costs.stage_layers(len(times), stages)]

    return adapted


def plan():
    """The favourites of the chapter."""

    def adapted(gpus, node, ask):
        return f"dp{gpus // 8}tp8zero2"

    return adapted


NEAREST = {
    "3d.zero.ranges": [zero_ranges],
    "3d.zero.gather": [zero_gather],
    "3d.pp.interleaved": [interleaved],
    "3d.pp.split": [split],
    "3d.pp.stages": [stages],
    "3d.plan.budget": [plan],
}
