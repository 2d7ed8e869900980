"""A run that was cut off goes on as if nothing had happened, in its layout or another.

In the same layout the same bits; in another, fp64, 1e-12 (the rounding of sums in another order).
The wrong versions this file catches, each run below: the place in the data not saved (the same text
is read again), moments that start from zero, moments of which every rank gets the first slice, step
counts that start from zero, random generators that begin again; and checkpoints that are half
written, truncated, of another model, or pruned while they are read. Damaged bytes are the matter of
test_integrity.py, and what may differ when a run goes on that of test_resume.py.
"""

import json
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import picolab as pico
from picolab.launch import rundirs
from picolab.model import Piece, meta_parameter
from picolab.model.parameters import Cut as OneCut
from picolab.training import Checkpoints, TrainConfig, checkpoint, checkpoint_plan, trainer
from picolab.training.integrity import seal
from picolab.training.result import TrainResult
from picolab.training.text import Text

SHAPE = dict(hidden=32, ffn=48, layers=2, heads=8, kv_heads=4, vocab=256, seq=16)
RUN = dict(steps=8, lr=1e-2, eps=1e-5, clip=0.5, warmup=2)
# The same eight sequences a step: layout -> (micro_batch, accumulate).
BATCH = {
    "dp1": (4, 2),
    "dp2": (2, 2),
    "dp4": (2, 1),
    "tp2": (4, 2),
    "tp3": (4, 2),
    "dp2tp2": (1, 4),
    "dp2cp2": (1, 4),
    "tp2pp2": (2, 4),
    "dp2zero1": (2, 2),
    "dp2zero2": (2, 2),
    "dp2tp2zero3": (1, 4),
    "dp2pp2zero1": (1, 4),
    "dp4zero3shard2": (2, 1),
}


@pytest.fixture(scope="module", autouse=True)
def own_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def train(layout, dtype="fp64", **settings):
    micro_batch, accumulate = BATCH[layout]
    biases = {"qkv_bias": settings.get("tied", False)}  # the tied model has biases as well
    settings = {**SHAPE, **RUN, **biases, **settings}
    settings |= {"micro_batch": micro_batch, "accumulate": accumulate}
    return pico.train(layout=layout, dtype=dtype, progress=False, **settings)


def config_of(layout, dtype="fp64", **settings):
    micro_batch, accumulate = BATCH[layout]
    run = {**RUN, "micro_batch": micro_batch, "accumulate": accumulate, **settings}
    return TrainConfig(model=pico.ModelConfig(**SHAPE), layout=layout, dtype=dtype, **run)


def names(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def worst(found, expected) -> float:
    """The largest relative difference of a run that went on from the run that never stopped."""
    skip = found.first_step
    pairs = list(zip(found.losses, expected.losses[skip:], strict=True))
    pairs += zip(found.grad_norms, expected.grad_norms[skip:], strict=True)
    differences = [abs(a - b) / abs(b) for a, b in pairs]
    whole = expected.state_dict()
    for name, tensor in found.state_dict().items():
        differences.append(float((tensor - whole[name]).norm() / whole[name].norm()))
    return max(differences)


@pytest.fixture(scope="module")
def unbroken():
    """One process, from the first step to the last; by whether its head is tied."""
    return {tied: train("dp1", tied=tied) for tied in (False, True)}


@pytest.fixture(scope="module")
def of_tp2(tmp_path_factory):
    """Every checkpoint of a run on tp2, and the run."""
    folder = tmp_path_factory.mktemp("tp2") / "checkpoints"
    return folder, train("tp2", checkpoint=folder, save_every=2, keep=9)


# -- it goes on --


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("dp1", "bf16"),
        ("dp2tp2", "fp32"),
        pytest.param("dp1", "fp32", marks=pytest.mark.weekly),
        pytest.param("dp2tp2", "bf16", marks=pytest.mark.weekly),
    ],
)
def test_the_same_layout_goes_on_bit_for_bit(layout, dtype, tmp_path):
    whole = train(layout, dtype, checkpoint=tmp_path, save_every=3, keep=9)
    assert names(tmp_path) == ["step-3", "step-6", "step-8"]
    rest = train(layout, dtype, resume=tmp_path / "step-3")
    assert rest.first_step == 3
    assert rest.losses == whole.losses[3:] and rest.grad_norms == whole.grad_norms[3:]
    assert rest.learning_rates == whole.learning_rates[3:]
    assert rest.text_state == whole.text_state
    assert all(map(torch.equal, rest.state_dict().values(), whole.state_dict().values()))


CHAINS = [
    ["dp4", "tp2", "dp2tp2", "dp1"],
    ["dp4", "tp2pp2", "dp1"],
    ["tp2pp2", "tp3", "dp2cp2", "dp2"],
    ["dp2tp2zero3", "dp2zero2", "dp4zero3shard2", "dp1"],
]
MORE_CHAINS = [["dp2zero1", "tp2pp2", "dp2pp2zero1", "dp2"]]


# In a push every chain and both heads.
@pytest.mark.parametrize(
    ("chain", "tied"),
    [
        pytest.param(
            chain,
            tied,
            id=f"{'-'.join(chain)}-{'tied' if tied else 'untied'}",
            marks=[] if i < len(CHAINS) and tied == (i % 2 == 0) else pytest.mark.weekly,
        )
        for i, chain in enumerate(CHAINS + MORE_CHAINS)
        for tied in (False, True)
    ],
)
def test_from_layout_to_layout(chain, tied, unbroken, tmp_path):
    """Each layout is cut off two steps after it began, and the next one goes on from there."""
    unbroken, resume = unbroken[tied], None
    for i, layout in enumerate(chain):
        folder = tmp_path / layout
        settings = dict(checkpoint=folder, save_every=2, keep=9, tied=tied)
        found = train(layout, resume=resume, **settings)
        assert found.first_step == 2 * i
        assert worst(found, unbroken) < 1e-12, layout
        resume = folder / f"step-{2 * i + 2}"


def test_what_it_holds(of_tp2):
    folder, result = of_tp2
    about = checkpoint.describe(folder / "step-4")
    assert (about["step"], about["layout"], about["world"]) == (4, "tp2", 2)
    assert about["text"]["position"] == 4 * 8
    assert about["config"]["model"]["hidden"] == 32 and about["config"]["lr"] == 1e-2
    last = checkpoint.state_dict(folder)  # in this process, which is no rank
    assert last.keys() == result.state_dict().keys()
    assert all(torch.equal(last[name], t) for name, t in result.state_dict().items())


def test_each_number_is_written_once(of_tp2, tmp_path):
    """Replicas hold the same and one of them writes: four ranks need the disk of one."""
    folder, _ = of_tp2
    train("dp4", checkpoint=tmp_path, steps=1)

    def size(path):
        return sum(file.stat().st_size for file in path.glob("*.distcp"))

    numbers = sum(t.numel() for t in checkpoint.state_dict(tmp_path).values())
    for path in (folder / "step-4", tmp_path / "step-1"):
        assert 3 * 8 * numbers < size(path) < 2 * 3 * 8 * numbers  # names and shapes take the rest


def test_the_newest_are_kept(tmp_path):
    found = train("dp1", checkpoint=tmp_path, save_every=2, keep=2)
    assert names(tmp_path) == ["step-6", "step-8"]
    again = train("dp1", checkpoint=tmp_path, save_every=1, keep=3, resume=tmp_path, steps=9)
    assert names(tmp_path) == ["step-6", "step-8", "step-9"]
    assert again.first_step == 8 and len(again.losses) == 1 and len(found.losses) == 8


def test_checkpoints_are_not_in_the_steps_ledger(of_tp2):
    _, with_checkpoints = of_tp2
    without = train("tp2", steps=2)
    for step in (0, 1):
        one, other = (run.ledger.rank(0).step(step) for run in (with_checkpoints, without))
        assert one.by("op", "axis", "reason").keys() == other.by("op", "axis", "reason").keys()
        assert one.total()[:3] == other.total()[:3]


def test_a_run_that_goes_on_says_so(of_tp2, capsys):
    folder, _ = of_tp2
    found = pico.train(
        layout="tp2", dtype="fp64", micro_batch=4, accumulate=2, **SHAPE, **RUN,
        resume=folder / "step-6",
    )  # fmt: skip
    assert "8/8" in capsys.readouterr().err
    assert json.loads(found.to_json())["first_step"] == 6
    assert [e.data["step"] for e in found.events if e.kind == "step" and e.rank == 1] == [6, 7]


# -- a rank that is killed --


def killed_at(config, checkpoints, step, where):
    """In a fresh rank: training, of which rank 1 ends by SIGKILL in this step: before it computes,
    or while it writes the checkpoint."""

    def kill():
        if pico.comm.mesh().rank("world") == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_step(*args):
        if where == "step" and args[1] == step:
            kill()
        return real_step(*args)

    def deadly_write(self, item):
        if where == "write" and written.exists():
            kill()
        return real_write(self, item)

    written = Path(checkpoints.folder) / f".step-{step}.writing"
    real_step, real_write = trainer.train_step, checkpoint_plan.SavePlanner.resolve_data
    trainer.train_step = deadly_step
    checkpoint_plan.SavePlanner.resolve_data = deadly_write
    return trainer.train_rank(config, checkpoints)


@pytest.mark.parametrize("where", ["step", "write"])
def test_a_killed_rank_is_as_if_it_had_not_been(where, tmp_path):
    whole = train("dp2")
    config, folder = config_of("dp2"), tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder=folder, every=2)
    with pytest.raises(pico.RankFailure, match="SIGKILL") as failure:
        pico.run(killed_at, config, checkpoints, 6, where, world_size=2)
    assert failure.value.rank == 1
    if where == "step":  # six steps were done
        assert names(folder) == ["step-4", "step-6"]
    else:  # nothing was promised for the sixth
        assert names(folder) == [".step-6.writing", "step-2", "step-4"]
    rest = train("dp2", resume=folder, checkpoint=folder, save_every=2)
    assert rest.first_step == (6 if where == "step" else 4)
    assert rest.losses == whole.losses[rest.first_step :]
    assert all(map(torch.equal, rest.state_dict().values(), whole.state_dict().values()))
    assert names(folder) == ["step-6", "step-8"], "what was left half-written is cleared away"


# -- any cut, even or not --


TENSORS = {"q": (7, 5), "k": (3, 5), "w": (5, 11), "own": (4, 2), "norm": (5,)}


class Cut:
    """Which rank holds what of four tensors: cuts at random places, some slices empty, one tensor
    on one rank only (as a stage's layers are), one on all."""

    def __init__(self, seed: int, rank: int, world: int):
        draw = random.Random(f"{seed}/{world}")
        self.pieces = {}
        for name, dim in (("q", 0), ("k", 0), ("w", draw.choice([0, 1]))):
            size = TENSORS[name][dim]
            ends = (0, *sorted(draw.randint(0, size) for _ in range(world - 1)), size)
            self.pieces[name] = self.piece(name, OneCut("world", dim, ends, rank))
        self.pieces["norm"] = self.piece("norm")
        if rank == draw.randrange(world):
            self.pieces["own"] = self.piece("own")

    def piece(self, name, *cuts):
        return Piece(name, TENSORS[name], cuts=cuts)

    def optimizer(self, fill: bool) -> torch.optim.Optimizer:
        """q and k fused into one parameter, the others alone."""
        fused = tuple(self.pieces[name] for name in ("q", "k"))
        groups = [fused, *((piece,) for name, piece in self.pieces.items() if name not in "qk")]
        parameters = []
        for pieces in groups:
            parameter = torch.nn.Parameter(
                torch.zeros(meta_parameter(pieces, torch.float64).shape, dtype=torch.float64)
            )
            parameter.pieces = pieces
            parameters.append(parameter)
        optimizer = torch.optim.AdamW(parameters)
        if fill:
            for parameter in parameters:
                self.set(parameter, parameter.detach(), 0)
                moments = {"exp_avg": 1, "exp_avg_sq": 2}
                state = {key: torch.zeros_like(parameter) for key in moments}
                for key, times in moments.items():
                    self.set(parameter, state[key], times)
                optimizer.state[parameter] = {"step": torch.tensor(3.0), **state}
        return optimizer

    def set(self, parameter, tensor, times):
        row = 0
        for piece in parameter.pieces:
            rows = piece.local_shape[0]
            tensor[row : row + rows] = piece.take(self.value(piece.name, times))
            row += rows

    def value(self, name, times):
        """The whole tensor: numbers that say which tensor, which kind and which place."""
        shape = TENSORS[name]
        numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
        return numbers + 1000 * list(TENSORS).index(name) + 100_000 * times


def save_cuts(folder, cases):
    mesh = pico.comm.mesh()
    config = config_of("dp1")
    text = Text("random", seq=16)
    for seed in range(cases):
        cut = Cut(seed, mesh.rank("world"), mesh.size("world"))
        checkpoint.save(folder / str(seed), 1, cut.optimizer(fill=True), text, config)


def restore_cuts(folder, cases):
    mesh = pico.comm.mesh()
    for seed in range(cases):
        cut = Cut(seed, mesh.rank("world"), mesh.size("world"))
        path = checkpoint.find(folder / str(seed))
        found, expected = cut.optimizer(fill=False), cut.optimizer(fill=True)
        assert checkpoint.restore(path, found, Text("random", seq=16), config_of("dp2")) == 1
        ours, theirs = (o.param_groups[0]["params"] for o in (found, expected))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other), (seed, one.pieces)
            assert found.state[one].keys() == expected.state[other].keys()
            for key, value in expected.state[other].items():
                assert torch.equal(found.state[one][key], value), (seed, key, one.pieces)


def test_any_cut_into_any_other(tmp_path):
    """Three ranks save, two read, cuts of either at random; rows become columns."""
    pico.run(save_cuts, tmp_path, 8, world_size=3)
    pico.run(restore_cuts, tmp_path, 8, world_size=2)
    pico.run(restore_cuts, tmp_path, 2, world_size=1)


# -- wrong versions --


def position_not_saved():
    Text.load_state_dict = lambda self, state: None


def moments_from_zero():
    checkpoint.make_state = lambda optimizer, metadata: None


def first_slice_of_moments():
    """Moments not resharded: each rank is given the slice of the first, as picotron's weights."""
    real = checkpoint_plan.parts

    def wrong(optimizer, copies):
        found = real(optimizer, copies)
        for name, parts in found.items():
            if "exp_avg" in name:
                found[name] = [replace(part, offsets=(0,) * len(part.offsets)) for part in parts]
        return found

    checkpoint.parts = wrong


def step_counts_from_zero():
    real = checkpoint_plan.parts
    checkpoint.parts = lambda optimizer, copies: {
        name: of for name, of in real(optimizer, copies).items() if "optimizer.step" not in name
    }


MUTANTS = {
    mutant.__name__: mutant
    for mutant in (
        position_not_saved,
        moments_from_zero,
        first_slice_of_moments,
        step_counts_from_zero,
    )
}


def resume_wrongly(config, checkpoints, mutant):
    if mutant is not None:
        mutant()
    return trainer.train_rank(config, checkpoints)


@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_wrong_versions_are_caught(mutant, of_tp2):
    folder, whole = of_tp2
    config = config_of("tp2")
    checkpoints = Checkpoints(resume=folder / "step-4")
    ranks = pico.run(resume_wrongly, config, checkpoints, MUTANTS.get(mutant), world_size=2)
    difference = worst(TrainResult.of(config, ranks), whole)
    assert difference == 0 if mutant is None else difference > 1e-6


def nobody_fetches():
    """Each replica has read its own rows, and computes with old ones of the others'."""
    from picolab.parallel import three_d

    three_d.ThreeDParallelOptimizer.after_load = lambda self: None


def test_replicas_fetch_what_others_have_read(of_tp2):
    folder, whole = of_tp2
    config = config_of("dp2zero2")
    checkpoints = Checkpoints(resume=folder / "step-4")
    for mutant in (None, nobody_fetches):
        ranks = pico.run(resume_wrongly, config, checkpoints, mutant, world_size=2)
        difference = worst(TrainResult.of(config, ranks), whole)
        assert difference > 1e-6 if mutant else difference < 1e-12


def train_with_chance(config, checkpoints, mutant):
    """Training that drops labels at random, another draw on each rank, as dropout would."""
    real = trainer.next_batch

    def next_batch(*args):
        tokens, labels = real(*args)
        return tokens, labels.masked_fill(torch.rand(labels.shape) < 0.3, -100)

    trainer.next_batch = next_batch
    if mutant:
        torch.set_rng_state = lambda state: None
    if checkpoints.resume is None:
        torch.manual_seed(17 + pico.comm.mesh().rank("world"))
    return trainer.train_rank(config, checkpoints)


def test_chance_goes_on_too(tmp_path):
    config = config_of("dp2")

    def run(checkpoints, mutant=False):
        ranks = pico.run(train_with_chance, config, checkpoints, mutant, world_size=2)
        return TrainResult.of(config, ranks)

    whole = run(Checkpoints(folder=tmp_path, every=4))
    assert len(set(whole.tokens)) > 1
    resume = Checkpoints(resume=tmp_path / "step-4")
    assert run(resume).losses == whole.losses[4:]
    assert run(resume, mutant=True).losses != whole.losses[4:]


# -- bad input: one sentence, before any rank starts --


@pytest.fixture
def copied(of_tp2, tmp_path):
    """A folder of checkpoints to damage: step-2 ... step-8."""
    return Path(shutil.copytree(of_tp2[0], tmp_path / "checkpoints"))


def truncate(folder):
    path = next((folder / "step-8").glob("__1_*.distcp"))
    os.truncate(path, path.stat().st_size // 2)


def lose_a_file(folder):
    next((folder / "step-8").glob("__0_*.distcp")).unlink()


def truncate_metadata(folder):
    os.truncate(folder / "step-8" / ".metadata", 100)


def truncate_about(folder):
    os.truncate(folder / "step-8" / checkpoint.ABOUT, 100)


def other_format(folder):
    about = json.loads((folder / "step-8" / checkpoint.ABOUT).read_text())
    del about["seal"]
    (folder / "step-8" / checkpoint.ABOUT).write_text(seal({**about, "format": 99}))


def only_writing(folder):
    for path in list(folder.iterdir()):
        path.rename(folder / f".{path.name}.writing")


def nothing(folder):
    for path in list(folder.iterdir()):
        shutil.rmtree(path)


def not_even_a_folder(folder):
    shutil.rmtree(folder)


def fine(folder):
    pass


DAMAGED = [
    (truncate, "its __1_0.distcp has"),
    (lose_a_file, "its __0_0.distcp is missing"),
    (truncate_metadata, "its .metadata has 100 bytes"),
    (truncate_about, "its checkpoint.json cannot be understood"),
]
BAD = [
    (other_format, {}, "has format 99"),
    (only_writing, {}, "no complete checkpoint yet, and one that is being written"),
    (nothing, {}, "there is no checkpoint in"),
    (not_even_a_folder, {}, "there is no folder"),
    (fine, dict(layers=1), "is of another model: layers is 2 there and 1 here"),
    (fine, dict(tied=True), "is of another model: tied is False there and True here"),
    (fine, dict(dtype="fp32"), "is of another model: dtype is 'fp64' there and 'fp32' here"),
    (fine, dict(seq=32), "is of another model: seq is 16 there"),
    (fine, dict(data="random"), "is one in other data: corpus"),
    (fine, dict(seed=1), "is one in other data: seed was 0 there and is 1 here"),
    (fine, dict(steps=8), "has 8 steps behind it, and this run ends after 8"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGED, ids=[says for _, says in DAMAGED])
def test_a_damaged_one_is_refused_by_name_and_passed_over_in_a_folder(damage, says, copied):
    damage(copied)
    before = rundirs.ls()
    with pytest.raises(ValueError) as error:
        train("tp2", steps=9, resume=copied / "step-8")
    assert says in str(error.value) and "\n" not in str(error.value)
    assert rundirs.ls() == before
    found = checkpoint.choose(copied)
    assert (found.path.name, found.passed_over) == ("step-6", (copied / "step-8",))
    (note,) = found.notes
    assert says in note and "step-8 is passed over" in note and "step-6" in note


@pytest.mark.parametrize(("damage", "settings", "says"), BAD, ids=[says[:32] for *_, says in BAD])
def test_what_cannot_be_gone_on_from(damage, settings, says, copied):
    damage(copied)
    before = rundirs.ls()
    with pytest.raises(ValueError) as error:
        train("tp2", **{"steps": 9, "resume": copied, **settings})
    assert says in str(error.value) and "\n" not in str(error.value)
    assert rundirs.ls() == before


@pytest.mark.parametrize("name", ["step-8", ".step-8.writing"])
def test_a_checkpoint_named_that_is_not_complete(name, copied):
    shutil.rmtree(copied / "step-8")
    (copied / name).mkdir()
    with pytest.raises(ValueError, match="not complete"):
        train("tp2", steps=9, resume=copied / name)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(save_every=2), "give checkpoint=FOLDER too"),
        (dict(checkpoint="x", save_every=0), "save_every is 0"),
        (dict(checkpoint="x", keep=0), "keep is 0"),
        (dict(checkpoint=7), "checkpoint is 7"),
        (dict(resume=""), "resume is ''"),
    ],
)
def test_settings_that_make_no_sense(settings, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        train("tp2", **settings)
    assert names(tmp_path) == []


def test_another_runs_checkpoints_are_not_mixed_with_ours(copied, tmp_path):
    with pytest.raises(ValueError, match=r"there are checkpoints of another run in .*step-8"):
        train("tp2", checkpoint=copied)
    with pytest.raises(ValueError, match=r"later checkpoints than step-4 .*step-8"):
        train("tp2", checkpoint=copied, resume=copied / "step-4")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoints cannot be written to"):
        train("tp2", checkpoint=tmp_path / "file")
    assert names(copied) == ["step-2", "step-4", "step-6", "step-8"]


# -- the disk, and those who read while it is written --


def train_on_a_small_disk(config, checkpoints):
    """The system's limit on a file's size stands for a full disk; on rank 1 only, after a while."""
    real = checkpoint.save

    def save(folder, step, *args):
        if step == 4 and pico.comm.mesh().rank("world") == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return real(folder, step, *args)

    checkpoint.save = save
    return trainer.train_rank(config, checkpoints)


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    with pytest.raises(pico.RankFailure, match=r"OSError: the checkpoint .*step-4 cannot be writ"):
        checkpoints = Checkpoints(folder=tmp_path, every=2)
        pico.run(train_on_a_small_disk, config_of("dp2"), checkpoints, world_size=2)
    assert names(tmp_path) == ["step-2"]
    assert checkpoint.describe(checkpoint.find(tmp_path))["step"] == 2


def test_reading_while_it_is_written(tmp_path):
    """Whoever reads gets a whole checkpoint, or a sentence; never half of one."""
    steps = 30
    kept = train("dp2", "fp32", steps=steps, checkpoint=tmp_path / "all", save_every=1, keep=99)
    settings = dict(checkpoint=tmp_path / "one", save_every=1, keep=1, wait=False)
    job = train("dp2", "fp32", steps=steps, **settings)
    whole, sentences = 0, []
    deadline = time.monotonic() + 200
    while not job.done:
        assert time.monotonic() < deadline
        try:
            path = checkpoint.find(tmp_path / "one")
            found = checkpoint.state_dict(path)
        except ValueError as error:
            sentences.append(str(error))
            time.sleep(0.01)
            continue
        whole += 1
        expected = checkpoint.state_dict(tmp_path / "all" / path.name)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert job.result().losses == kept.losses
    assert whole > 0
    known = ("there is no", "is gone:", "no complete checkpoint yet")
    assert all(any(text in said for text in known) for said in sentences), set(sentences)


class Waiting(pico.Observer):
    """Stays in the first step until the job is stopped."""

    def step(self, run, report):
        pico.emit(here=report.step)
        time.sleep(600)


def test_two_runs_do_not_write_to_one_folder(tmp_path, monkeypatch):
    job = train("dp1", checkpoint=tmp_path, observers=[Waiting()], wait=False)
    while not any(event.kind == "values" for event in job.events):
        assert not job.done, job.result()
        time.sleep(0.02)
    with pytest.raises(ValueError, match="another run that is going on writes its checkpoints to"):
        train("dp1", checkpoint=tmp_path)
    monkeypatch.setattr(checkpoint, "is_held", lambda folder: False)  # both began at once
    with pytest.raises(pico.RankFailure, match="another run that is going on"):
        train("dp1", checkpoint=tmp_path)
    job.stop()
    assert len(train("dp1", checkpoint=tmp_path, steps=1).losses) == 1
