"""Whether a learner's function changed what it was given: also where there is a NaN, in a dict.

Wrong versions these catch: NaN taken for a change since it is not equal to itself, a NaN that was
put there and is not seen, a dict that is handed on as it is.
"""

import pytest
import torch

from picolab.exercises.attempt import _copy, _same

NAN, ONE = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 1.0])


@pytest.mark.parametrize(
    "given", [NAN, [NAN, None], {"scale": 2.0, "of": (NAN, 1)}, [1.0, float("nan")], [[None, 3]]]
)
def test_what_is_left_alone_is_the_same(given):
    assert _same(given, _copy(given))


@pytest.mark.parametrize(
    "before,after",
    [
        (NAN, ONE),
        (ONE, NAN),
        (ONE, ONE.double()),
        ([ONE, NAN], [ONE]),
        ({"a": 1.0}, {"a": 2.0}),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}),
        ({"a": ONE}, {"a": NAN}),
        ([[None, 3]], [[0, 3]]),
        ([1.0, float("nan")], [1.0, 2.0]),
    ],
)
def test_what_is_changed_is_not(before, after):
    assert not _same(before, after)


def test_a_dict_is_copied():
    given = {"a": torch.ones(2), "b": [1]}
    copied = _copy(given)
    copied["a"] += 1
    copied["c"] = 0
    assert given["a"].tolist() == [1, 1] and "c" not in given
