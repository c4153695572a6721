"""The default engine: attention in tiles, in threads, on NumPy alone. Memory is O(L·D).

A job is some query rows of one head. It walks over the tiles of keys that these rows see, and
three kernels differ in how they meet ``exp``:

- *bounded*: |s_ij| ≤ scale·‖q_i‖·max‖k_j‖ (Cauchy–Schwarz). Where that is small, exp can neither
  overflow nor lose anything, no maximum is needed, and 2^x is the fastest exponential there is.
- *online*: a running maximum (Milakov & Gimelshein 2018), for everything else.
- *whole rows*: for small problems, many heads in one product, and when a matrix is asked for.

Tiles are transposed, ``(keys, rows)``: keys and values are then read where they lie.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.backends import STAGES, Attended, Progress
from attncli.backends.tile_sums import GRAIN, Moments, TileSums
from attncli.masks import EMPTY, MIXED
from attncli.problem import Problem
from attncli.rows import Rows

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from threadpoolctl import ThreadpoolController

Array = np.ndarray[Any, np.dtype[Any]]

LOG2E = math.log2(math.e)
# The cube of 2^±bound, summed over 2^17 keys, must stay a normal number.
BOUND = {np.dtype(np.float32): 36.0, np.dtype(np.float64): 300.0}
TINY_CELLS = 1 << 16  # below, threads cost more than they save
WHOLE_CELLS = 1 << 15  # scores of a head: below, several heads go into one product
BLOCK_CELLS = 1 << 18  # scores that a job of whole rows holds at once


@dataclass(frozen=True)
class Tiling:
    """Rows of a job and keys of a tile, so that a tile stays in the second-level cache."""

    rows: int
    keys: int


def missing() -> str | None:
    """Return why this engine cannot run: never, NumPy is always there."""
    return None


def attend(
    problem: Problem,
    want: Collection[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Attended:
    """Compute in tiles; ``threads`` None takes the processors this process may use."""
    return attend_tiled(problem, want, None, threads=threads, progress=progress)


def attend_tiled(
    problem: Problem,
    want: Collection[str],
    tiling: Tiling | None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Attended:
    """Compute with tiles of a given size; None chooses, and lets small problems do without."""
    threads = threads or _processors()
    p = problem
    sheet = Sheet.blank(p, want)
    cells = p.queries * p.keys
    used = 1
    with np.errstate(all="ignore"):
        if cells and p.batch * p.heads:
            matrices = bool(sheet.stages) or p.softmax_dtype is not None
            if matrices or (tiling is None and cells <= WHOLE_CELLS):
                jobs = list(_whole_jobs(sheet))
            else:
                jobs = Walk(sheet, tiling or _tiling(p, threads)).jobs()
            tiny = p.batch * p.heads * cells <= TINY_CELLS
            used = _run(jobs, 1 if tiny else threads, not tiny, progress)
        elif p.sink is not None:
            sheet.lse[:] = p.sink[:, None]
    return sheet.attended(used)


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


# --- jobs and threads ---------------------------------------------------------------------------

Job = Callable[["Buffers"], None]


class Buffers:
    """Arrays that one thread uses again for every tile."""

    def __init__(self) -> None:
        self.store: dict[str, Array] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        size = math.prod(shape)
        flat = self.store.get(name)
        if flat is None or flat.size < size:
            flat = self.store[name] = np.empty(size, dtype)
        return flat[:size].reshape(shape)


_pool: ThreadPoolExecutor | None = None
_blas: ThreadpoolController | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _run(jobs: list[Job], threads: int, limit_blas: bool, progress: Progress | None) -> int:
    """Run jobs in order in so many threads, this one included; return how many were used."""
    global _pool, _blas
    threads = max(1, min(threads, len(jobs)))
    queue, total = deque(jobs), len(jobs)

    def work(report: Progress | None = None) -> None:
        buffers = Buffers()
        with np.errstate(all="ignore"):
            while queue:
                try:
                    job = queue.popleft()
                except IndexError:
                    return
                job(buffers)
                if report:
                    report(1 - len(queue) / total)

    if not limit_blas:
        work(progress)
        return 1
    if _blas is None:
        from threadpoolctl import ThreadpoolController

        _blas = ThreadpoolController().select(user_api="blas")
    if threads > 1 and (_pool is None or _pool._max_workers < threads - 1):
        from concurrent.futures import ThreadPoolExecutor

        _pool = ThreadPoolExecutor(threads - 1, "attncli")
    with _blas.limit(limits=1):
        others = [_pool.submit(work) for _ in range(threads - 1)] if _pool else []
        try:
            work(progress)
            for other in others:
                other.result()
        finally:
            queue.clear()
            for other in others:
                other.exception()
    return threads


# --- tiles --------------------------------------------------------------------------------------


def _tiling(p: Problem, threads: int) -> Tiling:
    if p.mask.trivial:
        jobs = p.batch * p.heads * -(-p.queries // 512)
        return Tiling(512, 512) if jobs >= 4 * threads else Tiling(256, 512)
    middle = p.queries // 2
    spans = p.mask.spans(0, 0, middle, min(middle + 128, p.queries))
    seen = sum(stop - start for start, stop in spans)
    return Tiling(256, 512) if seen > 4096 or p.queries <= 2048 else Tiling(128, 1024)


class Walk:
    """Attention as jobs of ``tiling.rows`` query rows that walk over tiles of keys."""

    def __init__(self, sheet: Sheet, tiling: Tiling) -> None:
        p = sheet.problem
        self.sheet, self.problem, self.tiling = sheet, p, tiling
        self.key, self.value = _ready(p.key, p.dtype), _ready(p.value, p.dtype)
        self.key_reach = np.sqrt(np.vecdot(self.key, self.key).max(-1))  # (B, G)
        self.value_reach = np.sqrt(np.vecdot(self.value, self.value).max(-1))  # (B, G)
        for b, g in np.argwhere(~np.isfinite(self.value_reach)).tolist():
            self._set_aside(b, g)
        self.moments = {
            (b, g): Moments(self.key[b, g]) for b, g in np.ndindex(p.batch, p.kv_heads)
        } if sheet.rows else {}  # fmt: skip
        self.ones = np.ones(max(tiling.keys, 2 * GRAIN), p.dtype)
        self.plain = p.softcap is None and not p.mask.has_bias

    def _set_aside(self, b: int, g: int) -> None:
        """Replace values that are not finite by 0; ``_mend`` puts back what they do."""
        rows = _not_finite(self.value[b, g])
        if rows.size:
            if np.may_share_memory(self.value, self.problem.value):
                self.value = self.value.copy()
            self.sheet.bad[b, g] = rows
            value = self.value[b, g]
            value[~np.isfinite(value)] = 0

    def jobs(self) -> list[Job]:
        """Return the jobs, longest first, so that threads end together."""
        p, step = self.problem, self.tiling.rows
        parts = [
            (b, h, i0, min(i0 + step, p.queries))
            for b, h in np.ndindex(p.batch, p.heads)
            for i0 in range(0, p.queries, step)
        ]
        if not p.mask.trivial:
            def cost(part: tuple[int, int, int, int]) -> int:
                return -sum(stop - start for start, stop in p.mask.spans(*part))

            parts.sort(key=cost)
        return [lambda buffers, part=part: self.job(*part, buffers) for part in parts]

    def plan(self, b: int, h: int, i0: int, i1: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (j0, j1, mixed) of the tiles that rows i0:i1 see, empty ones left out."""
        mask, width = self.problem.mask, self.tiling.keys
        if mask.trivial:
            for j0 in range(0, self.problem.keys, width):
                yield j0, min(j0 + width, self.problem.keys), False
            return
        for start, stop in mask.spans(b, h, i0, i1):
            inner = np.arange(start - start % GRAIN + GRAIN, stop, GRAIN)
            edges = np.concatenate([[start], inner, [stop]])
            states = mask.tiles(b, h, i0, i1, edges)
            at = 0
            while at < len(states):
                end = at + 1
                while end < len(states) and states[end] == states[at] and (
                    edges[end + 1] - edges[at] <= width
                ):
                    end += 1
                if states[at] != EMPTY:
                    yield int(edges[at]), int(edges[end]), bool(states[at] == MIXED)
                at = end

    def job(self, b: int, h: int, i0: int, i1: int, buffers: Buffers) -> None:
        """Compute rows i0:i1 of a head."""
        p, g, n = self.problem, self.problem.group(h), i1 - i0
        query = p.query[b, h, i0:i1].astype(p.dtype, copy=False)  # (R, D)
        reach = math.sqrt(np.vecdot(query, query).max()) * float(self.key_reach[b, g])
        reach *= abs(p.scale) * LOG2E
        size = float(self.value_reach[b, g])
        bounded = (
            self.plain and reach <= BOUND[p.dtype] and (size == 0 or 2.0**-60 < size < 2.0**60)
        )
        self.sheet.kernels.add("bounded" if bounded else "online")
        q = buffers.take("q", (p.width, n), p.dtype)
        np.multiply(query.T, p.dtype.type(p.scale * (LOG2E if bounded else 1)), out=q)
        acc = buffers.take("acc", (n, p.value_width), p.dtype)
        acc.fill(0)
        sums = TileSums(n) if self.sheet.rows else None
        kernel = self._bounded if bounded else self._online
        total, shift = kernel(b, h, i0, i1, q, acc, sums, buffers)
        denominator, lse = total, shift + np.log(total)
        if p.sink is not None:
            denominator, lse = total + np.exp(p.sink[h] - shift), np.logaddexp(lse, p.sink[h])
        factor = np.where(total == 0, 0, 1 / denominator)
        np.multiply(acc, factor[:, None].astype(p.dtype), out=acc)
        rows = slice(i0, i1)
        if (b, g) in self.sheet.bad:
            _mend(self.sheet, b, h, np.arange(i0, i1), acc, lse)
        self.sheet.output[b, h, rows] = acc
        self.sheet.lse[b, h, rows] = lse
        if sums:
            sums.settle(self.moments[b, g], q.T.astype(np.float64))
            unit = 1 / LOG2E if bounded else 1.0
            for name, array in sums.finish(total, shift, unit, self.plain).items():
                self.sheet.rows[name][b, h, rows] = array

    def _bounded(
        self, b: int, h: int, i0: int, i1: int, q: Array, acc: Array,
        sums: TileSums | None, buffers: Buffers,
    ) -> tuple[Array, Array | float]:  # fmt: skip
        """Add 2^s·v to acc ``(R, Dv)``; return Σ2^s ``(R,)`` and the shift, 0."""
        p, g, n = self.problem, self.problem.group(h), i1 - i0
        key, value = self.key[b, g], self.value[b, g]
        total = np.zeros(n)
        part = buffers.take("part", acc.shape, p.dtype)
        for j0, j1, mixed in self.plan(b, h, i0, i1):
            s = buffers.take("s", (j1 - j0, n), p.dtype)
            e = s if sums is None else buffers.take("e", s.shape, p.dtype)
            np.matmul(key[j0:j1], q, out=s)
            keep = p.mask.keep(b, h, i0, i1, j0, j1).T if mixed else None
            if sums:
                self._scores(sums, s, keep, e, j0, j1)
            np.exp2(s, out=e)
            if keep is not None:
                np.multiply(e, keep, out=e)
            np.matmul(e.T, value[j0:j1], out=part)
            np.add(acc, part, out=acc)
            ones = self.ones[: j1 - j0]
            total += ones @ e
            if sums:
                if keep is not None:
                    np.copyto(s, -np.inf, where=~keep)
                sums.logits(s, j0)
                if keep is not None:
                    np.maximum(s, -BOUND[p.dtype], out=s)
                sums.weights(e, s, ones)
        return total, 0.0

    def _online(
        self, b: int, h: int, i0: int, i1: int, q: Array, acc: Array,
        sums: TileSums | None, buffers: Buffers,
    ) -> tuple[Array, Array | float]:  # fmt: skip
        """Add exp(z−m)·v to acc ``(R, Dv)``; return Σexp(z−m) ``(R,)`` and the shift m."""
        p, g, n = self.problem, self.problem.group(h), i1 - i0
        key, value = self.key[b, g], self.value[b, g]
        total, m = np.zeros(n), np.full(n, -np.inf, p.dtype)
        shift = np.zeros(n, p.dtype)
        part = buffers.take("part", acc.shape, p.dtype)
        floor = np.log(np.finfo(p.dtype).smallest_subnormal) - 1
        for j0, j1, mixed in self.plan(b, h, i0, i1):
            s = buffers.take("s", (j1 - j0, n), p.dtype)
            e = s if sums is None else buffers.take("e", s.shape, p.dtype)
            np.matmul(key[j0:j1], q, out=s)
            keep = p.mask.keep(b, h, i0, i1, j0, j1).T if mixed else None
            if sums:
                self._scores(sums, s, keep, e, j0, j1)
            if p.softcap is not None:
                np.divide(s, p.dtype.type(p.softcap), out=s)
                np.multiply(np.tanh(s, out=s), p.dtype.type(p.softcap), out=s)
            bias = p.mask.bias(b, h, i0, i1, j0, j1)
            if bias is not None:
                np.add(s, bias.T, out=s, casting="same_kind")
            if keep is not None:
                np.copyto(s, -np.inf, where=~keep)
            if sums:
                sums.logits(s, j0)
            new = np.maximum(m, s.max(axis=0))
            if not np.array_equal(new, m):
                moved = np.where(np.isneginf(new), 0, new).astype(p.dtype)
                step = np.where(np.isneginf(m), -np.inf, shift.astype(np.float64) - moved)
                factor = np.exp(step)
                if sums:
                    sums.decay(factor, step, total)
                total *= factor
                np.multiply(acc, factor[:, None].astype(p.dtype), out=acc)
                m, shift = new, moved
            np.subtract(s, shift, out=s)
            np.exp(s, out=e)
            np.matmul(e.T, value[j0:j1], out=part)
            np.add(acc, part, out=acc)
            ones = self.ones[: j1 - j0]
            total += ones @ e
            if sums:
                sums.weights(e, np.maximum(s, floor, out=s), ones)
        return total, shift.astype(np.float64)

    def _scores(
        self, sums: TileSums, s: Array, keep: Array | None, spare: Array, j0: int, j1: int
    ) -> None:
        """Add scores ``(C, R)`` of keys j0:j1; what all rows see is left to the moments."""
        whole = j0 % GRAIN == 0 and (j1 % GRAIN == 0 or j1 == self.problem.keys)
        if keep is None and whole:
            sums.extremes(s, both=not self.plain)
            if sums.runs and sums.runs[-1][1] == j0:
                j0 = sums.runs.pop()[0]
            sums.runs.append((j0, j1))
        else:
            sums.scores(s, keep, spare)


def _ready(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return ``(B, G, L, D)`` in the arithmetic's dtype with rows that BLAS can read in place."""
    array = array.astype(dtype, copy=False)
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _not_finite(value: Array) -> Array:
    """Indices of the keys whose values ``(Lk, Dv)`` are not all finite."""
    return np.flatnonzero(~np.isfinite(value).all(-1))


def _mend(sheet: Sheet, b: int, h: int, i: Array, out: Array, lse: Array) -> None:
    """Add to out ``(R, Dv)`` what visible values that are not finite do to rows i ``(R,)``.

    p > 0 times ∞ is ∞, p = 0 times ∞ is NaN, ∞ − ∞ is NaN, as in the dense sum.
    """
    p, g = sheet.problem, sheet.problem.group(h)
    query = p.query[b, h][i].astype(np.float64)
    for at in range(0, len(sheet.bad[b, g]), 256):
        j = sheet.bad[b, g][at : at + 256]
        z = p.scale * (query @ p.key[b, g][j].astype(np.float64).T)  # (R, C)
        if p.softcap is not None:
            z = p.softcap * np.tanh(z / p.softcap)
        z = z + sum(bias.at(b, h, i[:, None], j[None, :]) for bias in p.mask.biases)
        sees = np.broadcast_to(p.mask.predicate.allows(b, h, i[:, None], j[None, :]), z.shape)
        weighs = sees & (np.exp(z - lse[:, None]) > 0)
        value = p.value[b, g][j].astype(np.float64)  # (C, Dv)
        for one in (np.inf, -np.inf):
            hit = weighs.astype(np.float64) @ (value == one)
            lost = (sees & ~weighs).astype(np.float64) @ (value == one)
            out[hit > 0] += one
            out[lost > 0] = np.nan
        out[sees.astype(np.float64) @ np.isnan(value) > 0] = np.nan


# --- whole rows ---------------------------------------------------------------------------------


def _whole_jobs(sheet: Sheet) -> Iterator[Job]:
    """Yield jobs that hold all keys of their rows: blocks of heads, or of rows of one head."""
    p = sheet.problem
    value = p.value
    for b, g in np.ndindex(p.batch, p.kv_heads):
        if (rows := _not_finite(value[b, g])).size:
            sheet.bad[b, g] = rows
    heads = max(1, min(p.heads, BLOCK_CELLS // (p.queries * p.keys)))
    batches = max(1, BLOCK_CELLS // (p.heads * p.queries * p.keys))
    step = min(p.queries, max(1, BLOCK_CELLS // p.keys))
    for b in range(0, p.batch, batches):
        for h in range(0, p.heads, heads):
            for i in range(0, p.queries, step):
                block = slice(b, b + batches), slice(h, h + heads), slice(i, i + step)
                yield lambda _, block=block: _whole(sheet, *block)


def _whole(sheet: Sheet, batches: slice, heads: slice, rows: slice) -> None:
    """Compute a block of batch elements, heads and rows densely."""
    p, dtype = sheet.problem, sheet.problem.dtype
    sheet.kernels.add("whole-row")
    block = batches, heads, rows
    bs, hs, i = (range(n)[part] for n, part in zip(sheet.lse.shape, block, strict=True))
    groups: Any = heads if p.kv_heads == p.heads else [p.group(h) for h in hs]
    query = p.query[block].astype(dtype, copy=False)  # (b, h, n, D)
    key = p.key[batches][:, groups].astype(dtype, copy=False)
    value = p.value[batches][:, groups].astype(dtype, copy=False)
    scores = np.matmul(query, key.swapaxes(-1, -2)) * dtype.type(p.scale)  # (b, h, n, Lk)
    capped = scores
    if p.softcap is not None:
        capped = dtype.type(p.softcap) * np.tanh(scores / dtype.type(p.softcap))
    masked, keep = capped, np.broadcast_to(True, scores.shape)
    if not p.mask.trivial:
        here = i.start, i.stop, 0, p.keys
        keep = np.stack([np.stack([p.mask.keep(b, h, *here) for h in hs]) for b in bs])
        if p.mask.has_bias:
            bias = [[np.asarray(p.mask.bias(b, h, *here)) for h in hs] for b in bs]
            masked = masked + np.asarray(bias).astype(dtype)
        masked = np.where(keep, masked, dtype.type(-np.inf))
    z = masked if p.softmax_dtype is None else masked.astype(p.softmax_dtype).astype(dtype)
    top = z.max(-1)  # (b, h, n)
    if p.sink is not None:
        top = np.maximum(top, p.sink[heads][:, None].astype(dtype))
    shift = np.where(np.isneginf(top), dtype.type(0), top)
    weights = np.exp(z - shift[..., None])
    total = weights.sum(-1)
    if p.sink is not None:
        total += np.exp(p.sink[heads][:, None].astype(dtype) - shift)
    weights /= np.where(total == 0, dtype.type(1), total)[..., None]
    if p.softmax_dtype is not None:
        weights = weights.astype(p.softmax_dtype).astype(dtype)
    lse = shift + np.log(total)
    bad = [(x, y) for x, b in enumerate(bs) for y, h in enumerate(hs) if (b, p.group(h)) in sheet.bad]
    if bad:
        value = np.where(np.isfinite(value), value, dtype.type(0))
    output = np.matmul(weights, value)  # (b, h, n, Dv)
    for x, y in bad:
        _mend(sheet, bs[x], hs[y], np.asarray(i), output[x, y], lse[x, y])
    sheet.output[block] = output
    sheet.lse[block] = lse
    made = {"scores": scores, "softcapped": capped, "masked": masked, "weights": weights}
    for name, stage in sheet.stages.items():
        stage[block] = made[name]
    if sheet.rows:
        for name, array in vars(Rows.dense(masked, scores, keep)).items():
            sheet.rows[name][block] = array
