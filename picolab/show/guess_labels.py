"""Where a point's number goes so that it lies on no other number and on no point.

Each label takes the nearest free place around its point, with a thin line to it; where none is
free, the one that covers least. Greedy, in the points' order, and good enough for some twenty
points that lie close together.
"""

import math
from collections.abc import Sequence

_LINE = 14  # a label's height, in pixels
_DIGIT = 8  # and what a character takes of its width
_TURNS = 16

Box = tuple[float, float, float, float]  # left, bottom, right, top
Offset = tuple[float, float]  # pixels to the right and upwards, from a point to its label's middle


def _offsets() -> list[Offset]:
    """The nearest first; of equally near ones those off the diagonal, on which many points lie."""
    angles = [2 * math.pi * turn / _TURNS for turn in range(_TURNS)]
    angles.sort(key=lambda angle: -abs(math.sin(angle - math.pi / 4)))
    return [
        (radius * math.cos(angle), radius * math.sin(angle))
        for radius in (18, 30, 44, 60, 78)
        for angle in angles
    ]


def label_offsets(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    marks: Sequence[tuple[float, float, float]],
    size: tuple[float, float],
) -> list[Offset]:
    """How far each label stands from its point; everything is in pixels.

    marks   x, y and half the size of all that is drawn, the points too
    size    of the plot, from (0, 0): labels stay inside
    """
    drawn = [(x - half, y - half, x + half, y + half) for x, y, half in marks]
    width, height = size
    taken: list[Box] = []
    found = []
    for (x, y), text in zip(points, texts):

        def covered(offset: Offset, x=x, y=y, text=text) -> float:
            box = label_box(x, y, text, offset)
            inside = overlap(box, (0, 0, width, height))
            outside = (box[2] - box[0]) * (box[3] - box[1]) - inside
            return outside + sum(overlap(box, other) for other in (*taken, *drawn))

        best = min(_offsets(), key=covered)  # of equals the first
        found.append(best)
        taken.append(label_box(x, y, text, best))
    return found


def label_box(x: float, y: float, text: str, offset: Offset) -> Box:
    """What the label of a point at (x, y) covers."""
    x, y, half = x + offset[0], y + offset[1], _DIGIT * len(text) / 2
    return x - half, y - _LINE / 2, x + half, y + _LINE / 2


def overlap(one: Box, other: Box) -> float:
    """Square pixels that both cover."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0) * max(high, 0)
