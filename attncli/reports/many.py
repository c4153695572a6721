"""What `attncli inspect` has to say about many layers, texts or files: one report on all heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.errors import counted, listed
from attncli.measures.policy import LEVELS, POLICY
from attncli.measures.roles import CONTENT, DETECTORS
from attncli.measures.statistic import STATISTICS, flat_names, flat_values, of_head
from attncli.reports.blocks import (
    Block,
    Column,
    Heatmap,
    Picture,
    Records,
    Report,
    Table,
    head_key,
)
from attncli.reports.facts import engine_data, engine_in_words
from attncli.reports.heads import Shown, cells, columns, known, looks, reasons
from attncli.reports.health import findings_of, places_of, summarized
from attncli.reports.missing import demand_known, in_words, not_known
from attncli.reports.picking import Mapped, Name, Picking, mapped, name_of, picking
from attncli.reports.selection import with_numbers
from attncli.resources import Progress
from attncli.studies.health import TOLD
from attncli.studies.many import Head, LayerHealth, Many, heads_of

SCHEMA = "attncli.inspect/1"
TELLING = 12  # heads that are shown unless all are asked for
MAP = Name("entropy", "median")
PLACES = ("layer", "batch", "head")
COLUMNS = (
    Shown("entropy", keep=8), Shown("max_weight", keep=7), Shown("saturated_share", keep=5),
    Shown("logit_max", keep=6), Shown("sink_mass", keep=3), Shown("grad_query_norm", keep=2),
)  # fmt: skip
DETECTED = {name for name, _ in DETECTORS.values()}


def asked_of_heads(**asked: Any) -> Picking:
    """Return what --filter, --sort and --map ask (see `picking`) of the heads of many layers.

    Raises InputError for a name that no head has, and for what is no expression.
    """
    return picking({name: STATISTICS[name] for name in TOLD}, PLACES, **asked)


def many_report(
    many: Many,
    *,
    layer: str | None = None,
    head: str | None = None,
    asked: Picking | None = None,
    fail_on: str | None = None,
    full: bool = False,
    sources: Sequence[str] = (),
    facts: Sequence[str] = (),
    warnings: Sequence[str] = (),
    lens: Lens | None = None,
    maps: Sequence[Heatmap] = (),
) -> Report:
    """Return the report on the heads of all layers.

    ``layer`` and ``head`` select numbers, as ``0:4,7``; ``asked`` picks among these; its map is of
    the entropy unless it says otherwise. ``fail_on`` is watch or critical: a head that bad makes
    the exit code 1. ``full``: every head is a row. ``sources`` are the files and ``facts`` words of
    the first line on where all this comes from; ``lens``: what is looked for; ``maps``: what was
    kept of their weights. Raises InputError where a selection hits nothing.
    """
    every, asked, lens = many.heads, asked or Picking(STATISTICS), lens or Lens()
    demand_known(asked, *_found(many.layers))
    heads = asked.pick(_selected(every, layer, head), facts_of)
    if lens.first and not asked.sort:
        heads.sort(key=lens.first)
    count = Counter(one.verdict.level for one in heads)
    seen = _map(heads, asked.map) if asked.map else None
    blocks: list[Block] = []
    if heads:
        blocks = [*lens.summary(heads), (seen or _map(heads, lens.map)).table]
        blocks += [_head_table(heads, full, asked, lens)]
        blocks += reasons(heads, lambda one: one.name, _gravity, TELLING)
    worst = max((LEVELS.index(one.verdict.level) for one in heads), default=0)
    told = [*warnings, *_warnings(many.layers), *_unjudged(heads, bool(asked.tests))]

    def data() -> Mapping[str, Any]:
        return {
            "schema": SCHEMA, "command": "inspect", "sources": list(sources),
            "warnings": told, "notes": _notes(many),
            "grad_output": f"random:{many.seed}" if _scored(many.layers) else None,
            "summary": {level: count[level] for level in LEVELS}
            | {"findings": findings_of(heads), "looks_at": places_of(heads)},
            "layers": [layer_data(one) for one in many.layers],
            "heads": [head_data(one) for one in heads],
            **({"map": seen.data} if seen else {}),
        }  # fmt: skip

    def pictures(progress: Progress | None = None) -> list[Picture]:
        from attncli.reports.pictures import map_picture

        own = (name_of(one, STATISTICS) for one in lens.columns)
        names = dict.fromkeys([asked.map or lens.map, *own])
        there = [one for one in names if any(one.name in layer.found for layer in many.layers)]
        shaded = [map_picture(_map(heads, one)) for one in there if heads]
        return [*_maps_of(heads, maps), *shaded]

    return Report(
        command="inspect",
        headline=[
            _sizes(many.layers, heads, len(every)), *facts, *_engines(many.layers),
            *(f"{count[level]} {level}" for level in reversed(LEVELS)),
        ],
        blocks=blocks,
        data=data,
        records=lambda: seen.records if seen else _records(heads),
        pictures=pictures,
        warnings=told,
        notes=_notes(many),
        exit_code=int(fail_on is not None and worst >= LEVELS.index(fail_on)),
    )  # fmt: skip


def layer_report(
    layer: LayerHealth, label: str, index: int, *, asked: Picking | None = None,
    head: str | None = None, fail_on: str | None = None,
) -> Report:  # fmt: skip
    """Return the report on one layer as it comes, whose JSON object is a line of NDJSON.

    What other layers there are is not known yet: ``asked`` picks among its own heads.
    """
    every = heads_of(layer, label, index)
    if asked:
        demand_known(asked, *_found([layer]))
    heads = (asked or Picking(STATISTICS)).pick(_selected(every, None, head), facts_of)
    count = Counter(one.verdict.level for one in heads)
    worst = max((LEVELS.index(one.verdict.level) for one in heads), default=0)
    return Report(
        command="inspect",
        headline=[],
        blocks=[],
        data=lambda: {
            "schema": SCHEMA, "command": "inspect", **layer_data(layer),
            "warnings": list(layer.warnings), "notes": list(layer.notes),
            "summary": {level: count[level] for level in LEVELS},
            "heads": [head_data(one) for one in heads],
        },
        warnings=layer.warnings,
        exit_code=int(fail_on is not None and worst >= LEVELS.index(fail_on)),
    )  # fmt: skip


def facts_of(head: Head) -> dict[str, Any]:
    """Return what --filter, --sort and --map know of a head."""
    return {
        **head.statistics, "layer": head.index, "batch": head.batch or 0, "head": head.head,
        "verdict": head.verdict.level,
    }  # fmt: skip


def _selected(every: Sequence[Head], layer: str | None, head: str | None) -> list[Head]:
    """Return the heads of the layers with these numbers; InputError where there are none."""
    names = [(one.label, one.layer.name) for one in every]
    some = with_numbers("layer", every, [one.index for one in every], layer, names)
    return with_numbers("head", some, [one.head for one in some], head)


# -- for people -------------------------------------------------------------------------------


def _sizes(layers: Sequence[LayerHealth], heads: Sequence[Head], total: int) -> str:
    """Return '6 layers × 12 heads, 13 tokens', and of how many these heads are."""
    across = {1 + max((head.head for head in one.heads), default=-1) for one in layers}
    many = counted(len(layers), "layer")
    many += f" × {counted(across.pop(), 'head')}" if len(across) == 1 else f", {total:,} heads"
    queries, keys = [one.queries for one in layers], [one.keys for one in layers]
    length = _span(queries, "token", "tokens")
    if queries != keys:
        length = f"{_span(queries, 'query', 'queries')} × {_span(keys, 'key', 'keys')}"
    parts = [many, length]
    batches = {one.batch for one in layers} - {1}
    if batches:
        parts.append(f"batch of {max(batches)}")
    if len(heads) < total:
        parts.append(f"{counted(len(heads), 'head')} of {total:,}")
    return ", ".join(parts)


def _span(numbers: Sequence[int], one: str, many: str) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return counted(low, one, many) if low == high else f"{low}–{high} {many}"


def _engines(layers: Sequence[LayerHealth]) -> list[str]:
    alone = [] if _scored(layers) else ["attention weights alone"]
    return [*alone, *dict.fromkeys(engine_in_words(one.engine) for one in layers)]


def _summary(heads: Sequence[Head]) -> list[Block]:
    found = [f"{name.replace('_', ' ')} {n}" for name, n in findings_of(heads).items() if n]
    text = summarized(found, heads)
    return [text] if text.lines else []


@dataclass(frozen=True)
class Lens:
    """What a report on heads looks for: its map, its columns, and what is said of all heads.

    ``first`` sorts the heads, also for programs; without it they stand in their order, and in the
    table the most telling come first. ``words`` say which these are.
    """

    map: Name = MAP
    columns: Sequence[Shown] = COLUMNS
    summary: Callable[[Sequence[Head]], list[Block]] = _summary
    first: Callable[[Head], Any] | None = None
    words: str = "the most telling"


def _map(heads: Sequence[Head], name: Name) -> Mapped:
    """Return a statistic as a row a layer, the layers of one batch element together."""
    places = sorted({(one.batch or 0, one.at) for one in heads})
    rows = {place: n for n, place in enumerate(places)}
    labels = {rows[one.batch or 0, one.at]: one.name.rpartition(".")[0] for one in heads}
    cells = {
        (rows[one.batch or 0, one.at], one.head): of_head(
            {name.name: one.layer.found[name.name]}, one.row, one.head
        )
        for one in heads
        if name.name in one.layer.found
    }
    found = mapped(
        Picking(STATISTICS, map=name), "layer", [labels[n] for n in range(len(labels))], cells
    )
    assert found is not None
    return found


def _head_table(heads: Sequence[Head], full: bool, asked: Picking, lens: Lens) -> Table:
    ordered = heads if asked.sort or lens.first or full else sorted(heads, key=_interest)
    some = ordered if full else ordered[:TELLING]
    told = known(asked.shown(lens.columns), [one.layer.found for one in heads])
    rows = [[one.verdict.level, *cells(told, facts_of(one)), looks(one.roles)] for one in some]
    what = asked.words or lens.words
    part = f"{len(some)} of {counted(len(heads), 'head')}, {what}" if len(some) < len(heads) else ""
    return Table(
        title="batch/layer.head" if heads[0].batch is not None else "layer.head",
        columns=[
            Column("verdict", "verdict", keep=10),
            *columns(told, units=True),
            Column("looks at", "text", keep=9),
        ],
        rows=rows,
        labels=[one.name for one in some],
        part=part,
        hint="--full, --layer, --sort entropy, --filter 'layer==3', --format csv" if part else "",
        whole=full,
    )


def _gravity(head: Head) -> tuple[int, int]:
    """Return what sorts heads: the worst verdict first, then the rule that stands first."""
    first = head.verdict.findings[0].name if head.verdict.findings else ""
    at = [rule.name for rule in POLICY].index(first) if first else len(POLICY)
    return -LEVELS.index(head.verdict.level), at


def _interest(head: Head) -> tuple[Any, ...]:
    """Return what sorts heads by how telling they are.

    The sick ones first; then what finds repeated tokens, then what looks at one place, a sink last.
    """
    level = -LEVELS.index(head.verdict.level)
    gravity = _gravity(head) if level else (0, 0)
    shares = [
        (0 if one.name in DETECTED else 2 if one.sink else 3 if one.name in CONTENT else 1,
         -one.share)
        for one in head.roles
    ]  # fmt: skip
    return (*gravity, *min(shares, default=(4, 0.0)))


def _maps_of(heads: Sequence[Head], maps: Sequence[Heatmap]) -> list[Picture]:
    """Return the maps of these heads, in their order."""
    kept = {one.head: one for one in maps}
    keys = (head_key(one.batch or 0, one.head, one.layer.name) for one in heads)
    return [kept[key] for key in keys if key in kept]


def _notes(many: Many) -> list[str]:
    lines = list(dict.fromkeys(note for layer in many.layers for note in layer.notes))
    alone = [one for one in many.layers if one.scale is None]
    made = [f"gradients for a random normal upstream gradient dO (seed {many.seed})"]
    made *= _scored(many.layers)
    looked, total = (sum(one.sampled[n] for one in many.layers) for n in range(2))
    if looked < total:
        made.append(
            f"Jacobian's largest eigenvalue and head similarity from {looked:,} of {total:,} rows"
        )
    if any(one.batch > 1 and one.batches is None for one in many.layers):
        made.append("rows of all batch elements together (--batch takes them apart)")
    lines += [" · ".join(made)] if made else []
    return [*lines, *dict.fromkeys(text for one in alone for text in not_known(one.missing))]


def _scored(layers: Sequence[LayerHealth]) -> bool:
    """Whether any layer is more than attention weights alone."""
    return not layers or any(one.scale is not None for one in layers)


def _found(layers: Sequence[LayerHealth]) -> tuple[list[Mapping[str, Any]], Mapping[str, str]]:
    """Return the statistics of each layer, and what the others of layers of weights alone need."""
    alone = [one.missing for one in layers if one.scale is None]
    return [one.found for one in layers], {
        name: why for some in alone for name, why in some.items()
    }


def _warnings(layers: Sequence[LayerHealth]) -> list[str]:
    """Return each warning once, with the layers it is about."""
    about: dict[str, list[str]] = {}
    for layer in layers:
        for text in layer.warnings:
            about.setdefault(text, []).append(layer.name)
    return [
        text if len(names) == len(layers) else f"{listed(names, 6)}: {text}"
        for text, names in about.items()
    ]


def _unjudged(heads: Sequence[Head], filtered: bool) -> list[str]:
    """Return a warning when heads have nothing in them that a verdict could be about."""
    if not heads:
        return ["no head passes --filter" if filtered else "there are no heads to judge"]
    count = sum(
        not np.asarray(one.layer.found["rows_with_choice"])[one.row, one.head] for one in heads
    )
    if not count:
        return []
    whose = f"{count} of {counted(len(heads), 'head')}"
    return [f"{whose} with no row that sees two keys or more: ok says nothing there"]


# -- for programs -----------------------------------------------------------------------------


def layer_data(layer: LayerHealth) -> dict[str, Any]:
    """Return what JSON says of a layer."""
    return {
        "layer": layer.name,
        "engine": engine_data(layer.engine),
        "shapes": {name: list(shape) for name, shape in layer.shapes.items()},
        "scale": layer.scale, "scale_source": layer.scale_source, "softcap": layer.softcap,
        "mask": layer.mask or None, **({"missing": _missing(layer)} if layer.scale is None else {}),
    }  # fmt: skip


def _missing(layer: LayerHealth) -> dict[str, str]:
    return {name: in_words(need) for name, need in layer.missing.items()}


def head_data(head: Head) -> dict[str, Any]:
    """Return what JSON says of a head: ``name`` is layer.head in short, ``layer`` its whole name.

    ``layer_index`` is the number that --layer and --filter know, ``batch`` is there where batch
    elements are judged one by one.
    """
    batch = {} if head.batch is None else {"batch": head.batch}
    return {
        "name": head.name, "layer": head.layer.name, "layer_index": head.index, **batch,
        "head": head.head, "verdict": head.verdict.level, "reasons": head.reasons,
        "findings": [
            {"name": f.name, "level": f.level, "value": f.value, "limit": f.limit}
            for f in head.verdict.findings
        ],
        "roles": [role.data for role in head.roles],
        "statistics": head.statistics,
    }  # fmt: skip


def _records(heads: Sequence[Head]) -> Records:
    apart = any(head.batch is not None for head in heads)
    place: dict[str, Callable[[Head], Any]] = {
        "layer": lambda one: one.layer.name, "layer_index": lambda one: one.index,
        **({"batch": lambda one: one.batch} if apart else {}), "head": lambda one: one.head,
        "verdict": lambda one: one.verdict.level, "reasons": lambda one: "; ".join(one.reasons),
        "looks_at": lambda one: ", ".join(role.words for role in one.roles),
    }  # fmt: skip
    numbers: dict[str, None] = {}  # layers may differ in what is known, as of repeated tokens
    for head in heads:
        numbers |= dict.fromkeys(flat_names(head.layer.found))

    def row(head: Head) -> list[Any]:
        own = dict(zip(flat_names(head.layer.found), flat_values(head.statistics), strict=True))
        return [*(of(head) for of in place.values()), *(own.get(name) for name in numbers)]

    return Records([*place, *numbers], map(row, heads))
