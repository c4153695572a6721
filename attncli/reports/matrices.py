"""Matrices as tables and maps: weights, outputs, strongest keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.errors import TooLarge
from attncli.reports.blocks import Column, Gap, Heatmap, Table
from attncli.reports.parts import Indices, Selection, excerpt, label, ranges, where
from attncli.resources import Progress
from attncli.studies.attend import Result

Array = np.ndarray[Any, np.dtype[Any]]

EDGE_ROWS = 5  # shown at each end of a long matrix
EDGE_COLUMNS = 40  # more than fit on a screen: the window chooses among them
WHOLE_ROWS = 12
PRINTABLE = 4_000_000  # cells of a table, not more
CHUNK = 1 << 22  # cells computed at once
MAP_BLOCKS = 512  # resolution of a map before the window fits it to the screen


def stage_of(
    problem: Problem, b: int, h: int, rows: Indices, keys: Indices, name: str = "weights"
) -> Array:
    """Return one stage of some rows and keys, ``(rows, keys)`` float64, a few rows at a time."""
    if len(rows) * len(keys) > PRINTABLE:
        raise TooLarge(
            f"{len(rows)} × {len(keys)} {name} are too many to print",
            "choose a part with --rows and --keys, or see all of them with --heatmap",
        )
    found = np.empty((len(rows), len(keys)))
    for start, stage in chunks(problem, b, h, rows):
        part = stage[name]
        found[start : start + len(part)] = part[:, np.asarray(keys, np.int64)]
    return found


def chunks(
    problem: Problem, b: int, h: int, rows: Indices
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Return the stages of some rows, a chunk at a time, each with where its first row stands."""
    step = max(1, CHUNK // max(1, problem.keys))
    for start in range(0, len(rows), step):
        yield start, stages(problem, b, h, np.asarray(rows[start : start + step], np.int64))


def _row_part(shown: Array, total: int) -> str:
    if len(shown) == total:
        return ""
    return f"row{'s' if len(shown) != 1 else ''} {ranges(shown.tolist())} of {total}"


def _not_shown(problem: Problem, view: View, chosen: Selection) -> tuple[str, list[str]]:
    """Return what is said about heads and batch elements not shown, and how to see them."""
    heads = problem.heads - len({h for _, h in chosen.shown})
    batch = problem.batch - len({b for b, _ in chosen.shown})
    facts = [f"{heads} of {problem.heads} heads"] if heads else []
    facts += [f"{batch} of {problem.batch} batch elements"] if batch and view.batch is None else []
    flags = (["--head"] if heads else []) + (["--batch"] if len(facts) > bool(heads) else [])
    return (f"{', '.join(facts)} not shown" if facts else ""), flags


def weights_tables(problem: Problem, labels: Labels, view: View, chosen: Selection) -> list[Table]:
    """Return the weights of the heads shown: whole, or their edges."""
    rows, row_gap = _rows(chosen, view)
    keys, column_gap = excerpt(chosen.keys, view.full, 2 * EDGE_COLUMNS, EDGE_COLUMNS)
    tables = []
    for b, h in chosen.shown:
        last = (b, h) == chosen.shown[-1]
        tables.append(
            Table(
                title="Weights" + where(problem, b, h),
                columns=[Column(label(labels.key, b, j), "weight") for j in keys.tolist()],
                rows=stage_of(problem, b, h, rows.tolist(), keys.tolist()).tolist(),
                labels=[label(labels.query, b, i) for i in rows.tolist()],
                row_gap=row_gap,
                column_gap=column_gap,
                matrix=True,
                things="keys",
                whole=view.full,
                **_footer(problem, view, chosen, rows, row_gap, last),
            )
        )
    return tables


def _rows(chosen: Selection, view: View) -> tuple[Array, Gap | None]:
    # rows that were asked for are shown, however many
    return excerpt(chosen.rows, view.full or view.rows is not None, WHOLE_ROWS, EDGE_ROWS)


def _footer(
    problem: Problem, view: View, chosen: Selection, rows: Array, gap: Gap | None, last: bool
) -> dict[str, Any]:
    hidden, flags = _not_shown(problem, view, chosen) if last else ("", [])
    flags += ["--rows"] if gap else []
    if flags:
        flags += ["--top"] if view.top is None else []
        flags += ["--heatmap", "-o"]
    return {
        "part": _row_part(rows, problem.queries),
        "notes": (hidden,) if hidden else (),
        "hint": ", ".join(flags),
    }


def output_tables(result: Result, labels: Labels, view: View, chosen: Selection) -> list[Table]:
    """Return the output of the heads shown: whole, or its edges."""
    problem = result.problem
    output = result.attended.output
    return [
        rows_table("Output" + where(problem, b, h), output[b, h], b, labels, view, chosen)
        for b, h in chosen.shown
    ]


def rows_table(
    title: str, values: Array, b: int, labels: Labels, view: View, chosen: Selection
) -> Table:
    """Return a table of what each query has ``(Lq, N)``: its edges, or the whole."""
    rows, row_gap = _rows(chosen, view)
    channels, column_gap = excerpt(
        range(values.shape[1]), view.full, 2 * EDGE_COLUMNS, EDGE_COLUMNS
    )
    return Table(
        title=title,
        columns=[Column(str(d)) for d in channels.tolist()],
        rows=values[rows][:, channels].astype(np.float64).tolist(),
        labels=[label(labels.query, b, i) for i in rows.tolist()],
        part=_row_part(rows, len(values)),
        row_gap=row_gap,
        column_gap=column_gap,
        matrix=True,
        things="channels",
        whole=view.full,
    )


def strongest(
    problem: Problem, b: int, h: int, rows: Indices, keys: Indices, count: int
) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Return for each row its strongest visible keys, ``(row, [(key, weight), …])``."""
    some = np.asarray(keys, np.int64)
    for start, stage in chunks(problem, b, h, rows):
        weights, keep = stage["weights"][:, some], stage["keep"][:, some]
        order = np.argsort(-np.where(keep, weights, -1), axis=1, kind="stable")[:, :count]
        for n, best in enumerate(order):
            found = [(int(some[j]), float(weights[n, j])) for j in best if keep[n, j]]
            yield int(rows[start + n]), found


def top_tables(problem: Problem, labels: Labels, view: View, chosen: Selection) -> list[Table]:
    """Return the ``--top`` strongest keys of each row of the heads shown."""
    assert view.top is not None
    rows, row_gap = _rows(chosen, view)
    count = min(view.top, len(chosen.keys))
    columns = [Column("", "text"), Column("", "weight")] * count
    tables = []
    for b, h in chosen.shown:
        cells = []
        for _, found in strongest(problem, b, h, rows.tolist(), chosen.keys, count):
            row: list[Any] = []
            for j, weight in found:
                row += [label(labels.key, b, j), weight]
            cells.append(row + [None] * (2 * count - len(row)))
        last = (b, h) == chosen.shown[-1]
        tables.append(
            Table(
                title=f"Top {count} keys" + where(problem, b, h),
                columns=columns,
                rows=cells,
                labels=[label(labels.query, b, i) for i in rows.tolist()],
                row_gap=row_gap,
                whole=view.full,
                fold=2,
                **_footer(problem, view, chosen, rows, row_gap, last),
            )
        )
    return tables


def heatmaps(
    problem: Problem,
    labels: Labels,
    view: View,
    chosen: Selection,
    progress: Progress | None = None,
) -> list[Heatmap]:
    """Return maps of the heads shown, each at most MAP_BLOCKS blocks wide and high."""
    maps = []
    hidden, flags = _not_shown(problem, view, chosen)
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
    step = max(1, CHUNK // max(1, problem.keys))
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


class Names(Sequence[str]):
    """The labels of a selection, made when they are looked at: there may be very many."""

    def __init__(self, names: tuple[tuple[str, ...], ...] | None, b: int, indices: Indices) -> None:
        self._names, self._b, self._indices = names, b, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [label(self._names, self._b, i) for i in self._indices[at]]
        return label(self._names, self._b, self._indices[at])
