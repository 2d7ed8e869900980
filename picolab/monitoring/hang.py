"""Is a run stuck, and in whom? While it still hangs, from outside of its ranks.

The launcher ends a run of which nothing moves (`timeout`, minutes), and says who it was. This is
the monitor's own and earlier look, for a run that is to be looked at and not ended: a timer on the
ranks' step records (`rules.Silence`), and then the beacons, which say in which collective each rank
is (beacon.py) and are readable while a rank spins, sleeps, holds the GIL or is stopped.
"""

from pathlib import Path

from picolab.monitoring import blame
from picolab.monitoring.anomalies import Anomaly
from picolab.monitoring.beacon import read, read_calls


def who_hangs(run_dir: Path, world_size: int, quiet_s: float, step: int | None = None) -> Anomaly:
    """Of a run that has been quiet for so long: whom the others wait for, if that can be told."""
    beacons = {rank: run_dir / f"beacon.{rank}" for rank in range(world_size)}
    readings = {rank: read(beacon) for rank, beacon in beacons.items()}
    calls = {rank: read_calls(beacon) for rank, beacon in beacons.items()}
    blamed = blame.of_hang(readings, calls=calls)
    where = [f"rank {r} in {x.text}" for r, x in readings.items() if x.inside]
    inside = f"; {where[0]}" if where else ""
    text = f"nothing for {quiet_s:.1f} s: {blamed.why}{inside}"
    return Anomaly("hang", step, blamed.suspects, text)
