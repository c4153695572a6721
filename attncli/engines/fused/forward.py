"""Attention in one pass of compiled code, in threads. Memory is O(L·D).

A job is some query rows of some heads whose masks are alike. What these rows see is planned here:
the keys between which they see anything, whether a granule of them is EMPTY, MIXED or FULL, and the
cells of mixed ones. The kernel does the rest without the interpreter, and counts the rows in which
something is not finite: those are computed once more, from whole rows of weights.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.problem import Problem
from attncli.engines import ANYHOW, Attended, How
from attncli.engines.arranged import arranged
from attncli.engines.fused import build
from attncli.engines.fused.plan import Planner, ready, scratch, shape_of
from attncli.engines.whole import Sheet, mend, not_finite, whole_rows
from attncli.resources import Job, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

PLANES = ("m", "rest", "es", "rest2", "rest3", "mean", "m2", "amax", "first")  # as in kernel.c
JOB = 1 << 28  # multiply-adds of a job, about 5 ms: less and the interpreter's share shows
TINY = 1 << 22  # multiply-adds below which a second thread costs more than it saves


class Part(NamedTuple):
    """Query rows i0:i1 of heads n0:n1, counted over all batch elements."""

    n0: int
    n1: int
    i0: int
    i1: int


def attend(problem: Problem, want: Collection[str], how: How = ANYHOW) -> Attended:
    """Compute output, lse and running sums of what ``unfit`` lets through."""
    p, threads = problem, how.threads or processors()
    if found := arranged(p):
        return found.restored(attend(found.problem, want, how))
    walk = Walk(p, "row_statistics" in want, threads)
    work = p.batch * p.heads * p.queries * p.keys * (p.width + p.value_width)
    used = run_jobs(walk.jobs(), threads, work <= TINY, how.progress, blas=False)
    with np.errstate(over="ignore"):
        walk.sheet.output = walk.sheet.output.astype(p.result_dtype, copy=False)
    return walk.sheet.attended(used)


class Walk:
    """Attention as jobs of some query rows of some heads."""

    def __init__(self, problem: Problem, statistics: bool, threads: int) -> None:
        self.problem = p = problem
        from attncli.engines.fused import _kernel

        self.kernel, (self.build, self.block) = _kernel, build()
        self.planner, self.shape = Planner(p, threads, self.block), shape_of(p)
        self.scratch, _ = _kernel.scratch(self.build, p.width, p.value_width)
        self.threads = threads
        self.query, self.key, self.value = (ready(a, p.dtype) for a in (p.query, p.key, p.value))
        self.sink = None if p.sink is None else p.sink.astype(np.float64)
        shape = (p.batch, p.heads, p.queries)
        self.sums: tuple[Array | None, ...] = (None,) * 4
        rows: dict[str, Array] = {}
        if statistics:
            sums, top_z = np.empty((len(PLANES), *shape)), np.empty((*shape, 2))
            n, top_j = np.empty(shape, np.int64), np.empty((*shape, 2), np.int64)
            self.sums = sums, top_z, n, top_j
            rows = dict(zip(PLANES, sums, strict=True)) | dict(n=n, top_z=top_z, top_j=top_j)
            rows["others"] = np.zeros(shape, np.int64)
        self.sheet = Sheet(
            problem=p, output=np.empty((*shape, p.value_width), p.dtype),
            lse=np.empty(shape, p.dtype), rows=rows, stages={}, bad={}, kernels={self.build},
        )  # fmt: skip
        self.lock, self.finite = threading.Lock(), False

    # --- what to do -----------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Return the jobs, longest first, so that threads end together."""
        p = self.problem
        total, varies = p.batch * p.heads, self.planner.varies
        if not total * p.queries:
            return []
        alike = 1 if varies.head else p.heads if varies.batch else total
        step, heads = self._sizes(alike)
        parts = [
            Part(n, min(n + heads, first + alike), i0, i1)
            for first in range(0, total, alike)
            for i0, i1 in self.planner.parts(first, step)
            for n in range(first, first + alike, heads)
        ]
        parts.sort(key=lambda part: part.i0)  # the next head may ask for the same cells
        if not p.mask.trivial and self.threads > 1:

            def cost(part: Part) -> int:
                spans = self.planner.seen(*divmod(part.n0, p.heads), part.i0, part.i1).spans
                return -sum(stop - start for start, stop in spans)

            parts.sort(key=cost)
        return [partial(self.job, part) for part in parts]

    def _sizes(self, alike: int) -> tuple[int, int]:
        """Return rows and heads of a job: few enough for all threads, and worth its while."""
        p, least = self.problem, 4 * self.threads if self.threads > 1 else 1
        total, step = p.batch * p.heads, self.planner.step
        while step > self.block and total * -(-p.queries // step) < least:
            step = max(1, step // self.block // 2) * self.block
        work = min(step, p.queries) * self.planner.width * (p.width + p.value_width + 1)
        heads = min(JOB // work, total * -(-p.queries // step) // least)
        return step, max(1, min(alike, heads))

    # --- doing it -------------------------------------------------------------------------------

    def job(self, part: Part) -> None:
        """Compute some rows of some heads."""
        finite = self.finite
        if self.run(part) or self.sheet.bad:
            for n in range(part.n0, part.n1):
                self._mend(part._replace(n0=n, n1=n + 1), finite)

    def run(self, part: Part) -> int:
        """Let the kernel compute some rows; return how many of them are not finite."""
        plan = self.planner.of(part.n0, part.i0, part.i1)
        buffers = (
            scratch.take(self.scratch), self.query, self.key, self.value, plan.keep, plan.states,
            plan.bias, self.sheet.output, self.sheet.lse, *self.sums, self.sink,
        )  # fmt: skip
        return self.kernel.attend(
            self.build, buffers, self.shape, (*part, plan.j0, plan.j1), self.problem.scale,
            self.problem.softcap or 0.0,
        )  # fmt: skip

    def _mend(self, part: Part, finite: bool) -> None:
        """Compute rows of one head once more where something is not finite.

        ``finite``: the kernel has already read values with 0 in place of what is not.
        """
        sheet, p = self.sheet, self.problem
        (b, h), rows = divmod(part.n0, p.heads), slice(part.i0, part.i1)
        if not finite and not np.isfinite(sheet.output[b, h, rows]).all():
            self._read_finite_values()
            self.run(part)
        lse = sheet.lse[b, h, rows]
        lost = ~(np.isfinite(lse) | np.isneginf(lse))
        lost |= ~np.isfinite(sheet.output[b, h, rows]).all(-1)  # a sum of the largest values
        if sheet.rows:
            lost |= ~np.isfinite(sheet.rows["mean"][b, h, rows])
        i = np.arange(part.i0, part.i1)
        if (b, p.group(h)) in sheet.bad and not lost.all():
            out, kept = sheet.output[b, h], i[~lost]
            some = out[kept]
            mend(sheet, b, h, kept, some, lse[~lost])
            out[kept] = some
        if lost.any():
            whole_rows(sheet, b, h, i[lost])

    def _read_finite_values(self) -> None:
        """Put 0 in place of values that are not finite, and note which keys have such."""
        with self.lock:
            if self.finite:
                return
            p = self.problem
            for at in np.ndindex(p.batch, p.kv_heads):
                if (keys := not_finite(self.value[at])).size:
                    self.sheet.bad[at] = keys
            self.value = np.where(np.isfinite(self.value), self.value, p.dtype.type(0))
            self.finite = True
