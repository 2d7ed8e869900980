"""Rules in a file: mistakes with their line and what would be right, and thresholds on metrics."""

import pytest

from picolab.debug.run_faults import CATALOGUE
from picolab.monitoring import AlertManager, Event, MetricsCollector, anomalies
from picolab.monitoring.alert_rules import DEFAULT, Duration, Rule, in_order, load, ranks_of, whose
from picolab.monitoring.anomalies import Anomaly
from picolab.show.yaml_file import FileMistake


def test_the_rules_that_are_shipped():
    """Every anomaly that the detector knows has one, and says what to do."""
    rules = load()
    assert {name for rule in rules for name in rule.anomaly} == set(anomalies.NAMES)
    assert all(rule.about for rule in rules)
    assert {name for fault in CATALOGUE.values() for name in fault.found_as} <= set(anomalies.NAMES)
    pages = {rule.name for rule in rules if rule.severity == "page"}
    assert pages >= {"not finite", "divergence", "hang", "dead rank", "desync"}
    assert not pages & {"slow rank", "slow link", "leak"}
    assert DEFAULT.is_file()


HEAD = "rules:\n  - name: r\n"
METRIC = HEAD + "    metric: loss\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: a file of alert rules is `rules:` and below it a list"),
        ("rules: 3", "line 1: a file of alert rules"),
        ("rules:\n  - 3", "line 2: 3 is no rule"),
        (HEAD, "line 2: a rule is on an `anomaly` or on a `metric`, and this one on none"),
        ("rules:\n  - anomaly: hang", "line 2: a rule needs a `name`"),
        (METRIC + "    anomaly: hang", "and this one on both"),
        (HEAD + "    metric: los\n    above: 1", "line 3: there is no metric 'los'; did you mean "
         "'loss'?"),
        (HEAD + "    metric: gpu_memory_usage\n    above: 1", "did you mean 'gpu_memory_bytes'"),
        (HEAD + "    anomaly: slow rnk", "line 3: there is no anomaly 'slow rnk'; did you mean "
         "'slow rank'"),
        (HEAD + "    anomaly: hang\n    serverity: page", "line 4: there is no field of a rule "
         "'serverity'; did you mean 'severity'"),
        (HEAD + "    anomaly: hang\n    severity: high", "line 4: severity is 'high'; it is page "
         "or ticket"),
        (METRIC, "line 3: say `above` or `below`"),
        (METRIC + "    above: 1\n    below: 2", "and not both"),
        (METRIC + "    above: high", "line 4: above is 'high'; it is a number, such as 0.5"),
        (METRIC + "    above: .nan", "line 4: above is nan"),
        (METRIC + "    above: true", "line 4: above is True"),
        (METRIC + "    above: 1\n    until: 2", "line 5: until is 2, on the wrong side of above 1"),
        (METRIC + "    above: 1\n    over: all", "line 5: over is 'all'; it is min or mean or max "
         "or each"),
        (METRIC + "    above: 1\n    for: 10", "line 5: for: 10 is no duration; write 10 steps, "
         "5 s, 8 of 10 steps"),
        (METRIC + "    above: 1\n    for: 12 of 10 steps", "12 of 10 steps cannot be"),
        (METRIC + "    above: 1\n    quiet: 8 of 10 steps", "line 5: quiet: '8 of 10 steps' is no "
         "duration"),
        (METRIC + "    above: 1\n    quiet: 0 steps", "line 5: quiet is nothing"),
        (METRIC + "    above: 1\n    quiet: 10 steps and 20 steps", "one number is the most"),
        (METRIC + "    above: 1\n    for: 9 of 90 steps and 5 of 20 steps and 2 steps", "two "
         "windows is the most"),
        (METRIC + "    above: 1\n    for: 3 of 90 steps and 5 of 20 steps", "5 of 20 steps are "
         "always more than 3 of 90"),
        (METRIC + "    above: 1\n    label: tp", "line 5: loss has no labels, so it would never"),
        (METRIC + "    above: 1\n    above: 2", "`above` is there twice"),
        (HEAD + "    anomaly: hang\n    above: 1", "an anomaly has no above"),
        (HEAD + "    anomaly: hang\n    hides: 3", "line 4: hides is 3; it is a name, or a list"),
        (HEAD + "    anomaly: hang\n    hides: [s]", "line 4: r: it hides what is not here: there "
         "is no rule 's'"),
        (HEAD + "    anomaly: hang\n    hides: [r]", "r hides r: they would hide each other"),
        (HEAD + "    anomaly: hang\n  - name: r\n    anomaly: leak", "line 4: r: there is a rule "
         "of this name already"),
        ("rules:\n  - name: a/b\n    anomaly: hang", "line 2: 'a/b' is no name"),
        ("rules:\n  - name: [r\n", "line 3: "),
        ("rules: !!python/object/apply:os.system [ls]", "line 1: "),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_line(tmp_path, text, sentence):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(FileMistake) as error:
        load(path)
    assert str(error.value).startswith("rules.yaml, line ") and sentence in str(error.value)


def test_all_mistakes_of_a_file_at_once_and_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - name: a\n    anomaly: hng\n  - name: b\n    metric: los\n")
    with pytest.raises(ValueError, match=r"line 3: .*'hang'\?\nrules.yaml, line 5: .*'loss'\?"):
        load(path)
    with pytest.raises(ValueError, match="there is no file of alert rules"):
        AlertManager(tmp_path / "none.yaml")


def test_causes_come_first():
    rules = [Rule("s", anomaly=("slow run",)), Rule("c", anomaly=("hang",), hides=("s",))]
    assert [rule.name for rule in in_order(rules)] == ["c", "s"]
    with pytest.raises(ValueError, match="there is no metric 'los'; did you mean 'loss'"):
        AlertManager([Rule("r", metric="los", above=1.0)])
    AlertManager([Rule("r", metric="los", above=1.0)], metrics=["los"])


def test_durations_and_whose_an_alert_is():
    assert Duration.parse("8 of 10 steps and 5 s", share=True) == Duration(8, 10, 5.0)
    two = Duration(14, 200, short_steps=3, short_of=20)
    for text in ("14 of 200 steps and 3 of 20 steps", "3 of 20 steps and 14 of 200 steps"):
        assert Duration.parse(text, share=True) == two
    assert Duration.parse("1 step") == Duration(1, 1) and not Duration.parse("0 steps")
    assert whose(Anomaly("slow link", 3, (1, 2), "")) == ["1 -> 2"]
    assert whose(Anomaly("loss spike", 3, (1, 2), "")) == [1, 2]
    assert whose(Anomaly("slow run", 3, (), "")) == [None]
    assert ranks_of("1 -> 2") == {1, 2} and ranks_of(3) == {3} and ranks_of(None) == set()


# -- on metrics --


def told(*, step, **of_ranks):
    """A collector that was told these values of a step, by rank."""
    collector = MetricsCollector()
    for rank in range(4):
        data = {"step": step} | {name: values[rank] for name, values in of_ranks.items()}
        collector.add(Event("step", rank, 0.0, data))
    return collector


def on(metric="rss_bytes", **fields):
    return Rule("r", metric=metric, **fields)


def test_over_ranks():
    collector = told(step=3, rss_bytes=[1e9, 4e9, 2e9, 1e9])
    for fields, expected in (
        (dict(above=3e9), {None: "rss_bytes is 4e+09 bytes on rank 1, above 3e+09"}),
        (dict(above=1.5e9, over="mean"), {None: "rss_bytes is 2e+09 bytes in the mean of the "
                                          "ranks, above 1.5e+09"}),
        (dict(above=3e9, over="mean"), {}),
        (dict(below=1.5e9, over="min"), {None: "rss_bytes is 1e+09 bytes on rank 0, below "
                                         "1.5e+09"}),
        (dict(above=1.5e9, over="each"), {1: "rss_bytes is 4e+09 bytes, above 1.5e+09",
                                          2: "rss_bytes is 2e+09 bytes, above 1.5e+09"}),
    ):  # fmt: skip
        hits = on(**fields).hits(collector, 3, ())
        assert {rank: hit.said for rank, hit in hits.items()} == expected, fields
    assert on(above=0.0).hits(collector, 4, ()) == {}  # of a step that nobody told


def test_it_is_above_until_it_is_below():
    """The mutant, a rule without `until`, would end as soon as the value is below the limit."""
    rule = on(above=1.0, until=0.8, metric="own_loss", over="each", quiet=Duration(1, 1))
    manager = AlertManager([rule])
    for step, value in enumerate((0.9, 1.1, 0.9, 0.85, 0.7, 0.9)):
        manager.tick(step, step, (), told(step=step, own_loss=[value] * 4))
    states = [(t.step, t.state) for t in manager.history if t.rank == 2]
    assert states == [(1, "firing"), (4, "resolved")]
    assert manager.history[0].value == 1.1


def test_of_labels_the_worst_and_of_the_host_the_newest():
    collector = MetricsCollector()
    loads = {0: [4, 4, 4, 4], 7: [13, 1, 1, 1]}
    collector.add(Event("experts", 0, 0.0, {"step": 5, "loads": loads, "dropped": [0, 0]}))
    hits = on("expert_imbalance", above=2.0).hits(collector, 5, ())
    assert hits[None].said == "expert_imbalance{layer=7} is 3.25 on rank 0, above 2"
    assert on("expert_imbalance", above=2.0, label="0").hits(collector, 5, ()) == {}
    for sample in (1e9, 1e8):
        data = {"memory_available_bytes": sample}
        collector.add(Event("host", -1, 0.0, data))
    hits = on("memory_available_bytes", below=3e8, over="min").hits(collector, 999, ())
    assert hits[None].said == "memory_available_bytes is 1e+08 bytes, below 3e+08"
