"""What some query rows see, as the kernel is told it, and what both passes need beside it."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.classes import ascending, ranked
from attncli.attention.masks import Mask
from attncli.attention.patterns import Band
from attncli.attention.predicates import FULL, MIXED, Predicate, Spans, diagonals
from attncli.attention.problem import Problem
from attncli.engines.arranged import large

Array = np.ndarray[Any, np.dtype[Any]]

GRAIN = 128  # keys of a granule, as in kernel.c
WIDE = 1024  # keys of a class whose rows, be they few, are a job
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


class Seen(NamedTuple):
    """What some rows see: a mask that says it, and of which keys; none beside ``spans`` is seen.

    ``cells`` is its predicate as one that may have a view; granules are counted from ``start`` on.
    """

    mask: Mask
    cells: Predicate
    start: int
    spans: Spans


class Planner:
    """Plans of a problem's rows; those of heads that are alike are made once.

    ``step`` is how many rows a plan is worth being made for, a multiple of ``block``; ``width``
    how many keys they see, about.
    """

    def __init__(self, problem: Problem, threads: int, block: int) -> None:
        self.problem, self.varies, self.block = problem, problem.mask.varies, block
        p, mask = problem, problem.mask
        classes = ranked(mask) if large(p) else None
        self.classes = classes if classes and ascending(classes) else None
        self.asked = [mask, replace(mask, predicate=self.classes.rest) if self.classes else mask]
        self.cells = [one_band(one.predicate) or one.predicate for one in self.asked]
        self.step, self.width = self._sizes()
        self.plan = lru_cache(2 * threads + 2)(self._plan)

    def of(self, n: int, i0: int, i1: int) -> Plan:
        """Return what rows i0:i1 of head n see; heads are counted over all batch elements."""
        b, h = divmod(n, self.problem.heads)
        return self.plan(b * self.varies.batch, h * self.varies.head, i0, i1)

    def parts(self, n: int, step: int) -> list[tuple[int, int]]:
        """Return the rows of jobs of head n, ``step`` or fewer, which end where the mask changes.

        Small classes are together whatever ``step`` is, since granules are counted from the first.
        """
        p, block = self.problem, self.block
        b, h = divmod(n, p.heads)
        starts = np.array([0, *self._changes(b, h), p.queries])
        large = np.diff(starts) >= block
        if self.classes:
            ranks, keys = self._ranks(b)
            ends = np.searchsorted(keys, [ranks[starts[:-1]], ranks[starts[:-1]] + 1])
            large |= ends[1] - ends[0] >= WIDE
        pieces, i0 = [], 0
        for (start, stop), alone in zip(pairwise(starts.tolist()), large, strict=True):
            if i0 < start and (alone or start - i0 >= BLOCKS * block):
                pieces.append((i0, start))
                i0 = start
            if alone:
                pieces += [(i, min(i + step, stop)) for i in range(start, stop, step)]
                i0 = stop
        return pieces if i0 == p.queries else [*pieces, (i0, p.queries)]

    def _changes(self, b: int, h: int) -> Array:
        if self.classes:
            return np.flatnonzero(np.diff(self._ranks(b)[0])) + 1
        found = self.problem.mask.predicate.changes(b, h) if large(self.problem) else np.zeros(0)
        often = len(found) * self.block > self.problem.queries
        return np.zeros(0, np.int64) if often else found.astype(np.int64)

    def seen(self, b: int, h: int, i0: int, i1: int) -> Seen:
        """Return what rows i0:i1 see."""
        start, stop, one = 0, self.problem.keys, False
        if self.classes:
            queries, keys = self._ranks(b)
            first, last = queries[i0], queries[i1 - 1]
            start, stop = np.searchsorted(keys, [first, last + 1]).tolist()
            one = bool(first == last)
        mask, cells = self.asked[one], self.cells[one]
        spans = ((max(a, start), min(z, stop)) for a, z in mask.spans(b, h, i0, i1))
        return Seen(mask, cells, start, tuple((a, z) for a, z in spans if a < z))

    def _ranks(self, b: int) -> tuple[Array, Array]:
        assert self.classes is not None
        at = b if len(self.classes.keys) > 1 else 0
        return self.classes.queries[at], self.classes.keys[at]

    def _sizes(self) -> tuple[int, int]:
        p, block = self.problem, self.block
        if p.mask.trivial or not p.batch * p.heads * p.queries:
            return BLOCKS * block, max(p.keys, 1)
        most, width = 2 * BLOCKS * block, 1
        for i0 in {0, p.queries // 2, max(p.queries - most, 0)}:
            i1 = min(i0 + most, p.queries)
            if self.classes:
                ranks = self._ranks(0)[0]
                i1 = min(i1, int(np.searchsorted(ranks, ranks[i0], "right")))
            spans = self.seen(0, 0, i0, i1).spans
            width = max(width, spans[-1][1] - spans[0][0] if spans else 0)
        return max(1, min(most, MASK_CELLS // width) // block) * block, width

    def _plan(self, b: int, h: int, i0: int, i1: int) -> Plan:
        if self.problem.mask.trivial:
            return Plan(0, self.problem.keys)
        mask, cells, start, spans = self.seen(b, h, i0, i1)
        if not spans:
            return Plan(0, 0)
        # granules lie as they do for any size of a job, so that sums are the same
        j0, j1 = start + (spans[0][0] - start) // GRAIN * GRAIN, spans[-1][1]
        at = b, h, i0, i1, j0, j1
        bias = self._bias(*at)
        if cells.everything():
            return Plan(j0, j1, bias=bias)
        view = cells.view(*at)
        if view is not None:  # the kernel sees for itself where it is full
            return Plan(j0, j1, view, None, bias)
        if (i1 - i0) * (j1 - j0) <= ASK_CELLS:
            return Plan(j0, j1, mask.keep(*at), None, bias)
        edges = np.append(np.arange(j0, j1, GRAIN), j1)
        states = mask.tiles(b, h, i0, i1, edges)
        if (states == FULL).all():
            return Plan(j0, j1, bias=bias)
        keep = np.empty((i1 - i0, j1 - j0), bool)
        ends = np.flatnonzero(np.diff(states == MIXED, prepend=False, append=False))
        for a, z in edges[ends].reshape(-1, 2).tolist():
            keep[:, a - j0 : z - j0] = mask.keep(b, h, i0, i1, a, z)
        return Plan(j0, j1, keep, np.ascontiguousarray(states, np.int8), bias)

    def _bias(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array | None:
        """Return the biases: where they differ by diagonal alone, as views of a single line."""
        mask, dtype = self.problem.mask, self.problem.dtype
        if not mask.has_bias:
            return None
        asked = (bias.line(b, h, j0 - i1 + 1, j1 - i0) for bias in mask.biases)
        lines = [line for line in asked if line is not None]
        if len(lines) < len(mask.biases):
            return np.asarray(mask.bias(b, h, i0, i1, j0, j1)).astype(dtype)
        return diagonals(np.asarray(sum(lines)).astype(dtype), j1 - j0)


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
    heads, each = p.batch * p.heads, p.heads // max(p.kv_heads, 1)
    return heads, p.heads, each, p.queries, p.keys, p.width, p.value_width


def ready(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return an array as the kernel reads it: copied only where it must be."""
    return np.require(array.astype(dtype, copy=False), requirements=("C", "A"))
