"""The stability table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import View
from attncli.reports.blocks import Column, Table
from attncli.reports.selection import Selection, excerpt

EDGE_HEADS = 16


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
