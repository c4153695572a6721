"""The largest weight of each block of a weight matrix, of any length: a map whose peaks are kept.

A second sweep with the known lse, in tiles: memory is O(L·D + blocks), tiles that nobody sees are
skipped, and only the largest logit of a row in a block is exponentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.predicates import EMPTY, MIXED
from attncli.attention.problem import Problem
from attncli.resources import Job, Progress, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

TILE_ROWS, TILE_KEYS = 256, 1024


class Blocks(NamedTuple):
    """A range in blocks of ``size``, the last of what is left: n indices in ⌈n / size⌉ blocks."""

    start: int
    stop: int
    size: int

    @classmethod
    def of(cls, start: int, stop: int, most: int) -> Blocks:
        """Return the smallest blocks of which there are at most so many."""
        return cls(start, stop, max(1, -(-(stop - start) // most)))

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.size)

    @property
    def edges(self) -> list[int]:
        """Where blocks begin, and the end, counted from ``start``."""
        count = self.stop - self.start
        return [*range(0, count, self.size), count]


def peaks(
    problem: Problem,
    lse: Array,
    heads: Sequence[tuple[int, int]],
    rows: Blocks,
    keys: Blocks,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Array, Array]:
    """Return the largest weight of each block, and whether a cell of it is visible.

    lse ``(B, H, Lq)``, sink included; heads are (batch, head). Weights are float32
    ``(len(heads), R, C)``, 0 where nothing is visible, NaN where a row's lse is; visible is bool.
    """
    shape = len(heads), len(rows), len(keys)
    found, seen = np.zeros(shape, np.float32), np.zeros(shape, bool)
    cells = len(heads) * (rows.stop - rows.start) * (keys.stop - keys.start)
    step = max(1, TILE_ROWS // rows.size)  # blocks of rows in a job
    jobs: list[Job] = [
        partial(_Strip(problem, b, h, keys, lse[b, h]).fill, found[n], seen[n], rows, at, step)
        for n, (b, h) in enumerate(heads)
        for at in range(0, len(rows), step)
        if cells
    ]
    run_jobs(jobs, threads, cells <= 1 << 16, progress)
    return found, seen


class _Strip:
    """Some rows of a head, over all blocks of keys."""

    def __init__(self, p: Problem, b: int, h: int, keys: Blocks, lse: Array) -> None:
        self.p, self.at, self.keys, self.lse = p, (b, h), keys, lse

    def fill(self, found: Array, seen: Array, rows: Blocks, at: int, step: int) -> None:
        """Write blocks of rows at:at + step."""
        first = rows.start + at * rows.size
        last = min(first + step * rows.size, rows.stop)
        for i0 in range(first, last, TILE_ROWS):  # several where a block is higher
            i1 = min(i0 + TILE_ROWS, last)
            weights, visible = self._rows(i0, i1)
            starts = np.arange(0, i1 - i0, rows.size)
            to = (i0 - rows.start) // rows.size
            some = slice(to, to + len(starts))
            np.maximum(found[some], np.maximum.reduceat(weights, starts), out=found[some])
            seen[some] |= np.logical_or.reduceat(visible, starts)

    def _rows(self, i0: int, i1: int) -> tuple[Array, Array]:
        """Return the largest weights of rows i0:i1 in blocks of keys, and which blocks they see."""
        p, (b, h), keys = self.p, self.at, self.keys
        query = (p.query[b, h, i0:i1] * p.dtype.type(p.scale)).astype(p.dtype)
        top = np.full((i1 - i0, len(keys)), -np.inf, p.dtype)
        for j0, j1, state in self._plan(i0, i1):
            z = query @ p.key[b, p.group(h), j0:j1].astype(p.dtype, copy=False).T  # (R, C)
            if p.softcap is not None:
                z = p.dtype.type(p.softcap) * np.tanh(z / p.dtype.type(p.softcap))
            bias = p.mask.bias(b, h, i0, i1, j0, j1)
            if bias is not None:
                z += bias
            if state == MIXED:
                np.copyto(z, -np.inf, where=~p.mask.keep(b, h, i0, i1, j0, j1))
            to, whole = (j0 - keys.start) // keys.size, (j1 - j0) // keys.size * keys.size
            if whole:
                parts = z[:, :whole].reshape(i1 - i0, -1, keys.size)  # (R, blocks, size)
                top[:, to : to + parts.shape[1]] = parts.max(-1)
            if whole < j1 - j0:
                top[:, to + whole // keys.size] = z[:, whole:].max(-1)
        visible = ~np.isneginf(top)
        lse = self.lse[i0:i1, None]
        with np.errstate(invalid="ignore", over="ignore"):
            weights = np.minimum(np.exp(top - lse), 1).astype(np.float32)
        return np.where(visible, weights, np.float32(0)), visible

    def _plan(self, i0: int, i1: int) -> list[tuple[int, int, int]]:
        """Return (j0, j1, state) of tiles of whole blocks of keys that rows i0:i1 see."""
        mask, keys = self.p.mask, self.keys
        step = max(1, TILE_KEYS // keys.size) * keys.size
        edges = np.append(np.arange(keys.start, keys.stop, step), keys.stop)
        states = mask.tiles(*self.at, i0, i1, edges)
        tiles = zip(edges[:-1].tolist(), edges[1:].tolist(), states.tolist(), strict=True)
        return [tile for tile in tiles if tile[2] != EMPTY]
