"""Several watches at a time, entered and left in any order: two observers of one run are.

Wrong version kept below: who leaves takes another off torch's stack of modes.
"""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from picolab.memory import Watch

KiB = 1024
RESIZE = torch.UntypedStorage.resize_


def seen(order):
    """Three watches are entered and left in this order. Bytes that each saw come after the first
    had left, and after the second had."""
    watches = [Watch() for _ in order]
    for watch in watches:
        watch.__enter__()
    found, kept = [], []
    for leaves in order:
        watches[leaves].__exit__(None, None, None)
        before = [watch.live for watch in watches]
        kept.append(torch.zeros(KiB, dtype=torch.uint8))
        kept[-1].untyped_storage().resize_(3 * KiB)
        found.append([watch.live - b for watch, b in zip(watches, before)])
    return found


def right(order):
    return [
        [3 * KiB * (i not in order[: left + 1]) for i in range(len(order))]
        for left in range(len(order))
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_who_is_left_sees_all_and_who_left_sees_nothing(order):
    assert seen(order) == right(order)
    assert _get_current_dispatch_mode() is None and torch.UntypedStorage.resize_ is RESIZE


def test_mutant_the_last_is_taken_whoever_leaves(monkeypatch):
    from picolab.memory import watch

    def who_leaves():
        return next(one for one in Watch._entered if getattr(one, "leaving", False))

    leave = Watch.__exit__

    def leaves(self, *error):
        self.leaving = True
        leave(self, *error)

    monkeypatch.setattr(watch, "_get_current_dispatch_mode", who_leaves)
    monkeypatch.setattr(Watch, "__exit__", leaves)
    assert seen((0, 1, 2)) != right((0, 1, 2))
    assert _get_current_dispatch_mode() is None
