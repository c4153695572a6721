"""Which keys a query may see, as index predicates, and what is added to a score, as biases.

A predicate is the one source for what is shown and for what every engine computes. It answers
``allows(b, h, i, j)`` for index arrays, and, so that a sparse mask costs only what it keeps,
``tiles`` (is a whole tile EMPTY, MIXED or FULL?) and ``spans`` (outside which keys is nothing?).
Both may be pessimistic, neither ever lies. ``& | ~`` combine tiles by Kleene's three-valued logic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

EMPTY, MIXED, FULL = 0, 1, 2
FAR = 1 << 62  # an open side of a band: farther than any index
Spans = tuple[tuple[int, int], ...]


class Predicate:
    """Which cells are allowed: ``b``, ``h`` are integers, ``i``, ``j`` broadcasting indices."""

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        """Return bool that broadcasts with ``i`` and ``j``."""
        raise TypeError(f"{type(self).__name__} does not say which cells it allows")

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        """Return bool ``(i1 - i0, j1 - j0)``, or what broadcasts to it."""
        return self.allows(b, h, np.arange(i0, i1)[:, None], np.arange(j0, j1)[None, :])

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        """Return EMPTY, MIXED or FULL for rows i0:i1 and each pair of successive key edges."""
        return np.full(len(edges) - 1, MIXED, np.int8)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        """Return ascending, disjoint key ranges outside which rows i0:i1 see nothing."""
        return ((0, keys),) if keys else ()


def _summary(empty: Array, full: Array) -> Array:
    return np.where(empty, EMPTY, np.where(full, FULL, MIXED)).astype(np.int8)


def _clip(start: int, stop: int, keys: int) -> Spans:
    start, stop = max(start, 0), min(stop, keys)
    return ((start, stop),) if start < stop else ()


@dataclass(frozen=True, eq=False)
class Everything(Predicate):
    """Every key."""

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.ones((1, 1), bool)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return np.full(len(edges) - 1, FULL, np.int8)


@dataclass(frozen=True, eq=False)
class Band(Predicate):
    """``low <= j - (i + offset) <= high``: causal and window masks."""

    low: int
    high: int
    offset: tuple[int, ...]

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        distance = j - i - self.offset[b]
        if self.low == -FAR:
            return distance <= self.high
        if self.high == FAR:
            return distance >= self.low
        return (distance >= self.low) & (distance <= self.high)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        if i0 >= i1 or j0 >= j1:
            return np.ones((i1 - i0, j1 - j0), bool)
        # each row is the one above moved by one: windows of a single line, O(rows + keys)
        distance = np.arange(j0 - i1 + 1, j1 - i0) - self.offset[b]
        line = (distance >= self.low) & (distance <= self.high)
        return np.lib.stride_tricks.sliding_window_view(line, j1 - j0)[::-1]

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        nearest = edges[:-1] - (i1 - 1) - self.offset[b]
        farthest = edges[1:] - 1 - i0 - self.offset[b]
        return _summary(
            (farthest < self.low) | (nearest > self.high),
            (nearest >= self.low) & (farthest <= self.high),
        )

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        offset = self.offset[b]
        return _clip(i0 + offset + self.low, i1 + offset + self.high, keys)


@dataclass(frozen=True, eq=False)
class KeysBelow(Predicate):
    """``j < stop`` of the batch element: prefix and padding."""

    stop: tuple[int, ...]

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return j < self.stop[b]

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return _summary(edges[:-1] >= self.stop[b], edges[1:] <= self.stop[b])

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        return _clip(0, self.stop[b], keys)


@dataclass(frozen=True, eq=False)
class Padding(KeysBelow):
    """KeysBelow that also says: the rest of the sequence is padding, as queries too."""


@dataclass(frozen=True, eq=False)
class RowsBelow(Predicate):
    """``i < stop``: rows that see everything."""

    stop: int

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return i < self.stop

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        none = np.zeros(len(edges) - 1, bool)
        return _summary(none | (i0 >= self.stop), none | (i1 <= self.stop))

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        return _clip(0, keys, keys) if i0 < self.stop else ()


@dataclass(frozen=True, eq=False)
class SameSegment(Predicate):
    """Query and key carry the same document id. ids: ``(B, Lq)`` and ``(B, Lk)``."""

    query_ids: Array
    key_ids: Array

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray(self.query_ids[b][i] == self.key_ids[b][j])

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        if i0 >= i1 or len(edges) < 2 or edges[0] >= edges[-1]:
            return super().tiles(b, h, i0, i1, edges)
        rows, keys = self.query_ids[b][i0:i1], self.key_ids[b][: edges[-1]]
        first, last = rows.min(), rows.max()
        low = np.minimum.reduceat(keys, edges[:-1])
        high = np.maximum.reduceat(keys, edges[:-1])
        return _summary(
            (high < first) | (low > last), (first == last) & (low == first) & (high == last)
        )

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        rows, ids = self.query_ids[b][i0:i1], self.key_ids[b]
        if not rows.size or not ids.size:
            return ()
        hit = np.flatnonzero((ids >= rows.min()) & (ids <= rows.max()))
        return _clip(int(hit[0]), int(hit[-1]) + 1, keys) if hit.size else ()


@dataclass(frozen=True, eq=False)
class Dilated(Predicate):
    """``j - (i + offset)`` is a multiple of ``step``."""

    step: int
    offset: tuple[int, ...]

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray((j - i - self.offset[b]) % self.step == 0)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return np.full(len(edges) - 1, FULL if self.step == 1 else MIXED, np.int8)


@dataclass(frozen=True, eq=False)
class Blocks(Predicate):
    """Position and key lie in the same block of ``size``."""

    size: int
    offset: tuple[int, ...]

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray((i + self.offset[b]) // self.size == j // self.size)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        first, last = (i0 + self.offset[b]) // self.size, (i1 - 1 + self.offset[b]) // self.size
        low, high = edges[:-1] // self.size, (edges[1:] - 1) // self.size
        return _summary(
            (high < first) | (low > last), (first == last) & (low == first) & (high == last)
        )

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        if i0 >= i1:
            return ()
        first, last = (i0 + self.offset[b]) // self.size, (i1 - 1 + self.offset[b]) // self.size
        return _clip(first * self.size, (last + 1) * self.size, keys)


@dataclass(frozen=True, eq=False)
class Random(Predicate):
    """Each cell with probability ``p``, from a hash of (seed, i, j): the same for any tiling."""

    p: float
    seed: int

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        with np.errstate(over="ignore"):
            x = np.asarray(i).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            x = x ^ (np.asarray(j).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
            x = x + np.uint64(self.seed % 2**64) * np.uint64(0x165667B19E3779F9)
            # finaliser of SplitMix64 (Steele et al. 2014)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
        return np.asarray((x >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.p)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        fill = FULL if self.p >= 1 else EMPTY if self.p <= 0 else MIXED
        return np.full(len(edges) - 1, fill, np.int8)


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

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        if i0 >= i1 or len(edges) < 2 or edges[0] >= edges[-1]:
            return super().tiles(b, h, i0, i1, edges)
        shape = (i1 - i0, int(edges[-1] - edges[0]))
        block = self.block(b, h, i0, i1, int(edges[0]), int(edges[-1]))
        part = np.broadcast_to(block, shape)
        starts = edges[:-1] - edges[0]
        any_row = np.logical_or.reduceat(part.any(0), starts)
        all_rows = np.logical_and.reduceat(part.all(0), starts)
        return _summary(~any_row, all_rows)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        width = self.tensor.shape[-1]
        return _clip(0, width if width > 1 else keys, keys)


@dataclass(frozen=True, eq=False)
class And(Predicate):
    """Both allow."""

    left: Predicate
    right: Predicate

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.left.allows(b, h, i, j) & self.right.allows(b, h, i, j)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return self.left.block(b, h, i0, i1, j0, j1) & self.right.block(b, h, i0, i1, j0, j1)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        left, right = self.left.tiles(b, h, i0, i1, edges), self.right.tiles(b, h, i0, i1, edges)
        return np.minimum(left, right)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        ours = self.left.spans(b, h, i0, i1, keys)
        theirs = self.right.spans(b, h, i0, i1, keys)
        both = [(max(a, c), min(b_, d)) for a, b_ in ours for c, d in theirs]
        return tuple((start, stop) for start, stop in both if start < stop)


@dataclass(frozen=True, eq=False)
class Or(Predicate):
    """At least one allows."""

    left: Predicate
    right: Predicate

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.left.allows(b, h, i, j) | self.right.allows(b, h, i, j)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return self.left.block(b, h, i0, i1, j0, j1) | self.right.block(b, h, i0, i1, j0, j1)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        left, right = self.left.tiles(b, h, i0, i1, edges), self.right.tiles(b, h, i0, i1, edges)
        return np.maximum(left, right)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        parts = sorted(self.left.spans(b, h, i0, i1, keys) + self.right.spans(b, h, i0, i1, keys))
        merged: list[tuple[int, int]] = []
        for start, stop in parts:
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return tuple(merged)


@dataclass(frozen=True, eq=False)
class Not(Predicate):
    """Does not allow."""

    inner: Predicate

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return ~self.inner.allows(b, h, i, j)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return ~self.inner.block(b, h, i0, i1, j0, j1)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return np.asarray(FULL - self.inner.tiles(b, h, i0, i1, edges)).astype(np.int8)


class Bias:
    """A number added to each score after the softcap."""

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        """Return float that broadcasts with the index arrays ``i`` and ``j``."""
        raise TypeError(f"{type(self).__name__} does not say what it adds")

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        """Return float ``(i1 - i0, j1 - j0)``, or what broadcasts to it."""
        return self.at(b, h, np.arange(i0, i1)[:, None], np.arange(j0, j1)[None, :])


@dataclass(frozen=True, eq=False)
class Alibi(Bias):
    """``-slope_h * |i + offset - j|`` (Press et al. 2022). slopes: ``(H,)``."""

    slopes: tuple[float, ...]
    offset: tuple[int, ...]

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray(np.abs(i + self.offset[b] - j) * -self.slopes[h])


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Return the ``(H,)`` slopes of Press et al. 2022, also for H that is no power of two."""
    if heads < 1:
        return ()
    whole = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (k + 1) / whole) for k in range(whole)]
    slopes += [2.0 ** (-4 * (2 * k + 1) / whole) for k in range(heads - whole)]
    return tuple(slopes)


@dataclass(frozen=True, eq=False)
class Relative(Bias):
    """A bias by distance ``j - (i + offset)``, table ``(H or 1, 2n + 1)``; farther ones clip."""

    table: Array
    offset: tuple[int, ...]

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        reach = self.table.shape[1] // 2
        row = self.table[h if self.table.shape[0] > 1 else 0]
        distance = np.clip(j - i - self.offset[b], -reach, reach)
        return np.asarray(row[distance + reach])


@dataclass(frozen=True, eq=False)
class Added(Bias):
    """A float mask tensor, as Cells; past its last key it adds nothing."""

    cells: Cells

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.cells.pick(b, h, i, j)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return self.cells.cut(b, h, i0, i1, j0, j1)
