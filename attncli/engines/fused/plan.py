"""What some query rows see, as the kernel is told it, and what both passes need beside it."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.patterns import Band
from attncli.attention.predicates import FULL, MIXED, Predicate
from attncli.attention.problem import Problem

Array = np.ndarray[Any, np.dtype[Any]]

GRAIN = 128  # keys of a granule, as in kernel.c
BLOCKS = 4  # of rows that a job takes, twice as many where a mask must be planned
MASK_CELLS = 1 << 22  # most cells of a mask that a job holds
ASK_CELLS = 1 << 18  # below, to ask for all cells costs less than to ask which granules are mixed


class Plan(NamedTuple):
    """What some rows see of keys j0:j1, by granules from j0 on. None: all of them; nothing added.

    keep, bias: ``(i1 − i0, j1 − j0)``; keep is only filled where ``states`` are MIXED.
    """

    j0: int
    j1: int
    keep: Array | None = None
    states: Array | None = None
    bias: Array | None = None


class Planner:
    """Plans of a problem's rows; those of heads that are alike are made once."""

    def __init__(self, problem: Problem, threads: int) -> None:
        self.problem, self.varies = problem, problem.mask.varies
        self.band = one_band(problem.mask.predicate)
        self.plan = lru_cache(2 * threads + 2)(self._plan)

    def of(self, n: int, i0: int, i1: int) -> Plan:
        """Return what rows i0:i1 of head n see; heads are counted over all batch elements."""
        b, h = divmod(n, self.problem.heads)
        return self.plan(b * self.varies.batch, h * self.varies.head, i0, i1)

    def rows(self, block: int) -> int:
        """Return how many rows a plan is worth being made for, a multiple of ``block``."""
        p, step = self.problem, BLOCKS * block
        if p.mask.trivial:
            return step
        starts = {0, p.queries // 2, max(p.queries - 2 * step, 0)}
        spans = [p.mask.spans(0, 0, i, min(i + 2 * step, p.queries)) for i in starts]
        width = max(one[-1][1] - one[0][0] if one else 0 for one in spans)
        return max(1, min(2 * step, MASK_CELLS // max(width, 1)) // block) * block

    def _plan(self, b: int, h: int, i0: int, i1: int) -> Plan:
        p, mask = self.problem, self.problem.mask
        if mask.trivial:
            return Plan(0, p.keys)
        spans = mask.spans(b, h, i0, i1)
        if not spans:
            return Plan(0, 0)
        j0, j1 = spans[0][0] // GRAIN * GRAIN, spans[-1][1]  # the same sums for any size of a job
        bias = None
        if mask.has_bias:
            bias = np.asarray(mask.bias(b, h, i0, i1, j0, j1)).astype(p.dtype)
        if self.band:  # a view, and the kernel sees for itself where it is full
            return Plan(j0, j1, self.band.block(b, h, i0, i1, j0, j1), None, bias)
        if (i1 - i0) * (j1 - j0) <= ASK_CELLS:
            return Plan(j0, j1, mask.keep(b, h, i0, i1, j0, j1), None, bias)
        edges = np.append(np.arange(j0, j1, GRAIN), j1)
        states = mask.tiles(b, h, i0, i1, edges)
        if (states == FULL).all():
            return Plan(j0, j1, bias=bias)
        keep = np.empty((i1 - i0, j1 - j0), bool)
        ends = np.flatnonzero(np.diff(states == MIXED, prepend=False, append=False))
        for a, z in edges[ends].reshape(-1, 2).tolist():
            keep[:, a - j0 : z - j0] = mask.keep(b, h, i0, i1, a, z)
        return Plan(j0, j1, keep, np.ascontiguousarray(states, np.int8), bias)


def one_band(predicate: Predicate) -> Band | None:
    """Return the band that a predicate is, where all that it joins are bands of one corner."""
    found = [part.band() for part in predicate.conjuncts()]
    bands = [band for band in found if band is not None]
    if len(bands) < len(found) or any(band.offset != bands[0].offset for band in bands):
        return None
    return Band(max(b.low for b in bands), min(b.high for b in bands), bands[0].offset)


class Scratch(threading.local):
    """Memory that a thread uses again for every job: fresh memory costs page faults."""

    memory = np.empty(0, np.uint8)

    def take(self, size: int) -> Array:
        if self.memory.size < size:
            self.memory = np.empty(size, np.uint8)
        return self.memory


scratch = Scratch()


def shape_of(p: Problem) -> tuple[int, int, int, int, int, int, int]:
    """Return B·H, H, H / G, Lq, Lk, D and Dv."""
    heads, each = p.batch * p.heads, p.heads // p.kv_heads
    return heads, p.heads, each, p.queries, p.keys, p.width, p.value_width


def ready(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return an array as the kernel reads it: copied only where it must be."""
    return np.require(array.astype(dtype, copy=False), requirements=("C", "A"))
