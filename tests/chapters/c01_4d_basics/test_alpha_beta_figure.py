"""The plot of alpha-beta: the numbers of its cell on logarithmic axes, and the same as text."""

import math

import pytest

from picolab.chapters.c01_4d_basics import alpha_beta_figure
from picolab.costs import collective_time

ALPHA, BETA = 50e-6, 1e-9
SIZES = [1_000, 100_000, 10_000_000]
FORMULA = [collective_time("all_reduce", size, 2, ALPHA, BETA) for size in SIZES]
MEASURED = [1.2 * time for time in FORMULA]


def shown(beta=BETA):
    return alpha_beta_figure(SIZES, MEASURED, FORMULA, ALPHA, beta)


def check_terms(figure):
    """The formula is the sum of the two straight lines."""
    latency, bandwidth, formula, measured = (list(trace.y) for trace in figure.data)
    assert formula == pytest.approx([a + b for a, b in zip(latency, bandwidth)])
    assert measured == pytest.approx([1e3 * time for time in MEASURED])
    low, high = figure.layout.yaxis.range
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert all(low < math.log10(y) < high for y in (*formula, *measured))


def test_the_plot():
    check_terms(shown().figure)
    assert len({trace.name for trace in shown().figure.data}) == 4


def test_another_bandwidth_is_noticed():
    with pytest.raises(AssertionError):
        check_terms(shown(2 * BETA).figure)


def test_the_text_form_has_every_number():
    text = repr(shown())
    assert text.startswith("alpha 50 µs, bandwidth 1 GB/s\n")
    assert "10,000,000" in text and "GB/s sent" in text
