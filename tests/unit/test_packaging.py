"""What surrounds the package agrees with it: environment.yml, constraints.txt, the wheel, the
doctor, the import contract, and what readers are told to install.

Catches a dependency added to pyproject.toml alone, a pin outside its range, a wheel without the
chapters or the question banks, an import that goes up the house, and advice to install from an
index that has no picolab.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from picolab.lab.doctor import PYTHON, TORCH

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# pyproject.toml's name -> conda-forge's. Python and pip are conda's own affair.
CONDA_NAMES = {"torch": "pytorch", "prometheus-client": "prometheus_client"}


def pyproject_requirements() -> dict[str, Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["torch"], *extras["lab"], *extras["test"]]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def conda_ranges(text: str) -> dict[str, str]:
    """name -> range, of conda's list and of its pip part."""
    listed = yaml.safe_load(text)["dependencies"]
    [by_pip] = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    ranges = {}
    for line in [entry for entry in listed if isinstance(entry, str)] + by_pip:
        if not line.startswith("-") and line != "pip":
            name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line).groups()
            ranges[name] = bounds
    return ranges


def differences(text: str) -> set[str]:
    """What environment.yml and pyproject.toml say differently."""
    conda = conda_ranges(text)
    wanted = {"python": PROJECT["requires-python"]}
    for name, requirement in pyproject_requirements().items():
        wanted[CONDA_NAMES.get(name, name)] = str(requirement.specifier)
    return {
        name
        for name in wanted.keys() | conda.keys()
        if set(wanted.get(name, "missing").split(",")) != set(conda.get(name, "missing").split(","))
    }


def test_environment_yml_is_pyproject():
    text = (ROOT / "environment.yml").read_text()
    assert differences(text) == set()
    assert "--editable ." in text


@pytest.mark.parametrize(
    "wrong, name",
    [(("plotly>=6.1,<8", "plotly>=6.1"), "plotly"), (("  - nbval>=0.11\n", ""), "nbval")],
)
def test_a_changed_environment_yml_is_noticed(wrong, name):
    text = (ROOT / "environment.yml").read_text()
    assert wrong[0] in text
    assert differences(text.replace(*wrong)) == {name}


def test_constraints_pin_every_direct_dependency_within_its_range():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert "+" not in version, f"{line}: a local tag keeps other builds out"
            pins[canonicalize_name(name)] = version
    for name, requirement in pyproject_requirements().items():
        assert name in pins, f"{name} is not in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is not in {requirement}"


def test_the_doctor_checks_for_what_pyproject_asks():
    assert PROJECT["requires-python"] == ">={}.{}".format(*PYTHON)
    low, high = ("{}.{}".format(*bound) for bound in TORCH)
    assert pyproject_requirements()["torch"].specifier == Requirement(f"x>={low},<{high}").specifier


def test_the_wheel_carries_the_chapters_and_the_banks(tmp_path):
    """Built in a copy, so that no build output lands in the checkout; needs no network."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("picolab", "notebooks", "interview_questions"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    chapters = {f"picolab/_notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert chapters and chapters <= inside
    banks = (ROOT / "interview_questions").iterdir()
    assert {f"picolab/_interview_questions/{path.name}" for path in banks} <= inside
    assert {"picolab/cli.py", "picolab/lab/workcopy.py"} <= inside
    assert not [name for name in inside if name.startswith(("tests/", "work/"))]


def parts() -> list[str]:
    """The suite's own, as it names them when asked for one that does not exist."""
    words = [sys.executable, str(ROOT / ".ci/suite.py"), "nothing"]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "'nothing' is no part of the suite" in refused.stderr
    return refused.stderr.strip().rpartition("there are ")[2].split(", ")


def test_workflows_and_devcontainer_use_the_same_scripts():
    """A push runs every part of the suite, each beside the others; a week runs everything."""
    jobs = {
        name: yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"]
        for name in ("ci.yml", "weekly.yml")
    }
    assert {
        name: [step["run"] for job in each.values() for step in job["steps"] if "run" in step]
        for name, each in jobs.items()
    } == {"ci.yml": [".ci/run ${{ matrix.parts }}"], "weekly.yml": [".ci/run --all", ".ci/run"]}
    groups = jobs["ci.yml"]["suite"]["strategy"]["matrix"]["parts"]
    assert " ".join(groups).split() == parts()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["postCreateCommand"] == "sh .ci/setup lab"


# --- who may import whom ------------------------------------------------------------------------


def lint(folder: Path) -> subprocess.CompletedProcess:
    """import-linter over the copy in `folder`, with the checkout's contract."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "picolab", tmp_path / "picolab", ignore=ignore)
    return tmp_path


def test_the_import_contract_holds(copy):
    checked = lint(copy)
    assert checked.returncode == 0, checked.stdout
    assert "1 kept, 0 broken" in checked.stdout


@pytest.mark.parametrize(
    "module, imported",
    [
        ("costs/mutant.py", "picolab.training"),
        ("monitoring/mutant.py", "picolab.launch.rundirs"),
        ("comm/mutant.py", "picolab.launch"),
        ("launch/mutant.py", "picolab.lab"),
        ("exercises/mutant.py", "picolab.chapters.c01_4d_basics"),
        ("interview/mutant.py", "picolab.chapters"),
    ],
)
def test_an_import_up_the_house_is_caught(copy, module, imported):
    (copy / "picolab" / module).write_text(f"def late():\n    import {imported}\n")
    checked = lint(copy)
    assert checked.returncode == 1
    assert f"picolab.{module.replace('/', '.')[:-3]} -> {imported}" in checked.stdout


def circle(folder: Path) -> list[str]:
    """Modules of the copy that import each other in a circle; within a room, since the contract
    has an eye on the rooms. Imports for a type checker alone do not count.
    """
    code = (
        "import grimp, json, graphlib\n"
        "graph = grimp.build_graph('picolab', exclude_type_checking_imports=True, cache_dir=None)\n"
        "edges = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}\n"
        "try:\n"
        "    graphlib.TopologicalSorter(edges).prepare()\n"
        "    print([])\n"
        "except graphlib.CycleError as error:\n"
        "    print(json.dumps(error.args[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_no_module_imports_itself_by_way_of_others(copy):
    assert circle(copy) == []


def test_a_circle_within_a_room_is_caught(copy):
    files = copy / "picolab/exercises/one.py", copy / "picolab/exercises/other.py"
    files[0].write_text("import picolab.exercises.other\n")
    files[1].write_text("def late():\n    from picolab.exercises import one\n")
    found = circle(copy)
    assert {"picolab.exercises.one", "picolab.exercises.other"} <= set(found)


INSTALLS_FROM_AN_INDEX = re.compile(r"picolab\[\w")  # of a checkout it is '.[torch]'


def test_nobody_is_told_to_install_what_no_index_has():
    folders = ("picolab", "notebooks", "interview_questions", "summary")
    texts = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / ".ci").glob("*.py")]
    texts += [path for folder in folders for path in (ROOT / folder).rglob("*")]
    suffixes = {".py", ".md", ".ipynb", ".yaml", ".yml", ""}
    read = [path for path in texts if path.is_file() and path.suffix in suffixes]
    assert len(read) > 100
    told = [path.name for path in read if INSTALLS_FROM_AN_INDEX.search(path.read_text("utf-8"))]
    assert told == []
    assert INSTALLS_FROM_AN_INDEX.search("pip install 'picolab[torch]'")
