"""The picture of which rank holds what: its filled areas are what `costs.local_parameters` counts.

Wrong versions these tests catch: every size cut as if it divided, key-value heads cut apart from
their queries, the head on the first stage, layers of another stage, chunks in order instead of
zig-zag, a batch dealt out in blocks instead of micro-batch by micro-batch, one slice for all ranks,
more ranks drawn than can be read without a word about it; of ZeRO's rows, a shard of each matrix in
place of one of what is stacked.
"""

import base64
import re
from math import prod
from xml.etree import ElementTree

import pytest

from picolab import costs
from picolab.lab import placement
from picolab.lab.placement import MAX_RANKS, parts, placement_figure
from picolab.specs import Layout, ModelConfig

TINY = ModelConfig.preset("tiny")
UNEVEN = TINY.replace(
    hidden=96, heads=6, kv_heads=3, head_dim=16, ffn=131, vocab=257, layers=3, seq=120
)
SVG = "{http://www.w3.org/2000/svg}"
CASES = [(TINY, "dp2tp2pp2"), (TINY, "cp2tp2"), (UNEVEN, "tp2pp2dp2"), (TINY, "dp1")]


def strips(figure):
    """rank -> column -> (share of the strip that is filled, filled rectangles)."""
    table = re.search(r"<table.*</table>", figure._repr_html_())[0]
    root = ElementTree.fromstring(table.replace("<br>", " ").replace("&nbsp;", " "))
    names = [head.text for head in root.find("thead/tr")][1:]
    drawn = {}
    for row in root.find("tbody"):
        rank = int(re.match(r"\d+", row.find("th").text)[0])
        drawn[rank] = {}
        for name, cell in zip(names, row.findall("td"), strict=True):
            # An image, not the SVG itself: of an untrusted notebook JupyterLab strips that.
            image = base64.b64decode(cell.find("img").get("src").split(",")[1])
            rects = ElementTree.fromstring(image).findall(f"{SVG}rect")
            kept = [r for r in rects if r.get("class") == "kept"]
            [whole] = [r for r in rects if r.get("class") == "whole"]
            held = [r for r in rects if r.get("class") == "held"]
            drawn[rank][name] = area(held) / area([whole]), held, area(kept) / area([whole])
    return drawn


def area(rects) -> float:
    return sum(float(r.get("width")) * float(r.get("height")) for r in rects)


def wrong(figure, config, layout):
    """What the drawn areas say of each rank's parameters, where it is not what `costs` says."""
    found, hidden = [], config.hidden
    q, kv = config.heads * config.head_dim * hidden, config.kv_heads * config.head_dim * hidden
    matrices = {"attention.qkv": [("q", q), ("k, v", 2 * kv)], "attention.o": [("o", q)]}
    matrices |= {"mlp.gate_up": [("gate, up", 2 * config.ffn * hidden)]}
    matrices |= {"mlp.down": [("down", config.ffn * hidden)]}
    table = config.vocab * hidden
    for rank, cells in strips(figure).items():
        share = {name: filled for name, (filled, *_) in cells.items()}
        own = [part for part in figure.parts[rank] if part.thing == "layers"]
        drawn = {"embed.weight": share["embed"] * table, "head.weight": share["head"] * table}
        for layer in own[0].held[0]:
            for matrix, of in matrices.items():
                size = sum(share[name] * numel for name, numel in of)
                drawn[f"layers.{layer}.{matrix}.weight"] = size
        drawn = {name: round(size) for name, size in drawn.items() if size}
        said = {
            parameter.name: parameter.numel
            for parameter in costs.local_parameters(config, layout, rank)
            if "norm" not in parameter.name
        }
        if config.tied and "embed.weight" in said and "head.weight" in drawn:
            drawn.pop("head.weight")
        if drawn != said:
            found.append((rank, drawn, said))
        if round(share["layers"] * config.layers) != len(own[0].held[0]):
            found.append((rank, "layers", share["layers"]))
    return found


@pytest.mark.parametrize("config, layout", CASES)
def test_what_is_filled_is_what_costs_counts(config, layout):
    figure = placement_figure(layout, config)
    assert set(strips(figure)) == set(range(Layout.parse(layout).world))
    assert wrong(figure, config, layout) == []


def heads_apart(heads, kv_heads, tp, tp_rank):
    return tuple(costs.even_slices(size, tp)[tp_rank] for size in (heads, kv_heads))


def first_slice(size, n, blocks=None):
    return [costs.even_slices(size, n, blocks)[0]] * n


def floored(size, n, blocks=None):
    return [range(i * (size // n), (i + 1) * (size // n)) for i in range(n)]


def test_neighbours_that_share_a_head_have_the_same_letter():
    """tiny has 4 key-value heads: of 8 ranks two hold each, and no two the same queries."""
    of_ranks = [
        {part.thing: part for part in parts(TINY, "tp8", rank, micro_batch=1, accumulate=1)}
        for rank in range(8)
    ]
    assert [held["k, v"].letter for held in of_ranks] == list("AABBCCDD")
    assert len({held["q"].text for held in of_ranks}) == 8
    assert wrong(placement_figure("tp8", TINY), TINY, "tp8") == []


STACKS = {
    "attention.qkv": "q k v", "attention.o": "o", "mlp.gate_up": "gate up", "mlp.down": "down",
    "embed": "embed", "head": "head",
}  # fmt: skip


def wrong_rows(figure, config, layout):
    """What is drawn full under ZeRO, where it is not what `costs.zero_shards` counts, or not the
    rows that ZeRO deals out."""
    from picolab.model import Piece
    from picolab.parallel.zero import cut_rows

    layout, found = Layout.parse(layout), []
    width = {"o": config.heads * config.head_dim, "down": config.ffn}
    lines = layout.lines(layout.shard_axis)
    for rank, cells in strips(figure).items():
        of = {part.thing: part for part in figure.parts[rank]}
        (line,) = (line for line in lines if rank in line)
        counted = {  # of each layer as much
            re.sub(r"layers\.\d+\.|\.weight", "", p.name): p.numel
            for p in costs.zero_shards(config, layout, rank)
        }
        for name, things in STACKS.items():
            stack = [of[thing] for thing in things.split() if of[thing].held]
            if not stack:  # of another stage
                assert name not in counted
                continue
            drawn = sum(
                cells[part.thing][2] * part.rows * width.get(part.thing, config.hidden)
                for part in stack
            )
            # Whole outputs where tp cuts along inputs.
            here = [range(part.rows) if part.thing in width else part.held[0] for part in stack]
            pieces = [Piece(part.thing, (len(rows), 2)) for part, rows in zip(stack, here)]
            cut, _ = cut_rows(pieces, "dp", line.index(rank), len(line))
            right = [
                rows[piece.ranges[0].start : piece.ranges[0].stop] for piece, rows in zip(cut, here)
            ]
            kept = [part.kept for part in stack]
            if round(drawn) != counted[name] or list(map(list, kept)) != list(map(list, right)):
                found.append((rank, name, drawn, counted[name], kept, right))
    return found


OF_ZERO = [(TINY, "dp2zero1"), (TINY, "dp4zero3shard2"), (TINY, "dp2tp2zero2")]
OF_ZERO += [(UNEVEN, "dp3zero3"), (UNEVEN, "dp2tp2zero3"), (UNEVEN, "dp2tp2pp2zero1")]


@pytest.mark.parametrize("config, layout", OF_ZERO)
def test_what_is_full_is_what_zero_leaves(config, layout):
    figure = placement_figure(layout, config)
    assert wrong_rows(figure, config, layout) == []
    assert "rows 0" in repr(figure) and "leaves it optimizer states" in figure._repr_html_()
    assert "leaves it" not in placement_figure("dp2", config)._repr_html_()


def test_shards_that_do_not_follow_the_stacks_are_seen(monkeypatch):
    """As if each matrix were dealt out on its own: as many rows of each parameter, and others."""
    monkeypatch.setattr(
        placement, "_PARAMETERS", tuple((n,) for s in STACKS.values() for n in s.split())
    )
    assert wrong_rows(placement_figure("dp2zero1", TINY), TINY, "dp2zero1")


@pytest.mark.parametrize("mutant", [heads_apart, first_slice, floored])
def test_a_wrong_cut_is_seen(monkeypatch, mutant):
    class Wrong:
        even_slices = staticmethod(costs.even_slices if mutant is heads_apart else mutant)
        head_slices = staticmethod(mutant if mutant is heads_apart else costs.head_slices)

        def __getattr__(self, name):
            return getattr(costs, name)

    monkeypatch.setattr(placement, "costs", Wrong())
    assert wrong(placement_figure("tp2pp2dp2", UNEVEN), UNEVEN, "tp2pp2dp2")


@pytest.mark.parametrize("wrong_thing", ["head", "layers"])
def test_a_wrong_stage_is_seen(wrong_thing):
    figure, wrong_parts = placement_figure("dp2tp2pp2", TINY), {}
    for rank, held in figure.parts.items():
        other = figure.parts[(rank + 4) % 8]
        wrong_parts[rank] = [
            theirs if mine.thing == wrong_thing else mine for mine, theirs in zip(held, other)
        ]
    figure.parts = wrong_parts
    assert wrong(figure, TINY, "dp2tp2pp2")


@pytest.mark.parametrize("layout", ["cp2tp2", "dp2cp2", "cp4", "dp3", "dp1"])
def test_every_token_of_a_step_is_on_one_rank_of_each_group(layout):
    layout, step = Layout.parse(layout), {"micro_batch": 2, "accumulate": 3}
    config = TINY
    seen: dict[tuple, int] = {}
    for rank, held in placement_figure(layout, config, **step).parts.items():
        of = {part.thing: part for part in held}
        if layout.coordinates(rank)["tp"]:
            continue
        for sequence in [i for piece in of["samples"].held for i in piece]:
            for token in [i for piece in of["tokens"].held for i in piece]:
                seen[sequence, token] = seen.get((sequence, token), 0) + 1
    assert set(seen.values()) == {1}
    assert len(seen) == prod([layout.dp, *step.values()]) * config.seq


def test_tokens_and_sequences_are_those_that_training_reads():
    from picolab.parallel.sequence_split import positions

    figure = placement_figure("dp2cp2", TINY, micro_batch=2, accumulate=3)
    for rank, held in figure.parts.items():
        of = {part.thing: part for part in held}
        tokens = [i for piece in of["tokens"].held for i in piece]
        place = figure.layout.coordinates(rank)
        assert tokens == positions(place["cp"], 2, TINY.seq).tolist()
        first = 2 * place["dp"]  # micro-batch by micro-batch, as training/text.py says
        assert [i for piece in of["samples"].held for i in piece] == [
            first + 4 * m + b for m in range(3) for b in range(2)
        ]


def test_it_reads_without_colour_and_without_a_picture():
    text = repr(placement_figure("cp2tp2", TINY))
    last = text.splitlines()[-1]
    assert "3: cp 1, tp 1" in last and "B" in last
    seq = TINY.seq
    assert f"{seq // 4}–{3 * seq // 4 - 1}" in last  # its two chunks are neighbours
    page = placement_figure("cp2tp2", TINY)._repr_html_()
    assert page.count('scope="row"') == 4 and "<b>B</b>" in page


def test_of_many_ranks_the_first_are_drawn_and_it_says_so():
    figure = placement_figure("dp8tp4", TINY)
    assert "all 4" in repr(figure)  # layers, which it does not cut
    assert len(strips(figure)) == MAX_RANKS
    assert "the first 16 are drawn" in figure.title and "32 ranks" in figure.title
    assert "are drawn" not in placement_figure("dp4tp4", TINY).title


def test_it_can_be_saved(tmp_path):
    figure = placement_figure("dp2tp2", TINY)
    assert "image/svg+xml" in figure.save(tmp_path / "a.html").read_text()
    assert "dp 1, tp 1" in figure.save(tmp_path / "a.txt").read_text()
    with pytest.raises(ValueError, match=r"\.html or \.txt"):
        figure.save(tmp_path / "a.png")


@pytest.mark.parametrize(
    "layout, config, sentence",
    [
        ("tp6", "tiny", "leaves ranks with nothing"),
        ("dp2", "deepseek-v3", "latent attention"),
        ("dp2", "huge", "huge"),
    ],
)
def test_what_has_no_slices_is_refused(layout, config, sentence):
    with pytest.raises(ValueError, match=sentence):
        placement_figure(layout, config)


def test_experts_are_a_column_of_their_own():
    """Dealt out over ep; gate, up and down are then an expert's, cut over tp."""
    figure = placement_figure("dp2tp2ep2", "tiny-moe")
    columns = {part.thing: part for part in figure.parts[2]}  # dp 1, tp 0
    assert columns["experts"].held == (range(4, 8),) and columns["experts"].cut
    assert columns["gate, up"].held == (range(88),)
    assert "experts" not in {part.thing for part in placement_figure("dp2", "tiny").parts[0]}
