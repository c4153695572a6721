"""A report as plain data for a page: tables as text, heads with their statistics, figures."""

from __future__ import annotations

import math
import re
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attncli.measures.statistic import STATISTICS, WEIGHTS
from attncli.render.cells import columns_of, cut, escaped, legible
from attncli.reports.blocks import Block, Figure, Grid, Heatmap, Step, Table, Text, head_key
from attncli.reports.picking import map_title

QUANTILES = ("median", "mean", "p05", "p95", "min", "max", "cv")
FEW = ("median", "p05", "p95")  # of very many heads
MANY = 1000
WIDEST = 120  # letters of a cell
SHAPE = re.compile(r",? ``\([^`]*\)``")  # in a docstring; a reader of the page has no arrays
REGISTRY = ChainMap(STATISTICS, WEIGHTS)  # live: statistics register when theirs are imported


def block_of(block: Block) -> dict[str, Any] | None:
    """Return a block as data; None of a map, which a page draws elsewhere."""
    if isinstance(block, Table):
        return {"kind": "table"} | _table(block)
    if isinstance(block, Text):
        return {
            "kind": "text", "title": escaped(block.title), "lines": list(map(escaped, block.lines))
        }  # fmt: skip
    if isinstance(block, Step):
        return {
            "kind": "step", "title": f"{block.number}  {block.name}",
            "formula": escaped(block.formula), "meaning": escaped(block.meaning),
            "table": _table(block.table) if block.table else None,
            "lines": list(map(escaped, block.lines)),
        }  # fmt: skip
    assert isinstance(block, Heatmap | Grid)
    return None


def _table(table: Table) -> dict[str, Any]:
    columns = columns_of(table)
    shades = table.shades
    if shades is None and any(one.kind == "weight" for one in table.columns):
        shades = [[_shade(one.kind, v) for one, v in zip(table.columns, row, strict=True)]
                  for row in table.rows]  # fmt: skip
    left_out = (table.row_gap, table.column_gap)
    return {
        "title": _label(table.title),
        "columns": [[_label(one.title), _label(one.sub), one.kind] for one in table.columns],
        "labels": list(map(_label, table.labels)),
        "rows": [[cut(text, WIDEST) for text in row] for row in zip(*columns, strict=True)],
        "shades": None if shades is None else [[_short(v) for v in row] for row in shades],
        "gaps": [None if gap is None else [gap.after, gap.count] for gap in left_out],
        "things": table.things,
        "notes": [escaped(one) for one in (table.part, *table.notes) if one],
    }


def _label(text: str) -> str:
    return cut(legible(text), WIDEST)


def _shade(kind: str, value: Any) -> float:
    known = kind == "weight" and isinstance(value, float | int) and math.isfinite(value)
    return min(max(float(value), 0.0), 1.0) if known else 0.0


def figure_of(figure: Figure) -> dict[str, Any]:
    """Return a figure as data, None for points that are not there."""
    return {
        "title": legible(figure.title), "x": legible(figure.x), "y": legible(figure.y),
        "log": [figure.log_x, figure.log_y],
        "ticks": None if figure.ticks is None else list(map(legible, figure.ticks)),
        "notes": list(map(escaped, figure.notes)),
        "curves": [
            {
                "name": legible(one.name), "dashed": one.dashed,
                "points": [[_short(x), _short(y)] for x, y in zip(one.x, one.y, strict=True)],
            }
            for one in figure.curves
        ],
    }  # fmt: skip


def grid_of(block: Block, heads: Mapping[str, Any]) -> int | None:
    """Return which statistic of the grid of heads a table shows once more; None of all others."""
    if not (isinstance(block, Table) and block.matrix and block.things == "heads"):
        return None
    if len(block.rows) != len(heads["rows"]):
        return None
    titles = [
        map_title(one["heading"], one["quantile"], one["unit"]) for one in heads["statistics"]
    ]
    return titles.index(block.title) if block.title in titles else None


# -- heads ------------------------------------------------------------------------------------


def heads_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the heads of a report's JSON object, a list a statistic, with a place in a grid.

    A row of the grid is a layer, a batch element, or both.
    """
    heads: Sequence[Mapping[str, Any]] = data.get("heads") or ()
    if not all(isinstance(one, Mapping) and "statistics" in one for one in heads):
        heads = ()
    heads = [{**one, "statistics": _numbers(one)} for one in heads]
    rows, numbers = _rows(heads, data.get("layers") or ())
    named = [*_columns(heads)]
    return {
        "names": [_name(one, rows[at]) for one, at in zip(heads, numbers, strict=True)],
        "keys": [
            head_key(one.get("batch", 0), one["head"], one.get("layer", "")) for one in heads
        ],
        "rows": list(map(legible, rows)),
        "at": [[at, one["head"]] for one, at in zip(heads, numbers, strict=True)],
        "verdicts": [one.get("verdict") for one in heads],
        "reasons": ["; ".join(map(escaped, one.get("reasons", ()))) for one in heads],
        "looks": [_looks(one.get("roles", ())) for one in heads],
        "statistics": [_told(name, quantile) for name, quantile in named],
        "values": [[_value(one, *column) for one in heads] for column in named],
    }  # fmt: skip


def _numbers(head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statistics of a head, and before them what a comparison says of it."""
    beside = {
        name: value for name, value in head.items()
        if isinstance(value, float) or (isinstance(value, Mapping) and "median" in value)
    }  # fmt: skip
    return {**beside, **head["statistics"]}


def _rows(
    heads: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[int]]:
    """Return the rows of the grid, and in which of them each head stands."""
    index = {one.get("name"): one.get("index") for one in layers if isinstance(one, Mapping)}
    index |= {one.get("layer"): one.get("layer_index") for one in heads if "layer_index" in one}
    clear = max(Counter(index.values()).values(), default=0) == 1
    several = len({one.get("batch") for one in heads}) > 1
    found: dict[Any, int] = {}
    rows: list[str] = []
    numbers = []
    for one in heads:
        layer, batch = one.get("layer"), one.get("batch")
        if (layer, batch) not in found:
            found[layer, batch] = len(rows)
            told = [f"batch {batch}"] if several else []
            told += [] if layer is None else [f"layer {index[layer]}" if clear else str(layer)]
            rows.append(", ".join(told))
        numbers.append(found[layer, batch])
    return rows, numbers


def _name(head: Mapping[str, Any], row: str) -> str:
    if "name" in head:
        return legible(head["name"])
    return f"{legible(row)}, head {head['head']}" if row else f"head {head['head']}"


def _looks(roles: Sequence[Mapping[str, Any]]) -> str:
    words = []
    for role in roles:
        where = role.get("token") or role["role"]
        share = role.get("mass")
        sink = " (sink)" if role.get("sink") else ""
        words.append(_label(str(where)) + (f" {100 * share:.0f} %" if share else "") + sink)
    return ", ".join(words)


def _columns(heads: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the names of numbers that heads have, quantiles apart, where any is known."""
    names = dict.fromkeys(name for one in heads for name in one["statistics"])
    quantiles = QUANTILES if len(heads) <= MANY else FEW
    for name in names:
        values = [one["statistics"].get(name) for one in heads]
        apart = any(isinstance(value, Mapping) for value in values)
        for quantile in quantiles if apart else ("",):
            column = (name, quantile)
            if any(_value(one, *column) is not None for one in heads):
                yield column


def _value(head: Mapping[str, Any], name: str, quantile: str) -> Any:
    value = head["statistics"].get(name)
    if isinstance(value, Mapping):
        value = value.get(quantile)
    return _short(value)


def _told(name: str, quantile: str) -> dict[str, str]:
    one = REGISTRY.get(name)
    heading = one.heading if one else name.replace("_", " ")
    about = SHAPE.sub("", one.text) if one else ""
    unit, kind = (one.unit, one.kind) if one else ("", "number")
    return {
        "name": f"{name}_{quantile}" if quantile else name, "heading": heading,
        "quantile": quantile, "unit": unit, "kind": kind, "about": about,
    }  # fmt: skip


def _short(value: Any) -> Any:
    """Return a number in six digits, None for what is none; ∞ is a word."""
    if value is None or isinstance(value, str | bool):
        return None
    number = float(value)
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    return None if math.isnan(number) else float(f"{number:.6g}")
