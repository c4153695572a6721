"""Attention as it is when every stage is kept in float16 or bfloat16, simulated.

Inputs, scores, scaled scores, softcapped and biased logits, weights and output are rounded, each
once; products and the softmax itself accumulate in float32, as PyTorch's unfused attention does on
a GPU. A fused kernel keeps the scores in float32 and rounds less: this is the harder case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.problem import Problem, float_dtype
from attncli.attention.rows import Rows
from attncli.engines.numpy.sums import TileSums
from attncli.resources import Job, Progress, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 19  # weights that a thread holds


@dataclass(frozen=True)
class Rounded:
    """rows ``(B, H, Lq)``, sink included, of the rounded logits; output ``(B, H, Lq, Dv)`` and
    score_norm ``(B, H, Lq)``, ‖dS_i‖, in float32.
    """

    rows: Rows
    output: Array
    score_norm: Array


def rounded(
    problem: Problem, dtype: str, grad_output: Array, *, threads: int | None = None,
    progress: Progress | None = None,
) -> Rounded:  # fmt: skip
    """Compute with every stage rounded. grad_output: ``(B, H, Lq, Dv)``. Memory is O(L·D)."""
    p = problem
    shape = (p.batch, p.heads, p.queries)
    sums = {name: array.copy() for name, array in vars(Rows.empty(shape)).items()}
    output, norm = np.zeros((*shape, p.value_width), np.float32), np.zeros(shape)
    step = max(1, min(p.queries, CELLS // max(1, p.keys)))
    kind = float_dtype(dtype)

    def once(array: Array) -> Array:
        return np.asarray(array.astype(kind).astype(np.float32))

    if p.keys:
        with np.errstate(over="ignore"):
            p = replace(p, key=once(p.key), value=once(p.value))
        jobs: list[Job] = [
            partial(_block, p, once, grad_output, b, h, i0, min(i0 + step, p.queries), sums, output,
                    norm)
            for b, h in np.ndindex(shape[:2])
            for i0 in range(0, p.queries, step)
        ]  # fmt: skip
        tiny = p.batch * p.heads * p.queries * p.keys <= 1 << 16
        run_jobs(jobs, 1 if tiny else threads or processors(), not tiny, progress)
    return Rounded(Rows(**sums).with_sink(p.sink), output, norm)


def _block(
    p: Problem, once: Callable[[Array], Array], grad_output: Array,
    b: int, h: int, i0: int, i1: int,
    sums: dict[str, Array], output: Array, norm: Array,
) -> None:  # fmt: skip
    """Compute rows i0:i1 of one head over all their keys; ``once`` rounds. Keys, values are."""
    with np.errstate(all="ignore"):
        g = p.group(h)
        query, grad = once(p.query[b, h, i0:i1]), once(grad_output[b, h, i0:i1])
        key, value = p.key[b, g], p.value[b, g]
        s = once(once(query @ key.T) * np.float32(p.scale))  # (R, Lk)
        z = s
        if p.softcap is not None:
            cap = np.float32(p.softcap)
            z = once(once(np.tanh(once(z / cap))) * cap)
        bias = p.mask.bias(b, h, i0, i1, 0, p.keys)
        if bias is not None:
            z = once(z + bias)
        keep = p.mask.keep(b, h, i0, i1, 0, p.keys)
        z = np.where(keep, z, np.float32(-np.inf))
        found = TileSums(i1 - i0)
        found.scores(s, keep, np.empty_like(s))
        found.logits(z, 0)
        top = z.max(1)
        shift = np.where(np.isneginf(top), np.float32(0), top)
        z -= shift[:, None]
        e = np.exp(z)
        total = e.sum(1)
        found.weights(e, np.maximum(z, -104))  # e is 0 there, and 0·∞ would not be
        for name, array in found.finish(
            total.astype(np.float64), shift.astype(np.float64), 1.0, False
        ).items():
            sums[name][b, h, i0:i1] = array
        if p.sink is not None:
            total = total + np.exp(np.float32(p.sink[h]) - shift)
        weights = once(e / np.where(total == 0, np.float32(1), total)[:, None])
        reads = np.where(np.isfinite(value), value, 0)
        out = weights @ reads
        if not np.isfinite(value).all():
            lost = keep.astype(np.float32) @ ~np.isfinite(value).astype(bool)
            out[lost > 0] = np.nan
        output[b, h, i0:i1] = once(out)
        dp = once(grad @ reads.T)
        delta = np.vecdot(weights, dp)
        ds = weights * (dp - delta[:, None])
        norm[b, h, i0:i1] = np.sqrt(np.vecdot(ds, ds))
