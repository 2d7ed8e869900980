"""The command `picolab`: doctor, train, checkpoint, verify, quiz, progress, runs.

Each command is a small frozen dataclass whose fields are its flags, and a `run` that does the work
with imports of its own: `picolab --help` takes no torch. What a program may want to read goes to
stdout, what a person watches goes to stderr.

Exit status: 0 done, 1 it failed while running (a rank, the disk, the machine), 2 the request cannot
be met as it was put, 130 interrupted.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from picolab.specs import ModelConfig, TrainConfig
from picolab.specs.settings import HEADINGS, RunOptions, Setting, settings


def _flags(of: type) -> type:
    """The settings of one class as a dataclass that tyro reads: a flag each, under one heading."""
    made = [_flag(setting) for setting in settings() if setting.of is of]
    about = {"__doc__": f"{HEADINGS[of]}."}
    return make_dataclass(of.__name__, filter(None, made), frozen=True, namespace=about)


def _flag(setting: Setting) -> tuple | None:
    """One of them; None for what cannot be typed in a terminal."""
    union = get_origin(setting.type) in (Union, UnionType)
    members = get_args(setting.type) if union else (setting.type,)
    choices = [get_args(kind) for kind in members if get_origin(kind) is Literal]
    kinds = [kind for kind in members if kind in _WORDS or get_origin(kind) is tuple]
    if choices:  # a wrong one is refused by the setting's own check, in one sentence
        kinds, word = [str], f"{{{','.join(choices[0])}}}"
    elif not kinds:
        return None
    elif Path in members:
        word = "PATH"
    else:  # where None is the default there is no need to type it; elsewhere tyro offers it
        word = _WORDS.get(kinds[0]) if setting.default is None else None
    hint = "(default: the model's)" if setting.of is ModelConfig else None
    about = arg(help=setting.about, metavar=word, help_behavior_hint=hint)
    if NoneType in members:
        kinds.append(None)
    return setting.name, Annotated[Union[*kinds], about], field(default=setting.default)


_WORDS = {int: "INT", float: "FLOAT", str: "STR", bool: "{True,False}"}
Training, Shape, Launch = map(_flags, (TrainConfig, ModelConfig, RunOptions))


@dataclass(frozen=True)
class Doctor:
    """Look at this machine: what a chapter needs, what is here, and the cure for what is
    missing."""

    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.lab.doctor import doctor
        from picolab.show.terminal import say

        report = doctor()
        say(report.to_json() if self.json else report)
        return 0 if report.ok else 1


@dataclass(frozen=True)
class Train:
    """Train a model on real ranks of this machine; progress goes to stderr.

    On several machines, or where ranks are started already: torchrun --nproc-per-node 4 -m picolab
    train --layout dp2tp2

    The shape flags change the model's preset, so that anyone can repeat a published configuration:
    picolab train --hidden 256 --ffn 688 --layers 8 --heads 8 --kv-heads 4 --vocab 4096 --seq 256
    --micro-batch 2 --accumulate 4"""

    training: OmitArgPrefixes[Training] = field(default=Training())
    shape: OmitArgPrefixes[Shape] = field(default=Shape())
    launch: OmitArgPrefixes[Launch] = field(default=Launch())
    json: bool = False
    """print one JSON object: losses, grad_norms, tokens_per_s, step_s, cpu_s, ledger, params,
    run_dir"""

    def run(self) -> int:
        from picolab.training import is_rank, train, train_here

        given = asdict(self.training) | asdict(self.shape) | asdict(self.launch)
        # Whatever a rank or the launcher prints is for the person who watches; stdout holds the
        # result alone.
        with contextlib.redirect_stdout(sys.stderr):
            result = train_here(**given) if is_rank() else train(**given)
        if result is not None:  # under torchrun, rank 0 has it
            print(result.to_json() if self.json else result)
        return 0


@dataclass(frozen=True)
class Checkpoint:
    """Look at checkpoints: is every byte the one that was written? Exit status 1 if not."""

    action: Positional[Literal["verify", "ls"]]
    """verify reads and hashes every file; ls lists the checkpoints of a folder, oldest first"""
    path: Annotated[Positional[str], arg(metavar="PATH")]
    """a checkpoint, or a folder of them"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.training import folder

        if self.action == "ls":
            return _checkpoints(folder.contents(self.path), self.json)
        found = folder.verify(self.path)
        if self.json:
            shown = [{**asdict(one), "path": str(one.path)} for one in found]
            print(json.dumps({"checkpoints": shown}))
        else:
            for one in found:
                for name, wrong in one.files.items():
                    file = f"{one.path.name}/{name}"
                    print(f"ok       {file}" if wrong is None else f"damaged  {file} {wrong}")
                print(*one.notes, sep="\n", end="\n" if one.notes else "")
        return 0 if all(wrong is None for one in found for wrong in one.files.values()) else 1


@dataclass(frozen=True)
class Verify:
    """Train a small, awkward model in one process and in a layout, and compare everything. On a
    mismatch: the parameter, the ratio, and the most likely cause."""

    layout: str = "dp2tp2"
    """which layout; its ranks run here"""
    dtype: Literal["fp64", "fp32"] = "fp64"
    """fp64 tells a bug from rounding: rounding shrinks, a bug does not"""
    fault: str | None = None
    """switch on a fault of the catalogue, and see it named"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.debug import main_verify

        text, status = main_verify(self.layout, self.dtype, self.fault, self.json)
        print(text)
        return status


@dataclass(frozen=True)
class Quiz:
    """Practise for interviews: questions whose numbers are computed, and come again when due.

    Alone, it asks up to five: due ones first, then new ones. With --minutes 45 it is a mock
    interview, with a report. `quiz show ID` shows a question with its answer, `quiz stats` what is
    known and what comes, `quiz lint` checks the banks, `quiz export anki out.apkg` makes a deck."""

    action: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[show ID | stats | lint | export anki FILE]")
    ] = ()
    """nothing: practise"""
    topic: str | None = None
    """of one bank only, for instance 4d_basics"""
    level: int | None = None
    """3 explain, 4 quantify, 5 design, 6 diagnose"""
    due: bool = False
    """only what is due"""
    n: Annotated[int, arg(aliases=["-n"])] = 5
    """how many questions"""
    minutes: int | None = None
    """a mock interview of so many minutes"""
    lang: str = "en"
    """en or zh"""
    until: Annotated[str | None, arg(metavar="DATE")] = None
    """the day of an interview, as 2027-03-01: everything comes before it"""
    report: Annotated[str | None, arg(metavar="FILE")] = None
    """where the mock interview's report goes"""
    strict: bool = False
    """lint: a translation that is behind its English is an error"""
    bank: Annotated[
        str | None, arg(metavar="FOLDER", help_behavior_hint="(default: the installed one)")
    ] = None
    """a folder of question banks"""
    log: Annotated[
        str | None, arg(metavar="FILE", help_behavior_hint="(default: in your data folder)")
    ] = None
    """where grades are kept, and read from"""

    def run(self) -> int:
        from picolab import chapters
        from picolab.interview import bank, reviews, terminal
        from picolab.interview.session import day

        chapters.register()
        what, *rest = self.action or ("practise",)
        wanted = {"practise": 0, "show": 1, "stats": 0, "lint": 0, "export": 2}
        if what not in wanted or len(rest) != wanted[what]:
            raise ValueError(
                f"picolab quiz {' '.join(self.action)}: write picolab quiz, or one of show ID, "
                "stats, lint, export anki FILE"
            )
        if self.minutes is not None and (self.level is not None or self.due):
            raise ValueError(
                "a mock interview (--minutes) chooses levels and questions itself; leave out "
                "--level and --due"
            )
        folder = Path(self.bank) if self.bank else bank.bank_folder()
        if what == "lint":
            from picolab.interview.lint import main_lint

            return main_lint(folder, self.strict)
        questions = bank.load(folder)
        if what == "export":
            from picolab.interview.anki import export

            if rest[0] != "anki":
                raise ValueError(f"only anki can be exported to, not {rest[0]!r}")
            count = export(questions, Path(rest[1]), self.lang, self.topic)
            print(f"{count} questions in {rest[1]}")
            return 0
        log = reviews.ReviewLog(Path(self.log) if self.log else None)
        face = terminal.Terminal(questions, log, self.lang)
        if what == "show":
            face.show(rest[0])
        elif what == "stats":
            face.stats()
        elif self.minutes is not None:
            report = Path(self.report) if self.report else None
            face.interview(self.minutes, self.topic, report, day(self.until))
        else:
            face.practise(self.topic, self.level, self.due, self.n, day(self.until))
        return 0


@dataclass(frozen=True)
class Progress:
    """Which exercises are done, tried or open, over all sessions in a notebook."""

    chapter: str | None = None
    """of one chapter only: 4d"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab import chapters
        from picolab.exercises.record import progress, standing
        from picolab.show.terminal import say

        chapters.register()
        if self.json:
            print(json.dumps({"exercises": standing(self.chapter, kept=True)}))
        else:
            say(progress(self.chapter, kept=True))
        return 0


@dataclass(frozen=True)
class Runs:
    """List or remove run directories; picolab itself keeps the newest 20."""

    action: Positional[Literal["ls", "rm"]]
    """ls lists them, oldest first; rm removes the named ones"""
    names: Annotated[
        Positional[tuple[str, ...]], arg(metavar="NAME...", help_behavior_hint="")
    ] = ()
    """the runs to remove"""
    all: bool = False
    """rm: every run that is not going on"""
    json: bool = False
    """ls: print one JSON object"""

    def run(self) -> int:
        from picolab.launch import rundirs
        from picolab.show.terminal import say

        if self.action == "ls":
            if self.names or self.all:
                raise ValueError(
                    "picolab runs ls takes no names; to remove runs: picolab runs rm NAME..."
                )
            say(_listing(rundirs, as_json=self.json))
            return 0
        if self.all == bool(self.names):
            raise ValueError(
                "picolab runs rm needs names, or --all; picolab runs ls shows the names"
            )
        if self.all:
            names = [run.name for run in rundirs.ls() if not rundirs.is_running(run)]
        else:
            names = list(dict.fromkeys(self.names))
        for run in rundirs.remove(names):
            print(f"removed {run}")
        return 0


def _listing(rundirs, as_json: bool):
    from picolab.show.table import Table, bytes_text

    rows = []
    for run in rundirs.ls():
        about = rundirs.describe(run)
        state = about.get("state") or "unknown"
        if state in ("running", "waiting") and not rundirs.is_running(run):
            state = "ended without a note"
        rows.append((run.name, state, about.get("started"), rundirs.size(run)))
    if as_json:
        keys = ("name", "state", "started", "bytes")
        return json.dumps(
            {"root": str(rundirs.root()), "runs": [dict(zip(keys, row)) for row in rows]}
        )
    if not rows:
        return f"no runs in {rundirs.root()}"
    shown = [
        (
            name,
            state,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "",
            bytes_text(size),
        )
        for name, state, started, size in rows
    ]
    return Table(["run", "state", "started", "size"], shown, title=str(rundirs.root()))


def _checkpoints(found: list[dict], as_json: bool) -> int:
    from picolab.show.table import Table, bytes_text

    if as_json:
        print(json.dumps({"checkpoints": found}))
        return 0
    columns = ("name", "step", "layout", "size", "state")
    rows = [
        [*(one[key] for key in columns[:3]), bytes_text(one["bytes"]), one["state"]]
        for one in found
    ]
    print(Table(["checkpoint", *columns[1:]], rows))
    return 0


Command = (
    Annotated[Doctor, subcommand("doctor")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Checkpoint, subcommand("checkpoint")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Quiz, subcommand("quiz")]
    | Annotated[Progress, subcommand("progress")]
    | Annotated[Runs, subcommand("runs")]
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn what went wrong into one sentence and an exit status."""
    if os.environ.get("NO_COLOR"):  # tyro asks TERM only; older ones have no such option
        getattr(tyro, "_experimental_options", {})["ansi_codes"] = False
    command = tyro.cli(
        Command,
        prog="picolab",
        description="Learn how large models are trained on many devices, by training one on yours.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        return command.run()
    except KeyboardInterrupt:
        return _say("interrupted; no rank is left", 130)
    except (ValueError, ImportError) as error:
        return _say(str(error), 2)
    except OSError as error:
        return _say(str(error), 1)
    except RuntimeError as error:
        from picolab.launch import RankFailure

        if not isinstance(error, RankFailure):
            raise
        return _say(error.headline(), 1)


def _say(sentence: str, status: int) -> int:
    print(f"picolab: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
