"""The sums of ``Rows``, grown tile by tile, while a tile is still in the cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class TileSums:
    """The sums of ``Rows`` for some query rows, each ``(R,)`` in float64, relative to a shift.

    The engine calls, for each tile: ``scores`` (or ``extremes`` and ``merge``, sooner or later),
    then ``logits``, then ``weights``; and ``decay`` whenever it changes the shift.
    ``unit``: how much of a natural logarithm one of a logit is worth.
    """

    def __init__(self, rows: int, unit: float = 1.0) -> None:
        self.unit = unit
        self.m = np.full(rows, -np.inf)
        self.rest, self.es = np.zeros(rows), np.zeros(rows)
        self.rest2, self.rest3 = np.zeros(rows), np.zeros(rows)
        self.rows = np.arange(rows)
        self.peak_at = np.zeros(rows, np.int64)  # of the last tile
        self.beaten = self.m  # the smaller of its largest logit and the largest before
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
        squares, width = np.vecdot(spare, spare), 1.0
        if not ((squares > 1e-20) & (squares < 1e20) | (n < 2)).all():
            most = np.abs(spare).max(1, initial=0)
            unit = np.where((most > 0) & np.isfinite(most), most, s.dtype.type(1))
            np.divide(spare, unit[:, None], out=spare)  # so that the squares of 1e-30 are numbers
            squares, width = np.vecdot(spare, spare), unit.astype(np.float64)
        left = spare.sum(1) / many  # what rounding left of the mean
        self.merge(n, mean + left * width, (squares - n * left**2) * width**2)

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
        self.peak_at, self.beaten = j, np.minimum(self.m, peak)
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

    def weights(self, e: Array, z: Array, ones: Array, shift: Array | float) -> None:
        """Add Σ'e, Σ'ez, Σ'e², Σ'e³ of the tile that ``logits`` has just seen.

        z ``(R, C)``: the logits less the shift, but finite; e: their exponentials, 0 where hidden;
        both are lost. ones ``(C,)``.
        """
        e[self.rows, self.peak_at] = 0  # the largest of all stays out, others come back below
        far = self._far(shift, e.dtype)
        if far.size:
            low = (self.top_z[:, 1] - shift)[far]
            unit = z.dtype.type(self.unit)
            e[far] = np.exp((z[far] - low[:, None].astype(z.dtype)) * unit)
            e[far, self.peak_at[far]] = 0
        found = [e @ ones, np.vecdot(e, z), np.vecdot(e, e)]
        found.append(np.vecdot(np.multiply(e, e, out=z), e))
        if far.size:
            found = [one.astype(np.float64) for one in found]
            for one, power in zip(found, (1, 1, 2, 3), strict=True):
                one[far] *= np.exp(power * low * self.unit)
        step = np.maximum(self.beaten - shift, np.finfo(np.float64).min)
        w = np.exp(step * self.unit)
        for into, tile in zip((self.rest, self.es, self.rest2, self.rest3), found, strict=True):
            into += tile
        self.rest += w
        self.es += w * step
        square = w * w
        self.rest2 += square
        self.rest3 += square * w

    def _far(self, shift: Array | float, dtype: np.dtype[Any]) -> Array:
        """Return the rows whose keys but the largest are worth next to nothing: there the squares
        of their exponentials would be 0.
        """
        two = self.top_z[:, 1]
        far = two - shift < 0.45 * math.log(np.finfo(dtype).tiny) / self.unit
        return np.flatnonzero(far & (two > -np.inf)) if far.any() else np.empty(0, np.int64)

    def decay(self, factor: Array, step: Array) -> None:
        """The shift grew by ``-step``, so that all e shrink by ``factor``."""
        self.es = factor * (self.es + np.where(factor > 0, step, 0) * self.rest)
        self.rest *= factor
        self.rest2 *= factor**2
        self.rest3 *= factor**3

    def total(self, shift: Array | float) -> Array:
        """Return Σe, the largest included: ``(R,)``."""
        return np.asarray(self.rest + np.exp((self.m - shift) * self.unit))

    def finish(self, shift: Array | float, plain: bool) -> dict[str, Array]:
        """Return the arrays of ``Rows``: relative to the maximum, and in natural units.

        ``plain``: z are the scores.
        """
        unit = self.unit
        step = np.where(np.isneginf(self.m), 0, shift - self.m)
        self.decay(np.exp(step * unit), step)
        amax = np.maximum(self.amax, self.m) if plain else self.amax
        amax = np.where(self.n > 0, amax, 0)
        return {
            "m": self.m * unit, "rest": self.rest, "es": self.es * unit,
            "rest2": self.rest2, "rest3": self.rest3, "n": self.n, "mean": self.mean * unit,
            "m2": self.m2 * unit**2, "amax": amax * unit, "first": self.first * unit,
            "top_z": self.top_z * unit, "top_j": self.top_j,
        }  # fmt: skip


def largest(z: Array) -> Array:
    """Return the largest of each row ``(R,)``: argmax is the fastest maximum that NumPy has."""
    return _at(z, z.argmax(1))


def _at(z: Array, j: Array) -> Array:
    """Return z[i, j_i]. z: ``(R, C)``, j: ``(R,)``."""
    return np.asarray(z[np.arange(len(z)), j])
