"""Means and deviations of scores without the scores: from moments of the keys."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from attncli.attention.tile_sums import TileSums

Array = np.ndarray[Any, np.dtype[Any]]

GRAIN = 128  # keys: the grid on which masks are asked and moments kept


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


def settle(
    sums: TileSums, runs: Sequence[tuple[int, int]], moments: Moments, q: Array, some: slice
) -> None:
    """Add the scores of ``runs`` of keys, which all rows see, to rows ``some`` of the sums.

    q: ``(R, D)``, scaled, of these rows.
    """
    q = q.astype(np.float64)
    for run in runs:
        n, mean, scatter = moments.of(*run)
        sums.merge(n, q @ mean, np.vecdot(q @ scatter, q), some)
