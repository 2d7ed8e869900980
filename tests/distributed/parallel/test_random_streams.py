"""Dropout in parallel: the loss and the gradients are those of one process that is given the same
masks, in fp64.

Each rank notes what its dropouts multiply by; from the ranks' masks the whole ones are put
together, as activations are: along the heads, along the sequence under sp, or, where ranks hold the
same, they must be equal. The wrong versions this file catches, each run below: one stream for all
ranks (every shard of heads drops alike), and a stream of its own for every rank, also where they
hold the same tokens (replicas of one activation differ: the loss is no longer that of any mask).
"""

import pytest
import torch

import picolab as pico
from picolab import comm
from picolab.model import Dropout, Transformer
from picolab.parallel import parallelize, random_streams
from picolab.specs import Layout, ModelConfig

CONFIG = ModelConfig(hidden=24, ffn=32, layers=2, heads=4, kv_heads=2, head_dim=6, vocab=29, seq=8)
ROWS, P, SEED = 2, 0.3, 11
TOKENS, LABELS = torch.randint(29, (2, ROWS, 8), generator=torch.Generator().manual_seed(3))


def step(layout, mutant=None):
    """Loss, gradients and masks of one forward and backward pass of this rank's replica."""
    if mutant:
        mutant()
    layout = Layout.parse(layout)
    model = Transformer(CONFIG, dtype=torch.float64, dropout=P)
    parallel = parallelize(model, layout, seed=SEED)
    masks, real = [], Dropout.forward

    def noting(self, x):
        y = real(self, x)
        masks.append((self.cut_by_tp, (y / x).detach()))
        return y

    Dropout.forward = noting
    mine = slice(comm.mesh().rank("dp"), None, layout.dp)
    loss = parallel.forward_backward(TOKENS[None, mine], LABELS[None, mine])
    return float(loss), parallel.gradients(), masks, comm.mesh().coordinates


def given(masks, monkeypatch):
    """One process whose dropouts multiply by these, one after the other."""
    model = Transformer(CONFIG, dtype=torch.float64, dropout=P, device="cpu", seed=SEED)
    left = iter(masks)
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x * next(left))
    loss = model.loss(TOKENS, LABELS) / LABELS.numel()
    loss.backward()
    return float(loss.detach()), model


def whole_masks(ranks, layout):
    """From what the ranks multiplied by. None if ranks disagree where they hold the same."""
    found = []
    for i in range(len(ranks[0][2])):
        of_replicas = []
        for replica in range(layout.dp):
            line = [r for r in ranks if r[3]["dp"] == replica]
            parts = [masks[i][1] for _, _, masks, _ in sorted(line, key=lambda r: r[3]["tp"])]
            if line[0][2][i][0]:
                of_replicas.append(torch.cat(parts, dim=-1))
            elif layout.sp:
                of_replicas.append(torch.cat(parts, dim=1))
            elif all(torch.equal(part, parts[0]) for part in parts):
                of_replicas.append(parts[0])
            else:
                return None
        whole = torch.stack(of_replicas, dim=1)  # replica d has rows d, d + dp, ...
        found.append(whole.flatten(0, 1))
    return found


@pytest.mark.parametrize("layout", ["tp2", "tp2sp", "dp2tp2"])
def test_the_loss_is_that_of_one_process_with_the_same_masks(layout, monkeypatch):
    layout = Layout.parse(layout)
    ranks = list(pico.run(step, layout, world_size=layout.world))
    masks = whole_masks(ranks, layout)
    assert masks is not None
    dropped = torch.cat([mask.flatten() for mask in masks]).eq(0).double().mean()
    assert abs(float(dropped) - P) < 0.05
    # No two shards drop alike: of heads, and of the sequence or of replicas.
    pairs = zip(ranks[0][2], ranks[1][2])
    apart = [(a == 0, b == 0) for (cut, a), (_, b) in pairs if cut or layout.sp]
    assert apart and not any(torch.equal(a, b) for a, b in apart)
    loss, model = given(masks, monkeypatch)
    right = {
        piece.name: part
        for parameter in model.parameters()
        for piece, part in pico.model.slices(parameter, parameter.grad)
    }
    for found, gradients, *_ in ranks:
        assert found == pytest.approx(loss, rel=1e-12)
        for name, tensor in right.items():
            assert float((gradients[name] - tensor).norm() / tensor.norm()) < 1e-12, name


def one_stream():
    real = random_streams._generator
    random_streams._generator = lambda text, device: real(str(SEED), device)


def a_stream_for_every_rank():
    rank, real = torch.distributed.get_rank(), random_streams._generator
    random_streams._generator = lambda text, device: real(f"{text}/{rank}", device)


def test_mutants_are_caught():
    same = list(pico.run(step, "tp2", one_stream, world_size=2))
    cut = [(a, b) for (cut, a), (_, b) in zip(same[0][2], same[1][2]) if cut]
    assert cut and all(torch.equal(a == 0, b == 0) for a, b in cut)
    differ = list(pico.run(step, "tp2", a_stream_for_every_rank, world_size=2))
    assert whole_masks(differ, Layout.parse("tp2")) is None


def test_bad_input():
    with pytest.raises(ValueError, match="dropout is 1; it is a share, at least 0 and below 1"):
        Transformer(CONFIG, dropout=1)


def test_without_training_nothing_is_dropped():
    model = Transformer(CONFIG, dtype=torch.float64, dropout=P, device="cpu", seed=SEED).eval()
    plain = Transformer(CONFIG, dtype=torch.float64, device="cpu", seed=SEED)
    assert torch.equal(model(TOKENS), plain(TOKENS))
