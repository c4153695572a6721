"""What `attncli multihead` has to say: a layer's result, or a checkpoint's list, as a Report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attncli.attention.problem import STAGES, Problem
from attncli.attention.view import Labels, View
from attncli.errors import InputError
from attncli.measures.statistic import of_head
from attncli.reports.arrays import array_of, left_out, top_data, wanted
from attncli.reports.blocks import Block, Column, Heatmap, Picture, Records, Report, Table, Text
from attncli.reports.facts import (
    facts_of,
    headline,
    tokens_of,
)
from attncli.reports.heads import WHOLE, Shown, alike, columns, head_name
from attncli.reports.heads import cells as shown_cells
from attncli.reports.labels import token
from attncli.reports.layers import family_of, heads_of, layer_data
from attncli.reports.maps import heatmaps
from attncli.reports.matrices import rows_table, top_tables, weights_tables
from attncli.reports.records import records_of
from attncli.reports.selection import Selection, excerpt, is_whole, select, selection_of
from attncli.reports.stability import EDGE_HEADS
from attncli.reports.timing import timing_line, timing_of, timing_table
from attncli.reports.words import SMALL
from attncli.resources import Progress
from attncli.studies.bundle import carried
from attncli.studies.compare import Comparison
from attncli.studies.heads import HeadFacts
from attncli.studies.layer import MultiheadResult

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "attncli.multihead/1"
#: The projections by the names that `multihead` reads them by, (out, in).
WEIGHTS = {"wq": "query", "wk": "key", "wv": "value", "wo": "output"}
OWN = (
    "output", "query", "key", "value", "present_key", "present_value", "heads", "concat", *WEIGHTS
)  # fmt: skip
HEAD = (Shown("entropy"), Shown("max_weight"), Shown("output_share", sub="norm share"))
MAPPED = 64  # heads that a map of likeness has room for


def layer_wanted(
    problem: Problem, view: View, include: Collection[str] | None, machine: bool
) -> set[str]:
    """Return what the engine has to make for this report, as ``report_compute.wanted``."""
    stages = [name for name in include or () if name not in OWN]
    return wanted(problem, view, stages, machine and not include)


def multihead_report(
    made: MultiheadResult,
    facts: HeadFacts,
    labels: Labels,
    view: View,
    include: Collection[str] | None,
    *,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    counted: bool = False,
    judged: Comparison | None = None,
    name: str = "what was given",
) -> Report:
    """Return the report on a layer's result.

    ``include`` names arrays to save and to put into JSON, by default the output; with query and key
    among them it is a bundle that `compute` reads, options included. ``counted`` adds a table of
    the parameters. Where somebody else's results, called ``name``, are ``judged``, that is shown
    and not ours, unless ours are asked for. Raises InputError for an index that does not exist.
    """
    problem = made.attention.problem
    chosen = select(problem, view)
    blocks: list[Block] = []
    if judged is not None:
        from attncli.reports.expect import expect_blocks

        blocks += expect_blocks(judged, name)
    if judged is None or view.steps or view.heatmap or view.top is not None:
        blocks += _result_blocks(made, facts, labels, view, chosen, counted)
    timing = timing_of(made.attention) if view.time else None
    if timing:
        blocks.append(timing_table(made.attention, timing))
    names = tuple(include or ("output",))
    along = carried(problem, names, past_apart=False)
    warnings = [*warnings, *made.warnings]

    def data() -> Mapping[str, Any]:
        said: dict[str, Any] = {
            "schema": SCHEMA, "command": "multihead", "layer": _layer_data(made),
            **facts_of(made.attention), "warnings": warnings,
            "notes": [*made.notes, *notes], **selection_of(view),
        }  # fmt: skip
        said["shapes"] |= {"heads": list(made.heads.shape), "output": list(made.output.shape)}
        if judged is not None:
            said["expect"] = judged.data()
        if timing:
            said["time"] = timing
        said |= tokens_of(labels)
        told = made.attention.by_head(facts.found)
        said["heads"] = [_head_data(made, facts, told, b, h, names) for b, h in chosen.pairs]
        said["head_distances"] = facts.sample.distances
        if view.top is not None:
            said["top"] = list(top_data(problem, view.top, chosen))
        if include:
            said |= {n: _array(made, chosen, view, n) for n in names if n != "heads"}
        elif judged is None:
            sizes = {"output": made.output.size, "weights": chosen.cells}
            small = [name for name, size in sizes.items() if size <= SMALL]
            said |= {name: _array(made, chosen, view, name) for name in small}
            said["warnings"] = [*warnings, *left_out([n for n in sizes if n not in small])]
        return said | along.members

    def records() -> Records:
        if judged is not None:
            from attncli.reports.expect import expect_records

            return expect_records(judged)
        return _records(made, facts, labels, view, chosen, include)

    def pictures(progress: Progress | None = None) -> list[Picture]:
        from attncli.reports.pictures import error_pictures, head_pictures

        lse, values = made.attention.attended.lse, made.attention.row_values or {}
        errors = [] if judged is None else error_pictures(judged, name)
        heads = head_pictures(problem, lse, values, labels, view, chosen, None, progress)
        return [*errors, *heads]

    return Report(
        command="multihead",
        headline=first_line(made),
        blocks=blocks,
        data=data,
        records=records,
        arrays=_saved(made, names) | {**along.arrays},
        options=along.options,
        pictures=pictures,
        warnings=warnings,
        notes=[" · ".join(headline(made.attention)), *made.notes, *notes, *_sampled(facts)],
        exit_code=0 if judged is None or judged.passed else 1,
        asides=[timing_line(made.attention, timing)] if timing else [],
    )


def _result_blocks(
    made: MultiheadResult,
    facts: HeadFacts,
    labels: Labels,
    view: View,
    chosen: Selection,
    counted: bool,
) -> list[Block]:
    """Return our own results, for eyes."""
    problem = made.attention.problem
    blocks: list[Block] = []
    part = view.head is not None or view.rows is not None or view.keys is not None
    if view.steps:
        from attncli.reports.projected import Around
        from attncli.reports.steps import steps

        blocks += steps(problem, labels, view, chosen, Around(made))
    elif part and view.top is None and not view.heatmap and chosen.cells:
        blocks += weights_tables(problem, labels, view, chosen)
    if view.heatmap:
        blocks += heatmaps(problem, made.attention.attended.lse, labels, view, chosen)
    if view.top is not None:
        blocks += top_tables(problem, labels, view, chosen)
    if counted:
        blocks.append(_parameter_table(made))
    if len(chosen.batch) and len(chosen.head):
        blocks.append(_head_table(problem, facts, view, chosen))
        blocks += _likeness(problem, facts, chosen)
    if not view.heatmap:
        blocks += _output_tables(made, labels, view, chosen)
    return blocks


def _sampled(facts: HeadFacts) -> list[str]:
    sample = facts.sample
    if sample.whole:
        return []
    return [f"likeness of heads from {sample.rows:,} of {sample.total:,} rows (seed {sample.seed})"]


# -- the first line ---------------------------------------------------------------------------


def first_line(made: MultiheadResult) -> list[str]:
    """Return which layer it is, its heads and where their number is from, its parameters."""
    layer = made.layer
    kind = "joint" if layer.joint else "cross" if made.cross else "self"
    kind += "-attention"
    who = " ".join(filter(None, (family_of(layer), kind)))
    sizes = heads_of(layer)
    if layer.heads_source != "given":
        sizes += f", from {layer.heads_source}"
    name = f", {layer.name}" if layer.name else ""
    return [f"{who}{name} ({sizes})", f"{layer.parameters:,} parameters"]


# -- tables -----------------------------------------------------------------------------------


def _parameter_table(made: MultiheadResult) -> Table:
    """Return a row a projection: out × in, bias, and how many numbers that is."""
    rows, labels = [], []
    for role in ("query", "key", "value", "output"):
        weight, bias = (getattr(made.projections, role + end) for end in ("", "_bias"))
        if weight is not None:
            shape = f"{weight.shape[0]} × {weight.shape[1]}"
            size = weight.size + (bias.size if bias is not None else 0)
            rows.append([shape, bias.size if bias is not None else None, size])
            labels.append(f"W_{role[0].upper()}")
    rows.append(["", None, made.layer.parameters])
    columns = [Column("out × in", "text"), Column("bias", "count"), Column("parameters", "count")]
    return Table("Weights", columns, rows, [*labels, "all"])


def _head_table(problem: Problem, facts: HeadFacts, view: View, chosen: Selection) -> Table:
    pairs = list(chosen.pairs)
    shown, gap = excerpt(range(len(pairs)), view.full, WHOLE, EDGE_HEADS)
    rows = []
    for b, h in (pairs[n] for n in shown.tolist()):
        own = of_head(facts.found, b, h)
        rows.append([
            ", ".join(role.token or role.name for role in facts.roles[b, h][:2]),
            *shown_cells(HEAD, own), alike(own, "head_similarity"),
        ])  # fmt: skip
    return Table(
        title="head",
        columns=[
            Column("looks at", "text", keep=10),
            *columns(HEAD),
            Column("most alike", "text", "(distance)", keep=6),
        ],
        rows=rows,
        labels=[head_name(problem, *pairs[n]) for n in shown.tolist()],
        part=f"{len(shown)} of {len(pairs)} heads" if gap else "",
        hint="--full, --head, --batch, --format csv" if gap else "",
        row_gap=gap,
        whole=view.full,
    )


def _likeness(problem: Problem, facts: HeadFacts, chosen: Selection) -> list[Block]:
    """Return a small map of how alike heads are."""
    heads = list(chosen.head)
    if not 3 <= len(heads) <= MAPPED:  # of two, the table says it
        return []
    values = facts.alike(chosen.batch)[np.ix_(heads, heads)]
    if not np.isfinite(values[~np.eye(len(heads), dtype=bool)]).any():
        return []
    edges = range(len(heads) + 1)
    names = [str(h) for h in heads]
    several = "; mean of the batch" if len(chosen.batch) > 1 else ""
    return [
        Heatmap(
            "How alike heads are (1 − Jensen–Shannon distance" + several + ")",
            values, edges, edges, names, names, row_positions=heads, column_positions=heads,
        )
    ]  # fmt: skip


def _output_tables(
    made: MultiheadResult, labels: Labels, view: View, chosen: Selection
) -> Iterator[Block]:
    problem = made.attention.problem
    output = made.projected
    what = "Heads, side by side" if made.projections.output is None else "Projected output"
    for b in dict.fromkeys(b for b, _ in chosen.shown):
        title = what + (f" · batch {b}" if problem.batch > 1 else "")
        if not len(chosen.rows) or not output.shape[-1]:
            yield Text("", [f"{title}: {len(chosen.rows)} × {output.shape[-1]}, empty"])
            continue
        yield rows_table(title, output[b], b, labels, view, chosen)


# -- for programs -----------------------------------------------------------------------------


def _layer_data(made: MultiheadResult) -> dict[str, Any]:
    counts = {
        name: int(array.size) for name, array in vars(made.projections).items() if array is not None
    }
    return {
        **layer_data(made.layer),
        "cross": made.cross,
        "parameters_by_tensor": counts,
        "not_computed": [lack.what for lack in made.layer.lacks],
    }


def _head_data(
    made: MultiheadResult, facts: HeadFacts, told: Any, b: int, h: int, names: Collection[str]
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "batch": b, "head": h, "roles": [role.data for role in facts.roles[b, h]],
        "statistics": told[b][h],
    }  # fmt: skip
    if "heads" in names:  # that name is this list's: each head's output stands with it
        said["output"] = made.attention.attended.output[b, h]
    return said


def _array(made: MultiheadResult, chosen: Selection, view: View, name: str) -> Any:
    if name in OWN:
        return _own(made, name)
    if name == "weights" and made.weights is not None and is_whole(view):
        return made.weights
    return array_of(made.attention, chosen, view, name)


def _own(made: MultiheadResult, name: str) -> Array:
    if name not in WEIGHTS:
        array: Array = getattr(made, name.removeprefix("present_"))  # both hold the past
        return array
    weights: Array | None = getattr(made.projections, WEIGHTS[name])
    if weights is None:
        raise InputError(
            f"--include: {made.layer.label} has no {name}",
            "the heads side by side are its output",
        )
    return weights


def _saved(made: MultiheadResult, names: Sequence[str]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    result = made.attention
    for name in names:
        if name in OWN:
            arrays[name] = _own(made, name)
        elif name == "row_statistics":
            values = result.row_statistics or {}
            arrays |= {f"row_statistics.{key}": value for key, value in values.items()}
        else:
            arrays[name] = result.stages[name] if name in STAGES else result.lse
    return arrays


def _records(
    made: MultiheadResult, facts: HeadFacts, labels: Labels, view: View, chosen: Selection,
    include: Collection[str] | None,
) -> Records:  # fmt: skip
    own = [name for name in include or () if name in OWN]
    if own == ["output"] and include and len(include) == 1:
        return _output_records(made, labels, chosen)
    if own:
        raise InputError(
            f"one CSV table cannot hold {', '.join(include or ())}",
            "it holds a row a head; or output alone; or weights and other stages; or --top. "
            "--json and -o FILE.npz hold anything",
        )
    if include or view.top is not None:
        return records_of(made.attention, labels, view, chosen, include or (), facts.found)
    plain = records_of(made.attention, labels, view, chosen, (), facts.found)
    rows = (
        [*row, ", ".join(role.words for role in facts.roles[row[0], row[1]])] for row in plain.rows
    )
    return Records([*plain.columns, "looks_at"], rows)


def _output_records(made: MultiheadResult, labels: Labels, chosen: Selection) -> Records:
    output = made.projected
    names = labels.query
    rows = (
        [b, i, token(names, b, i) if names else "", d, value]
        for b in chosen.batch
        for i in chosen.rows
        for d, value in enumerate(output[b, i].tolist())
    )
    return Records(["batch", "query", "query_token", "channel", "output"], rows)
