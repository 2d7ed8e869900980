"""The fit of alpha and beta, and which matrices a model has.

Wrong versions this test catches, kept below as mutants: least squares of absolute errors, in which
only the largest message counts; fp8 that costs what bf16 does.
"""

import pytest

from picolab import costs
from picolab.precision.hardware import PRODUCTS, HardwareDetector, Timed
from picolab.specs import ModelConfig
from picolab.training.measure import OPS, fit, shapes, speed
from picolab.training.measure import measure as measure_function

SIZES = (4_096, 65_536, 1_048_576, 4_194_304)


def times(op, n, alpha, rate, noise=lambda size: 1.0):
    return [
        (size, noise(size) * costs.collective_time(op, size, n, alpha, 1 / rate)) for size in SIZES
    ]


@pytest.mark.parametrize("n", [2, 4, 7])
@pytest.mark.parametrize("op", OPS)
def test_the_fit_finds_what_the_times_were_made_of(op, n):
    alpha, rate = fit(op, n, times(op, n, 2e-4, 1.5e9))
    assert alpha == pytest.approx(2e-4) and rate == pytest.approx(1.5e9)


def check_small_ones_count(fitted):
    """The largest message took 20 % longer than it should: alpha hardly moves."""
    disturbed = times("all_reduce", 2, 1e-4, 1e9, lambda size: 1.2 if size == max(SIZES) else 1.0)
    alpha, _ = fitted("all_reduce", 2, disturbed)
    assert alpha == pytest.approx(1e-4, rel=0.1)


def test_small_messages_count_as_much_as_large_ones():
    check_small_ones_count(fit)


def absolute(op, n, seen):
    import numpy

    rows = [
        [costs.collective_time(op, size, n, 1, 0), costs.collective_time(op, size, n, 0, 1)]
        for size, _ in seen
    ]
    alpha, beta = numpy.linalg.lstsq(numpy.array(rows), numpy.array([s for _, s in seen]))[0]
    return alpha, 1 / beta


def test_a_fit_that_only_sees_large_messages_is_caught():
    with pytest.raises(AssertionError):
        check_small_ones_count(absolute)


@pytest.mark.parametrize("wrong", [[1e-3] * 4, [4e-3, 3e-3, 2e-3, 1e-3], [1e-6, 1e-5, 1.0, 9.0]])
def test_whatever_the_times_rates_are_positive(wrong):
    alpha, rate = fit("all_reduce", 2, list(zip(SIZES, wrong, strict=True)))
    assert alpha > 0 and rate > 0


def test_the_shapes_are_all_matrices_of_the_model():
    config = ModelConfig.preset("tiny")
    found = shapes(config)
    numbers = sum(rows * columns * count for (rows, columns), count in found.items())
    count = costs.parameters(config)
    assert numbers == count.total - count.embedding - count.norm


class Known:
    """A detector of which is known: fp32 takes 3 seconds, bf16 2 (by its faster way), fp64 6, and
    fp8 is bf16 and a second of casts; for each product."""

    def products(self, format, **size):
        return dict.fromkeys(PRODUCTS, Timed(3.0, 2.0, 9.0))

    def one_way(self, format, **size):
        return dict.fromkeys(PRODUCTS, {"fp32": 3.0, "fp64": 6.0, "fp8": 3.0}[format])


def check_speeds():
    tiny = ModelConfig.preset("tiny")
    found = {name: speed(tiny, name, 64, Known()) for name in ("fp64", "bf16", "fp8")}
    assert found == {"fp64": 0.5, "bf16": 1.5, "fp8": 1.0}


def test_each_format_has_its_own_speed(monkeypatch):
    check_speeds()
    # The mutant: what fp8 costs before its product is not asked.
    monkeypatch.setattr(Known, "one_way", lambda self, *_, **__: dict.fromkeys(PRODUCTS, 2.0))
    with pytest.raises(AssertionError):
        check_speeds()


def test_a_real_clock_answers_for_fp8_and_fp64(tmp_path):
    detector, size = HardwareDetector(folder=tmp_path), dict(tokens=8, inputs=16, outputs=8)
    for name in ("fp64", "fp32", "fp8"):
        found = detector.one_way(name, **size)
        assert list(found) == list(PRODUCTS) and min(found.values()) > 0
        assert detector.one_way(name, **size) == found  # from the file
    with pytest.raises(ValueError, match="bf16 has two ways"):
        detector.one_way("bf16", **size)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (dict(ranks=1), "ranks is 1; it is a whole number of 2 or more"),
        (dict(repeats=0), "repeats is 0; it is a whole number of 1 or more"),
        (dict(model="tiny-moe"), "tiny-moe has experts"),
    ],
)
def test_bad_input_gets_a_sentence(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        measure_function(**asked)
