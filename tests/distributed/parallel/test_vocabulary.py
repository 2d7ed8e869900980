"""The embedding and the loss, split along the vocabulary, equal the whole ones.

The wrong versions this file catches: a maximum over the own share only (each rank then subtracts
another number), no maximum at all (overflow), whole logits taken for a share (a loss off by log n,
Megatron-LM issue 7452), tokens out of range that silently become zero vectors, and ignored labels
that are counted.
"""

import pytest
import torch
import torch.nn.functional as F

import picolab as pico
from picolab import comm
from picolab.model import Embedding, Piece, initialise
from picolab.parallel import VocabularyParallelEmbedding, VocabularyParallelLoss


def case(trial, world):
    """Sizes, logits and labels of a trial: tiny and odd shares, some labels ignored, sometimes all,
    extreme logits.
    """
    generator = torch.Generator().manual_seed(trial)
    share, batch, seq = (int(torch.randint(1, 8, (), generator=generator)) for _ in range(3))
    vocab = share * world
    logits = torch.randn(batch, seq, vocab, dtype=torch.float64, generator=generator)
    labels = torch.randint(vocab, (batch, seq), generator=generator)
    labels[torch.rand(batch, seq, generator=generator) < 0.3] = -100
    if trial % 5 == 0:
        labels[:] = -100
    if trial % 4 == 0:
        logits *= 1e4  # exp would overflow without the maximum, and without the one over all ranks
    return vocab, logits, labels


def my_share(vocab):
    mesh = comm.mesh()
    share = vocab // mesh.size("tp")
    return mesh.rank("tp") * share, (mesh.rank("tp") + 1) * share


def losses(world, mutant=None):
    comm.build_mesh(f"tp{world}")
    reduce = comm.all_reduce

    def all_reduce(x, axis, reason, **options):
        if reason == "tp: cross entropy maximum":
            return x if mutant == "own maximum" else x.zero_()
        return reduce(x, axis, reason, **options)

    if mutant:
        comm.all_reduce = all_reduce
    worst = 0.0
    for trial in range(40):
        vocab, logits, labels = case(trial, world)
        start, stop = my_share(vocab)
        local = logits[..., start:stop].clone().requires_grad_()
        whole = logits.clone().requires_grad_()
        loss = VocabularyParallelLoss(vocab, start, stop)(local, labels)
        expected = F.cross_entropy(whole.flatten(0, 1), labels.flatten(), reduction="sum")
        (3 * loss).backward()
        (3 * expected).backward()
        difference = abs(float((loss - expected).detach())) / max(1.0, float(expected.detach()))
        gradient = (local.grad - whole.grad[..., start:stop]).abs().max()
        values = torch.stack([torch.tensor(difference, dtype=torch.float64), gradient])
        worst = max(worst, float(values.nan_to_num(nan=torch.inf).max()))
    return worst


@pytest.mark.parametrize("world", [2, 3])
def test_the_loss_equals_the_whole_one(world):
    # Each element is a handful of fp64 roundings away; gradients are at most 3.
    assert max(pico.run(losses, world, world_size=world)) < 1e-14


@pytest.mark.parametrize("mutant", ["own maximum", "no maximum"])
def test_mutants_of_the_maximum_are_caught(mutant):
    assert max(pico.run(losses, 2, mutant, world_size=2)) > 0.1


def against_loss_parallel():
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = comm.build_mesh("tp2")
    vocab, logits, labels = case(2, 2)
    start, stop = my_share(vocab)
    ours = logits[..., start:stop].clone().requires_grad_()
    loss = VocabularyParallelLoss(vocab, start, stop)(ours, labels)
    loss.backward()
    theirs = logits[..., start:stop].flatten(0, 1).clone().requires_grad_()
    with loss_parallel():
        shard = DTensor.from_local(theirs, mesh.device_mesh["tp"], [Shard(1)])
        other = F.cross_entropy(shard, labels.flatten(), reduction="sum")
        other.backward()
    gradient = (ours.grad.flatten(0, 1) - theirs.grad).abs().max()
    return abs(float(loss.detach()) - float(other.full_tensor().detach())), float(gradient)


def test_the_loss_equals_torchs_loss_parallel():
    for differences in pico.run(against_loss_parallel, world_size=2):
        assert max(differences) < 1e-13


def bf16_loss():
    """Computed in fp32, gradients back in bf16, payloads in fp32."""
    comm.build_mesh("tp2")
    _, logits, labels = case(2, 2)
    start, stop = my_share(logits.shape[-1])
    local = logits[..., start:stop].bfloat16().requires_grad_()
    loss = VocabularyParallelLoss(logits.shape[-1], start, stop)(local, labels)
    loss.backward()
    expected = F.cross_entropy(
        logits.bfloat16().float().flatten(0, 1), labels.flatten(), reduction="sum"
    )
    payloads = [(entry.dtype, entry.payload_bytes) for entry in comm.ledger().snapshot()]
    return float(loss.detach()), float(expected), local.grad.dtype, payloads, labels.numel()


def test_a_bf16_loss_is_computed_in_fp32():
    loss, expected, dtype, payloads, tokens = pico.run(bf16_loss, world_size=2)[0]
    assert loss == pytest.approx(expected, rel=1e-6)
    assert dtype == torch.bfloat16
    assert payloads == [("float32", 4 * tokens), ("float32", 8 * tokens)]


def embeddings():
    comm.build_mesh("tp2")
    piece = Piece("embed.weight", (14, 5))
    whole = initialise(Embedding(piece, torch.float64))
    split = initialise(VocabularyParallelEmbedding(Embedding(piece, torch.float64)))
    tokens = torch.tensor([[0, 6, 7, 13, 7], [7, 7, 13, 0, 1]])
    dy = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = split(tokens), whole(tokens)
    found.backward(dy)
    expected.backward(dy)
    gradient = comm.all_gather(split.weight.grad, "tp", "check")
    with pytest.raises(ValueError) as caught:
        split(torch.tensor([[3, 14]]))
    return torch.equal(found, expected), torch.equal(gradient, whole.weight.grad), str(caught.value)


def test_the_embedding_equals_the_whole_one():
    for same, same_gradient, sentence in pico.run(embeddings, world_size=2):
        assert same and same_gradient
        assert sentence == "token 14 is outside the vocabulary of 14 (0 to 13)"


def refused():
    comm.build_mesh("tp2")
    start, stop = my_share(8)
    loss, labels = VocabularyParallelLoss(8, start, stop), torch.zeros(1, 2, dtype=torch.long)
    sentences = []
    for logits, wrong in (
        (torch.zeros(1, 2, 8), labels),
        (torch.zeros(1, 2, 4), labels + 8),
        (torch.zeros(1, 2, 4), labels - 1),
    ):
        with pytest.raises(ValueError) as caught:
            loss(logits, wrong)
        sentences.append(str(caught.value))
    return sentences


def test_whole_logits_and_unknown_labels_are_refused():
    whole, above, below = pico.run(refused, world_size=2)[0]
    assert whole == "this loss wants a rank's share of the logits, 4 of 8, and was given 8"
    assert "token 8 is outside the vocabulary of 8" in above
    assert "token -1 is outside" in below
