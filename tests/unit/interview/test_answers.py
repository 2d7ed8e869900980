"""A typed number with its unit, compared; ticks of a rubric, and the grade they speak for.

Catches bits taken for bytes and GiB for GB, a unit of the wrong kind that is compared all the same,
a known mistake without its reason, a reason that fits by accident, a decimal comma that is read as
thousands, and thresholds that are off by a point.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picolab.interview import answers
from picolab.interview.answers import close, judge, parse, propose
from picolab.interview.bank import Numeric, Question, Wrong

# --- units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, unit, value",
    [
        ("3.2 GB", "B", 3.2e9),
        ("3.2 GiB", "B", 3.2 * 2**30),
        ("3.2 GiB", "GB", 3.2 * 2**30 / 1e9),
        ("1 KB", "B", 1000),
        ("1 kB", "B", 1000),
        ("1 KiB", "B", 1024),
        ("8 Kib", "B", 1024),
        ("7 TB", "GB", 7000),
        ("16 bytes", "B", 16),
        ("16 bits", "B", 2),
        ("16 Bytes", "B", 16),
        ("2 megabytes", "MB", 2),
        ("16 gigabits", "GB", 2),
        ("400 Gb/s", "GB/s", 50),
        ("400 Gbps", "GB/s", 50),
        ("400 Gbit/s", "GB/s", 50),
        ("50 GB/s", "Gb/s", 400),
        ("50 GBps", "GB/s", 50),
        ("1 GiB/s", "MB/s", 1073.741824),
        ("5 ms", "s", 0.005),
        ("5 us", "ms", 0.005),
        ("5 µs", "ms", 0.005),
        ("2 h", "s", 7200),
        ("17.9 %", "%", 17.9),
        ("0.179", "%", 0.179),
        ("17.9 per cent", "%", 17.9),
        ("17.9 %", "", 0.179),
        ("989 TFLOP/s", "PFLOP/s", 0.989),
        ("989 TFLOPS", "TFLOP/s", 989),
        ("4096 tokens", "token", 4096),
        ("3.2", "GiB", 3.2),
        ("1,234,567", "", 1234567),
        ("1_000", "", 1000),
        ("-2.5e-3", "", -0.0025),
        (".5", "", 0.5),
        ("  8.  ", "", 8),
    ],
)
def test_units(text, unit, value):
    assert parse(text, unit)[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text, unit, says",
    [
        ("5 s", "GB", "5 s is a time, and asked for is an amount of data in GB"),
        ("5 GB", "GB/s", "5 GB is an amount of data, and asked for is a rate of data in GB/s"),
        ("5 GB", "", "5 GB is an amount of data, and asked for is a pure number"),
        ("5 %", "GB", "5 % is a pure number, and asked for is an amount of data"),
        ("5 Hz", "GB/s", "of another kind (hertz), and asked for is a rate of data"),
        ("5 %", "s", "5 % is a pure number, and asked for is a time in s"),
        ("5 TFLOP", "TFLOP/s", "a number of operations, and asked for is a rate of operations"),
        ("5 m", "GB", "of another kind (meter)"),
        ("5 gb", "GB", "'gb' is no unit that is known here; asked for is GB"),
        ("5 smoots", "", "'smoots' is no unit that is known here; asked for is a pure number"),
        ("about 5", "GB", "is not a number; write for instance 17.9 GB, 3.2e9"),
        ("", "s", "'' is not a number"),
        ("17,9 %", "%", "'17,9 %' is not a number; write for instance 17.9 %"),
        ("1.2.3", "", "is not a number"),
        ("1,23", "", "is not a number"),
        ("nan", "", "is not a number"),
    ],
)
def test_what_cannot_be_compared(text, unit, says):
    with pytest.raises(ValueError) as refused:
        parse(text, unit)
    assert says in str(refused.value)


def test_pint_alone_reads_b_otherwise():
    """Mutant: without the spelling out, b is a barn, and a byte is a pure number."""
    units = answers._units()
    assert not units.Unit("Gb/s").is_compatible_with(units.Unit("GB/s"))
    assert parse("8 Gb/s", "GB/s")[0] == 1
    assert units.Unit("byte").is_compatible_with(units.Unit("percent")), "and data is a number"


@settings(deadline=None)  # the first unit of a process takes pint its time
@given(
    st.floats(min_value=1e-6, max_value=1e15),
    st.sampled_from(["B", "kB", "KiB", "MB", "MiB", "GB", "GiB", "Gb", "Tb"]),
    st.sampled_from(["B", "kB", "MiB", "GB", "GiB", "Gb"]),
)
def test_there_and_back(value, typed, asked):
    there, with_unit = parse(f"{value!r} {typed}", asked)
    back, _ = parse(f"{there!r} {asked}", typed)
    assert with_unit and back == pytest.approx(value, rel=1e-9)


@settings(deadline=None)
@given(st.text(max_size=12))
def test_whatever_is_typed_is_a_number_or_a_sentence(text):
    numeric = Numeric(prompt="p", value="x", unit="GB")
    try:
        judge(numeric, {"x": 8.0}, text)
    except ValueError as error:
        assert str(error)


# --- judging --------------------------------------------------------------------------------------

COMPUTED = {"right": 3.0e9, "ideal": 21.875, "total": 17.948, "zero": 0.0}


def numeric(value="right", unit="GB", rtol=0.02, **wrong) -> Numeric:
    """A number to be given; for data the value is in bytes unless it is scaled."""
    known = [Wrong(value=expression, why=why) for why, expression in wrong.items()]
    return Numeric(prompt="How much?", value=value, unit=unit, rtol=rtol, wrong=tuple(known))


def verdict(asked: Numeric, typed: str):
    return judge(asked, {**COMPUTED, "gb": 3.0}, typed)


def test_right_within_the_tolerance_and_not_beyond():
    asked = numeric("gb")
    for typed in ("3 GB", "3", "2.95 GB", "3.05e9 B", "24 Gb"):
        assert verdict(asked, typed).right, typed
    for typed in ("2.93 GB", "3.07 GB"):
        assert not verdict(asked, typed).right, typed
    assert verdict(asked, "3 GB").text == "Right: 3 GB (computed: 3 GB)"


def test_known_mistakes_get_their_reason():
    asked = numeric("total", "%", ideal="ideal", half="total / 2")
    assert verdict(asked, "21.9 %").reason == "ideal"
    assert verdict(asked, "8.97").reason == "half"
    assert verdict(asked, "17.9").right
    assert verdict(asked, "21.9 %").text == "Not 21.9 %. ideal"


def test_the_right_one_goes_before_a_known_mistake():
    """Mutant: mistakes looked at first would refuse what is right."""
    assert verdict(numeric("gb", near="gb * 1.01"), "3.02 GB").right


@pytest.mark.parametrize(
    "asked, typed, says",
    [
        (numeric("gb"), "3 GiB", "GB and GiB: 1000 or 1024 a step"),
        (numeric("gb", "MB"), "3.145728 MB", "MB and MiB"),
        (numeric("gb"), "3 Gb", "off by exactly 8: bits and bytes"),
        (numeric("gb", "GB/s"), "24 GB/s", "off by exactly 8"),
        (numeric("gb"), "3 MB", "The digits are right, and it is off by 0.001"),
        (numeric("gb", "ms"), "3 s", "it is off by 1,000."),
        (numeric("gb"), "6 GB", "It is twice the right value"),
        (numeric("gb"), "1.5 GB", "It is half of the right value"),
        (numeric("gb"), "4 GB", "It is too large."),
        (numeric("gb"), "2 GB", "It is too small."),
        (numeric("total", "%"), "0.179", "As a fraction it would be right"),
        (numeric("total", "%"), "0.179 %", "too small"),
        (numeric("gb"), "-3 GB", "Not -3 GB."),
        (numeric("gb"), "0 GB", "Not 0 GB."),
        (numeric("gb", ""), "24", "It is too large."),
    ],
)
def test_reasons_that_need_no_list(asked, typed, says):
    found = verdict(asked, typed)
    assert not found.right and says in found.text


def test_zero():
    assert verdict(numeric("zero", ""), "0").right and not verdict(numeric("zero", ""), "1").right
    assert close(0.01, 0, 0.02) and not close(0.03, 0, 0.02)


@pytest.mark.parametrize("typed", ["1e999", "1e308 PB", "-1e999"])
def test_beyond_every_number(typed):
    with pytest.raises(ValueError, match="larger than any number"):
        verdict(numeric("gb", "B"), typed)


# --- rubric ---------------------------------------------------------------------------------------


@pytest.fixture
def asked(make):
    """Points 4 (a must), 2, 2, 2."""
    return Question.model_validate(make.question(1))


@pytest.fixture
def fine(make):
    """Points 3 (a must), 1, 3, 1, 2: so that 40, 70 and 90 % can be had."""
    points = [3, 1, 3, 1, 2]
    rubric = [{"points": n, "text": f"says the {i}th thing"} for i, n in enumerate(points)]
    rubric[0]["must"] = True
    return Question.model_validate(make.question(1, rubric=rubric))


@pytest.mark.parametrize(
    "ticks, score, rating",
    [
        ([0], 0.3, "again"),
        ([0, 1], 0.4, "hard"),
        ([0, 2], 0.6, "hard"),
        ([0, 1, 2], 0.7, "good"),
        ([0, 2, 1, 3], 0.8, "good"),
        ([0, 2, 4, 1], 0.9, "easy"),
        ([0, 1, 2, 3, 4], 1.0, "easy"),
        ([1, 2, 3, 4], 0.7, "again"),
        ([], 0.0, "again"),
        ([0, 0, 0], 0.3, "again"),
    ],
)
def test_thresholds(fine, ticks, score, rating):
    proposal = propose(fine, ticks)
    assert (proposal.score, proposal.rating) == (pytest.approx(score), rating)


def test_why(fine):
    assert propose(fine, [1, 2]).why == "a must is missing: says the 0th thing"
    assert propose(fine, [0]).why == "less than 40 % of the points"
    assert propose(fine, [0, 1, 2]).why == "70% of the points"


def test_a_red_flag_or_a_wrong_number_allows_hard_at_most(asked):
    every = range(4)
    assert propose(asked, every).rating == "easy"
    flagged = propose(asked, every, flags=[0])
    assert flagged.rating == "hard" and flagged.why.startswith("a red flag: says that the schedule")
    wrong = propose(asked, every, wrong_numbers=1)
    assert (wrong.rating, wrong.why) == ("hard", "a number was wrong")
    assert propose(asked, [], flags=[0]).rating == "again"
    assert propose(asked, [0], wrong_numbers=1).rating == "hard"


def test_what_is_not_in_the_rubric(asked):
    with pytest.raises(ValueError, match="the rubric has no point 5; it has 4"):
        propose(asked, [4])
    with pytest.raises(ValueError, match="no red flag 2"):
        propose(asked, [], flags=[1])
    with pytest.raises(ValueError, match="no point 0"):
        propose(asked, [-1])
