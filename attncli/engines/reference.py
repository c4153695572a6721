"""The reference engine: a loop over the specification. Every other engine is judged by it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from attncli.attention import definition
from attncli.attention.gradients import Gradients, float_masks
from attncli.attention.problem import STAGES, Problem
from attncli.attention.rows import Rows
from attncli.engines import ANYHOW, Attended, How

Array = np.ndarray[Any, np.dtype[Any]]


def missing() -> str | None:
    """Return why this engine cannot run: never."""
    return None


def attend(problem: Problem, want: Collection[str], how: How = ANYHOW) -> Attended:
    """Compute everything densely, one head after the other, in one thread."""
    p = problem
    shape = (p.batch, p.heads, p.queries)
    output = np.zeros((*shape, p.value_width))
    lse = np.full(shape, -np.inf)
    kept = {name: np.zeros((*shape, p.keys)) for name in STAGES if name in want}
    parts = []
    for b, h in _heads(p, how):
        stage = definition.stages(p, b, h)
        value = np.asarray(p.value[b, p.group(h)], np.float64)
        output[b, h] = definition.blend(stage["weights"], stage["keep"], value)
        lse[b, h] = stage["lse"]
        for name, matrix in kept.items():
            matrix[b, h] = stage[name]
        if "row_statistics" in want:
            parts.append(Rows.dense(stage["masked"], stage["scores"], stage["keep"]))
    with np.errstate(over="ignore"):
        return Attended(
            output=output.astype(p.result_dtype),
            lse=lse,
            rows=Rows.stack(parts, shape) if "row_statistics" in want else None,
            stages={name: stage.astype(p.result_dtype) for name, stage in kept.items()},
            kernel="dense",
        )


def backward(
    problem: Problem,
    grad_output: Array,
    attended: Attended | None = None,
    want: Collection[str] = (),
    how: How = ANYHOW,
) -> Gradients:
    """Return the gradients in float64. grad_output: ``(B, H, Lq, Dv)``.

    ``want``: any of ``biases``, ``score_norm``. ``attended`` is not read.
    """
    p = problem
    query, key, value = (np.zeros(a.shape) for a in (p.query, p.key, p.value))
    sink, norm = np.zeros(p.heads), np.zeros((p.batch, p.heads, p.queries))
    shapes = float_masks(p) if "biases" in want else []
    cells = np.zeros((p.batch, p.heads, p.queries, p.keys) if shapes else (0,) * 4)
    for b, h in _heads(p, how):
        back, g = definition.backward(p, b, h, grad_output[b, h]), p.group(h)
        with np.errstate(invalid="ignore", over="ignore"):
            query[b, h] = back.query
            key[b, g] += back.key
            value[b, g] += back.value
            sink[h] += back.sink
            norm[b, h] = np.sqrt((back.scores**2).sum(1))
        if shapes:
            cells[b, h] = back.masked
    return Gradients(
        query=query, key=key, value=value,
        sink=None if p.sink is None else sink,
        biases=tuple(_summed(cells, shape) for shape in shapes),
        score_norm=norm if "score_norm" in want else None,
    )  # fmt: skip


def _heads(p: Problem, how: How) -> Iterator[tuple[int, int]]:
    """Yield (b, h) of every head, and tell of each that is done."""
    for done, (b, h) in enumerate(np.ndindex(p.batch, p.heads), 1):
        yield b, h
        if how.progress:
            how.progress(done / (p.batch * p.heads))


def _summed(cells: Array, shape: tuple[int, ...]) -> Array:
    """Return cells ``(B, H, Lq, Lk)`` summed over what a mask of ``shape`` was broadcast over."""
    over = tuple(axis for axis, n in enumerate(shape) if n == 1)
    summed = cells.sum(over, keepdims=True) if over else cells
    return summed[..., : shape[-1]]
