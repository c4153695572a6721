"""Parts of a report on attention: which part is meant, excerpts, strongest keys, maps, stability.

Nothing here makes the ``(Lq, Lk)`` matrix: an excerpt computes its own rows, a map goes through
them in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from attncli.backends import Progress
from attncli.errors import InputError, TooLarge
from attncli.masks import Extent
from attncli.problem import Family, Problem
from attncli.report import Column, Gap, Heatmap, Labels, Table, Text, View
from attncli.run import Result, stages_of

Array = np.ndarray[Any, np.dtype[Any]]
Indices = Sequence[int]

EDGE_ROWS = 5  # shown at each end of a long matrix
EDGE_COLUMNS = 40  # more than fit on a screen: the window chooses among them
WHOLE_ROWS = 12
EDGE_HEADS = 16
PRINTABLE = 4_000_000  # cells of a table, not more
CHUNK = 1 << 22  # cells computed at once
MAP_BLOCKS = 512  # resolution of a map before the window fits it to the screen


@dataclass(frozen=True)
class Selection:
    """The indices a View means; ``(batch, head)`` pairs are ``pairs`` for whole-head tables.

    ``shown`` are the pairs whose matrices are printed: the first unless more were asked for.
    """

    batch: Indices
    head: Indices
    rows: Indices
    keys: Indices
    shown: tuple[tuple[int, int], ...]

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every selected (batch, head)."""
        return product(self.batch, self.head)


def select(problem: Problem, view: View) -> Selection:
    """Return the selected indices; InputError for one that does not exist."""
    sizes = {
        "batch": (problem.batch, "batch elements"),
        "head": (problem.heads, "heads"),
        "rows": (problem.queries, "queries"),
        "keys": (problem.keys, "keys"),
    }
    chosen: dict[str, Indices] = {}
    for name, (size, things) in sizes.items():
        wanted: Indices | None = getattr(view, name)
        for index in wanted or ():
            if not 0 <= index < size:
                raise InputError(
                    f"--{name} {index} does not exist: there are {size} {things}",
                    f"choose from 0 to {size - 1}" if size else None,
                )
        chosen[name] = range(size) if wanted is None else wanted
    if view.top is not None and view.top < 1:
        raise InputError(f"--top is {view.top}", "it must be at least 1")
    first_batch = chosen["batch"] if view.batch is not None else chosen["batch"][:1]
    first_head = chosen["head"] if view.head is not None else chosen["head"][:1]
    return Selection(**chosen, shown=tuple(product(first_batch, first_head)))


def label(names: tuple[tuple[str, ...], ...] | None, b: int, index: int) -> str:
    """Return the token at a position of a batch element, or the position itself."""
    if names:
        own = names[b if len(names) > 1 else 0]
        if index < len(own):
            return own[index]
    return str(index)


def ranges(indices: Indices) -> str:
    """Return [0, 1, 2, 7] as '0–2, 7'."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def where(problem: Problem | Extent, b: int, h: int) -> str:
    """Return ' · batch 0 · head 3', without what there is only one of."""
    batch = f" · batch {b}" if problem.batch > 1 else ""
    return batch + (f" · head {h}" if problem.heads > 1 else "")


def by_head(family: Family, output: Array, heads: int) -> Array:
    """Return ``(B, H, Lq, Dv)`` of an output in its shape family; the inverse of ``restore``."""
    if family.packed:
        output = output.reshape(-1, *output.shape[-2:]) if output.ndim > 2 else output[None]
        width = output.shape[-1] // heads if heads else 0
        return output.reshape(*output.shape[:2], heads, width).swapaxes(1, 2)  # (B, H, Lq, Dv)
    output = output.reshape((1,) * (4 - output.ndim) + output.shape)
    return output.swapaxes(1, 2) if family.blhd else output


def excerpt(indices: Indices, whole: bool, limit: int, edge: int) -> tuple[Array, Gap | None]:
    """Return the indices to show, all or those at both ends, and what is left out between."""
    if whole or len(indices) <= limit:
        return np.asarray(indices, np.int64), None
    ends = [*indices[:edge], *indices[len(indices) - edge :]]
    return np.asarray(ends, np.int64), Gap(edge, len(indices) - 2 * edge)


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
    for start, stages in chunks(problem, b, h, rows):
        part = stages[name]
        found[start : start + len(part)] = part[:, np.asarray(keys, np.int64)]
    return found


def chunks(
    problem: Problem, b: int, h: int, rows: Indices
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Return the stages of some rows, a chunk at a time, each with where its first row stands."""
    step = max(1, CHUNK // max(1, problem.keys))
    for start in range(0, len(rows), step):
        yield start, stages_of(problem, b, h, np.asarray(rows[start : start + step], np.int64))


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
    output = by_head(problem.family, result.output, problem.heads)
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
    for start, stages in chunks(problem, b, h, rows):
        weights, keep = stages["weights"][:, some], stages["keep"][:, some]
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
        for start, stages in chunks(problem, b, h, chosen.rows):
            yield start, np.maximum.reduceat(stages["weights"][:, some], edges[:-1], axis=1)
        return
    step = max(1, CHUNK // max(1, problem.keys))
    for start in range(0, len(chosen.rows), step):
        rows = np.asarray(chosen.rows[start : start + step], np.int64)
        spans = problem.mask.spans(b, h, int(rows.min()), int(rows.max()) + 1)
        pooled = np.zeros((len(rows), len(edges) - 1))
        if spans:
            keys = np.concatenate([np.arange(*span) for span in spans])
            weights = stages_of(problem, b, h, rows, keys)["weights"]
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


def stability_table(
    problem: Problem, found: Mapping[str, Any], view: View, chosen: Selection
) -> Table:
    """Return a row a head: medians and p05–p95 over its rows, or the values of its only row."""
    pairs = list(chosen.pairs)
    shown, gap = excerpt(range(len(pairs)), view.full, 3 * EDGE_HEADS, EDGE_HEADS)
    many = int(np.max(found["rows_with_choice"], initial=0)) > 1
    columns, cells = [], []
    for column, read in _stability_columns(found, many):
        columns.append(column)
        cells.append([read(*pairs[n]) for n in shown])
    return Table(
        title="Stability",
        columns=columns,
        rows=[list(row) for row in zip(*cells, strict=True)],
        labels=[_head_name(problem, *pairs[n]) for n in shown],
        part=f"{len(shown)} of {len(pairs)} heads" if gap else "",
        hint="--head, --batch, --full, --format csv" if gap else "",
        row_gap=gap,
        whole=view.full,
    )


def _head_name(problem: Problem, b: int, h: int) -> str:
    if problem.batch == 1:
        return f"head {h}"
    return f"batch {b} head {h}" if problem.heads > 1 else f"batch {b}"


def _stability_columns(found: Mapping[str, Any], many: bool) -> Iterator[tuple[Column, Any]]:
    """Return the columns with a function (b, h) → cell, in order; ``keep`` says how telling."""

    def one(name: str, quantile: str = "median") -> Any:
        values = found[name][quantile] if isinstance(found[name], Mapping) else found[name]
        return lambda b, h: None if np.isnan(values[b, h]) else values[b, h].item()

    def two(low: tuple[str, str], high: tuple[str, str]) -> Any:
        first, second = one(*low), one(*high)

        def cell(b: int, h: int) -> tuple[float, float] | None:
            ends = first(b, h), second(b, h)
            return None if None in ends else ends

        return cell

    def spread(name: str) -> Any:
        return two((name, "p05"), (name, "p95"))

    median = "median" if many else ""
    yield Column("entropy", sub=median, keep=9), one("entropy")
    if many:
        yield Column("", "range", "p05–p95", keep=7), spread("entropy")
    yield Column("effective keys", sub=median, keep=6), one("effective_keys")
    yield Column("max weight", sub=median, keep=8), one("max_weight")
    if many:
        yield Column("", "range", "p05–p95", keep=3), spread("max_weight")
    share = "of rows" if many else ""
    yield Column("saturated", "percent", share, keep=8), one("saturated_share")
    yield Column("max logit", keep=8), one("logit_max")
    yield Column("logit std", keep=4), one("logit_std")
    yield Column("Jacobian trace", sub=median, keep=3), one("jacobian_trace")
    yield Column("Frobenius", sub=median, keep=2), one("jacobian_frobenius")
    bounds = two(("jacobian_spectral_low", "median"), ("jacobian_spectral_high", "median"))
    yield Column("spectral bounds", "range", sub=median and "medians", keep=1), bounds
    yield Column("first key", sub=median, keep=2), one("first_key_mass")
    for title, name in (("dead rows", "dead_rows"), ("not finite", "nonfinite")):
        some = bool(np.any(found[name]))
        if some or name == "dead_rows":
            yield Column(title, "count", keep=10 if some else 0), one(name)


def sentences(*lines: str, indent: str = "") -> Text:
    """Return lines broken at blanks, so that they fit 80 columns."""
    from textwrap import wrap

    whole = [line.replace(" %", "~%") for line in lines]  # a number stays with its unit
    parts = [part for line in whole for part in wrap(line, 79, subsequent_indent=indent)]
    return Text("", [part.replace("~%", " %") for part in parts])
