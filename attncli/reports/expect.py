"""What is said of a candidate: is it right, by how much not, where, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from attncli.errors import counted
from attncli.reports.blocks import Block, Column, Records, Table, Text, sentences
from attncli.studies.compare import Comparison
from attncli.studies.compare.judged import Judged, pooled
from attncli.studies.compare.told import enough, reasons, verdict

Array = np.ndarray[Any, np.dtype[Any]]

BARS = "▁▂▃▄▅▆▇█"
LABEL, LINE = 27, 80  # columns of what stands before bars, and of a line


def expect_blocks(one: Comparison, name: str) -> list[Block]:
    """Return sentences, a table of the stages and strips of the error. ``name``: whose it is."""
    said = [verdict(one, name), *reasons(one)]
    blocks: list[Block] = [sentences(*said, indent="  "), stages_table(one)]
    if one.notes:
        blocks.append(sentences(*one.notes, indent="  "))
    if not one.passed:
        blocks.append(Text("", list(_strips(one.shown))))
    return blocks


def stages_table(one: Comparison) -> Table:
    """Return a row a stage: how far off, what is allowed, what would pass."""
    columns = [
        Column("", "text"),
        Column("max error", "error"),
        Column("budget" if one.shown.tolerance is None else "allowed", "error"),
        Column("smallest", "error", sub="atol", keep=-1),
        Column("max error", "error", sub="ulp of the row", keep=-3),
        Column("signal to noise", sub="dB", keep=-2),
        Column("rows off", "count"),
    ]
    rows = [
        [
            "right" if j.passed else "differs", *j.telling, enough(j.smallest_atol, 2),
            float(j.ulps.max(initial=0)), j.snr, int(j.bad.sum()),
        ]
        for j in one.stages.values()
    ]  # fmt: skip
    notes = [] if one.passed else [_worst(one.shown)]
    return Table("Stage", columns, rows, list(one.stages), notes=notes)


def _worst(one: Judged) -> str:
    where = ", ".join(f"{axis} {n}" for axis, n in one.worst.items())
    return f"worst cell of {one.name}: {where}"


def _strips(one: Judged) -> Iterator[str]:
    """Yield the error by row and by head in lines, and the first bad row."""
    first = f"first bad row {np.flatnonzero(one.bad.any((0, 1)))[0]}"
    rows, _ = pooled(one.by_row(), LINE - LABEL - len(first) - 3)
    least = float(one.allowed.max(initial=0))
    said = f"error by row, {counted(len(one.by_row()), 'row')}"
    yield f"{said.ljust(LABEL)} {bars(rows, least)}  {first}"
    heads = one.by_head()
    wide = len(str(heads.shape[1] - 1))
    most = (LINE - LABEL + 1) // (wide + 4)  # of "12 █  "
    for b in range(0 if one.whole else len(heads)):
        where = "error by head" if len(heads) == 1 else f"error by head, batch {b}"
        marks = bars(heads[b], least)
        for h in range(0, len(marks), most):
            cells = enumerate(marks[h : h + most], h)
            line = "  ".join(f"{n:{wide}} {mark}" for n, mark in cells)
            yield f"{(where if not h else '').ljust(LABEL)} {line}"


def bars(errors: Array, allowed: float) -> str:
    """Return a bar for each error, by its logarithm: the lowest for what is allowed."""
    top = float(np.max(errors[np.isfinite(errors)], initial=0))
    low = min(max(allowed, top * 1e-12), top) or 1.0
    span = math.log(top / low) if top > low else 1.0
    marks = []
    for error in errors.tolist():
        if not math.isfinite(error):
            marks.append(BARS[-1])
            continue
        share = math.log(error / low) / span if error > low else 0.0
        marks.append(BARS[min(round(share * (len(BARS) - 1)), len(BARS) - 1)])
    return "".join(marks)


def expect_records(one: Comparison) -> Records:
    """Return a row for each stage and head, for ``--format csv``."""
    columns = ("stage", "batch", "head", "passed", "max_error", "max_excess", "bad_rows")

    def rows() -> Iterator[Sequence[Any]]:
        for name, judged in one.stages.items():
            for b, h in np.ndindex(judged.error.shape[:2]):
                excess = float(judged.excess[b, h].max(initial=0))
                yield (
                    name, b, None if judged.whole else h, excess <= 1,
                    float(judged.error[b, h].max(initial=0)), excess, int(judged.bad[b, h].sum()),
                )  # fmt: skip

    return Records(columns, rows())
