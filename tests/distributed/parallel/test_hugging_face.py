"""Hugging Face weights straight into a layout: each rank its slices, and the loss of one process.

The wrong versions this file catches: every tensor-parallel rank given the first slice (picotron's
`adjust_tensor_size`, unnoticed there because the weights were randomised afterwards), slices of the
right size from the wrong dim, and a rank that reads whole tensors.
"""

import pytest
import torch

import picolab as pico
from picolab.model import Transformer, hf_config, hugging_face, initialise, load_hf, save_hf
from picolab.parallel import parallelize
from picolab.specs import ModelConfig

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=8, kv_heads=4, vocab=64, seq=16)
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(64, (4, 16), generator=GENERATOR)
LABELS = torch.randint(64, (4, 16), generator=GENERATOR)


@pytest.fixture(scope="module", autouse=True)
def own_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied, biases"])
def weights(request, tmp_path_factory):
    """A folder of weights in several files, and the loss they have in one process."""
    config = ModelConfig(**SHAPE, tied=request.param, qkv_bias=request.param)
    model = initialise(Transformer(config, dtype=torch.float64), seed=4)
    for bias in (block.attention.qkv.bias for block in model.layers):
        if bias is not None:
            torch.nn.init.normal_(bias, generator=torch.Generator().manual_seed(5))
    folder = tmp_path_factory.mktemp("weights") / "ours"
    save_hf(model, config, folder, file_bytes=20_000)
    return folder, float(model.loss(TOKENS, LABELS).detach()) / LABELS.numel()


def first_slice(read):
    """picotron's mistake: a slice of the right size, the first one, on every rank."""

    def wrong(self, name, ranges):
        return self._slice(name)[tuple(slice(len(held)) for held in ranges)]

    return wrong


def load_and_measure(folder, layout, mutant):
    """The global loss of a layout whose weights were read from the folder; and how many numbers
    were read."""
    read, numbers = hugging_face._Files.read, []

    def counted(self, name, ranges):
        found = (first_slice(read) if mutant else read)(self, name, ranges)
        numbers.append(found.numel())
        return found

    hugging_face._Files.read = counted
    model = Transformer(hf_config(folder), dtype=torch.float64)
    parallel = parallelize(model, layout, seed=99)  # other weights, to be written over
    load_hf(folder, parallel.model)
    held = sum(parameter.numel() for parameter in parallel.model.parameters())
    mesh = pico.comm.mesh()
    share = slice(mesh.rank("dp"), None, mesh.size("dp"))
    two = (batch[share].unflatten(0, (2, -1)) for batch in (TOKENS, LABELS))  # micro-batches
    return float(parallel.forward_backward(*two)), sum(numbers), held


@pytest.mark.parametrize(
    "layout", ["dp1", "tp2", "tp3", "dp2tp2", "tp2pp2", "dp2cp2", "dp2zero1", "dp2tp2zero3"]
)
def test_the_loss_is_that_of_one_process(layout, weights):
    folder, expected = weights
    world = pico.Layout.parse(layout).world
    for loss, read, held in pico.run(load_and_measure, folder, layout, False, world_size=world):
        assert loss == pytest.approx(expected, rel=1e-12)
        assert read == held, "a rank read more than it holds"


def test_the_first_slice_on_every_rank_is_noticed(weights):
    folder, expected = weights
    for loss, _, _ in pico.run(load_and_measure, folder, "tp2", True, world_size=2):
        assert abs(loss / expected - 1) > 1e-3


def gather_and_save(folder, to, layout):
    parallel = parallelize(Transformer(hf_config(folder), dtype=torch.float64), layout)
    load_hf(folder, parallel.model)
    state = parallel.state_dict()
    if pico.comm.mesh().rank("world") == 0:
        save_hf(state, parallel.model.config, to)


def test_a_layout_saves_what_it_read(weights, tmp_path):
    folder, _ = weights
    pico.run(gather_and_save, folder, tmp_path / "again", "tp2pp2", world_size=4)
    one, other = (load_hf(path, dtype=torch.float64) for path in (folder, tmp_path / "again"))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
