"""The command `picolab`, as a user calls it: real ranks, and a process of its own where that is
what is asked (what goes to which stream, how it ends); else in this one, where torch is there.

Catches progress mixed into the JSON, a flag that does not reach the run, a traceback where a
sentence belongs, and ranks that outlive Ctrl-C. That the flags are the settings, with their
defaults: specs/test_settings.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

import picolab as pico
from picolab.cli import main
from picolab.costs import parameters
from picolab.launch import rundirs
from picolab.monitoring import Event
from picolab.monitoring.alert_history import Transition
from picolab.specs import ModelConfig
from picolab.specs.settings import settings

SMALL = ["--hidden", "32", "--ffn", "64", "--layers", "2", "--heads", "4", "--kv-heads", "2"]
SMALL += ["--seq", "16", "--micro-batch", "2", "--steps", "3"]


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "picolab", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def picolab(*words: str) -> subprocess.CompletedProcess:
    process = start(*words)
    stdout, stderr = process.communicate(timeout=180)
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


@pytest.fixture
def here(capsys):
    """The command in this process, where torch and the rank server are there already."""

    def call(*words: str) -> subprocess.CompletedProcess:
        try:
            status = main(list(words))
        except SystemExit as end:  # help
            status = end.code
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return call


def test_train_json():
    done = picolab("train", "--layout", "dp2tp2", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object and nothing else
    assert set(result) >= {
        *("losses", "grad_norms", "tokens_per_s", "step_s"),
        *("cpu_s", "ledger", "params", "run_dir"),
    }
    assert len(result["losses"]) == len(result["grad_norms"]) == len(result["step_s"]) == 3
    shape = dict(hidden=32, ffn=64, layers=2, heads=4, kv_heads=2, seq=16)
    assert result["params"] == parameters(ModelConfig.preset("tiny").replace(**shape)).total
    assert os.path.isdir(result["run_dir"])
    assert done.stderr.strip(), "progress goes to stderr"


def test_train_explains_and_so_does_explain_afterwards(here):
    done = here("train", "--layout", "dp2", *SMALL, "--explain", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    run = told["run_dir"].rpartition("/")[2]
    for words in ((), (run,), (told["run_dir"],)):
        again = here("explain", *words, "--json", "--free-communication")
        found = json.loads(again.stdout)
        assert found.pop("what_if")["factor"] >= 1 and found == told["explanation"]
    assert here("train", "--layout", "dp2", *SMALL, "--explain").stdout.count("Step ") == 1


def test_the_same_seed_gives_the_same_losses(here):
    words = ("train", *SMALL, "--accumulate", "2", "--data", "random", "--json")
    first, again, other = (
        json.loads(here(*words, "--seed", seed).stdout)["losses"] for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_the_optimizer_s_flags_reach_the_run(here):
    words = ("train", *SMALL, "--data", "random", "--json")
    plain, free, clipped, still = (
        json.loads(here(*words, *more).stdout)["losses"]
        for more in (
            (),
            ("--clip", "None"),
            ("--clip", "1e-9", "--eps", "1e-3", "--weight-decay", "0"),  # all but no step at all,
            ("--lr", "1e-9"),  # and so is this
        )
    )
    assert plain[0] == free[0] == clipped[0] == still[0]
    assert clipped == pytest.approx(still, rel=1e-5)
    assert plain[1:] != free[1:] and plain[1:] != pytest.approx(still[1:], rel=1e-3)


def test_help_explains_every_setting(here):
    done = here("train", "--help")
    said = " ".join(re.sub(r"[│─╭╮╰╯]", " ", done.stdout).split())
    for setting in settings():
        flag = f"--{setting.name.replace('_', '-')} "
        within = setting.name in ("latent", "rope_scaling")  # shapes within the shape
        assert within or (flag in said and setting.about in said), setting
    assert "--clip FLOAT|None" in said and "(default: 0.9 0.95)" in said


@pytest.mark.parametrize(
    "words, says",
    [
        ("--help", ["checkpoint", "quiz", "runs", "picolab --version"]),
        ("train --help", ["{tiny,", "llama-3-8b", "--explain"]),
        ("explain --help", ["RUN", "--even-stages", "--micro-batches INT"]),
        ("debug --help", ["RUN", "--stacks", "--json", "who waits for whom"]),
        ("tune --help", ["--budget TIME", "--folder FOLDER", "goes on where it stopped"]),
        ("verify --help", ["tp-norm-missing"]),
        ("plan --help", ["--global-batch INT", "dp8zero3tp8pp8:interleaved", "megatron-2021"]),
        ("quiz --help", ["practise", "list", "show", "stats", "lint", "export"]),
        ("quiz practise --help", ["mixed_precision,moe,monitoring}", "--minutes INT"]),
        ("quiz stats --help", ["What is known"]),
        ("quiz lint --help", ["--strict"]),
        ("runs rm --help", ["--all"]),
        ("runs ls --help", ["oldest first"]),
        ("checkpoint ls --help", ["a folder of checkpoints"]),
    ],
)
def test_each_help_is_its_own_and_shows_the_choices(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(one in printed for one in says), printed
    assert "{None}" not in printed
    assert ("--minutes INT" in printed) == ("practise --" in words)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"picolab {pico.__version__}\n"


def test_a_quiz_command_that_does_not_exist(here):
    done = here("quiz", "bad")
    assert done.returncode == 2 and done.stdout == ""
    said = "picolab: there is no `picolab quiz bad`; there are practise, list, show, stats,"
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--layout", "dp2xx3"], "'xx' is not an axis"),
        (["--layout", "tp5"], "5"),
        (["--model", "huge"], "huge"),
        (["--steps", "0"], "steps"),
        (["--data", "no/such/text"], "no/such/text"),
        (["--layout", "dp4zero1shard3"], "shard=3 does not divide dp=4"),
        (["--clip", "-1"], "clip"),
        (["--eval-every", "0"], "eval_every"),
        (["--family", "bert"], "bert"),
        (["--dtype", "int3"], "int3"),
        (["--backend", "smoke"], "smoke"),
    ],
)
def test_bad_input_is_one_sentence(here, words, sentence):
    done = here("train", *words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and sentence in done.stderr


def test_bad_input_is_one_sentence_in_a_process_of_its_own():
    done = picolab("train", "--layout", "dp2xx3")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "'xx' is not an axis" in done.stderr


def test_unknown_flag_names_the_nearest():
    done = picolab("train", "--stepz", "3")
    assert done.returncode == 2 and done.stdout == "" and "--steps" in done.stderr


def test_no_room_for_the_run_directory(here, tmp_path):
    (tmp_path / "state").write_text("a file where a folder should be")
    done = here("train", *SMALL)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "run directory" in done.stderr


def processes_of_this_test() -> list[psutil.Process]:
    """Every process that carries this test's own XDG_STATE_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("XDG_STATE_HOME") == os.environ["XDG_STATE_HOME"]:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_for_steps(process: subprocess.Popen) -> None:
    """Until a rank has written that it finished a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for run in rundirs.ls():
            if any('"step"' in path.read_text() for path in run.glob("events.*.jsonl")):
                return
        time.sleep(0.1)
    raise AssertionError(f"no step was seen: {process.communicate()}")


def nothing_left(within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while processes_of_this_test():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_interrupt():
    process = start("train", "--layout", "dp2", *SMALL, "--steps", "100000", "--json")
    wait_for_steps(process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == "" and "Traceback" not in stderr and "interrupted" in stderr
    assert nothing_left(), processes_of_this_test()


# An interrupt that comes while a weak reference is called back, which Python only reports.
LOST = """
import os, signal, sys, time, types, weakref
from picolab import cli

class Waits:
    def run(self):
        def gone(_):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        kept = set()
        reference = weakref.ref(kept, gone)
        del kept
        print("lost", flush=True)
        time.sleep(5)
        return 0

cli.parse = lambda words: Waits()
{mutant}
sys.exit(cli.main([]))
"""
MUTANT = "import contextlib; cli._no_interrupt_is_lost = contextlib.nullcontext"


@pytest.mark.parametrize(("mutant", "status"), [("", 130), (MUTANT, 0)])
def test_an_interrupt_in_a_callback_is_not_lost(mutant, status):
    script = LOST.format(mutant=mutant)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "lost\n"), done.stderr
    assert ("interrupted" in done.stderr) == (status == 130)
    assert ("Exception ignored" in done.stderr) == bool(mutant)


def test_a_killed_rank_is_one_sentence():
    process = start("train", "--layout", "dp2", *SMALL, "--steps", "100000", "--json")
    wait_for_steps(process)
    # The ranks are the leaves of the process tree.
    leaves = [p for p in psutil.Process(process.pid).children(recursive=True) if not p.children()]
    # Ranks, and multiprocessing's resource tracker (which has used more time than a young rank).
    ranks = [leaf for leaf in leaves if not any("resource_tracker" in w for w in leaf.cmdline())]
    assert len(ranks) == 2, [leaf.cmdline() for leaf in leaves]
    ranks[1].kill()
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 1, stderr
    assert stdout == "" and "Traceback" not in stderr
    assert "SIGKILL" in stderr.splitlines()[-1]
    assert nothing_left(), processes_of_this_test()


def test_runs_ls_and_rm(here):
    assert "no runs" in here("runs", "ls").stdout
    names = [rundirs.create(f"run{i}", {}).name for i in range(3)]
    for name in names:
        rundirs.finish(rundirs.root() / name, "done")
    listed = here("runs", "ls")
    assert listed.returncode == 0 and all(name in listed.stdout for name in names)
    read = json.loads(here("runs", "ls", "--json").stdout)
    assert [run["name"] for run in read["runs"]] == names
    assert {run["state"] for run in read["runs"]} == {"done"}
    assert here("runs", "rm", names[1]).returncode == 0
    assert [run.name for run in rundirs.ls()] == [names[0], names[2]]
    for words in (["rm", "nonsense"], ["rm"], ["rm", "--all", names[0]]):
        wrong = here("runs", *words)
        assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1, wrong.stderr
    assert here("runs", "ls", names[0]).returncode == 2
    assert here("runs", "rm", "--all").returncode == 0 and rundirs.ls() == []


def test_doctor_json(here):
    done = here("doctor", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["ok"] and {check["name"] for check in report["checks"]} >= {"torch", "loopback"}


def test_alerts_of_a_run(here, tmp_path):
    """Of one that nobody watched the rules' word on its events; of one that was, its history."""
    run = rundirs.create("train", {"state": "done", "world_size": 1})
    step = {"step": 0, "layout": "dp1", "seconds": 1.0, "loss": 2.0, "own_loss": 2.0}
    with open(run / "events.0.jsonl", "w") as file:
        for n, own in enumerate([2.0] * 30 + [float("nan")]):
            file.write(Event("step", 0, float(n), step | {"step": n, "own_loss": own}).to_json())
            file.write("\n")
    said = here("alerts").stdout  # (the newest run)
    assert "by the rules; nobody was told" in said and "not finite, rank 0" in said
    assert not (run / "alerts.jsonl").exists()
    told = json.loads(here("alerts", run.name, "--json").stdout)
    assert not told["watched"] and told["now"][0]["name"] == "not finite"
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - name: high\n    metric: loss\n    above: 1.5\n")
    assert "high: loss is 2 nats" in here("alerts", str(run), "--rules", str(rules)).stdout
    assert here("alerts", "--check", str(rules)).stdout == "1 rules: all right\n"
    rules.write_text("rules:\n  - name: high\n    metric: los\n    above: 1.5\n")
    bad = here("alerts", "--check", str(rules))
    assert bad.returncode == 2
    assert (
        bad.stderr
        == "picolab: rules.yaml, line 3: there is no metric 'los'; did you mean 'loss'?\n"
    )
    line = Transition(3, 2.0, 2, "hang", 1, "firing", "page", None, "stuck", None).to_json()
    (run / "alerts.jsonl").write_text(line + "\n")
    said = here("alerts").stdout
    assert "as its monitor told them" in said and "step 2: firing: hang, rank 1: stuck" in said
    (run / "alerts.jsonl").write_text(line.replace('"v": 1', '"v": 2') + "\n")
    other = here("alerts")
    assert other.returncode == 2 and "another version of picolab" in other.stderr
