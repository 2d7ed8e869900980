"""What was done in exercises stays done over the versions of picolab.

Catches a file of an older version that counts as empty, and an exercise whose id was changed, so
that what a reader did under the old one is no longer found.
"""

import shutil
from pathlib import Path

from picolab.exercises import record

OLD = Path(__file__).parent / "old_records" / "exercises.json"


def test_a_record_of_an_older_picolab_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(record, "_here", {})
    record.path().parent.mkdir(parents=True)
    shutil.copy(OLD, record.path())
    found = {one["id"]: one for one in record.standing(kept=True)}
    told = [
        (name, found[name]["status"], found[name]["tries"], found[name]["hints"])
        for name in ("4d.ring.all-reduce", "4d.collectives.scatter-gather", "4d.dp.buckets")
    ]
    assert told == [
        ("4d.ring.all-reduce", "done", 3, 1),
        ("4d.collectives.scatter-gather", "tried", 1, 2),
        ("4d.dp.buckets", "open", 0, 1),
    ]
    # And goes on being written.
    monkeypatch.setattr(record, "has_front_end", lambda: True)
    record.tried("4d.dp.buckets", "pass")
    record.tried("4d.ring.all-reduce", "fail")
    monkeypatch.setattr(record, "_here", {})
    found = {one["id"]: one for one in record.standing(kept=True)}
    assert found["4d.dp.buckets"]["status"] == found["4d.ring.all-reduce"]["status"] == "done"
