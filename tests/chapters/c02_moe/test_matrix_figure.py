"""The matrix of an all-to-all: who sends how much to whom.

Wrong versions these catch: rows for columns, the diagonal counted as sent, an evaluation that is in
the step's rows, a matrix that does not agree with the ledger.
"""

import pytest

import picolab as pico
from picolab.chapters.c02_moe.matrix_figure import sent_matrix, traffic_matrix

MATRIX = [[10, 30], [20, 40]]


def test_rows_send_and_columns_get():
    shown = traffic_matrix(MATRIX, "a test")
    text = repr(shown)
    assert "a test: 50 B of 100 B leave their rank; rank 1 gets 1.40 times the mean" in text
    first, second, sums = text.splitlines()[-3:]
    assert first.split()[-3:] == ["10", "30", "40"] and second.split()[-3:] == ["20", "40", "60"]
    assert sums.split()[-3:] == ["30", "70", "100"]
    heat = shown.figure.data[0]
    assert [list(row) for row in heat.z] == MATRIX
    assert shown.figure.layout.yaxis.autorange == "reversed"  # rank 0 on top
    assert len(shown.figure.layout.annotations) == 4


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="as many columns as rows"):
        traffic_matrix([[1, 2]])


def test_a_run_is_what_its_ledger_has():
    run = pico.train(
        "tiny-moe", "dp2ep2", layers=2, seq=16, hidden=16, heads=2, kv_heads=2, expert_ffn=8,
        ffn=16, micro_batch=1, accumulate=2, steps=2, eval_every=1, progress=False,
        observers=[pico.chapters.c02_moe.sent()],
    )  # fmt: skip
    for step in (0, 1):
        matrix = sent_matrix(run, step)
        for rank in (0, 1):
            kept = run.ledger.step(step).rank(rank).total(reason="ep: rows to experts")
            assert sum(matrix[rank]) == kept.payload_bytes > 0
            back = run.ledger.step(step).rank(rank).total(reason="ep: rows back")
            assert sum(row[rank] for row in matrix) == back.payload_bytes


def test_a_run_that_nobody_listened_to_is_refused():
    class Silent:
        events = ()

    with pytest.raises(ValueError, match="did not tell what it sent"):
        sent_matrix(Silent())


@pytest.mark.parametrize("asked", [{"hot": -1}, {"hot": 1.5}, {"row_s": -1.0}])
def test_what_cannot_be_planted_is_refused(asked):
    with pytest.raises(ValueError, match="or more"):
        pico.chapters.c02_moe.planted(**asked)
