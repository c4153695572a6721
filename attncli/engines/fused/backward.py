"""Gradients in compiled code (see ``attention.gradients``): in tiles, from the lse. Memory O(L·D).

A job is the query heads of one key head, or a slice of that: every nth granule of keys. What it
adds to dK and dV is its own; slices leave a dQ each, and these are summed in order, so that nobody
waits and two runs agree to the bit (up to four threads, for any number).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.gradients import Gradients, WeightSums
from attncli.attention.predicates import EMPTY, FULL
from attncli.attention.problem import Problem
from attncli.engines import ANYHOW, Attended, How
from attncli.engines.arranged import arranged
from attncli.engines.fused import build
from attncli.engines.fused.forward import TINY, attend
from attncli.engines.fused.plan import GRAIN, Plan, Planner, ready, scratch, shape_of
from attncli.resources import Job, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

SLICES = 16  # most jobs of one key head: each holds a dQ of its own
LARGE = 1e3  # an lse this far from 0 has lost digits that the weights need
FROM_LSE = ("float32",)  # in which it starts from the lse that it is given, of however many keys
LN2 = float(np.log(2))


def backward(
    problem: Problem,
    grad_output: Array,
    attended: Attended | None = None,
    want: Collection[str] = (),
    how: How = ANYHOW,
) -> Gradients:
    """Return the gradients that ``unfit_backward`` lets through. grad_output: ``(B, H, Lq, Dv)``.

    ``attended`` is what ``attend`` returned for it, used when it is in float32 and computed
    otherwise. ``want``: any of ``score_norm``, ``sums``, ``alone``.
    """
    p, threads = problem, how.threads or processors()
    if found := arranged(p):
        kept = attended and found.attended(attended, found.moved)
        some = [name for name in want if name != "sums"]  # their distances would be of other places
        back = backward(found.problem, found.moved(grad_output), kept, some, how)
        return found.gradients(back)
    if attended is None or attended.output.dtype != p.dtype or _has_lost_digits(attended):
        exact = replace(p, result_dtype=p.dtype, softmax_dtype=None)
        attended = attend(exact, ("row_statistics",), How(threads))
    walk = Walk(p, grad_output, attended, threads, want)
    work = p.batch * p.heads * p.queries * p.keys * (p.width + p.value_width)
    if work:
        run_jobs(walk.jobs(), threads, work <= TINY, how.progress, blas=False)
    return walk.gradients()


def _has_lost_digits(attended: Attended) -> bool:
    """Whether the largest logits, which are exact, must be known beside the lse."""
    lse = attended.lse
    return attended.rows is None and bool((np.abs(lse) > LARGE)[np.isfinite(lse)].any())


class Walk:
    """The gradients as jobs of some granules of keys, against all rows that see them."""

    def __init__(
        self,
        problem: Problem,
        grad_output: Array,
        attended: Attended,
        threads: int,
        want: Collection[str],
    ) -> None:
        from attncli.engines.fused import _kernel

        self.problem = p = problem
        self.kernel, (self.build, self.block) = _kernel, build()
        self.planner, self.shape = Planner(p, threads, self.block), shape_of(p)
        _, self.scratch = _kernel.scratch(self.build, p.width, p.value_width)
        self.inputs = [ready(a, p.dtype) for a in (p.query, p.key, p.value)]
        self.grad = ready(grad_output, p.dtype)
        output = attended.output.astype(p.dtype, copy=False)
        delta = np.vecdot(self.grad, output).astype(np.float64)  # (B, H, Lq)
        self.known = *self._weights(attended), delta.astype(p.dtype)
        self.sink = None
        if p.sink is not None:
            lse = np.where(np.isneginf(attended.lse), np.inf, attended.lse.astype(np.float64))
            self.sink = -(np.exp(p.sink[:, None] - lse) * delta).sum((0, 2))
        tiles, heads = -(-p.keys // GRAIN), max(1, p.batch * p.kv_heads)
        self.slices = max(1, min(tiles, SLICES, -(-max(4, threads) // heads)))
        self.query = self.key = self.value = None
        if "alone" not in want:
            self.query = np.zeros((self.slices, *p.query.shape), p.dtype)
            self.key, self.value = (np.zeros(a.shape, p.dtype) for a in (p.key, p.value))
        self.norm = "score_norm" in want
        self.squares = np.zeros((self.slices, p.batch, p.heads, p.queries))
        self.place = self._places(attended) if "sums" in want else None
        if self.place is not None:
            assert attended.rows is not None
            self.cells = np.where(np.isnan(self.place), 0, attended.rows.n).sum(-1)
            diagonals = max(p.queries + p.keys - 1, 0)
            self.received = np.zeros((p.batch, p.heads, p.keys))
            self.diagonals = np.zeros((self.slices, p.batch, p.heads, diagonals))
            self.distance = np.zeros((self.slices, 2, p.batch, p.heads, p.queries))

    def _places(self, attended: Attended) -> Array | None:
        """Return the position of each row that `WeightSums` are of, NaN of others; ``(B, H, Lq)``.

        None where nothing says which rows have a choice.
        """
        p = self.problem
        if attended.rows is None:
            return None
        chosen = p.real_rows[:, None] & (attended.rows.n >= 2) & np.isfinite(attended.lse)
        offsets = np.array(p.mask.positions() or (0,) * p.batch)[:, None, None]
        return np.where(chosen, np.arange(p.queries) + offsets, np.nan).astype(np.float32)

    def _weights(self, attended: Attended) -> tuple[Array, Array]:
        """Return shift and factor of each row, ``(B, H, Lq)``: p = exp(z − shift) · factor.

        The shift is what float32 holds of the lse, or of the largest logit where that is exact.
        """
        p = self.problem
        unit = LN2 if p.softcap is None and not p.mask.has_bias else 1.0
        near, total = attended.lse.astype(np.float64), np.ones(1)
        with np.errstate(invalid="ignore"):
            if attended.rows is not None:
                near, total = attended.rows.m, attended.rows.e1
                if p.sink is not None:
                    near = np.maximum(near, p.sink[:, None])
                    total = np.exp(attended.rows.m - near) * total + np.exp(p.sink[:, None] - near)
            shift = np.where(np.isneginf(near), 0, near / unit).astype(p.dtype)
            factor = np.exp(shift.astype(np.float64) * unit - near) / total
        return shift, np.where(np.isneginf(near), 0, factor).astype(p.dtype)

    def gradients(self) -> Gradients:
        query = self.query
        if query is not None:
            query = query[0] if self.slices == 1 else query.sum(0)
        return Gradients(
            query=query, key=self.key, value=self.value, sink=self.sink, sums=self._sums(),
            score_norm=np.sqrt(self.squares.sum(0)) if self.norm else None,
        )  # fmt: skip

    def _sums(self) -> WeightSums | None:
        if self.place is None:
            return None
        distance, tiny = self.distance.sum(0)
        return WeightSums(
            received=self.received, diagonals=self.diagonals.sum(0), distance=distance,
            tiny=tiny.sum(-1).astype(np.int64), cells=self.cells,
        )  # fmt: skip

    def jobs(self) -> list[Job]:
        p = self.problem
        return [
            partial(self.job, g, at)
            for g in range(p.batch * p.kv_heads)
            for at in range(self.slices)
        ]

    def job(self, g: int, at: int) -> None:
        """Compute what slice ``at`` of the keys of key head g gives; heads over the batch."""
        p = self.problem
        each = p.heads // p.kv_heads
        for n in range(g * each, (g + 1) * each):
            for i0, i1 in self.planner.parts(n, self.planner.step):
                plan = self.planner.of(n, i0, i1)
                states = self._slice(plan, at)
                query = None if self.query is None else self.query[at]
                sums: tuple[Array | None, ...] = (None,) * 4
                if self.place is not None:
                    sums = self.place, self.distance[at], self.received, self.diagonals[at]
                buffers = (
                    scratch.take(self.scratch), *self.inputs, plan.keep, states, plan.bias,
                    self.grad, *self.known, self.squares[at], query, self.key, self.value, *sums,
                )  # fmt: skip
                self.kernel.backward(
                    self.build, buffers, self.shape, (n, n + 1, i0, i1, plan.j0, plan.j1),
                    p.scale, p.softcap or 0.0,
                )  # fmt: skip

    def _slice(self, plan: Plan, at: int) -> Array | None:
        """Return the states of a plan's granules, those of other slices EMPTY."""
        if self.slices == 1:
            return plan.states
        granules = plan.j0 // GRAIN + np.arange(-(-(plan.j1 - plan.j0) // GRAIN))
        states = plan.states
        if states is None:
            states = np.full(len(granules), FULL if plan.keep is None else 1, np.int8)
        return np.where(granules % self.slices == at, states, np.int8(EMPTY)).astype(np.int8)
