"""The panel, with real widgets and real runs.

Wrong versions these tests catch: a combination of buttons that cannot run, a callback that waits
for its run, a second press that starts a second run, a stop that needs something to stop, a failure
that says nothing, numbers of one layout shown for another, a live figure that stays when the run
ends, a Stop that can be pressed when nothing runs, a run that is said to be starting while it
trains, layouts whose losses cannot be compared, a picture of who holds what that does not follow
the buttons.
"""

import itertools
import re
import time

import pytest

import picolab as pico
from picolab import launch
from picolab.lab import panel

FAST = {"seq": 32, "layers": 1, "micro_batch": 1}


def until(holds, what, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def live(**options):
    shown = panel(live=True, **{**FAST, **options})
    return shown, shown._widgets


def test_the_buttons_offer_only_what_works():
    shown, widgets = live(steps=2, max_world=4, layers=2)
    choices = widgets.choices
    assert [row.description for row in choices.values()] == ["dp", "tp", "pp", "cp"]
    assert choices["dp"].options == choices["tp"].options == (1, 2, 3, 4)
    assert choices["pp"].options == (1, 2)  # of two layers
    assert choices["cp"].options == (1, 2, 4)  # 6 does not divide a sequence of 32
    _, fewer = live(steps=2, max_world=4, kv_heads=2)  # three ranks cannot share two heads
    assert fewer.choices["tp"].options == (1, 2, 4)
    choices["tp"].value = 2
    choices["dp"].value = 2
    assert str(shown.layout) == "dp2tp2" and "the most" not in widgets.message.value
    assert "dp\u00a01, tp\u00a01" in widgets.placement.value
    choices["dp"].value = 4  # eight ranks would be too many: tp gives way
    assert str(shown.layout) == "dp4" and choices["tp"].value == 1
    assert "the most this panel starts is 4 ranks" in widgets.message.value
    choices["tp"].value = 4
    assert str(shown.layout) == "tp4" and choices["dp"].value == 1
    drawn = widgets.placement.value
    assert "dp\u00a01" not in drawn and "tp\u00a03" in drawn


@pytest.mark.parametrize("max_world", [2, 3, 4, 6])
def test_every_way_through_the_buttons_ends_in_a_layout_that_works(max_world):
    shown, widgets = live(steps=2, max_world=max_world, layers=3)
    for one, other in itertools.permutations(widgets.choices, 2):
        for a, b in itertools.product(*(widgets.choices[n].options for n in (one, other))):
            widgets.choices[one].value = a
            widgets.choices[other].value = b
            assert getattr(shown.layout, other) == b and shown.layout.world <= max_world
            standing = {name: row.value for name, row in widgets.choices.items()}
            assert standing == {name: getattr(shown.layout, name) for name in standing}
            shown.layout.check(shown.config)


def test_zeros_stage_is_a_choice_where_it_is_asked_for():
    shown, widgets = live(steps=2, zero=True)
    assert [*widgets.choices] == ["dp", "tp", "pp", "cp", "zero"]
    assert "zero" not in live(steps=2)[1].choices
    stages = widgets.choices["zero"]
    assert "zero 3: what replicas shard, parameters too" in stages.tooltips
    stages.value = 2
    assert shown.layout.zero == 2
    assert "zero2 shards over replicas, and there is one" in widgets.message.value
    widgets.choices["dp"].value = 2
    assert str(shown.layout) == "dp2zero2"
    assert any("zero: updated parameters" in str(row[0]) for row in shown.table().rows)
    stages.value = 0
    assert str(shown.layout) == "dp2"


def test_schedule_and_micro_batches_are_choices_where_they_are_asked_for():
    names = ("1f1b", "interleaved", "zb-v")
    shown, widgets = live(steps=2, layers=4, schedules=names, micro_batches=(3, 8), layout="pp2")
    assert [*widgets.choices][-2:] == ["schedule", "micro_batches"]
    rows = widgets.choices["schedule"], widgets.choices["micro_batches"]
    assert rows[0].options == names and rows[1].description == "micro-batches"
    assert shown._accumulated(shown.layout) == 3
    rows[0].value = "interleaved"  # in rounds of two: it takes the next that it can have
    assert shown.layout.schedule == "interleaved" and shown._accumulated(shown.layout) == 4
    rows[1].value = 8
    assert shown._accumulated(shown.layout) == 8 and "8 sequences a step" in shown.table().title
    widgets.choices["pp"].value = 4  # of four layers, two stages a rank are too many
    assert str(shown.layout) == "pp4" and rows[0].value == "1f1b"
    assert "pp 4 has no layers for interleaved: pp4" in widgets.message.value


def test_a_schedule_with_more_stages_than_layers_shortens_the_pipeline():
    shown, widgets = live(steps=2, layers=4, schedules=("1f1b", "zb-v"), layout="pp4")
    widgets.choices["schedule"].value = "zb-v"  # 8 stages of 4 layers
    assert shown.layout.schedule == "zb-v" and shown.layout.pp < 4
    assert widgets.choices["pp"].value == shown.layout.pp
    assert "zb-v needs more layers" in widgets.message.value
    shown.layout.check(shown.config)


def test_the_precision_is_a_choice_where_it_is_asked_for():
    shown, widgets = live(steps=2, axes=(), precision="bf16", precisions=("fp32", "bf16", "fp8"))
    row = widgets.choices["precision"]
    assert row.options == ("fp32", "bf16", "fp8") and row.value == "bf16"
    assert "precision bf16: numbers that are computed with, bf16" in row.tooltips
    row.value = "fp32"
    assert shown.name == "dp1, fp32" and "precision" not in shown.config.name
    shown.run()
    until(lambda: shown.result, "the run to end")
    assert shown.result.config.precision == "fp32"
    with pytest.raises(ValueError, match="opens with precision 'bf16', which is none of fp32"):
        panel(steps=2, precision="bf16", precisions=("fp32",), **FAST)


MOE = dict(model="tiny-moe", hidden=32, heads=4, kv_heads=4, expert_ffn=16, ffn=32, capacity=1.0)
SHAPES = {"experts": (4, 8), "experts_per_token": (1, 2, 8), "capacity": (1.0, 2.0)}


def test_ep_and_the_shape_are_choices_where_they_are_asked_for():
    shown, widgets = live(steps=2, axes=("dp", "tp"), ep=(1, 2, 4), shapes=SHAPES, **MOE)
    assert [*widgets.choices] == ["dp", "tp", "ep", *SHAPES]
    choices = widgets.choices
    assert "ep 4: expert parallel, over 4 ranks" in choices["ep"].tooltips
    choices["ep"].value = 4  # of one replica: it takes as many as it needs
    assert str(shown.layout) == "dp4ep4" and choices["dp"].value == 4
    choices["dp"].value = 2
    assert str(shown.layout) == "dp2ep2" and choices["ep"].value == 2
    assert "ep 4 does not divide dp * cp there: dp2ep2" in widgets.message.value
    choices["tp"].value = 4
    assert str(shown.layout) == "tp4" and choices["ep"].value == 1
    choices["experts"].value = 4
    assert shown.config.experts == 4 and shown.name == (
        "tp4, experts 4, experts per token 2, capacity 1"
    )
    choices["experts_per_token"].value = 8  # of four: refused, and the button goes back
    assert shown.config.experts_per_token == 2 and choices["experts_per_token"].value == 2
    assert "must be between 1 and experts (4)" in widgets.message.value
    choices["capacity"].value = 2.0
    assert shown.config.capacity == 2.0


def test_a_panel_that_opens_with_ep_offers_what_goes_without():
    _, widgets = live(steps=2, axes=("dp", "tp"), ep=(1, 2, 4), layout="dp2ep2", **MOE)
    assert widgets.choices["dp"].options == (1, 2, 3, 4)
    assert widgets.choices["tp"].options == (1, 2, 3, 4)
    widgets.choices["dp"].value = 1
    assert widgets.choices["ep"].value == 1


def test_every_way_to_ep_ends_in_a_layout_that_works():
    shown, widgets = live(steps=2, ep=(1, 2, 4), **MOE)
    for one, other in itertools.permutations(("dp", "tp", "cp", "ep"), 2):
        for a, b in itertools.product(*(widgets.choices[n].options for n in (one, other))):
            widgets.choices[one].value = a
            widgets.choices[other].value = b
            assert getattr(shown.layout, other) == b and shown.layout.world <= 4
            standing = {name: row.value for name, row in widgets.choices.items()}
            assert standing == {name: getattr(shown.layout, name) for name in standing}
            shown.layout.check(shown.config)


def test_runs_of_another_shape_are_not_compared():
    shown = panel(steps=2, accumulate=1, ep=(1, 2), shapes=SHAPES, live=False, **FAST | MOE)
    shown.run()
    shown.wait()
    assert shown.result.config.model.experts == 8
    shown.choose(experts=4)
    shown.run()
    shown.wait()
    assert shown.result.config.model.experts == 4 and "losses are those of" not in shown.message
    assert len(shown._losses) == 2  # one of each shape, and the first is still there
    shown.run()
    shown.wait()
    assert len(shown._losses) == 2 and "losses are those of" not in shown.message


def test_a_panel_opens_with_what_it_offers():
    with pytest.raises(ValueError, match=r"opens with schedule '1f1b', which is none of zb-h1"):
        live(steps=2, layers=2, schedules=("zb-h1",), layout="pp2")


def test_a_size_that_is_not_offered_is_refused():
    shown, _ = live(steps=2)
    with pytest.raises(ValueError, match="no layout with pp=2"):  # it has one layer
        shown.choose(pp=2)


def test_every_choice_is_a_button_that_says_what_it_is():
    _, widgets = live(steps=2, max_world=4, layers=2)
    for axis, row in widgets.choices.items():
        assert type(row).__name__ == "ToggleButtons" and len(row.tooltips) == len(row.options)
        assert all(tip.startswith(f"{axis} {n}: ") for n, tip in zip(row.options, row.tooltips))
    assert "over 2 ranks" in widgets.choices["tp"].tooltips[1]
    _, alone = live(steps=2, max_world=1)
    assert alone.choices["dp"].options == (1,)


def test_the_buttons_are_called_run_and_stop():
    _, widgets = live(steps=2)
    assert (widgets.run.description, widgets.stop.description) == ("Run", "Stop")


def test_a_run_from_beginning_to_end():
    shown, widgets = live(steps=6, layout="dp2")
    assert "measured" not in widgets.formulas.value
    assert widgets.stop.disabled  # as long as there is nothing to stop
    widgets.run.click()
    first = shown.job
    assert not widgets.stop.disabled
    assert first is not None and not first.done  # the callback did not wait for it
    assert widgets.live.children and widgets.live.layout.display is None
    widgets.run.click()
    assert shown.job is first and "dp2 is still running" in widgets.message.value
    shown.wait()
    until(lambda: not shown._busy, "the end")
    assert widgets.progress.value == 6 and widgets.progress.bar_style == "success"
    assert "6 of 6 steps" in widgets.message.value
    assert widgets.live.layout.display == "none" and widgets.stop.disabled
    assert shown.result.losses == list(first.result().losses)
    rows = {row[0]: row for row in shown.table().rows}
    assert rows["dp: gradient bucket"][1] == rows["dp: gradient bucket"][2]
    widgets.choices["dp"].value = 3  # what dp2 measured is not shown for dp3
    assert "measured" not in widgets.formulas.value


def test_layouts_see_the_same_batches_and_their_losses_are_held_together():
    shown, widgets = live(steps=4, layers=2, eps=1e-5)
    messages = {}
    for layout in ("dp1", "pp2", "dp2cp2"):
        for axis, row in widgets.choices.items():
            row.value = getattr(pico.Layout.parse(layout), axis)
        assert shown.layout == pico.Layout.parse(layout)
        widgets.run.click()
        shown.wait()
        until(lambda: not shown._busy, "the end")
        messages[layout] = shown.message
        rows = {row[0]: row for row in shown.table().rows}
        traffic = [name for name in rows if ": " in name]
        assert all(rows[name][1] == rows[name][2] for name in traffic), rows
    assert list(shown.earlier) == ["dp1", "pp2"]  # drawn in grey behind the last run
    ghosts = widgets._view.figure.data[-1]
    assert [text for text in ghosts.text if text] == ["dp1", "pp2"]
    assert list(ghosts.y[:4]) == list(shown.earlier["dp1"].values())
    assert "are those of" not in messages["dp1"]
    for layout in ("pp2", "dp2cp2"):
        said = messages[layout]
        assert "the first 4 losses are those of one process" in said
        assert float(re.search(r"([\d.e-]+) apart", said)[1]) < 1e-5


def test_other_batches_are_not_compared():
    shown, _ = live(steps=2, accumulate=2)  # of each replica, so dp2 sees twice as many
    for dp in (1, 2):
        shown.choose(dp=dp)
        shown.run()
        shown.wait()
        until(lambda: not shown._busy, "the end")
    assert shown.result.config.accumulate == 2 and "are those of" not in shown.message


def test_stop_and_run_again():
    shown, widgets = live(steps=10_000, layout="dp2")
    widgets.stop.click()
    assert "nothing is running" in widgets.message.value
    widgets.run.click()
    until(lambda: widgets.progress.value > 2, "steps on the progress bar")
    assert shown.message == "dp2 is running; press Stop to end it"  # no longer "starting"
    began = time.monotonic()
    widgets.stop.click()
    widgets.stop.click()
    assert time.monotonic() - began < 5  # a deadline, not a benchmark: it did not wait for the end
    until(lambda: not shown._busy, "the stop")
    assert shown.job.state == "stopped" and "stopped after" in widgets.message.value
    assert shown.result is None
    widgets.stop.click()
    assert "nothing is running" in widgets.message.value
    first = shown.job
    widgets.run.click()
    assert shown.job is not first and widgets.progress.value == 0
    assert list(widgets._view.figure.data[0].y) == []  # the first run's points are gone
    until(lambda: widgets.progress.value > 2, "steps of the second run")
    widgets.stop.click()
    until(lambda: not shown._busy, "the second stop")


def test_a_failing_run_says_why():
    shown, widgets = live(steps=3, layout="dp2", lr=1e30, clip=None, dtype="fp32")
    widgets.run.click()
    shown.wait()
    until(lambda: not shown._busy, "the end")
    assert shown.job.state == "failed"
    assert "NonFiniteLoss" in widgets.message.value
    assert widgets.progress.bar_style == "danger"


def test_a_run_that_cannot_start_says_why(monkeypatch, tmp_path):
    (tmp_path / "picolab").write_text("a file where the folder should be")
    shown, widgets = live(steps=3)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    widgets.run.click()
    assert "could not start: " in widgets.message.value
    monkeypatch.undo()
    widgets.run.click()  # and the next press is not refused
    shown.wait()
    assert shown.job.state == "done"


def test_headless_it_is_a_table_and_runs_if_asked():
    shown = panel(steps=2, max_world=2, **FAST)
    assert shown._widgets is None and shown.job is None
    assert "Layouts that work for" in repr(shown) and "tp2" in repr(shown)
    ran = panel(steps=2, max_world=2, layout="tp2", autorun=True, **FAST)
    assert ran.job.state == "done" and len(ran.result.losses) == 2
    assert "2 of 2 steps" in ran.message


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"steps": 0}, "steps"),
        ({"layout": "dp4tp4"}, "not among the layouts of this panel"),
        ({"layout": "dp2pp4", "layers": 4}, "not among the layouts of this panel"),
        ({"layout": "dp2xx3"}, "'xx' is not an axis"),
        ({"max_world": 0}, "1 or more"),
        ({"model": "huge"}, "huge"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_input_gets_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        panel(**options)


def test_no_rank_is_left():
    import psutil

    until(lambda: all(job.done for job in pico.jobs()), "all jobs to end")
    names = [p.name() for p in psutil.Process().children(recursive=True) if p.is_running()]
    server = launch.server.pid()
    ranks = [p for p in psutil.Process().children(recursive=True) if p.ppid() == server]
    assert ranks == [], names
