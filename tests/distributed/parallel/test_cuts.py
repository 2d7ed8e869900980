"""A parameter that is cut over two axes at once: dims 0 and 1, and the same dim twice.

No layout makes these yet (expert and tensor parallelism will, and ZeRO with either); what reads
pieces must be right before. Sizes do not divide, and one parameter is two stacked pieces.

The wrong versions this file catches: cuts undone in the order in which they were made, a norm that
sums over the first cut's axis only, a checkpoint that knows the first cut only.
"""

import pytest
import torch
from torch import nn

import picolab as pico
from picolab import comm
from picolab.model import Piece, initialise, slices
from picolab.model.parameters import Cut, draw, meta_parameter
from picolab.parallel import whole
from picolab.training import Text, TrainConfig, checkpoint

LAYOUT = "dp2tp2"
# name -> pieces' shapes, and the cuts: (axis, dim) one after the other
CASES = {
    "dims 0 and 1": ([(5, 7)], [("dp", 0), ("tp", 1)]),
    "dims 1 and 0": ([(5, 7)], [("dp", 1), ("tp", 0)]),
    "dim 0 twice": ([(11, 3)], [("tp", 0), ("dp", 0)]),
    "dim 1 twice": ([(3, 9)], [("dp", 1), ("tp", 1)]),
    "stacked": ([(7, 6), (9, 6)], [("tp", 0), ("dp", 0)]),
    "a rank with nothing": ([(3, 2)], [("tp", 0), ("dp", 0)]),
    "evenly, dim 0 twice": ([(8, 3)], [("tp", 0), ("dp", 0)]),
    "once": ([(6, 5)], [("tp", 1)]),
    "never": ([(4, 4)], []),
}


class Holder(nn.Module):
    def __init__(self, cases=CASES):
        super().__init__()
        mesh = comm.mesh()
        for name, (shapes, cuts) in cases.items():
            pieces = [Piece(f"{name}/{i}", shape) for i, shape in enumerate(shapes)]
            for axis, dim in cuts:
                index, n = mesh.rank(axis), mesh.size(axis)
                pieces = [piece.shard(axis, dim, index, n) for piece in pieces]
            self.register_parameter(name, meta_parameter(tuple(pieces), torch.float64))


def expected():
    return {
        f"{name}/{i}": draw(Piece(f"{name}/{i}", shape), 3).double()
        for name, (shapes, _) in CASES.items()
        for i, shape in enumerate(shapes)
    }


def held_and_gathered(mutant=None):
    comm.build_mesh(LAYOUT)
    holder = initialise(Holder(), seed=3)
    for parameter in holder.parameters():
        parameter.grad = parameter.detach().clone()
    if mutant:
        mutant()
    return (
        {piece.name: piece for p in holder.parameters() for piece, _ in slices(p)},
        whole.gather_all(holder.parameters(), torch.Tensor.detach, "check"),
        float(whole.square_norm(holder.parameters())),
        [tuple(entry) for entry in comm.ledger().snapshot().where(reason="tp: gradient norm")],
    )


def test_what_is_cut_twice_is_initialised_gathered_and_counted_once():
    right, ranks = expected(), pico.run(held_and_gathered, world_size=4)
    square = sum(float(tensor.square().sum()) for tensor in right.values())
    for pieces, gathered, norm, entries in ranks:
        assert gathered.keys() == right.keys()
        assert all(torch.equal(gathered[name], right[name]) for name in right)
        assert norm == pytest.approx(square, rel=1e-14)
        assert len(entries) == 1  # all that is cut along an axis travels together
        assert pieces["dim 0 twice/0"].axes == {"dp", "tp"}
    for name, tensor in right.items():  # each element is somewhere, and the pieces are rectangles
        held = [pieces[name] for pieces, *_ in ranks]
        sizes = {piece.ranges: piece.take(tensor).numel() for piece in held}
        assert sum(sizes.values()) == tensor.numel(), name


def first_cut_first():
    real = whole.gather

    def gather(piece, part, reason):
        if not piece.name.startswith("evenly"):  # where sizes differ, torch would object
            return real(piece, part, reason)
        for cut in piece.cuts:
            part = comm.all_gather(part.contiguous(), cut.axis, reason, dim=cut.dim)
        return part

    whole.gather = gather


def norm_over_the_first_axis():
    axes = property(lambda piece: frozenset({cut.axis for cut in piece.cuts[:1]}))
    Piece.axes = axes


def test_wrong_versions_are_caught():
    right = expected()
    square = sum(float(tensor.square().sum()) for tensor in right.values())
    _, gathered, _, _ = pico.run(held_and_gathered, first_cut_first, world_size=4)[0]
    wrong = {name for name in right if not torch.equal(gathered[name], right[name])}
    assert wrong == {"evenly, dim 0 twice/0"}
    _, _, norm, _ = pico.run(held_and_gathered, norm_over_the_first_axis, world_size=4)[0]
    assert abs(norm - square) > 0.01 * square


CONFIG = TrainConfig(layout=LAYOUT, data="random", steps=5)


def saved_and_loaded(folder, mutant=None):
    """Saved as above; loaded into parameters that are cut in another way."""
    if mutant:
        mutant()
    comm.build_mesh(LAYOUT)
    holder, text = initialise(Holder(), seed=3), Text("random", seq=8)
    optimizer = torch.optim.AdamW(holder.parameters())
    for parameter in holder.parameters():
        state = {"exp_avg": 2 * parameter.detach(), "exp_avg_sq": parameter.detach() ** 2}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **state}
    path = checkpoint.save(folder, 1, optimizer, text, CONFIG)
    comm.barrier("world", "it is renamed")

    swapped = {"dp": "tp", "tp": "dp"}
    cases = {
        name: (shapes, [(swapped[axis], 1 - dim) for axis, dim in cuts])
        for name, (shapes, cuts) in CASES.items()
        if name != "stacked"
    }
    cases["stacked"] = (CASES["stacked"][0], [("dp", 0)])
    other = initialise(Holder(cases), seed=4)
    again = torch.optim.AdamW(other.parameters())
    checkpoint.restore(path, again, text, CONFIG)
    moments = {p: again.state[p]["exp_avg"] for p in other.parameters()}
    return (
        whole.gather_all(other.parameters(), torch.Tensor.detach, "check"),
        whole.gather_all(other.parameters(), moments.__getitem__, "check"),
    )


def test_saved_in_one_cut_and_loaded_in_another(tmp_path):
    right = expected()
    for values, moments in pico.run(saved_and_loaded, tmp_path, world_size=4):
        assert all(torch.equal(values[name], right[name]) for name in right)
        assert all(torch.equal(moments[name], 2 * right[name]) for name in right)


def the_last_cut_only():
    """Where a rectangle begins, as somebody would write it who knows of one cut."""
    from picolab.training import checkpoint_plan

    real = checkpoint_plan.Part

    class Part(real):
        def __init__(self, values, shape, offsets):
            last = max(range(len(offsets)), key=lambda dim: offsets[dim], default=0)
            super().__init__(
                values, shape, tuple(o if dim == last else 0 for dim, o in enumerate(offsets))
            )

    checkpoint_plan.Part = Part


def test_a_checkpoint_that_knows_one_cut_is_caught(tmp_path):
    with pytest.raises(pico.RankFailure):  # DCP sees that the parts do not make up the tensor
        pico.run(saved_and_loaded, tmp_path, the_last_cut_only, world_size=4)


def test_a_cut_says_who_has_what():
    cut = Cut("tp", 0, (2, 5, 7), 1)
    assert (cut.start, cut.stop, cut.sizes) == (5, 7, [3, 2])
