"""ZeRO on the same numbers as one process, as the simple version, and as torch's own.

The oracle holds every stage against one process (tests/distributed/debug/test_oracle.py) and
test_formula_ledger.py every collective against the formula. Here: torch's twins, frozen, tied and
unused parameters, what is refused, memory, and that transfers overlap with computing.

The wrong versions this file catches, each run below: a norm that counts what shorter shards are
padded with, transfers that are waited for at once, a gather of stage 3 that is not freed. Those
that are faults of the catalogue, such as a border that is a row off, gradients reduced in every
micro-batch, a norm that counts copies, are caught in tests/distributed/debug/test_faults.py.
"""

import sys
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
from picolab.monitoring import wire
from picolab.parallel import naive_gather, naive_reduce, parallelize, three_d
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
    """What happened while a step ran."""

    computing: list  # (phase, began, ended) of each block
    travelling: list  # (what, started, waited for)
    whole: list  # bytes of whole parameters, whenever a block begins
    sent_beside: int = 0  # bytes that the kernel sent while no call of ours was sending or waiting
    sent: int = 0


def whole_bytes(of_zero) -> int:
    """Of the parameters that are whole right now; those of one use share a memory."""
    memories = [of.whole.untyped_storage() for of in of_zero.sharded]
    return sum({memory.data_ptr(): memory.nbytes() for memory in memories}.values())


@contextmanager
def watched(model, of_zero):
    seen, began = Watched([], [], []), {}
    last = first = wire.bytes_sent() or 0

    def enters():
        seen.sent_beside += (wire.bytes_sent() or 0) - last

    def leaves():
        nonlocal last
        last = wire.bytes_sent() or 0

    def noted(real, what):
        def call(*args, **kw):
            enters()
            start, pending = time.monotonic(), real(*args, **kw)
            leaves()
            if not kw.get("async_op"):
                return pending
            if pending._works is None:  # waited for already
                seen.travelling.append((what, start, time.monotonic()))
            wait = pending.wait

            def waited():
                if pending._works:
                    seen.travelling.append((what, start, time.monotonic()))
                enters()
                result = wait()
                leaves()
                return result

            pending.wait = waited
            return pending

        return call

    def begin(key):
        began[key] = time.monotonic()
        seen.whole.append(whole_bytes(of_zero))

    def end(key):
        seen.computing.append((key[0], began[key], time.monotonic()))

    for i, block in enumerate(model.layers):
        block.attention.register_forward_pre_hook(lambda *_, i=i: begin(("forward", i)))
        block.mlp.register_forward_hook(lambda *_, i=i: end(("forward", i)))
        block.mlp.register_full_backward_pre_hook(lambda *_, i=i: begin(("backward", i)))
        block.attention.register_full_backward_hook(lambda *_, i=i: end(("backward", i)))
    with (
        patched(comm, "all_gather", noted(comm.all_gather, "gather")),
        patched(comm, "reduce_scatter", noted(comm.reduce_scatter, "scatter")),
    ):
        yield seen
    seen.sent = (wire.bytes_sent() or 0) - first


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
        seen.whole.append(whole_bytes(of_zero))
    return seen, config


def together(seen, what, phase):
    """How many collectives were under way while some block computed from its begin to its end."""
    return sum(
        any(start < began and ended < waited for p, began, ended in seen.computing if p == phase)
        for kind, start, waited in seen.travelling
        if kind == what
    )


def one_after_the_other():
    """Mutant: every collective is waited for where it is started, as the simple version does."""
    for name in ("all_gather", "reduce_scatter"):
        real = getattr(comm, name)

        def at_once(*args, real=real, async_op=False, **kw):
            return comm.Pending(None, real(*args, **kw), 0.0, ())

        setattr(comm, name, at_once)


def test_transfers_overlap_with_computing():
    """By the spans, which follow from the order of things; and by the kernel's count of what left
    while this process was neither sending nor waiting, against a mutant that waits at once."""
    share = {}
    for stage, mutant in ((1, None), (3, None), (3, one_after_the_other)):
        ranks = [seen for seen, _ in pico.run(one_watched_step, stage, mutant, world_size=2)]
        for seen in ranks:
            kinds = [("scatter", "backward"), ("gather", "forward"), ("gather", "backward")]
            of_kind = [together(seen, *kind) for kind in kinds[: 1 if stage == 1 else 3]]
            assert max(of_kind) == 0 if mutant else min(of_kind) >= 2, (stage, mutant, of_kind)
        sent = sum(seen.sent for seen in ranks)
        share[stage, mutant] = sum(seen.sent_beside for seen in ranks) / max(1, sent)
    if sys.platform == "linux":
        assert min(share[1, None], share[3, None]) > 2 * share[3, one_after_the_other], share


def never_freed():
    from picolab.parallel.zero_gather import Use

    Use.free = lambda self: None


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
    both = ((of.shard.pieces[0].name, of.shard.grad) for of in of_zero.sharded)
    grads = {name: None if grad is None else grad.clone() for name, grad in both}
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


# -- a mutant that the oracle sees; others are in the catalogue of faults (debug/zero_faults.py) --


@contextmanager
def norm_counts_the_padding(layout):
    """Of each gradient as many rows as the first rank has: what a shorter shard is padded with is
    another rank's, and not even its sum."""
    of_layout, placements = {}, three_d.placements

    def remembered(*args):
        found = placements(*args)
        of_layout["zero"] = found[-1]
        return found

    def square_norm(parameters):
        total = torch.zeros((), dtype=torch.float64)
        for of in of_layout["zero"].sharded:
            missing = of.ends[1] - (of.ends[of.index + 1] - of.ends[of.index])
            padded = of.whole.grad[of.ends[of.index] - missing : of.ends[of.index]]
            total += of.shard.grad.double().square().sum() + padded.double().square().sum()
        return comm.all_reduce(total, layout.shard_axis, f"{layout.shard_axis}: gradient norm")

    with patched(three_d, "placements", remembered), patched(three_d, "square_norm", square_norm):
        yield


def test_mutant_that_counts_the_padding_is_caught_by_the_oracle():
    fault = Fault("padding", "a mutant", "here", "zero", norm_counts_the_padding)
    right, wrong = verify_each("dp3zero1", [None, fault], steps=2)
    assert right.ok and not wrong.numbers_ok, str(right)
    assert wrong.cause.where == "the gradient norm", str(wrong)
