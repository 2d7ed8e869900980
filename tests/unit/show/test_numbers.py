"""A number as people type it: one reading for guesses and quiz, said where it could be another.

Wrong versions these tests catch (mutants below): 17,9 read as 179 (the guesses' old parser), a
comma that always is a decimal comma, bits taken for bytes, a unit of another kind passed over, a
tower of whole powers. Every number that is written in one of the usual styles reads back.
"""

import subprocess
import sys
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from picolab.show import numbers, read, units


def check(text: str, value: float, unit: str = "", note: str | None = None):
    found = read(text, unit)
    assert found.value == pytest.approx(value, rel=1e-12)
    if note is not None:
        assert found.note == note


PLAIN = [
    ("3294720", 3294720),
    ("3_294_720", 3294720),
    ("1_024", 1024),
    ("1 024", 1024),
    ("3 294 720.5", 3294720.5),
    ("1'024", 1024),
    ("1,024.5", 1024.5),
    ("1.024", 1.024),
    ("0.158", 0.158),
    ("~0.158", 0.158),
    ("≈ 0.158", 0.158),
    ("3.3e6", 3.3e6),
    ("3e-4", 3e-4),
    ("-2.5e-3", -0.0025),
    ("-.5", -0.5),
    ("+ 5", 5),
    ("  8.  ", 8),
    ("9x", 9),
    ("9 times", 9),
    ("9×", 9),
    ("１２３．５", 123.5),
    ("−3", -3),
]
NOTED = [
    ("17,9", 17.9, "read as 17.9 (decimal comma)"),
    ("0,158", 0.158, "read as 0.158 (decimal comma)"),
    ("1,23", 1.23, "read as 1.23 (decimal comma)"),
    ("1024,5", 1024.5, "read as 1,024.5 (decimal comma)"),
    ("1.024,5", 1024.5, "read as 1,024.5 (decimal comma)"),
    ("1 024,5", 1024.5, "read as 1,024.5 (decimal comma)"),
    ("1,024", 1024, "read as 1,024 (thousands comma)"),
    ("1,024,000", 1024000, "read as 1,024,000 (thousands comma)"),
    ("１，０２４", 1024, "read as 1,024 (thousands comma)"),
    ("1.024.000", 1024000, "read as 1,024,000 (thousands points)"),
    ("1/6.32", 1 / 6.32, "read as 0.158228 (calculated)"),
    ("sqrt(40)", 40**0.5, "read as 6.32456 (calculated)"),
    ("√40", 40**0.5, "read as 6.32456 (calculated)"),
    ("2^20", 2**20, "read as 1,048,576 (calculated)"),
    ("2**20", 2**20, "read as 1,048,576 (calculated)"),
    ("2²⁰", 2**20, "read as 1,048,576 (calculated)"),
    ("2^-3^2", 2**-9, None),
    ("-2^2", -4, None),
    ("8 x 7", 56, "read as 56 (calculated)"),
    ("3.2·10⁻³", 0.0032, None),
    ("2*(8-1)/8", 1.75, None),
    ("10 - 2 - 3", 5, None),
    ("3-4", -1, "read as -1 (calculated)"),
    ("14k", 14000, "read as 14,000 (k is 1,000)"),
    ("2.5M", 2.5e6, "read as 2,500,000 (M is 1,000,000)"),
    ("2 Ki", 2048, "read as 2,048 (Ki is 1,024)"),
    ("2,5 million", 2.5e6, "read as 2,500,000 (decimal comma, million is 1,000,000)"),
    ("1.5 亿", 1.5e8, None),
    ("35 %", 0.35, "read as 0.35 (a share)"),
    ("３５％", 0.35, "read as 0.35 (a share)"),
]


@pytest.mark.parametrize("text, value", PLAIN)
def test_what_is_plain_is_read_without_a_word(text, value):
    check(text, value, note="")


@pytest.mark.parametrize("text, value, note", NOTED)
def test_what_could_be_meant_otherwise_says_how_it_was_read(text, value, note):
    check(text, value, note=note)


@pytest.mark.parametrize(
    "text, unit, value",
    [
        ("3.2 GB", "B", 3.2e9),
        ("3.3MB", "bytes", 3300000),
        ("3.2 GiB", "B", 3.2 * 2**30),
        ("3.2 GiB", "GB", 3.2 * 2**30 / 1e9),
        ("1 KB", "B", 1000),
        ("1 kB", "B", 1000),
        ("2 KiB", "bytes", 2048),
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
        ("17,9 %", "%", 17.9),
        ("0.179", "%", 0.179),
        ("9x", "%", 900),
        ("17.9 per cent", "%", 17.9),
        ("17.9 %", "", 0.179),
        ("17.9 %", "times", 0.179),
        ("9x", "times", 9),
        ("989 TFLOP/s", "PFLOP/s", 0.989),
        ("989 TFLOPS", "TFLOP/s", 989),
        ("4096 tokens", "token", 4096),
        ("14k tokens", "token", 14000),
        ("3.2", "GiB", 3.2),
        ("1/4 GB", "MB", 250),
        ("6", "all-reduces", 6),
        ("6 all-reduces", "all-reduces", 6),
        ("1 all-reduce", "all-reduces", 1),
    ],
)
def test_units(text, unit, value):
    check(text, value, unit)


REFUSED = [
    ("", "", "'' is not a number; write for instance 17.9, 3.2e9"),
    ("", "s", "write for instance 17.9 s, 3.2e9"),
    ("many", "", "'many' is not a number"),
    ("about 5", "GB", "'about 5' is not a number; write for instance 17.9 GB, 3.2e9"),
    ("MB", "bytes", "is not a number"),
    ("nan", "", "is not a number"),
    ("1 2", "", "is not a number"),
    ("1.2.3", "", "is not a number"),
    ("1,23,4", "", "is not a number"),
    ("1,24.5", "", "is not a number"),
    ("1 024.000.000,5", "", "is not a number"),
    ("1e", "", "is not a number"),
    ("()", "", "is not a number"),
    ("(1", "", "is not a number"),
    ("sqrt(-4)", "", "is not a number"),
    ("(-8)^0.5", "", "is not a number"),
    ("9" * 101, "", "is not a number"),
    ("1/0", "", "1/0 divides by zero"),
    ("0^-1", "", "0^-1 divides by zero"),
    ("9^9^9^9", "", "9^9^9^9 is larger than any number"),
    ("9**9**9", "GB", "larger than any number"),
    ("1e999", "", "larger than any number"),
    ("-1e999", "", "larger than any number"),
    ("1e308 PB", "B", "larger than any number"),
    ("1e308*10 - 1e308*10", "", "larger than any number"),
    ("5 m**9**9**9", "s", "'m**9**9**9' is no unit that is known here; asked for is s"),
    ("5 __import__('os')", "", "is no unit"),
    ("2 GB - 1", "GB", "'GB - 1' is no unit"),
    ("3 apples", "", "'apples' is no unit that is known here; asked for is a pure number"),
    ("5 smoots", "", "'smoots' is no unit"),
    ("5 gb", "GB", "'gb' is no unit that is known here; asked for is GB"),
    ("5 s", "all-reduces", "'s' is no unit that is known here; asked for is all-reduces"),
    ("5 s", "GB", "5 s is a time, and asked for is an amount of data in GB"),
    ("5 GB", "GB/s", "5 GB is an amount of data, and asked for is a rate of data in GB/s"),
    ("5 GB", "", "5 GB is an amount of data, and asked for is a pure number"),
    ("5 %", "GB", "5 % is a pure number, and asked for is an amount of data"),
    ("9x", "GB", "9x is a pure number, and asked for is an amount of data"),
    ("5 Hz", "GB/s", "of another kind (hertz), and asked for is a rate of data"),
    ("5 %", "s", "5 % is a pure number, and asked for is a time in s"),
    ("5 TFLOP", "TFLOP/s", "a number of operations, and asked for is a rate of operations"),
    ("5 m", "GB", "of another kind (meter)"),
    ("5 G", "GB", "5 G is of another kind"),
    ("7 ms", "", "7 ms is a time, and asked for is a pure number"),
]


@pytest.mark.parametrize("text, unit, says", REFUSED)
def test_what_is_no_such_number_gets_a_sentence(text, unit, says):
    before = time.process_time()
    with pytest.raises(ValueError) as refused:
        read(text, unit)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert time.process_time() - before < 2  # pint loads in that time, too


# --- there and back -------------------------------------------------------------------------------

WHOLE = st.integers(-(10**14), 10**14)
REAL = st.floats(-1e15, 1e15, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-9)


@given(
    WHOLE, st.sampled_from([",", " ", "_", "'", "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"])
)
def test_whole_numbers_in_thousands_read_back(number, mark):
    text = f"{number:,}".replace(",", mark)
    assert read(text).value == number
    assert read(text + ".25").value == pytest.approx(abs(number) + 0.25) or number < 0


@given(WHOLE)
def test_thousands_points_read_back_from_a_million(number):
    assume(abs(number) >= 10**6)
    assert read(f"{number:,}".replace(",", ".")).value == number


@given(REAL, st.sampled_from(["{!r}", "{:.17e}", "{:,.9f}", "~{!r}", "{!r}x", "({!r})", "+{!r}*1"]))
def test_reals_read_back(number, style):
    text = style.format(number).replace("+-", "-")
    assert read(text).value == pytest.approx(number, rel=1e-9, abs=1e-9)


@given(st.decimals(-(10**6), 10**6, places=2), st.sampled_from(["", " ", "."]))
def test_decimal_commas_read_back(number, mark):
    text = f"{number:,}".replace(",", "#").replace(".", ",").replace("#", mark)
    assert read(text).value == pytest.approx(float(number), rel=1e-12)


@given(st.integers(1, 999), st.integers(0, 999))
def test_three_digits_after_one_comma_are_thousands_and_say_so(head, tail):
    found = read(f"{head},{tail:03}")
    assert found.value == 1000 * head + tail and "thousands comma" in found.note
    assert read(f"0,{tail:03}").value == pytest.approx(tail / 1000)


@given(REAL, st.sampled_from(["%", "percent"]))
def test_shares_read_back(number, sign):
    assert read(f"{number!r} {sign}").value == pytest.approx(number / 100)
    assert read(f"{number!r} {sign}", "%").value == pytest.approx(number)


@given(st.floats(1e-3, 1e6), st.sampled_from(["k", "M", "G", "T", "Ki", "Mi", "Gi"]))
def test_multiples_read_back(number, letter):
    times = numbers._TIMES[letter]
    assert read(f"{number!r}{letter}").value == pytest.approx(number * times)


@given(
    st.floats(min_value=1e-6, max_value=1e15),
    st.sampled_from(["B", "kB", "KiB", "MB", "MiB", "GB", "GiB", "Gb", "Tb"]),
    st.sampled_from(["B", "kB", "MiB", "GB", "GiB", "Gb"]),
)
def test_units_there_and_back(value, typed, asked):
    there = read(f"{value!r} {typed}", asked)
    back = read(f"{there.value!r} {asked}", typed)
    assert there.with_unit and back.value == pytest.approx(value, rel=1e-9)


@settings(max_examples=400)
@given(
    st.text(max_size=40) | st.text("0123456789.,-+*/^()eExkMG %sqrtB_' ", max_size=40),
    st.sampled_from(["", "%", "GB", "ms", "all-reduces"]),
)
def test_whatever_is_typed_is_a_number_or_a_sentence(text, unit):
    try:
        found = read(text, unit)
    except ValueError as error:
        assert str(error) and "Error" not in str(error)
    else:
        assert abs(found.value) < float("inf")


# --- the wrong versions ---------------------------------------------------------------------------


def _commas_dropped(text, whys):
    return float(text.replace(",", "").replace("_", ""))


def _commas_decimal(text, whys):
    return float(text.replace(",", ".").replace("_", ""))


@pytest.mark.parametrize("mutant", [_commas_dropped, _commas_decimal])
def test_another_rule_for_commas_is_noticed(mutant, monkeypatch):
    monkeypatch.setattr(numbers, "_literal", mutant)
    wrong = []
    for text, value, _ in NOTED[:7]:
        try:
            check(text, value)
        except (AssertionError, ValueError):
            wrong.append(text)
    assert {"17,9"} <= set(wrong) or {"1,024"} <= set(wrong)


def test_a_unit_that_is_passed_over_is_noticed(monkeypatch):
    """The guesses' old parser took 7 ms for 7."""
    monkeypatch.setattr(units, "convert", lambda value, typed, asked, text: value)
    with pytest.raises(pytest.fail.Exception):
        test_what_is_no_such_number_gets_a_sentence("7 ms", "", "")


def test_pint_alone_reads_b_otherwise():
    """Mutant: without the spelling out, b is a barn, and a byte is a pure number."""
    pint = units.registry()
    assert not pint.Unit("Gb/s").is_compatible_with(pint.Unit("GB/s"))
    assert read("8 Gb/s", "GB/s").value == 1
    assert pint.Unit("byte").is_compatible_with(pint.Unit("percent")), "and data is a number"


def test_a_plain_number_takes_neither_torch_nor_pint():
    code = (
        "import sys; from picolab.show import read\n"
        "read('17,9 %', '%'), read('9x'), read('6 B', 'B')\n"
        "assert not {'torch', 'numpy', 'pint'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
