"""The life of an alert: every transition, what holds for any sequence of hits, and a manager that
starts again at any point.

Wrong versions these catch, kept as mutants: no deduplication, no `for`, an inhibition that drops,
a resolve at the first quiet step, a restart that fires again.
"""

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from picolab.monitoring import AlertManager, Anomaly, alert_history, alerts
from picolab.monitoring.alert_history import AlertHistory, Transition, read_history
from picolab.monitoring.alert_rules import Duration, Hit, Rule


class Told:
    """A notifier that keeps what it is told."""

    def __init__(self):
        self.all = []

    def tell(self, notification):
        self.all.append(notification)

    def close(self):
        pass


def rule(name, held="0 steps", quiet="3 steps", settle="0 steps", **more):
    durations = dict(held=Duration.parse(held, share=True), settle=Duration.parse(settle))
    return Rule(name, anomaly=("hang",), quiet=Duration.parse(quiet), **durations, **more)


def lived(rules, scripts, manager=None, between=lambda step, manager: manager):
    """What became of alerts whose hits are drawn as text: x is one, everything else is none. A
    script is of a rule, or of (rule, rank)."""
    manager = manager or AlertManager(rules)
    for step in range(max(map(len, scripts.values()))):
        manager = between(step, manager)
        keys = [key if isinstance(key, tuple) else (key, None) for key in scripts]
        hits = {
            key: Hit(None, f"{key[0]} at {step}")
            for key, script in zip(keys, scripts.values())
            if step < len(script) and script[step] == "x"
        }
        manager.observe(hits, step, float(step))
    return manager


def became(manager):
    return [(t.step, t.name, t.state) for t in manager.history]


@pytest.mark.parametrize(
    ("of", "script", "states"),
    [
        # (none) -> firing -> resolved: without `for` at once; three quiet steps
        (dict(), "..x..", [(2, "firing")]),
        (dict(), "..x...", [(2, "firing"), (5, "resolved")]),
        (dict(), "x.x.x....", [(0, "firing"), (7, "resolved")]),
        # pending -> firing, after so many of the last
        (dict(held="3 steps"), "xxx", [(0, "pending"), (2, "firing")]),
        (dict(held="3 steps"), "xx.xxx", [(0, "pending"), (5, "firing")]),
        (dict(held="2 of 4 steps"), "x..x", [(0, "pending"), (3, "firing")]),
        # pending -> passed
        (dict(held="3 steps"), "xx...", [(0, "pending"), (4, "passed")]),
        (dict(held="3 steps"), "xx...xx", [(0, "pending"), (4, "passed"), (5, "pending")]),
        # in seconds (a step is one): held without a gap
        (dict(held="2 s"), "xx.xxx", [(0, "pending"), (5, "firing")]),
        (dict(held="2 s"), "xx..", [(0, "pending"), (3, "passed")]),
        (dict(held="2 steps and 3 s"), "xxxx", [(0, "pending"), (3, "firing")]),
        (dict(quiet="2 s"), "x..", [(0, "firing"), (2, "resolved")]),
        # pending while it settles, whatever comes
        (dict(settle="2 steps"), "x..", [(0, "pending"), (2, "firing")]),
        (dict(held="2 steps", settle="1 step"), "xx..", [(0, "pending"), (2, "firing")]),
    ],
)  # fmt: skip
def test_each_transition(of, script, states):
    manager = lived([rule("r", **of)], {"r": script})
    assert became(manager) == [(step, "r", state) for step, state in states]


CAUSE = dict(hides=("symptom",))


@pytest.mark.parametrize(
    ("rules", "scripts", "states"),
    [
        # the cause first, or in the same look: the symptom is never told
        (
            [rule("cause", **CAUSE), rule("symptom")],
            {"cause": "x......", "symptom": "x......"},
            [(0, "cause", "firing"), (0, "symptom", "inhibited"), (3, "cause", "resolved"),
             (3, "symptom", "resolved")],
        ),
        # firing -> inhibited, when its cause is found; firing again when the cause has ended
        (
            [rule("cause", **CAUSE), rule("symptom")],
            {"cause": ".x......", "symptom": "xxxxxxxx"},
            [(0, "symptom", "firing"), (1, "cause", "firing"), (1, "symptom", "inhibited"),
             (4, "cause", "resolved"), (4, "symptom", "firing")],
        ),
        # and with a `for`, after that again
        (
            [rule("cause", **CAUSE), rule("symptom", held="2 steps")],
            {"cause": "x....", "symptom": "xxxxx"},
            [(0, "cause", "firing"), (0, "symptom", "pending"), (1, "symptom", "inhibited"),
             (3, "cause", "resolved"), (3, "symptom", "pending"), (4, "symptom", "firing")],
        ),
        # the symptom was found before its cause, and waits for it
        (
            [rule("cause", **CAUSE), rule("symptom", settle="2 steps")],
            {"cause": ".x", "symptom": "x."  + "."},
            [(0, "symptom", "pending"), (1, "cause", "firing"), (2, "symptom", "inhibited")],
        ),
        # what hides a cause hides what that would hide
        (
            [rule("a", hides=("b",)), rule("b", hides=("c",)), rule("c")],
            {"a": "x", "b": "x", "c": "x"},
            [(0, "a", "firing"), (0, "b", "inhibited"), (0, "c", "inhibited")],
        ),
        # of the same rank only
        (
            [rule("link", hides_same_rank=("slow",)), rule("slow")],
            {("link", "1 -> 2"): "x", ("slow", 2): "x", ("slow", 3): "x"},
            [(0, "link", "firing"), (0, "slow", "inhibited"), (0, "slow", "firing")],
        ),
    ],
)  # fmt: skip
def test_a_cause_hides_what_comes_of_it(rules, scripts, states):
    manager = lived(rules, scripts)
    assert became(manager) == states
    if manager.hidden:
        shown = [row for row in manager.table().rows if row[2] == "inhibited"]
        assert len(shown) == len(manager.hidden) and all(row[5] for row in shown)


def test_a_silence_hides_ends_and_is_shown(tmp_path):
    told = Told()
    manager = AlertManager([rule("r", quiet="9 steps")], notify=[told], folder=tmp_path)
    manager.silence("r", rank=2, steps=3, why="its fan is replaced")

    def again(step, manager):  # the silence survives the manager, too
        if step != 1:
            return manager
        manager.close()
        return AlertManager(manager.rules, [told], tmp_path)

    manager = lived([], {("r", 2): "xxxxx", ("r", 1): "..x"}, manager, again)
    assert [(t.step, t.rank, t.state) for t in manager.history] == [
        (0, 2, "silenced"), (2, 1, "firing"), (2, 2, "firing"),
    ]  # fmt: skip
    assert manager.history[0].cause == "a silence: its fan is replaced"
    assert [len(n.alerts) for n in told.all] == [2]
    manager.silence(seconds=10, why="lunch")
    lived([], {("r", 7): "x"}, manager)
    assert {alert.rank for alert in manager.hidden} == {1, 2, 7}
    with pytest.raises(ValueError, match="there is no rule 'q'; there are r"):
        manager.silence("q", steps=3, why="")
    for wrong in (dict(), dict(steps=0), dict(steps=1, seconds=1)):
        with pytest.raises(ValueError, match="a silence has an end"):
            manager.silence("r", why="", **wrong)


def test_a_silence_of_seconds_from_before_the_first_look():
    """Time is that of events, since the epoch: 5 s from nothing were over long ago."""
    manager = AlertManager([rule("r")])
    manager.silence("r", seconds=5, why="it warms up")
    for step in range(8):
        manager.observe({("r", 2): Hit(None, "")}, step, 1.7e9 + step)
    assert [(t.step, t.state) for t in manager.history] == [(0, "silenced"), (5, "firing")]


BURNS = "4 of 20 steps and 2 of 5 steps"


@pytest.mark.parametrize(
    ("script", "states"),
    [
        ("xxxx", [(0, "pending"), (3, "firing")]),
        ("x....x....x....x....x", [(0, "pending")]),  # thinly spread
        ("x....x....x....x.x", [(0, "pending"), (17, "firing")]),  # and then it burns
        ("xxx" + "." * 20, [(0, "pending"), (22, "passed")]),  # a burst that was no harm
    ],
)
def test_a_budget_that_burns_in_two_windows(script, states):
    manager = lived([rule("r", held=BURNS)], {"r": script})
    assert became(manager) == [(n, "r", state) for n, state in states]


@pytest.mark.parametrize(
    ("held", "script"), [("4 of 20 steps", "x....x....x....x"), ("2 of 5 steps", "xxx")]
)
def test_one_window_fires_of_what_is_no_harm(held, script):
    """The mutants: the long one alone of what is spread thinly, the short one alone of a burst."""
    both = lived([rule("r", held=BURNS)], {"r": script})
    assert not any(transition.state == "firing" for transition in both.history)
    assert lived([rule("r", held=held)], {"r": script}).history[-1].state == "firing"


def test_what_fires_again_soon_needs_a_longer_quiet():
    """One that is on for a step and off for four, with three quiet steps: 2 messages each time
    without damping, and with it a few."""
    script = "x...." * 40
    told = Told()
    lived([], {"r": script}, AlertManager([rule("r")], [told]))
    assert len(told.all) == 3  # fires; is resolved; fires, and needs six quiet steps from then on
    states = became(lived([rule("r")], {"r": "x...x......" + "." * 60 + "x..."}))
    assert [(step, state) for step, _, state in states] == [
        (0, "firing"), (3, "resolved"), (4, "firing"), (10, "resolved"), (71, "firing"),
        (74, "resolved"),
    ]  # fmt: skip


def test_one_message_for_what_fires_at_once():
    told, group = Told(), dict(group="time", about="look there")
    rules = [rule("a", severity="page", **group), rule("b", **group), rule("c")]
    manager = AlertManager(rules, [told])
    lived([], {("a", 3): "x...", ("a", 1): "x...", ("b", "0 -> 1"): "x", "c": "x"}, manager)
    assert [(n.state, n.severity, len(n.alerts)) for n in told.all] == [
        ("firing", "page", 3), ("firing", "ticket", 1),
        ("resolved", "page", 3), ("resolved", "ticket", 1),
    ]  # fmt: skip
    assert told.all[0].about == "look there"
    assert told.all[0].text.split("\n")[1:] == [
        "page: a, rank 3 (step 0): a at 0", "page: b, ranks 0 -> 1 (step 0): b at 0",
    ]  # fmt: skip


# -- whatever comes --

RULES = [
    rule("cause", held="2 of 3 steps", quiet="4 steps", hides=("symptom",)),
    rule("symptom", held="2 steps", quiet="3 steps", settle="2 steps"),
    rule("spike", quiet="3 steps", hides_same_rank=("symptom",)),
]
KEYS = (("cause", 0), ("cause", 1), ("symptom", None), ("symptom", 1), ("spike", 1))
scripts = st.fixed_dictionaries({key: st.text("x.", min_size=1, max_size=60) for key in KEYS})


def check(of, cuts=(), folder=None):
    """What must hold for any hits; `cuts`: steps before which the manager is another one."""
    told = Told()

    def between(step, manager):
        if step not in cuts:
            return manager
        manager.close()  # (what a kill does, too: it lets the lock go)
        return AlertManager(RULES, [told], folder)

    manager = lived([], of, AlertManager(RULES, [told], folder), between)
    history = list(manager.history)
    on = {}
    for transition in history:
        key = transition.name, transition.rank
        if transition.state == "firing":
            assert on.get(key) != "firing", f"{key} fires twice"
        on[key] = transition.state
    for key in KEYS:
        of_key = [t.state for t in history if (t.name, t.rank) == key]
        messages = [n.state for n in told.all for a in n.alerts if (a.name, a.rank) == key]
        # Two an episode: each "firing" is followed by its "resolved".
        assert messages == (["firing", "resolved"] * len(messages))[: len(messages)], messages
        episodes = 1 + of_key.count("resolved")
        assert len(messages) <= 2 * episodes
    # Nothing is lost: what holds for longer than `for` and `settle` is in the history, with a cause
    # if nobody was told.
    for key in KEYS:
        if "x" * 5 in of[key]:
            kinds = {t.state for t in history if (t.name, t.rank) == key}
            assert kinds & {"firing", "inhibited", "silenced"}, f"{key} is lost"
    for transition in history:
        assert (transition.cause is not None) == (transition.state in ("inhibited", "silenced"))
    # What has held once, and not for `for`, told nobody.
    for key in KEYS[:2]:
        if of[key].count("x") == 1:
            assert all(t.state in ("pending", "passed") for t in history if (t.name, t.rank) == key)
    # Resolved only after its quiet.
    for transition in history:
        if transition.state == "resolved":
            script = of[transition.name, transition.rank]
            quiet = next(r for r in RULES if r.name == transition.name).quiet.steps
            assert "x" not in script[max(0, transition.step - quiet + 1) : transition.step + 1]
    return history, told.all


@settings(max_examples=150, deadline=None)
@given(scripts)
def test_never_twice_never_lost_two_messages_an_episode(of):
    check(of)


@settings(max_examples=60, deadline=None)
@example(of={key: ".x" for key in KEYS}, cuts={1})  # nothing has happened before
@given(of=scripts, cuts=st.sets(st.integers(0, 59), min_size=1, max_size=6))
def test_starting_again_at_any_point_changes_nothing(of, cuts, tmp_path_factory):
    whole, told = check(of)
    cut, told_cut = check(of, cuts, tmp_path_factory.mktemp("run"))
    assert cut == whole and told_cut == told


def drawn(seed):
    draw = random.Random(seed)
    return {
        key: "".join("x" if draw.random() < share else "." for _ in range(60))
        for key, share in zip(KEYS, (0.3, 0.05, 0.5, 0.8, 0.1))
    } | {KEYS[1]: "." * 20 + "x" + "." * 39}


def fails(folder=None):
    """Whether any of a few runs breaks what must hold."""
    for seed in range(20):
        cuts = () if folder is None else (10, 30)
        place = None if folder is None else folder / str(seed)
        if place is not None:
            place.mkdir()
        try:
            check(drawn(seed), cuts, place)
        except AssertionError:
            return True
    return False


def test_what_the_wrong_versions_break(monkeypatch, tmp_path):
    assert not fails() and not fails(tmp_path)
    real_observe, real_passed = AlertManager.observe, Duration.passed

    def drops(self, hits, *rest, **more):
        hidden = {key for key in hits if self._hidden(alerts.Alert(*key), None)}
        return real_observe(self, {k: h for k, h in hits.items() if k not in hidden}, *rest, **more)

    def at_once(self, since, now, times=1):
        return real_passed(self, since, now, 0) and now.tick > since.tick

    mutants = {
        "no deduplication": (alerts.Alert, "open", property(lambda alert: False)),
        "no for": (alerts, "_has_held", lambda *_: True),
        "drops what is inhibited": (AlertManager, "observe", drops),
        "resolved at the first quiet step": (Duration, "passed", at_once),
    }
    for name, (owner, attribute, wrong) in mutants.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, wrong)
            assert fails(), name
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(AlertHistory, "state", lambda self: ({}, []))
    assert fails(tmp_path / "again"), "fires again after a restart"


# -- how much is told --


def test_a_metric_that_flaps_at_its_threshold():
    """2,000 steps, a value that goes up and down at its threshold for 900 of them, and one real
    incident. Told by the bare threshold: hundreds of times; three rules' worth of patience: a few.
    (reference: 803 and 6.)"""
    draw = random.Random(1)
    values = [
        0.5 + (0.5 + 0.1 * draw.gauss(0, 1)) * (300 <= step < 1200) + (1.0) * (1500 <= step < 1600)
        for step in range(2000)
    ]
    told = {"threshold": 0, "8 of 10, and 30 quiet": Told()}
    above = [value > 1.0 for value in values]
    told["threshold"] = sum(now != before for before, now in zip([False, *above], above))
    patient = rule("high", held="8 of 10 steps", quiet="30 steps")
    manager = AlertManager([patient], [told["8 of 10, and 30 quiet"]])
    lived([], {"high": "".join("x" if high else "." for high in above)}, manager)
    count = len(told["8 of 10, and 30 quiet"].all)
    print(f"threshold alone: {told['threshold']} messages; 8 of 10, 30 quiet: {count}")
    assert told["threshold"] > 400 and 2 <= count <= 6
    assert manager.history[-1].state == "resolved"


def test_an_incident_of_two_causes_is_four_messages():
    """A NaN and a straggler, and what comes of both, as the default rules have it: 380 findings,
    each of which an alarm by itself would tell."""
    told = Told()
    manager = AlertManager(notify=[told])
    nan = Anomaly("not finite", 100, (1,), "rank 1's own loss is nan")
    spikes = [Anomaly("loss spike", 100, (r,), "loss spike") for r in range(4)]
    slow = Anomaly("slow rank", 120, (2,), "rank 2 comes 9 ms late")
    run = Anomaly("slow run", 112, (), "steps take longer")
    raw = 0
    for step in range(400):
        now = [nan, *spikes] * (100 <= step < 150) + [slow] * (120 <= step < 240)
        now += [run] * (step in (118, 130))
        raw += len(now) + (step >= 120) * (step < 128)
        manager.tick(step, float(step), now)
    print(f"{raw} findings, {len(told.all)} messages")
    assert raw == 380 and len(told.all) == 4
    assert [(n.state, n.alerts[0].name) for n in told.all] == [
        ("firing", "not finite"), ("firing", "slow rank"),
        ("resolved", "not finite"), ("resolved", "slow rank"),
    ]  # fmt: skip
    hidden = {(t.name, t.cause) for t in manager.history if t.state == "inhibited"}
    causes = {"loss spike": "not finite, rank 1", "slow run": "slow rank, rank 2"}
    assert hidden == set(causes.items())


def test_a_dead_rank_silences_its_stragglers():
    manager = AlertManager()
    found = [Anomaly("slow rank", 5, (1,), "late"), Anomaly("hang", 5, (3,), "nothing for 5 s"),
             Anomaly("dead rank", 5, (3,), "rank 3 was killed")]  # fmt: skip
    manager.tick(5, 5.0, found)
    assert [(a.name, a.rank) for a in manager.firing] == [("dead rank", 3)]
    assert {(a.name, a.cause) for a in manager.hidden} == {
        ("slow rank", "dead rank, rank 3"), ("hang", "dead rank, rank 3"),
    }  # fmt: skip
    assert "dead rank" in repr(manager) and "<table" in manager._repr_html_()


# -- what is kept --


def test_a_look_hears_without_counting_a_step():
    manager = AlertManager([rule("r", quiet="2 steps")])
    manager.tick(0, 0.0)
    manager.hear([Anomaly("hang", 1, (2,), "nothing for 5 s")])
    [fired] = manager.look(3.0)
    assert (fired.step, fired.rank, fired.state, fired.t) == (0, 2, "firing", 3.0)
    for t in range(4, 99):
        assert manager.look(float(t)) == []  # no steps, so nobody knows that it ended
    assert [t.state for s in (1, 2) for t in manager.tick(s, 100.0 + s)] == ["resolved"]


def test_the_file_of_the_history(tmp_path):
    manager = lived([], {("r", 2): "x..."}, AlertManager([rule("r")], folder=tmp_path))
    first, second = map(json.loads, (tmp_path / "alerts.jsonl").read_text().splitlines())
    assert first == {
        "v": 1, "n": 1, "t": 0.0, "step": 0, "name": "r", "rank": 2, "state": "firing",
        "severity": "ticket", "value": None, "said": "r at 0", "cause": None,
    }  # fmt: skip
    assert second["state"] == "resolved" and second["step"] == 3
    assert (tmp_path / "alerts.jsonl").stat().st_mode & 0o077 == 0
    assert read_history(tmp_path) == list(manager.history) and read_history(tmp_path / "no") == []
    assert str(read_history(tmp_path)[0]) == "step 0: firing: r, rank 2: r at 0"


def test_killed_between_a_line_and_what_is_saved_or_in_the_middle_of_a_line(tmp_path):
    """The next one believes the lines: what fired has fired, and a torn line was never told."""
    for torn in (b"", b'{"v": 1, "n": 9, "t": 8.0, "na'):
        folder = tmp_path / f"torn {len(torn)}"
        folder.mkdir()
        lived([], {"r": "..x"}, AlertManager([rule("r")], folder=folder)).close()
        (folder / "alerts.state.json").unlink()
        with open(folder / "alerts.jsonl", "ab") as file:
            file.write(torn)
        told = Told()
        manager = AlertManager([rule("r")], [told], folder)
        assert [a.state for a in manager.firing] == ["firing"] and manager.ticks == 3
        for step in range(3, 9):
            manager.observe({("r", None): Hit(None, "still")} if step < 5 else {}, step, step)
        assert [n.state for n in told.all] == ["resolved"]
        assert [t.state for t in read_history(folder)] == ["firing", "resolved"]


def test_a_full_disk(tmp_path, monkeypatch):
    """The run is watched on, the trouble is said, and nothing is missing once there is space."""
    manager = AlertManager([rule("r")], folder=tmp_path)
    lived([], {"r": "x"}, manager)

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(alert_history, "open", full, raising=False)
        patch.setattr(alert_history, "write_beside", full)
        lived([], {("r", 1): "x..."}, manager)
        assert "No space left on device; 3 line(s) wait" in manager.trouble
    assert len(read_history(tmp_path)) == 1
    manager.observe({("r", 2): Hit(None, "x")}, 5, 5.0)
    assert manager.trouble is None and read_history(tmp_path) == list(manager.history)


def test_half_of_a_line_on_a_full_disk_is_written_again(tmp_path):
    with open(tmp_path / "alerts.jsonl", "w") as file:
        file.write('{"v": 1, "n": 1, ')
    manager = lived([], {"r": "x"}, AlertManager([rule("r")], folder=tmp_path))
    assert read_history(tmp_path) == list(manager.history)


def test_what_another_version_has_written(tmp_path):
    line = Transition(1, 0.0, 0, "r", None, "firing", "page", None, "", None).to_json()
    for text in (line.replace('"v": 1', '"v": 2'), '{"name": "r"}', "7"):
        (tmp_path / "alerts.jsonl").write_text(text + "\n")
        with pytest.raises(ValueError, match="was written by another version of picolab"):
            AlertManager(folder=tmp_path)
    (tmp_path / "alerts.jsonl").write_text('{"v": 1, "name": "r"}\n')
    with pytest.raises(ValueError, match="a line without 'n'"):
        read_history(tmp_path)
    (tmp_path / "alerts.jsonl").unlink()
    (tmp_path / "alerts.state.json").write_text("{")
    with pytest.raises(ValueError, match=r"alerts.state.json is damaged; take it away"):
        AlertManager(folder=tmp_path)


def test_a_rule_that_is_no_more_and_a_manager_that_has_begun(tmp_path):
    old = AlertManager([rule("gone"), rule("r")], folder=tmp_path)
    lived([], {"gone": "x", "r": "x"}, old)
    with pytest.raises(ValueError, match=r"another monitor writes the alerts of .*close it first"):
        AlertManager([rule("r")], folder=tmp_path)
    old.close()
    manager = AlertManager([rule("r")], folder=tmp_path)
    assert [a.name for a in manager.firing] == ["r"] and len(manager.history) == 2
    with pytest.raises(ValueError, match="this AlertManager has begun"):
        manager.keep_in(tmp_path)


def test_a_notifier_that_fails_does_not_keep_the_others_from_being_told():
    class Broken(Told):
        def tell(self, notification):
            raise RuntimeError("no network")

    told = Told()
    with pytest.warns(UserWarning, match="could not tell of an alert: RuntimeError"):
        lived([], {"r": "x"}, AlertManager([rule("r")], [Broken(), told]))
    assert len(told.all) == 1
