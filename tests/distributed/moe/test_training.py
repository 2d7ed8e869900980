"""A model with experts trains, is saved in one layout and goes on in another.

The wrong versions this file catches: a bias that is not in the checkpoint, experts that are read
into other places, loads that count an evaluation.
"""

import pytest

import picolab as pico

SETTINGS = dict(
    layers=2, seq=16, hidden=16, heads=2, kv_heads=2, experts=8, expert_ffn=8, ffn=16,
    micro_batch=1, dtype="fp64", eps=1e-5, router_bias=0.01, router_score="sigmoid", capacity=1.5,
    progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Six steps of dp4ep4, with a checkpoint after the third."""
    folder = tmp_path_factory.mktemp("saved")
    whole = pico.train(
        "tiny-moe", "dp4ep4", steps=6, **SETTINGS, checkpoint=folder, save_every=3, keep=5
    )
    return whole, folder / "step-3"


@pytest.mark.parametrize(
    ("layout", "more"),
    [
        ("dp4ep2", {}),
        pytest.param("dp4ep2zero3", {}, marks=pytest.mark.weekly),
        # (the same pools: micro-batches of one sequence, four in a step)
        ("dp1", dict(accumulate=4)),
    ],
)
def test_another_layout_goes_on_where_it_was(saved, layout, more):
    whole, checkpoint = saved
    settings = {**SETTINGS, **more}
    again = pico.train("tiny-moe", layout, steps=6, **settings, resume=checkpoint)
    assert again.losses == pytest.approx(whole.losses[3:], rel=1e-11)
    one, other = whole.state_dict(), again.state_dict()
    for name, tensor in one.items():
        assert float((other[name] - tensor).norm()) <= 1e-10 * float(tensor.norm() + 1e-9), name
    bias = one["layers.0.mlp.router.bias"]
    assert bias.any()  # the mutant: one that is not kept would have other digits


def test_another_number_of_experts_is_refused(saved):
    _, checkpoint = saved
    with pytest.raises(ValueError, match="experts"):
        settings = {**SETTINGS, "experts": 4}
        pico.train("tiny-moe", "dp1", steps=6, **settings, accumulate=4, resume=checkpoint)


def test_loads_are_told_each_step_and_an_evaluation_is_not_in_them():
    settings = dict(SETTINGS, router_bias=0.0, capacity=0.5)
    result = pico.train("tiny-moe", "dp2ep2", steps=3, **settings, eval_every=1)
    told = [event.data for event in result.events if event.kind == "experts"]
    assert [event["step"] for event in told] == [0, 1, 2]
    for event in told:
        assert event["loads"].keys() == {"0", "1"} or event["loads"].keys() == {0, 1}
        for load in event["loads"].values():
            assert sum(load) == 2 * 16 * 2  # replicas, tokens, choices
        # Half of what is even for each of 8 experts: 2 of 32 choices of a replica.
        assert all(dropped >= 2 * (32 - 8 * 2) for dropped in event["dropped"])
        assert all(imbalance >= 1 for imbalance in event["imbalance"])
