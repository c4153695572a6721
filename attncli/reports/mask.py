"""A mask → what to say about it: facts, a grid, the reader's view, another library's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attncli.attention.dialects import speak
from attncli.attention.masks import Mask
from attncli.attention.spoken import Spoken, additive_tensor, keep_tensor
from attncli.attention.view import Labels, View
from attncli.errors import InputError, TooLarge
from attncli.measures.masks import (
    SHOWN,
    Difference,
    MaskFacts,
    added_blocks,
    check_size,
    difference,
    kept_blocks,
    mask_facts,
)
from attncli.reports.blocks import Block, Grid, Heatmap, Picture, Records, Report, Shaded, Text
from attncli.reports.labels import Names, label, where
from attncli.resources import Progress, available_memory, readable_bytes, stages

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = 4096  # cells that JSON carries unasked
MAP_BLOCKS = 512  # resolution of a grid before the window fits it to the screen
LONGEST_VIEW = 200  # tokens that a reader can take in
SHORT = 16  # numbers of a list that are written out
NAMED = 12  # differing cells that are named in words
HIDDEN = "[MASK]"


def mask_report(
    mask: Mask,
    labels: Labels,
    view: View,
    *,
    tokens_view: bool = False,
    dialect: str | None = None,
    against: Mask | None = None,
    additive: bool = False,
    keep: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Return the report on a mask; ``exit_code`` 1 when it differs from ``against``.

    ``keep`` makes the arrays that are to be saved: the dialect's tensors, or ``attn_mask``, bool or
    with ``additive`` float. Raises MaskError for what a dialect cannot say, TooLarge for a tensor
    that would not fit into memory.
    """
    e = mask.extent
    cells = e.batch * e.heads * e.queries * e.keys
    if keep or dialect:
        _check_memory(mask, additive or mask.has_bias)
    spoken = speak(mask, dialect) if dialect else None
    facts = mask_facts(mask, progress)
    found = difference(mask, against, progress) if against is not None else None
    check_size(e)
    b = view.batch[0] if view.batch else 0
    h = view.head[0] if view.head else 0
    blocks: list[Block] = []
    if spoken is not None:
        blocks.append(_dialect(spoken))
    elif tokens_view:
        blocks.append(_reader(mask, labels, b, h))
    elif e.queries and e.keys and view.heatmap:
        blocks += heatmaps(mask, labels, view.batch or (b,), view.head or (h,), progress)
    elif e.queries and e.keys:
        blocks.append(_grid(mask, labels, b, h))
    more = [] if tokens_view else _sentences(mask, facts)
    if more:
        blocks.append(Text("", more))
    said: dict[str, Any] = {}
    notes = mask.notes + (against.notes if against is not None else ())
    if against is not None and found is not None:
        blocks.append(Text("", _differences(mask, against, found)))
        said["against"] = _against_data(against, found)
    tensors: dict[str, Array] = {}
    if spoken is not None:
        tensors = dict(spoken.tensors)
        said["dialect"] = {
            "name": spoken.dialect, "call": spoken.call, "arguments": dict(spoken.arguments),
            "notes": list(spoken.notes), "code": spoken.code or None,
        }  # fmt: skip
    elif keep or cells <= SMALL:
        tensors = {"attn_mask": mask_tensor(mask, additive)}
    else:
        said["warnings"] = [f"attn_mask is left out: more than {SMALL:,} cells (-o FILE)"]
    options = {"mask_polarity": "ignore"} if dialect == "mha" and tensors else {}

    def pictures(progress: Progress | None = None) -> list[Picture]:
        if not cells:
            return []
        grid = _grid(mask, labels, b, h)
        if not mask.has_bias:
            return [grid]
        try:
            return [grid, _around_zero(heatmaps(mask, labels, (b,), (h,), progress)[0])]
        except TooLarge as error:
            return [grid._replace(notes=[error.message])]

    return Report(
        command="mask", headline=[] if tokens_view else _headline(mask, facts),
        blocks=blocks, data=lambda: {**_data(mask, facts, notes), **said, **options, **tensors},
        records=lambda: _records(mask), pictures=pictures, arrays=tensors, options=options,
        warnings=notes,
        exit_code=int(found is not None and found.first is not None),
    )  # fmt: skip


def _data(mask: Mask, facts: MaskFacts, notes: tuple[str, ...]) -> dict[str, Any]:
    e = mask.extent
    return {
        "schema": "attncli.mask/1",
        "command": "mask",
        "mask": mask.text,
        "shapes": {"attn_mask": [e.batch, e.heads, e.queries, e.keys]},
        "kept": facts.kept,
        "kept_share": facts.kept / facts.cells if facts.cells else None,
        "empty_rows": facts.empty_rows,
        "padding_rows": facts.padding_rows,
        "future_rows": facts.future_rows,
        "tiles": {
            "size": 128, "empty": facts.tiles_empty, "full": facts.tiles_full,
            "mixed": facts.tiles_mixed,
        },
        "warnings": list(notes),
    }  # fmt: skip


def _against_data(against: Mask, found: Difference) -> dict[str, Any]:
    return {
        "mask": against.text, "cells": found.only_one + found.only_other,
        "kept_only_here": found.only_one, "kept_only_there": found.only_other,
        "first": found.first, "some": found.some,
    }  # fmt: skip


def _records(mask: Mask) -> Records:
    e = mask.extent
    cells = e.batch * e.heads * e.queries * e.keys
    if cells > SMALL * 64:
        raise InputError(f"{cells} cells are too many for a table", "save the mask with -o")
    rows = ((*map(int, cell), int(kept)) for cell, kept in np.ndenumerate(mask.dense()))
    return Records(("batch", "head", "query", "key", "kept"), rows)


def mask_tensor(mask: Mask, additive: bool = False) -> Array:
    """Return ``(Lq, Lk)``, or ``(B or 1, H or 1, Lq, Lk)`` where they differ.

    bool True = keep; float, added to the scores, with ``additive`` or where the mask has a bias.
    """
    tensor = additive_tensor(mask) if additive or mask.has_bias else keep_tensor(mask)
    return np.asarray(tensor[0, 0] if tensor.shape[:2] == (1, 1) else tensor)


def _check_memory(mask: Mask, floats: bool) -> None:
    e = mask.extent
    batches, heads = mask.distinct()
    planes = e.batch * e.heads if mask.has_bias else len(batches) * len(heads)
    need = planes * e.queries * e.keys * (5 if floats else 1)
    room = available_memory()
    if room is not None and need > room:
        raise TooLarge(
            f"a tensor of {e.queries} × {e.keys} for {planes} heads needs {readable_bytes(need)}; "
            f"{readable_bytes(room)} are free",
            "pass the expression itself (attncli compute --mask …): it is never made whole there",
        )


def percent(part: float, whole: float) -> str:
    """Return a share that never says 0 % or 100 % of what is not nothing or all."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.5:
        return "< 1 %"
    if 99.5 <= share < 100:
        return "> 99 %"
    return f"{share:.0f} %"


def _headline(mask: Mask, facts: MaskFacts) -> list[str]:
    e = mask.extent
    stack = f"{e.batch} × {e.heads} heads, " if e.batch * e.heads != 1 else ""
    size = f"{stack}{e.queries} × {e.keys}"
    kept = f"{facts.kept} of {facts.cells} kept ({percent(facts.kept, facts.cells)})"
    rows = "no row is empty"
    if facts.empty_rows:
        rows = f"{facts.empty_rows} of {facts.rows} rows are empty"
    if facts.padding_rows:
        padding = f"{facts.padding_rows} of {facts.rows} rows are padding"
        rows = f"{padding}, {rows.replace('no row', 'no other') if not facts.empty_rows else rows}"
    future = []
    if facts.future_rows is not None:
        plural = "row sees" if facts.future_rows == 1 else "rows see"
        future = [f"{facts.future_rows or 'no'} {plural} the future"]
        if not facts.future_rows:
            future = ["no row sees the future"]
    return [f"{size}, {kept}", rows, *future]


def _sentences(mask: Mask, facts: MaskFacts) -> list[str]:
    e = mask.extent
    lines = []
    if facts.first_empty is not None:
        b, h, i = facts.first_empty
        lines.append(f"first empty row: query {i}{_plane(mask, b, h)}; its output would be 0")
    if facts.first_future is not None:
        b, h, i, j = facts.first_future
        lines.append(f"first row that sees the future: query {i} sees key {j}{_plane(mask, b, h)}")
    tiles = facts.tiles_empty + facts.tiles_full + facts.tiles_mixed
    if tiles > e.batch * e.heads:
        shares = ", ".join(
            f"{count} {name} ({percent(count, tiles)})"
            for name, count in (
                ("empty", facts.tiles_empty), ("full", facts.tiles_full),
                ("mixed", facts.tiles_mixed),
            )
        )  # fmt: skip
        lines.append(f"tiles of 128 × 128: {shares}")
    batches, heads = mask.distinct()
    if len(batches) > 1 or len(heads) > 1:
        lines.append("other batch elements or heads differ: see them with --batch and --head")
    if mask.has_bias:
        kinds = ", ".join(bias.words() for bias in mask.biases)
        lines.append(f"adds to the scores: {kinds}")
    return lines


def _plane(mask: Mask, b: int, h: int) -> str:
    e = mask.extent
    return where(e, b, h).replace(" ·", ",")


def _grid(mask: Mask, labels: Labels, b: int, h: int) -> Grid:
    e = mask.extent
    rows, keys = min(e.queries, MAP_BLOCKS), min(e.keys, MAP_BLOCKS)
    return Grid(
        title=("Mask" + where(e, b, h)) if e.batch * e.heads > 1 else "",
        values=kept_blocks(mask, b, h, rows, keys),
        row_edges=np.linspace(0, e.queries, rows + 1).astype(int).tolist(),
        column_edges=np.linspace(0, e.keys, keys + 1).astype(int).tolist(),
        row_labels=Names(labels.query, b, range(e.queries)),
        column_labels=Names(labels.key, b, range(e.keys)),
    )


def heatmaps(
    mask: Mask,
    labels: Labels,
    batches: Sequence[int],
    heads: Sequence[int],
    progress: Progress | None = None,
) -> list[Heatmap]:
    """Return maps of the numbers that a mask adds, or else of the share that it keeps of blocks.

    Raises TooLarge for biases of more cells than can be looked at in seconds.
    """
    maps: list[Heatmap] = []
    parts = stages(progress, [1] * len(batches) * len(heads))
    for b in batches:
        first = _grid(mask, labels, b, heads[0])  # all heads have its edges and names
        for h in heads:
            at = where(mask.extent, b, h)
            rows, keys = first.values.shape
            if mask.has_bias:
                values, seen = added_blocks(mask, b, h, rows, keys, next(parts))
                maps.append(
                    Heatmap(
                        f"Added to the scores{at}", values, first.row_edges, first.column_edges,
                        first.row_labels, first.column_labels, hidden=~seen, scale="linear",
                    )
                )  # fmt: skip
            else:
                grid = first if h == heads[0] else _grid(mask, labels, b, h)
                maps.append(grid._replace(title=f"Share kept{at}", scale="linear"))
    return maps


def _around_zero(added: Heatmap) -> Shaded:
    """Return a map of what is added as a picture, whose colours part at 0."""
    return Shaded(
        added.title, added.values, added.row_edges, added.column_edges, added.row_labels,
        added.column_labels, "added", "query", "key", diverging=True, hidden=added.hidden,
    )  # fmt: skip


def _reader(mask: Mask, labels: Labels, b: int, h: int) -> Text:
    """Return the keys as each query meets them, hidden ones as [MASK]."""
    e = mask.extent
    if max(e.queries, e.keys) > LONGEST_VIEW:
        raise InputError(
            f"{e.queries} × {e.keys} tokens are too many to read",
            f"--view tokens shows up to {LONGEST_VIEW}; leave it out for a grid",
        )
    names = [label(labels.key, b, j) for j in range(e.keys)]
    keep = mask.keep(b, h, 0, e.queries, 0, e.keys)
    widths = [max(len(name), len(HIDDEN)) for name in names]
    lines = []
    for row in keep:
        cells = [name if seen else HIDDEN for name, seen in zip(names, row, strict=True)]
        lines.append(" ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)))
    return Text("", [line.rstrip() for line in lines])


def _dialect(spoken: Spoken) -> Text:
    lines = [spoken.call]
    for name, tensor in spoken.tensors.items():
        lines.append(f"{name}: {tensor.dtype} {tuple(tensor.shape)}{_written(tensor)}")
    lines += [f"{name} = {value}" for name, value in spoken.arguments.items()]
    return Text("", [*spoken.code.splitlines(), *lines, *spoken.notes])


def _written(tensor: Array) -> str:
    """Return the numbers of a short list."""
    if tensor.ndim != 1 or tensor.size > SHORT:
        return ""
    return f" = {', '.join(map(str, tensor.tolist()))}"


def _differences(mask: Mask, other: Mask, found: Difference) -> list[str]:
    if found.first is None:
        return [f"the same cells as {other.text}"]
    cells = found.only_one + found.only_other
    lines = [
        f"{cells} of {found.cells} cells differ from {other.text}: {found.only_one} kept only "
        f"here, {found.only_other} only there",
    ]
    for b, h, i, j in found.some[:NAMED]:
        side = "here" if mask.keep(b, h, i, i + 1, j, j + 1)[0, 0] else "there"
        lines.append(f"  query {i}, key {j}{_plane(mask, b, h)}: kept only {side}")
    if cells > NAMED:
        lines.append(f"  … and {cells - NAMED} more (--json names {min(cells, SHOWN)})")
    return lines
