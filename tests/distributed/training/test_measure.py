"""This machine, measured by real ranks: of the right shape, and no nonsense."""

import picolab as pico
from picolab.specs import Hardware
from picolab.training.measure import OPS, measure


def test_this_machine_is_a_hardware(tmp_path):
    """Wide limits: they tell a wrong unit (bits, milliseconds, a missing repetition) and nothing
    about how fast it is."""
    mine = measure("tiny", micro_batch=2, repeats=3)
    assert mine.measured and mine.cores >= 1 and mine.source.startswith("measured with")
    assert 1e7 < mine.peak_flops < 1e15
    assert 1e7 < mine.memory_bytes_per_s < 1e13
    assert 1e8 < mine.memory_bytes < 1e14
    assert set(mine.collectives) == set(OPS)
    for alpha, rate in mine.collectives.values():
        assert 1e-9 <= alpha < 10 and 1e4 < rate < 1e16
    (tmp_path / "mine.json").write_text(mine.to_json())
    assert Hardware.load(tmp_path / "mine.json") == mine
    planned = pico.plan("tiny", 4, mine, global_batch=16)
    assert planned.best and planned.searched.request.practice.states == "fp32"
