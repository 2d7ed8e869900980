"""Frozen parameters under pp: a stage without any gradient, a tied embedding without one.

Wrong versions these catch: a first stage that runs backward through nothing, a tied embedding whose
missing gradient is sent, a frozen parameter that moves after all.
"""

import pytest
import torch

import picolab as pico
from picolab import comm
from picolab.model import Transformer
from picolab.parallel import parallelize
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.specs import Layout, ModelConfig
from picolab.training.one_thread import one_thread

CONFIG = ModelConfig(hidden=16, ffn=24, layers=4, heads=2, kv_heads=1, vocab=20, seq=8)
STEPS, MICRO_BATCHES = 2, 4
WHAT = {
    "tied embedding": lambda model: [model.embed],
    "first stage": lambda model: [model.embed, *model.layers[:2]],
    "last stage": lambda model: [*model.layers[2:], model.norm, model.head],
    "middle": lambda model: [model.layers[1]],
}
CASES = [
    ("pp2", "tied embedding", True),
    ("pp2", "first stage", True),
    ("pp2", "first stage", False),
    ("pp2", "last stage", False),
    ("pp2:zb-h1", "first stage", False),
    ("pp2:zb-v", "middle", True),
]


def train(layout, what, tied):
    layout = Layout.parse(layout)
    model = Transformer(CONFIG.replace(tied=tied), dtype=torch.float64)
    for part in WHAT[what](model):
        part.requires_grad_(False)
    parallel = parallelize(model, layout, seed=5, bucket_bytes=4000)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2, eps=1e-5)
    norms = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        data = torch.randint(20, (MICRO_BATCHES, 2, CONFIG.seq + 1), generator=generator)
        if layout.dp > 1:
            data = data.chunk(layout.dp, dim=1)[comm.mesh().rank("dp")]
        parallel.zero_grad()
        loss = parallel.forward_backward(data[..., :-1], data[..., 1:])
        norms += [float(loss), parallel.clip(0.5)]
        optimizer.step()
        parallel.after_step()
    return parallel.state_dict(), norms


def each(cases):
    return [train(*case) for case in cases]


@one_thread()
def assert_equal_to_one_process(cases):
    for case, (state, norms) in zip(cases, pico.run(each, cases, world_size=world(cases))[0]):
        right, right_norms = train("dp1", *case[1:])
        off = [abs(a - b) / b for a, b in zip(norms, right_norms, strict=True)]
        off += [float((state[n] - whole).norm() / whole.norm()) for n, whole in right.items()]
        assert max(off) < 1e-12, case


def world(cases) -> int:
    return Layout.parse(cases[0][0]).world


def test_a_pipeline_with_frozen_parts_equals_one_process():
    assert_equal_to_one_process(CASES)


def test_and_with_replicas_and_shards():
    zero = "dp2pp2zero"
    assert_equal_to_one_process(
        [
            ("dp2pp2", "tied embedding", True),
            (f"{zero}1", "first stage", True),
            (f"{zero}3", "first stage", False),
            (f"{zero}2", "last stage", False),
        ]
    )


def sends_what_is_not_there(case):
    PipelineParallelOptimizer.sum_tied_gradients = sum_always
    return train(*case)


def sum_always(self, parameters=None):
    (weight,) = (p for p in self.model.parameters() if p.pieces[0].name == "embed.weight")
    comm.exchange(weight.grad.contiguous(), 1, weight, 1, "pp", "pp: tied embedding gradient")


def test_mutant_a_gradient_that_is_not_there_is_sent():
    with pytest.raises(pico.RankFailure, match="NoneType"):
        pico.run(sends_what_is_not_there, CASES[0], world_size=2)
