"""The tuner: that real runs decide, that the default is never left for something slower, and that
no trial is lost, however the tuning ends.

What decides is tested with runs that take what a table says, so that every case can be had at once;
two tests at the end run real ranks. Wrong versions that are caught, kept below as mutants: the best
of the halving wins without the last comparison; the budget is looked at before a trial only.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import picolab as pico
from picolab import launch
from picolab.cli import main
from picolab.specs import Hardware, ModelConfig, TrainConfig
from picolab.training import tune as module
from picolab.training.tune import seconds_of, tune
from picolab.training.tune_log import Question, TuneLog

CORES = Hardware(
    name="two cores", peak_flops=5e10, memory_bytes=8e9, memory_bytes_per_s=8e9,
    link_bytes_per_s=2e9, network_bytes_per_s=2e9, link_alpha_s=1e-4, source="a test",
    measured=True, cores=2,
)  # fmt: skip
SHAPE = dict(layers=2, hidden=32, ffn=64, heads=4, kv_heads=2, seq=16)
ASKED = dict(model="tiny", world=2, global_batch=8, hardware=CORES, progress=False, **SHAPE)


class Runs:
    """Stands for `train`: a run of a layout takes what the table says, and the clock goes on."""

    def __init__(self, monkeypatch, table, wall=1.0):
        self.table, self.wall, self.calls, self.clock = table, wall, [], 0.0
        self.stop_at = None  # the call in which Ctrl-C is pressed
        monkeypatch.setattr(module, "train", self.train)
        monkeypatch.setattr(launch, "run", lambda *_, **__: None)
        time_of = SimpleNamespace(monotonic=lambda: self.clock, sleep=self.sleep)
        monkeypatch.setattr(module, "time", time_of)

    def sleep(self, seconds):
        if self.stop_at == len(self.calls):
            raise KeyboardInterrupt
        self.clock += seconds

    def train(self, *, layout, steps, run_dir, wait, progress, **settings):
        pico.specs.TrainConfig(layout=layout, steps=steps, **settings)
        self.calls.append(layout)
        return Fake(self, layout, self.clock + self.wall, len(self.calls))


class Failed(launch.RankFailure):
    def __init__(self, said):
        RuntimeError.__init__(self, said)

    def headline(self):
        return self.args[0]


class Fake:
    """A job."""

    def __init__(self, runs, layout, end, number):
        self.runs, self.layout, self.end, self.number, self.stopped = (
            runs,
            layout,
            end,
            number,
            False,
        )

    @property
    def done(self):
        return self.runs.clock >= self.end

    def stop(self):
        self.stopped = True

    def result(self):
        said = self.runs.table.get(self.layout, 0.3)
        if isinstance(said, list):  # one after the other
            said = said[self.runs.calls[: self.number].count(self.layout) - 1]
        if isinstance(said, str):
            raise Failed(said)
        return SimpleNamespace(step_s=[9.0, said, said])


def test_the_fastest_wins_and_the_evidence_says_why(monkeypatch):
    runs = Runs(monkeypatch, {"dp2": 0.2, "dp2zero1": 0.25, "pp2": 0.1, "dp2zero3": "no memory"})
    found = tune(**ASKED, budget="100s")
    assert str(found.layout) == "pp2" and str(found.default) == "dp2"
    assert found.compared and found.whole and found.factor == pytest.approx(2.0)
    assert runs.calls[-10:] == ["dp2", "pp2", "pp2", "dp2"] * 2 + ["dp2", "pp2"]  # interleaved
    became = {row[0]: row[5] for row in found.table().rows}
    assert became["pp2"] == "the answer" and "failed: " in became["dp2zero3"]
    assert became["dp2zero1"] == "dropped in round 3: 2.50x the fastest"
    assert became["dp2"] == "the default: 2.00x the time of the answer"
    settings = found.settings
    assert settings["layout"] == "pp2"
    assert settings["accumulate"] * settings["micro_batch"] == ASKED["global_batch"]
    told = json.loads(found.to_json())
    assert told["layout"] == "pp2" and len(told["finals"]["dp2"]) == 5
    assert "2.00x as fast as the default dp2" in repr(found)
    halved = [row[4] for row in found.table().rows[1:]]
    assert sorted(halved, reverse=True)[:5] == [3, 3, 2, 2, 1]  # 8, 4, 2, and then one is left


def test_it_is_never_slower_than_the_default():
    with pytest.MonkeyPatch.context() as patch:
        # Fast in the halving (by luck), slow in the last comparison.
        lucky = [0.1, 0.1, 0.1, *[0.25] * 5]
        Runs(patch, {"dp2": 0.2, "pp2": lucky})
        found = tune(**ASKED, budget="100s")
        assert str(found.layout) == "dp2" and found.factor == 1.0 and found.compared
        assert "the best contender, pp2, takes 1.25x its time" in found.sentence()
        # Mutant: what the halving said would do.
        halving = {c.layout: found._log.halving(i) for i, c in enumerate(found.contenders)}
        best = min((t[-1].seconds, name) for name, t in halving.items() if t[-1].seconds)[1]
        assert best == "pp2"
    with pytest.MonkeyPatch.context() as patch:
        Runs(patch, {"dp2": 0.2, "pp2": [0.1] * 4 + ["a rank died"] + [0.1] * 9})
        found = tune(**ASKED, budget="100s")
        assert str(found.layout) == "dp2" and not found.compared


@pytest.mark.parametrize("budget", [3, 13, 17, 24, 1000])
def test_the_budget_is_kept(monkeypatch, budget):
    runs = Runs(monkeypatch, {"dp2": 0.2, "pp2": 0.1})
    found = tune(**ASKED, budget=budget)
    assert runs.clock <= budget + 0.1
    assert found.whole == (budget == 1000)
    if not found.compared:
        assert str(found.layout) == "dp2" and "to the end" in found.sentence()
        assert f"go on with folder={found.folder}" in found.sentence()
    if budget >= 13:  # there was time for the comparison, so it was kept for that
        assert found.compared


def test_a_trial_that_would_outlast_the_budget_is_stopped(monkeypatch):
    runs = Runs(monkeypatch, {}, wall=500.0)
    found = tune(**ASKED, budget=30)
    assert runs.clock <= 30.1 and not found.trials and str(found.layout) == "dp2"


def test_interrupted_twice_it_goes_on_and_decides_the_same(monkeypatch, tmp_path, capsys):
    table = {"dp2": 0.2, "dp2zero1": 0.15, "pp2": 0.1}
    whole = Runs(monkeypatch, table)
    expected = tune(**ASKED, budget=100, folder=tmp_path / "at once")
    total, calls = len(expected.trials), []
    for stop_at in (4, 9):
        runs = Runs(monkeypatch, table)
        runs.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            tune(**ASKED, budget=100, folder=tmp_path / "f")
        calls += runs.calls[:-1]  # all but the one that was cut off
        assert f"tune: interrupted; {len(calls)} trials are kept" in capsys.readouterr().err
        kept = TuneLog.open(tmp_path / "f", expected._log.question).trials
        assert len(kept) == len(calls)
        with open(tmp_path / "f" / "trials.jsonl", "a") as file:
            file.write('{"kind": "trial", "rou')  # and a kill tore a line
    last = Runs(monkeypatch, table)
    found = tune(**ASKED, budget=100, folder=tmp_path / "f")
    assert calls + last.calls == whole.calls and len(found.trials) == total
    assert found.layout == expected.layout and found.finals == expected.finals
    again = Runs(monkeypatch, table)
    assert tune(**ASKED, budget=100, folder=tmp_path / "f").layout == found.layout
    assert again.calls == []


def test_after_the_budget_it_goes_on(monkeypatch, tmp_path):
    table = {"dp2": 0.2, "pp2": 0.1}
    first = Runs(monkeypatch, table)
    assert not tune(**ASKED, budget=13, folder=tmp_path).whole
    second = Runs(monkeypatch, table)
    found = tune(**ASKED, budget=100, folder=tmp_path)
    assert found.whole and str(found.layout) == "pp2"
    # A comparison with another opponent is a new one, of both.
    finals = [t for t in found.trials if t.round < 0]
    assert {t.round for t in finals if t.contender == 0} == {t.round for t in finals}
    assert len(first.calls) + len(second.calls) == len(found.trials)


BAD = [
    (dict(budget="soon"), "budget is 'soon'; it is a time, such as 60s or 2m"),
    (dict(budget=-5), "budget is -5; it is a time"),
    (dict(world=0), "world is 0; it is a number of ranks, 1 or more"),
    (dict(global_batch=3), "dp2 cannot share 3 sequences evenly; take a multiple of 2"),
    (dict(global_batch=2.5), "global_batch is 2.5; it is a whole number"),
    (dict(default="dp4"), "dp4"),
    (dict(default="tp3"), "tp3|tp=3"),
    (dict(hiden=3), "hiden"),
    (dict(model="tny"), "did you mean|tiny"),
]


@pytest.mark.parametrize(("changed", "sentence"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_input_is_one_sentence(changed, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        tune(**{**ASKED, "budget": 10, "folder": tmp_path / "f", **changed})
    assert not (tmp_path / "f").exists()


def test_a_folder_of_something_else(monkeypatch, tmp_path, capsys):
    Runs(monkeypatch, {})
    tune(**ASKED, budget=1, folder=tmp_path)
    with pytest.raises(ValueError, match="another question: global_batch is 16, there it was 8"):
        tune(**{**ASKED, "global_batch": 16}, budget=1, folder=tmp_path)
    with pytest.raises(ValueError, match="another question: model is another"):
        tune(**{**ASKED, "hidden": 64}, budget=1, folder=tmp_path)
    (tmp_path / "trials.jsonl").write_text('{"kind": "question", "version": 7}\n')
    assert main(["tune", "--folder", str(tmp_path), "--budget", "1s"]) == 2
    assert "was written by another version of picolab" in capsys.readouterr().err


def test_times():
    assert [seconds_of(t) for t in ("60s", "2m", "1.5 min", "7", 8, 0.5)] == [
        60,
        120,
        90,
        7,
        8,
        0.5,
    ]


def test_real_ranks_decide(monkeypatch):
    monkeypatch.setattr(module, "CONTENDERS", 1)
    monkeypatch.setattr(module, "FINALS", 2)
    found = tune(**ASKED, budget="120s")
    assert found.compared and found.whole and len(found.trials) == 6
    assert all(trial.seconds > 0 for trial in found.trials)
    answer, default = found.finals[str(found.layout)], found.finals["dp2"]
    assert statistics.median(answer) <= statistics.median(default)
    assert len(list((found.folder / "runs").iterdir())) == 6
    assert not launch.rundirs.ls() or "tunings" not in str(launch.rundirs.ls()[0])
    pico.explain(next((found.folder / "runs").iterdir()))  # a trial is a run like any other


def test_ctrl_c_in_a_terminal_loses_no_trial(tmp_path):
    (tmp_path / "here.json").write_text(CORES.to_json())
    shape = [w for name, v in SHAPE.items() for w in (f"--{name.replace('_', '-')}", str(v))]
    words = ["tune", "--world", "2", "--global-batch", "8", "--budget", "10m", *shape]
    words += ["--hardware", str(tmp_path / "here.json"), "--folder", str(tmp_path / "f")]
    file = tmp_path / "f" / "trials.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "picolab", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not file.exists() or file.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout == "", stderr
    trials = [json.loads(line) for line in file.read_bytes().splitlines()][2:]
    assert f"tune: interrupted; {len(trials)} trials are kept" in stderr
    assert len(trials) >= 2 and "Traceback" not in stderr
    # And whoever asks the same again finds them.
    config = TrainConfig(model=ModelConfig.preset("tiny").replace(**SHAPE))
    question = Question.of(config, 2, 8, pico.Layout(dp=2))
    assert [trial._asdict() for trial in TuneLog.open(tmp_path / "f", question).trials] == [
        {name: value for name, value in trial.items() if name != "kind"} for trial in trials
    ]
