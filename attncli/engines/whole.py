"""What engines on NumPy arrays share: the sheet that they write to, and whole rows of weights.

Whole rows are for small problems, matrices that are asked for (many heads go into one product),
and rows that tiles have lost to numbers that are not finite. Also what such values do to a result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.problem import STAGES, Problem
from attncli.attention.rows import Rows
from attncli.attention.softcap import softcapped
from attncli.engines import Attended
from attncli.resources import Job

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_CELLS = 1 << 18  # scores that a job of whole rows holds at once


@dataclass
class Sheet:
    """The results, written by jobs into slices of their own."""

    problem: Problem
    output: Array
    lse: Array
    rows: dict[str, Array]
    stages: dict[str, Array]
    bad: dict[tuple[int, int], Array]
    kernels: set[str] = field(default_factory=set)

    @classmethod
    def blank(cls, p: Problem, want: Collection[str]) -> Sheet:
        shape = (p.batch, p.heads, p.queries)
        rows = vars(Rows.empty(shape)) if "row_statistics" in want else {}
        return cls(
            problem=p,
            output=np.zeros((*shape, p.value_width), p.result_dtype),
            lse=np.full(shape, -np.inf, p.dtype),
            rows={name: array.copy() for name, array in rows.items()},
            stages={
                name: np.zeros((*shape, p.keys), p.result_dtype) for name in STAGES if name in want
            },
            bad={},
        )

    def attended(self, threads: int) -> Attended:
        return Attended(
            output=self.output,
            lse=self.lse,
            rows=Rows(**self.rows) if self.rows else None,
            stages=self.stages,
            kernel=" and ".join(sorted(self.kernels)) + " softmax" if self.kernels else "",
            threads=threads,
        )


def not_finite(value: Array) -> Array:
    """Indices of the keys whose values ``(Lk, Dv)`` are not all finite."""
    return np.flatnonzero(~np.isfinite(value).all(-1))


def mend(sheet: Sheet, b: int, h: int, i: Array, out: Array, lse: Array) -> None:
    """Add to out ``(R, Dv)`` what visible values that are not finite do to rows i ``(R,)``.

    p > 0 times ∞ is ∞, p = 0 times ∞ is NaN, ∞ − ∞ is NaN, as in the dense sum.
    """
    p, g = sheet.problem, sheet.problem.group(h)
    query = p.query[b, h][i].astype(np.float64)
    for start in range(0, len(sheet.bad[b, g]), 256):
        j = sheet.bad[b, g][start : start + 256]
        z = p.scale * (query @ p.key[b, g][j].astype(np.float64).T)  # (R, C)
        at = b, h, i[:, None], j[None, :]
        z = softcapped(z, p.softcap, out=z) + sum(bias.at(*at) for bias in p.mask.biases)
        sees = np.broadcast_to(p.mask.predicate.allows(*at), z.shape)
        weighs = sees & (np.exp(z - lse[:, None]) > 0)
        value = p.value[b, g][j].astype(np.float64)  # (C, Dv)
        for one in (np.inf, -np.inf):
            hit = weighs.astype(np.float64) @ (value == one)
            lost = (sees & ~weighs).astype(np.float64) @ (value == one)
            out[hit > 0] += one
            out[lost > 0] = np.nan
        out[sees.astype(np.float64) @ np.isnan(value) > 0] = np.nan


def whole_jobs(sheet: Sheet) -> Iterator[Job]:
    """Yield jobs that hold all keys of their rows: blocks of heads, or of rows of one head."""
    p = sheet.problem
    value = p.value
    for b, g in np.ndindex(p.batch, p.kv_heads):
        if (rows := not_finite(value[b, g])).size:
            sheet.bad[b, g] = rows
    heads = max(1, min(p.heads, BLOCK_CELLS // (p.queries * p.keys)))
    batches = max(1, BLOCK_CELLS // (p.heads * p.queries * p.keys))
    step = min(p.queries, max(1, BLOCK_CELLS // p.keys))
    for b in range(0, p.batch, batches):
        for h in range(0, p.heads, heads):
            for i in range(0, p.queries, step):
                block = slice(b, b + batches), slice(h, h + heads), slice(i, i + step)
                yield partial(_whole, sheet, *block)


def _whole(sheet: Sheet, batches: slice, heads: slice, rows: slice) -> None:
    """Compute a block of batch elements, heads and rows densely."""
    p, dtype, block = sheet.problem, sheet.problem.dtype, (batches, heads, rows)
    sheet.kernels.add("whole-row")
    bs, hs, i = (range(n)[part] for n, part in zip(sheet.lse.shape, block, strict=True))
    groups: Any = heads if p.kv_heads == p.heads else [p.group(h) for h in hs]
    query = p.query[block].astype(dtype, copy=False)  # (b, h, n, D)
    key = p.key[batches][:, groups].astype(dtype, copy=False)
    value = p.value[batches][:, groups].astype(dtype, copy=False)
    scores = np.matmul(query, key.swapaxes(-1, -2)) * dtype.type(p.scale)  # (b, h, n, Lk)
    capped = softcapped(scores, p.softcap)
    masked, keep = _masked(p, capped, bs, hs, i)
    weights, lse = _softmax(p, masked, heads)
    bad = [
        (x, y) for x, b in enumerate(bs) for y, h in enumerate(hs) if (b, p.group(h)) in sheet.bad
    ]
    if bad:
        value = np.where(np.isfinite(value), value, dtype.type(0))
    output = np.matmul(weights, value)  # (b, h, n, Dv)
    for x, y in bad:
        mend(sheet, bs[x], hs[y], np.asarray(i), output[x, y], lse[x, y])
    sheet.output[block] = output
    sheet.lse[block] = lse
    made = {"scores": scores, "softcapped": capped, "masked": masked, "weights": weights}
    for name, stage in sheet.stages.items():
        stage[block] = made[name]
    if sheet.rows:
        for name, array in vars(Rows.dense(masked, scores, keep)).items():
            sheet.rows[name][block] = array


def whole_rows(sheet: Sheet, b: int, h: int, i: Array) -> None:
    """Compute rows i ``(R,)`` of one head from the scores of all keys, some at a time."""
    p, dtype = sheet.problem, sheet.problem.dtype
    key = p.key[b, p.group(h)].astype(dtype, copy=False)
    value = p.value[b, p.group(h)].astype(dtype, copy=False)
    if (b, p.group(h)) in sheet.bad:
        value = np.where(np.isfinite(value), value, dtype.type(0))
    step = max(1, BLOCK_CELLS // max(p.keys, 1))
    for some in (i[start : start + step] for start in range(0, len(i), step)):
        at = b, h, some[:, None], np.arange(p.keys)[None, :]
        query = p.query[b, h][some].astype(dtype, copy=False)
        scores = query @ key.T * dtype.type(p.scale)  # (n, Lk)
        keep = np.broadcast_to(p.mask.predicate.allows(*at), scores.shape)
        bias = np.asarray(sum(bias.at(*at) for bias in p.mask.biases)).astype(dtype)
        masked = np.where(keep, softcapped(scores.copy(), p.softcap) + bias, dtype.type(-np.inf))
        weights, lse = (part[0] for part in _softmax(p, masked[None], slice(h, h + 1)))
        output = weights @ value
        if (b, p.group(h)) in sheet.bad:
            mend(sheet, b, h, some, output, lse)
        sheet.output[b, h, some], sheet.lse[b, h, some] = output, lse
        if sheet.rows:
            for name, array in vars(Rows.dense(masked, scores, keep)).items():
                sheet.rows[name][b, h, some] = array


def _masked(p: Problem, capped: Array, bs: range, hs: range, i: range) -> tuple[Array, Array]:
    """Return capped scores ``(b, h, n, Lk)`` with biases, −∞ where hidden; and what is kept."""
    if p.mask.trivial:
        return capped, np.broadcast_to(True, capped.shape)
    here = i.start, i.stop, 0, p.keys
    keep = np.stack([np.stack([p.mask.keep(b, h, *here) for h in hs]) for b in bs])
    if p.mask.has_bias:
        bias = [[np.asarray(p.mask.bias(b, h, *here)) for h in hs] for b in bs]
        capped = capped + np.asarray(bias).astype(p.dtype)
    return np.where(keep, capped, p.dtype.type(-np.inf)), keep


def _softmax(p: Problem, z: Array, heads: slice) -> tuple[Array, Array]:
    """Return weights ``(b, h, n, Lk)`` and lse ``(b, h, n)``, with the sinks of these heads."""
    dtype = p.dtype
    if p.softmax_dtype is not None:
        z = z.astype(p.softmax_dtype).astype(dtype)
    top = z.max(-1)  # (b, h, n)
    if p.sink is not None:
        sink = p.sink[heads][:, None].astype(dtype)  # (h, 1)
        top = np.maximum(top, sink)
    shift = np.where(np.isneginf(top), dtype.type(0), top)
    weights = np.exp(z - shift[..., None])
    total = weights.sum(-1)
    if p.sink is not None:
        total += np.exp(sink - shift)
    weights /= np.where(total == 0, dtype.type(1), total)[..., None]
    if p.softmax_dtype is not None:
        weights = weights.astype(p.softmax_dtype).astype(dtype)
    return weights, shift + np.log(total)
