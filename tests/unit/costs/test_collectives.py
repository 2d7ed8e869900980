"""Ring bytes and alpha-beta times, against rings that are counted chunk by chunk.

Wrong versions these tests catch, kept below as mutants: (n-1)/n for an all-reduce (one round
forgotten), 2 for any n, the payload of a shard taken for the whole; an alpha from the smallest row
and a beta from the largest, each of which is off by the other term, and a fit in seconds, which the
largest message decides alone.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs

ONE_ROUND = ("all_gather", "reduce_scatter", "all_to_all")
OPS = ("all_reduce", *ONE_ROUND, "broadcast", "send", "recv", "barrier")
ranks = st.integers(2, 64)
payloads = st.integers(0, 10**12)


def ring_sent(rounds: int, n: int, chunk: int) -> list[int]:
    """Bytes each rank of a ring sends: in every step of a round, one chunk to its neighbour."""
    sent = [0] * n
    for _ in range(rounds * (n - 1)):
        for rank in range(n):
            sent[rank] += chunk
    return sent


def check_ring(ring_bytes):
    for n in (2, 3, 4, 8):
        for chunk in (1, 1000):
            for op, rounds in (("all_reduce", 2), *((op, 1) for op in ONE_ROUND)):
                payload = n * chunk
                assert ring_sent(rounds, n, chunk) == [ring_bytes(op, payload, n)] * n, (op, n)


def test_a_ring_counted_chunk_by_chunk():
    check_ring(costs.ring_bytes)


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "broadcast", "send"])
@given(n=ranks)
def test_half_of_the_bandwidth_is_where_latency_is_half_of_the_time(op, n):
    alpha, beta = 10e-6, 1 / 50e9
    payload = costs.half_bandwidth_bytes(op, n, alpha, beta)
    latency, whole = (costs.collective_time(op, size, n, alpha, beta) for size in (0, payload))
    assert whole == pytest.approx(2 * latency, rel=1e-12)
    if op == "all_reduce":
        assert payload == pytest.approx(n * alpha / beta, rel=1e-12)


def test_where_bytes_take_no_time_no_payload_is_enough():
    for op, n, beta in (("barrier", 4, 1.0), ("all_reduce", 1, 1.0), ("send", 2, 0.0)):
        with pytest.raises(ValueError, match="takes no time, so no payload is enough"):
            costs.half_bandwidth_bytes(op, n, 10e-6, beta)


def one_round(op, payload, n):
    """Wrong: (n-1)/n for every operation."""
    return (n - 1) * payload / n


def two_for_any_n(op, payload, n):
    """Wrong: the limit for many ranks taken for every number."""
    return 2.0 * payload if op == "all_reduce" else float(payload)


def payload_is_the_shard(op, payload, n):
    return n * costs.ring_bytes(op, payload, n)


@pytest.mark.parametrize("wrong", [one_round, two_for_any_n, payload_is_the_shard])
def test_a_wrong_factor_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_ring(wrong)


@given(payloads, ranks)
def test_all_ranks_together(payload, n):
    """Sum over the ranks: 2(n-1)B for an all-reduce, half of that for others. One rounding."""
    assert costs.ring_bytes("all_reduce", payload, n) * n == pytest.approx(
        2 * (n - 1) * payload, rel=4e-16, abs=0
    )
    for op in (*ONE_ROUND, "broadcast"):
        assert 2 * costs.ring_bytes(op, payload, n) == costs.ring_bytes("all_reduce", payload, n)


@given(payloads, ranks)
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(payload, n):
    parts = costs.ring_bytes("reduce_scatter", payload, n) + costs.ring_bytes(
        "all_gather", payload, n
    )
    assert costs.ring_bytes("all_reduce", payload, n) == parts


@given(payloads, ranks)
def test_messages(payload, n):
    assert costs.ring_bytes("send", payload, n) == payload
    assert costs.ring_bytes("recv", payload, n) == costs.ring_bytes("barrier", payload, n) == 0


@pytest.mark.parametrize("op", OPS)
def test_one_rank_sends_nothing_and_takes_no_time(op):
    assert costs.ring_bytes(op, 1000, 1) == 0
    assert costs.collective_time(op, 1000, 1, alpha=1.0, beta=1.0) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("all_reduse", 8, 2), "'all_reduse' is not a collective known here; known are all_reduce"),
        (("all_reduce", 8, 0), "n is 0; a collective needs at least one rank"),
        (("all_reduce", -8, 2), "the payload is -8 bytes; it cannot be negative"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        costs.ring_bytes(*arguments)
    with pytest.raises(ValueError, match=sentence):
        costs.collective_time(*arguments, alpha=1, beta=1)
    with pytest.raises(ValueError, match="times cannot be negative"):
        costs.collective_time("all_reduce", 8, 2, alpha=-1, beta=1)


# ---- time


@given(payloads, ranks)
def test_bandwidth_and_latency_are_the_bytes_and_the_steps(payload, n):
    for op in ("all_reduce", *ONE_ROUND):
        steps = (2 if op == "all_reduce" else 1) * (n - 1)
        assert costs.collective_time(op, 0, n, alpha=1.0, beta=1.0) == steps
        sent = costs.ring_bytes(op, payload, n)
        assert costs.collective_time(op, payload, n, alpha=0.0, beta=1.0) == sent


@pytest.mark.parametrize(("n", "rounds"), [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (1024, 10)])
def test_trees_take_a_round_for_each_doubling(n, rounds):
    assert costs.collective_time("broadcast", 100, n, alpha=1.0, beta=0.5) == rounds * 51
    assert costs.collective_time("barrier", 0, n, alpha=1.0, beta=0.5) == rounds


def test_a_message_by_hand():
    assert costs.collective_time("send", 100, 2, alpha=1.0, beta=0.5) == 51
    # Four ranks, 8 kB: 6 steps, each a chunk of 2 kB.
    time_s = costs.collective_time("all_reduce", 8000, 4, alpha=10e-6, beta=1e-9)
    assert time_s == pytest.approx(6 * (10e-6 + 2000e-9), rel=1e-12)


# --- alpha and beta from measured times ----------------------------------------------------------

SIZES = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
ALPHA, BETA = 80e-6, 1.2e-9
NOISE = [1.1, 0.95, 1.05, 0.93, 1.04]  # of one row each


def times(alpha=ALPHA, beta=BETA, noise=(1,) * 5, n=2):
    return [
        by * costs.collective_time("all_reduce", size, n, alpha, beta)
        for size, by in zip(SIZES, noise)
    ]


def missed(alpha, beta, seconds, n=2):
    """Per cent by which each row is missed."""
    formula = times(alpha, beta, n=n)
    return [100 * (f / t - 1) for f, t in zip(formula, seconds)]


def check_fit(fit):
    """Exact where the times are exact, and no worse than +-1 % of either number elsewhere."""
    assert fit("all_reduce", SIZES, times(), 2) == pytest.approx((ALPHA, BETA), rel=1e-9)
    assert fit("all_reduce", SIZES, times(n=7), 7) == pytest.approx((ALPHA, BETA), rel=1e-9)
    seconds = times(noise=NOISE)

    def squares(alpha, beta):
        return sum(percent**2 for percent in missed(alpha, beta, seconds))

    alpha, beta = fit("all_reduce", SIZES, seconds, 2)
    for by in (0.99, 1.01):
        assert squares(alpha, beta) < min(squares(by * alpha, beta), squares(alpha, by * beta))


def ends_only(op, sizes, seconds, n):
    """What the chapter did: latency from the first row, bandwidth from the last."""
    return seconds[0] / 2, seconds[-1] / sizes[-1]


def in_seconds(op, sizes, seconds, n):
    """Least squares without weights."""
    a = [costs.collective_time(op, size, n, 1, 0) for size in sizes]
    b = [costs.collective_time(op, size, n, 0, 1) for size in sizes]
    dot = lambda x, y: sum(i * j for i, j in zip(x, y))  # noqa: E731
    aa, ab, bb, at, bt = dot(a, a), dot(a, b), dot(b, b), dot(a, seconds), dot(b, seconds)
    determinant = aa * bb - ab**2
    return (at * bb - bt * ab) / determinant, (bt * aa - at * ab) / determinant


def test_alpha_and_beta_are_the_nearest():
    check_fit(costs.fit_alpha_beta)


@pytest.mark.parametrize("wrong", [ends_only, in_seconds])
def test_a_worse_fit_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check_fit(wrong)


@given(st.lists(st.floats(1e-6, 1.0), min_size=5, max_size=5))
def test_neither_is_ever_negative(seconds):
    """Times that fall with the size, too: then one of the two is nothing."""
    alpha, beta = costs.fit_alpha_beta("all_reduce", SIZES, seconds, 2)
    assert alpha >= 0 and beta >= 0 and max(alpha, beta) > 0
    best = sum(percent**2 for percent in missed(alpha, beta, seconds))
    for other in ((1.01 * alpha, beta), (alpha, 1.01 * beta), (alpha + 1e-9, beta)):
        assert best <= sum(percent**2 for percent in missed(*other, seconds)) * (1 + 1e-9)


@pytest.mark.parametrize(
    "op,sizes,seconds,says",
    [
        ("all_reduce", [8], [1.0], "two sizes"),
        ("all_reduce", [8, 8], [1.0, 2.0], "two sizes"),
        ("all_reduce", [8, 16], [1.0, 0.0], "not a positive"),
        ("barrier", [8, 16], [1.0, 1.0], "no bytes"),
    ],
)
def test_what_cannot_be_fitted(op, sizes, seconds, says):
    with pytest.raises(ValueError, match=says):
        costs.fit_alpha_beta(op, sizes, seconds, 2)
