"""What a library may hold of collectives that are over: the largest two of a group's last calls.

Wrong versions kept below: one of them; those that somebody still has counted again; all groups as
one; calls that are long over.
"""

from collections import deque
from types import SimpleNamespace

from picolab.memory import manager
from picolab.memory.manager import let_go_late
from picolab.memory.watch import Life


def watched(*happens):
    """A watch that saw this: ("born", name, bytes), ("dies", name), ("call", group, names)."""
    lives, watch = {}, SimpleNamespace(changes=[], collectives=[])
    for what, name, *more in happens:
        if what == "call":
            given = {lives[of]: lives[of].nbytes for of in more}
            watch.collectives.append((name, len(watch.changes), given))
            for life in given:
                life.travelled = True
            continue
        life = lives.setdefault(name, Life(more[0] if more else 0, "", False))
        watch.changes.append((life, life.nbytes if what == "born" else -life.nbytes, "forward", 0))
    return watch


def call(group, nbytes):
    """One that is given a tensor, fills another, and is over."""
    name = f"{group}{nbytes}"
    a, b = f"{name}a", f"{name}b"
    return [
        ("born", a, nbytes), ("born", b, nbytes), ("call", group, a, b), ("dies", a), ("dies", b),
    ]  # fmt: skip


THREE = watched(*call("tp", 10), *call("tp", 30), *call("tp", 20))
ALIVE = watched(("born", "x", 8), ("call", "tp", "x"), ("born", "y", 1), ("dies", "x"))
GROUPS = watched(*call("tp", 10), *call("tp", 30), *call("dp", 5), *call("tp", 20))
OLD = watched(*call("tp", 50), *(of for n in range(1, 18) for of in call("tp", n)))


def check():
    # Each call: two births, then two deaths. What is given is not late before it is dead.
    assert let_go_late(THREE) == [0, 0, 10, 20, 20, 20, 50, 80, 80, 80, 80, 100]
    assert let_go_late(ALIVE) == [0, 0, 8]
    assert let_go_late(GROUPS)[-1] == 2 * (30 + 20 + 5)
    assert max(let_go_late(OLD)) == 2 * (50 + 15) and let_go_late(OLD)[-1] == 2 * (17 + 16)


def test_the_largest_two_of_each_groups_last_calls():
    check()


def test_memory_that_stays_is_not_let_go():
    for stays in ("parameters", "gathered", "gradients", "pool"):
        watch = watched(*call("tp", 10))
        watch.changes[0][0].called = stays
        assert let_go_late(watch)[-1] == 10


def fails():
    try:
        check()
    except AssertionError:
        return True
    return False


def test_mutants(monkeypatch):
    with monkeypatch.context() as patch:  # one of them
        patch.setattr(manager, "GLOO_THREADS", 1)
        assert fails()
    with monkeypatch.context() as patch:  # long over
        patch.setattr(manager, "deque", lambda *of, maxlen=None: deque(*of))
        assert fails()
    real = let_go_late
    wrong = {
        "again": lambda w: real(
            SimpleNamespace(
                collectives=w.collectives,
                changes=[(life, -grown, *of) for life, grown, *of in w.changes],  # dead as born
            )
        ),
        "as one": lambda w: real(
            SimpleNamespace(
                changes=w.changes, collectives=[("all", *of) for _, *of in w.collectives]
            )
        ),
    }
    for version in wrong.values():
        with monkeypatch.context() as patch:
            patch.setitem(globals(), "let_go_late", version)
            assert fails()
