"""What `attncli compute` has to say: a Result becomes a Report."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.measures.statistic import quantile
from attncli.reports.arrays import array_of, left_out, saved, top_data
from attncli.reports.blocks import Block, Column, Picture, Records, Report, Table, Text
from attncli.reports.facts import facts_of, headline, heads_of, tokens_of
from attncli.reports.matrices import (
    output_tables,
    top_tables,
    weights_tables,
)
from attncli.reports.selection import Selection, select, selection_of
from attncli.reports.words import GRADIENTS, SMALL
from attncli.resources import Progress
from attncli.studies.attend import Result
from attncli.studies.bundle import PROBLEM, Carried, carried, demand_lists

if TYPE_CHECKING:
    from attncli.studies.compare import Comparison

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "attncli.compute/1"


def compute_report(
    result: Result,
    labels: Labels,
    view: View,
    include: Collection[str] | None,
    *,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
    judged: Comparison | None = None,
    name: str = "what was given",
    machine: bool = False,
) -> Report:
    """Return the report on a Result made with what ``wanted`` said.

    ``include`` names the arrays to save and to put into JSON, by default the output; ``notes`` are
    facts about the input. ``progress`` hears of maps, which take long for long inputs. Where
    somebody else's results, called ``name``, are ``judged``, that is shown and not ours, unless
    ours are asked for. For a ``machine``, which reads the data alone, there is nothing for eyes.
    Raises InputError for an index that does not exist, or steps of too much.
    """
    problem = result.problem
    chosen = select(problem, view)
    blocks: list[Block] = []
    if judged is not None and not machine:
        from attncli.reports.expect import expect_blocks

        blocks += expect_blocks(judged, name)
    ours = judged is None or view.steps or view.heatmap or view.top is not None
    if ours and not machine:
        blocks += _result_blocks(result, labels, view, chosen, progress)
    along = carried(problem, include or (), past_apart=True)
    timing, asides = None, []
    if view.time:
        from attncli.reports.timing import timing_line, timing_of, timing_table

        timing = timing_of(result)
        asides = [timing_line(result, timing)]
        blocks += [] if machine else [timing_table(result, timing)]

    def records() -> Records:
        if judged is not None:
            from attncli.reports.expect import expect_records

            return expect_records(judged)
        from attncli.reports.records import records_of

        return records_of(result, labels, view, chosen, include or (), result.summaries)

    def pictures(progress: Progress | None = None) -> list[Picture]:
        from attncli.reports.pictures import error_pictures, head_pictures

        lse, values = result.attended.lse, result.row_values or {}
        errors = [] if judged is None else error_pictures(judged, name)
        heads = head_pictures(problem, lse, values, labels, view, chosen, None, progress)
        return [*errors, *heads]

    return Report(
        command="compute",
        headline=[] if machine else headline(result),
        blocks=blocks,
        data=lambda: _data(result, labels, view, chosen, include, timing, notes, along, judged),
        records=records,
        arrays=saved(result, include or ("output",)) | {**along.arrays},
        options=along.options,
        pictures=pictures,
        warnings=result.warnings,
        notes=notes,
        exit_code=0 if judged is None or judged.passed else 1,
        asides=asides,
    )  # fmt: skip


def _result_blocks(
    result: Result,
    labels: Labels,
    view: View,
    chosen: Selection,
    progress: Progress | None,
) -> list[Block]:
    """Return our own results, for eyes."""
    problem = result.problem
    blocks: list[Block] = []
    if view.steps:
        from attncli.reports.steps import steps

        return list(steps(problem, labels, view, chosen))
    if view.heatmap:
        from attncli.reports.maps import heatmaps

        blocks += heatmaps(problem, result.attended.lse, labels, view, chosen, progress)
    if view.top is not None:
        blocks += top_tables(problem, labels, view, chosen)
    if not view.heatmap and view.top is None:
        blocks += weights_tables(problem, labels, view, chosen)
    if not view.heatmap:
        blocks += output_tables(result, labels, view, chosen)
    if not (len(chosen.batch) and len(chosen.head)):
        return [Text("", ["nothing to show: the batch is empty or has no heads"])]
    from attncli.reports.stability import stability_table

    blocks = [_or_nothing(block) for block in blocks]
    blocks.append(stability_table(problem, result.summaries, view, chosen))
    if result.derived is not None:
        blocks.append(gradient_table(problem, result.gradient_norms, chosen))
    return blocks


def _or_nothing(block: Block) -> Block:
    """Return a line for a table that has no cells."""
    if isinstance(block, Table) and not (block.rows and block.columns):
        return Text("", [f"{block.title}: {len(block.rows)} × {len(block.columns)}, empty"])
    return block


def gradient_table(problem: Problem, norms: Mapping[str, Array], chosen: Selection) -> Table:
    """Return a row a head: medians and p05 of the norms of each row of dQ, dS, dK and dV."""
    from attncli.measures.evidence import every_statistic

    registry = {one.name: one for one in every_statistic()}
    columns, cells = [], []
    shown = [f"grad_{name}_norm" for name in ("query", "score", "key", "value")]
    shown = [name for name in shown if name in norms]
    for name in shown:
        columns += [
            Column(registry[name].heading, sub="median"),
            Column("", sub="p05", keep=-1),
        ]
    for b, h in chosen.pairs:
        row: list[float] = []
        for name in shown:
            ours = registry[name].of == "row"
            norm = norms[name][b, h if ours else problem.group(h)]
            norm = norm[problem.real_rows[b]] if ours else norm
            ordered = np.sort(norm[np.isfinite(norm)])
            row += [quantile(ordered, share) if len(ordered) else math.nan for share in (0.5, 0.05)]
        cells.append(row)
    names = [f"head {h}" if problem.batch == 1 else f"batch {b} head {h}" for b, h in chosen.pairs]
    return Table("Gradients", columns, cells, names)


# -- for programs -----------------------------------------------------------------------------


def _data(
    result: Result,
    labels: Labels,
    view: View,
    chosen: Selection,
    include: Collection[str] | None,
    timing: dict[str, Any] | None,
    notes: Sequence[str],
    along: Carried,
    judged: Comparison | None,
) -> dict[str, Any]:
    """Return the JSON object of the report."""
    problem = result.problem
    data = {"schema": SCHEMA, "command": "compute", **facts_of(result)}
    data["shapes"]["output"] = list(result.output.shape)
    if notes:
        data["notes"] = list(notes)
    data |= selection_of(view)
    if judged is not None:
        data["expect"] = judged.data()
    if timing:
        data["time"] = timing
    data |= tokens_of(labels)
    data["heads"] = heads_of(result, chosen.pairs)
    if view.top is not None:
        data["top"] = list(top_data(problem, view.top, chosen))
    if include:
        for name in include:
            data[name] = array_of(result, chosen, view, name)
        if along.options:
            demand_lists({name: data[name] for name in PROBLEM if name in include})
        data |= along.members
    elif judged is None:
        width = len(chosen.rows) * len(list(chosen.pairs)) * problem.value_width
        sizes = {"output": width, "weights": chosen.cells}
        if result.derived is not None:
            sizes |= dict.fromkeys(GRADIENTS, problem.query.size + problem.key.size)
        small = [name for name, size in sizes.items() if size <= SMALL]
        data |= {name: array_of(result, chosen, view, name) for name in small}
        data["warnings"] += left_out([name for name in sizes if name not in small])
    return data
