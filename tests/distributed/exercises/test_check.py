"""Functions as learners hand them in: what never returns, prints megabytes, exits, or is no answer.

Each is told so in a sentence, in seconds, by a kernel that is none the worse: the last test of the
file checks a right answer in the same process. Wrong versions these catch: a hang that is waited
for for ever, output taken for progress without end, a consequence blamed in place of the cause, the
package's own stack in place of the learner's line, bytes that go round the ledger.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist

import picolab as pico
from picolab import comm
from picolab.exercises import check as checking
from picolab.exercises import record
from picolab.exercises.definition import source_of
from picolab.specs import Layout

RING = pico.exercise("4d.ring.all-reduce")
_SOLUTION: dict = {}
exec(source_of(RING.solution_function), _SOLUTION)
right = _SOLUTION[RING.solution_function.__name__]


def waits_crosswise(x):
    if dist.get_rank() == 0:
        dist.recv(torch.empty_like(x), 1)
    else:
        dist.all_reduce(x)


def never_returns(x):
    while True:
        pass


def prints_for_ever(x):
    while True:
        print("and on")
        time.sleep(0.01)


def prints_megabytes(x):
    for _ in range(3000):
        print("x" * 1000)
    right(x)


def wrong_on_one_rank(x):
    right(x)
    if dist.get_rank() == 1:
        x[0] += 1


def raises_on_one_rank(x):
    if dist.get_rank() == 1:
        x[1000]
    dist.all_reduce(x)


def leaves_on_one_rank(x):
    if dist.get_rank() == 0:
        return
    dist.all_reduce(x)


def exits(x):
    sys.exit(0)


def exits_at_once(x):
    os._exit(3)


def is_killed(x):
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(x)


def takes_two(x, y):
    right(x)


@pytest.mark.parametrize(
    "fn,says",
    [
        (
            waits_crosswise,
            ["they wait for ever", "rank 0: inside recv", "rank 1: inside all_reduce"],
        ),
        (never_returns, ["it never returns", "has entered no collective", "in never_returns"]),
        (raises_on_one_rank, ["rank 1 failed: IndexError", "x[1000]"]),
        (leaves_on_one_rank, ["rank 0 returned, and rank 1 still waits for it in all_reduce"]),
        (exits, ["called sys.exit(0)", "sys.exit(0)"]),
        (exits_at_once, ["exited with code 3 before its function returned"]),
        (is_killed, ["rank 1 failed: killed (SIGKILL)"]),
        (
            wrong_on_one_rank,
            ["rank 1: x is wrong: it is right wherever it is not 0", "at [0] it is 1"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_goes_wrong_is_told(fn, says):
    ring = replace(RING, timeout=2.0)  # seconds that a hang is waited for
    began = time.monotonic()
    result = ring.check(fn)
    assert time.monotonic() - began < ring.timeout + 20  # a deadline with slack, no benchmark
    assert result.status == "fail"
    for part in says:
        assert part in result.text, result.text
    assert "picolab/exercises/check.py" not in result.text and "picolab/launch" not in result.text


def test_output_without_end_is_ended(monkeypatch):
    assert RING.check(right)  # the rank server is there from here on
    before = _processes()
    monkeypatch.setattr(checking, "DEADLINE_S", 2.0)
    result = RING.check(prints_for_ever)
    assert result.status == "fail" and "still running after 2 s" in result.text
    deadline = time.monotonic() + 10
    while _processes() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _processes() - before


def test_stop_in_the_middle_leaves_no_rank():
    assert RING.check(right)  # the rank server is there from here on
    before = _processes()
    button = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    button.start()
    with pytest.raises(KeyboardInterrupt):
        RING.check(never_returns)
    button.join()
    assert not _processes() - before
    assert RING.check(right)


def _processes() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_megabytes_of_output_are_bounded_and_do_no_harm(capsys):
    assert RING.check(prints_megabytes)
    ranks = sum(Layout.parse(case.layout).world for case in RING.cases)
    assert len(capsys.readouterr().out) < 100_000 * ranks


def test_a_changed_input_and_a_wrong_shape_on_one_rank_are_told():
    def judge(learner, attempt):
        x = attempt.tensor(4)
        out = attempt.call(learner, {"x": x})
        attempt.equal("the output", out, x * 2)

    def changes(x):
        return x.mul_(2)

    def short_on_rank_one(x):
        return (x * 2)[: 4 - dist.get_rank()]

    def looks(fn):
        comm.build_mesh("dp2")
        from picolab.exercises.attempt import Attempt

        attempt = Attempt(RING.cases[0])
        judge(fn, attempt)
        return attempt.report()["problems"]

    for said in pico.run(looks, changes, world_size=2):
        assert said == ["it changed its input `x`, which the caller still needs"]
    first, second = pico.run(looks, short_on_rank_one, world_size=2)
    assert first == []
    assert second == ["the output has the shape (3,), and should have (4,)"]


@pytest.mark.parametrize(
    "given,says",
    [
        (takes_two, "it is called with 1 argument, .x., and yours takes .x, y."),
        (7, "check takes your function itself"),
        (comm.ring_all_reduce, "picolab's own"),
    ],
    ids=["two arguments", "a number", "the package's"],
)
def test_what_is_no_answer_is_refused_before_any_rank_starts(given, says):
    with pytest.raises(ValueError, match=says):
        RING.check(given)


def test_the_packages_own_is_blocked_under_any_name():
    taken_before = comm.ring_all_reduce

    def borrowed(x):
        taken_before(x)

    assert "is what this exercise asks you to write" in RING.check(borrowed).text
    # In the ranks only: here it still works.
    assert pico.run(lambda: taken_before(torch.ones(3)).tolist(), world_size=2)[0] == [2.0] * 3


def test_hints_come_one_by_one_and_the_solution_after_a_try(monkeypatch):
    monkeypatch.setattr(record, "_here", {})
    assert "Try it once first" in repr(RING.solution())
    first, second = repr(RING.hint()), repr(RING.hint())
    assert "Hint 1 of 3" in first and "Hint 2" not in first
    assert "Hint 2 of 3" in second and "Hint 3" not in second
    RING.hint()
    assert "That was the last one" in repr(RING.hint())
    assert "def my_ring_all_reduce(x)" in repr(RING.solution(now=True))
    RING.check(RING_STUB)
    assert "Try it once first" in repr(RING.solution())  # a stub is no try
    RING.check(wrong_on_one_rank)
    assert "def my_ring_all_reduce(x)" in repr(RING.solution())
    [row] = [row for row in pico.progress("4d").rows if row[-1] == RING.id]
    assert row[1] == "tried" and row[4:6] == [1, 3]
    assert RING.check(right)
    RING.check(wrong_on_one_rank)  # what is done stays done
    [row] = [row for row in pico.progress("4d").rows if row[-1] == RING.id]
    assert row[1] == "done" and row[4] == 3


def RING_STUB(x):
    raise NotImplementedError


def test_unknown_ids_name_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean '4d\.ring\.all-reduce'"):
        pico.exercise("4d.ring.allreduce")
    with pytest.raises(ValueError, match="no chapter 'moee' has exercises"):
        pico.progress("moee")


def test_progress_is_kept_for_a_front_end_only(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(record, "_here", {})
    record.tried(RING.id, "fail")
    assert not record.path().exists()
    monkeypatch.setattr(record, "has_front_end", lambda: True)
    record.tried(RING.id, "pass")
    assert '"pass"' in record.path().read_text()
    # A new session finds it; a torn file counts as empty; an unwritable folder is said once.
    monkeypatch.setattr(record, "_here", {})
    assert record.has_tried(RING.id)
    record.path().write_text('{"4d.ring')
    monkeypatch.setattr(record, "_here", {})
    assert not record.has_tried(RING.id)
    monkeypatch.setattr(record, "write_beside", _full_disk)
    monkeypatch.setattr(record, "path", lambda: tmp_path / "exercises.json")
    capsys.readouterr()
    record.tried(RING.id, "fail")
    record.tried(RING.id, "fail")
    assert capsys.readouterr().out.count("progress is not kept") == 1


def _full_disk(*_):
    raise OSError(28, "No space left on device")


def test_the_kernel_is_none_the_worse():
    assert RING.check(right)
