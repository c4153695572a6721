"""The results of `attncli compute` as one tidy table, for CSV."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from attncli.attention.problem import STAGES
from attncli.attention.view import Labels, View
from attncli.errors import InputError
from attncli.measures.statistic import flat_names, flat_values, of_head
from attncli.reports.blocks import Records
from attncli.reports.labels import token
from attncli.reports.matrices import strongest
from attncli.reports.selection import Selection
from attncli.studies.attend import Result

Array = np.ndarray[Any, np.dtype[Any]]


def records_of(
    result: Result,
    labels: Labels,
    view: View,
    chosen: Selection,
    include: Collection[str],
    found: Mapping[str, Any],
) -> Records:
    """Return the table of ``--format csv``: a row a head, unless --top or --include say what.

    A row a cell for stages, a row a query for lse and row_statistics, a row a channel for output.
    """
    cells = {*STAGES} & {*include}
    rows = {"lse", "row_statistics"} & {*include}
    channels = {"output"} & {*include}
    kinds = [bool(cells or view.top is not None), bool(rows), bool(channels)]
    if sum(kinds) > 1 or {*include} - cells - rows - channels or (cells and view.top is not None):
        asked = [*include, *(["--top"] if view.top is not None else [])]
        raise InputError(
            f"one CSV table cannot hold {', '.join(asked)}",
            f"it holds {', '.join(STAGES)}; or lse and row_statistics; or output; or --top. "
            "--json and -o FILE.npz hold anything",
        )
    make: Callable[..., Records] = _head_records
    for kind, maker in zip(kinds, (_cell_records, _row_records, _channel_records), strict=True):
        if kind:
            make = maker
    return make(result, labels, view, chosen, include, found)


def _head_records(
    result: Result, labels: Labels, view: View, chosen: Selection, include: Any, found: Any
) -> Records:
    rows = ([b, h, *flat_values(of_head(found, b, h))] for b, h in chosen.pairs)
    return Records(["batch", "head", *flat_names(found)], rows)


def _cell_records(
    result: Result, labels: Labels, view: View, chosen: Selection, include: Any, found: Any
) -> Records:
    problem = result.problem
    stages = [name for name in STAGES if name in include] or ["weights"]
    one = {"weights": "weight", "scores": "score"}
    columns = [one.get(name, name) for name in stages]

    def cells() -> Iterator[tuple[int, int, int, int, list[float]]]:
        for b, h in chosen.pairs:
            if view.top is not None:
                best = strongest(problem, b, h, chosen.rows, chosen.keys, view.top)
                yield from ((b, h, i, j, [w]) for i, row in best for j, w in row)
                continue
            whole = [result.attended.stages[name][b, h] for name in stages]
            for i in chosen.rows:
                lines = [matrix[i].tolist() for matrix in whole]
                yield from ((b, h, i, j, [line[j] for line in lines]) for j in chosen.keys)

    rows = (
        [b, h, i, j, _name(labels.query, b, i), _name(labels.key, b, j), *values]
        for b, h, i, j, values in cells()
    )
    head = ["batch", "head", "query", "key", "query_token", "key_token"]
    return Records([*head, *columns], rows)


def _row_records(
    result: Result, labels: Labels, view: View, chosen: Selection, include: Any, found: Any
) -> Records:
    arrays: dict[str, Array] = {"lse": result.attended.lse} if "lse" in include else {}
    arrays |= (result.row_values or {}) if "row_statistics" in include else {}
    rows = (
        [b, h, i, _name(labels.query, b, i), *(a[b, h, i].item() for a in arrays.values())]
        for b, h in chosen.pairs
        for i in chosen.rows
    )
    return Records(["batch", "head", "query", "query_token", *arrays], rows)


def _channel_records(
    result: Result, labels: Labels, view: View, chosen: Selection, include: Any, found: Any
) -> Records:
    output = result.attended.output
    rows = (
        [b, h, i, _name(labels.query, b, i), d, value]
        for b, h in chosen.pairs
        for i in chosen.rows
        for d, value in enumerate(output[b, h, i].tolist())
    )
    return Records(["batch", "head", "query", "query_token", "channel", "output"], rows)


def _name(names: tuple[tuple[str, ...], ...] | None, b: int, index: int) -> str:
    return token(names, b, index) if names else ""
