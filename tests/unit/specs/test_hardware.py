"""Hardware: the peaks of the data sheets, dense.

Wrong versions these tests catch: a peak with sparsity (twice as high), a bandwidth or memory of
another model, a preset that cannot be found without a hint.
"""

import json

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


# TFLOP/s: NVIDIA's data sheets of A100, H100, H200 and HGX B200 ("FP64 Tensor Core"), AMD's of the
# MI300X ("peak double precision matrix").
FP64 = {"a100-80gb": 19.5, "h100-sxm": 67, "h200-sxm": 67, "b200-sxm": 37, "mi300x": 163.4}


def check_fp64():
    assert {name: Hardware.preset(name).matrix_flops("fp64") / 1e12 for name in FP64} == FP64
    assert set(FP64) == set(Hardware.presets())


def test_fp64_has_a_rate_of_its_own():
    check_fp64()
    assert not Hardware.preset("a100-80gb").knows("fp8") and Hardware.preset("h100").knows("fp16")


def test_fp64_at_the_peak_of_bf16_is_caught(monkeypatch):
    monkeypatch.setattr(Hardware, "matrix_flops", lambda self, format: self.peak_flops)
    with pytest.raises(AssertionError):
        check_fp64()


def test_device_memory_is_the_data_sheets():
    assert Hardware.preset("h100-sxm").memory_bytes == 80e9
    assert Hardware.preset("h200-sxm").memory_bytes == 141e9


def test_every_device_has_a_source():
    for name in Hardware.presets():
        device = Hardware.preset(name)
        assert device.name == name and "data sheet" in device.source


def test_an_unknown_device_names_the_closest_and_all():
    with pytest.raises(ValueError, match=r"no device is called 'h10'; did you mean 'h100-sxm'"):
        Hardware.preset("h10")


def test_the_beginning_of_a_name_is_enough():
    assert Hardware.preset("h100") is Hardware.preset("H100-sxm")
    assert {name.split("-")[0] for name in Hardware.presets()} == {
        "a100", "h100", "h200", "b200", "mi300x",
    }  # fmt: skip


def test_links_inside_a_node_are_faster_than_between():
    for name in Hardware.presets():
        device = Hardware.preset(name)
        assert device.link_bytes_per_s > 5 * device.network_bytes_per_s
        assert "network" in device.source


def numbers(**changes):
    fields = dict(
        name="x", peak_flops=1.0, memory_bytes=1.0, memory_bytes_per_s=1.0, link_bytes_per_s=1.0,
        network_bytes_per_s=1.0, source="me",
    )  # fmt: skip
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(memory_bytes=0), "x: memory_bytes is 0; it must be positive"),
        (dict(peak_flops="fast"), "x: peak_flops is 'fast'; it must be positive"),
        (dict(node_size=1.5), "x: node_size is 1.5; it must be a positive integer"),
        (dict(cores=0), "x: cores is 0; it must be a positive integer"),
        (dict(measured=1), "x: measured is 1; it is true or false"),
        (dict(collectives={"send": 3}), r"x: collectives\['send'\] is 3; it is two numbers"),
    ],
)
def test_a_device_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Hardware(**numbers(**changes))


def test_a_device_goes_through_a_file(tmp_path):
    mine = Hardware(**numbers(measured=True, cores=2, collectives={"send": (1e-4, 1e9)}))
    (tmp_path / "mine.json").write_text(mine.to_json())
    assert Hardware.load(tmp_path / "mine.json") == mine


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (json.dumps({"name": "x", "peak_flops": 1}), "the field 'memory_bytes' is missing; the h1"),
        (json.dumps(numbers(peak_flop=1)), "no field 'peak_flop'; did you mean 'peak_flops'"),
        ("{", "is not JSON"),
        ("[]", "a device is an object of fields"),
    ],
)
def test_a_file_that_is_no_device_gets_a_sentence(text, sentence, tmp_path):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        Hardware.load(tmp_path / "mine.json")


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match=r"there is no file .*gone.json"):
        Hardware.load("gone.json")
