"""The rule by which sizes that do not divide are dealt out.

Wrong versions these tests catch, kept below as mutants: the remainder dropped, all of it given to
the last rank, slices of ceil(size / n) (torch.chunk's, which leave ranks empty where an even split
would not), and blocks that are cut through.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs


def check(even_slices, size, n, blocks):
    slices = even_slices(size, n, blocks)
    assert len(slices) == n
    assert [i for part in slices for i in part] == list(range(size))  # each once, in order
    unit = size // (blocks or size) if size else 1
    assert all(len(part) % unit == 0 for part in slices)
    lengths = [len(part) // unit for part in slices]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@given(unit=st.integers(1, 6), blocks=st.integers(1, 40), n=st.integers(1, 12))
def test_slices_are_even_whole_and_complete(unit, blocks, n):
    check(costs.even_slices, unit * blocks, n, blocks)
    check(costs.even_slices, unit * blocks, n, None)


@given(size=st.integers(1, 100), n=st.integers(1, 12))
def test_the_rule_is_tensor_splits(size, n):
    parts = torch.arange(size).tensor_split(n)
    assert [list(part) for part in costs.even_slices(size, n)] == [part.tolist() for part in parts]


def remainder_dropped(size, n, blocks):
    return [range(i * (size // n), (i + 1) * (size // n)) for i in range(n)]


def remainder_to_the_last(size, n, blocks):
    slices = remainder_dropped(size, n, blocks)
    return [*slices[:-1], range(slices[-1].start, size)]


def ceiling(size, n, blocks):
    each = -(-size // n)
    return [range(min(size, i * each), min(size, (i + 1) * each)) for i in range(n)]


def blocks_cut_through(size, n, blocks):
    return costs.even_slices(size, n)


@pytest.mark.parametrize(
    "wrong", [remainder_dropped, remainder_to_the_last, ceiling, blocks_cut_through]
)
def test_a_wrong_rule_is_caught(wrong):
    with pytest.raises(AssertionError):
        for case in ((5, 4, None), (11, 4, None), (12, 4, 6)):
            check(wrong, *case)


def test_by_hand():
    assert costs.even_slices(37, 4) == [
        range(0, 10), range(10, 19), range(19, 28), range(28, 37)
    ]  # fmt: skip
    assert costs.even_slices(24, 2, 3) == [range(0, 16), range(16, 24)]  # 3 kv heads of 8 rows
    assert costs.even_slices(2, 3) == [range(0, 1), range(1, 2), range(2, 2)]


def test_bad_input_gets_a_sentence():
    with pytest.raises(ValueError, match="10 does not consist of 3 equal blocks"):
        costs.even_slices(10, 2, 3)
    with pytest.raises(ValueError, match="10 cannot be dealt out to 0"):
        costs.even_slices(10, 0)


def test_the_shares_of_causal_work_are_the_scores_that_a_rank_sees():
    for cp, split in itertools.product((1, 2, 3, 4, 7), ("contiguous", "zigzag")):
        shares = [costs.causal_share(rank, cp, split) for rank in range(cp)]
        assert sum(shares) == pytest.approx(1, rel=1e-12)
        expected = [1 / cp if split == "zigzag" else (2 * r + 1) / cp**2 for r in range(cp)]
        assert shares == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="rank is 4, and the ranks of cp4 are 0 to 3"):
        costs.causal_share(4, 4)
