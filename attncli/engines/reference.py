"""The reference engine: a loop over the specification. Every other engine is judged by it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention.definition import blend, stages
from attncli.attention.gradients import Gradients, float_masks
from attncli.attention.problem import STAGES, Problem
from attncli.attention.rows import Rows
from attncli.engines import Attended
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]


def missing() -> str | None:
    """Return why this engine cannot run: never."""
    return None


def attend(
    problem: Problem,
    want: Collection[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Attended:
    """Compute everything densely, one head after the other; ``threads`` is ignored."""
    shape = (problem.batch, problem.heads, problem.queries)
    output = np.zeros((*shape, problem.value_width))
    lse = np.full(shape, -np.inf)
    kept = {name: np.zeros((*shape, problem.keys)) for name in STAGES if name in want}
    parts = []
    for b, h in np.ndindex(shape[:2]):
        stage = stages(problem, b, h)
        value = np.asarray(problem.value[b, problem.group(h)], np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            output[b, h] = blend(stage["weights"], stage["keep"], value)
        lse[b, h] = stage["lse"]
        for name, matrix in kept.items():
            matrix[b, h] = stage[name]
        if "row_statistics" in want:
            parts.append(Rows.dense(stage["masked"], stage["scores"], stage["keep"]))
        if progress:
            progress((b * shape[1] + h + 1) / (shape[0] * shape[1]))
    with np.errstate(over="ignore"):
        return Attended(
            output=output.astype(problem.result_dtype),
            lse=lse,
            rows=Rows.stack(parts, shape) if "row_statistics" in want else None,
            stages={name: stage.astype(problem.result_dtype) for name, stage in kept.items()},
            kernel="dense",
        )


def backward(
    problem: Problem,
    grad_output: Array,
    attended: Attended | None = None,
    *,
    want: Collection[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Gradients:
    """Return the gradients (see ``gradients`` for the formulas). grad_output: ``(B, H, Lq, Dv)``.

    All in float64. ``want``: any of ``biases``, ``score_norm``. ``attended`` and ``threads`` are
    ignored, and so is the softmax's dtype: rounding has no derivative.
    """
    p = replace(problem, softmax_dtype=None)
    query, key, value = (np.zeros(a.shape) for a in (p.query, p.key, p.value))
    shapes = float_masks(p) if "biases" in want else []
    cells = np.zeros((p.batch, p.heads, p.queries, p.keys) if shapes else (0,) * 4)
    sink, norm = np.zeros(p.heads), np.zeros((p.batch, p.heads, p.queries))
    for b, h in np.ndindex(p.batch, p.heads):
        stage, g = stages(p, b, h), p.group(h)
        keep = stage["keep"]
        weights = np.where(keep, stage["weights"], 0)  # (Lq, Lk)
        q, do = (np.asarray(a[b, h], np.float64) for a in (p.query, grad_output))
        k, v = (np.asarray(a[b, g], np.float64) for a in (p.key, p.value))
        with np.errstate(invalid="ignore", over="ignore"):
            dp = np.where(keep, do @ v.T, 0)
            delta = (weights * dp).sum(1)  # (Lq,)
            dz = np.where(keep, weights * (dp - delta[:, None]), 0)
            ds = dz
            if p.softcap is not None:
                ds = np.where(keep, dz * (1 - (stage["softcapped"] / p.softcap) ** 2), 0)
            query[b, h] = p.scale * blend(ds, keep, k)
            key[b, g] += p.scale * blend(ds.T, keep.T, q)
            value[b, g] += blend(weights.T, keep.T, do)
            norm[b, h] = np.sqrt((ds**2).sum(1))
            if p.sink is not None and np.isfinite(p.sink[h]):
                sink[h] -= np.sum(np.exp(p.sink[h] - stage["lse"]) * delta)
        if shapes:
            cells[b, h] = dz
        if progress:
            progress((b * p.heads + h + 1) / (p.batch * p.heads))
    biases = []
    for shape in shapes:
        over = tuple(axis for axis, n in enumerate(shape) if n == 1)
        summed = cells if not over else cells.sum(over, keepdims=True)
        biases.append(summed[..., : shape[-1]])
    return Gradients(
        query=query, key=key, value=value,
        sink=None if p.sink is None else sink,
        biases=tuple(biases),
        score_norm=norm if "score_norm" in want else None,
    )  # fmt: skip
