"""Every layout trains what one process trains: losses, gradient norms and the final parameters.

These are whole runs of `train_rank`, through the launcher: AdamW with weight decay, warm-up and
cosine, clipping active in every step, accumulation where the layout leaves room for it, and the
same global batch however it is cut. AdamW's eps is 1e-5, because at 1e-8 harmless rounding of a
gradient near 0 moves a parameter by lr. Tolerances: fp64 1e-12 and fp32 2e-6, of the number or of
the tensor's norm; rounding shrinks by 2^29 from one to the other, a bug does not.

The wrong versions this file catches, each run below: the loss divided by each rank's own count, the
loss of a micro-batch not divided by their number, every replica reading the same slice, and a
logged loss that is one rank's own. The first needs labels that count unequally, so the runs with
mutants mask a different share of each sequence.
"""

import pytest
import torch

import picolab as pico
from picolab import comm
from picolab.model import Transformer, global_tensors, initialise
from picolab.training import TrainConfig, trainer
from picolab.training.result import TrainResult
from picolab.training.text import Text

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=8, kv_heads=4, vocab=256, seq=16)
RUN = dict(**SHAPE, steps=4, lr=1e-2, eps=1e-5, clip=0.5, warmup=2, bucket_bytes=20_000)
# Eight sequences a step in each: (layout, micro_batch, accumulate).
LAYOUTS = [
    ("dp2", 2, 2),
    ("dp4", 2, 1),
    ("tp2", 4, 2),
    ("tp4", 2, 4),
    ("dp2tp2", 1, 4),
]
TOLERANCE = {"fp64": 1e-12, "fp32": 2e-6}


def run(layout, micro_batch, accumulate, dtype="fp64", **settings):
    return pico.train(
        layout=layout,
        micro_batch=micro_batch,
        accumulate=accumulate,
        dtype=dtype,
        progress=False,
        **{**RUN, **settings},
    )


@pytest.fixture(scope="module", autouse=True)
def own_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def one_process():
    return {dtype: run("dp1", 4, 2, dtype) for dtype in TOLERANCE}


def differences(found, expected):
    """Relative to the number, or to the norm of the tensor."""
    worst = {
        name: max(abs(a - b) / abs(b) for a, b in zip(of_found, of_expected, strict=True))
        for name, of_found, of_expected in (
            ("losses", found.losses, expected.losses),
            ("norms", found.grad_norms, expected.grad_norms),
        )
    }
    state, whole = found.state_dict(), expected.state_dict()
    assert state.keys() == whole.keys()
    worst["parameters"] = max(
        float((state[name] - whole[name]).double().norm() / whole[name].double().norm())
        for name in whole
    )
    return worst


def test_the_runs_are_worth_comparing(one_process):
    """Clipping is active in every step, the loss falls, every parameter has moved."""
    result = one_process["fp64"]
    assert min(result.grad_norms) > 2 * RUN["clip"]
    assert result.losses[-1] < result.losses[0] - 0.1
    start = global_tensors(
        initialise(Transformer(result.config.model, dtype=torch.float64), result.config.seed)
    )
    for name, tensor in result.state_dict().items():
        assert float((tensor - start[name]).norm() / start[name].norm()) > 1e-3, name


# fp64 is the sharper of the two: in a push fp32 takes one layout.
@pytest.mark.parametrize(
    ("layout", "micro_batch", "accumulate", "dtype"),
    [
        pytest.param(*of, dtype, marks=[] if keep else pytest.mark.weekly)
        for of in LAYOUTS
        for dtype in TOLERANCE
        for keep in [dtype == "fp64" or of[0] == "dp2tp2"]
    ],
)
def test_a_layout_equals_one_process(layout, micro_batch, accumulate, dtype, one_process):
    worst = differences(run(layout, micro_batch, accumulate, dtype), one_process[dtype])
    assert max(worst.values()) < TOLERANCE[dtype], worst


@pytest.mark.parametrize("layout", ["dp1", "dp2tp2"])
def test_the_same_seed_gives_the_same_bits(layout):
    """In the same layout: equal, not nearly equal. Another seed is another model and other text."""
    first, again, other = (run(layout, 2, 1, "fp32", seed=seed) for seed in (5, 5, 6))
    assert first.losses == again.losses and first.grad_norms == again.grad_norms
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert first.losses != other.losses


# -- wrong versions, and labels that do not count --


def mask_labels(text, config, device):
    """As text with padding would be: of each sequence only the first few labels count, and how many
    follows from the sequence, so that replicas have unequal counts."""
    tokens, labels = real_next_batch(text, config, device)
    counted = 1 + tokens.sum(-1, keepdim=True) % (config.model.seq - 1)
    places = torch.arange(config.model.seq)
    return tokens, labels.masked_fill(places >= counted, -100)


real_next_batch = trainer.next_batch


def local_count(labels):
    """As many do: the mean over one's own tokens, averaged over the replicas."""
    valid = real_global_count(labels)
    return valid._replace(all=max(1, int(valid.own)) * comm.mesh().size("dp"))


def unscaled_accumulation(labels):
    """The micro-batches' losses added up where their mean is meant."""
    valid = real_global_count(labels)
    return valid._replace(all=valid.all / labels.shape[0])


real_global_count = trainer.global_count


def same_slice(self, *, dp_rank, **settings):
    return real_batch(self, dp_rank=0, **settings)


real_batch = Text.batch


class NoLossReduction:
    """`comm`, as one sees it who logs the loss of its own tokens."""

    def __getattr__(self, name):
        return getattr(comm, name)

    def all_reduce(self, x, axis, reason, **settings):
        return x if reason == "dp: loss" else comm.all_reduce(x, axis, reason, **settings)


MUTANTS = {
    "none": {},
    "loss divided by the local count": {"global_count": local_count},
    "unscaled accumulation": {"global_count": unscaled_accumulation},
    "every replica reads the same slice": {"batch": same_slice},
    "the logged loss is a rank's own": {"comm": NoLossReduction()},
}


def train_wrongly(config, changes):
    """In a fresh rank: the trainer with some of its parts replaced."""
    from picolab.parallel import three_d
    from picolab.training import trainer

    trainer.next_batch = mask_labels
    for name, wrong in changes.items():
        where = {"batch": Text, "comm": three_d}.get(name, trainer)
        setattr(where, name, wrong)
    return trainer.train_rank(config)


def masked_run(layout, micro_batch, accumulate, mutant="none"):
    config = TrainConfig(
        model=pico.ModelConfig(**SHAPE),
        layout=layout,
        micro_batch=micro_batch,
        accumulate=accumulate,
        dtype="fp64",
        **{name: value for name, value in RUN.items() if name not in SHAPE},
    )
    ranks = pico.run(train_wrongly, config, MUTANTS[mutant], world_size=config.layout.world)
    return TrainResult.of(config, ranks)


@pytest.fixture(scope="module")
def one_masked_process():
    return masked_run("dp1", 4, 2)


def test_labels_that_do_not_count(one_masked_process):
    assert len(set(one_masked_process.tokens)) > 1  # of 128, each step another number
    for layout in (("dp2", 2, 2), ("dp2tp2", 1, 4)):
        worst = differences(masked_run(*layout), one_masked_process)
        assert max(worst.values()) < TOLERANCE["fp64"], worst


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name != "none"])
def test_wrong_versions_are_caught(mutant, one_masked_process):
    worst = differences(masked_run("dp2", 2, 2, mutant), one_masked_process)
    assert max(worst.values()) > 1e-3, worst
