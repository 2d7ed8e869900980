"""The arithmetic of a diagnosis, without ranks: signatures, ratios, and the awkward recipe.

A wrong version that says "missing" wherever tensors add up to the right one would call an average
missing (n times 1/n adds up too); one that takes any two numbers' ratio for a constant would call
every scalar a multiple. Both are run here.
"""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import picolab.debug
from picolab.debug import verify
from picolab.debug.awkward import Recipe
from picolab.debug.evidence import Evidence, difference, number_text, ratio, simple
from picolab.debug.faults import CATALOGUE
from picolab.debug.observe import Observation, Reference
from picolab.model.transformer import IGNORED
from picolab.specs import Layout


def evidence(layout, dtype="fp64"):
    layout = Layout.parse(layout)
    ranks = [Observation(rank, layout.coordinates(rank), "cpu") for rank in range(layout.world)]
    return Evidence(Recipe(layout, dtype, 5, 7), Reference(), ranks)


@given(st.integers(2, 6), st.integers(0, 2**32), st.sampled_from(["fp64", "fp32"]))
def test_each_mistake_has_its_signature(n, seed, dtype):
    known = evidence(f"tp{n}", dtype)
    generator = torch.Generator().manual_seed(seed)
    of = torch.float64 if dtype == "fp64" else torch.float32
    summands = [torch.randn(5, 3, generator=generator, dtype=of) + 1 for _ in range(n)]
    right = sum(summands)

    def signature(found):
        return known.signature("tp", dict(enumerate(found)), dict.fromkeys(range(n), right))

    assert signature([right.clone() for _ in range(n)]) == "right"
    assert signature(summands) == "missing"
    assert signature([right * n] * n) == "doubled"
    assert signature([right / n] * n) == "averaged"
    assert signature([right * 1.37] * n) == pytest.approx(1.37)
    assert signature([right + 1] * n) is None
    assert signature([right, *summands[1:]]) is None  # some ranks right, others not: no one sum
    assert signature([right * float("nan")] * n) is None


def test_adding_up_is_not_enough_to_be_missing():
    """The mutant: whatever adds up to the right tensor is called missing."""
    known, right = evidence("tp4"), torch.arange(1.0, 7, dtype=torch.float64)
    found = {rank: right / 4 for rank in range(4)}
    adds_up = torch.allclose(sum(found.values()), right)
    assert adds_up and known.signature("tp", found, dict.fromkeys(found, right)) == "averaged"


def test_lines_are_those_of_the_rank_grid():
    known = evidence("dp2cp2tp2")
    assert [[s.rank for s in line] for line in known.lines("tp")] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    assert [[s.rank for s in line] for line in known.lines("dp_cp")] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_differences_and_ratios():
    a = torch.tensor([3.0, 4.0])
    assert difference(a, a) == 0 and difference(a * 2, a) == pytest.approx(1)
    assert difference(a[:1], a) == difference(a * float("inf"), a) == float("inf")
    assert difference(torch.zeros(2), torch.zeros(2)) == 0
    assert ratio(a * 3, a, 1e-8) == pytest.approx(3)
    assert ratio(a + 1, a, 1e-8) is None and ratio(a, torch.zeros(2), 1e-8) is None
    assert simple(2.0000000001, 1e-8) == 2 and simple(0.25, 1e-8) == 0.25
    assert simple(1.0, 1e-8) is None and simple(1.3721, 1e-8) is None
    assert [number_text(v) for v in (2.0, 0.25, 1 / 3, 1.8372)] == ["2", "1/4", "1/3", "1.837"]


LAYOUTS = [
    "dp1",
    "dp2",
    "dp3",
    "dp4",
    "tp3",
    "pp4",
    "cp4",
    "dp2cp2tp2",
    "tp4sp",
    "dp16",
    "tp2cp3sp",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recipe_is_awkward(layout):
    recipe = Recipe(Layout.parse(layout), "fp64", 5, 7)
    config, layout = recipe.config, recipe.layout
    assert config.vocab == 37 and config.tied and config.heads == 2 * config.kv_heads
    for size in layout.axes.values():
        assert size == 1 or recipe.accumulate != size
    assert recipe.accumulate != layout.dp * layout.cp
    if layout.tp > 1:
        assert config.vocab % layout.tp and config.ffn % layout.tp and config.kv_heads % layout.tp
    if layout.pp > 1:
        assert config.layers % layout.pp
    counts = recipe.counts()
    assert all(counts) and (layout.dp == 1 or len(set(counts)) > 1)
    of_micro = [int((recipe.batch(0, m)[1] != IGNORED).sum()) for m in range(recipe.accumulate)]
    assert len(set(of_micro)) == recipe.accumulate
    rows = torch.cat([recipe.batch(0, m)[0] for m in range(recipe.accumulate)])
    assert len(rows.unique(dim=0)) == len(rows)
    assert all(len(row.unique()) == config.seq for row in rows)  # a token tells its place
    parts = [torch.cat([recipe.part(2, 1, r)[i] for r in range(layout.dp)]) for i in (0, 1)]
    assert all(map(torch.equal, parts, recipe.batch(2, 1)))


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} | {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }


def test_the_diagnosis_cannot_see_the_faults():
    """Neither it nor what it imports of this room knows the catalogue."""
    room = Path(picolab.debug.__file__).parent
    seen, todo = set(), ["picolab.debug.diagnosis"]
    while todo:
        name = todo.pop()
        if name in seen or not name.startswith("picolab.debug."):
            continue
        seen.add(name)
        todo += imports(room / f"{name.split('.')[-1]}.py")
    assert "picolab.debug.evidence" in seen and "picolab.debug.faults" not in seen


@pytest.mark.parametrize(
    ("layout", "options", "sentence"),
    [
        ("dp2", dict(fault="tp-row-output-mising"), "did you mean 'tp-row-output-missing'"),
        ("dp2", dict(fault="gremlins"), "there is no fault 'gremlins'; faults are ep-"),
        ("dp2", dict(fault="tp-norm-missing"), "needs tp of 2 or more.* in dp2 .*; try tp2"),
        ("tp2", dict(fault="dp-loss-missing"), "needs dp or cp of 2 or more.*try dp2"),
        ("tp2sp", dict(fault="tp-row-output-missing"), "without sp.*try tp2"),
        ("dp2cp2", dict(fault="cp-not-synchronised"), "cp of 2 or more and dp of 1.*try cp2"),
        ("dp64tp8", {}, "dp64tp8 is 512 ranks.*16 at most.*: dp2tp2"),
        (
            "dp2",
            dict(precision="fp8"),
            "precision is 'fp8'; the oracle compares in fp64 or fp32 or bf16",
        ),
        (
            "dp2tp2ep2",
            dict(precision="bf16", fault="tp-head-norms-missing"),
            "norms of heads, which the oracle's model does not have in bf16.*compare in fp64",
        ),
        ("dp2", dict(steps=0), "steps is 0; it must be an integer of at least 1"),
        ("dp2shard2", {}, "zero is 0; give a stage too"),
        ("dp2xx3", {}, "'xx' is not an axis"),
    ],
)
def test_bad_input_gets_a_sentence_before_anything_starts(layout, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        verify(layout, **options)


def test_the_catalogue_says_where_each_was_seen():
    assert len(CATALOGUE) >= 12
    for fault in CATALOGUE.values():
        assert fault.what and fault.where_seen
    everywhere = picolab.debug.faults.table("dp1")
    assert [row[0] for row in everywhere.rows] == [
        "micro-batches-not-scaled",
        "micro-batches-forgotten",
    ]
