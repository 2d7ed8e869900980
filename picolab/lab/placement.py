"""Which rank holds what: a row for each rank, a strip for each thing that a layout can cut.

    samples     sequences of a step: dp deals them out, micro-batch by micro-batch
    tokens      of a sequence: cp deals out 2 * cp chunks, a light and a heavy one to each rank
    layers      pp
    q ... down  the matrices of each of its layers: tp. q, k, v, gate and up are cut along their
                outputs (upright bands), o and down along their inputs (flat bands)
    experts     of each of its layers that has some: ep; gate, up and down are then an expert's
    embed, head rows of the vocabulary: tp, on the first and on the last stage of pp

The strip is the whole thing, and what the rank holds of it is filled. Ranks with the same colour
and letter in a column hold the same; what no axis cuts is grey. Norms are not drawn: every rank of
a stage has them whole.

Under ZeRO ranks that compute with the same matrix each keep some of its rows. Then a matrix is
filled pale, and its rank's rows are full: upright bands (outputs are rows), in a table flat ones.
Rows are dealt out over a whole parameter, q, k and v being one and gate and up another: so of two
ranks one may keep all of gate and the other all of up. That is why they have columns of their own.

It is a table of small pictures and not one large picture: a screen reader reads its cells, and it
can be made anew at every press of a button. Where things are cut is what `costs` says;
tests/unit/lab/test_placement.py holds the filled areas against `costs.local_parameters`.
"""

import base64
import html
from pathlib import Path
from typing import NamedTuple

from picolab import costs
from picolab.show.files import write_beside
from picolab.show.picture import GREY, GROUPS
from picolab.show.table import Table
from picolab.specs import Layout, ModelConfig

MAX_RANKS = 16
_WIDTH, _HEIGHT = 64, 18  # of a strip, in its own units: it is stretched to its column


class Part(NamedTuple):
    """What a rank holds of one thing."""

    thing: str  # a column of the picture
    axis: str  # along which the thing is cut
    owner: int  # the rank's place on that axis
    held: tuple[range, ...]  # in the order of the thing
    of: int
    flat: bool = False  # a matrix that is cut along its inputs
    cut: bool = True  # False: every rank that holds it holds all of it
    kept: range | None = None  # ZeRO: of the matrix's rows, those that this rank keeps
    rows: int = 0

    @property
    def letter(self) -> str:
        return _letter(self.owner)

    @property
    def text(self) -> str:
        """ "0-63", "0-15, 48-63", or how many where there are more than two pieces."""
        if not self.held:
            return "none"
        if not self.cut:
            return f"all {self.of:,}"
        if len(self.held) > 2:
            return f"{sum(map(len, self.held))} of {self.of:,}"
        return ", ".join(map(_span, self.held))


def parts(
    config: ModelConfig, layout: Layout | str, rank: int, *, micro_batch: int, accumulate: int
) -> list[Part]:
    """What one rank holds, in the order of the columns. Raises what `costs.local_parameters` does:
    of Llama decoders, with experts or without.
    """
    layout = Layout.parse(layout)
    costs.local_parameters(config, layout, rank)  # refuses what has no such slices
    place = layout.coordinates(rank)
    dp, cp, pp, tp = (place[axis] for axis in ("dp", "cp", "pp", "tp"))

    sequences = costs.replica_sequences(0, dp, layout.dp, micro_batch, accumulate)
    batch = layout.dp * micro_batch * accumulate
    chunk = config.seq // (2 * layout.cp)
    tokens = [range(i * chunk, (i + 1) * chunk) for i in costs.zigzag_chunks(cp, layout.cp)]
    stages = costs.rank_stages(config.layers, layout, pp)

    def cut(size: int, blocks: int | None = None) -> tuple[range, ...]:
        return (costs.even_slices(size, layout.tp, blocks)[tp],)

    # A key-value head stays with the queries that read it.
    size, queries = config.head_dim, config.heads * config.head_dim
    keys = config.kv_heads * size
    heads = costs.head_slices(config.heads, config.kv_heads, layout.tp, tp)
    q, kv = ((range(held.start * size, held.stop * size),) for held in heads)
    group = layout.size(layout.shard_axis) if layout.zero else 1
    head = tp // layout.head_copies(config)  # neighbours may hold the same
    rows = cut(config.vocab)
    width = config.expert_ffn or config.ffn
    ffn = cut(width)
    first, last = 0 in stages, layout.stage_count - 1 in stages
    found = [
        Part("samples", "dp", dp, _joined([range(i, i + 1) for i in sequences]), batch),
        Part("tokens", "cp", cp, _joined(tokens), config.seq),
        Part("layers", "pp", pp, _joined(list(stages.values())), config.layers),
        Part("q", "tp", tp, q, queries),
        *(Part(name, "tp", head, kv, keys) for name in (("k", "v") if group > 1 else ("k, v",))),
        Part("o", "tp", tp, q, queries, flat=True),
        *([_experts(config, layout, rank)] if config.experts else []),
        *(
            Part(name, "tp", tp, ffn, width)
            for name in (("gate", "up") if group > 1 and not config.experts else ("gate, up",))
        ),
        Part("down", "tp", tp, ffn, width, flat=True),
        Part("embed", "tp", tp, rows if first else (), config.vocab, flat=True),
        Part("head", "tp", tp, rows if last else (), config.vocab, flat=True),
    ]
    found = [part._replace(cut=layout.size(part.axis) > 1) for part in found]
    if group == 1:
        return found
    (line,) = (line for line in layout.lines(layout.shard_axis) if rank in line)
    return _with_kept_rows(found, config, group, line.index(rank))


def _experts(config: ModelConfig, layout: Layout, rank: int) -> Part:
    (line,) = (line for line in layout.lines("ep") if rank in line)
    ep = line.index(rank)
    held = costs.even_slices(config.experts, layout.ep)[ep]
    return Part("experts", "ep", ep, (held,), config.experts)


# The matrices that are stacked in one parameter. (Those of experts are cut over edp: not drawn.)
_ATTENTION, _ENDS = (("q", "k", "v"), ("o",)), (("embed",), ("head",))
_PARAMETERS = (*_ATTENTION, ("gate", "up"), ("down",), *_ENDS)


def _with_kept_rows(found: list[Part], config: ModelConfig, n: int, index: int) -> list[Part]:
    """With the rows of each that ZeRO leaves to the index-th of n ranks, as zero.py deals them."""
    of = {part.thing: part for part in found}
    for names in (*_ATTENTION, *_ENDS) if config.experts else _PARAMETERS:
        # (o and down have an output for each number of the residual stream)
        whole = [range(config.hidden) if name in ("o", "down") else None for name in names]
        here = [all_ or (*of[name].held, range(0))[0] for all_, name in zip(whole, names)]
        if not any(here):  # another stage's
            continue
        mine, first = costs.even_slices(sum(map(len, here)), n)[index], 0
        for name, all_, rows in zip(names, whole, here):
            start, stop = (min(max(end - first, 0), len(rows)) for end in (mine.start, mine.stop))
            total = config.hidden if all_ else of[name].of
            of[name] = of[name]._replace(kept=rows[start:stop], rows=total)
            first += len(rows)
    return list(of.values())


def placement_figure(
    layout: Layout | str,
    config: ModelConfig | str = "tiny",
    *,
    micro_batch: int = 4,
    accumulate: int = 1,
) -> "Placement":
    """Draw which rank holds which layers, slices of matrices, tokens and sequences.

    layout       dp, tp, pp, cp and ep; of more than 16 ranks the first 16 are drawn
    config       a Llama decoder, with experts or without, or the name of one
    micro_batch  sequences of a micro-batch
    accumulate   micro-batches of one replica in a step

    Raises ValueError for a layout that cannot split the model, and for what has no such slices
    (latent attention).
    """
    if isinstance(config, str):
        config = ModelConfig.preset(config)
    return Placement(config, Layout.parse(layout), micro_batch, accumulate)


class Placement:
    """What `placement_figure` shows: a table of strips in a notebook, a table of texts in print."""

    def __init__(self, config: ModelConfig, layout: Layout, micro_batch: int, accumulate: int):
        layout.check(config)
        self.config, self.layout = config, layout
        self.drawn = min(layout.world, MAX_RANKS)
        step = {"micro_batch": micro_batch, "accumulate": accumulate}
        self.parts = {rank: parts(config, layout, rank, **step) for rank in range(self.drawn)}

    @property
    def title(self) -> str:
        ranks = "1 rank" if self.layout.world == 1 else f"{self.layout.world:,} ranks"
        title = f"{self.layout}: what each of {ranks} holds of {self.config.name}"
        if self.layout.world == 1:
            title = f"{self.layout}: one rank holds all of {self.config.name}"
        if self.drawn < self.layout.world:
            title += f"; the first {self.drawn} are drawn"
        return title

    @property
    def table(self) -> Table:
        """The same in words: letter and indices, the first and the last."""
        columns = ["rank", *(part.thing for part in self.parts[0])]
        rows = [
            [_named(self.layout, rank), *(_said(part) for part in held)]
            for rank, held in self.parts.items()
        ]
        return Table(columns, rows, self.title)

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        heads = "".join(
            f'<th scope="col" style="{_HEAD}">{html.escape(part.thing)}</th>'
            for part in self.parts[0]
        )
        body = "".join(
            f'<tr><th scope="row" style="{_CELL}">{_head(self.layout, rank)}</th>'
            + "".join(f'<td style="{_CELL}">{_strip(part)}{_label(part)}</td>' for part in held)
            + "</tr>"
            for rank, held in self.parts.items()
        )
        return (
            f'<div style="line-height:18px"><div>{html.escape(self.title)}</div>'
            f'<table style="{_TABLE}"><thead><tr>'
            f'<th scope="col" style="{_HEAD};width:92px">rank</th>{heads}'
            f"</tr></thead><tbody>{body}</tbody></table>"
            f'<div style="font-size:12px;line-height:16px">{self._legend}</div></div>'
        )

    @property
    def _legend(self) -> str:
        zero = any(part.kept is not None for part in self.parts[0])
        return _LEGEND + (_OF_ZERO[self.layout.zero - 1] if zero else "")

    def save(self, path: str | Path) -> Path:
        """Write it as .html (the picture) or .txt (the table of texts)."""
        path = Path(path).expanduser()
        page = (
            '<!doctype html><meta charset="utf-8"><style>:root{color-scheme:light dark}'
            f"body{{font-family:system-ui,sans-serif}}</style>{self._repr_html_()}"
        )
        written = {".html": page, ".txt": f"{self!r}\n"}
        if path.suffix not in written:
            raise ValueError(f"cannot save a placement as {path.name}: end it in .html or .txt")
        write_beside(path, written[path.suffix])
        return path


_TABLE = "width:calc(100% - 4px);max-width:1100px;table-layout:fixed;border-collapse:collapse"
_CELL = "text-align:left;vertical-align:top;padding:3px;line-height:14px;font-size:11px"
_HEAD = f"{_CELL};font-weight:500;font-size:10px"
_LEGEND = (
    "Filled: what the rank holds; its indices are below. Same colour and letter in a column: the "
    "same. Grey: not cut. Upright bands: cut along the outputs; flat ones: along the inputs or the "
    "vocabulary."
)
_OF_ZERO = [
    f" Full colour, and rows: of which ZeRO leaves it {what}. Pale: what it only computes with."
    for what in (
        "optimizer states",
        "optimizer states and gradients",
        "optimizer states, gradients and parameters",
    )
]


def _strip(part: Part) -> str:
    """The whole thing as a frame, what is held of it filled. An image, since a notebook that nobody
    has trusted yet is shown without its SVG."""
    colour = GROUPS[part.owner % len(GROUPS)] if part.cut else GREY
    filled = "".join(_band(piece, part, colour) for piece in part.held)
    if part.kept:
        filled += _kept_rows(part, colour)
    frame = (
        f'<rect class="whole" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#808488" '
        'vector-effect="non-scaling-stroke"/>'
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'preserveAspectRatio="none">{filled}{frame}</svg>'
    )
    data = base64.b64encode(svg.encode()).decode()
    style = f"display:block;width:100%;height:{_HEIGHT}px"
    return f'<img alt="" src="data:image/svg+xml;base64,{data}" style="{style}"/>'


def _band(piece: range, part: Part, colour: str) -> str:
    start, size = piece.start / part.of, len(piece) / part.of
    x, y, width, height = start * _WIDTH, 0, size * _WIDTH, _HEIGHT
    if part.flat:
        x, y, width, height = 0, start * _HEIGHT, _WIDTH, size * _HEIGHT
    return _rect("held", x, y, width, height, colour, 0.35 if part.rows else 1)


def _kept_rows(part: Part, colour: str) -> str:
    """Of what the rank holds, the rows that it keeps."""
    (held,) = part.held
    start, size = part.kept.start / part.rows, len(part.kept) / part.rows
    if part.thing in ("embed", "head"):
        return _rect("kept", 0, start * _HEIGHT, _WIDTH, size * _HEIGHT, colour)
    y, height = 0, _HEIGHT
    if part.flat:  # cut along inputs, and rows are outputs
        y, height = held.start / part.of * _HEIGHT, len(held) / part.of * _HEIGHT
    return _rect("kept", start * _WIDTH, y, size * _WIDTH, height, colour)


def _rect(kind: str, x, y, width, height, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect class="{kind}" x="{x:.9g}" y="{y:.9g}" width="{width:.9g}" height="{height:.9g}" '
        f'fill="{colour}"' + (f' opacity="{opacity}"' if opacity < 1 else "") + "/>"
    )


def _label(part: Part) -> str:
    text = part.text.replace("–", "–<wbr/>")  # in a narrow column a range is broken here
    text = f"<b>{part.letter}</b> {text}" if part.held and part.cut else text
    return text + (f"<br>{_rows(part)}" if part.rows else "")


def _said(part: Part) -> str:
    text = f"{part.letter} {part.text}" if part.held and part.cut else part.text
    return text + (f", {_rows(part)}" if part.rows else "")


def _rows(part: Part) -> str:
    return f"rows {_span(part.kept)}" if part.kept else "no rows"


def _named(layout: Layout, rank: int) -> str:
    """ "3: pp 1, tp 1"; an axis of size 1 is not named."""
    place = layout.coordinates(rank)
    where = ", ".join(f"{axis} {place[axis]}" for axis, size in layout.axes.items() if size > 1)
    return f"{rank}: {where}" if where else str(rank)


def _head(layout: Layout, rank: int) -> str:
    number, _, where = _named(layout, rank).partition(": ")
    where = where.replace(" ", "\u00a0").replace(",\u00a0", ", ")  # a line breaks between axes only
    return f'{number}<br><span style="font-weight:normal">{where}</span>' if where else number


def _letter(place: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    again, letter = divmod(place, 26)
    return chr(ord("A") + letter) + (str(again) if again else "")


def _span(piece: range) -> str:
    return f"{piece.start}" if len(piece) == 1 else f"{piece.start}–{piece.stop - 1}"


def _joined(pieces: list[range]) -> tuple[range, ...]:
    """Neighbours as one."""
    found: list[range] = []
    for piece in pieces:
        if found and found[-1].stop == piece.start:
            found[-1] = range(found[-1].start, piece.stop)
        else:
            found.append(piece)
    return tuple(found)
