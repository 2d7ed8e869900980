"""Parameter counts: the published checkpoints exactly, and each rank's share.

Wrong versions these tests catch, kept below as mutants: kv heads counted like heads, a tied head
counted twice or an untied one forgotten, the norms forgotten, all experts counted as active, a
count by name in which "attention" is found in "attention_norm" (picotron counts 7,903,488 for
7,901,440 parameters that way under tensor parallelism).
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picolab import costs
from picolab.specs import Layout, ModelConfig

# The checkpoints' own totals.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-235b-a22b": 235_093_634_560,
}
TINY = ModelConfig.preset("tiny")


@st.composite
def llamas(draw):
    kv_heads, tied = draw(st.integers(1, 6)), draw(st.booleans())
    heads = kv_heads * draw(st.integers(1, 4))
    return ModelConfig(
        hidden=heads * 2 * draw(st.integers(1, 8)), ffn=draw(st.integers(1, 99)),
        layers=draw(st.integers(1, 5)), heads=heads, kv_heads=kv_heads,
        vocab=draw(st.sampled_from([1, 97, 256])), seq=8, tied=tied,
        qkv_bias=draw(st.booleans()),
    )  # fmt: skip


def check_published(total):
    for name, published in PUBLISHED.items():
        assert total(ModelConfig.preset(name)) == published, name


def test_published_counts_are_exact():
    check_published(lambda config: costs.parameters(config).total)


def kv_heads_like_heads(config):
    return costs.parameters(config.replace(kv_heads=config.heads)).total


def head_forgotten(config):
    count = costs.parameters(config)
    return count.total - count.head


def norms_forgotten(config):
    count = costs.parameters(config)
    return count.total - count.norm


def last_norm_forgotten(config):
    return costs.parameters(config).total - config.hidden


def mlp_of_two_matrices(config):
    count = costs.parameters(config)
    return count.total - count.mlp // 3


@pytest.mark.parametrize(
    "wrong",
    [
        kv_heads_like_heads,
        head_forgotten,
        norms_forgotten,
        last_norm_forgotten,
        mlp_of_two_matrices,
    ],
)
def test_a_wrong_count_is_caught(wrong):
    with pytest.raises(AssertionError):
        check_published(wrong)


def test_tiny_by_hand():
    count = costs.parameters(TINY)
    attention = 128 * 128 + 2 * 128 * 64 + 128 * 128  # q; k and v of 4 heads x 16; o
    mlp = 3 * 128 * 352
    assert count.per_layer == (attention + mlp + 2 * 128,) * 4
    assert (count.embedding, count.head, count.norm) == (256 * 128, 256 * 128, 9 * 128)
    assert count.total == count.active == 803_968
    assert count.rows()[-1] == ["total", 803_968]


def test_active_parameters_of_models_with_experts():
    mixtral = costs.parameters(ModelConfig.preset("mixtral-8x7b"))
    assert mixtral.active == 12_879_925_248  # published as about 12.9 B
    assert mixtral.router == 32 * 8 * 4096
    deepseek = costs.parameters(ModelConfig.preset("deepseek-v3"))
    assert round(deepseek.total / 1e9, 2) == 671.03
    assert round(deepseek.active / 1e9, 2) == 37.55
    assert len(set(deepseek.per_layer[:3])) == 1 and deepseek.per_layer[2] < deepseek.per_layer[3]
    qwen = costs.parameters(ModelConfig.preset("qwen3-235b-a22b"))
    assert round(qwen.active / 1e9) == 22
    assert mixtral.rows()[-1] == ["active", mixtral.active]


def test_all_experts_are_not_active():
    for name in ("tiny-moe", "mixtral-8x7b", "deepseek-v3"):
        config = ModelConfig.preset(name)
        count = costs.parameters(config)
        everyone = config.replace(
            experts_per_token=config.experts, router_groups=1, router_groups_kept=1
        )
        assert costs.parameters(everyone).active == count.total > count.active


def test_gpt_3():
    assert round(costs.parameters(ModelConfig.preset("gpt-3-175b")).total / 1e9) == 175


# (billions printed, heads, hidden, layers): arXiv 2104.04473, table 1
MEGATRON = [
    (1.7, 24, 2304, 24), (3.6, 32, 3072, 30), (7.5, 32, 4096, 36), (18.4, 48, 6144, 40),
    (39.1, 64, 8192, 48), (76.1, 80, 10240, 60), (145.6, 96, 12288, 80), (310.1, 128, 16384, 96),
    (529.6, 128, 20480, 105), (1008.0, 160, 25600, 128),
]  # fmt: skip


@pytest.mark.parametrize(("billions", "heads", "hidden", "layers"), MEGATRON)
def test_megatrons_models(billions, heads, hidden, layers):
    """Equal to the paper's formula, 12 l h^2 (1 + 13/(12 h) + (V + s)/(12 l h)), which leaves out
    the last LayerNorm (2 h), and to the table's digits."""
    config = ModelConfig(
        hidden=hidden, ffn=4 * hidden, layers=layers, heads=heads, kv_heads=heads,
        vocab=51_200, seq=2048, tied=True, family="gpt",
    )  # fmt: skip
    total = costs.parameters(config).total
    assert total == 12 * layers * hidden**2 + 13 * layers * hidden + (51_200 + 2048 + 2) * hidden
    assert round(total / 1e9, 1) == billions


@given(llamas())
def test_the_parts_add_up(config):
    count = costs.parameters(config)
    parts = (count.embedding, count.attention, count.mlp, count.router, count.norm, count.head)
    assert sum(parts) == count.total == count.active
    once = count.embedding + config.hidden + count.head
    assert sum(count.per_layer) + once == count.total
    assert len(count.per_layer) == config.layers


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_the_parts_of_every_preset_add_up(name):
    count = costs.parameters(ModelConfig.preset(name))
    parts = (count.embedding, count.attention, count.mlp, count.router, count.norm, count.head)
    assert sum(parts) == count.total


@given(llamas())
def test_a_tied_head_is_counted_once(config):
    tied, untied = (costs.parameters(config.replace(tied=tied)) for tied in (True, False))
    assert untied.total - tied.total == config.vocab * config.hidden == untied.head
    assert tied.head == 0


# ---- what a rank holds


def check_shares(local_parameters, config, tp, pp=1):
    """Over tp and pp the shards make the whole; what is not sharded is there once for each of tp.
    Stages hold different layers, and the last a tied head once more."""
    layout = Layout(tp=tp, pp=pp)
    ranks = [local_parameters(config, layout, rank) for rank in range(layout.world)]
    sharded = sum(parameter.numel for held in ranks for parameter in held if parameter.sharded)
    whole = sum(parameter.numel for held in ranks for parameter in held if not parameter.sharded)
    count = costs.parameters(config)
    assert whole == count.norm * tp
    again = config.vocab * config.hidden if config.tied and pp > 1 else 0
    assert sharded + count.norm == count.total + again
    names = [parameter.name for held in ranks[::tp] for parameter in held]
    assert len(set(names)) == len(names)
    # Shares of a matrix differ by no more than one key-value head, row of ffn or token.
    for stage in range(pp):
        for shares in zip(*ranks[stage * tp : (stage + 1) * tp]):
            sizes = [share.numel for share in shares]
            unit = max(config.hidden * 2, config.hidden * config.head_dim)
            groups = config.heads // config.kv_heads + 2
            assert max(sizes) - min(sizes) <= unit * groups


@given(llamas())
def test_one_rank_holds_everything(config):
    check_shares(costs.local_parameters, config, 1)


@given(config=llamas(), data=st.data())
def test_tp_deals_out_matrices_and_not_norms_and_pp_layers(config, data):
    tp = data.draw(st.integers(1, min(config.kv_heads, config.ffn, config.vocab)))
    check_shares(costs.local_parameters, config, tp, data.draw(st.integers(1, config.layers)))


def sharded_by_substring(config, layout, rank=0):
    """Wrong: "attention" is found in "attention_norm" too."""
    words = ("embed", "attention", "mlp.", "head")
    return [
        parameter._replace(axes={"tp"} if any(word in parameter.name for word in words) else set())
        for parameter in costs.local_parameters(config, layout, rank)
    ]


def norms_sharded_too(config, layout, rank):
    return [
        parameter if parameter.sharded else parameter._replace(numel=parameter.numel // layout.tp)
        for parameter in costs.local_parameters(config, layout, rank)
    ]


def every_rank_like_the_first(config, layout, rank):
    return costs.local_parameters(config, layout, 0)


def tied_head_only_on_the_first_stage(config, layout, rank):
    held = costs.local_parameters(config, layout, rank)
    return [parameter for parameter in held if parameter.name != "head.weight"]


@pytest.mark.parametrize(
    "wrong",
    [
        sharded_by_substring,
        norms_sharded_too,
        every_rank_like_the_first,
        tied_head_only_on_the_first_stage,
    ],
)
def test_a_wrong_share_is_caught(wrong):
    config = TINY.replace(vocab=257, layers=3, tied=True)
    check_shares(costs.local_parameters, config, 2, 2)
    with pytest.raises(AssertionError):
        check_shares(wrong, config, 2, 2)


def test_counting_by_name_is_wrong_by_the_attention_norms():
    """The size of picotron's error: a norm of every layer, taken tp times instead of once."""
    held = sharded_by_substring(TINY, Layout(tp=2))
    total = sum(parameter.numel * (2 if parameter.sharded else 1) for parameter in held)
    assert total - costs.parameters(TINY).total == TINY.layers * TINY.hidden


def test_names_and_order():
    names = [parameter.name for parameter in costs.local_parameters(TINY.replace(layers=1), "dp1")]
    assert names == [
        "embed.weight",
        "layers.0.attention_norm.weight",
        "layers.0.attention.qkv.weight",
        "layers.0.attention.o.weight",
        "layers.0.mlp_norm.weight",
        "layers.0.mlp.gate_up.weight",
        "layers.0.mlp.down.weight",
        "norm.weight",
        "head.weight",
    ]
    tied = costs.local_parameters(TINY.replace(layers=1, tied=True), "dp1")
    assert [parameter.name for parameter in tied] == names[:-1]
    last = costs.local_parameters(TINY.replace(layers=3, tied=True), "pp2", rank=1)
    assert [parameter.name for parameter in last] == [
        *(name.replace("layers.0", "layers.2") for name in names[1:])
    ]


@pytest.mark.parametrize(
    ("model", "layout", "sentence"),
    [
        ("gpt-3-175b", "dp1", "gpt-3-175b has the GPT block; this formula is for plain Llama"),
        ("deepseek-v3", "dp1", "deepseek-v3 has latent attention"),
        ("tiny", "tp6", "tp=6 leaves ranks with nothing of kv_heads"),
    ],
)
def test_what_is_not_described_is_refused(model, layout, sentence):
    with pytest.raises(ValueError, match=sentence):
        costs.local_parameters(ModelConfig.preset(model), layout)


@pytest.mark.parametrize("name", ["tiny-moe", "mixtral-8x7b", "qwen3-235b-a22b"])
def test_ranks_of_ep_hold_all_experts_once_and_the_rest_each(name):
    config = ModelConfig.preset(name)
    whole = {p.name: p for p in costs.local_parameters(config, "dp1")}
    assert sum(p.numel for p in whole.values()) == costs.parameters(config).total
    ranks = [costs.local_parameters(config, "dp4ep4", rank) for rank in range(4)]
    for of_rank in zip(*ranks):
        of_one = whole[of_rank[0].name]
        share = 4 if ".experts." in of_one.name else 1
        assert [p.numel for p in of_rank] == [of_one.numel // share] * 4
        assert ("ep" in of_one.axes) == (share == 4)


# ---- what a rank holds, of any model


@given(config=llamas(), data=st.data())
def test_held_parameters_are_the_sum_of_the_local_ones(config, data):
    tp = data.draw(st.integers(1, min(config.kv_heads, config.ffn, config.vocab)))
    pp = data.draw(st.integers(1, config.layers))
    layout = Layout(tp=tp, pp=pp)
    for stage, layers in enumerate(costs.stage_layers(config.layers, pp)):
        listed = costs.local_parameters(config, layout, stage * tp)
        held = costs.held_parameters(config, layers, tp=tp, first=stage == 0, last=stage == pp - 1)
        assert held.total == held.dense == sum(parameter.numel for parameter in listed)


@pytest.mark.parametrize("name", ModelConfig.presets())
def test_one_rank_holds_every_preset(name):
    config = ModelConfig.preset(name)
    held = costs.held_parameters(config, range(config.layers), first=True, last=True)
    assert held.total == costs.parameters(config).total


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "qwen3-235b-a22b"])
def test_ep_cuts_routed_experts_and_nothing_else(name):
    config = ModelConfig.preset(name)
    one, four = (
        costs.held_parameters(config, range(config.layers), ep=ep, first=True, last=True)
        for ep in (1, 4)
    )
    assert four.dense == one.dense and 4 * four.experts == one.experts
    cut = costs.held_parameters(config, range(config.layers), tp=4, first=True, last=True)
    assert cut.experts == four.experts and cut.dense < one.dense
