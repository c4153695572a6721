"""Gradients of a candidate held against the definition's."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.attention.gradients import turned_back
from attncli.attention.problem import Problem
from attncli.errors import InputError
from attncli.measures import budget
from attncli.measures.gradient_budget import Slopes, slopes
from attncli.studies.compare.judged import Judged
from attncli.studies.compare.theory import Candidate, Theory

Array = np.ndarray[Any, np.dtype[Any]]

GRADIENTS = ("grad_query", "grad_key", "grad_value")


def held_gradients(
    theory: Theory,
    candidate: Candidate,
    grad_output: Array | None,
    threads: int | None = None,
) -> dict[str, Judged]:
    """Judge the gradients of a candidate. grad_output: dO, ``(B, H, Lq, Dv)``."""
    if grad_output is None:
        raise InputError(
            "gradients are expected, but nothing says of what: no gradient of the output",
            "add --grad-output ones, random:SEED or FILE",
        )
    p, own = theory.problem, candidate.own
    right = _back(p, slopes(p, grad_output, np.float64, own=own, threads=threads))
    given = budget.as_own(p, own)
    ways = budget.ways(p, own, reorder=1)
    plains = [
        _back(given, slopes(given, grad_output, given.dtype, way, threads=threads)).arrays
        for way in ways
    ]
    found = {}
    for name in GRADIENTS:
        if name not in candidate.stages:
            continue
        array, short = candidate.stages[name], name.removeprefix("grad_")
        truth, band = right.arrays[short], right.bands[short]
        with np.errstate(over="ignore"):
            others = [plain[short].astype(own) for plain in plains]
        if short != "query" and p.past:
            truth, band = truth[:, :, p.past :], band[:, :, p.past :]
            others = [other[:, :, p.past :] for other in others]
        one = Judged.empty(
            name, array.shape, candidate.kept[name], array.dtype, candidate.tolerance
        )
        for b, h in np.ndindex(array.shape[:2]):
            most = budget.most(truth[b, h], [other[b, h] for other in others])
            rows = np.arange(array.shape[2])
            one.fill((b, h, rows), array[b, h], truth[b, h], 2 * most + band[b, h])
        found[name] = one
    return found


def _back(p: Problem, found: Slopes) -> Slopes:
    """Turn the gradients of turned query and key back; a band by its largest channel."""
    if p.rope is None:
        return found
    arrays, bands = dict(found.arrays), dict(found.bands)
    q, k = turned_back(p.rope, arrays["query"], arrays["key"], p)
    arrays |= {"query": q, "key": k}
    for name in ("query", "key"):
        if name in bands:
            top = bands[name].max(-1, keepdims=True, initial=0)
            bands[name] = np.broadcast_to(np.sqrt(2) * top, bands[name].shape)
    return Slopes(arrays, bands)
