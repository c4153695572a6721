"""Attention as it is when every stage is kept in float16 or bfloat16, simulated.

Inputs, scores, scaled scores, softcapped and biased logits, weights and output are rounded, each
once; products and the softmax itself accumulate in float32, as PyTorch's unfused attention does on
a GPU. A fused kernel keeps the scores in float32 and rounds less: this is the harder case.

No row of ``ENGINES``: it answers for a type that the problem does not have, and makes the norms of
the way back in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.problem import Problem, float_dtype
from attncli.attention.rows import Rows
from attncli.attention.tile_sums import TileSums
from attncli.engines import ANYHOW, How
from attncli.resources import Job, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 19  # weights that a thread holds
TINY_CELLS = 1 << 16  # below, threads cost more than they save


@dataclass(frozen=True)
class Rounded:
    """rows ``(B, H, Lq)``, sink included, of the rounded logits; output ``(B, H, Lq, Dv)`` and
    score_norm ``(B, H, Lq)``, ‖dS_i‖, in float32.
    """

    rows: Rows
    output: Array
    score_norm: Array


def rounded(problem: Problem, dtype: str, grad_output: Array, how: How = ANYHOW) -> Rounded:
    """Compute with every stage rounded. grad_output: ``(B, H, Lq, Dv)``. Memory is O(L·D)."""
    p = problem
    sheet = _Sheet(p, float_dtype(dtype), grad_output)
    if p.keys:
        step = max(1, min(p.queries, CELLS // p.keys))
        jobs: list[Job] = [
            partial(sheet.fill, b, h, slice(i0, min(i0 + step, p.queries)))
            for b, h in np.ndindex(p.batch, p.heads)
            for i0 in range(0, p.queries, step)
        ]
        tiny = p.batch * p.heads * p.queries * p.keys <= TINY_CELLS
        run_jobs(jobs, how.threads, tiny, how.progress)
    return Rounded(Rows(**sheet.sums).with_sink(p.sink), sheet.output, sheet.norm)


class _Sheet:
    """The results, written by jobs into rows of their own."""

    def __init__(self, problem: Problem, kind: np.dtype[Any], grad_output: Array) -> None:
        """kind: what to round to."""
        p, self.kind, self.grad_output = problem, kind, grad_output
        shape = (p.batch, p.heads, p.queries)
        self.sums = {name: array.copy() for name, array in vars(Rows.empty(shape)).items()}
        self.output, self.norm = np.zeros((*shape, p.value_width), np.float32), np.zeros(shape)
        with np.errstate(over="ignore"):
            self.problem = replace(p, key=self.once(p.key), value=self.once(p.value))

    def once(self, array: Array) -> Array:
        """Return float32 numbers, rounded."""
        return np.asarray(array.astype(self.kind).astype(np.float32))

    def fill(self, b: int, h: int, rows: slice) -> None:
        """Compute some rows of one head over all their keys."""
        p, once, at = self.problem, self.once, (b, h, rows)
        with np.errstate(all="ignore"):
            keep = p.mask.keep(b, h, rows.start, rows.stop, 0, p.keys)  # (R, Lk)
            weights = self._weights(at, keep)
            value = p.value[b, p.group(h)]
            reads = np.where(np.isfinite(value), value, 0)
            out = weights @ reads
            if not np.isfinite(value).all():
                lost = keep.astype(np.float32) @ ~np.isfinite(value).astype(bool)
                out[lost > 0] = np.nan
            self.output[at] = once(out)
            dp = once(once(self.grad_output[at]) @ reads.T)
            delta = np.vecdot(weights, dp)
            ds = weights * (dp - delta[:, None])
            self.norm[at] = np.sqrt(np.vecdot(ds, ds))

    def _weights(self, at: tuple[int, int, slice], keep: Array) -> Array:
        """Write the sums of these rows and return their weights. keep: ``(R, Lk)``."""
        p, (b, h, rows) = self.problem, at
        s, z = self._logits(b, h, rows)
        z = np.where(keep, z, np.float32(-np.inf))
        found = TileSums(len(s))
        ones = np.ones(s.shape[1], s.dtype)
        found.scores(np.where(keep, s, np.float32(0)), ones, [(slice(None), ~keep)])
        found.logits(z, 0)
        top = z.max(1)
        shift = np.where(np.isneginf(top), np.float32(0), top)
        z -= shift[:, None]
        e = np.exp(z)
        total = e.sum(1)
        if p.sink is not None:
            total = total + np.exp(np.float32(p.sink[h]) - shift)
        weights = self.once(e / np.where(total == 0, np.float32(1), total)[:, None])
        wide = shift.astype(np.float64)
        np.maximum(z, np.finfo(z.dtype).min, out=z)  # 0·∞ would not be 0
        found.weights(e, z, ones, wide)
        for name, array in found.finish(wide, False).items():
            self.sums[name][at] = array
        return weights

    def _logits(self, b: int, h: int, rows: slice) -> tuple[Array, Array]:
        """Return scores and logits before the mask, ``(R, Lk)``."""
        p, once = self.problem, self.once
        query, key = once(p.query[b, h, rows]), p.key[b, p.group(h)]
        s = z = once(once(query @ key.T) * np.float32(p.scale))
        if p.softcap is not None:
            cap = np.float32(p.softcap)
            z = once(once(np.tanh(once(z / cap))) * cap)
        bias = p.mask.bias(b, h, rows.start, rows.stop, 0, p.keys)
        return s, z if bias is None else once(z + bias)
