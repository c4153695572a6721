"""What ``attncli compute --part`` and ``--merge`` have to say."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attncli.attention.view import Labels, View
from attncli.errors import counted
from attncli.reports.arrays import array_of, left_out, saved
from attncli.reports.blocks import Report, Text
from attncli.reports.compute import SCHEMA
from attncli.reports.facts import engine_data, facts_of, headline, heads_of
from attncli.reports.matrices import output_tables
from attncli.reports.records import records_of
from attncli.reports.selection import select
from attncli.reports.stability import stability_table
from attncli.reports.words import SMALL
from attncli.studies.attend import Ran, Result
from attncli.studies.partial import NAME, Kept

#: What parts know of the whole: nothing of single weights.
KNOWN = ("output", "lse", "row_statistics")


def part_report(kept: Kept, ran: Ran) -> Report:
    """Return the report on one part, whose arrays are to be saved."""
    said = kept.said
    start, stop = said["keys"][0]
    b, h, _, lq, lk, *_ = said["shape"]
    words = f"keys {start} to {stop - 1} of {lk:,}, for {counted(b * h * lq, 'row')}"
    return Report(
        command="compute",
        headline=[words, f"{ran.backend} {ran.dtype}"],
        blocks=[Text("", ["attncli compute --merge PART… joins it with the others"])],
        data=lambda: {
            "schema": SCHEMA, "command": "compute", "engine": engine_data(ran),
            NAME: {"keys": said["keys"], "of": lk}, "warnings": kept.warnings,
        },
        arrays={**kept.arrays},
        options=kept.options,
        warnings=kept.warnings,
    )  # fmt: skip


def merged_report(result: Result, count: int, include: Collection[str] | None) -> Report:
    """Return the report on what ``count`` parts give together; ``include``: some of KNOWN."""
    problem, labels, view = result.problem, Labels(), View()
    chosen = select(problem, view)
    mask = [f"mask {problem.mask.text}"] if problem.mask.text else []

    def data() -> dict[str, Any]:
        found = {"schema": SCHEMA, "command": "compute", **facts_of(result), "parts": count}
        found["shapes"]["output"] = list(result.output.shape)
        found["heads"] = heads_of(result, chosen.pairs)
        small = result.output.size <= SMALL
        for name in include or (("output",) if small else ()):
            found[name] = array_of(result, chosen, view, name)
        found["warnings"] += [] if include or small else left_out(["output"])
        return found

    return Report(
        command="compute",
        headline=[*headline(result), *mask, counted(count, "part")],
        blocks=[
            *output_tables(result, labels, view, chosen),
            stability_table(problem, result.summaries, view, chosen),
        ],
        data=data,
        records=lambda: records_of(result, labels, view, chosen, include or (), result.summaries),
        arrays=saved(result, include or ("output",)),
        warnings=result.warnings,
    )
