"""Bytes and seconds of one candidate, against tables in print and against each other.

Wrong versions these tests catch, kept below as mutants: stages that hold what the last one holds,
an optimizer that ZeRO does not shard.
"""

import dataclasses

import pytest

import picolab as pico
from picolab import costs
from picolab.planner import PRACTICES, Request
from picolab.planner.costing import Candidate, Costing
from picolab.planner.memory import CATEGORIES
from picolab.planner.plan import unknown_speed
from picolab.planner.seconds import TERMS
from picolab.specs import Hardware, Layout, ModelConfig
from picolab.specs.precision import PRECISIONS


def costing(**changes):
    asked = dict(model="llama-3-8b", gpus=16, hardware="h100", seq=8192, global_batch=256)
    return Costing(Request(**{**asked, **changes}))


def candidate(text, micro_batch=1, recompute="none"):
    return Candidate(Layout.parse(text), micro_batch, recompute)


def test_categories_and_terms_are_named():
    one = costing()
    given = candidate("dp4tp2pp2zero1")
    assert set(one.memory(given)) == set(CATEGORIES)
    assert tuple(one.seconds(given)) == TERMS
    assert all(value >= 0 for value in one.seconds(given).values())


# ---- memory


def megatron(name):
    from picolab.planner import PUBLISHED

    return next(row for row in PUBLISHED if row.name == name)


def korthikanti(a, h, layers, recompute, sp, tp, pp):
    """arXiv 2205.05198, table 2 and section 4.2.3: activations of the first stage, which holds p
    micro-batches of L/p layers each, L layers in all. Bytes of s b h, with b = 1."""
    s = 2048
    scores = 5 * a * s / h
    each = {
        ("none", False): 10 + 24 / tp + scores / tp,
        ("none", True): (34 + scores) / tp,
        ("full", False): 2,
        ("full", True): 2 / tp,
    }[recompute, sp]
    whole = {False: 10 + 24 / tp + scores / tp, True: (34 + scores) / tp}[sp]
    return s * h * (each * layers + (whole if recompute == "full" else 0))


def check_korthikanti(memory):
    """Their four models (table 3: 22B, 175B, 530B, 1T), on their tp and pp."""
    for a, h, layers, pp in (
        (64, 6144, 48, 1), (96, 12288, 96, 8), (128, 20480, 105, 35), (160, 25600, 128, 64),
    ):  # fmt: skip
        model = ModelConfig(
            name="theirs", hidden=h, ffn=4 * h, layers=layers, heads=a, kv_heads=a, vocab=51_200,
            seq=2048, tied=True, family="gpt",
        )  # fmt: skip
        one = costing(
            model=model, gpus=8 * pp, hardware="a100", seq=2048, global_batch=4 * pp,
            practice="megatron-2021",
        )  # fmt: skip
        for recompute in ("none", "full"):
            for sp in (False, True):
                text = f"tp8pp{pp}" + ("sp" if sp else "")
                first = memory(one, candidate(text, 1, recompute))[0]["activations"]
                printed = korthikanti(a, h, layers, recompute, sp, 8, pp)
                # Statistics of the norms are not in the table: 8 of some 100,000 bytes a token.
                assert first == pytest.approx(printed, rel=2e-3), (h, recompute, sp)


def test_activations_are_those_of_the_paper():
    check_korthikanti(lambda one, given: one.memory_by_place(given))


def one_micro_batch_each(one, given):
    """Wrong: what the last stage holds, on all."""
    return one.memory_by_place(given)[::-1]


def test_a_stage_that_holds_too_little_is_caught():
    with pytest.raises(AssertionError):
        check_korthikanti(one_micro_batch_each)


def check_zero(states):
    """arXiv 1910.02054, figure 1 and section 5.4: 7.5B parameters on 64 ranks, 16 bytes each."""
    practice = dataclasses.replace(PRACTICES["today"], states="bf16, fp32 master")
    model = ModelConfig(
        name="7.5B", hidden=4096, ffn=4 * 4096, layers=36, heads=32, kv_heads=32, vocab=51_200,
        seq=2048, tied=True, family="gpt",
    )  # fmt: skip
    one = costing(model=model, gpus=64, hardware="a100", seq=2048, practice=practice)
    share = 7.5e9 / costs.parameters(model).total  # the paper takes a round number
    for zero, (gb, digits) in enumerate(((120, 0), (31.4, 1), (16.6, 1), (1.9, 1))):
        held = states(one, candidate(f"dp64zero{zero}" if zero else "dp64"))
        assert round(share * held / 1e9, digits) == gb, zero


def states_of(one, given):
    held = one.memory(given)
    return held["parameters"] + held["gradients"] + held["optimizer"]


def test_states_are_those_of_the_zero_paper():
    check_zero(states_of)


def optimizer_not_sharded(one, given):
    layout = dataclasses.replace(given.layout, zero=0)
    whole = one.memory(Candidate(layout, 1, "none"))["optimizer"]
    return states_of(one, given) - one.memory(given)["optimizer"] + whole


def test_an_optimizer_that_is_not_sharded_is_caught():
    with pytest.raises(AssertionError):
        check_zero(optimizer_not_sharded)


@pytest.mark.parametrize(
    "text",
    ["dp16", "dp4tp4sp", "pp16", "dp2pp8:gpipe", "dp2pp8:interleaved", "dp2pp8:zb-v", "dp2tp2pp4",
     "dp4pp4:zb-h1", "dp4pp4:dualpipe-v", "dp2pp2cp4", "dp8zero3pp2"],
)  # fmt: skip
def test_the_worst_stage_is_the_worst_of_all(text):
    one = costing()
    for recompute in costs.RECOMPUTE:
        given = candidate(text, 1, recompute)
        by_place = one.memory_by_place(given)
        assert len(by_place) == given.layout.pp
        assert one.memory(given) == max(by_place, key=lambda held: sum(held.values()))


def test_the_stages_hold_the_model():
    """Parameters over all stages, in bytes of two."""
    one, config = costing(), ModelConfig.preset("llama-3-8b")
    total = sum(held["parameters"] for held in one.memory_by_place(candidate("dp2pp8")))
    assert total == 2 * costs.parameters(config).total


def test_our_own_ranks_hold_the_same():
    """What `costs.rank_states` has to the byte, of a run of ours in fp32, but for step counts and
    rows that do not divide. (That is between steps; in one, gradients are whole.)"""
    one = costing(model="tiny", gpus=8, seq=128, practice="picolab")
    config = ModelConfig.preset("tiny")
    for text in ("dp8", "dp4tp2", "dp2pp4", "dp8zero1", "dp4tp2zero2", "dp8zero3", "dp4zero3pp2"):
        layout = Layout.parse(text)
        mine = one.memory_by_place(Candidate(layout, 1, "none"))
        for place, held in enumerate(mine):
            exact = costs.rank_states(config, layout, place * (8 // layout.pp))
            exact["gradients"] = max(exact["gradients"], held["gradients"])
            for category in ("parameters", "gradients", "optimizer"):
                assert held[category] == pytest.approx(exact[category], rel=5e-3), (text, place)


# ---- seconds


def test_more_of_everything_takes_longer():
    base = sum(costing().seconds(candidate("dp8tp2")).values())
    assert sum(costing(global_batch=512).seconds(candidate("dp8tp2")).values()) > 1.9 * base
    assert sum(costing(hardware="a100").seconds(candidate("dp8tp2")).values()) > base


def test_compute_is_the_model_flops_at_most_at_the_peak():
    one = costing(global_batch=256)
    ideal = one.request.model_flops / (16 * one.hardware.peak_flops)
    assert one.seconds(candidate("dp16"))["compute"] > ideal


def test_terms_are_there_where_their_axis_is():
    one = costing(model="mixtral-8x7b")
    terms = {"tp": "dp8tp2", "pp": "dp8pp2", "bubble": "dp8pp2", "ep": "dp16ep8", "dp": "dp16"}
    for term, text in terms.items():
        assert one.seconds(candidate(text))[term] > 0
        if term != "dp":
            assert one.seconds(candidate("dp16"))[term] == 0


def test_the_bubble_is_the_closed_form():
    """Of equal stages: (p-1)/m of the work, or a half of it with two stages a rank."""
    model = ModelConfig.preset("llama-3-8b").replace(vocab=1000)  # hardly any head
    one = costing(model=model, gpus=4)
    for schedule, part in (("1f1b", 1), ("gpipe", 1), ("interleaved", 2), ("interleaved-v4", 4)):
        seconds = one.seconds(candidate(f"pp4:{schedule}"))
        work = seconds["compute"]
        assert seconds["bubble"] / work == pytest.approx(3 / 256 / part, rel=0.01), schedule


def test_a_ring_hides_behind_attention_where_sequences_are_long():
    long, short = costing(seq=65_536), costing(seq=1024)
    given = candidate("dp2cp8")  # in a node
    assert long.seconds(given)["cp"] == 0 < short.seconds(given)["cp"]


def test_sharded_gradients_travel_after_every_micro_batch():
    """Stages 2 and 3 with many micro-batches send more than stage 1, on a slow network."""
    slow = dataclasses.replace(costing().hardware, network_bytes_per_s=1e8, node_size=1)
    one = costing(hardware=slow, gpus=8)
    dp = [one.seconds(candidate(f"dp8zero{zero}", 1))["dp"] for zero in (1, 2, 3)]
    assert dp[0] < dp[1] < dp[2]


def test_ranks_that_share_a_core_take_turns(tried):
    """Two cores: four ranks are no faster than two, and a bubble costs what no other rank uses."""
    _, one, _ = tried("tiny on two cores")
    two = Costing(one.request.replace(gpus=2))
    alone = Costing(one.request.replace(gpus=1))
    single = alone.seconds(candidate("dp1"))["compute"]
    assert two.seconds(candidate("dp2"))["compute"] == pytest.approx(single / 2)
    assert one.seconds(candidate("dp4"))["compute"] == pytest.approx(single / 2)
    assert one.seconds(candidate("pp4"))["compute"] == pytest.approx(single / 2)
    assert one.seconds(candidate("pp4"))["bubble"] < two.seconds(candidate("pp2"))["bubble"]


def test_experts_are_read_whole_and_computed_in_part():
    """A token passes two of eight experts: spread over ranks, less is read for the same work."""
    one = costing(model="mixtral-8x7b")
    whole, spread = (one.seconds(candidate(text)) for text in ("dp16", "dp16ep8"))
    assert spread["compute"] < whole["compute"]


def test_the_planner_knows_the_bytes_of_each_precision():
    """Against what a rank of training keeps, to the byte but for AdamW's step counts; activations
    are short where the precision's are, but for what norms and statistics keep in fp32."""
    model = ModelConfig.preset("tiny")
    params = costs.parameters(model).total
    table = model.vocab * model.hidden
    held = {}
    for name in PRECISIONS:
        practice = "picolab" if name == "fp32" else f"picolab-{name}"
        one = costing(model="tiny", gpus=2, seq=128, practice=practice)
        for layout in ("dp2", "dp2zero1", "dp2zero3"):
            held[name, layout] = of = one.memory(candidate(layout))
            states = costs.rank_states(model, layout, precision=name)
            rank = states["parameters"] + states["optimizer"] + states.get("snapshot", 0)
            copies = 0 if layout == "dp2zero3" else costs.copy_bytes(name) * (params - table)
            counts = 4 * len(costs.zero_shards(model, layout)) * (2 if "snapshot" in states else 1)
            mine = of["parameters"] + of["optimizer"]
            assert mine == pytest.approx(rank + copies - counts, rel=1e-3)
    layers = {name: held[name, "dp2"]["activations"] for name in PRECISIONS}
    assert layers["fp32"] == layers["adaptive"] == pytest.approx(layers["fp64"] / 2, rel=0.05)
    assert layers["bf16"] == layers["fp8"]
    assert layers["fp32"] / 2 < layers["bf16"] < layers["fp32"] * 0.65


# ---- the format of products


def check_rates(seconds):
    """Linears take the time of their operands' format, attention that of activations."""
    short = Candidate(Layout.parse("dp16"), 1, "none")
    one = costing(seq=64, global_batch=16)  # (little attention, and little that is only moved)
    half, exact, eighth = (
        seconds(Costing(one.request.replace(practice=name)), short)["compute"]
        for name in ("picolab-bf16", "picolab", "picolab-fp8")
    )
    products = 2 * 3 * costs.parameters(one.config).active * 64
    per_s = {"bf16": 989e12, "fp32": 67e12, "fp8": 1979e12}  # NVIDIA H100 data sheet, dense
    bf16, fp32, fp8 = (products / of / one.efficiency.matrices for of in per_s.values())
    assert exact - half == pytest.approx(fp32 - bf16, rel=0.15)
    assert half - eighth == pytest.approx(bf16 - fp8, rel=0.15)


def test_products_take_the_time_of_their_format():
    check_rates(Costing.seconds)


def test_a_measured_device_is_as_fast_as_the_detector_found():
    cores = Hardware(
        name="cores", peak_flops=1e10, rates={"bf16": 2.5e9}, memory_bytes=8e9, cores=2,
        memory_bytes_per_s=1e15, link_bytes_per_s=1e9, network_bytes_per_s=1e9, source="a test",
        measured=True,
    )  # fmt: skip
    times = {
        name: Costing(
            Request(model="tiny", gpus=1, hardware=cores, global_batch=8, practice=name)
        ).seconds(candidate("dp1"))["compute"]
        for name in ("picolab", "picolab-bf16", "picolab-fp16")
    }
    assert times["picolab-bf16"] == pytest.approx(4 * times["picolab"], rel=0.01)
    assert times["picolab-fp16"] == pytest.approx(times["picolab"], rel=0.01)  # nothing is known
    with pytest.raises(ValueError, match="rates\\['bf16'\\] is 0"):
        dataclasses.replace(cores, rates={"bf16": 0})


def test_a_speed_that_is_not_known_is_said():
    def said(practice, device="h100"):
        asked = Request(model="tiny", gpus=1, hardware=device, global_batch=8, practice=practice)
        return " ".join(unknown_speed(asked))

    assert said("picolab-fp64") == said("picolab-fp8") == said("picolab-fp16") == ""
    assert "no rate of fp8 for a100-80gb, so its products are planned at bf16's" in said(
        "picolab-fp8", "a100"
    )
    assert "each layer's format in the run" in said("picolab-adaptive")
    cores = dataclasses.replace(Hardware.preset("h100"), measured=True, rates={"bf16": 1e9})
    assert said("picolab", cores) == said("picolab-bf16", cores) == ""
    assert "no measured rate of fp8 for h100-sxm" in said("picolab-fp8", cores)
    shown = pico.plan("tiny", layout="dp1", hardware=cores, global_batch=8, practice="picolab-fp8")
    assert "at fp32's speed" in repr(shown) and "no measured rate" in shown.to_json()


def test_mutant_one_speed_for_all_precisions(monkeypatch):
    monkeypatch.setattr(Hardware, "matrix_flops", lambda self, format: self.peak_flops)
    with pytest.raises(AssertionError):
        check_rates(Costing.seconds)
