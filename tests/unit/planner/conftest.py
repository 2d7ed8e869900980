"""Requests of small worlds, in which everything can be tried."""

import pytest

from picolab.planner.costing import Candidate, Costing
from picolab.planner.request import Request
from picolab.planner.search import splits, variants
from picolab.planner.verdict import cuts, objection
from picolab.specs import Hardware, ModelConfig

MIXTURE = ModelConfig(
    name="mixture", hidden=2048, ffn=8192, layers=12, heads=16, kv_heads=8, vocab=32_000,
    seq=4096, experts=8, experts_per_token=2, expert_ffn=4096, dense_layers=1,
)  # fmt: skip
CORES = Hardware(
    name="two cores", peak_flops=5e10, memory_bytes=8e9, memory_bytes_per_s=8e9,
    link_bytes_per_s=2e9, network_bytes_per_s=2e9, link_alpha_s=1e-4, source="a test",
    measured=True, cores=2,
)  # fmt: skip

# Names of requests: memory is short, plenty and shared; nodes are one and several.
SMALL = {
    "70b on 16, memory short": dict(
        model="llama-3-70b", gpus=16, hardware="h200", seq=2048, global_batch=64
    ),
    "8b on 8": dict(model="llama-3-8b", gpus=8, hardware="a100", seq=4096, global_batch=48),
    "8b on 12, uneven": dict(
        model="llama-3-8b", gpus=12, hardware="h100", seq=8192, global_batch=72
    ),
    "experts on 16": dict(model=MIXTURE, gpus=16, hardware="a100", seq=4096, global_batch=64),
    "tiny on two cores": dict(model="tiny", gpus=4, hardware=CORES, global_batch=16),
}  # fmt: skip


@pytest.fixture(scope="session")
def tried():
    """name -> (request, costing, [(candidate, bytes, seconds by term)] of everything there is)."""
    known = {}

    def of(name):
        if name not in known:
            request = Request(**SMALL[name])
            costing = Costing(request)
            known[name] = request, costing, list(everything(costing))
        return known[name]

    return of


def everything(costing):
    for split in splits(costing.request):
        for layout in variants(split):
            if objection(costing, layout):
                continue
            for micro_batch in cuts(costing, layout):
                for recompute in ("none", "selective", "full"):
                    candidate = Candidate(layout, micro_batch, recompute)
                    needed = sum(costing.memory(candidate).values())
                    yield split, candidate, needed, costing.seconds(candidate)
