"""All settings of a run, in one list, from which `train`, the command line and the panel are made.

    settings()        name, type, default and explanation of every setting, read from three classes:
                      TrainConfig   what decides the numbers
                      ModelConfig   the shape; None leaves the model as it is
                      RunOptions    how ranks are started and what is kept
    takes_settings    gives a function `f(**settings)` a signature and a docstring that show them

So a field added to one of the classes is a keyword of `pico.train`, a flag of `picolab train` and
an option of `pico.panel`, with its explanation, and nothing else has to be edited. An explanation
is the string under the field: Python drops it, so it is read from the source.
"""

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from picolab.specs.model_config import ModelConfig
from picolab.specs.train_config import TrainConfig, check_names


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is started and what is kept of it. Nothing here changes its numbers.

    Sizes and names are checked by who uses them, `training.Checkpoints` and `launch.run`.
    """

    checkpoint: str | Path | None = None
    """A folder that gets a checkpoint at the end and, with save_every, after every so many steps.
    None: none are written."""
    save_every: int | None = None
    """Steps from one checkpoint to the next. None: only at the end."""
    keep: int = 2
    """How many checkpoints to keep, the newest."""
    resume: str | Path | None = None
    """A checkpoint to go on from, in this layout or another, or a folder of them, for the newest;
    `steps` counts those before it too. Part of it is a pickle, which runs code: only one that you
    trust. None: begin at step 0."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """"auto" is nccl where there is a GPU for every rank, else gloo."""
    timeout: float = 120
    """Seconds without progress of any rank before the run counts as hung."""
    run_dir: str | Path | None = None
    """Where events and logs go. None: a new folder, see `picolab runs ls`."""

    def __post_init__(self):
        if not isinstance(self.timeout, int | float) or isinstance(self.timeout, bool):
            raise ValueError(f"timeout is {self.timeout!r}; it is a number of seconds")
        if self.run_dir is not None and not isinstance(self.run_dir, str | Path):
            raise ValueError(f"run_dir is {self.run_dir!r}; it is the path of a folder")

    @property
    def checkpoints(self) -> dict[str, Any]:
        """What `training.Checkpoints` takes."""
        return dict(
            folder=self.checkpoint, every=self.save_every, keep=self.keep, resume=self.resume
        )


class Setting(NamedTuple):
    name: str
    type: Any
    default: Any
    about: str
    """Its explanation, in one line."""
    of: type
    """The class that it is a field of."""


HEADINGS = {
    TrainConfig: "What is trained, and how",
    ModelConfig: "The shape, where it is not the model's own",
    RunOptions: "How it is run, and what is kept of it",
}


@functools.cache
def settings() -> tuple[Setting, ...]:
    """Every setting, in the order in which the classes name them."""
    found = []
    for of in HEADINGS:
        about = explanations(of)
        for field in fields(of):
            kind, default = field.type, field.default
            if of is ModelConfig:
                if field.name == "name":  # a changed shape is named after the one it came from
                    continue
                kind, default = kind | None, None
            assert field.name in about, f"{of.__name__}.{field.name} has no explanation under it"
            found.append(Setting(field.name, kind, default, about[field.name], of))
    return tuple(found)


def explanations(of: type) -> dict[str, str]:
    """The string under each field of a class, in one line."""
    module = ast.parse(inspect.getsource(inspect.getmodule(of)))
    [body] = [part.body for part in module.body if getattr(part, "name", None) == of.__name__]
    found = {}
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


def described(config: TrainConfig) -> dict[str, Any]:
    """Its settings as plain values, for people: the model, the run, and of the model's shape what
    has no default or another value."""
    of_run = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "model"}
    shape = {
        f.name: getattr(config.model, f.name)
        for f in fields(ModelConfig)
        if f.name != "name" and getattr(config.model, f.name) != f.default
    }
    found = {"model": config.model.name, **of_run, **shape}
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in found.items()
        if value is not None
    }


def split(given: dict[str, Any]) -> tuple[dict[str, Any], RunOptions]:
    """Settings by who takes them: those for `assemble`, and the RunOptions."""
    options = {field.name for field in fields(RunOptions)} & given.keys()
    rest = {name: value for name, value in given.items() if name not in options}
    return rest, RunOptions(**{name: given[name] for name in options})


def takes_settings(*positional: str) -> Callable[[Callable], Callable]:
    """Decorate `f(*, own=..., **settings)`: what it shows of itself is its own and every setting.

    positional: the settings that may be given without a name, in this order. The function gets
    those that were given, by name; a name that is not known is a ValueError with the nearest one.
    A parameter of its own that is called like a setting stands in its place.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        listed = [s for s in settings() if s.name not in signature.parameters]
        taken = {
            s.name: Parameter(s.name, Parameter.KEYWORD_ONLY, default=s.default, annotation=s.type)
            for s in listed
        }
        first = [
            taken.pop(name).replace(kind=Parameter.POSITIONAL_OR_KEYWORD) for name in positional
        ]
        shown = signature.replace(parameters=[*first, *own, *taken.values()])

        @functools.wraps(function)
        def call(*args, **named):
            check_names(named, set(shown.parameters))
            return function(**shown.bind(*args, **named).arguments)

        call.__signature__ = shown
        call.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\n{_manual(listed)}"
        return call

    return decorate


def _manual(listed: list[Setting]) -> str:
    """The settings with their explanations, as text for a docstring."""
    lines = []
    for of, heading in HEADINGS.items():
        lines += [f"{heading} ({of.__name__}):", ""]
        for setting in (s for s in listed if s.of is of):
            default = "" if of is ModelConfig else f" = {setting.default!r}"
            about = textwrap.fill(setting.about, 80, break_on_hyphens=False)
            lines += [f"    {setting.name}{default}", textwrap.indent(about, " " * 8)]
        lines.append("")
    return "\n".join(lines).rstrip()
