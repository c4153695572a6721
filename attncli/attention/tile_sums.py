"""The sums of ``Rows``, grown tile by tile, while a tile is still in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class TileSums:
    """The sums of ``Rows`` for some query rows, each ``(R,)`` in float64, relative to a shift.

    The engine calls, for each tile: ``scores`` (or ``extremes`` and ``merge``, sooner or later),
    then ``logits``, then ``weights``; and ``decay`` whenever it changes the shift.
    """

    def __init__(self, rows: int) -> None:
        self.m = np.full(rows, -np.inf)
        self.es, self.e2, self.e3 = np.zeros(rows), np.zeros(rows), np.zeros(rows)
        self.n = np.zeros(rows, np.int64)
        self.mean, self.m2 = np.zeros(rows), np.zeros(rows)
        self.amax = np.full(rows, -np.inf)
        self.first = np.full(rows, -np.inf)
        self.top_z = np.full((rows, 2), -np.inf)
        self.top_j = np.full((rows, 2), -1, np.int64)

    def extremes(self, s: Array, *, both: bool = True) -> None:
        """Add magnitudes of scores ``(R, C)``; the largest may be left to ``logits``."""
        np.maximum(self.amax, -_at(s, s.argmin(1)), out=self.amax)
        if both:
            np.maximum(self.amax, largest(s), out=self.amax)

    def scores(self, s: Array, keep: Array, spare: Array) -> None:
        """Add the scores of a tile that not all rows see. s, spare, keep (bool): ``(R, C)``."""
        hidden = ~keep
        np.copyto(spare, s)
        np.copyto(spare, 0, where=hidden)
        self.extremes(spare)
        n = np.count_nonzero(keep, axis=1)
        many = np.maximum(n, 1)
        mean = spare.sum(1) / many.astype(s.dtype)
        np.subtract(spare, mean[:, None], out=spare)
        np.copyto(spare, 0, where=hidden)
        left = spare.sum(1) / many  # what rounding left of the mean
        self.merge(n, mean + left, np.vecdot(spare, spare) - n * left**2)

    def merge(self, n: Array | int, mean: Array, m2: Array, some: slice = slice(None)) -> None:
        """Merge the mean and squared deviations of n more scores (Chan et al. 1983)."""
        total = self.n[some] + n
        delta, share = mean - self.mean[some], n / np.maximum(total, 1)
        self.m2[some] += m2 + delta**2 * self.n[some] * share
        self.mean[some] += delta * share
        self.n[some] = total

    def logits(self, z: Array, j0: int) -> Array:
        """Add logits ``(R, C)`` of keys j0…, −∞ where hidden; return the largest ``(R,)``."""
        if j0 == 0:
            self.first[:] = z[:, 0]
        j = z.argmax(1)
        peak = _at(z, j)
        np.maximum(self.m, peak, out=self.m)
        one, two = self.top_z.T
        wins = np.flatnonzero(peak > one)
        next_ = np.flatnonzero((peak > two) & (peak <= one))  # in a tie the earlier key is first
        self.top_z[next_, 1], self.top_j[next_, 1] = peak[next_], j[next_] + j0
        if wins.size:
            self._lead(z, wins, peak[wins], j[wins], j0)
        return peak

    def _lead(self, z: Array, rows: Array, peak: Array, j: Array, j0: int) -> None:
        """Put key j first in rows ``(k,)``; second is the former first or another of this tile."""
        z[rows, j] = -np.inf
        others = z if 2 * len(rows) > len(z) else z[rows]
        at = others.argmax(1)
        best = _at(others, at)
        z[rows, j] = peak
        if others is z:
            at, best = at[rows], best[rows]
        old_z, old_j = self.top_z[rows, 0], self.top_j[rows, 0]
        new = best > old_z
        self.top_z[rows] = np.column_stack([peak, np.where(new, best, old_z)])
        self.top_j[rows] = np.column_stack([j + j0, np.where(new, at + j0, old_j)])

    def weights(self, e: Array, z: Array) -> None:
        """Add Σez, Σe², Σe³. e: ``(R, C)``; z: relative to the shift, finite; it is lost."""
        self.es += np.vecdot(e, z)
        self.e2 += np.vecdot(e, e)
        self.e3 += np.vecdot(np.multiply(e, e, out=z), e)

    def decay(self, factor: Array, step: Array, total: Array) -> None:
        """The shift grew by ``-step``, so that all e shrink by ``factor``; total is the old Σe."""
        self.es = factor * (self.es + np.where(factor > 0, step, 0) * total)
        self.e2 *= factor**2
        self.e3 *= factor**3

    def finish(
        self, total: Array, shift: Array | float, unit: float, plain: bool
    ) -> dict[str, Array]:
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


def largest(z: Array) -> Array:
    """Return the largest of each row ``(R,)``: argmax is the fastest maximum that NumPy has."""
    return _at(z, z.argmax(1))


def _at(z: Array, j: Array) -> Array:
    """Return z[i, j_i]. z: ``(R, C)``, j: ``(R,)``."""
    return np.asarray(z[np.arange(len(z)), j])
