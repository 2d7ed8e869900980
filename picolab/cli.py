"""The command `picolab`: doctor, train, explain, debug, report, alerts, tune, plan, checkpoint,
verify, quiz, progress, runs and demo.

Each command is a small frozen dataclass whose fields are its flags, and a `run` that does the work
with imports of its own: `picolab --help` takes no torch. What a program may want to read goes to
stdout, what a person watches goes to stderr.

Exit status: 0 done, 1 it failed while running (a rank, the disk, the machine), 2 the request cannot
be met as it was put, 130 interrupted.
"""

import _thread
import contextlib
import json
import os
import re
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

import picolab
from picolab.show.plain import say_everything, visible
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
    elif setting.name == "model":
        word = f"{{{','.join(ModelConfig.presets())}}}"
    else:  # where None is the default there is no need to type it
        word = _WORDS.get(kinds[0])
        if NoneType in members and setting.default is not None:
            word += "|None"
    hint = "(default: the model's)" if setting.of is ModelConfig else None
    about = arg(help=setting.about, metavar=word, help_behavior_hint=hint)
    if NoneType in members:
        kinds.append(None)
    return setting.name, Annotated[Union[*kinds], about], field(default=setting.default)


_WORDS = {int: "INT", float: "FLOAT", str: "STR", bool: "{True,False}"}
Training, Shape, Launch = map(_flags, (TrainConfig, ModelConfig, RunOptions))


class _Several:
    """A command of several: the one that was asked for is its field `what`."""

    def run(self) -> int:
        return self.what.run()


@dataclass(frozen=True)
class Doctor:
    """Look at this machine: what a chapter needs, what is here, and the cure for what is
    missing."""

    json: bool = False
    """print one JSON object"""
    all: bool = False
    """every check, also where there is nothing to cure"""

    def run(self) -> int:
        from picolab.lab.doctor import doctor
        from picolab.show.terminal import say

        report = doctor()
        say(report.to_json() if self.json else report.full() if self.all else report)
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
    explain: bool = False
    """say, too, why a step took as long as it did (`picolab explain` says it of an earlier run)"""
    json: bool = False
    """print one JSON object: losses, grad_norms, tokens_per_s, step_s, cpu_s, ledger, params,
    run_dir; with --explain, explanation"""

    def run(self) -> int:
        from picolab import training
        from picolab.launch.worker import started
        from picolab.show.terminal import say

        if self.explain and self.training.steps < 2:
            raise ValueError("--explain needs --steps 2 or more: the first step warms up")
        given = asdict(self.training) | asdict(self.shape) | asdict(self.launch)
        # Whatever a rank or the launcher prints is for the person who watches; stdout holds the
        # result alone.
        with contextlib.redirect_stdout(sys.stderr):
            result = (training.train_here if started() else training.train)(**given)
        if result is None:  # under torchrun, rank 0 has it
            return 0
        explanation = result.explain() if self.explain else None
        if not self.json:
            print(result)
            if explanation is not None:
                print()
                say(explanation)
        elif explanation is None:
            print(result.to_json())
        else:
            found = {**json.loads(result.to_json()), "explanation": explanation.as_dict()}
            print(json.dumps(found))
        return 0


@dataclass(frozen=True)
class Explain:
    """Why is it slow? One step of a run that was trained: each rank's seconds without remainder,
    the causes in the order of what they cost, and what the step would have taken if.

    picolab explain 20261124-101530-0001-train --even-stages --micro-batches 16"""

    run_dir: Annotated[
        Positional[str], arg(metavar="RUN", help_behavior_hint="(default: the newest of train)")
    ] = ""
    """a run directory, or the name of one in `picolab runs ls`"""
    step: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: of median length)")
    ] = None
    """which step"""
    free_communication: bool = False
    """and if every transfer took nothing"""
    free_cores: bool = False
    """and if nobody waited for a core"""
    even_ranks: bool = False
    """and if no rank worked longer than those that do the same"""
    even_stages: bool = False
    """and if every stage took the mean of the stages"""
    micro_batches: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """and if the same global batch were cut into so many micro-batches"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.monitoring.explanation import explain
        from picolab.show.terminal import say

        asked = asdict(self)
        where, step, as_json = (asked.pop(name) for name in ("run_dir", "step", "json"))
        found = explain(_run_directory(where), step)
        what_if = found.what_if(**asked) if any(asked.values()) or asked["micro_batches"] else None
        if as_json:
            told = None
            if what_if is not None:
                told = {"what": what_if.what, "step_s": what_if.step_s, "factor": what_if.factor}
            print(json.dumps({**found.as_dict(), "what_if": told}))
            return 0
        say(found)
        if what_if is not None:
            print(f"\n{what_if}")
        return 0


def _run_directory(name: str) -> Path:
    """A path, the name of a run, or without either the newest that was trained."""
    from picolab.launch import rundirs

    if name:
        return rundirs.find(name)
    trained = [run for run in rundirs.ls() if run.name.endswith("-train")]
    if not trained:
        raise ValueError(f"there is no run in {rundirs.root()}; picolab train makes one")
    return trained[-1]


@dataclass(frozen=True)
class Debug:
    """Why does it stand still? Of a run that hangs, parted ways or died: each rank's last
    collective, who waits for whom, where each rank is, and whose fault it is, in one sentence.

    picolab debug 20261124-101530-0001-train --stacks"""

    run_dir: Annotated[
        Positional[str], arg(metavar="RUN", help_behavior_hint="(default: the newest)")
    ] = ""
    """a run directory, or the name of one in `picolab runs ls`"""
    stacks: bool = False
    """every rank's stack, too"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.launch import rundirs
        from picolab.monitoring.who_waits import of_folder
        from picolab.show.terminal import say

        run_dir = rundirs.find(self.run_dir)
        found = of_folder(run_dir, going_on=rundirs.is_running(run_dir))
        if self.json:
            print(json.dumps({"run_dir": str(run_dir), **found.as_dict()}))
            return 0
        say(found)
        if self.stacks and found.stacks:
            say(f"\n{found.stacks_text()}")
        return 0


@dataclass(frozen=True)
class Report:
    """A run as one HTML page, with everything in it: its panels, what was found, the debugger's
    verdict where it failed, its settings.

    picolab report 20261124-101530-0001-train -o monday.html"""

    run_dir: Annotated[
        Positional[str], arg(metavar="RUN", help_behavior_hint="(default: the newest)")
    ] = ""
    """a run directory, or the name of one in `picolab runs ls`; also one that goes on"""
    output: Annotated[
        Path | None,
        arg(metavar="FILE", aliases=("-o",), help_behavior_hint="(default: RUN.html, here)"),
    ] = None
    """where to write it"""
    peak_flops: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """what one rank's device can do a second, for the MFU"""

    def run(self) -> int:
        from picolab.lab.report import report

        print(report(self.run_dir, self.output, self.peak_flops))
        return 0


@dataclass(frozen=True)
class Alerts:
    """What somebody was told of a run, and what fires now.

    Of a run that no monitor watched it says what the rules make of its events; so it does with
    --rules, of any run. --check only reads a file of rules, and tells its mistakes."""

    run_dir: Annotated[
        Positional[str], arg(metavar="RUN", help_behavior_hint="(default: the newest trained one)")
    ] = ""
    """a run directory, or the name of a run as picolab runs ls shows it"""
    rules: Annotated[
        str | None, arg(metavar="FILE", help_behavior_hint="(default: the package's)")
    ] = None
    """alert rules in YAML"""
    check: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """only see whether a file of rules can be used"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.monitoring.alert_rules import load
        from picolab.monitoring.alert_summary import summary
        from picolab.show.terminal import say

        if self.check is not None:
            rules = load(self.check)
            names = [rule.name for rule in rules]
            shown = json.dumps({"rules": names}) if self.json else f"{len(names)} rules: all right"
            say(shown)
            return 0
        found = summary(_run_directory(self.run_dir), self.rules)
        say(found.to_json() if self.json else found)
        return 0


@dataclass(frozen=True)
class Tune:
    """Which layout is fastest here? The planner proposes, short real runs decide, and the default
    layout is the answer unless it is beaten in a last comparison.

    picolab tune --model tiny --world 4 --budget 60s

    With --folder it goes on where it stopped: after an interrupt, a kill, the end of the budget."""

    model: Annotated[str, arg(metavar=f"{{{','.join(ModelConfig.presets())}}}")] = "tiny"
    """a preset"""
    world: int = 4
    """how many ranks"""
    budget: Annotated[str, arg(metavar="TIME")] = "60s"
    """how long it may take, as 60s or 2m"""
    global_batch: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: 8 a rank)")
    ] = None
    """sequences of one optimizer step"""
    default: Annotated[
        str | None, arg(metavar="LAYOUT", help_behavior_hint="(default: all ranks on dp)")
    ] = None
    """the layout to beat"""
    data: Annotated[str, arg(metavar="PATH")] = "stdlib"
    """"stdlib", "random", or the path of text"""
    hardware: Annotated[
        str | None, arg(metavar="FILE", help_behavior_hint="(default: measured first)")
    ] = None
    """a JSON file with this machine's rates"""
    folder: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="(default: new)")] = None
    """where trials are kept, and gone on with"""
    shape: OmitArgPrefixes[Shape] = field(default=Shape())
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.show.terminal import say
        from picolab.specs import Hardware
        from picolab.training.tune import tune

        given = asdict(self) | asdict(self.shape)
        as_json, file, _ = given.pop("json"), given.pop("hardware"), given.pop("shape")
        hardware = None if file is None else Hardware.load(file)
        with contextlib.redirect_stdout(sys.stderr):
            found = tune(**given, hardware=hardware)
        print(found.to_json()) if as_json else say(found)
        return 0


@dataclass(frozen=True)
class Plan:
    """Which layout? Every one of so many devices, with what a step takes, or what kills it. By
    formulas, no device is used.

    picolab plan --model llama-3-70b --gpus 256 --hardware h100 --seq 8192 --global-batch 1024

    With --layout that one is judged, and told what would save it if it dies. Shard groups of ZeRO
    (dp8zero3shard4) and the schedule dualpipe-v are judged there, and not searched."""

    model: Annotated[str, arg(metavar="NAME|PATH")] = "llama-3-8b"
    """a preset, or a folder with a Hugging Face config.json"""
    gpus: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """how many devices; not needed with --layout"""
    hardware: Annotated[str, arg(metavar="NAME|FILE")] = "h100"
    """a device by name, or a JSON file with its numbers"""
    seq: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the model's)")] = (
        None
    )
    """tokens of a sequence"""
    global_batch: int = 1024
    """sequences of one optimizer step"""
    layout: Annotated[str | None, arg(metavar="LAYOUT", help_behavior_hint="")] = None
    """judge this layout: dp8zero3tp8pp8:interleaved"""
    micro_batch: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: the fastest)")
    ] = None
    """sequences of one forward pass of the judged layout"""
    recompute: Annotated[
        str | None,
        arg(metavar="{none,selective,full}", help_behavior_hint="(default: the fastest)"),
    ] = None
    """what the judged layout computes again in the backward pass"""
    practice: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: today)")] = (
        None
    )
    """how the code is written: today, megatron-2021, picolab, picolab-PRECISION"""
    imbalance: float = 1.0
    """of routing: the rows of the rank of ep with the most, over the mean"""
    all: bool = False
    """a row for every layout"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.planner import plan
        from picolab.show.terminal import say

        given = asdict(self)
        as_json, whole = given.pop("json"), given.pop("all")
        found = plan(**given)
        remedy = getattr(found, "remedy", None)
        if as_json:
            print(found.to_json())
        elif remedy is None:
            say(found.whole() if whole and self.layout is None else found)
        return 0 if remedy is None else _say(remedy, 2)


@dataclass(frozen=True)
class CheckpointVerify:
    """Read and hash every file: is every byte the one that was written? Exit status 1 if not."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """a checkpoint, or a folder of them"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.training import folder

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
class CheckpointLs:
    """List the checkpoints of a folder, oldest first."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """a folder of checkpoints"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.training import folder

        return _checkpoints(folder.contents(self.path), self.json)


@dataclass(frozen=True)
class Checkpoint(_Several):
    """Look at checkpoints: what there is, and whether every byte is the one that was written."""

    what: OmitSubcommandPrefixes[
        Annotated[CheckpointVerify, subcommand("verify")]
        | Annotated[CheckpointLs, subcommand("ls")]
    ]


@dataclass(frozen=True)
class Verify:
    """Train a small, awkward model in one process and in a layout, and compare everything. On a
    mismatch: the parameter, the ratio, and the most likely cause."""

    layout: str = "dp2tp2"
    """which layout; its ranks run here"""
    precision: Literal["fp64", "fp32", "bf16", "fp16"] = "fp64"
    """fp64 tells a bug from rounding: rounding shrinks, a bug does not"""
    fault: Annotated[str | None, arg(metavar="FAULT", help_behavior_hint="(default: none)")] = None
    """switch on a fault of the catalogue (listed below), and see it named"""
    expert_copies: Annotated[
        str | None, arg(metavar="COPIES", help_behavior_hint="(default: none)")
    ] = None
    """experts on further ranks of ep: "0@1 3@2" is 0 on rank 1 too, and 3 on rank 2"""
    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.debug import main_verify

        text, status = main_verify(
            self.layout, self.precision, self.fault, self.json, self.expert_copies
        )
        print(text)
        return status


def _topics() -> str:
    """The installed banks' names, for --help; nothing is read for it."""
    from picolab.interview.bank import BESIDE, BankError, bank_folder

    try:
        names = [path.stem for path in sorted(bank_folder().glob("*.yaml"))]
    except BankError:
        return "TOPIC"
    return f"{{{','.join(name for name in names if '.' not in name and name not in BESIDE)}}}"


Topic = Annotated[str | None, arg(metavar=_topics(), help_behavior_hint="(default: all)")]
Lang = Annotated[str, arg(metavar="{en,zh}")]
BankFolder = Annotated[
    str | None, arg(metavar="FOLDER", help_behavior_hint="(default: the installed one)")
]
LogFile = Annotated[
    str | None, arg(metavar="FILE", help_behavior_hint="(default: in your data folder)")
]


@dataclass(frozen=True)
class _Bank:
    """What all of `picolab quiz` can be told."""

    topic: Topic = None
    """of one bank only"""
    lang: Lang = "en"
    """en or zh"""
    bank: BankFolder = None
    """a folder of question banks"""
    log: LogFile = None
    """where grades are kept, and read from"""

    def folder(self) -> Path:
        from picolab import chapters
        from picolab.interview import bank

        chapters.register()
        return Path(self.bank) if self.bank else bank.bank_folder()

    def face(self):
        from picolab.interview import bank, reviews, terminal

        log = reviews.ReviewLog(Path(self.log) if self.log else None)
        return terminal.Terminal(bank.load(self.folder()), log, self.lang)


@dataclass(frozen=True)
class Practise(_Bank):
    """Practise: due questions first, then new ones, the easier and shorter ones before the others.
    With --minutes 45 it is a mock interview, with a report."""

    id: Annotated[Positional[str], arg(metavar="ID", help_behavior_hint="(default: none)")] = ""
    """of one question, as 4d-018, to be asked now"""
    level: Annotated[int | None, arg(metavar="{3,4,5,6}", help_behavior_hint="(default: all)")] = (
        None
    )
    """3 explain, 4 quantify, 5 design, 6 diagnose"""
    area: Annotated[str | None, arg(metavar="AREA", help_behavior_hint="(default: all)")] = None
    """of one area only, as pipeline"""
    kind: Annotated[str | None, arg(metavar="KIND", help_behavior_hint="(default: all)")] = None
    """explain, numeric, code, diagnose or design"""
    due: bool = False
    """only what is due"""
    weak: bool = False
    """what was graded hard or again, the worst first"""
    n: Annotated[
        int | None, arg(aliases=["-n"], metavar="INT", help_behavior_hint="(default: by time)")
    ] = None
    """how many questions"""
    within: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 20)")] = None
    """as many questions as should take so many minutes"""
    minutes: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(usual: 45)")] = None
    """a mock interview of so many minutes"""
    until: Annotated[str | None, arg(metavar="DATE")] = None
    """the day of an interview, as 2027-03-01: everything comes before it; remembered until "never"
    is said"""
    report: Annotated[str | None, arg(metavar="FILE")] = None
    """where the mock interview's report goes"""

    def run(self) -> int:
        from picolab.interview.session import day

        face = self.face()
        if self.until == "never":
            face.log.remember_until(None)
        until = None if self.until == "never" else day(self.until)
        choice = dict(level=self.level, area=self.area, kind=self.kind, due_only=self.due)
        choice |= dict(weak=self.weak, count=self.n, within=self.within)
        if self.minutes is not None:
            if self.id or any(choice.values()):
                raise ValueError(
                    "a mock interview (--minutes) chooses its questions itself; leave out the "
                    "question, --level, --area, --kind, --due, --weak, -n and --within"
                )
            report = Path(self.report) if self.report else None
            face.interview(self.minutes, self.topic, report, until)
        elif self.id:
            face.practise(until=until, plan=[face.bank.find(self.id).id], count=1)
        else:
            face.practise(until=until, topic=self.topic, **choice)
        return 0


@dataclass(frozen=True)
class ListQuestions(_Bank):
    """List the questions: id, level, minutes, kind, title, and when each comes again."""

    def run(self) -> int:
        self.face().questions(self.topic)
        return 0


@dataclass(frozen=True)
class Show(_Bank):
    """Show a question with its answer, rubric and sources."""

    id: Positional[str] = ""
    """of the question, as 4d-003; `picolab quiz list` has them"""

    def run(self) -> int:
        if not self.id:
            raise ValueError("say which question, as in picolab quiz show 4d-003")
        self.face().show(self.id)
        return 0


@dataclass(frozen=True)
class Stats(_Bank):
    """What is known, what comes due, and whether your confidence is earned."""

    def run(self) -> int:
        self.face().stats()
        return 0


@dataclass(frozen=True)
class Lint:
    """Check the banks: every mistake with its file and line. Exit status 1 if there is one."""

    strict: bool = False
    """a translation that is behind its English is an error"""
    bank: BankFolder = None
    """a folder of question banks"""

    def run(self) -> int:
        from picolab.interview.lint import main_lint

        return main_lint(_Bank(bank=self.bank).folder(), self.strict)


@dataclass(frozen=True)
class Export(_Bank):
    """Make a deck for Anki, or print what is asked without any answer."""

    to: Positional[Literal["anki", "prompts"]] = "anki"
    """the program, or the questions alone as Markdown"""
    file: Annotated[Positional[str], arg(metavar="FILE")] = "picolab.apkg"
    """where the deck goes; prompts are printed"""

    def run(self) -> int:
        from picolab.interview import bank
        from picolab.interview.anki import export
        from picolab.interview.prompts import prompts

        if self.to == "prompts":
            print(prompts(bank.load(self.folder()), self.lang, self.topic))
            return 0
        count = export(bank.load(self.folder()), Path(self.file), self.lang, self.topic)
        print(f"{count} cards in {self.file}")
        return 0


QUIZ = ("practise", "list", "show", "stats", "lint", "export")


@dataclass(frozen=True)
class Quiz(_Several):
    """Practise for interviews: questions whose numbers are computed, and come again when due.

    Alone, it asks for twenty minutes, as `picolab quiz practise` does; `picolab quiz 4d-018` asks
    that one."""

    what: OmitSubcommandPrefixes[
        Annotated[Practise, subcommand("practise")]
        | Annotated[ListQuestions, subcommand("list")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Stats, subcommand("stats")]
        | Annotated[Lint, subcommand("lint")]
        | Annotated[Export, subcommand("export")]
    ]


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
class RunsLs:
    """List run directories, oldest first."""

    json: bool = False
    """print one JSON object"""

    def run(self) -> int:
        from picolab.launch import rundirs
        from picolab.show.terminal import say

        say(_listing(rundirs, as_json=self.json))
        return 0


@dataclass(frozen=True)
class RunsRm:
    """Remove run directories: the named ones, or with --all every run that is not going on."""

    names: Annotated[
        Positional[tuple[str, ...]], arg(metavar="NAME...", help_behavior_hint="")
    ] = ()
    """the runs to remove; `picolab runs ls` shows the names"""
    all: bool = False
    """every run that is not going on"""

    def run(self) -> int:
        from picolab.launch import rundirs

        if self.all == bool(self.names):
            raise ValueError(
                "say which runs, or --all; picolab runs ls shows the names"
                if not self.names
                else "either names or --all, not both"
            )
        if self.all:
            names = [run.name for run in rundirs.ls() if not rundirs.is_running(run)]
        else:
            names = list(dict.fromkeys(self.names))
        for run in rundirs.remove(names):
            print(f"removed {run}")
        return 0


@dataclass(frozen=True)
class Runs(_Several):
    """List or remove run directories; picolab itself keeps the newest 20."""

    what: OmitSubcommandPrefixes[
        Annotated[RunsLs, subcommand("ls")] | Annotated[RunsRm, subcommand("rm")]
    ]


@dataclass(frozen=True)
class Demo:
    """A minute in the terminal. memory: what a step's bytes are for, what a budget lets each block
    do and why, and that the peak stays below it. monitoring: one of four ranks is slow for a while;
    it is found, named, and told to be over."""

    topic: Positional[Literal["memory", "monitoring"]]
    """about what"""
    layout: Annotated[
        str | None, arg(metavar="LAYOUT", help_behavior_hint="(default: dp1; monitoring: dp4)")
    ] = None
    """of the runs"""
    model: Annotated[
        str | None, arg(metavar="MODEL", help_behavior_hint="(default: tiny; monitoring: smaller)")
    ] = None
    """which model is trained"""

    def run(self) -> int:
        from picolab.show.terminal import say

        if self.topic == "memory":
            from picolab.training.memory_demo import memory_demo as demo
        else:
            from picolab.debug.monitoring_demo import monitoring_demo as demo

        asked = {"layout": self.layout, "model": self.model}
        for part in demo(**{name: value for name, value in asked.items() if value is not None}):
            say(part)
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
    | Annotated[Explain, subcommand("explain")]
    | Annotated[Debug, subcommand("debug")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Alerts, subcommand("alerts")]
    | Annotated[Tune, subcommand("tune")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Checkpoint, subcommand("checkpoint")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Quiz, subcommand("quiz")]
    | Annotated[Progress, subcommand("progress")]
    | Annotated[Runs, subcommand("runs")]
    | Annotated[Demo, subcommand("demo")]
)


def parse(words: list[str]):
    """The command that these words ask for. SystemExit after --help, and for what cannot be met."""
    # Alone, with flags or a question's id, `quiz` is practice; its --help lists what else there is.
    first = words[1] if len(words) > 1 else "--"
    if words[:1] == ["quiz"] and first not in (*QUIZ, "-h", "--help"):
        if not first.startswith("-") and not re.fullmatch(r"[a-z0-9_]+-\d+", first):
            raise ValueError(f"there is no `picolab quiz {first}`; there are {', '.join(QUIZ)}")
        words.insert(1, "practise")
    try:
        return tyro.cli(
            Command,
            prog="picolab",
            description="Learn how large models are trained on many devices, by training one on "
            "yours. `picolab --version` says which this is.",
            args=words,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit:
        if words[:1] == ["verify"] and {"-h", "--help"} & set(words):
            print(_faults())
        raise


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and turn what went wrong into one sentence and an exit status."""
    say_everything()
    if os.environ.get("NO_COLOR"):  # tyro asks TERM only; older ones have no such option
        getattr(tyro, "_experimental_options", {})["ansi_codes"] = False
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"picolab {picolab.__version__}")
        return 0
    try:
        with _no_interrupt_is_lost():
            return parse(words).run()
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


@contextlib.contextmanager
def _no_interrupt_is_lost():
    """Python drops a KeyboardInterrupt that meets the callback of a weak reference or a `__del__`,
    with "Exception ignored in". Such a one is sent again, a moment later."""
    told = sys.unraisablehook

    def again(lost):
        if lost.exc_type is not KeyboardInterrupt:
            told(lost)
            return
        later = threading.Timer(0.01, _thread.interrupt_main)
        later.daemon = True
        later.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = told


def _faults() -> str:
    """The catalogue, as --help of verify lists it."""
    try:
        from picolab.debug.faults import CATALOGUE
    except ImportError:
        return "The faults are listed where torch is installed."
    return "faults:\n" + "\n".join(f"  {name}" for name in CATALOGUE)


def _say(sentence: str, status: int) -> int:
    print(f"picolab: {visible(sentence)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
