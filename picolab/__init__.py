"""picolab: learn how large models are trained on many devices, by training one on yours.

`import picolab as pico` is the only import a notebook needs besides torch. Every public name
below is resolved on first use (PEP 562), so that the import itself takes no torch and starts
nothing outside an interactive kernel. In a kernel it registers `%%ranks` and warms the rank
server in the background; for a front end also what draws."""

import importlib
import sys

__version__ = "0.1.0"

# Public name -> the room (and the name in it) that holds it.
_PUBLIC = {
    "run": "picolab.launch:run",
    "jobs": "picolab.launch:jobs",
    "emit": "picolab.launch:emit",
    "expect_failure": "picolab.launch:expect_failure",
    "Observer": "picolab.monitoring:Observer",
    "Job": "picolab.launch:Job",
    "RunResult": "picolab.launch:RunResult",
    "RankFailure": "picolab.launch:RankFailure",
    "RankHang": "picolab.launch:RankHang",
    "Layout": "picolab.specs:Layout",
    "ModelConfig": "picolab.specs:ModelConfig",
    "Hardware": "picolab.specs:Hardware",
    "plan": "picolab.planner:plan",
    "train": "picolab.training:train",
    "TrainResult": "picolab.training:TrainResult",
    "explain": "picolab.monitoring.explanation:explain",
    "tune": "picolab.training.tune:tune",
    "verify": "picolab.debug:verify",
    "dry_run": "picolab.debug:dry_run",
    "diagnose": "picolab.debug:diagnose",
    "trace_step": "picolab.debug:trace_step",
    "compare_steps": "picolab.debug:compare_steps",
    "parallelize": "picolab.parallel:parallelize",
    "exercise": "picolab.exercises:exercise",
    "mystery": "picolab.lab:mystery",
    "progress": "picolab.exercises:progress",
    "guess": "picolab.lab:guess",
    "compare": "picolab.lab:compare",
    "scoreboard": "picolab.lab:scoreboard",
    "panel": "picolab.lab:panel",
    "budget_panel": "picolab.lab:budget_panel",
    "dashboard": "picolab.lab:dashboard",
    "report": "picolab.lab:report",
    "quiz": "picolab.lab:quiz",
    "doctor": "picolab.lab:doctor",
    "source": "picolab.lab:source",
    "timetable": "picolab.lab:timetable",
}
# Rooms a notebook reaches as an attribute: `pico.comm.all_reduce`, `pico.costs.parameters`.
_ROOMS = (
    "specs",
    "show",
    "costs",
    "schedules",
    "planner",
    "monitoring",
    "launch",
    "comm",
    "model",
    "moe",
    "precision",
    "memory",
    "parallel",
    "training",
    "debug",
    "exercises",
    "chapters",
    "lab",
)
# Those that take torch as they are imported. (`training` does so later, while ranks run.)
_WITH_TORCH = tuple(
    f"picolab.{room}"
    for room in ("comm", "model", "moe", "precision", "memory", "parallel", "debug")
)
# What knows no chapter until the chapters are registered with it; `lab` does that itself.
_ENGINES = ("picolab.exercises", "picolab.chapters")

__all__ = [*_PUBLIC, *_ROOMS]


def __getattr__(name):
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name].split(":")
        _prepare(module)
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value
        return value
    if name in _ROOMS:
        _prepare(f"picolab.{name}")
        return importlib.import_module(f"picolab.{name}")
    raise AttributeError(
        f"picolab has no {name!r}; its public names are: {', '.join(sorted(__all__))}"
    )


def _prepare(module):
    """Before a name of a module is given out: torch is whole, and the engines know the chapters."""
    if module.startswith(_WITH_TORCH):
        _whole("torch")
    if module.startswith(_ENGINES):
        importlib.import_module("picolab.chapters").register()


def _whole(package):
    """Import a large package in a thread of its own. Pressing stop ends the wait for it; in the
    middle of the import itself, it would leave half of torch behind, which no later import mends.
    """
    import contextlib
    import threading

    def load():
        with contextlib.suppress(Exception):  # who needs it says what is wrong
            importlib.import_module(package)

    if package not in sys.modules:
        thread = threading.Thread(target=load, name=f"picolab-import-{package}", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)


def __dir__():
    return sorted(__all__)


def _greet_kernel():
    """In an interactive kernel: register the magic, and let torch load while the reader reads."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or getattr(shell, "kernel", None) is None:
        return
    from picolab.launch import magic, server

    magic.load(shell)
    server.warm()

    from picolab.show import front_end

    if front_end.has_front_end():
        import threading

        from picolab.show import theme

        theme.save_with(shell)
        threading.Thread(target=_warm_kernel, name="picolab-warm", daemon=True).start()


def load_ipython_extension(shell):
    """`%load_ext picolab`: the magic, where no kernel registers it (IPython in a terminal)."""
    from picolab.launch import magic

    magic.load(shell)


def _warm_kernel():
    """What figures need, while the reader reads; plotly's script and the rule for their text are
    sent to the page as well. Each import enters by one door, so that a cell that imports the same
    meanwhile waits for it. torch comes last: the rank server loads its own just now, and ranks are
    waited for.
    """
    import contextlib
    import time

    with contextlib.suppress(ImportError):  # who needs it says what to install
        importlib.import_module("picolab.show.theme").follow()
        importlib.import_module("picolab.lab.live_figure").Plotly.here()
        time.sleep(5)
        importlib.import_module("torch")


_greet_kernel()
