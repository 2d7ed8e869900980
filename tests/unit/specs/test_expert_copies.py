"""Which experts have copies, as text: what is read, written back, and refused."""

import pytest

from picolab.specs import Layout, ModelConfig, TrainConfig
from picolab.specs.expert_copies import copies_text, parse_copies

MOE = ModelConfig.preset("tiny-moe")  # 8 experts in each layer
LAST = MOE.layers - 1


def parsed(text, layout="dp4ep4", config=MOE):
    return parse_copies(text, config, Layout.parse(layout))


def test_a_text_is_a_plan_for_all_layers_or_for_one():
    everywhere = parsed("0@1 5@0, 0@3")
    assert everywhere == {layer: ((5,), (0,), (), (0,)) for layer in range(MOE.layers)}
    one = parsed(f"0@1 {LAST}:3@2")
    assert one[LAST] == ((), (), (3,), ()) and one[0] == ((), (0,), (), ())
    assert parsed(f"{LAST}:3@2").keys() == {LAST}
    assert parsed(None) == parsed("") == parsed(" ") == {}
    for plan in (everywhere, one):
        assert parsed(copies_text(plan)) == plan
    dense = MOE.replace(dense_layers=1)
    assert 0 not in parsed("0@1", config=dense)


@pytest.mark.parametrize(
    ("text", "layout", "said"),
    [
        ("0:1", "dp4ep4", "has '0:1'; a copy is EXPERT@RANK, of one layer LAYER:EXPERT@RANK"),
        ("-1@1", "dp4ep4", "a copy is EXPERT@RANK"),
        ("8@1", "dp4ep4", "has '8@1', and the last expert is 7"),
        ("0@4", "dp4ep4", "has '0@4', and the last rank of ep is 3"),
        ("0@1 0@1", "dp4ep4", "has '0@1' twice"),
        ("3@1", "dp4ep4", "expert 3 is at home on rank 1 of ep; name another rank"),
        ("99:0@1", "dp4ep4", f"layers with experts are 0 to {LAST}"),
        ("0@1", "dp4", "dp4 of tiny-moe deals out no experts"),
        ("0@1", "dp2ep2zero1", "take dp2ep2zero1 without zero"),
    ],
)
def test_what_cannot_be_gets_a_sentence(text, layout, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(model=MOE, layout=layout, expert_copies=text)
    with pytest.raises(ValueError, match="dp2 of tiny deals out no experts"):
        TrainConfig(model="tiny", layout="dp2", expert_copies="0@1")
