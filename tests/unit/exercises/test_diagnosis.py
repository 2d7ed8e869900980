"""Wrong numbers are told by what makes them, and a mistake is named only if all numbers fit it.

Wrong versions these catch: an error that shows only where the reference is 0 called "1 times what
it should be"; rows in another order, a transposition or fp32 told as "is X, should be Y"; a part of
a sum that is missing and not named.
"""

import pytest
import torch

from picolab.exercises import diagnosis

_DRAW = torch.Generator().manual_seed(0)
X = torch.randn(4, 4, generator=_DRAW, dtype=torch.float64)
PARTS = torch.randn(3, 4, 4, generator=_DRAW, dtype=torch.float64)
PARTS[:, 2] = 0
AXES = {"tp": (1, 3), "dp": (0, 1)}
HOLES = X.clone()
HOLES[1] = 0


def _with(x, index, value):
    x = x.clone()
    x[index] = value
    return x


@pytest.mark.parametrize(
    "got,expected,says",
    [
        (_with(HOLES, (1, 2), 0.5), HOLES, "right wherever it is not 0, and 1 of 4 places"),
        (0 * X, X, "all of it is zero"),
        (2.5 * X, X, "all of it is 2.5 times what it should be"),
        (X / 3, X, "divided by the 3 ranks"),
        (-X, X, "the wrong sign throughout"),
        (X.T, X, "it is transposed"),
        (X[[2, 0, 1, 3]], X, "in another order: along dim 0 2, 0-1, 3"),
        (X[:, [1, 0, 3, 2]], X, "along dim 1 1, 0, 3, 2"),
        (torch.cat((X[1:], X[:1] * 7)), X, "moved by -1 along dim 0"),
        (X.float().double(), X, "its numbers are fp32 ones"),
        (X.bfloat16().double(), X, "its numbers are bf16 ones"),
        (X * (1 + 1e-7 * X), X, "is something kept in fp32"),
        (_with(X, 3, 0), X, "4 of 16 numbers are 0 and should not be"),
        (_with(X, 3, 7.0), X, "wrong only at 3 along dim 0, of 4"),
        (torch.tensor(3.0), torch.tensor(1.5), "all of it is 2 times"),
        (torch.tensor(3.1), torch.tensor(1.5), "it is 3.1, and should be 1.5"),
    ],
)
def test_the_mistake_is_named(got, expected, says):
    assert says in diagnosis.says(got.double(), expected.double(), AXES)


@pytest.mark.parametrize(
    "got,says",
    [
        (PARTS[1], "this rank's own part alone"),
        (PARTS.mean(0), "the mean over the 3 ranks of tp"),
        (PARTS[0] + PARTS[1], "1, 1, 0 times, and should be 1, 1, 1"),
        (PARTS.sum(0) + PARTS[2], "1, 1, 2 times"),
        (PARTS.amax(0), "the largest of the ranks' parts"),
        (PARTS.sum(0) + 1, "; 0 of 16 numbers are right"),
    ],
)
def test_a_part_that_is_missing_is_named(got, says):
    assert says in diagnosis.says(got, PARTS.sum(0), AXES, {"tp": PARTS})


def test_what_is_not_finite_stands_where_it_should():
    inf = torch.inf
    wanted = torch.tensor([1.0, -inf, inf, 2.0])
    assert diagnosis.near(wanted, wanted, 0) and diagnosis.not_finite_says(wanted, wanted) is None
    for got, says in (
        ([1, -1e3, inf, 2], "is wrong at [1]: it is -1000, and should be -inf; so in 1 of 4"),
        ([1, inf, inf, 2], "has 1 entries that are not finite (infinite) at [1]"),
        ([torch.nan, -inf, inf, 2], "has 1 entries that are not finite (nan) at [0]"),
    ):
        assert not diagnosis.near(torch.tensor(got), wanted, 1.0)
        assert says in diagnosis.not_finite_says(torch.tensor(got), wanted)


def test_a_shape_that_differs_says_if_the_numbers_are_right():
    x = X[:3]
    assert diagnosis.shape_says(x.T, x) == ": its numbers are right, and transposed"
    assert "only the shape is not" in diagnosis.shape_says(x.flatten(), x)
    assert diagnosis.shape_says(x.T.flatten(), x) == diagnosis.shape_says(x[:2], x) == ""
