"""ZeRO on the same numbers as one process, as the simple version, and as torch's own.

The oracle holds every stage against one process (tests/distributed/debug/test_oracle.py) and
test_formula_ledger.py every collective against the formula. Here: torch's twins, frozen, tied and
unused parameters, what is refused, memory, and that transfers overlap with computing.

The wrong versions this file catches, each run below: a shard whose border is a row off, a norm that
counts what shorter shards are padded with, a norm that counts replicated groups, gradients reduced
in every micro-batch, shards of a step that nobody fetched, a gather of stage 3 that is not freed.
"""

import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import picolab as pico
from picolab import comm, costs
from picolab.debug.faults import Fault, patched
from picolab.debug.oracle import verify_each
from picolab.model import Linear, Piece, Transformer
from picolab.parallel import naive_gather, naive_reduce, parallelize, three_d, zero_comm
from picolab.parallel.zero import ZeroOptimizer, cut_rows, rows_of
from picolab.specs import Layout, ModelConfig
from picolab.training.trainer import memory_bytes

CONFIG = ModelConfig(hidden=24, ffn=31, layers=3, heads=6, kv_heads=3, head_dim=4, vocab=29, seq=8)
STEPS, ACCUMULATE, ROWS = 3, 2, 6  # rows: sequences of a global micro-batch, for 1, 2 or 3 replicas


def batch(step, micro):
    generator = torch.Generator().manual_seed(100 * step + micro)
    data = torch.randint(CONFIG.vocab, (ROWS, CONFIG.seq + 1), generator=generator)
    labels = data[:, 1:].clone()
    for row in range(ROWS):
        labels[row, 1 + (3 * row) % CONFIG.seq :] = -100
    return data[:, :-1], labels


def adamw(parameters):
    return torch.optim.AdamW(list(parameters), lr=1e-2, eps=1e-5)


def freeze(model):
    """The table and one block: what comes behind has an input without a gradient."""
    for part in (model.embed, model.layers[1]):
        part.requires_grad_(False)


def train(layout, *, tied=False, frozen=False, look=lambda parallel: None):
    """Global names -> parameters after some steps, and the norms; on ranks, or alone."""
    layout = Layout.parse(layout)
    model = Transformer(CONFIG.replace(tied=tied), dtype=torch.float64)
    if frozen:
        freeze(model)
    parallel = parallelize(model, layout, seed=5, bucket_bytes=4000)
    optimizer, norms = adamw(parallel.parameters()), []
    for step in range(STEPS):
        both = [batch(step, micro) for micro in range(ACCUMULATE)]
        if layout.dp > 1:
            mine = comm.mesh().rank("dp")
            both = [[x.chunk(layout.dp)[mine] for x in of_micro] for of_micro in both]
        tokens, labels = (torch.stack(parts) for parts in zip(*both))
        parallel.zero_grad()
        parallel.forward_backward(tokens, labels)
        norms.append(parallel.clip(0.5))
        optimizer.step()
        parallel.after_step()
    look(parallel)
    memory = memory_bytes(parallel, optimizer)
    return parallel.state_dict(), norms, memory


def worst(found, right) -> float:
    (state, norms, *_), (whole, right_norms, *_) = found, right
    assert state.keys() == whole.keys()
    differences = [float((state[name] - whole[name]).norm() / whole[name].norm()) for name in whole]
    return max(*differences, *(abs(a - b) / b for a, b in zip(norms, right_norms, strict=True)))


# -- rows --


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 6))
def test_rows_of_stacked_pieces_are_dealt_out(sizes, n):
    pieces = [Piece(f"p{i}", (rows, 2)) for i, rows in enumerate(sizes)]
    total, seen = sum(sizes), {piece.name: [] for piece in pieces}
    if total == 0:
        return
    for index in range(n):
        cut, ends = cut_rows(pieces, "dp", index, n)
        assert ends[0] == 0 and ends[-1] == total and len(ends) == n + 1
        # Of the stack this rank has one range of rows, which its pieces' ranges make up.
        assert sum(piece.local_shape[0] for piece in cut) == ends[index + 1] - ends[index]
        for piece in cut:
            seen[piece.name] += list(piece.ranges[0])
    assert seen == {f"p{i}": list(range(rows)) for i, rows in enumerate(sizes)}


# -- the same numbers --

VARIANTS = [dict(), dict(tied=True), dict(frozen=True)]


def several(layouts):
    return {
        (layout, i): train(layout, **options)
        for layout in layouts
        for i, options in enumerate(VARIANTS)
    }


@pytest.fixture(scope="module")
def alone():
    return [train("dp1", **options) for options in VARIANTS]


@pytest.mark.parametrize("world", [2, 3])
def test_every_stage_equals_one_process(world, alone):
    """Untied, tied, and with frozen parameters (of which the norm's row is a row in three)."""
    layouts = [f"dp{world}zero{stage}" for stage in (1, 2, 3)]
    ranks = list(pico.run(several, layouts, world_size=world))
    for rank, found in enumerate(ranks):
        for (layout, i), result in found.items():
            assert worst(result, alone[i]) < 1e-12, (layout, VARIANTS[i])
            config, memory = CONFIG.replace(**{"tied": i == 1}), result[2]
            formula = costs.rank_states(config, layout, rank, dtype="fp64")
            if i == 2:  # frozen ones have no gradient and no moments
                assert memory["parameters"] == formula["parameters"]
                assert memory["optimizer"] < formula["optimizer"]
            else:
                assert {name: memory[name] for name in formula} == formula, (layout, rank)


def with_torch_and_naive(kind):
    """The same training: a plain loop around the simple version, or one of torch's own."""
    model = Transformer(CONFIG, device="cpu", dtype=torch.float64, seed=5)
    rank, n = comm.mesh().rank("dp"), comm.mesh().size("dp")
    count = [
        sum(int((batch(s, m)[1] != -100).sum()) for m in range(ACCUMULATE)) for s in range(STEPS)
    ]
    scale, sync = 1, nullcontext
    if kind == "naive":
        sharded = [rows_of(parameter, "dp") for parameter in model.parameters()]
        optimizer = adamw(of.shard for of in sharded)
    elif kind == "FSDP2":
        from torch.distributed.fsdp import fully_shard

        sizes = {id(m): m.sizes for m in model.modules() if isinstance(m, Linear)}
        Linear.sizes = property(lambda self: sizes[id(self)])  # FSDP2's parameters have no pieces
        for block in model.layers:
            fully_shard(block)
        fully_shard(model)
        optimizer, scale = adamw(model.parameters()), n  # it averages
    else:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), torch.optim.AdamW, lr=1e-2, eps=1e-5
        )
    for step in range(STEPS):
        model.zero_grad()
        for micro in range(ACCUMULATE):
            tokens, labels = (x.chunk(n)[rank] for x in batch(step, micro))
            with sync():
                logits = model(tokens)
                (scale * model.cross_entropy(logits, labels) / count[step]).backward()
        if kind == "naive":
            naive_reduce(sharded)
        elif kind != "FSDP2":
            for parameter in model.parameters():
                comm.all_reduce(parameter.grad, "dp", "test")
        if kind == "naive":
            square = sum(of.shard.grad.square().sum() for of in sharded)
            norm = comm.all_reduce(square, "dp", "test").sqrt()
            for of in sharded:
                of.shard.grad *= min(1.0, 0.5 / (float(norm) + 1e-6))
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if kind == "naive":
            naive_gather(sharded)
    if kind == "FSDP2":
        return {name: p.full_tensor().detach() for name, p in model.named_parameters()}
    return {name: p.detach() for name, p in model.named_parameters()}


def beside():
    ours = {}
    for stage in (1, 2, 3):
        state, *_ = train(f"dp2zero{stage}")
        model = Transformer(CONFIG, dtype=torch.float64)
        pico.model.load(model, state)
        ours[stage] = {name: p.detach() for name, p in model.named_parameters()}
    kinds = ("naive", "ZeroRedundancyOptimizer", "FSDP2")  # the last one changes the class
    return ours, {kind: with_torch_and_naive(kind) for kind in kinds}


def test_torchs_own_and_the_simple_version_do_the_same():
    for ours, others in pico.run(beside, world_size=2):
        for kind, right in others.items():
            for stage, found in ours.items():
                assert found.keys() == right.keys()
                for name in right:
                    off = float((found[name] - right[name]).norm() / right[name].norm())
                    assert off < 1e-12, (kind, stage, name, off)


# -- memory of stage 3, and what overlaps --


@dataclass
class Watched:
    """What happened while a step ran: (what, began, ended), and bytes of whole parameters."""

    spans: list
    whole: list


@contextmanager
def watched(model, of_zero):
    """Spans of the blocks' computing and of the collectives until they were complete, as torch's
    work says (not until somebody waited)."""
    from picolab.comm import collectives

    seen = Watched([], [])
    began = {}

    def timed(real, what):
        def call(*args, **kw):
            start, work = time.monotonic(), real(*args, **kw)
            if kw.get("async_op"):
                work.get_future().add_done_callback(
                    lambda _: seen.spans.append((what, start, time.monotonic()))
                )
            else:
                seen.spans.append((what, start, time.monotonic()))
            return work

        return call

    def live():
        seen.whole.append(sum(of.whole.untyped_storage().nbytes() for of in of_zero.sharded))

    for i, block in enumerate(model.layers):

        def begin(*_, key):
            began[key] = time.monotonic()
            live()

        def end(*_, key):
            seen.spans.append((key, began[key], time.monotonic()))

        block.attention.register_forward_pre_hook(lambda *a, i=i: begin(key=("forward", i)))
        block.mlp.register_forward_hook(lambda *a, i=i: end(key=("forward", i)))
        block.mlp.register_full_backward_pre_hook(lambda *a, i=i: begin(key=("backward", i)))
        block.attention.register_full_backward_hook(lambda *a, i=i: end(key=("backward", i)))
    with (
        patched(collectives, "_all_gather", timed(collectives._all_gather, "gather")),
        patched(collectives, "_reduce_scatter", timed(collectives._reduce_scatter, "scatter")),
        patched(collectives, "_all_reduce", timed(collectives._all_reduce, "reduce")),
    ):
        yield seen


def one_watched_step(stage, mutant=None):
    if mutant:
        mutant()
    config = CONFIG.replace(hidden=96, ffn=384, layers=4, seq=64, vocab=64)
    model = Transformer(config)
    parallel = parallelize(model, f"dp2zero{stage}", bucket_bytes=200_000)
    (of_zero,) = parallel.placements
    data = torch.randint(config.vocab, (1, 8, config.seq + 1))
    with watched(model, of_zero) as seen:
        parallel.forward_backward(data[..., :-1], data[..., 1:])
        seen.whole.append(sum(of.whole.untyped_storage().nbytes() for of in of_zero.sharded))
    return seen, config


def together(seen, what, phase):
    """Whether a collective and the computing of a block were ever under way at the same time."""
    compute = [s for s in seen.spans if s[0][0] == phase]
    sent = [s for s in seen.spans if s[0] == what]
    assert compute and sent
    return any(a < d and c < b for _, a, b in sent for _, c, d in compute)


def test_transfers_overlap_with_computing():
    for stage in (1, 3):
        for seen, _ in pico.run(one_watched_step, stage, world_size=2):
            assert together(seen, "scatter", "backward")
            if stage == 3:
                assert together(seen, "gather", "forward") and together(seen, "gather", "backward")


def one_after_the_other():
    """Mutant: every collective is waited for where it is started, as the simple version does."""
    for name in ("all_gather", "reduce_scatter"):
        real = getattr(comm, name)

        def waited(*args, real=real, async_op=False, **kw):
            return comm.Pending(None, real(*args, **kw), 0.0, ())

        setattr(comm, name, waited)


def never_freed():
    from picolab.parallel.zero_gather import Use

    Use.free = lambda self: None


def test_mutant_without_overlap_is_caught():
    for seen, _ in pico.run(one_watched_step, 3, one_after_the_other, world_size=2):
        assert not together(seen, "scatter", "backward")
        assert not together(seen, "gather", "backward")


def test_stage_three_has_one_use_whole_at_a_time():
    for seen, config in pico.run(one_watched_step, 3, world_size=2):
        assert max(seen.whole) <= costs.gathered_bytes(config, "dp2zero3") and max(seen.whole) > 0
        assert seen.whole[-1] == 0
    for seen, config in pico.run(one_watched_step, 3, never_freed, world_size=2):
        assert max(seen.whole) > costs.gathered_bytes(config, "dp2zero3") and seen.whole[-1] > 0


# -- what is refused, and parameters that are not used --


class Two(torch.nn.Module):
    """Used and unused parameters, with pieces, as any model of ours has them."""

    def __init__(self):
        super().__init__()
        for name in ("used", "now_and_then", "never"):
            parameter = torch.nn.Parameter(torch.ones(5, 2, dtype=torch.float64))
            parameter.pieces = (Piece(name, (5, 2)),)
            self.register_parameter(name, parameter)

    def forward(self, x, also):
        return (x @ self.used.T).sum() + (self.now_and_then.sum() if also else 0)


def unused(stage):
    me, model = comm.mesh().rank("dp"), Two()
    of_zero = ZeroOptimizer(model, "dp", stage, bucket_bytes=1, find_unused=True)
    x = torch.full((1, 2), 1.0 + me, dtype=torch.float64)
    model(x, also=me == 0).backward()
    of_zero.finish()
    grads = {of.shard.pieces[0].name: of.shard.grad for of in of_zero.sharded}
    refused = []
    try:
        model(x, also=True).backward()  # without zero_grad
    except RuntimeError as error:
        refused.append(str(error))
    of_zero.zero_grad()
    model(x, also=True).backward()
    try:
        model(x, also=True).backward()  # without no_sync
    except RuntimeError as error:
        refused.append(str(error))
    return grads, refused


def both_stages():
    return [unused(stage) for stage in (1, 2)]


def test_unused_parameters_and_what_is_refused():
    for rank, of_stages in enumerate(pico.run(both_stages, world_size=2)):
        rows = [3, 2][rank]
        for grads, refused in of_stages:
            assert torch.equal(grads["used"], torch.full((rows, 2), 3.0, dtype=torch.float64))
            assert torch.equal(grads["now_and_then"], torch.ones(rows, 2, dtype=torch.float64))
            assert grads["never"] is None
            assert "would be added to a sum" in refused[0]
            assert "a second backward before finish()" in refused[1]


# -- mutants: the oracle sees them --


@contextmanager
def border_off_by_one(layout):
    """The other ranks' rows begin one row too early: as many of them, the wrong ones."""

    def rows(self, tensor, index):
        start, stop = self.ends[index], self.ends[index + 1]
        return tensor[start - 1 : stop - 1] if index else tensor[start:stop]

    with patched(zero_comm.Sharded, "rows", rows):
        yield


@contextmanager
def norm_counts_the_padding(layout):
    """Of each whole gradient as many rows as the first rank has: the last of them are another
    rank's, and not even its sum."""
    of_layout, placements = {}, three_d.placements
    real = three_d.square_norm

    def remembered(*args):
        found = placements(*args)
        of_layout["zero"] = found[-1]
        return found

    def square_norm(parameters):
        for of in of_layout["zero"].sharded:
            missing = (of.numel(0) - of.numel(of.index)) // max(1, of.whole[:1].numel())
            if missing:
                start = of.ends[of.index] - missing
                of.shard.grad, kept = of.whole.grad[start : of.ends[of.index + 1]], of.shard.grad
                of.kept = kept
        total = sum(p.grad.double().square().sum() for p in parameters)
        for of in of_layout["zero"].sharded:
            of.shard.grad = of.__dict__.pop("kept", of.shard.grad)
        return comm.all_reduce(total, layout.shard_axis, f"{layout.shard_axis}: gradient norm")

    with patched(three_d, "placements", remembered), patched(three_d, "square_norm", square_norm):
        yield


@contextmanager
def norm_counts_every_rank(layout):
    """Squares are summed over all replicas, where groups of them hold the same shards."""
    real = three_d.square_norm

    def square_norm(parameters):
        return comm.all_reduce(real(parameters), "replica", "test")

    with patched(three_d, "square_norm", square_norm):
        yield


@contextmanager
def reduced_in_every_micro_batch(layout):
    with (
        patched(ZeroOptimizer, "no_sync", lambda self: nullcontext()),
        patched(ZeroOptimizer, "_arrived", arrive_and_finish(ZeroOptimizer._arrived)),
    ):
        yield


def arrive_and_finish(arrived):
    def each(self, parameter):
        slot = self._slots[parameter]
        slot.arrived, shard = False, self._of[parameter].shard
        before, shard.grad, slot.view = shard.grad, None, None
        arrived(self, parameter)
        shard.grad = before
        if all(slot.arrived for slot in self._slots.values()):
            self.finish()

    return each


@contextmanager
def nobody_fetches(layout):
    with patched(ZeroOptimizer, "after_step", lambda self: None):
        yield


MUTANTS = {
    "dp3zero1": [border_off_by_one, norm_counts_the_padding, nobody_fetches],
    "dp4zero2shard2": [border_off_by_one, norm_counts_every_rank],
    "dp2zero2": [reduced_in_every_micro_batch],
}


@pytest.mark.parametrize("layout", MUTANTS)
def test_mutants_are_caught_by_the_oracle(layout):
    faults = [Fault(m.__name__, "a mutant", "here", "dp", m) for m in MUTANTS[layout]]
    right, *wrong = verify_each(layout, [None, *faults], steps=2)
    assert right.ok, str(right)
    for fault, verdict in zip(faults, wrong, strict=True):
        assert not verdict.numbers_ok, fault.name
