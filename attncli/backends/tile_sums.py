"""Row statistics of the tiled engine: grown tile by tile, while a tile is still in the cache.

Tiles are transposed, ``(keys, rows)``: sums over keys are then products with a row of ones and
maxima are elementwise, which NumPy runs several times faster than reductions along a row.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

GRAIN = 128  # keys: the grid on which masks are asked and moments kept
GROUP = 16  # keys: the two largest logits are looked for in groups


class Moments:
    """Count, mean and scatter of one key head's rows, for any run of whole blocks of keys.

    Over keys that a query sees without exception, the mean of its scores is q·mean(k) and their
    sum of squared deviations is qᵀ·scatter·q: O(D²) a row, in float64, instead of passes over
    every score.
    """

    def __init__(self, key: Array) -> None:
        """key: ``(Lk, D)``."""
        self.key = key
        self.runs: dict[tuple[int, int], tuple[int, Array, Array]] = {}
        self.lock = threading.Lock()
        self.blocks: tuple[Array, Array, Array] | None = None

    def _blocks(self) -> tuple[Array, Array, Array]:
        keys, width = self.key.shape
        count = -(-keys // GRAIN)
        centre = self.key.mean(0, dtype=np.float64)  # (D,)
        first, second = np.empty((count, width)), np.empty((count, width, width))
        for block in range(count):
            part = self.key[block * GRAIN : (block + 1) * GRAIN] - centre  # float64 (GRAIN, D)
            first[block] = part.sum(0)
            np.matmul(part.T, part, out=second[block])
        return centre, first, second

    def of(self, j0: int, j1: int) -> tuple[int, Array, Array]:
        """Return n, mean ``(D,)`` and scatter ``(D, D)`` of keys j0:j1, on the grain's grid."""
        with self.lock:
            if self.blocks is None:
                self.blocks = self._blocks()
            if (j0, j1) not in self.runs:
                centre, first, second = self.blocks
                blocks = slice(j0 // GRAIN, -(-j1 // GRAIN))
                offset = first[blocks].sum(0) / (j1 - j0)
                scatter = second[blocks].sum(0) - (j1 - j0) * np.outer(offset, offset)
                self.runs[j0, j1] = j1 - j0, centre + offset, scatter
            return self.runs[j0, j1]


class TileSums:
    """The sums of ``Rows`` for some query rows, each ``(R,)`` in float64, relative to a shift.

    The engine calls, for each tile: ``scores`` (or ``extremes``, with a run for ``settle``), then
    ``logits``, then ``weights``; and ``decay`` whenever it changes the shift.
    """

    def __init__(self, rows: int) -> None:
        self.m = np.full(rows, -np.inf)
        self.es, self.e2, self.e3 = np.zeros(rows), np.zeros(rows), np.zeros(rows)
        self.n = np.zeros(rows, np.int64)
        self.mean, self.m2 = np.zeros(rows), np.zeros(rows)
        self.amax = np.full(rows, -np.inf)
        self.runs: list[tuple[int, int]] = []
        self.first = np.full(rows, -np.inf)
        self.top_z = np.full((rows, 2), -np.inf)
        self.top_j = np.full((rows, 2), -1, np.int64)

    def extremes(self, s: Array, *, both: bool = True) -> None:
        """Add magnitudes of scores ``(C, R)``; the largest may be left to ``logits``."""
        np.maximum(self.amax, -s.min(axis=0), out=self.amax)
        if both:
            np.maximum(self.amax, s.max(axis=0), out=self.amax)

    def scores(self, s: Array, keep: Array | None, spare: Array) -> None:
        """Add the scores of a tile. s, spare: ``(C, R)``; keep: bool ``(C, R)``, None = all."""
        hidden = None if keep is None else ~keep
        np.copyto(spare, s)
        if hidden is not None:
            np.copyto(spare, 0, where=hidden)
        self.extremes(spare)
        n = np.full(s.shape[1], len(s)) if keep is None else np.count_nonzero(keep, axis=0)
        ones, many = np.ones(len(s), s.dtype), np.maximum(n, 1)
        mean = (ones @ spare) / many.astype(s.dtype)
        np.subtract(spare, mean, out=spare)
        if hidden is not None:
            np.copyto(spare, 0, where=hidden)
        left = (ones @ spare) / many  # what rounding left of the mean
        np.multiply(spare, spare, out=spare)
        self.merge(n, mean + left, ones @ spare - n * left**2)

    def settle(self, moments: Moments, q: Array) -> None:
        """Add the scores of ``runs``, the keys that all rows see. q: ``(R, D)``, scaled."""
        for run in self.runs:
            n, mean, scatter = moments.of(*run)
            self.merge(n, q @ mean, np.vecdot(q @ scatter, q))

    def merge(self, n: Array | int, mean: Array, m2: Array) -> None:
        """Merge the mean and squared deviations of n more scores (Chan et al. 1983)."""
        total = self.n + n
        delta, share = mean - self.mean, n / np.maximum(total, 1)
        self.m2 += m2 + delta**2 * self.n * share
        self.mean += delta * share
        self.n = total

    def logits(self, z: Array, j0: int) -> None:
        """Add the logits of a tile, −∞ where hidden. z: ``(C, R)``, keys from j0 on."""
        if j0 == 0:
            self.first[:] = z[0]
        keys = len(z) - len(z) % GROUP
        best = z[:keys].reshape(-1, GROUP, z.shape[1]).max(axis=1)  # (groups, R)
        if keys < len(z):
            best = np.concatenate([best, z[keys:].max(axis=0, keepdims=True)])
        peak = best.max(axis=0)  # (R,)
        np.maximum(self.m, peak, out=self.m)
        rows = np.flatnonzero(peak > self.top_z[:, 1])
        if rows.size:
            self._top(z, best, rows, j0)

    def _top(self, z: Array, best: Array, rows: Array, j0: int) -> None:
        """Merge the two largest of a tile into rows whose second place it beats."""
        best, each = best[:, rows].T.copy(), np.arange(len(rows))  # (k, groups)
        one = best.argmax(1)
        best[each, one] = -np.inf
        two = best.argmax(1)
        groups = np.stack([np.minimum(one, two), np.maximum(one, two)], 1)  # ascending keys
        j = groups[:, :, None] * GROUP + np.arange(GROUP)  # (k, 2, GROUP)
        j = j.reshape(len(rows), -1)
        inside = j < len(z)
        inside[one == two, GROUP:] = False  # nothing outside the first group
        j = np.minimum(j, len(z) - 1)
        found = np.where(inside, z[j, rows[:, None]], -np.inf)  # (k, 2·GROUP)
        top_z, top_j = [self.top_z[rows]], [self.top_j[rows]]
        for _ in range(2):
            at = found.argmax(1)
            value = found[each, at]
            top_z.append(value[:, None])
            top_j.append(np.where(np.isneginf(value), -1, j[each, at] + j0)[:, None])
            found[each, at] = -np.inf
        all_z, all_j = np.concatenate(top_z, 1), np.concatenate(top_j, 1)  # (k, 4)
        order = np.argsort(-all_z, axis=1, kind="stable")[:, :2]
        self.top_z[rows] = np.take_along_axis(all_z, order, 1)
        self.top_j[rows] = np.take_along_axis(all_j, order, 1)

    def weights(self, e: Array, z: Array, ones: Array) -> None:
        """Add Σez, Σe², Σe³. e: ``(C, R)``; z: finite where e is 0, relative to the shift; lost."""
        self.es += ones @ np.multiply(z, e, out=z)
        self.e2 += ones @ np.multiply(e, e, out=z)
        self.e3 += ones @ np.multiply(z, e, out=z)

    def decay(self, factor: Array, step: Array, total: Array) -> None:
        """The shift grew by ``-step``, so that all e shrink by ``factor``; total is the old Σe."""
        self.es = factor * (self.es + np.where(factor > 0, step, 0) * total)
        self.e2 *= factor**2
        self.e3 *= factor**3

    def finish(self, total: Array, shift: Array | float, unit: float, plain: bool) -> dict[str, Array]:
        """Return the arrays of ``Rows``: relative to the maximum, and in natural units.

        ``total`` is Σe, ``unit`` how much of a natural logarithm one of z is worth;
        ``plain``: z are the scores.
        """
        step = np.where(np.isneginf(self.m), 0, shift - self.m)
        factor = np.exp(step * unit)
        self.decay(factor, step, total)
        amax = np.maximum(self.amax, self.m) if plain else self.amax
        amax = np.where(self.n > 0, amax, 0)
        return {
            "m": self.m * unit, "e1": total * factor, "es": self.es * unit,
            "e2": self.e2, "e3": self.e3, "n": self.n, "mean": self.mean * unit,
            "m2": self.m2 * unit**2, "amax": amax * unit, "first": self.first * unit,
            "top_z": self.top_z * unit, "top_j": self.top_j,
        }  # fmt: skip
