"""Every schedule of the zoo, executed: it computes what one process computes, keeps what the
formula says, and gets the gradients that torch's own pipeline gets on the same stages.

Wrong versions these catch, kept below: a rank that takes messages as they come, a stage's result
sent on although the next stage is on the same rank, a W that is done before its B or never, a
product that tells autograd of a gradient it did not get, a B that keeps all until W.
"""

from collections import Counter

import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm, costs, schedules
from picolab.debug.oracle import verify_layouts
from picolab.launch import RankFailure
from picolab.model import Linear, Transformer, initialise, slices
from picolab.model.transformer import cross_entropy
from picolab.parallel import pipeline, split_backward
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.specs import Layout, ModelConfig

# -- against one process --------------------------------------------------------------------------

EXECUTED = ("gpipe", "1f1b", "interleaved", "interleaved-v3", "zb-h1", "zb-v", "dualpipe-v")
# Of layouts and schedules a set in which every pair occurs that has ways of its own: each schedule
# on two and on four ranks, each kind of placement with tp, sp, cp and dp inside, a W with each.
TWO = ["pp2:interleaved", "pp2:zb-h1", "pp2:zb-v", "pp2:dualpipe-v", "pp2:interleaved/1-2-1-3"]
FOUR = [
    *("pp4:interleaved", "pp4:zb-h1/1-3-1-2", "pp4:zb-v", "tp2pp2:interleaved", "tp2pp2:zb-h1"),
    *("tp2pp2sp:zb-v", "pp2cp2:zb-h1", "pp2cp2:interleaved", "dp2pp2:zb-h1", "dp2pp2:zb-v"),
]
AXES = ("pp2", "pp4", "tp2pp2", "tp2pp2sp", "pp2cp2", "dp2pp2")
ALL = [f"{axes}:{name}" for axes in AXES for name in EXECUTED]


def check_layouts(layouts, **options):
    """Each has a tied and an untied model, and stages that are not equally large."""
    for verdict in verify_layouts(layouts, **options):
        assert verdict.ok, str(verdict)
        assert {row.allowed for row in verdict.rows} == {1e-12}


@pytest.mark.parametrize("layouts", [TWO, FOUR])
def test_a_schedule_equals_one_process(layouts):
    check_layouts(layouts, steps=2)


@pytest.mark.weekly
@pytest.mark.parametrize("world", [2, 4, 8])
def test_every_schedule_with_every_axis_equals_one_process(world):
    eight = ["dp2tp2pp2:zb-h1", "tp2pp2cp2:zb-v/1-2-2-1", "tp2pp2cp2:interleaved", "tp2pp4sp:zb-v"]
    check_layouts([text for text in ALL + eight if Layout.parse(text).world == world])


# -- stages in a rank of ours ---------------------------------------------------------------------

SEQ, BATCH = 16, 2


def shape(layers, tied=False) -> ModelConfig:
    return ModelConfig.preset("tiny").replace(
        hidden=32, ffn=48, layers=layers, heads=4, kv_heads=2, vocab=40, seq=SEQ, tied=tied
    )


def batch(m):
    generator = torch.Generator().manual_seed(m)
    return (torch.randint(0, 40, (m, BATCH, SEQ), generator=generator) for _ in range(2))


def one_process(config, m):
    tokens, labels = batch(m)
    model = initialise(Transformer(config, dtype=torch.float64), 0)
    sum(model.loss(tokens[i], labels[i]) / labels.numel() for i in range(m)).backward()
    return {p.name: g for q in model.parameters() for p, g in slices(q, q.grad)}


def worst(ranks, right) -> float:
    return max(
        float((gradient - right[name]).norm() / right[name].norm())
        for gradients in ranks
        for name, gradient in gradients.items()
    )


def placed(name, layers, kind=PipelineParallelOptimizer, dtype=torch.float64):
    """A pipeline on this rank, and its model."""
    if not dist.is_initialized() or comm.mesh().layout.pp != dist.get_world_size():
        comm.build_mesh(f"pp{dist.get_world_size()}")
    model = Transformer(shape(layers), dtype=dtype)
    return kind(model, schedule=name), initialise(model, 0)


def gradients_of(name, m, layers=5, change=None, breaks=None):
    """This rank's gradients under a schedule; `change` alters its rows, `breaks` the code."""
    with (breaks or _nothing)():
        placed_pipeline, model = placed(name, layers)
        schedule = schedules.make(name, dist.get_world_size(), m)
        if change:
            rows = [change(rank, list(row)) for rank, row in enumerate(schedule.actions)]
            schedule = schedules.Schedule(name, schedule.stages, m, rows, schedule.placement)
        tokens, labels = batch(m)
        placed_pipeline.run(schedule, tokens, labels, labels.numel())
    return {p.name: g.clone() for q in model.parameters() for p, g in slices(q, q.grad)}


# -- mutants --------------------------------------------------------------------------------------


def _nothing():
    return pytest.MonkeyPatch.context()


def as_they_come():
    """Messages are taken in the order in which they are needed, not in which they were sent."""
    patch = pytest.MonkeyPatch()

    def take(self, action, tokens_BS):
        source = self.stage_ranks[action.stage]
        if source == self.rank:
            return self._here.pop(action)
        return comm.recv(self._buffer(tokens_BS), source, self.axis, "pp: activations")

    patch.setattr(PipelineParallelOptimizer, "_take", take)
    return _until_exit(patch)


def the_fold_is_not_seen():
    """The result goes to the next rank although the next stage is on this one."""
    patch = pytest.MonkeyPatch()

    def give(self, action, result, target):
        to = (self.rank + 1) % self.ranks if action.kind == "F" else (self.rank - 1) % self.ranks
        pending = comm.send(result.detach(), to, self.axis, "pp: activations", async_op=True)
        self._sending.append((pending, result))

    patch.setattr(PipelineParallelOptimizer, "_give", give)
    return _until_exit(patch)


def w_forgets_one():
    patch, real = pytest.MonkeyPatch(), split_backward.compute
    patch.setattr(split_backward, "compute", lambda left: real(left[1:]))
    return _until_exit(patch)


def _until_exit(patch):
    from contextlib import contextmanager

    @contextmanager
    def undone():
        try:
            yield
        finally:
            patch.undo()

    return undone()


def w_first(rank, row):
    place = next(i for i, a in enumerate(row) if a.kind == "W")
    return [row[place], *row[:place], *row[place + 1 :]]


def w_missing(rank, row):
    return row[:-1] if rank else row


def another_order(rank, row):
    """The last rank believes that the first sends every second micro-batch before its neighbour.
    (If that were so, it would get by: it takes messages in the order of the schedule.)"""
    believed = dist.get_rank() == 1 and rank == 0
    return [a._replace(micro_batch=a.micro_batch ^ 1) for a in row] if believed else row


def test_mutants_are_caught():
    right = one_process(shape(5), 4)

    def ok(*args, **kwargs):
        return worst(pico.run(gradients_of, *args, world_size=2, quiet=True, **kwargs), right)

    for name in ("interleaved", "zb-h1", "zb-v"):
        assert ok(name, 4) < 1e-12
    # Of these, ZB-V on two ranks is the one in which what is needed first is not sent first.
    assert ok("zb-v", 4, breaks=as_they_come) > 1e-3
    assert ok("zb-h1", 4, breaks=w_forgets_one) > 1e-3
    assert ok("zb-h1", 4, change=w_missing) > 1e-3
    assert ok("1f1b", 4, change=another_order) > 1e-3
    for name, wrong in (
        ("zb-h1", {"change": w_first}),
        ("zb-v", {"breaks": the_fold_is_not_seen}),
    ):
        with pytest.raises(RankFailure):
            ok(name, 4, **wrong)


def test_w_is_no_arrival_before_its_time(monkeypatch):
    """Were the weight an input of the split product, autograd would say that its gradient has
    arrived, with B; buckets would go, and W come too late."""

    def arrivals(as_input):
        heard = Counter()
        later = split_backward.LaterWeightGradients()
        linear = initialise(Transformer(shape(1)), 0).layers[0].mlp.down
        linear.weight.register_post_accumulate_grad_hook(lambda p: heard.update(["arrived"]))
        x = torch.randn(2, 3, 48, requires_grad=True)
        if as_input:
            y = WeightAsInput.apply(x, linear.weight, later._left)
        else:
            y = later.product(x, linear.weight)
        y.sum().backward()
        before = heard["arrived"]
        split_backward.compute(later.take())
        whole = torch.autograd.grad(linear(x).sum(), linear.weight)[0]
        assert torch.equal(linear.weight.grad, whole)
        return before, heard["arrived"]

    assert arrivals(as_input=False) == (0, 1)
    assert arrivals(as_input=True) == (1, 2)


class WeightAsInput(torch.autograd.Function):
    """The mutant of `_SplitLinear`."""

    @staticmethod
    def forward(ctx, x, weight, left):
        ctx.save_for_backward(x)
        ctx.weight, ctx.left = weight, left
        return torch.nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        ctx.left.append(split_backward.Left(ctx.weight, x, dy))
        return dy @ ctx.weight, None, None


# -- bytes ----------------------------------------------------------------------------------------


class Bytes:
    """Live bytes of what autograd keeps for backward and of what B keeps for W, each memory once;
    parameters, the batch and the rotary tables, which are there anyway, do not count."""

    def __init__(self, model, *batch):
        self.fixed = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *batch)}
        self.rotary, self.boxes = model.rotary, set()

    def pack(self, tensor):
        box = Box(tensor, self.boxes)
        self.boxes.add(id(box))
        LIVE[id(box)] = tensor
        return box

    def now(self, left) -> int:
        kept = [LIVE[i] for i in self.boxes] + [t for one in left for t in (one.x, one.dy)]
        tables = {
            t.untyped_storage().data_ptr() for pair in self.rotary._cache.values() for t in pair
        }
        found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        return sum(n for at, n in found.items() if at not in self.fixed | tables)


LIVE: dict[int, torch.Tensor] = {}


class Box:
    def __init__(self, tensor, boxes):
        self.tensor, self.boxes = tensor, boxes

    def __del__(self):
        self.boxes.discard(id(self))
        LIVE.pop(id(self), None)


class Watched(PipelineParallelOptimizer):
    """Notes the live bytes at the end of every action."""

    seen: list[int]
    bytes: Bytes

    def _free_what_was_sent(self, wait=False):
        super()._free_what_was_sent(wait)
        if not wait:
            self.seen.append(self.bytes.now([one for left in self._left.values() for one in left]))


def bytes_of(name, m, layers):
    """Live bytes after each action of this rank."""
    watched, model = placed(name, layers, Watched, torch.float32)
    tokens, labels = batch(m)
    watched.seen, watched.bytes = [], Bytes(model, tokens, labels)
    schedule = schedules.make(name, dist.get_world_size(), m)
    with torch.autograd.graph.saved_tensors_hooks(watched.bytes.pack, lambda box: box.tensor):
        watched.run(schedule, tokens, labels, 100)
    return watched.seen


def predicted(row, seen):
    """Live bytes after each action, from two numbers a stage: what a micro-batch keeps between F
    and B, read off the stage's first F, and what between B and W, off its first B."""
    kept, left, now, found = {}, {}, 0, []
    last = "W" if any(a.kind == "W" for a in row) else "B"
    for action, after in zip(row, seen):
        stage = action.stage
        if action.kind == "F":
            now += kept.setdefault(stage, after - now)
        elif action.kind == "B":
            now -= kept[stage]
            if last == "W":
                now += left.setdefault(stage, after - now)
        else:
            now -= left[stage]
        found.append(now)
    assert now == 0
    return found, kept, left


def check_bytes(ranks, name, m):
    schedule = schedules.make(name, len(ranks), m)
    for rank, (row, seen) in enumerate(zip(schedule.actions, ranks)):
        found, kept, left = predicted(row, seen)
        assert found == seen, (name, rank)
        most = costs.in_flight(name, len(ranks), m, rank)
        if len(set(kept.values())) == 1:  # all of the rank's stages are alike
            (each,) = set(kept.values())
            if left:
                assert 0 < max(left.values()) < each and max(seen) <= most * each
            else:
                assert max(seen) == most * each
        assert max(seen) <= most * max(kept.values())
    return ranks


def test_bytes_of_live_micro_batches():
    """To the byte, after every action: a number a micro-batch and stage. So the peak is the
    formula's count of micro-batches times the bytes of one."""
    m, layers = 8, 8

    def all_of(names):
        return [bytes_of(name, m, layers) for name in names]

    names = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")
    ranks = pico.run(all_of, names, world_size=4, quiet=True)
    peaks = {}
    for i, name in enumerate(names):
        of = check_bytes([rank[i] for rank in ranks], name, m)
        peaks[name] = [max(seen) for seen in of]
    # The second rank has neither embedding nor head: 8, 3, 9 halves, and 4, some waiting for W.
    one = peaks["gpipe"][1] / 8
    assert peaks["1f1b"][1] == 3 * one and peaks["interleaved"][1] == 9 * one / 2
    assert 3 * one < peaks["zb-h1"][1] < 4 * one
    # Mutant: the count of another rank.
    with pytest.raises(AssertionError):
        check_bytes([ranks[0][1]] * 4, "1f1b", m)


# -- torch's own ----------------------------------------------------------------------------------

TWINS = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zb-h1": "ScheduleInterleavedZeroBubble",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}
SINGLE = ("gpipe", "1f1b")


def torchs_gradients(name, m, layers):
    """This rank's gradients, by torch's schedule of that name on our stages."""
    from torch.distributed import pipelining

    ours, model = placed(name, layers)
    _rank, total = dist.get_rank(), len(ours.stage_ranks)
    stages = [
        pipelining.PipelineStage(ours._stage_model(stage), stage, total, torch.device("cpu"))
        for stage in ours.stages
    ]
    schedule = getattr(pipelining, TWINS[name])(
        stages[0] if name in SINGLE else stages, n_microbatches=m, loss_fn=mean_loss
    )
    tokens, labels = (whole.flatten(0, 1) for whole in batch(m))
    given = (tokens,) if ours.first else ()
    schedule.step(*given, **({"target": labels} if ours.last else {}))
    return {p.name: g.clone() for q in model.parameters() for p, g in slices(q, q.grad)}


def mean_loss(logits_BSV, labels_BS):
    return cross_entropy(logits_BSV, labels_BS) / labels_BS.numel()


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.weekly)])
def test_equal_to_torchs_own_schedules(ranks):
    m, layers = 2 * ranks, 2 * ranks + 1

    def both():
        found = []
        for name in TWINS:
            found.append((gradients_of(name, m, layers), torchs_gradients(name, m, layers)))
        return found

    right = one_process(shape(layers), m)
    of_ranks = pico.run(both, world_size=ranks, quiet=True)
    for i, name in enumerate(TWINS):
        for ours, theirs in (rank[i] for rank in of_ranks):
            assert ours.keys() == theirs.keys()
            assert worst([ours], theirs) < 1e-12, name
            assert worst([theirs], right) < 1e-12, name


# -- in the trainer -------------------------------------------------------------------------------


def train(layout, **more):
    """Three steps on five layers, tied, in fp64."""
    shape = {"layers": 5, "hidden": 32, "ffn": 32, "heads": 4, "kv_heads": 2, "seq": 16}
    about = {"steps": 3, "accumulate": 4, "micro_batch": 2, "dtype": "fp64", "eps": 1e-5}
    return pico.train(layout=layout, tied=True, progress=False, **shape, **about, **more)


def test_a_run_tells_its_spans_evaluates_and_goes_on_under_another_schedule(tmp_path):
    """Two stages a rank in `pico.train`: spans by rank, held-out text, and a checkpoint that was
    written with stages there and back is read round and round."""
    run = train("pp2:zb-v", eval_every=1, checkpoint=tmp_path / "ck", save_every=2, keep=5)
    timeline = run.timeline()
    assert timeline.ranks == 2 and timeline.kinds == "FBW" and timeline.micro_batches == 4
    assert timeline.peak_in_flight == tuple(costs.in_flight("zb-v", 2, 4, r) for r in (0, 1))
    alone = train("dp1", eval_every=1)
    assert run.losses == pytest.approx(alone.losses, rel=1e-12)
    assert run.eval_losses == pytest.approx(alone.eval_losses, rel=1e-12)
    later = train("pp2:interleaved/1-1-2-1", eval_every=1, resume=tmp_path / "ck" / "step-2")
    assert later.losses == pytest.approx(alone.losses[2:], rel=1e-12)


def test_a_schedule_of_other_places_is_refused():
    def wrong():
        ours, _ = placed("zb-v", 5)
        tokens, labels = batch(4)
        ours.run(schedules.make("interleaved", 2, 4), tokens, labels, 1)

    with pytest.raises(
        RankFailure, match="stages on ranks 0 1 0 1, and the axis pp on ranks 0 1 1"
    ):
        pico.run(wrong, world_size=2, quiet=True)


def test_a_linear_splits_only_while_the_schedule_does():
    def products():
        ours, model = placed("zb-h1", 5)
        tokens, labels = batch(4)
        found = []
        for name in ("zb-h1", "1f1b"):
            ours.run(schedules.make(name, 2, 4), tokens, labels, 1)
            found += {m.product.splits for m in model.modules() if isinstance(m, Linear)}
        return found

    assert pico.run(products, world_size=2, quiet=True)[0] == [True, False]
    assert pipeline.__doc__ and "W  compute" in pipeline.__doc__
