"""Hardware: the peaks of the data sheets, dense.

Wrong versions these tests catch: a peak with sparsity (twice as high), a bandwidth or memory of
another model, a preset that cannot be found without a hint.
"""

import pytest

from picolab.specs import Hardware

# Published runs: (device, TFLOP/s a GPU, percent of peak as printed there).
PUBLISHED = [
    ("a100-80gb", 137, 44), ("a100-80gb", 140, 45), ("a100-80gb", 155, 50), ("a100-80gb", 163, 52),
    ("h100-sxm", 430, 43), ("h100-sxm", 380, 38),
]  # fmt: skip


def check_peak(peak_flops):
    for device, tflops, percent in PUBLISHED:
        assert abs(100 * tflops * 1e12 / peak_flops(device) - percent) < 1


def test_the_peaks_give_the_published_shares():
    """arXiv 2104.04473, table 1 (A100) and arXiv 2407.21783, table 4 (H100)."""
    check_peak(lambda device: Hardware.preset(device).peak_flops)


def test_a_peak_with_sparsity_is_caught():
    with pytest.raises(AssertionError):
        check_peak(lambda device: 2 * Hardware.preset(device).peak_flops)


def test_device_memory_is_the_data_sheets():
    assert Hardware.preset("h100-sxm").memory_bytes == 80e9
    assert Hardware.preset("h200-sxm").memory_bytes == 141e9


def test_every_device_has_a_source():
    for name in Hardware.presets():
        device = Hardware.preset(name)
        assert device.name == name and "data sheet" in device.source


def test_an_unknown_device_names_the_closest_and_all():
    with pytest.raises(ValueError, match=r"no device is called 'h100'; did you mean 'h100-sxm'"):
        Hardware.preset("h100")


def test_a_device_without_memory_is_refused():
    with pytest.raises(ValueError, match="x: memory_bytes is 0; it must be positive"):
        Hardware(
            name="x", peak_flops=1, memory_bytes=0, memory_bytes_per_s=1, link_bytes_per_s=1,
            source="",
        )  # fmt: skip
