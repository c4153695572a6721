"""Weights as maps, however large: each cell the largest of a block."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.measures.peaks import Blocks, peaks
from attncli.reports.blocks import Heatmap, head_key
from attncli.reports.labels import Names, where
from attncli.reports.matrices import chunks, not_shown
from attncli.reports.selection import Indices, Selection
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]

MAP_BLOCKS = 512  # resolution of a map before the window fits it to the screen
EXACT = 1 << 20  # cells up to which the definition makes a map


def heatmaps(
    problem: Problem,
    lse: Array | None,
    labels: Labels,
    view: View,
    chosen: Selection,
    progress: Progress | None = None,
    most: int | None = None,
) -> list[Heatmap]:
    """Return maps of the heads shown, each at most ``most`` (MAP_BLOCKS) blocks wide and high.

    lse: ``(B, H, Lq)``, sink included; None of weights alone.
    """
    most = most or MAP_BLOCKS
    rows = Blocks.of(0, len(chosen.rows), most)
    keys = Blocks.of(0, len(chosen.keys), most)
    ranges = _is_range(chosen.rows) and _is_range(chosen.keys)
    if lse is not None and ranges and rows.stop * keys.stop > EXACT:
        i, j = chosen.rows[0], chosen.keys[0]
        values, seen = peaks(
            problem, lse, chosen.shown, Blocks(i, i + rows.stop, rows.size),
            Blocks(j, j + keys.stop, keys.size), progress=progress,
        )  # fmt: skip
    else:
        values, seen = _exact_peaks(problem, chosen, rows, keys, progress)
    hidden, flags = not_shown(problem, view, chosen)
    elements = {b for b, _ in chosen.shown}
    names = {b: (Names(labels.query, b, chosen.rows), Names(labels.key, b, chosen.keys))
             for b in elements}  # fmt: skip
    return [
        Heatmap(
            title="Weights" + where(problem, b, h),
            values=values[n],
            hidden=~seen[n],
            row_edges=rows.edges,
            column_edges=keys.edges,
            row_labels=names[b][0],
            column_labels=names[b][1],
            row_positions=chosen.rows,
            column_positions=chosen.keys,
            notes=[f"{hidden} ({', '.join(flags)})"]
            if hidden and n == len(chosen.shown) - 1
            else [],
            scale=view.scale_by,
            head=head_key(b, h),
        )
        for n, (b, h) in enumerate(chosen.shown)
    ]


def _is_range(indices: Indices) -> bool:
    return len(indices) > 0 and list(indices) == list(range(indices[0], indices[0] + len(indices)))


def _exact_peaks(
    problem: Problem, chosen: Selection, rows: Blocks, keys: Blocks, progress: Progress | None
) -> tuple[Array, Array]:
    """Return what ``peaks`` does of any rows and keys, by the definition."""
    shape = len(chosen.shown), len(rows), len(keys)
    exact = np.prod(shape) <= EXACT
    values, seen = np.zeros(shape, float if exact else np.float32), np.zeros(shape, bool)
    some, firsts = np.asarray(chosen.keys, np.int64), keys.edges[:-1]
    for n, (b, h) in enumerate(chosen.shown if values.size else ()):
        for start, stage in chunks(problem, b, h, chosen.rows):
            weights = np.maximum.reduceat(stage["weights"][:, some], firsts, axis=1)
            visible = np.logical_or.reduceat(stage["keep"][:, some], firsts, axis=1)
            block = np.arange(start, start + len(weights)) // rows.size
            np.maximum.at(values[n], block, weights)
            np.logical_or.at(seen[n], block, visible)
            if progress:
                done = (start + len(weights)) / len(chosen.rows)
                progress((n + done) / len(chosen.shown))
    return values, seen
