"""The sums of ``Rows``, grown tile by tile, while a tile is still in the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


Hidden = Sequence[tuple[slice, Array]]  # keys of a tile, and which of their cells are hidden


class TileSums:
    """The sums of ``Rows`` for some query rows, each ``(R,)`` in float64, relative to a shift.

    The engine calls, for each tile: ``scores``, then ``logits``, then ``weights``; and ``decay``
    whenever it changes the shift. ``unit``: how much of a natural logarithm one of a logit is
    worth.
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
        self.sum, self.squares = np.zeros(rows), np.zeros(rows)  # Σs, Σs²
        self.apart = Spread(rows)  # of the scores that are in neither
        self.amax = np.full(rows, -np.inf)
        self.first = np.full(rows, -np.inf)
        self.top_z, self.top_j = np.full((2, rows), -np.inf), np.full((2, rows), -1, np.int64)

    def scores(self, s: Array, ones: Array, hidden: Hidden = (), *, both: bool = True) -> None:
        """Add the scores of a tile ``(R, C)``, 0 where hidden. ones ``(C,)``.

        Unless ``both``, the largest magnitude of what is above 0 is left to ``logits``.
        """
        np.maximum(self.amax, -self._at(s, s.argmin(1)), out=self.amax)
        if both:
            np.maximum(self.amax, largest(s), out=self.amax)
        n: Array | int = s.shape[1]
        for _, some in hidden:
            n = n - np.count_nonzero(some, axis=1)
        total, squares = s @ ones, np.vecdot(s, s)
        # Σs² − n·mean² of rows that lie about 0; of others both terms are nearly the same
        near = (total * total <= 0.75 * n * squares) & (squares > 1e-20) & (squares < 1e20)
        if not near.all():
            far = np.flatnonzero(~near)
            count = np.broadcast_to(n, near.shape)[far]
            self.apart.add(far, s[far], count, [(keys, some[far]) for keys, some in hidden])
            total[far] = squares[far] = 0
        self.n += n
        self.sum += total
        self.squares += squares

    def logits(self, z: Array, j0: int) -> Array:
        """Add logits ``(R, C)`` of keys j0…, −∞ where hidden; return the largest ``(R,)``."""
        if j0 == 0:
            self.first[:] = z[:, 0]
        j = z.argmax(1)
        peak = self._at(z, j)
        self.peak_at, self.beaten = j, np.minimum(self.m, peak)
        np.maximum(self.m, peak, out=self.m)
        one, two = self.top_z
        better = peak > two
        if better.any():
            wins = np.flatnonzero(peak > one)
            next_ = np.flatnonzero(better & (peak <= one))  # in a tie the earlier key is first
            two[next_], self.top_j[1, next_] = peak[next_], j[next_] + j0
            if wins.size:
                self._lead(z, wins, peak[wins], j[wins], j0)
        return peak

    def _lead(self, z: Array, rows: Array, peak: Array, j: Array, j0: int) -> None:
        """Put key j first in rows ``(k,)``; second is the former first or another of this tile."""
        z[rows, j] = -np.inf
        others = z if 3 * len(rows) > len(z) else z[rows]
        at = others.argmax(1)
        best = others[self.rows[: len(others)], at]
        z[rows, j] = peak
        if others is z:
            at, best = at[rows], best[rows]
        (one, two), (one_j, two_j) = self.top_z, self.top_j
        new = best > one[rows]
        two[rows], two_j[rows] = np.where(new, best, one[rows]), np.where(new, at + j0, one_j[rows])
        one[rows], one_j[rows] = peak, j + j0

    def _at(self, z: Array, j: Array) -> Array:
        """Return z[i, j_i]. z: ``(R, C)``, j: ``(R,)``."""
        return np.asarray(z[self.rows, j])

    def weights(self, e: Array, z: Array, ones: Array, shift: Array | float) -> None:
        """Add Σ'e, Σ'ez, Σ'e², Σ'e³ of the tile that ``logits`` has just seen.

        z ``(R, C)``: the logits less the shift, but finite; e: their exponentials, 0 where hidden;
        both are lost. ones ``(C,)``.
        """
        e[self.rows, self.peak_at] = 0  # the largest of all stays out, others come back below
        far = self._far(shift, e.dtype)
        if far.size:
            low = (self.top_z[1] - shift)[far]
            unit = z.dtype.type(self.unit)
            e[far] = np.exp((z[far] - low[:, None].astype(z.dtype)) * unit)
            e[far, self.peak_at[far]] = 0
        found = [e @ ones, np.vecdot(e, z)]
        found += [np.square(e, out=z) @ ones, np.vecdot(z, e)]
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
        two = self.top_z[1]
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
        spread = self.apart.joined(self.n, self.sum, self.squares)
        return {
            "m": self.m * unit, "rest": self.rest, "es": self.es * unit,
            "rest2": self.rest2, "rest3": self.rest3, "n": self.n, "mean": spread.mean * unit,
            "m2": spread.m2 * unit**2, "amax": amax * unit, "first": self.first * unit,
            "top_z": self.top_z.T * unit, "top_j": self.top_j.T,
        }  # fmt: skip


class Spread:
    """Count, mean and squared deviations of scores of some rows, ``(R,)`` each in float64."""

    def __init__(self, rows: int) -> None:
        self.n = np.zeros(rows, np.int64)
        self.mean, self.m2 = np.zeros(rows), np.zeros(rows)

    def add(self, rows: Array, s: Array, n: Array, hidden: Hidden) -> None:
        """Add n ``(k,)`` of the scores ``(k, C)`` of rows ``(k,)`` about their mean.

        Hidden ones are 0; s is lost.
        """
        many = np.maximum(n, 1)
        mean = s.sum(1) / many.astype(s.dtype)
        np.subtract(s, mean[:, None], out=s)
        for keys, some in hidden:
            np.copyto(s[:, keys], 0, where=some)
        squares, width = np.vecdot(s, s), 1.0
        if not ((squares > 1e-20) & (squares < 1e20) | (n < 2)).all():
            most = np.abs(s).max(1, initial=0)
            unit = np.where((most > 0) & np.isfinite(most), most, s.dtype.type(1))
            np.divide(s, unit[:, None], out=s)  # so that the squares of 1e-30 are numbers
            squares, width = np.vecdot(s, s), unit.astype(np.float64)
        left = s.sum(1) / many  # what rounding left of the mean
        self.merge(n, mean + left * width, (squares - n * left**2) * width**2, rows)

    def merge(self, n: Array, mean: Array, m2: Array, rows: Array | slice) -> None:
        """Merge the mean and squared deviations of n more scores (Chan et al. 1983)."""
        total = self.n[rows] + n
        delta, share = mean - self.mean[rows], n / np.maximum(total, 1)
        self.m2[rows] += m2 + delta**2 * self.n[rows] * share
        self.mean[rows] += delta * share
        self.n[rows] = total

    def joined(self, n: Array, total: Array, squares: Array) -> Spread:
        """Merge the other scores of n in all, whose sum and sum of squares are known; return it."""
        rest = n - self.n
        mean = total / np.maximum(rest, 1)
        self.merge(rest, mean, squares - rest * mean**2, slice(None))
        return self


def largest(z: Array) -> Array:
    """Return the largest of each row ``(R,)``: argmax is the fastest maximum that NumPy has."""
    return np.asarray(z[np.arange(len(z)), z.argmax(1)])
