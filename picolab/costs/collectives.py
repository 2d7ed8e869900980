"""What a collective sends and how long it takes, on a ring.

An all-reduce on a ring of n ranks cuts the tensor into n chunks. In n - 1 steps every rank passes a
chunk on and adds the one it receives (a reduce-scatter), in n - 1 more the finished chunks go round
(an all-gather). So each rank sends 2(n - 1) chunks of B/n bytes: nearly 2B, however many ranks
there are. Where the ranks themselves do the adding, the *busiest* rank of any algorithm sends at
least that (Patarasuk and Yuan, below). A single one may send less: a leaf of a tree that adds up
towards a root sends B once. And where the network adds, every rank sends B once.

B is the *payload*, by the ledger's convention: the full tensor that is reduced or gathered, the
whole input of a reduce-scatter or all-to-all, the message of a send.
"""

import math
from collections.abc import Sequence

# op -> how often (n - 1)/n of the payload is sent
_ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "broadcast": 1}
_OPS = (*_ROUNDS, "send", "recv", "barrier")


def ring_bytes(op: str, payload_bytes: float, n: int) -> float:
    """Bytes that one rank sends in a collective over n ranks; 0 if n is 1.

        all_reduce                                    2(n-1)/n * B
        all_gather, reduce_scatter, all_to_all         (n-1)/n * B
        broadcast      (n-1)/n * B, the mean: round a ring all ranks but the last send B
        send                                                 B
        recv, barrier                                        0

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", JPDC 69 (2009); the factors are those of nccl-tests, PERFORMANCE.md.
    """
    _check(op, payload_bytes, n)
    if n == 1 or op in ("recv", "barrier"):
        return 0.0
    if op == "send":
        return float(payload_bytes)
    # One division, at the end: exact wherever the result is a whole number of bytes.
    return _ROUNDS[op] * (n - 1) * payload_bytes / n


def collective_time(op: str, payload_bytes: float, n: int, alpha: float, beta: float) -> float:
    """Seconds of a collective over n ranks: alpha seconds a message, beta seconds a byte sent.

        all_reduce                     2(n-1) alpha + 2(n-1)/n B beta     ring
        all_gather, reduce_scatter      (n-1) alpha +  (n-1)/n B beta     ring
        all_to_all                      (n-1) alpha +  (n-1)/n B beta     pairwise exchange
        broadcast                    ceil(log2 n) (alpha + B beta)        binomial tree
        barrier                      ceil(log2 n) alpha                   dissemination
        send, recv                            alpha + B beta

    Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
    MPICH", IJHPCA 19 (2005), sections 3 and 4. Left out: the time of the additions (their gamma),
    and that links inside a node and between nodes differ.
    """
    _check(op, payload_bytes, n)
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha is {alpha} and beta is {beta}; times cannot be negative")
    if n == 1:
        return 0.0
    if op in ("broadcast", "barrier"):
        message = payload_bytes * beta if op == "broadcast" else 0.0
        return math.ceil(math.log2(n)) * (alpha + message)
    if op in ("send", "recv"):
        return alpha + payload_bytes * beta
    return _ROUNDS[op] * (n - 1) * alpha + ring_bytes(op, payload_bytes, n) * beta


def half_bandwidth_bytes(op: str, n: int, alpha: float, beta: float) -> float:
    """The payload with which half of a collective's time is latency, so that it reaches half of the
    bandwidth: n alpha / beta of an all-reduce. Smaller ones should be merged.

    Source: Hockney's n_1/2, here of a whole collective instead of one message.
    """
    a_byte = collective_time(op, 1, n, 0.0, beta)
    if not a_byte:
        raise ValueError(f"a byte of a {op} over {n} ranks takes no time, so no payload is enough")
    return collective_time(op, 0, n, alpha, beta) / a_byte


def fit_alpha_beta(
    op: str, sizes: Sequence[float], seconds: Sequence[float], n: int
) -> tuple[float, float]:
    """The alpha and beta, neither below zero, for which `collective_time` is nearest to all the
    measured times, in relative terms: the sum of (formula / measured - 1)^2 is least.

    In absolute terms the largest message alone would decide; relative to its own time each row
    counts alike. sizes: payload bytes; seconds: what each took. ValueError for fewer than two
    different sizes, for a time that is not positive, and for an op in which nothing is sent.
    """
    if len(set(sizes)) < 2 or len(sizes) != len(seconds):
        raise ValueError("alpha and beta need times of at least two sizes, one for each size")
    if not all(0 < time < math.inf for time in seconds):
        raise ValueError("a measured time is not a positive number")
    pairs = list(zip(sizes, seconds))
    a = [collective_time(op, size, n, 1, 0) / time for size, time in pairs]
    b = [collective_time(op, size, n, 0, 1) / time for size, time in pairs]
    aa, ab, bb = _dot(a, a), _dot(a, b), _dot(b, b)
    if not aa or not bb:
        raise ValueError(f"{op} over {n} ranks has no bytes or no messages to fit")
    alpha, beta = _dot(a, [1] * len(a)), _dot(b, [1] * len(b))  # of A^T A (alpha, beta) = A^T 1
    determinant = aa * bb - ab**2
    both = (alpha * bb - beta * ab) / determinant, (beta * aa - alpha * ab) / determinant
    if min(both) >= 0:
        return both
    # The sum is convex, so where the best is outside, the best inside is on an edge.
    edges = (alpha / aa, 0.0), (0.0, beta / bb)
    return min(edges, key=lambda edge: _missed(a, b, *edge))


def _missed(a: list[float], b: list[float], alpha: float, beta: float) -> float:
    return sum((alpha * x + beta * y - 1) ** 2 for x, y in zip(a, b))


def _dot(x: list[float], y: list[float]) -> float:
    return sum(one * other for one, other in zip(x, y))


def _check(op: str, payload_bytes: float, n: int) -> None:
    if op not in _OPS:
        raise ValueError(f"{op!r} is not a collective known here; known are {', '.join(_OPS)}")
    if n < 1:
        raise ValueError(f"n is {n}; a collective needs at least one rank")
    if payload_bytes < 0:
        raise ValueError(f"the payload is {payload_bytes} bytes; it cannot be negative")
