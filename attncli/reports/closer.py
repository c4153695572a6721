"""Maps of weights that one can go into: parts of them in smaller blocks, in steps of eight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.measures.peaks import Blocks, peaks
from attncli.reports.blocks import Heatmap
from attncli.reports.labels import Names
from attncli.reports.maps import heatmaps
from attncli.reports.selection import Selection
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]

STEP = 8  # times smaller blocks each time
SIDE = 256  # blocks of a part
PARTS = 2  # of the whole map; each has one of its own inside
MOST = 64  # heads of which there are closer parts


def closer_maps(
    problem: Problem,
    lse: Array,
    labels: Labels,
    view: View,
    chosen: Selection,
    progress: Progress | None = None,
) -> list[Heatmap]:
    """Return maps of the heads shown, as `heatmaps`; where blocks are large, with closer parts.

    lse ``(B, H, Lq)``, sink included.
    """
    maps = heatmaps(problem, lse, labels, view, chosen, progress)
    if len(maps) > MOST:
        return maps
    return [
        one._replace(closer=cache(partial(_closer, problem, lse, one, pair, labels)))
        for one, pair in zip(maps, chosen.shown, strict=True)
    ]


def _closer(
    problem: Problem, lse: Array, heat: Heatmap, head: tuple[int, int], labels: Labels
) -> list[Heatmap]:
    """Return parts of a map where its blocks weigh most, and parts of these."""
    at = heat.row_positions, heat.column_positions
    sizes = [edges[1] if len(edges) > 1 else 1 for edges in (heat.row_edges, heat.column_edges)]
    if max(sizes) == 1 or not all(isinstance(one, range) and one.step == 1 for one in at):
        return []
    starts = [one[0] for one in at if one]
    return _parts(problem, lse, heat, head, labels, sizes, starts, PARTS)


def _parts(
    problem: Problem, lse: Array, heat: Heatmap, head: tuple[int, int], labels: Labels,
    sizes: Sequence[int], starts: Sequence[int], count: int,
) -> list[Heatmap]:  # fmt: skip
    """Return ``count`` parts of a map of blocks of these sizes that starts there, nested ones too.

    Parts are those windows of a regular pattern in which the map weighs most.
    """
    if max(sizes) == 1:
        return []
    finer = [max(1, size // STEP) for size in sizes]
    window = [max(1, SIDE * new // old) for new, old in zip(finer, sizes, strict=True)]
    ends = heat.row_edges[-1] + starts[0], heat.column_edges[-1] + starts[1]
    found: list[Heatmap] = []
    for r, c in _heaviest(np.nan_to_num(heat.values), window, count):
        rows, keys = (
            Blocks(first, min(first + SIDE * new, end), new)
            for first, new, end in zip(
                (starts[0] + r * window[0] * sizes[0], starts[1] + c * window[1] * sizes[1]),
                finer, ends, strict=True,
            )
        )  # fmt: skip
        values, seen = peaks(problem, lse, [head], rows, keys)
        part = Heatmap(
            heat.title, values[0], rows.edges, keys.edges,
            Names(labels.query, head[0], range(rows.start, rows.stop)),
            Names(labels.key, head[0], range(keys.start, keys.stop)),
            range(rows.start, rows.stop), range(keys.start, keys.stop), hidden=~seen[0],
            head=heat.head,
        )  # fmt: skip
        found += [
            part,
            *_parts(problem, lse, part, head, labels, finer, (rows.start, keys.start), 1),
        ]
    return found


def _heaviest(values: Array, window: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return the windows, ``(row, column)`` in windows, whose sums are largest, in their order."""
    sums = values.astype(np.float64)
    for axis, size in enumerate(window):
        sums = np.add.reduceat(sums, np.arange(0, sums.shape[axis], size), axis=axis)
    largest = np.argsort(-sums, axis=None, kind="stable")[:count]
    found = (np.unravel_index(n, sums.shape) for n in sorted(largest.tolist()))
    return [(int(r), int(c)) for r, c in found]
