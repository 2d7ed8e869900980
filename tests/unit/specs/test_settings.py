"""A setting is written once; `train`, `picolab train` and `panel` show it and hand it on.

The wrong versions this file catches: a face that drops a setting, or has a default of its own, or
shows a setting and does not hand it on; an explanation that is missing or belongs to another field;
a name that is misspelt and ignored.
"""

import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import picolab
from picolab import cli
from picolab.lab import panel
from picolab.launch.job import Backend, run
from picolab.specs import ModelConfig, TrainConfig, assemble
from picolab.specs.settings import RunOptions, explanations, settings, split, takes_settings
from picolab.training import Checkpoints, start, train

FIELDS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
SHAPE = {field.name: None for field in dataclasses.fields(ModelConfig) if field.name != "name"}
OPTIONS = {field.name: field.default for field in dataclasses.fields(RunOptions)}


def shown(function) -> dict:
    """Name and default of each parameter."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values()}


def flags() -> dict:
    command = cli.Train()
    groups = (command.training, command.shape, command.launch)
    return {name: value for group in groups for name, value in dataclasses.asdict(group).items()}


def differing(face: dict) -> list[str]:
    """Settings that a face lacks, or shows with another default."""
    wanted = FIELDS | SHAPE | OPTIONS
    return [n for n, default in wanted.items() if n not in face or face[n] != default]


def test_the_three_faces_show_every_setting_with_its_default():
    assert differing(shown(train)) == []
    within = ["rope_scaling", "latent"]  # shapes within the shape: not for a terminal
    assert differing(flags()) == within
    assert differing(shown(panel)) == ["accumulate"]  # None there: all layouts see one batch
    own = {"wait", "progress", "observers"}
    assert shown(train).keys() == FIELDS.keys() | SHAPE.keys() | OPTIONS.keys() | own
    assert flags().keys() == shown(train).keys() - own - set(within)
    assert list(shown(train))[:4] == ["model", "layout", "data", "steps"]


@pytest.mark.parametrize("name", ["clip", "eval_every", "seq", "keep"])
def test_mutant_a_face_that_drops_a_setting_or_has_its_own_default(name):
    face = shown(train)
    assert differing({**face, name: "mine"}) == [name]
    assert differing({n: default for n, default in face.items() if n != name}) == [name]


def test_mutant_a_signature_written_by_hand():
    def by_hand(model="tiny", layout="dp1", data="stdlib", steps=20, *, clip=0.5):
        """Was right once."""

    assert {"clip", "eval_every", "micro_batch"} <= set(differing(shown(by_hand)))


def another(name: str, default):
    """A value of a TrainConfig field that is not its default."""
    special = {"model": "tiny-moe", "layout": "dp2ep2", "data": "random", "dtype": "fp64"}
    special |= {
        "expert_copies": "0@1",
        "sp_inputs": "gather",
        "precision": "fp64",
        "products": "native",
    }
    if name in special:
        return special[name]
    if isinstance(default, tuple):
        return tuple(0.25 + value / 2 for value in default)
    return 3 if default is None else default / 2 if isinstance(default, float) else default + 1


GIVEN = {name: another(name, default) for name, default in FIELDS.items()} | {"layers": 3}


def python_face(monkeypatch, **given) -> TrainConfig:
    found = []
    monkeypatch.setattr(start.launch, "run", lambda fn, config, *a, **kw: found.append(config))
    train(**given, backend="gloo", timeout=9)
    return found[0]


def words(given: dict) -> list[str]:
    found = []
    for name, value in given.items():
        several = value if isinstance(value, tuple) else (value,)
        found += [f"--{name.replace('_', '-')}", *map(str, several)]
    return found


def command_face(monkeypatch, **given) -> TrainConfig:
    found = []
    monkeypatch.setattr(
        picolab.training, "train", lambda **kw: found.append(assemble(**split(kw)[0]))
    )
    assert cli.main(["train", *words(given)]) == 0
    return found[0]


def panel_face(monkeypatch, **given) -> TrainConfig:
    """Pressing Run; without a job to follow, it says that it could not start."""
    found = []

    def stand_in(**kw):
        kw = {
            name: value
            for name, value in kw.items()
            if name not in ("wait", "progress", "observers")
        }
        found.append(assemble(**split(kw)[0]))
        raise ValueError("seen")

    monkeypatch.setattr(picolab.training, "train", stand_in)
    assert "seen" in panel(**given, run_dir="somewhere", live=False).run()
    return found[0]


FACES = [python_face, command_face, panel_face]


@pytest.mark.parametrize("face", FACES)
def test_every_setting_is_handed_on(face, monkeypatch):
    wanted = assemble(**GIVEN)
    assert face(monkeypatch, **GIVEN) == wanted
    unlike = [n for n, default in FIELDS.items() if getattr(wanted, n) == default]
    assert unlike == []  # each of them is seen to arrive


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"model"}))
def test_mutant_a_setting_that_is_shown_and_not_handed_on(name, monkeypatch):
    @takes_settings()
    def forgetful(**given):
        """Shows all of them."""
        return train(**{n: value for n, value in given.items() if n != name})

    assert differing(shown(forgetful)) == []
    found = []
    monkeypatch.setattr(start.launch, "run", lambda fn, config, *a, **kw: found.append(config))
    spellings = {"precision", "dtype"}  # of one thing: either alone says it
    other = spellings - {name} if name in spellings else set()
    other |= {"expert_copies"} if name == "layout" else set()  # refused where there is no ep
    given = {n: value for n, value in GIVEN.items() if n not in other}
    forgetful(**given)
    assert found[0] != assemble(**given)


def test_none_is_handed_on_where_it_is_not_the_default(monkeypatch):
    for face in FACES:
        assert face(monkeypatch, clip=None).clip is None


def test_a_new_field_is_in_all_of_them_with_no_other_edit(tmp_path):
    package = tmp_path / "picolab"
    here = Path(picolab.__file__).parent
    shutil.copytree(here, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = package / "specs" / "train_config.py"
    field = '    patience: int | None = 7\n    """Steps that it\n    waits."""\n'
    before = "    bucket_bytes: int = DEFAULT"
    text = source.read_text()
    assert text.count(before) == 1
    source.write_text(text.replace(before, field + before))
    code = """
import inspect, sys
import picolab as pico
from picolab.cli import main
for function in (pico.train, pico.panel):
    assert inspect.signature(function).parameters["patience"].default == 7
    assert "Steps that it waits." in function.__doc__
main(["train", "--help"])
"""
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert asked.returncode == 0, asked.stderr
    assert "--patience INT|None" in asked.stdout and "Steps that it waits." in asked.stdout


def test_the_docstring_has_every_explanation():
    said = " ".join(train.__doc__.split())
    for setting in settings():
        assert setting.about and f"{setting.name} " in said and setting.about in said, setting.name
    assert "clip = 1.0" in said and "Largest global gradient norm" in said
    assert "accumulate = 1" not in panel.__doc__  # it is the panel's own there


def test_an_explanation_is_the_string_under_its_field():
    about = explanations(RunOptions)
    assert about["keep"] == "How many checkpoints to keep, the newest."
    assert about.keys() == OPTIONS.keys()
    assert explanations(Unexplained) == {"second": "Of the second."}


@dataclasses.dataclass
class Unexplained:
    first: int = 1
    second: int = 2
    """Of the second."""


def test_the_options_are_those_of_who_uses_them():
    assert Checkpoints(**RunOptions().checkpoints) == Checkpoints()
    ours, theirs = shown(RunOptions), shown(run)
    assert ours["backend"] == theirs["backend"] and ours["timeout"] == theirs["timeout"]
    assert RunOptions.__annotations__["backend"] == Backend


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(step=3), "no setting 'step'; did you mean 'steps'?"),
        (dict(save_evry=3), "no setting 'save_evry'; did you mean 'save_every'?"),
        (dict(hiden=3), "no setting 'hiden'; did you mean 'hidden'?"),
        (dict(wiat=False), "no setting 'wiat'; did you mean 'wait'?"),
        (dict(zzzz=3), "no setting 'zzzz'; it has accumulate"),
        (dict(timeout="long"), "timeout is 'long'; it is a number of seconds"),
        (dict(run_dir=3), "run_dir is 3; it is the path of a folder"),
        (dict(keep=0), "keep is 0; it must be an integer of at least 1"),
    ],
)
def test_a_wrong_setting_is_a_sentence(given, says):
    with pytest.raises(ValueError) as error:
        train(**given)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_more_places_than_there_are_is_python_s_own_error():
    with pytest.raises(TypeError, match="too many positional arguments"):
        train("tiny", "dp1", "stdlib", 20, 4)
    with pytest.raises(TypeError, match="multiple values for argument 'model'"):
        train("tiny", model="tiny")
