"""Matrices as tables: weights, outputs, strongest keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.errors import TooLarge
from attncli.reports.blocks import Column, Gap, Table
from attncli.reports.labels import label, ranges, where
from attncli.reports.selection import Indices, Selection, excerpt
from attncli.studies.attend import Result

Array = np.ndarray[Any, np.dtype[Any]]

EDGE_ROWS = 5  # shown at each end of a long matrix
EDGE_COLUMNS = 40  # more than fit on a screen: the window chooses among them
WHOLE_ROWS = 12
PRINTABLE = 4_000_000  # cells of a table, not more
CHUNK = 1 << 22  # cells computed at once


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


def rows_at_once(problem: Problem) -> int:
    """Return how many rows of all keys are computed at once."""
    return max(1, CHUNK // max(1, problem.keys))


def chunks(
    problem: Problem, b: int, h: int, rows: Indices
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Return the stages of some rows, a chunk at a time, each with where its first row stands."""
    step = rows_at_once(problem)
    for start in range(0, len(rows), step):
        yield start, stages(problem, b, h, np.asarray(rows[start : start + step], np.int64))


def _row_part(shown: Array, total: int) -> str:
    if len(shown) == total:
        return ""
    return f"row{'s' if len(shown) != 1 else ''} {ranges(shown.tolist())} of {total}"


def not_shown(problem: Problem, view: View, chosen: Selection) -> tuple[str, list[str]]:
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
    hidden, flags = not_shown(problem, view, chosen) if last else ("", [])
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
