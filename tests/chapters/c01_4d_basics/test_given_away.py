"""No exercise's solution stands in the chapter: its own cells, adapted to each exercise's interface
as a reader would who writes no mechanism of their own, fail the judge.

Below each exercise's nearest cell is executed as it is saved, and what it defines is wrapped into
the exercise's arguments. The test's own mutant is a chapter that has a solution in one of its
cells: adapted in the same way, it passes, and is found.
"""

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab.exercises.catalogue import find, ids
from picolab.exercises.check import judged
from picolab.exercises.definition import source_of
from tests.chapters.c01_4d_basics.test_lesson_code import source


def cell(*cell_ids: str) -> dict:
    """The names that these cells define; what they run by themselves is left out."""
    text = "\n\n".join(source(one).partition("\n\n\napart = ")[0] for one in cell_ids)
    text = text.partition("\n\n\nleaves = ")[0]
    names = {"__name__": "__main__", "pico": pico, "torch": torch, "dist": dist}
    names |= {"WORLD_SIZE": 2, "gloo": {"world_size": 2}}
    exec(compile(text, "chapter", "exec"), names)
    return names


def ring_all_reduce():
    def adapted(x):
        dist.all_reduce(x)  # of raw-groups

    return adapted


def scatter_gather():
    def adapted(x, axis, update):
        pico.comm.all_reduce(x, axis, "chapter")
        update(x)
        return x

    return adapted


def dp_buckets():
    hooks = cell("dp-naive", "dp-buckets")["Hooks"]

    def adapted(parameters, axis, bucket_bytes):
        mine = hooks(torch.nn.ParameterList())
        for p in parameters:
            mine.ready(p)
        mine.finish()

    return adapted


def dp_hooks():
    hooks = cell("dp-buckets")["Hooks"]

    def adapted(parameters, axis, bucket_bytes):
        mine = hooks(torch.nn.ParameterList(parameters))

        def finish():
            mine.finish()
            for p in parameters:
                p.grad /= pico.comm.mesh().size(axis)

        return finish

    return adapted


def column_backward():
    row_linear = cell("tp-split-by-hand", "tp-f-and-g")["RowLinear"]

    def adapted(x, w, dy):
        ctx = type("ctx", (), {"saved_tensors": (x, w)})
        return row_linear.backward(ctx, dy)

    return adapted


def tp_attention():
    row_linear = cell("tp-split-by-hand", "tp-f-and-g")["RowLinear"]

    def adapted(draw, hidden, heads, kv_heads):
        tp, me = pico.comm.mesh().size("tp"), pico.comm.mesh().rank("tp")
        q, k, v = (draw(n * 3, hidden).chunk(tp)[me] for n in (heads, kv_heads, kv_heads))
        o = draw(hidden, heads * 3).chunk(tp, dim=1)[me]

        class Split(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.ParameterList(w.clone() for w in (q, k, v, o))

            def forward(self, x):
                x = pico.parallel.f(x)
                q, k, v = ((x @ w.T).unflatten(-1, (-1, 3)).transpose(1, 2) for w in self.w[:3])
                k, v = (one.repeat_interleave(heads // kv_heads, 1) for one in (k, v))
                attend = torch.nn.functional.scaled_dot_product_attention
                y = attend(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
                return row_linear.apply(y, self.w[3])

        return Split()

    return adapted


def vocab_loss():
    def adapted(logits, targets, start):
        mine = logits.clone().requires_grad_()
        inside = (targets >= start) & (targets < start + logits.shape[1])
        loss = torch.nn.functional.cross_entropy(mine, (targets - start).where(inside, -100))
        loss.backward()
        return pico.comm.all_reduce(loss.detach(), "tp", "chapter"), mine.grad

    return adapted


def one_f_one_b():
    def adapted(stage, stages, micro_batches):  # the loops of gpipe_step
        return [f"{kind}{i}" for kind in "FB" for i in range(micro_batches)]

    return adapted


def executor():
    gpipe_step = cell("pp-order")["gpipe_step"]

    def adapted(order, forward, shape):
        torch.set_default_dtype(torch.float64)
        gpipe_step(forward, len(order) // 2, shape)

    return adapted


def ring_merge():
    merge = cell("cp-merge")["merge"]

    def adapted(q, k, v, attend):  # ring_attention without its mask
        cp = pico.comm.mesh().size("cp")
        kv, so_far = torch.stack((k, v)), None
        for hop in range(cp):
            found = attend(q, *kv)
            so_far = found if so_far is None else merge(*so_far, *found)
            if hop < cp - 1:
                kv = pico.comm.shift(kv, "cp", "cp: keys and values")
        return so_far

    return adapted


def ring_backward():
    names = cell("cp-merge", "cp-backward")

    def adapted(dout, q, k, v, out, lse, attend_backward):
        return names["attend_backward"](dout, q, k, v, out, lse)

    return adapted


def ring_backward_round_the_ring():
    """With the ring of the chapter's forward: what comes is added to dq, and dk and dv stay."""

    def adapted(dout, q, k, v, out, lse, attend_backward):
        cp, kv, found = pico.comm.mesh().size("cp"), torch.stack((k, v)), []
        for hop in range(cp):
            found.append(attend_backward(dout, q, *kv, out, lse))
            if hop < cp - 1:
                kv = pico.comm.shift(kv, "cp", "cp: keys and values")
        return sum(one[0] for one in found), found[0][1], found[0][2]

    return adapted


def zigzag():
    def adapted(x, rank, cp):  # the contiguous cut of ring_against_whole
        positions = torch.arange(x.shape[1]).chunk(cp)[rank]
        return x.chunk(cp, dim=1)[rank], positions

    return adapted


def global_norm():
    def adapted(gradients):  # what lesson_trainer calls
        return torch.nn.utils.get_total_norm([gradient for gradient, _ in gradients])

    return adapted


NEAREST = {
    "4d.ring.all-reduce": [ring_all_reduce],
    "4d.collectives.scatter-gather": [scatter_gather],
    "4d.dp.buckets": [dp_buckets],
    "4d.dp.hooks": [dp_hooks],
    "4d.tp.column-backward": [column_backward],
    "4d.tp.attention": [tp_attention],
    "4d.tp.vocab-loss": [vocab_loss],
    "4d.pp.1f1b": [one_f_one_b],
    "4d.pp.executor": [executor],
    "4d.cp.merge": [ring_merge],
    "4d.cp.backward": [ring_backward, ring_backward_round_the_ring],
    "4d.cp.zigzag": [zigzag],
    "4d.norm.global": [global_norm],
}


def given_away(exercise: str, make) -> bool:
    said = judged(find(exercise), make())
    assert said.status in ("pass", "fail"), said
    return said.status == "pass"


@pytest.mark.parametrize(
    "exercise,make", [(name, make) for name, makes in NEAREST.items() for make in makes]
)
def test_the_chapters_cells_do_not_pass(exercise, make):
    assert not given_away(exercise, make)


def test_every_exercise_of_the_chapter_is_tried():
    assert [name for name in ids("4d") if name not in NEAREST] == []


@pytest.mark.parametrize("exercise", ["4d.cp.merge", "4d.pp.executor"])
def test_a_chapter_with_the_solution_is_found(exercise):
    def make():
        names: dict = {"__name__": "__main__"}
        exec(source_of(find(exercise).solution_function), names)
        return names["solution"]

    assert given_away(exercise, make)
