"""What a collective sends and how long it takes, on a ring.

An all-reduce on a ring of n ranks cuts the tensor into n chunks. In n - 1 steps every rank passes a
chunk on and adds the one it receives (a reduce-scatter), in n - 1 more the finished chunks go round
(an all-gather). So each rank sends 2(n - 1) chunks of B/n bytes: nearly 2B, however many ranks
there are. Where ranks do the adding, the busiest rank of any algorithm sends at least that (single
ranks may send less: a leaf of a tree sends B); a switch that adds gets below it.

B is the *payload*, by the ledger's convention: the full tensor that is reduced or gathered, the
whole input of a reduce-scatter or all-to-all, the message of a send.
"""

import math

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


def _check(op: str, payload_bytes: float, n: int) -> None:
    if op not in _OPS:
        raise ValueError(f"{op!r} is not a collective known here; known are {', '.join(_OPS)}")
    if n < 1:
        raise ValueError(f"n is {n}; a collective needs at least one rank")
    if payload_bytes < 0:
        raise ValueError(f"the payload is {payload_bytes} bytes; it cannot be negative")
