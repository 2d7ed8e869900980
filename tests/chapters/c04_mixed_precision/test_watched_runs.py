"""The observers of the chapter's runs, in real runs.

Wrong versions these catch: an evaluation that is counted, a try that was taken back and is counted,
a spike that comes twice, ranks that agree although they were told not to.
"""

import pytest

import picolab as pico
from picolab import costs
from picolab.chapters import c04_mixed_precision as chapter

SMALL = dict(
    layers=1, seq=16, hidden=16, heads=2, kv_heads=2, ffn=24, micro_batch=8, products="rounded",
    progress=False,
)  # fmt: skip
DOWN = "layers.0.mlp.down.weight"


def test_operands_are_counted_as_the_formula_has_them():
    spike = chapter.spiked(10, DOWN, 1e4)
    run = pico.train(
        "tiny", precision="adaptive", steps=12, eval_every=4, observers=[spike, chapter.counted()],
        **SMALL,
    )  # fmt: skip
    assert run.went_back == [(10, 5)]
    read = chapter.operand_bytes(run)
    numbers = costs.operand_numbers(run.config.model, 128)
    assert read[0] == 4 * sum(numbers.values())
    assert read[4] == 4 * numbers["head"] + sum(numbers.values()) - numbers["head"]
    history = pico.monitoring.figures.run_state(run).precision
    for step in range(12):
        assert read[step] == pytest.approx(history.bytes_share(step) * read[0])
    assert read[11] == read[5] > read[4]  # one layer was raised


def test_gradients_of_one_step():
    run = pico.train("tiny", steps=3, observers=[chapter.sizes(step=1)], **SMALL)
    found = chapter.gradient_sizes(run)
    rows = 8 * 16 * (16 * 3 + 16 + 48 + 16 + 256)
    assert 0.9 * rows < sum(found.values()) <= rows  # (some dy are exactly 0)
    with pytest.raises(ValueError, match="did not tell how large"):
        chapter.gradient_sizes(pico.train("tiny", steps=1, **SMALL))


def test_ranks_that_ask_skip_together_and_ranks_that_do_not_do_not():
    job = dict(layout="tp2", precision="fp16", steps=4) | SMALL
    together = pico.train("tiny", observers=[chapter.shaken(step=2, rank=1)], **job)
    assert together.skipped == [2] and chapter.updates_of(together) == [3, 3]
    with pytest.raises(pico.RankFailure, match="gradient norm is"):
        pico.train("tiny", observers=[chapter.shaken(step=2, rank=1, alone=True)], **job)


def test_bad_input():
    for make in (lambda: chapter.sizes(-1), lambda: chapter.spiked(1.5, DOWN, 10.0)):
        with pytest.raises(ValueError, match="it is a number of a step"):
            make()
    with pytest.raises(pico.RankFailure, match="there is no 'head'; there are"):
        pico.train("tiny", steps=1, observers=[chapter.spiked(0, "head", 10.0)], **SMALL)
