"""Layers dealt out by what they cost, measured: with a large vocabulary the last stage gets fewer.

No time is asserted; which of two parts of very different size costs more is. Wrong versions these
catch: a head that is not counted, a measurement that keeps its gradients.
"""

import torch

import picolab as pico
from picolab import costs
from picolab.model import Transformer
from picolab.parallel import stage_costs
from picolab.parallel.stage_costs import StageCosts, measure
from picolab.specs import ModelConfig

WIDE = ModelConfig.preset("tiny").replace(layers=6, seq=32, vocab=20_000)


def test_a_large_head_takes_layers_from_its_stage():
    """The head is 20,000 x 128 numbers, a layer 250,000 in all: ten times as much."""
    found = measure(WIDE, micro_batch=2, rounds=3)
    assert len(found.layers) == 6 and 0 < found.embedding < found.head
    assert found.head > 2 * found.layers[0] > 0
    sizes = found.balanced(3)
    assert sum(sizes) == 6 and sizes[-1] == 1
    assert max(found.of(sizes)) <= max(found.of((2, 2, 2)))
    # Mutant: the head is not counted.
    assert found._replace(head=0.0, embedding=0.0).balanced(3) == (2, 2, 2)


def test_the_costs_of_a_division():
    found = StageCosts(0.5, (1.0, 1.0, 1.0, 1.0), 2.0)
    assert found.of((2, 2)) == [2.5, 4.0] and found.of((3, 1)) == [3.5, 3.0]
    assert found.balanced(2) == (3, 1)


def test_nothing_is_left_in_the_model():
    model = Transformer(WIDE.replace(vocab=50), device="cpu")
    stage_costs.measure_model(model, rounds=1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_division_by_hand_trains():
    """The layout that a measurement leads to, in two ranks."""
    sizes = StageCosts(0.0, (1.0,) * 4, 2.0).balanced(2)
    layout = pico.Layout(pp=2, stages=sizes)
    assert str(layout) == "pp2:1f1b/3-1"
    shape = {"layers": 4, "hidden": 32, "ffn": 32, "heads": 4, "kv_heads": 2, "seq": 16}
    run = pico.train(layout=layout, steps=1, accumulate=2, progress=False, **shape)
    held = [p.name for p in costs.local_parameters(run.config.model, layout, rank=0)]
    assert [name for name in held if "mlp.down" in name] == [
        f"layers.{i}.mlp.down.weight" for i in range(3)
    ]
    assert torch.isfinite(torch.tensor(run.losses[0]))
