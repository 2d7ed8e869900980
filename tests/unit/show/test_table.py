"""Tables: one number of decimals a column, and rows that say what is wrong.

Wrong versions these tests catch: a cell's own number of digits (mutant), integers that get
decimals, a small number that is rounded to nothing, a mark that only colour carries.
"""

import math

import pytest

from picolab.show import table as module
from picolab.show.table import Table


def column(*values) -> list[str]:
    return [row[0] for row in Table(["n"], [[value] for value in values]).texts()]


def check_columns(column):
    assert column(9.42, 10.31, 101.2) == ["9.42", "10.31", "101.20"]
    assert column(0.5, 0.25, -1.0) == ["0.50", "0.25", "-1.00"]
    assert column(1.0, 2.0) == ["1", "2"]
    assert column(54_321.7, 1_000.2) == ["54,322", "1,000"]
    assert column(0.0012, 0.0341, 0.0) == ["0.0012", "0.0341", "0.0000"]


def test_floats_of_a_column_have_one_number_of_decimals():
    check_columns(column)


def test_a_number_of_digits_for_each_cell_is_noticed():
    with pytest.raises(AssertionError):
        check_columns(lambda *values: list(map(module.show, values)))


def test_what_has_no_common_number_of_decimals_is_left_alone():
    assert column(1e-9, 3.0) == ["1e-09", "3"]  # not 0.00
    assert column(5e-7, 6e-7) == ["5e-07", "6e-07"]
    assert column(4, 3.25) == ["4", "3.25"]
    assert column(True, 2.5, None, "word", 1.25, math.inf, math.nan) == [
        *("yes", "2.50", "", "word", "1.25", "inf", "nan")
    ]


def test_nothing_is_rounded_to_nothing():
    for least in (0.5, 0.04, 0.003, 0.0002, 1e-5, 1e-7):
        assert float(column(least, 300.0)[0]) == pytest.approx(least)


def test_rows_hold_the_values():
    assert Table(["n"], [[1.25], [2.123456]]).rows == [[1.25], [2.123456]]


def check_wrong(shown: str):
    """The wrong row, and no other, is bold and has an edge."""
    first, second = shown.partition("<tbody>")[2].split("</tr>")[:2]
    assert "font-weight" not in first and "box-shadow" not in first
    assert second.count("font-weight:600") == 2 and second.count("box-shadow") == 1


def test_wrong_rows_are_marked_in_shape_too():
    rows = [["a", "ok"], ["b", "wrong"]]
    check_wrong(Table(["", "verdict"], rows, wrong=[1])._repr_html_())
    for marked in ([], [0], [0, 1]):
        with pytest.raises(AssertionError):
            check_wrong(Table(["", "verdict"], rows, wrong=marked)._repr_html_())
    assert repr(Table(["", "verdict"], rows, wrong=[1])) == repr(Table(["", "verdict"], rows))
