"""The scores of detection.py go on where they were interrupted.

Wrong versions these catch: a run that is done again though it is in the file, one that is taken for
done though its line was cut off, a torn line that swallows the next.
"""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import detection

from picolab.monitoring.anomalies import Anomaly

NAMES = ["NaN", "leak", "clean, a ring"]


@pytest.fixture
def done(monkeypatch):
    """Which runs were done; each accuses somebody, so that words are kept."""
    runs = []

    def run(name, seed):
        runs.append((name, seed))
        accused = [Anomaly("slow rank", 7, (seed,), f"rank {seed} comes late")]
        return detection.Score(True, seed != 1, 3 + seed, accused, ["busy host"], 280)

    monkeypatch.setattr(detection, "run", run)
    return runs


def measured(results, seeds=2):
    return detection.measure(seeds, NAMES, seeds, 3600, results)


def tables(scores):
    return repr(detection.table(scores)) + repr(detection.clean_table(scores))


def test_what_is_in_the_file_is_not_done_again(tmp_path, done):
    results = tmp_path / "scores.jsonl"
    first = measured(results)
    assert sorted(done) == sorted((name, seed) for name in NAMES for seed in range(2))
    done.clear()
    again = measured(results)
    assert done == [] and tables(again) == tables(first)
    assert measured(results, seeds=3)["NaN"][2].delay == 5
    assert sorted(done) == [(name, 2) for name in sorted(NAMES)]
    assert len(results.read_text().splitlines()) == 9


def test_a_line_that_was_cut_off_is_a_run_that_is_done_again(tmp_path, done):
    results = tmp_path / "scores.jsonl"
    first = measured(results)
    whole = results.read_text()
    last = json.loads(whole.splitlines()[-1])
    results.write_text(whole[:-30])
    done.clear()
    assert tables(measured(results)) == tables(first)
    assert done == [(last["run"], last["seed"])]
    done.clear()
    assert tables(measured(results)) == tables(first) and done == []


def test_without_a_file_everything_is_done(done):
    measured(None)
    measured(None)
    assert len(done) == 12


def test_the_time_that_is_given_ends_it_and_says_what_is_left(tmp_path, done, capsys):
    detection.measure(2, NAMES, 2, -1.0, tmp_path / "scores.jsonl")
    assert done == [] and "6 runs are still to be done" in capsys.readouterr().err
