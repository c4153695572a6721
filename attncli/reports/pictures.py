"""What --plot and --report draw of each command, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.measures.statistic import STATISTICS, Statistic
from attncli.reports.blocks import Curve, Figure, Picture, Shaded
from attncli.reports.closer import closer_maps
from attncli.reports.labels import Names, where
from attncli.reports.maps import MAP_BLOCKS
from attncli.reports.picking import Mapped
from attncli.reports.selection import Selection
from attncli.resources import Progress
from attncli.studies.compare import Comparison
from attncli.studies.compare.judged import AXES, Judged, pooled
from attncli.studies.effects import OVERALL, Effect

Array = np.ndarray[Any, np.dtype[Any]]
Swept = Sequence[tuple[int, Mapping[str, float], Mapping[str, float]]]

MOST_HEADS = 144  # whose maps are drawn
MOST_CURVES = 6  # that can be told apart
MOST_TOKENS = 64  # that stand along a side
PROFILES = ("entropy", "max_weight")  # of rows
#: What a change of the scale shows in (OVERALL).
EFFECTS = ("logit_std", "saturated_share", "entropy", "grad_score_p05")
#: The article's question: what becomes of these as the width grows (OVERALL); logarithmic or not.
SWEPT = {
    "score_variance": True, "entropy": False, "max_weight": False, "grad_score_p05": True,
}  # fmt: skip


def head_pictures(
    problem: Problem,
    lse: Array,
    values: Mapping[str, Array],
    labels: Labels,
    view: View,
    chosen: Selection,
    pairs: Sequence[tuple[int, int]] | None = None,
    progress: Progress | None = None,
) -> list[Picture]:
    """Return the weights of all heads selected, or of ``pairs``, and what becomes of their rows.

    lse ``(B, H, Lq)``, sink included; values: the statistics of rows by name, ``(B, H, Lq)``.
    """
    pairs = list(chosen.pairs) if pairs is None else pairs
    if not pairs or not len(chosen.rows) or not len(chosen.keys):
        return []
    shown = chosen._replace(shown=tuple(pairs[:MOST_HEADS]))
    closer = closer_maps(problem, lse, labels, view, shown, progress)
    maps = [one._replace(notes=()) for one in closer]
    if len(pairs) > MOST_HEADS:
        note = f"{MOST_HEADS} of {len(pairs):,} heads are drawn (--batch, --head)"
        maps[-1] = maps[-1]._replace(notes=[note])
    return [*maps, *_profiles(problem, values, labels, chosen, pairs)]


def _profiles(
    problem: Problem,
    values: Mapping[str, Array],
    labels: Labels,
    chosen: Selection,
    pairs: Sequence[tuple[int, int]],
) -> list[Picture]:
    """Return statistics along the rows: a curve a head, or a row of shades where they are many."""
    rows = np.asarray(chosen.rows, np.int64)
    if len(rows) < 2:
        return []
    names = [where(problem, b, h).removeprefix(" · ") or "the head" for b, h in pairs]
    several = len({b for b, _ in pairs}) > 1
    heads = [f"{b}/{h}" if several else str(h) for b, h in pairs]
    found: list[Picture] = []
    for name in PROFILES:
        title = titled(name)
        own = np.stack([values[name][b, h, rows] for b, h in pairs]).astype(np.float64)
        means, edges = _means(own, MAP_BLOCKS)
        notes = _averaged(edges, "rows")
        if len(pairs) <= MOST_CURVES:
            x = rows[edges[:-1]].tolist()
            curves = [Curve(text, x, y.tolist()) for text, y in zip(names, means, strict=True)]
            found.append(Figure(title, "query", title, curves, notes=notes))
            continue
        shared = labels.query and not several and len(rows) <= MOST_TOKENS
        queries = Names(labels.query if shared else None, pairs[0][0], chosen.rows)
        found.append(
            Shaded(
                title, means, range(len(pairs) + 1), edges, heads, queries,
                title, "batch/head" if several else "head", "query", notes=notes,
            )
        )  # fmt: skip
    return found


def map_picture(seen: Mapped) -> Shaded:
    """Return a statistic of all heads as shades, a row a layer, a column a head."""
    heads = max(map(len, seen.values), default=0)
    values = np.full((len(seen.values), heads), np.nan)
    for own, row in zip(values, seen.values, strict=True):
        own[: len(row)] = [np.nan if value is None else value for value in row]
    title = titled(seen.name.name, seen.name.quantile, seen.registry)
    return Shaded(
        title, values, range(len(values) + 1), range(heads + 1), seen.labels,
        Names(None, 0, range(heads)), title, seen.rows, "head",
    )  # fmt: skip


def titled(name: str, quantile: str = "", registry: Mapping[str, Statistic] = STATISTICS) -> str:
    """Return what a statistic is called beside a scale: its heading, quantile and unit."""
    one = registry[name]
    unit = f"share of {one.unit}" if one.kind == "percent" and one.unit else one.unit
    heading = f"gradient {one.heading}" if one.heading.startswith("‖d") else one.heading
    named = ", ".join(filter(None, (heading, quantile)))
    return f"{named} ({unit})" if unit else named


def _means(values: Array, most: int) -> tuple[Array, list[int]]:
    """Return the means of at most ``most`` blocks of the last axis, and the blocks' edges."""
    size = values.shape[-1]
    edges = np.linspace(0, size, min(size, most) + 1).round().astype(int)
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0), edges[:-1], axis=-1)
    with np.errstate(invalid="ignore"):
        means = sums / np.add.reduceat(known.astype(float), edges[:-1], axis=-1)
    return means, edges.tolist()


def _averaged(edges: Sequence[int], things: str) -> list[str]:
    size = max(np.diff(edges), default=1)
    return [f"means of {size} {things} each"] if size > 1 else []


# -- changes ----------------------------------------------------------------------------------


def effect_pictures(effects: Sequence[Effect], pairs: Sequence[tuple[int, int]]) -> list[Picture]:
    """Return what becomes of some heads with other scales: all of them together, and each."""
    if len(effects) < 2:
        return []
    ticks, x = [one.text for one in effects], range(len(effects))
    together = [one.over(pairs).statistics for one in effects]
    found: list[Picture] = []
    for name in EFFECTS:
        statistic, quantile = OVERALL[name]
        curves = [Curve("all heads", x, [own[name] for own in together])]
        for b, h in pairs[:MOST_HEADS] if len(pairs) > 1 else ():
            own = [one.statistics[i][j] for one in effects for i, j in [one.part.at(b, h)]]
            curves.append(Curve("", x, [_number(each.get(statistic), quantile) for each in own]))
        log = name.startswith("grad")
        title = titled(statistic, quantile)
        found.append(Figure(title, "scale", title, curves, log_y=log, ticks=ticks))
    return found


def _number(value: Any, quantile: str) -> float:
    found = value.get(quantile) if isinstance(value, Mapping) else value
    return float("nan") if found is None else float(found)


def sweep_pictures(swept: Swept) -> list[Picture]:
    """Return curves over the width, with and without the scale."""
    ordered = sorted(swept, key=lambda one: one[0])
    widths = [width for width, _, _ in ordered]
    found: list[Picture] = []
    for name, log in SWEPT.items() if ordered else ():
        title = titled(*OVERALL[name])
        curves = [
            Curve("scaled by 1/√d", widths, [auto[name] for _, auto, _ in ordered]),
            Curve("not scaled", widths, [none[name] for _, _, none in ordered], dashed=True),
        ]
        found.append(Figure(title, "width d", title, curves, log_x=True, log_y=log))
    return found


# -- errors -----------------------------------------------------------------------------------


def error_pictures(judged: Comparison, name: str) -> list[Picture]:
    """Return where a candidate, called ``name``, is off: by head and row, and the budget."""
    name = name.rpartition("/")[2] or name  # a folder says nothing on paper
    stages = [one for one in judged.stages.values() if one.error.size]
    found = [picture for one in stages for picture in _errors(one, name)]
    found += next((cells for one in stages if (cells := _cells(judged, one, name))), [])
    return sorted(found, key=lambda one: isinstance(one, Figure))  # maps side by side, then curves


def _cells(judged: Comparison, one: Judged, name: str) -> list[Picture]:
    """Return the errors of the head with the worst cell, in a stage that differs and has cells."""
    from attncli.studies.compare.worst import worst_head

    seen = None if one.passed else worst_head(judged, one, MAP_BLOCKS)
    if seen is None or min(seen.values.shape) < 2:
        return []
    rows, columns = seen.row_edges, seen.column_edges
    axis, across = seen.axes
    size = " × ".join(str(max(np.diff(edges))) for edges in (columns, rows))
    return [
        Shaded(  # the other way round: rows stand below those of all heads
            f"{one.name} error{where(judged.problem, seen.batch, seen.head)}", seen.values.T,
            columns, rows, Names(None, 0, range(columns[-1])), Names(None, 0, range(rows[-1])),
            "error", across, axis, log=True,
            notes=[f"largest of {size} each"] if size != "1 × 1" else [],
        )
    ]  # fmt: skip


def _errors(one: Judged, name: str) -> Iterable[Picture]:
    axis, heads = AXES[one.name][0], one.error.shape[1]
    flat = one.error.reshape(-1, one.error.shape[-1])
    parts = [pooled(row, MAP_BLOCKS) for row in flat]
    edges = parts[0][1]
    largest, _ = pooled(one.by_row(), MAP_BLOCKS)
    allowed, _ = pooled(one.allowed.max((0, 1)), MAP_BLOCKS)
    word = "budget" if one.tolerance is None else "allowed"
    notes = [f"largest of {size} each"] if (size := max(np.diff(edges))) > 1 else []
    if len(flat) > 1:
        batch = [f"{b}/" if len(one.error) > 1 else "" for b in range(len(one.error))]
        labels = [f"{text}{'all' if one.whole else h}" for text in batch for h in range(heads)]
        yield Shaded(
            f"{one.name}: |{name} − right|", np.stack([row for row, _ in parts]),
            range(len(flat) + 1), edges, labels, Names(None, 0, range(flat.shape[1])),
            "largest error", "batch/head" if len(one.error) > 1 else "head", axis, log=True,
            notes=notes,
        )  # fmt: skip
    if len(edges) > 2:
        yield Figure(
            f"{one.name}: largest error by {axis}", axis, "|error|",
            [
                Curve(name, edges[:-1], largest.tolist()),
                Curve(word, edges[:-1], allowed.tolist(), dashed=True),
            ],
            log_y=True, notes=notes,
        )  # fmt: skip
