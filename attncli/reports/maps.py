"""Weights as maps, however large: each cell the largest of a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.reports.blocks import Heatmap
from attncli.reports.labels import Names, where
from attncli.reports.matrices import chunks, not_shown, rows_at_once
from attncli.reports.selection import Selection
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]

MAP_BLOCKS = 512  # resolution of a map before the window fits it to the screen


def heatmaps(
    problem: Problem,
    labels: Labels,
    view: View,
    chosen: Selection,
    progress: Progress | None = None,
) -> list[Heatmap]:
    """Return maps of the heads shown, each at most MAP_BLOCKS blocks wide and high."""
    maps = []
    hidden, flags = not_shown(problem, view, chosen)
    for n, (b, h) in enumerate(chosen.shown):
        row_edges, column_edges = _edges(len(chosen.rows)), _edges(len(chosen.keys))
        values = np.zeros((len(row_edges) - 1, len(column_edges) - 1))
        if values.size:
            block = np.repeat(np.arange(len(row_edges) - 1), np.diff(row_edges))
            for start, pooled in _pooled_rows(problem, b, h, view, chosen, column_edges):
                np.maximum.at(values, block[start : start + len(pooled)], pooled)
                if progress:
                    done = (start + len(pooled)) / len(chosen.rows)
                    progress((n + done) / len(chosen.shown))
        last = n == len(chosen.shown) - 1
        maps.append(
            Heatmap(
                title="Weights" + where(problem, b, h),
                values=values,
                row_edges=row_edges,
                column_edges=column_edges,
                row_labels=Names(labels.query, b, chosen.rows),
                column_labels=Names(labels.key, b, chosen.keys),
                row_positions=chosen.rows,
                column_positions=chosen.keys,
                notes=[f"{hidden} ({', '.join(flags)})"] if hidden and last else [],
            )
        )
    return maps


def _pooled_rows(
    problem: Problem, b: int, h: int, view: View, chosen: Selection, edges: Sequence[int]
) -> Iterator[tuple[int, Array]]:
    """Yield (where a chunk of rows starts, the largest weight of each block of keys)."""
    column = np.repeat(np.arange(len(edges) - 1), np.diff(edges))  # the block of each chosen key
    if view.keys is not None:
        some = np.asarray(chosen.keys, np.int64)
        for start, stage in chunks(problem, b, h, chosen.rows):
            yield start, np.maximum.reduceat(stage["weights"][:, some], edges[:-1], axis=1)
        return
    step = rows_at_once(problem)
    for start in range(0, len(chosen.rows), step):
        rows = np.asarray(chosen.rows[start : start + step], np.int64)
        spans = problem.mask.spans(b, h, int(rows.min()), int(rows.max()) + 1)
        pooled = np.zeros((len(rows), len(edges) - 1))
        if spans:
            keys = np.concatenate([np.arange(*span) for span in spans])
            weights = stages(problem, b, h, rows, keys)["weights"]
            blocks, firsts = np.unique(column[keys], return_index=True)
            pooled[:, blocks] = np.maximum.reduceat(weights, firsts, axis=1)
        yield start, pooled


def _edges(size: int) -> list[int]:
    blocks = min(size, MAP_BLOCKS)
    return [size * k // blocks for k in range(blocks + 1)] if blocks else [0]
