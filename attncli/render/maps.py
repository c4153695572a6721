"""Matrices as maps: weights in shades, masks as marks, in blocks where they outgrow the screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from attncli.render.cells import cut, flow, pad, visible, wide, wrap
from attncli.render.legend import HIDDEN, LOST, legend_lines
from attncli.render.paint import Paint, plain
from attncli.render.pooling import joined
from attncli.render.shades import Scale
from attncli.reports.blocks import Block, Grid, Heatmap

KEPT, SOME = "■", "▒"
GAP = 3  # cells between maps side by side
UNASKED = (
    "each line has a scale of its own, as causal maps beyond a screen have (--scale-by matrix: one "
    "for all)"
)
LONGEST = 16  # cells of a label
NARROW = 40  # cells that a map of blocks needs beside others


def gathered(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Yield the blocks one by one, maps of the same rows and keys that follow each other together.

    These stand side by side.
    """
    some: list[Block] = []
    for block in blocks:
        if some and _alike(some[-1], block):
            some.append(block)
            continue
        if some:
            yield some
        some = [block]
    if some:
        yield some


def _alike(one: Block, other: Block) -> bool:
    if type(one) is not Heatmap or type(other) is not Heatmap:
        return False
    names = ("row_labels", "column_labels", "row_positions", "column_positions", "scale")
    return one.values.shape == other.values.shape and all(
        getattr(one, name) is getattr(other, name) or getattr(one, name) == getattr(other, name)
        for name in names
    )


def heatmap_lines(heats: Sequence[Heatmap], paint: Paint, width: int, height: int) -> Iterator[str]:
    """Return maps of the same rows and keys, as many side by side as fit, under one scale.

    Where they are larger than the screen a cell is the largest of a block. On a colour terminal
    two rows share a line when they would not fit otherwise.
    """
    first = heats[0]
    size, across = len(first.row_labels), len(first.column_labels)
    if not first.values.size:
        for heat in heats:
            yield paint.bold(visible(heat.title))
            yield f"{size} × {across}: nothing to show"
        return
    halves = bool(paint.colors) and size > height
    shared, titles = _titles(heats)
    fit = _Fit(first, titles, halves, width, height)
    maps = [_Map.of(heat, fit) for heat in heats]
    rows, columns = maps[0].values.shape
    pooled = (rows, columns) != (size, across)
    kind, unasked = first.scale or "matrix", False
    if first.scale is None and pooled and first.hidden is not None:
        unasked = all(map(_causal, heats))
        kind = "row" if unasked else kind
    shares = isinstance(first, Grid)
    scale = Scale("linear", 0.0, 1.0) if shares else Scale.of(kind, [m.values for m in maps])
    yield paint.bold(shared)
    for start in range(0, len(maps), fit.abreast):
        if start:
            yield ""
        some = slice(start, start + fit.abreast)
        yield from _side_by_side(maps[some], titles[some], scale, fit, paint)
    if paint.colors:
        yield ""
    hidden, lost = (any(getattr(one, n).any() for one in maps) for n in ("hidden", "lost"))
    yield from legend_lines(scale, paint, width, hidden=hidden, lost=lost)
    said = [_pooled(first, (rows, columns), kind)] if pooled else []
    said += [UNASKED] if unasked else []
    said += dict.fromkeys(note for heat in heats for note in heat.notes)
    for note in said:
        yield from map(paint.dim, flow(visible(note), width))
    if fit.cell < 4 and _tell(first, fit.column_edges):
        at = first.column_positions or range(len(fit.names))
        named = [f"{n} {cut(name, LONGEST)}" for n, name in zip(at, fit.names, strict=True)]
        yield from map(paint.dim, wrap(["keys:", *named], "  ", width))


def _titles(heats: Sequence[Heatmap]) -> tuple[str, list[str]]:
    """Return what the titles begin with, and what is left of each: nothing of a single one."""
    parts = [visible(heat.title).split(" · ") for heat in heats]
    same = 0
    while all(len(own) > same for own in parts) and len({own[same] for own in parts}) == 1:
        same += 1
    return " · ".join(parts[0][:same]), [" · ".join(own[same:]) for own in parts]


def _pooled(heat: Heatmap, shape: tuple[int, int], kind: str) -> str:
    """Return what a cell stands for, where it is a block."""
    size = len(heat.row_labels), len(heat.column_labels)
    high, broad = (math.ceil(a / b) for a, b in zip(size, shape, strict=True))
    what, how = ("cells", "mean") if isinstance(heat, Grid) else ("weights", "largest")
    if kind == "linear" and how == "largest":
        what, how = "biases", "furthest from 0"
    return f"{size[0]} × {size[1]} {what}: each cell is the {how} of up to {high} × {broad}"


class _Fit:
    """How maps of the same size fit the screen: labels, blocks, the width of a cell."""

    def __init__(
        self, heat: Heatmap, titles: Sequence[str], halves: bool, width: int, height: int
    ) -> None:
        self.halves, count = halves, len(titles)
        self.row_starts, self.row_edges = _blocks(heat.row_edges, height * (2 if halves else 1))
        self.labels = _block_labels(heat, self.row_edges, 2 if halves else 1)
        self.label_width = max(map(wide, self.labels))
        room = max(width - self.label_width - 2, 1)
        columns, title = len(heat.column_edges) - 1, max(map(wide, titles))
        abreast = next(
            (n for cell in (2, 1) if (n := (room + GAP) // (max(cell * columns, title) + GAP)) > 1),
            max((room + GAP) // (NARROW + GAP), 1),
        )
        self.abreast = math.ceil(count / math.ceil(count / abreast))
        each = (room - GAP * (self.abreast - 1)) // self.abreast
        self.column_starts, self.column_edges = _blocks(heat.column_edges, each)
        shown, across = len(self.column_edges) - 1, len(heat.column_labels)
        self.names = [visible(text) for text in heat.column_labels] if shown == across else []
        self.cell = 1 if halves else _cell_width(self.names, shown, each, across)
        self.slot = min(max(self.cell * shown, title), each)
        self.axis = _axis(self.names, heat, self.column_edges, self.cell, self.slot)


class _Map(NamedTuple):
    """A map in the blocks that are shown: ``(rows, columns)`` each."""

    values: Any
    hidden: Any
    lost: Any

    @classmethod
    def of(cls, heat: Heatmap, fit: _Fit) -> _Map:
        import numpy as np

        seen = joined(heat, fit.row_starts, fit.column_starts)
        hidden = np.zeros(seen.values.shape, bool) if seen.hidden is None else seen.hidden
        if isinstance(heat, Grid):
            hidden = seen.values == 0
        lost = np.isnan(seen.values) & ~hidden
        return cls(np.where(hidden, np.nan, seen.values), hidden, lost)


def _side_by_side(
    maps: Sequence[_Map], titles: Sequence[str], scale: Scale, fit: _Fit, paint: Paint
) -> Iterator[str]:
    """Return maps beside each other, with one column of labels."""
    gap, indent = " " * GAP, " " * (fit.label_width + 2)
    if any(titles):
        heads = (pad(cut(title, fit.slot), fit.slot, left=True) for title in titles)
        yield paint.bold((indent + gap.join(heads)).rstrip())
    yield (indent + gap.join(pad(fit.axis, fit.slot, left=True) for _ in maps)).rstrip()
    blank = " " * (fit.slot - fit.cell * (len(fit.column_edges) - 1))
    shaded = [_shaded(one, scale) for one in maps]
    for n, label in enumerate(fit.labels):
        if fit.halves:
            cells = (_halves(rows[2 * n : 2 * n + 2], fit.cell, paint) for rows in shaded)
        else:
            cells = ("".join(_block(at, fit.cell, paint) for at in rows[n]) for rows in shaded)
        row = gap.join(one + blank for one in cells)
        yield f"{pad(label, fit.label_width, left=True)}  {row}".rstrip()


def _shaded(one: _Map, scale: Scale) -> list[list[float | None]]:
    """Return the places of a map on the scale, NaN where there is none, None where hidden."""
    places = scale.places(one.values).astype(object)
    places[one.hidden] = None
    found: list[list[float | None]] = places.tolist()
    return found


def _halves(rows: Sequence[Sequence[float | None]], cell: int, paint: Paint) -> str:
    """Return two rows in one line."""
    upper, lower = rows if len(rows) > 1 else (rows[0], [None] * len(rows[0]))

    def both(a: float | None, b: float | None) -> str:
        if a is None and b is None:
            return _block(None, cell, paint)
        if a != a or b != b:
            return _block(math.nan, cell, paint)
        return paint.halves(a, b) * cell

    return "".join(map(both, upper, lower))


def _block(place: float | None, cell: int, paint: Paint) -> str:
    if place is None:
        return HIDDEN + " " * (cell - 1)
    if place != place:
        return LOST * cell
    return paint.cell(" " * cell, place) if paint.colors else plain(place) * cell


def _causal(heat: Heatmap) -> bool:
    """Whether nothing is seen past the diagonal, from either corner, and something is hidden."""
    import numpy as np

    assert heat.hidden is not None
    rows = np.asarray(heat.row_positions or range(len(heat.row_labels)))
    columns = np.asarray(heat.column_positions or range(len(heat.column_labels)))
    last = rows[np.asarray(heat.row_edges[1:]) - 1]
    first = columns[np.asarray(heat.column_edges[:-1])]
    ahead = first[None] > last[:, None] + max(int(columns[-1]) - int(rows[-1]), 0)
    return bool(ahead.any() and heat.hidden[ahead].all())


def _blocks(edges: Sequence[int], most: int) -> tuple[list[int], Sequence[int]]:
    """Return where blocks begin so that at most ``most`` remain, and their edges."""
    count = len(edges) - 1
    if count <= most:
        return list(range(count)), edges
    starts = [count * k // most for k in range(most)]
    return starts, [*(edges[start] for start in starts), edges[-1]]


def _block_labels(heat: Heatmap, edges: Sequence[int], together: int) -> list[str]:
    """Return the label of each line: a name, or the range of positions it stands for."""
    at = heat.row_positions or range(len(heat.row_labels))
    labels = []
    for k in range(0, len(edges) - 1, together):
        start, stop = edges[k], edges[min(k + together, len(edges) - 1)]
        if stop - start == 1:
            labels.append(cut(visible(heat.row_labels[start]), LONGEST))
        else:
            labels.append(f"{at[start]}–{at[stop - 1]}")
    return labels


def _cell_width(names: Sequence[str], shown: int, room: int, across: int) -> int:
    if shown < across or 2 * shown > room:
        return 1
    longest = min(max((wide(n) for n in names), default=1), 8) + 1
    return max(2, min(longest, room // shown))


def _axis(names: Sequence[str], heat: Heatmap, edges: Sequence[int], cell: int, room: int) -> str:
    """Return the labels over the columns, or the position of every few columns."""
    count = len(edges) - 1
    if cell >= 4 and names:
        return "".join(pad(cut(names[k], cell - 1), cell, left=True) for k in range(count))
    at = heat.column_positions or range(len(heat.column_labels))
    ticks = [str(at[edge]) for edge in edges[:-1]]
    longest = max(map(len, ticks)) + 1
    every = next(n for n in (1, 5, 10, 20, 50) if n * cell >= longest or n == 50)
    line = "".join(tick.ljust(every * cell) for tick in ticks[::every]).rstrip()
    return line if len(line) <= room else line.rpartition(" ")[0].rstrip()


def _tell(heat: Heatmap, edges: Sequence[int]) -> bool:
    """Whether columns have names that the axis had no room for and the rows don't show."""
    if len(edges) - 1 < len(heat.column_labels) or len(edges) > 64:
        return False
    at = heat.column_positions or range(len(heat.column_labels))
    return list(heat.column_labels) != [str(n) for n in at]


def grid_lines(grid: Grid, paint: Paint, width: int, height: int) -> Iterator[str]:
    """Return a mask as marks; where it is larger than the screen, a mark stands for a block."""
    row_starts, row_edges = _blocks(grid.row_edges, height)
    labels = _block_labels(grid, row_edges, 1)
    label_width = max(wide(text) for text in (*labels, grid.title)) + 3
    starts, column_edges = _blocks(grid.column_edges, max(width - label_width, 1))
    values = joined(grid, row_starts, starts).values
    count, across = len(column_edges) - 1, len(grid.column_labels)
    names = [cut(visible(text), 8) for text in grid.column_labels] if count == across else []
    gaps = 3 if sum(max(wide(n), 3) + 3 for n in names) <= width - label_width else 1
    columns = [max(wide(name), 3 if gaps == 3 else 1) for name in names]
    if not names or sum(columns) + gaps * count > width - label_width:
        names, columns, gaps = [], [1] * count, int(2 * count <= width - label_width)
    if names:
        head = (" " * gaps).join(_middle(n, w) for n, w in zip(names, columns, strict=True))
    else:
        head = _axis([], grid, column_edges, 1 + gaps, width - label_width)
    yield (paint.bold(pad(grid.title, label_width, left=True)) + head).rstrip()
    for label, row in zip(labels, values, strict=True):
        marks = (
            _middle(paint.shade(mark, share), w, 1)
            for mark, share, w in zip(map(_mark, row), row, columns, strict=True)
        )
        yield (pad(label, label_width, left=True) + (" " * gaps).join(marks)).rstrip()
    if (len(values), count) != (len(grid.row_labels), across):
        said = f"each mark is a block: {KEPT} all, {SOME} some, {HIDDEN} none kept"
        yield from map(paint.dim, flow(said, width))


def _mark(share: float) -> str:
    return KEPT if share >= 1 else SOME if share > 0 else HIDDEN


def _middle(text: str, width: int, size: int | None = None) -> str:
    room = width - (wide(text) if size is None else size)
    return " " * (room // 2) + text + " " * (room - room // 2)
