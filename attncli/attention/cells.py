"""A mask that came as a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.predicates import Predicate, Spans, Varies, clip, summary

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE = 16  # keys by which rows of a tensor are told apart, at first rows so far from each other


@dataclass(frozen=True, eq=False)
class Cells(Predicate):
    """A mask tensor, ``(B or 1, H or 1, Lq or 1, Lk' or 1)``.

    When 1 < Lk' < Lk, keys from Lk' on are masked, as in ONNX's Attention.
    A float tensor (a bias) allows every cell that is not −∞.
    """

    tensor: Array

    def _plane(self, b: int, h: int) -> Array:
        t = self.tensor
        return np.asarray(t[b if t.shape[0] > 1 else 0, h if t.shape[1] > 1 else 0])

    def pick(self, b: int, h: int, i: Array, j: Array) -> Array:
        """Return the values at index arrays; 0 or False past the last key."""
        plane = self._plane(b, h)
        rows, keys = plane.shape
        row = i if rows > 1 else i * 0
        if keys == 1:
            return np.asarray(plane[row, j * 0])
        return np.asarray(
            np.where(j < keys, plane[row, np.minimum(j, keys - 1)], plane.dtype.type(0))
        )

    def cut(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        """Return what ``pick`` does for a tile, by slices: a view where possible."""
        plane = self._plane(b, h)
        part = plane[i0:i1] if plane.shape[0] > 1 else plane
        if plane.shape[1] == 1:
            return part
        part = part[:, j0:j1]
        missing = j1 - j0 - part.shape[1]
        return np.pad(part, ((0, 0), (0, missing))) if missing else part

    def _keep(self, values: Array, j: Array) -> Array:
        allowed = values if values.dtype == bool else values != -np.inf
        return allowed if self.tensor.shape[-1] == 1 else allowed & (j < self.tensor.shape[-1])

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self._keep(self.pick(b, h, i, j), j)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return self._keep(self.cut(b, h, i0, i1, j0, j1), np.arange(j0, j1)[None, :])

    def view(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array | None:
        if self.tensor.dtype != bool or 1 < self.tensor.shape[-1] < j1:
            return None
        part, whole = self.cut(b, h, i0, i1, j0, j1), (i1 - i0, j1 - j0)
        return part if part.shape == whole else np.broadcast_to(part, whole)

    def changes(self, b: int, h: int) -> Array:
        plane = self._plane(b, h)
        # of a mask made of blocks, some keys of some rows show nearly all changes
        some = plane[:, :: max(1, plane.shape[1] // SAMPLE)]
        seen = some[::SAMPLE]
        apart = np.flatnonzero((seen[1:] != seen[:-1]).any(1))
        rows = apart[:, None] * SAMPLE + np.arange(SAMPLE + 1)  # between those that differ
        near = some[rows]
        return np.asarray(rows[:, 1:][(near[:, 1:] != near[:, :-1]).any(2)])

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        if i0 >= i1 or len(edges) < 2 or edges[0] >= edges[-1]:
            return super().tiles(b, h, i0, i1, edges)
        shape = (i1 - i0, int(edges[-1] - edges[0]))
        block = self.block(b, h, i0, i1, int(edges[0]), int(edges[-1]))
        part = np.broadcast_to(block, shape)
        starts = edges[:-1] - edges[0]
        any_row = np.logical_or.reduceat(part.any(0), starts)
        all_rows = np.logical_and.reduceat(part.all(0), starts)
        return summary(~any_row, all_rows)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        width = self.tensor.shape[-1]
        return clip(0, width if width > 1 else keys, keys)

    def varies(self) -> Varies:
        return Varies(*(size > 1 for size in self.tensor.shape[:3]))
