"""Who keeps the others waiting, read from beacons while a run hangs; and a monitor that says it
once, and again after the run went on.
"""

from types import SimpleNamespace

from picolab.monitoring import BasicMonitoringSystem, Event, system
from picolab.monitoring.beacon import Beacon
from picolab.monitoring.hang import who_hangs

CALL = "all_reduce over dp of ranks (0, 1, 2): float32[8] (dp: gradient bucket)"


def beacons(folder, outside):
    for rank in range(3):
        beacon = Beacon(folder / f"beacon.{rank}")
        beacon.enter(CALL)
        if rank in outside:
            beacon.leave()


def test_the_rank_that_is_in_no_collective(tmp_path):
    beacons(tmp_path, outside=[2])
    found = who_hangs(tmp_path, 3, 4.2, step=7)
    assert found.ranks == (2,) and found.step == 7
    assert found.text.startswith("nothing for 4.2 s: rank 2 is in no collective")
    assert CALL in found.text


def test_nobody_is_named_where_nobody_can_be_told(tmp_path):
    beacons(tmp_path, outside=[])
    assert who_hangs(tmp_path, 3, 4.2).ranks == ()
    assert who_hangs(tmp_path / "gone", 3, 4.2).ranks == ()  # nor where there are no beacons


def test_a_hang_is_told_once_and_a_run_that_goes_on_is_heard_again(tmp_path, monkeypatch):
    """Against a clock that the test moves. The mutant, a timer that is never set back, would tell a
    second hang as soon as the run goes on."""
    beacons(tmp_path, outside=[1])
    now = [100.0]
    monkeypatch.setattr(system.time, "monotonic", lambda: now[0])
    job = SimpleNamespace(events=[], done=False, run_dir=tmp_path, world_size=3)
    watching = BasicMonitoringSystem({"silence_s": 2.0, "samples": False})
    watching._source, told = job, watching.anomalies

    def say(step):
        data = {"step": step, "layout": "dp3", "seconds": 0.01, "loss": 2.0}
        job.events += [Event("step", rank, now[0], data) for rank in range(3)]

    def look(after):
        now[0] += after
        watching._look()
        return [(a.name, a.step, a.ranks) for a in told]

    assert look(60.0) == []  # nothing was heard yet: ranks are starting
    say(0)
    assert look(0.0) == [] and look(1.9) == []
    assert look(0.2) == look(60.0) == [("hang", 1, (1,))]
    say(1)
    assert len(look(0.0)) == 1 and len(look(1.9)) == 1 and look(0.2)[1] == ("hang", 2, (1,))
    job.done = True
    say(2)
    assert len(look(0.0)) == 2 and len(look(60.0)) == 2  # what has ended does not hang
