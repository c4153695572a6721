"""Matrices as maps: weights in shades, masks as marks, in blocks where they outgrow the screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from attncli.render.cells import cut, flow, numbers, pad, visible, wide, wrap
from attncli.render.paint import PLAIN, RAMP, Paint, level
from attncli.reports.blocks import Grid, Heatmap

KEPT, SOME, HIDDEN = "■", "▒", "·"


def heatmap_lines(heat: Heatmap, paint: Paint, width: int, height: int) -> Iterator[str]:
    """Return a map as shaded cells; where it is larger than the screen, of the largest in blocks.

    On a colour terminal two rows share a line when they would not fit otherwise.
    """
    size, across = len(heat.row_labels), len(heat.column_labels)
    if not heat.values.size:
        yield paint.bold(heat.title)
        yield f"{size} × {across}: nothing to show"
        return
    halves = bool(paint.colors) and size > height
    values, row_edges = _pooled(heat.values, heat.row_edges, height * (2 if halves else 1))
    labels = _block_labels(heat, row_edges, 2 if halves else 1)
    label_width = max(wide(text) for text in labels)
    room = width - label_width - 2
    turned, column_edges = _pooled(values.T, heat.column_edges, room)
    values = turned.T
    names = [visible(text) for text in heat.column_labels] if len(column_edges) <= room else []
    cell = _cell_width(names, len(column_edges) - 1, room, across)
    yield paint.bold(heat.title)
    yield (" " * (label_width + 2) + _axis(names, heat, column_edges, cell)).rstrip()
    top = float(values[values == values].max(initial=0)) or 1.0
    for n, label in enumerate(labels):
        if halves:
            upper = values[2 * n]
            lower = values[2 * n + 1] if 2 * n + 1 < len(values) else [0.0] * len(upper)
            row = "".join(paint.halves(a / top, b / top) for a, b in zip(upper, lower, strict=True))
        else:
            row = "".join(_block(v / top, cell, paint) for v in values[n])
        yield f"{pad(label, label_width, left=True)}  {row}".rstrip()
    yield from _legend(heat, values.shape, top, width, paint)
    if cell < 4 and _tell(heat, column_edges):
        at = heat.column_positions or range(len(names))
        named = [f"{n} {name}" for n, name in zip(at, names, strict=True)]
        yield from map(paint.dim, wrap(["keys:", *named], "  ", width))


def _pooled(values: Any, edges: Sequence[int], most: int) -> tuple[Any, Sequence[int]]:
    """Return the largest of neighbouring rows so that at most ``most`` remain, and their edges."""
    import numpy as np

    count = len(values)
    if count <= most:
        return values, edges
    starts = [count * k // most for k in range(most)]
    pooled = np.maximum.reduceat(values, starts, axis=0)
    return pooled, [*(edges[start] for start in starts), edges[-1]]


def _block_labels(heat: Heatmap, edges: Sequence[int], together: int) -> list[str]:
    """Return the label of each line: a name, or the range of positions it stands for."""
    at = heat.row_positions or range(len(heat.row_labels))
    labels = []
    for k in range(0, len(edges) - 1, together):
        start, stop = edges[k], edges[min(k + together, len(edges) - 1)]
        if stop - start == 1:
            labels.append(cut(visible(heat.row_labels[start]), 16))
        else:
            labels.append(f"{at[start]}–{at[stop - 1]}")
    return labels


def _cell_width(names: Sequence[str], shown: int, room: int, across: int) -> int:
    if shown < across or 2 * shown > room:
        return 1
    longest = min(max((wide(n) for n in names), default=1), 8) + 1
    return max(2, min(longest, room // shown))


def _axis(names: Sequence[str], heat: Heatmap, edges: Sequence[int], cell: int) -> str:
    """Return the labels over the columns, or the position of every few columns."""
    count = len(edges) - 1
    if cell >= 4 and names:
        return "".join(pad(cut(names[k], cell - 1), cell, left=True) for k in range(count))
    at = heat.column_positions or range(len(heat.column_labels))
    ticks = [str(at[edge]) for edge in edges[:-1]]
    longest = max(map(len, ticks)) + 1
    every = next(n for n in (1, 5, 10, 20, 50) if n * cell >= longest or n == 50)
    return "".join(tick.ljust(every * cell) for tick in ticks[::every])


def _tell(heat: Heatmap, edges: Sequence[int]) -> bool:
    """Whether columns have names that the axis had no room for and the rows don't show."""
    if len(edges) - 1 < len(heat.column_labels) or len(edges) > 64:
        return False
    at = heat.column_positions or range(len(heat.column_labels))
    return list(heat.column_labels) != [str(n) for n in at]


def _block(share: float, cell: int, paint: Paint) -> str:
    if share != share:
        return "?" * cell
    if paint.colors:
        return paint.blank(cell, level(share, len(RAMP)))
    return PLAIN[level(share, len(PLAIN))] * cell


def _legend(
    heat: Heatmap, shape: tuple[int, ...], top: float, width: int, paint: Paint
) -> Iterator[str]:
    steps = len(PLAIN)
    largest = numbers([top])[0]
    if paint.colors:
        ramp = "".join(paint.blank(2, step) for step in range(len(RAMP)))
        yield f"0 {ramp} {largest}"
    else:
        starts = numbers([top * (k / steps) ** 2 for k in range(1, steps)], spare=True)
        shades = [f"{PLAIN[k + 1]} from {start}" for k, start in enumerate(starts)]
        yield from wrap([*shades, f"largest {largest}"], "   ", width)
    size = (len(heat.row_labels), len(heat.column_labels))
    if shape != size:
        high, broad = (math.ceil(a / b) for a, b in zip(size, shape, strict=True))
        said = f"{size[0]} × {size[1]} weights: each cell is the largest of up to {high} × {broad}"
        yield from map(paint.dim, flow(said, width))
    for note in heat.notes:
        yield from map(paint.dim, flow(note, width))


def grid_lines(grid: Grid, paint: Paint, width: int, height: int) -> Iterator[str]:
    """Return a mask as marks; where it is larger than the screen, a mark stands for a block."""
    values, row_edges = _averaged(grid.values, grid.row_edges, height)
    labels = _block_labels(grid, row_edges, 1)
    label_width = max(wide(text) for text in (*labels, grid.title)) + 3
    turned, column_edges = _averaged(values.T, grid.column_edges, width - label_width)
    values = turned.T
    count, across = len(column_edges) - 1, len(grid.column_labels)
    names = [cut(visible(text), 8) for text in grid.column_labels] if count == across else []
    gaps = 3 if sum(max(wide(n), 3) + 3 for n in names) <= width - label_width else 1
    columns = [max(wide(name), 3 if gaps == 3 else 1) for name in names]
    if not names or sum(columns) + gaps * count > width - label_width:
        names, columns, gaps = [], [1] * count, int(2 * count <= width - label_width)
    if names:
        head = (" " * gaps).join(_middle(n, w) for n, w in zip(names, columns, strict=True))
    else:
        head = _axis([], grid, column_edges, 1 + gaps)
    yield (paint.bold(pad(grid.title, label_width, left=True)) + head).rstrip()
    for label, row in zip(labels, values, strict=True):
        marks = (
            _middle(paint.shade(mark, share), w, 1)
            for mark, share, w in zip(map(_mark, row), row, columns, strict=True)
        )
        yield (pad(label, label_width, left=True) + (" " * gaps).join(marks)).rstrip()
    if (len(values), count) != (len(grid.row_labels), across):
        yield paint.dim(f"each mark is a block: {KEPT} all, {SOME} some, {HIDDEN} none kept")


def _averaged(values: Any, edges: Sequence[int], most: int) -> tuple[Any, Sequence[int]]:
    """Return the share kept of neighbouring rows so that at most ``most`` remain, their edges."""
    import numpy as np

    count = len(values)
    if count <= most:
        return values, edges
    starts = [count * k // most for k in range(most)]
    sizes = np.diff(edges)[:, None]
    total = np.add.reduceat(values * sizes, starts, axis=0)
    merged = [edges[s] for s in starts] + [edges[-1]]
    return total / np.diff(merged)[:, None], merged


def _mark(share: float) -> str:
    return KEPT if share >= 1 else SOME if share > 0 else HIDDEN


def _middle(text: str, width: int, size: int | None = None) -> str:
    room = width - (wide(text) if size is None else size)
    return " " * (room // 2) + text + " " * (room - room // 2)
