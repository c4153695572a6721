"""Arrays for ``--include`` and ``-o``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from attncli.attention.problem import STAGES, Problem
from attncli.attention.view import View
from attncli.errors import InputError, nearest
from attncli.reports.matrices import stage_of, strongest
from attncli.reports.selection import Selection, is_whole, select
from attncli.reports.words import GRADIENTS, INCLUDABLE, SMALL
from attncli.studies.attend import Result

Array = np.ndarray[Any, np.dtype[Any]]


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
        raise InputError(
            f"unknown name '{unknown[0]}' in --include",
            nearest(unknown[0], INCLUDABLE, f"known: {', '.join(INCLUDABLE)}", 0.6),
        )
    want = {"output", "lse", "row_statistics"} | {n for n in include or () if n in STAGES}
    asked = [name for name in include or () if name in GRADIENTS]
    if asked and not gradients:
        raise InputError(
            f"--include {asked[0]} needs the gradient of the output", "add --grad-output ones"
        )
    if gradients:
        want |= {"gradients", "gradient_norms"}
    if machine and not include and is_whole(view) and chosen.cells <= SMALL:
        want.add("weights")
    return want


def left_out(names: Collection[str]) -> list[str]:
    """Return the warning of arrays that JSON leaves out for their size, or nothing."""
    if not names:
        return []
    are = "are" if len(names) > 1 else "is"
    return [
        f"{', '.join(names)} {are} left out: more than {SMALL:,} numbers "
        f"(--include {','.join(names)})"
    ]


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
    family = problem.family
    if name == "output":
        return family.restore(result.attended.output[at])
    if name in STAGES:
        return family.restore_rows(_stage(result, chosen, name))
    if name == "lse":
        return family.restore_rows(result.attended.lse[at])
    if name == "row_statistics":
        return {k: family.restore_rows(v[at]) for k, v in (result.row_values or {}).items()}
    return _included(result, name)


def _stage(result: Result, chosen: Selection, name: str) -> Array:
    """Return the selected part of a stage, ``(b, h, rows, keys)`` in the result's dtype."""
    problem = result.problem
    part = tuple(np.asarray(s, np.int64) for s in (
        chosen.batch, chosen.head, chosen.rows, chosen.keys
    ))  # fmt: skip
    if name in result.attended.stages:
        return np.asarray(result.attended.stages[name][np.ix_(*part)])
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
    if name == "query":
        return problem.family.restore(problem.query)
    array = problem.key if name.endswith("key") else problem.value
    if name.startswith("present_"):
        return problem.caches.restore(array)
    return problem.family.restore(array[:, :, problem.past :])  # new ones alone: the past is apart


def saved(result: Result, include: Collection[str]) -> dict[str, Array]:
    """Return the whole arrays by name; row statistics as 'row_statistics.entropy' …"""
    arrays: dict[str, Array] = {}
    for name in include:
        if name == "row_statistics":
            values = result.row_statistics or {}
            arrays |= {f"row_statistics.{key}": value for key, value in values.items()}
        else:
            arrays[name] = _included(result, name)
    return arrays
