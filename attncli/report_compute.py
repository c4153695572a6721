"""What `attncli compute` has to say: a Result becomes a Report."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from attncli import measures
from attncli.backends import STAGES, Progress
from attncli.errors import InputError
from attncli.problem import Problem
from attncli.report import Block, Column, Labels, Report, Table, Text, View
from attncli.report_parts import (
    Selection,
    by_head,
    heatmaps,
    output_tables,
    select,
    stability_table,
    stage_of,
    strongest,
    top_tables,
    weights_tables,
)
from attncli.report_records import of_head, records_of
from attncli.run import Result, statistics

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "attncli.compute/1"
SMALL = 4096  # numbers that JSON gives without being asked
INCLUDABLE = (
    "output", *reversed(STAGES), "lse", "query", "key", "value", "present_key", "present_value",
    "row_statistics", "grad_query", "grad_key", "grad_value",
)  # fmt: skip
GRADIENTS = INCLUDABLE[-3:]
LONGEST_MASK = 48


def wanted(
    problem: Problem,
    view: View,
    include: Collection[str] | None,
    machine: bool,
    gradients: bool = False,
) -> set[str]:
    """Return what the engine has to make for this report: the stages only when needed whole.

    ``include`` are names of INCLUDABLE (none: the default), ``machine`` says that JSON is printed,
    ``gradients`` that there is an upstream gradient. Raises InputError for a name or an index that
    does not exist, or gradients without an upstream one.
    """
    chosen = select(problem, view)
    unknown = [name for name in include or () if name not in INCLUDABLE]
    if unknown:
        close = get_close_matches(unknown[0], INCLUDABLE, 1)
        raise InputError(
            f"unknown name '{unknown[0]}' in --include",
            (f"did you mean '{close[0]}'? " if close else "") + f"known: {', '.join(INCLUDABLE)}",
        )
    want = {"output", "lse", "row_statistics"} | {n for n in include or () if n in STAGES}
    asked = [name for name in include or () if name in GRADIENTS]
    if asked and not gradients:
        raise InputError(
            f"--include {asked[0]} needs the gradient of the output", "add --grad-output ones"
        )
    if gradients:
        want |= {"gradients", "gradient_norms"}
    if machine and not include and is_whole(view) and cells(chosen) <= SMALL:
        want.add("weights")
    return want


def compute_report(
    result: Result,
    labels: Labels,
    view: View,
    include: Collection[str] | None,
    *,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Return the report on a Result made with what ``wanted`` said.

    ``include`` names the arrays to save and to put into JSON, by default the output; ``notes`` are
    facts about the input. ``progress`` hears of maps, which take long for long inputs.
    Raises InputError for an index that does not exist, or steps of too much.
    """
    problem = result.problem
    chosen = select(problem, view)
    found = statistics(result)
    if result.gradients is not None:
        norms = gradient_norms(result)
        real = np.broadcast_to(problem.real_rows[:, None], norms["grad_query_norm"].shape)
        found |= {
            name: measures.summarize(norm, real)
            for name, norm in norms.items()
            if norm.shape[1:] == (problem.heads, problem.queries)
        }
    blocks: list[Block] = []
    if view.steps:
        from attncli.report_steps import steps

        blocks += steps(problem, labels, view, chosen)
    else:
        if view.heatmap:
            blocks += heatmaps(problem, labels, view, chosen, progress)
        if view.top is not None:
            blocks += top_tables(problem, labels, view, chosen)
        if not view.heatmap and view.top is None:
            blocks += weights_tables(problem, labels, view, chosen)
        if not view.heatmap:
            blocks += output_tables(result, labels, view, chosen)
        blocks = [_or_nothing(block) for block in blocks]
        if len(chosen.batch) and len(chosen.head):
            blocks.append(stability_table(problem, found, view, chosen))
            if result.gradients is not None:
                blocks.append(gradient_table(problem, gradient_norms(result), chosen))
        else:
            blocks = [Text("", ["nothing to show: the batch is empty or has no heads"])]
    timing = timing_of(result) if view.time else None
    if timing:
        blocks.append(timing_table(result, timing))
    return Report(
        command="compute",
        headline=headline(result),
        blocks=blocks,
        data=lambda: _data(result, labels, view, chosen, include, found, timing, notes),
        records=lambda: records_of(result, labels, view, chosen, include or (), found),
        arrays=_saved(result, include or ("output",)),
        warnings=result.warnings,
        notes=notes,
    )


def _or_nothing(block: Block) -> Block:
    """Return a line for a table that has no cells."""
    if isinstance(block, Table) and not (block.rows and block.columns):
        return Text("", [f"{block.title}: {len(block.rows)} × {len(block.columns)}, empty"])
    return block


def gradient_norms(result: Result) -> dict[str, Array]:
    """Return the row norms of the gradients, ``(B, H, Lq)`` or ``(B, G, Lk)``, by name."""
    p = result.problem
    assert result.gradients is not None
    rows, keys = (p.batch, p.heads, p.queries), (p.batch, p.kv_heads, -1)
    return {
        name: norm.reshape(rows if name in ("grad_query_norm", "grad_score_norm") else keys)
        for name, norm in result.gradients.norms.items()
    }


def gradient_table(problem: Problem, norms: Mapping[str, Array], chosen: Selection) -> Table:
    """Return a row a head: medians and p05 of the norms of each row of dQ, dS, dK and dV."""
    columns, cells = [], []
    for name, symbol in (("query", "‖dQ‖"), ("score", "‖dS‖"), ("key", "‖dK‖"), ("value", "‖dV‖")):
        if f"grad_{name}_norm" in norms:
            columns += [Column(symbol, sub="median"), Column("", sub="p05", keep=-1)]
    for b, h in chosen.pairs:
        row: list[float] = []
        for name in ("query", "score", "key", "value"):
            if f"grad_{name}_norm" not in norms:
                continue
            ours = name in ("query", "score")
            norm = norms[f"grad_{name}_norm"][b, h if ours else problem.group(h)]
            norm = norm[problem.real_rows[b]] if ours else norm
            ordered = np.sort(norm[np.isfinite(norm)])
            row += [
                measures.quantile(ordered, share) if len(ordered) else math.nan
                for share in (0.5, 0.05)
            ]
        cells.append(row)
    names = [f"head {h}" if problem.batch == 1 else f"batch {b} head {h}" for b, h in chosen.pairs]
    return Table("Gradients", columns, cells, names)


# -- the first line ---------------------------------------------------------------------------


def headline(result: Result) -> list[str]:
    """Return the facts of the first line: shapes in words, scale, mask, engine."""
    problem, engine = result.problem, result.engine
    facts = [_shapes_in_words(problem), _scale_in_words(problem)]
    if problem.rope is not None:
        facts.append(f"RoPE {problem.rope.text}")
    if problem.softcap is not None:
        facts.append(f"softcap {problem.softcap:.4g}")
    if problem.sink is not None:
        sinks = sorted(set(problem.sink.tolist()))
        facts.append(f"sink {sinks[0]:.4g}" if len(sinks) == 1 else "a sink per head")
    if not problem.mask.trivial:
        lengths = problem.mask.extent.lengths
        said = [f"mask {problem.mask.text}"] if problem.mask.text else []
        said += [f"kv lengths {', '.join(map(str, lengths))}"] if lengths else []
        for text in said or ["mask given"]:
            if len(text) > LONGEST_MASK:
                text = text[: LONGEST_MASK // 2] + "…" + text[-LONGEST_MASK // 2 :]
            facts.append(text)
    dtype = engine.dtype
    if problem.result_dtype.name != dtype:
        dtype += f" for {problem.result_dtype.name}"
    device = "" if engine.device == "cpu" else f" on {engine.device}"
    threads = f", {engine.threads} threads" if engine.threads > 1 else ""
    return [*facts, f"{engine.backend} {dtype}{device}{threads}"]


def _shapes_in_words(problem: Problem) -> str:
    batch, heads = problem.batch, problem.heads
    parts = []
    if batch != 1 or heads != 1:
        many = f"{batch} × " if batch != 1 else ""
        text = many + _count(heads, "head")
        if problem.kv_heads != heads:
            text += f" ({problem.kv_heads} for keys and values)"
        parts.append(text)
    rows, keys = _count(problem.queries, "query", "queries"), _count(problem.keys, "key")
    past = f" ({problem.past} of them past)" if problem.past else ""
    parts += [f"{rows} × {keys}{past}", f"width {problem.width}"]
    if problem.value_width != problem.width:
        parts.append(f"values of width {problem.value_width}")
    return ", ".join(parts)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _scale_in_words(problem: Problem) -> str:
    source = problem.scale_source
    text = f"scale {problem.scale:.4g}"
    if source.startswith("1/√"):
        return f"{text} = {source}"
    return text if source == "given" else f"{text} ({source})"


# -- for programs -----------------------------------------------------------------------------


def _data(
    result: Result,
    labels: Labels,
    view: View,
    chosen: Selection,
    include: Collection[str] | None,
    found: Mapping[str, Any],
    timing: dict[str, Any] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the JSON object of the report."""
    problem = result.problem
    data = {"schema": SCHEMA, "command": "compute", **facts_of(result)}
    data["shapes"]["output"] = list(result.output.shape)
    if notes:
        data["notes"] = list(notes)
    data |= selection_of(view)
    if timing:
        data["time"] = timing
    data |= tokens_of(labels)
    data["heads"] = [
        {"batch": b, "head": h, "statistics": of_head(found, b, h)} for b, h in chosen.pairs
    ]
    if view.top is not None:
        data["top"] = list(top_data(problem, view.top, chosen))
    if include:
        for name in include:
            data[name] = array_of(result, chosen, view, name)
    else:
        if len(chosen.rows) * len(list(chosen.pairs)) * problem.value_width <= SMALL:
            data["output"] = array_of(result, chosen, view, "output")
        if cells(chosen) <= SMALL:
            data["weights"] = array_of(result, chosen, view, "weights")
        if result.gradients is not None and problem.query.size + problem.key.size <= SMALL:
            data |= {name: array_of(result, chosen, view, name) for name in GRADIENTS}
    return data


def facts_of(result: Result) -> dict[str, Any]:
    """Return what JSON says of any attention: engine, shapes, scale, mask, warnings."""
    problem, engine = result.problem, result.engine
    data: dict[str, Any] = {
        "engine": {
            "backend": engine.backend, "device": engine.device, "dtype": engine.dtype,
            "threads": engine.threads, "kernel": engine.kernel,
        },
        "shapes": {
            name: list(problem.family.restore(getattr(problem, name)).shape)
            for name in ("query", "key", "value")
        },
        "scale": problem.scale,
        "scale_source": problem.scale_source,
        "softcap": problem.softcap,
        "mask": problem.mask.text or None,
        "warnings": list(result.warnings),
    }  # fmt: skip
    if problem.sink is not None:
        data["sink"] = problem.sink
    if problem.rope is not None:  # no option's name: a query that is read back is turned already
        data["rope_applied"] = problem.rope.text
    if problem.mask.extent.lengths is not None:
        data["kv_lengths"] = list(problem.mask.extent.lengths)
    return data


def selection_of(view: View) -> dict[str, Any]:
    """Return the member that says which part was selected, if one was."""
    if is_whole(view):
        return {}
    names = ("batch", "head", "rows", "keys")
    return {"selection": {n: list(s) for n in names if (s := getattr(view, n)) is not None}}


def is_whole(view: View) -> bool:
    """Return whether everything is selected."""
    return view.batch is view.head is view.rows is view.keys is None


def cells(chosen: Selection) -> int:
    """Return how many weights are selected."""
    return len(chosen.batch) * len(chosen.head) * len(chosen.rows) * len(chosen.keys)


def tokens_of(labels: Labels) -> dict[str, Any]:
    """Return the labels as the members that a bundle has: tokens, or query_ and key_tokens."""

    def plain(names: tuple[tuple[str, ...], ...]) -> list[Any]:
        return list(names[0]) if len(names) == 1 else [list(own) for own in names]

    if labels.query and labels.query == labels.key:
        return {"tokens": plain(labels.query)}
    found = {"query_tokens": labels.query, "key_tokens": labels.key}
    return {name: plain(names) for name, names in found.items() if names}


def top_data(problem: Problem, count: int, chosen: Selection) -> Iterator[dict[str, Any]]:
    """Return the strongest keys of each selected row, for JSON."""
    for b, h in chosen.pairs:
        for row, best in strongest(problem, b, h, chosen.rows, chosen.keys, count):
            yield {
                "batch": b, "head": h, "query": row,
                "keys": [j for j, _ in best], "weights": [w for _, w in best],
            }  # fmt: skip


def array_of(result: Result, chosen: Selection, view: View, name: str) -> Any:
    """Return an array of --include for JSON: of what is indexed by query, the selected part."""
    problem = result.problem
    if is_whole(view) and (name not in STAGES or name in result.stages):
        return result.row_statistics if name == "row_statistics" else _included(result, name)
    at = np.ix_(*(np.asarray(s, np.int64) for s in (chosen.batch, chosen.head, chosen.rows)))
    if name == "output":
        return problem.family.restore(by_head(problem.family, result.output, problem.heads)[at])
    if name in STAGES:
        return problem.family.restore_rows(_stage(result, chosen, name))
    grid = (problem.batch, problem.heads, problem.queries)
    if name == "lse":
        return problem.family.restore_rows(result.lse.reshape(grid)[at])
    if name == "row_statistics":
        values = result.row_statistics or {}
        return {k: problem.family.restore_rows(v.reshape(grid)[at]) for k, v in values.items()}
    return _included(result, name)


def _stage(result: Result, chosen: Selection, name: str) -> Array:
    """Return the selected part of a stage, ``(b, h, rows, keys)`` in the result's dtype."""
    problem = result.problem
    shape = (problem.batch, problem.heads, problem.queries, problem.keys)
    part = tuple(np.asarray(s, np.int64) for s in (
        chosen.batch, chosen.head, chosen.rows, chosen.keys
    ))  # fmt: skip
    if name in result.stages:
        return np.asarray(result.stages[name].reshape(shape)[np.ix_(*part)])
    made = np.empty(tuple(len(p) for p in part), problem.result_dtype)
    for m, b in enumerate(chosen.batch):
        for n, h in enumerate(chosen.head):
            made[m, n] = stage_of(problem, b, h, chosen.rows, chosen.keys, name)
    return made


def _included(result: Result, name: str) -> Array:
    """Return a whole array of --include, in the shape family that came in."""
    problem = result.problem
    if name in STAGES:
        return result.stages[name]
    if name in GRADIENTS:
        assert result.gradients is not None
        return np.asarray(getattr(result.gradients, name.removeprefix("grad_")))
    if name in ("output", "lse"):
        return np.asarray(getattr(result, name))
    # what was cached is no part of the key and the value that came in
    kept = {"query": problem.query} | {
        name: array
        for kind, array in (("key", problem.key), ("value", problem.value))
        for name, array in ((kind, array[:, :, problem.past :]), (f"present_{kind}", array))
    }
    return problem.family.restore(kept[name])


def _saved(result: Result, include: Collection[str]) -> dict[str, Array]:
    """Return the whole arrays by name; row statistics as 'row_statistics.entropy' …"""
    arrays: dict[str, Array] = {}
    for name in include:
        if name == "row_statistics":
            values = result.row_statistics or {}
            arrays |= {f"row_statistics.{key}": value for key, value in values.items()}
        else:
            arrays[name] = _included(result, name)
    return arrays


# -- time -------------------------------------------------------------------------------------


def timing_of(result: Result) -> dict[str, Any]:
    """Return seconds, GFLOP/s (two products over the visible cells) and peak memory in bytes."""
    problem = result.problem
    cells = problem.batch * problem.heads * problem.queries * problem.keys
    if result.rows is not None:
        cells = int(result.rows.n.sum())
    flops = 2 * cells * (problem.width + problem.value_width)
    rate = flops / result.seconds / 1e9 if result.seconds > 0 else math.nan
    return {"seconds": result.seconds, "gflops": rate, "peak_memory_bytes": _peak_memory()}


def _peak_memory() -> int | None:
    """Return the most memory this process has had, or None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def timing_table(result: Result, timing: Mapping[str, Any]) -> Table:
    """Return a row for what ``timing_of`` says."""
    peak = timing["peak_memory_bytes"]
    columns = [Column("seconds"), Column("GFLOP/s"), Column("peak memory", sub="MiB")]
    cells = [timing["seconds"], timing["gflops"], None if peak is None else peak / 2**20]
    return Table("Time", columns, [cells], [result.engine.kernel or result.engine.backend])
