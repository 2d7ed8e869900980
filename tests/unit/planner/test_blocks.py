"""Recomputation layer by layer: what the planner proposes is what the memory scheduler chooses for
the same numbers, fits, and is never slower than one choice for all layers.

Wrong versions kept below: a peak that forgets the micro-batches in flight; and the fewest layers
that recompute, without selective ones in between.
"""

import itertools
import json

import pytest

import picolab as pico
from picolab import costs
from picolab.memory import MemoryScheduler
from picolab.memory.scheduler import Cost, Measured
from picolab.planner import blocks, memory
from picolab.planner.costing import Candidate, Costing
from picolab.planner.parts import Mix, Part, uniform
from picolab.planner.request import Request
from picolab.specs import Layout, ModelConfig

from .conftest import CORES, MIXTURE

NAMES = {"none": "keep", "selective": "selective", "full": "recompute"}
OURS = ModelConfig(hidden=64, ffn=160, layers=8, heads=4, kv_heads=2, vocab=256, seq=64)
CASES = [
    (OURS, "dp1", 4),
    (OURS, "dp2", 1),
    (OURS, "dp2zero1", 4),
    (OURS, "pp2", 4),
    (OURS, "pp4:gpipe", 2),
    (OURS.replace(ffn=64, vocab=997), "pp2", 2),
    (OURS.replace(experts=4, experts_per_token=2, expert_ffn=48, dense_layers=3), "dp2", 2),
    (OURS.replace(vocab=64), "tp2", 4),
    (OURS, "dp2zero3", 4),
]


def of(model, text, micro_batch):
    layout = Layout.parse(text)
    batch = 4 * micro_batch * layout.dp
    costing = Costing(Request(model=model, gpus=layout.world, hardware=CORES, global_batch=batch))
    return costing, Candidate(layout, micro_batch, "none")


def where(candidate):
    return candidate.layout.pp, candidate.layout.schedule, candidate.layout.stages


def measured(costing, candidate, place):
    """The planner's numbers of one place, as the scheduler gets them from a run."""
    layout, micro_batch, _ = candidate
    part, options = costing.mixes(where(candidate), "none")[place][0], dict(micro_batch=micro_batch)
    ends = costs.saved_ends(costing.config, tp=layout.tp, **options)
    boundary = micro_batch * costing.config.seq * costing.config.hidden * 4
    embedded = ends.pop("embed")
    begin = embedded if part.first else boundary
    end, n = 0, 1
    if layout.pp > 1:
        m = costing.micro_batches(candidate)
        n = costs.in_flight(layout.schedule, layout.pp, m, place)
    outside = begin - (0 if part.last else boundary) + sum(ends.values()) * part.last
    if part.last:
        end = outside + costs.loss_work_bytes(costing.config, tp=layout.tp, **options)
    found = []
    for kind, layer in enumerate((0, costing.config.layers - 1)):
        one, options = Part(kind == 0, kind == 1, False, False), {**options, "tp": layout.tp}
        work = costs.block_work_bytes(costing.config, layer, **options)
        whole = sum(costs.saved_bytes(costing.config, layer, **options).values())
        of = {}
        for mode in costing.modes(layout):
            kept = sum(costs.saved_bytes(costing.config, layer, recompute=mode, **options).values())
            longer = blocks.longer_s(costing, candidate, uniform(one, mode))
            of[NAMES[mode]] = Cost(kept, begin + whole + work, longer)
        found += [of] * part[kind]
    if layout.zero:  # and beside it what the first bucket takes when it leaves
        leaves_with(costing, candidate, part, found, begin)
    travels = costing._travels(part, layout.tp, layout.ep, layout.zero, layout.dp)
    gathered = costing._states(part, layout.tp, layout.ep, layout.zero, layout.dp)["gathered"]
    return Measured(
        tuple(found), end=end, ends=outside, rest=round(travels - gathered), in_flight=n
    )


def leaves_with(costing, candidate, part, found, begin):
    layout, micro_batch, _ = candidate
    full, at, name = costing._first_bucket(part, layout.tp, layout.ep)
    if name is None:
        return
    (_, dense), (_, sparse) = costing._kinds(part)
    layer, rows = dense if at < part.dense else sparse, full / layout.dp
    saved = costs.saved_bytes(costing.config, layer, micro_batch=micro_batch)
    work = begin + sum(saved.values()) - memory._gone(saved, name) + begin + full + rows
    works = at if name.endswith("down") else at - 1
    if layout.zero == 1 and works >= 0:
        found[works] = {mode: c._replace(work=c.work + rows) for mode, c in found[works].items()}
    found[at] = {mode: c._replace(work=max(c.work, work)) for mode, c in found[at].items()}


def choices(mix):
    return [
        name
        for counts in mix
        for name, count in zip(("recompute", "selective", "keep"), reversed(counts))
        for _ in range(count)
    ]


def every_mix(part, modes):
    def counts(n):
        for selective, full in itertools.product(range(n + 1), repeat=2):
            if selective + full <= n and ("selective" in modes or not selective):
                yield blocks.Counts(n - selective - full, selective, full)

    yield from map(Mix._make, itertools.product(counts(part.dense), counts(part.sparse)))


def check_scheduled(cases=CASES):
    """At every place and ten rooms the same seconds; and of every mix the same bytes."""
    for model, text, micro_batch in cases:
        costing, candidate = of(model, text, micro_batch)
        for place, (part, keeps) in enumerate(costing.mixes(where(candidate), "none")):
            numbers = measured(costing, candidate, place)
            base = costing.place_bytes(candidate, place, keeps) - numbers.peak(choices(keeps))
            mixes = list(every_mix(part, costing.modes(candidate.layout)))
            for mix in mixes:
                needed = costing.place_bytes(candidate, place, mix)
                assert needed == pytest.approx(base + numbers.peak(choices(mix))), (text, place)
            scheduler = MemoryScheduler(numbers)
            most = numbers.peak(choices(keeps))
            for share in range(11):
                room = scheduler.least + share * (most - scheduler.least) // 10
                theirs = scheduler.choose(room).seconds
                found = blocks._fewest_selective(costing, candidate, part, place, base + room + 1)
                mine = min(blocks.longer_s(costing, candidate, mix) for mix in found)
                assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-15), (text, place, share)


def test_it_is_what_the_scheduler_would_choose():
    check_scheduled()


def check_fastest(model, text, micro_batch, **asked):
    """Of all mixes that fit, none is faster."""
    layout = Layout.parse(text)
    costing = Costing(Request(model=model, gpus=layout.world, **asked))
    candidate = Candidate(layout, micro_batch, "none")
    found = blocks.mixed(costing, candidate)
    assert found.recomputes == "mixed"
    assert costing.total_bytes(found) <= costing.request.memory_bytes
    for place, (part, mix) in enumerate(costing.mixes(where(candidate), found.recompute)):
        best = min(
            blocks.longer_s(costing, candidate, other)
            for other in every_mix(part, costing.modes(layout))
            if costing.place_bytes(candidate, place, other) <= costing.request.memory_bytes
        )
        assert blocks.longer_s(costing, candidate, mix) == pytest.approx(best, rel=1e-9)
    uniforms = [candidate._replace(recompute=mode) for mode in costs.RECOMPUTE]
    fit = [c for c in uniforms if costing.total_bytes(c) <= costing.request.memory_bytes]
    steps = [sum(costing.seconds(c).values()) for c in (found, *fit)]
    assert steps[0] == min(steps)
    return found


SHORT = [
    ("llama-3-8b", "dp8zero3", 2, dict(hardware="h100", seq=8192, global_batch=16)),
    ("llama-3-70b", "dp4tp8pp2zero1", 1, dict(hardware="h100", seq=8192, global_batch=64)),
    (MIXTURE, "dp4ep4zero1", 16, dict(hardware="a100", seq=4096, global_batch=64)),
]


@pytest.mark.parametrize(("model", "text", "micro_batch", "asked"), SHORT)
def test_no_mix_that_fits_is_faster(model, text, micro_batch, asked):
    check_fastest(model, text, micro_batch, **asked)


def test_the_first_stages_recompute_more():
    model, text, micro_batch, asked = SHORT[1]
    first, last = check_fastest(model, text, micro_batch, **asked).recompute
    assert first.dense.none < last.dense.none


def test_a_mix_of_one_kind_costs_what_it_did():
    """The uniform mix and its word are the same candidate, in bytes and in seconds."""
    for model, text, micro_batch in CASES:
        costing, candidate = of(model, text, micro_batch)
        for mode in costs.RECOMPUTE:
            word = candidate._replace(recompute=mode)
            mixes = tuple(mix for _, mix in costing.mixes(where(candidate), mode))
            mix = candidate._replace(recompute=mixes)
            assert costing.memory(mix) == costing.memory(word)
            assert costing.seconds(mix) == costing.seconds(word)


def test_it_is_shown_and_in_json():
    judged = pico.plan("llama-3-70b", layout="dp4tp8pp2zero1", hardware="h100", global_batch=64)
    assert "What the layers of each stage do" in repr(judged)
    layers = json.loads(judged.to_json())["layers"]
    assert [sum(of.values()) for of in layers] == [40, 40] and layers[0]["keep"] < 40
    free = judged.verdict.step_s
    for mode in ("selective", "full"):
        all_alike = pico.plan(
            "llama-3-70b", layout="dp4tp8pp2zero1", hardware="h100", global_batch=64,
            recompute=mode,
        )  # fmt: skip
        if all_alike.fits:
            assert free <= all_alike.verdict.step_s


def test_mutant_one_micro_batch_in_flight(monkeypatch):
    monkeypatch.setattr(Costing, "_waiting", lambda *_: 1)
    with pytest.raises(AssertionError):
        check_scheduled([(OURS, "pp2", 4)])


def test_mutant_without_selective_ones(monkeypatch):
    real = blocks._fewest_selective

    def none_of_them(*args):
        for mix in real(*args):
            if not mix.dense.selective:
                yield mix

    monkeypatch.setattr(blocks, "_fewest_selective", none_of_them)
    with pytest.raises((AssertionError, ValueError)):
        check_scheduled([(OURS, "dp1", 4)])
