"""The default engine: attention in tiles, in threads, on NumPy alone. Memory is O(L·D).

A job is some query rows of one head. It walks over the tiles of keys that these rows see, and
three kernels differ in how they meet ``exp``:

- *bounded*: |s_ij| ≤ scale·‖q_i‖·max‖k_j‖ (Cauchy–Schwarz). Where that is small, exp can neither
  overflow nor lose anything, no maximum is needed, and 2^x is the fastest exponential there is.
- *online*: a running maximum (Milakov & Gimelshein 2018), for everything else.
- *whole rows*: for small problems, many heads in one product, and when a matrix is asked for.

Products are cut small on purpose (``rows.split_rows``), and keys are transposed in blocks once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.predicates import EMPTY, MIXED
from attncli.attention.problem import STAGES, Problem
from attncli.attention.softcap import softcapped
from attncli.attention.tile_sums import Hidden, TileSums, largest
from attncli.engines import ANYHOW, Attended, How
from attncli.engines.numpy.rows import BLOCK, GRAIN, Head, Part, Rowset
from attncli.engines.whole import Sheet, mend, whole_jobs
from attncli.resources import Job, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]
Tile = tuple[int, int, list[tuple[int, int]]]  # keys j0:j1, and which of them must be asked

LOG2E = math.log2(math.e)
# The cube of 2^±bound, summed over 2^17 keys, must stay a normal number.
BOUND = {np.dtype(np.float32): 36.0, np.dtype(np.float64): 300.0}
TILE_CELLS = 1 << 19  # scores of a tile: half of it is not enough for two threads
TINY_CELLS = 1 << 16  # below, threads cost more than they save
WHOLE_CELLS = 1 << 15  # scores of a head: below, several heads go into one product


class Tiling(NamedTuple):
    """Rows of a head in a job, keys of a tile, heads in a job (at most)."""

    rows: int
    keys: int
    heads: int = 1


def attend(
    problem: Problem, want: Collection[str], how: How = ANYHOW, tiling: Tiling | None = None
) -> Attended:
    """Compute in tiles of a given size; None chooses, and lets small problems do without."""
    p, threads = problem, how.threads or processors()
    whole = p.softmax_dtype is not None or any(name in want for name in STAGES)
    if tiling is None and not whole and p.queries * p.keys > WHOLE_CELLS:
        from attncli.engines.arranged import arranged

        if found := arranged(p):
            return found.restored(attend(found.problem, want, how))
    sheet = Sheet.blank(p, want)
    cells = p.queries * p.keys
    used = 1
    with np.errstate(all="ignore"):
        if cells and p.batch * p.heads:
            if whole or (tiling is None and cells <= WHOLE_CELLS):
                jobs = list(whole_jobs(sheet))
            else:
                jobs = Walk(sheet, tiling or _tiling(p, threads)).jobs()
            tiny = p.batch * p.heads * cells <= TINY_CELLS
            used = run_jobs(jobs, threads, tiny, how.progress)
        elif p.sink is not None:
            sheet.lse[:] = p.sink[:, None]
    return sheet.attended(used)


def _tiling(p: Problem, threads: int) -> Tiling:
    """Large tiles, since threads meet at the interpreter between NumPy calls; enough jobs."""
    rows = 512 if p.mask.trivial else 256
    while rows > 128 and p.batch * p.heads * -(-p.queries // rows) < threads:
        rows //= 2
    width = 512 if rows > 256 else 1024
    heads = TILE_CELLS // (min(rows, p.queries) * min(width, p.keys))
    heads = max(1, min(heads, p.batch * p.heads * -(-p.queries // rows) // (2 * threads)))
    return Tiling(rows, width, heads)


class Walk:
    """Attention as jobs of some query rows of some heads that walk over tiles of keys."""

    def __init__(self, sheet: Sheet, tiling: Tiling) -> None:
        p = sheet.problem
        self.sheet, self.problem, self.tiling = sheet, p, tiling
        key, self.value = _ready(p.key, p.dtype), _ready(p.value, p.dtype)
        shape = (p.batch, p.kv_heads, -(-p.keys // BLOCK), p.width, BLOCK)
        self.blocks = np.empty(shape, p.dtype)
        self.heads = {
            at: Head(key[at], self.value[at], self.blocks[at])
            for at in np.ndindex(p.batch, p.kv_heads)
        }
        sheet.bad.update({at: head.bad for at, head in self.heads.items() if head.bad.size})
        if sheet.bad:
            self.value = np.where(np.isfinite(self.value), self.value, p.dtype.type(0))
        self.ones = np.ones(max(tiling.keys, GRAIN), p.dtype)
        self.plain = p.softcap is None and not p.mask.has_bias

    def jobs(self) -> list[Job]:
        """Return the jobs, longest first, so that threads end together."""
        p, step = self.problem, self.tiling.rows
        heads = self._heads_together()
        parts = [
            Part(b, h, h + heads, i0, min(i0 + step, p.queries))
            for b in range(p.batch)
            for h in range(0, p.heads, heads)
            for i0 in range(0, p.queries, step)
        ]
        if not p.mask.trivial:

            def cost(part: Part) -> int:
                spans = p.mask.spans(part.b, part.h0, part.i0, part.i1)
                return -sum(stop - start for start, stop in spans)

            parts.sort(key=cost)
        return [partial(self.job, part) for part in parts]

    def _heads_together(self) -> int:
        """How many heads a job takes: whole groups that share a key head, or a part of one."""
        each = self.problem.heads // self.problem.kv_heads
        fits = [n for n in range(1, each + 1) if each % n == 0]
        fits += [n * each for n in range(2, self.problem.kv_heads + 1)
                 if self.problem.kv_heads % n == 0]  # fmt: skip
        return max(n for n in fits if n <= max(1, self.tiling.heads))

    def plan(self, part: Part) -> Iterator[Tile]:
        """Yield (j0, j1, mixed) of the tiles that a part sees, empty ones left out.

        ``mixed`` are the key ranges whose cells must be asked.
        """
        mask, keys, width = self.problem.mask, self.problem.keys, self.tiling.keys
        if mask.trivial:
            yield from ((j0, min(j0 + width, keys), []) for j0 in range(0, keys, width))
            return
        spans = [mask.spans(*where) for where in part.where()]
        if not any(spans):
            return
        start = min(span[0][0] for span in spans if span) // GRAIN * GRAIN
        stop = max(span[-1][1] for span in spans if span)
        edges = np.append(np.arange(start, stop, GRAIN), min(keys, -(-stop // GRAIN) * GRAIN))
        each = np.stack([mask.tiles(*where, edges) for where in part.where()])
        states = np.where((each == each[0]).all(0), each[0], MIXED).tolist()
        j0, mixed = start, list[tuple[int, int]]()
        ends = [*edges[1:].tolist(), keys]
        for state, a, z in zip([*states, EMPTY], edges.tolist(), ends, strict=True):
            kept = bool(mixed and mixed[-1][1] == a)  # the cells before are mixed
            if a > j0 and (state == EMPTY or z - j0 > width):
                yield j0, a, mixed
                j0, mixed, kept = a, [], False
            if state == EMPTY:
                j0 = z
            elif state == MIXED:
                mixed.append((mixed.pop()[0] if kept else a, z))

    def job(self, part: Part) -> None:
        """Compute some rows of some heads."""
        p = self.problem
        groups = range(p.group(part.h0), p.group(part.h1 - 1) + 1)
        heads = [self.heads[part.b, g] for g in groups]
        for head in heads:
            head.fill()
        query = p.query[part.block].astype(p.dtype, copy=False)  # (heads, R, D)
        bounded = self._is_bounded(query, heads)
        self.sheet.kernels.add("bounded" if bounded else "online")
        unit = LOG2E if bounded else 1.0
        kv, each = (part.b, slice(groups.start, groups.stop)), part.size // len(groups)
        q = (query * p.dtype.type(p.scale * unit)).reshape(len(groups), each, p.width)
        rows = Rowset(
            part, q, self.blocks[kv], self.value[kv],
            acc=np.zeros((part.size, p.value_width), p.dtype),
            sums=TileSums(part.size, 1 / unit) if self.sheet.rows else None,
        )  # fmt: skip
        total, shift = (self._bounded if bounded else self._online)(rows)
        self._write(rows, total, shift)
        if rows.sums:
            for name, array in rows.sums.finish(shift, self.plain).items():
                self.sheet.rows[name][part.block] = part.by_head(array)

    def _is_bounded(self, query: Array, heads: list[Head]) -> bool:
        """Whether exp of the scores of query ``(heads, R, D)`` needs no maximum."""
        reach = math.sqrt(np.vecdot(query, query).max()) * max(head.key_reach for head in heads)
        sizes = [head.value_reach for head in heads]
        return (
            self.plain
            and reach * abs(self.problem.scale) * LOG2E <= BOUND[self.problem.dtype]
            and all(size == 0 or 2.0**-60 < size < 2.0**60 for size in sizes)
        )

    def _write(self, rows: Rowset, total: Array, shift: Array | float) -> None:
        """Write output and lse. total ``(R,)``: Σ exp(z − shift) over keys, in float64."""
        p, part, sheet = self.problem, rows.part, self.sheet
        denominator, lse = total, shift + np.log(total)
        if p.sink is not None:
            sink = np.repeat(p.sink[part.h0 : part.h1], part.i1 - part.i0)
            denominator, lse = total + np.exp(sink - shift), np.logaddexp(lse, sink)
        factor = np.where(total == 0, 0, 1 / denominator).astype(p.dtype)
        np.multiply(rows.acc, factor[:, None], out=rows.acc)
        out, lse = part.by_head(rows.acc), part.by_head(lse)
        sheet.lse[part.block] = lse
        for at, h in enumerate(range(part.h0, part.h1)):
            if (part.b, p.group(h)) in sheet.bad:
                mend(sheet, part.b, h, np.arange(part.i0, part.i1), out[at], lse[at])
        sheet.output[part.block] = out

    def _bounded(self, rows: Rowset) -> tuple[Array, Array | float]:
        """Add Σ2^s·v to ``rows.acc``; return Σ2^s ``(R,)`` and the shift, 0."""
        sums, total = rows.sums, np.zeros(len(rows.acc))
        for j0, j1, mixed in self.plan(rows.part):
            s, ones = rows.scores(j0, j1), self.ones[: j1 - j0]  # (R, C)
            hidden, e = self._hidden(rows, j0, mixed), s
            if sums:
                self._put(s, hidden, 0)
                sums.scores(s, ones, hidden, both=False)
                e = rows.spare(s)
            np.exp2(s, out=e)
            self._put(e, hidden, 0)
            rows.add(e, j0, j1)
            if sums:
                self._put(s, hidden, -np.inf)
                sums.logits(s, j0)
                self._put(s, hidden, 0)
                sums.weights(e, s, ones, 0.0)
            else:
                total += e @ ones
        return sums.total(0.0) if sums else total, 0.0

    def _online(self, rows: Rowset) -> tuple[Array, Array | float]:
        """Add Σexp(z−m)·v to ``rows.acc``; return Σexp(z−m) ``(R,)`` and the shift m."""
        p, sums, total = self.problem, rows.sums, np.zeros(len(rows.acc))
        m, shift = np.full(len(rows.acc), -np.inf, p.dtype), np.zeros(len(rows.acc), p.dtype)
        lowest = np.finfo(p.dtype).min
        for j0, j1, mixed in self.plan(rows.part):
            s, ones = rows.scores(j0, j1), self.ones[: j1 - j0]  # (R, C)
            hidden, e = self._hidden(rows, j0, mixed), s
            if sums:
                self._put(s, hidden, 0)
                sums.scores(s, ones, hidden, both=not self.plain)
                e = rows.spare(s)
            softcapped(s, p.softcap, out=s)
            if p.mask.has_bias:
                bias = rows.part.stack(p.mask.bias, j0, j1)
                np.add(s, bias, out=s, casting="same_kind")
            self._put(s, hidden, -np.inf)
            new = np.maximum(m, sums.logits(s, j0) if sums else largest(s))
            if not np.array_equal(new, m):
                moved = np.where(np.isneginf(new), p.dtype.type(0), new)
                step = np.where(np.isneginf(m), -np.inf, shift.astype(np.float64) - moved)
                factor = np.exp(step)
                if sums:
                    sums.decay(factor, step)
                total *= factor
                np.multiply(rows.acc, factor[:, None].astype(p.dtype), out=rows.acc)
                m, shift = new, moved
            np.subtract(s, shift[:, None], out=s)
            np.exp(s, out=e)
            rows.add(e, j0, j1)
            if sums:
                if hidden or p.mask.has_bias or not np.isfinite(sums.amax).all():
                    np.maximum(s, lowest, out=s)  # 0·∞ would not be 0
                sums.weights(e, s, ones, shift.astype(np.float64))
            else:
                total += e @ ones
        wide = shift.astype(np.float64)
        return sums.total(wide) if sums else total, wide

    def _hidden(self, rows: Rowset, j0: int, mixed: list[tuple[int, int]]) -> Hidden:
        """Return the keys of a tile that are mixed, from j0 on, and which cells are hidden."""
        keep, part = self.problem.mask.keep, rows.part
        return [(slice(a - j0, z - j0), ~part.stack(keep, a, z)) for a, z in mixed]

    @staticmethod
    def _put(tile: Array, hidden: Hidden, value: float) -> None:
        for keys, some in hidden:
            np.copyto(tile[:, keys], value, where=some)


def _ready(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return ``(B, G, L, D)`` in the arithmetic's dtype with rows that BLAS can read in place."""
    array = array.astype(dtype, copy=False)
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)
