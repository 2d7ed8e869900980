"""Metrics from events, and out again. What goes out is read back by the format's own reader, where
it is installed.

Wrong versions these catch: a counter that adds up what every rank tells for all, a mean that hides
whose the largest is, memory that grows with the run, a port in use that ends in a traceback, a
server that outlives its monitor, a missing package that is not named.
"""

import builtins
import csv
import json
import math
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from recorded import recorded_run

from picolab.monitoring import BasicMonitoringSystem, Event, MetricsCollector
from picolab.monitoring.metrics import Histogram

STEPS = 12


@pytest.fixture(scope="module")
def events():
    return [
        event._replace(data=event.data | {"rss_bytes": 1e8 * (1 + event.rank), "skipped": False})
        if event.kind == "step"
        else event
        for event in recorded_run(steps=STEPS)
    ]


@pytest.fixture
def collector(events):
    found = MetricsCollector()
    for event in events:
        found.add(event)
    return found


def test_over_ranks_and_whose_it_is(collector):
    memory = collector.over_ranks("rss_bytes")
    assert memory == (1e8, 2.5e8, 4e8, 0, 3)
    assert collector.over_ranks("rss_bytes", step=STEPS) is None
    assert collector.over_ranks("own_grad_norm") is None  # nobody told it
    losses = collector.series("loss")
    assert list(losses) == list(range(STEPS)) and losses[1] == 5.6 * 0.93 + 1.2


def test_counters_are_what_a_hand_counts(events, collector):
    entries = [e for event in events if event.kind == "ledger" for e in event.data["entries"]]
    by_hand = sum(e.payload_bytes for e in entries if e.axis == "tp")
    assert collector.total("payload_bytes", "tp") == by_hand
    assert collector.total("collectives", "dp", rank=1) == 2 * STEPS
    tokens = events[2].data["tokens"]
    assert collector.total("tokens") == STEPS * tokens  # and not four times that
    assert sorted(collector.labels("collectives")) == ["dp", "tp"]


def test_histograms(collector):
    found = collector.histogram("step_seconds", rank=0)
    assert found.count == STEPS and found.sum == pytest.approx(STEPS * 0.15)
    assert found.quantile(0.5) == 0.2  # the bound above 0.15
    assert Histogram().quantile(0.5) <= Histogram.BOUNDS[0] and Histogram().count == 0


def test_single_values_are_bounded_and_totals_are_of_the_whole_run(events):
    collector = MetricsCollector(kept=5)
    for event in events:
        collector.add(event)
    assert list(collector.series("loss")) == list(range(STEPS - 5, STEPS))
    assert collector.total("tokens") == STEPS * events[2].data["tokens"]


def test_a_metric_of_ones_own(collector, events):
    collector.register("loss_in_bits", lambda data: data["loss"] / math.log(2), unit="bits")
    collector.add(events[2])
    assert collector.over_ranks("loss_in_bits").max == events[2].data["loss"] / math.log(2)
    collector.register("wrong", lambda data: data["no such field"])
    with pytest.raises(ValueError, match="metric 'wrong' cannot be read from an event 'step'"):
        collector.add(events[2])


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("Loss", float), {}, "small letters"),
        (("loss", float), {}, "a metric 'loss' already"),
        (("mine", float), {"kind": "summary"}, "a counter, a gauge or a histogram"),
        (("mine", 3), {}, "read is a function"),
    ],
)
def test_what_is_no_metric_is_a_sentence(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        MetricsCollector().register(*arguments, **options)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda c: c.series("lost"), "there is no metric 'lost'; there are loss"),
        (lambda c: c.total("loss"), "loss is a gauge, and only counters add up"),
        (lambda c: c.histogram("loss", 0), "has no histogram"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(collector, ask, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(collector)


# -- out --


def test_files_have_every_value(collector, tmp_path):
    rows = list(collector.rows())
    assert len(rows) > 4 * STEPS * 10
    told = list(csv.DictReader(collector.to_csv(tmp_path / "run.csv").open()))
    assert [(int(r["step"]), r["metric"], float(r["value"])) for r in told] == [
        (row.step, row.metric, row.value) for row in rows
    ]
    collector.add(Event("step", 0, 0.0, {"step": 99, "loss": math.nan}))
    lines = collector.to_jsonl(tmp_path / "run.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines]
    assert {"step": 99, "rank": 0, "metric": "loss", "label": "", "value": None} in last


def test_parquet(collector, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    read = parquet.read_table(collector.to_parquet(tmp_path / "run.parquet")).to_pylist()
    assert read == [row._asdict() for row in collector.rows()]


def test_tensorboard(collector, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(collector.to_tensorboard(tmp_path / "tb") / "rank 2"))
    read.Reload()
    found = {e.step: e.value for e in read.Scalars("rss_bytes")}
    assert found == dict.fromkeys(range(STEPS), 3e8)
    assert "payload_bytes/tp" in read.Tags()["scalars"]


@pytest.mark.parametrize(
    ("package", "export"),
    [
        ("pyarrow", lambda c, path: c.to_parquet(path)),
        ("tensorboard", lambda c, path: c.to_tensorboard(path)),
        ("prometheus_client", lambda c, path: c.serve()),
    ],
)
def test_a_package_that_is_not_there_is_named(collector, tmp_path, monkeypatch, package, export):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs the package .*pip install -e '\.\[metrics\]'"):
        export(collector, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def scraped(url: str) -> dict:
    """(sample, rank, other label) -> value, as prometheus-client's own parser reads it."""
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    return {
        (sample.name, sample.labels["rank"], *(v for k, v in sample.labels.items() if k != "rank")):
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }  # fmt: skip


def test_openmetrics_on_the_loopback_interface(collector):
    with collector.serve() as served:
        assert served.url.startswith("http://127.0.0.1:") and served.url in repr(served)
        found = scraped(served.url)
        with pytest.raises(OSError, match=rf"port {served.port} of 127.0.0.1 is in use.*0 for one"):
            collector.serve(served.port)
    assert found["picolab_rss_bytes", "3"] == 4e8
    assert found["picolab_collectives_total", "1", "dp"] == 2 * STEPS
    assert found["picolab_step_seconds_count", "0"] == STEPS
    assert found["picolab_step_seconds_bucket", "0", "0.1"] == 0
    assert found["picolab_step_seconds_bucket", "0", "0.2"] == STEPS
    with pytest.raises(OSError):
        scraped(served.url)  # it has ended with its block
    with pytest.raises(ValueError, match="port is 70000"):
        collector.serve(70_000)


# -- the system --


def test_a_post_mortem_reads_what_a_run_left(tmp_path):
    for event in recorded_run(steps=60):
        if event.rank >= 0:
            with open(tmp_path / f"events.{event.rank}.jsonl", "a") as file:
                file.write(event.to_json() + "\n")
    system = BasicMonitoringSystem({"samples": False}).read(tmp_path)
    # (Of the recorded run rank 2 is slow from the beginning.)
    assert [(a.name, a.ranks) for a in system.anomalies] == [("slow rank", (2,))]
    assert system.collector.over_ranks("loss", 3).max == pytest.approx(5.6 * 0.93**3 + 1.2)
    assert "rank 2" in repr(system) and system.report().rows[0][2] == "2"
    trace = json.loads(system.write_trace(tmp_path / "trace.json").read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e.get("cat") == "step"}
    assert steps == {f"step {n}" for n in range(40, 60)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"silence": 3}, "no setting 'silence'; did you mean 'silence_s'"),
        ({"silence_s": 0}, "silence_s is 0; it must be a number above 0"),
        ({"kept": "all"}, "kept is 'all'"),
    ],
)
def test_settings_that_are_none(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        BasicMonitoringSystem(settings)


def test_what_was_seen_at_one_look_at_the_machine_is_of_one_step():
    collector = MetricsCollector()
    for percent in (20.0, 30.0):
        data = {"cpu_percent": percent, "memory_available_bytes": 1e9}
        collector.add(Event("host", -1, 0.0, data))
    steps = {row.metric: set() for row in collector.rows()}
    for row in collector.rows():
        steps[row.metric].add(row.step)
    assert steps == {"cpu_percent": {1, 2}, "memory_available_bytes": {1, 2}}


def test_what_is_not_there_to_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"there is no run directory .*gone"):
        BasicMonitoringSystem({}).read(tmp_path / "gone")
    with pytest.raises(ValueError, match="nothing to trace"):
        BasicMonitoringSystem({}).write_trace(tmp_path / "trace.json")


def test_the_machine_is_looked_at():
    system = BasicMonitoringSystem({})
    sample = system._host.sample()
    system.collector.add(Event("host", -1, 0.0, sample))
    assert 0 <= system.collector.over_ranks("cpu_percent").max <= 100
    assert system.collector.over_ranks("memory_available_bytes").min > 0
