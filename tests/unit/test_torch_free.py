"""What is promised to work without torch does, in a process where torch cannot be imported.

Catches a torch import that crept into a torch-free room (also one that only runs on first use), an
`import picolab` that takes torch or starts something, and a room that hides the missing torch
behind an error that does not say what to install.
"""

import os
import subprocess
import sys
import textwrap

import pytest

BLOCKED = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
"""


def python(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run_without_torch(code: str, **environment) -> subprocess.CompletedProcess:
    return python(BLOCKED + textwrap.dedent(code), **environment)


def test_the_block_blocks():
    """The test's own mutant: with torch imported, the runs below would fail."""
    asked = run_without_torch("import torch")
    assert asked.returncode == 1 and "No module named 'torch'" in asked.stderr


@pytest.mark.parametrize(
    "code",
    [
        """
        import picolab as pico
        layout = pico.Layout.parse("dp2tp2")
        assert str(layout) == "dp2tp2" and layout.world == 4 and repr(layout)
        config = pico.ModelConfig.preset("tiny")
        layout.check(config)
        """,
        """
        import json, dataclasses
        from picolab.specs import assemble
        from picolab.specs.settings import settings
        config = assemble(layout="dp2", hidden=64, steps=3, clip=None)
        assert config.tokens_per_step == 1024 and json.dumps(dataclasses.asdict(config))
        assert all(setting.about for setting in settings())
        """,
        """
        import picolab as pico
        config, layout = pico.ModelConfig.preset("tiny"), pico.Layout.parse("dp2tp2")
        assert pico.costs.parameters(config).total > 0
        ledger = pico.costs.step_ledger(config, layout, micro_batch=2, accumulate=2, seq=32)
        assert ledger and all(expected.count > 0 for expected in ledger.values())
        """,
        """
        from picolab.monitoring import Table, emit
        from picolab.monitoring.events import Event
        import picolab.monitoring.ledger, picolab.monitoring.beacon, picolab.monitoring.who_waits
        emit(loss=1.0)
        assert "loss" in repr(Table(["loss"], [[1.0]]))
        """,
        """
        from picolab.monitoring import BasicMonitoringSystem
        from picolab.monitoring.events import Event
        system = BasicMonitoringSystem({})
        told = {"step": 0, "layout": "dp1", "seconds": 1.0, "loss": 2.0, "own_loss": float("nan")}
        assert [a.ranks for a in system.add(Event("step", 0, 0.0, told))] == [(0,)]
        assert system.collector.over_ranks("loss").max == 2.0
        """,
        """
        from picolab.monitoring import AlertManager, Anomaly
        import picolab.monitoring.alert_summary, picolab.monitoring.notifiers
        alerts = AlertManager()
        alerts.tick(3, 1.0, [Anomaly("hang", 3, (1,), "nothing for 5 s")])
        assert [alert.rank for alert in alerts.firing] == [1]
        """,
        """
        import picolab as pico
        import picolab.launch
        from picolab.launch import rundirs
        assert rundirs.ls() == [] and pico.jobs is not None and pico.RankFailure is not None
        """,
        """
        from picolab.cli import main
        assert main(["runs", "ls"]) == 0
        """,
        """
        from picolab.lab.workcopy import make_copies
        """,
        """
        import picolab as pico
        assert pico.plan("llama-3-8b", 8, "h100", seq=8192, global_batch=64).best
        from picolab.cli import main
        assert main(["plan", "--gpus", "8", "--json"]) == 0
        """,
        """
        import pathlib, tempfile
        import picolab.interview.index, picolab.interview.lint, picolab.interview.mock
        import picolab.interview.statistics, picolab.interview.terminal
        from picolab.interview import anki, bank, reviews, session
        folder = pathlib.Path(tempfile.mkdtemp())
        questions = bank.load()
        practice = session.Session(questions, reviews.ReviewLog(folder / "reviews.jsonl"))
        practice.draw(), practice.reveal(), practice.propose([0]), practice.grade("good")
        assert anki.export(questions, folder / "out.apkg") > len(questions.questions()) > 0
        picolab.interview.lint.lint(bank.bank_folder())
        """,
    ],
    ids=[
        "specs",
        "settings",
        "costs",
        "monitoring",
        "monitors",
        "alerts",
        "launch",
        "cli",
        "workcopy",
        "planner",
        "interview",
    ],
)
def test_rooms_without_torch(code, tmp_path):
    asked = run_without_torch(
        textwrap.dedent(code) + "\nassert 'torch' not in sys.modules",
        XDG_STATE_HOME=str(tmp_path),
    )
    assert asked.returncode == 0, asked.stderr


def test_doctor_without_torch(tmp_path):
    """The doctor asks another process for torch; there it is missing, too, and it says so."""
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    asked = python(
        "import sys; from picolab.cli import main; sys.exit(main(['doctor']))",
        PYTHONPATH=str(tmp_path),
        XDG_STATE_HOME=str(tmp_path),
    )
    assert asked.returncode == 1, asked.stderr
    assert "not installed" in asked.stdout and "pip install -e '.[torch]'" in asked.stdout


@pytest.mark.parametrize("room", ["comm", "model", "parallel", "memory", "training"])
def test_rooms_that_need_torch_say_what_to_install(room):
    asked = run_without_torch(f"""
        import importlib
        try:
            module = importlib.import_module("picolab.{room}")
            for name in module.__all__:
                getattr(module, name)
        except ImportError as error:
            print(error)
        """)
    assert asked.returncode == 0, asked.stderr
    assert "pip install -e '.[torch]'" in asked.stdout, asked.stdout


def test_training_without_torch_is_one_sentence(tmp_path):
    asked = run_without_torch(
        "from picolab.cli import main; sys.exit(main(['train', '--steps', '1']))",
        XDG_STATE_HOME=str(tmp_path),
    )
    assert asked.returncode == 2
    assert "Traceback" not in asked.stderr and "pip install -e '.[torch]'" in asked.stderr


def test_import_picolab_is_light():
    """No torch, no process, no thread. The time is printed, and asserted nowhere."""
    asked = python("""
        import sys, threading, time
        began = time.perf_counter()
        import picolab
        spent = time.perf_counter() - began
        heavy = {"torch", "numpy", "plotly", "IPython", "ipywidgets"} & set(sys.modules)
        import psutil
        children = psutil.Process().children(recursive=True)
        print(f"import picolab: {spent * 1000:.0f} ms (aim: under 300)")
        assert not heavy and not children and threading.active_count() == 1, (heavy, children)
        """)
    print(asked.stdout)
    assert asked.returncode == 0, asked.stderr
    assert "import picolab" in asked.stdout


def test_help_and_the_start_of_a_run_take_no_torch():
    """The kernel imports it while ranks run: it needs it for the result."""
    asked = python("""
        import sys
        from picolab.cli import main
        for words in (["--help"], ["train", "--help"], ["doctor", "--help"], ["runs", "--help"]):
            try:
                main(words)
            except SystemExit as end:
                assert end.code == 0
        assert main(["train", "--layout", "dp2xx3"]) == 2
        assert not {"torch", "numpy", "plotly"} & set(sys.modules)
        """)
    assert asked.returncode == 0, asked.stderr
    assert "--micro-batch" in asked.stdout
