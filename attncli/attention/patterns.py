"""The masks of the language: the cells that each keeps, and how its arguments are read.

A mask is a predicate, a function that makes it from a ``Call``, and a row of ``BUILDERS``; its
words stand in ``words.MASKS``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.call import Call
from attncli.attention.code import Code
from attncli.attention.padding import padding
from attncli.attention.predicates import (
    EMPTY,
    FAR,
    FULL,
    MIXED,
    And,
    Classes,
    Diagonals,
    Everything,
    PerBatch,
    Predicate,
    Spans,
    Varies,
    clip,
    diagonals,
    differ,
    summary,
)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Band(Predicate):
    """``low <= j - (i + offset) <= high``: causal and window masks."""

    low: int
    high: int
    offset: PerBatch

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
        # O(rows + keys)
        distance = np.arange(j0 - i1 + 1, j1 - i0) - self.offset[b]
        line = (distance >= self.low) & (distance <= self.high)
        return diagonals(line, j1 - j0)

    def view(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return self.block(b, h, i0, i1, j0, j1)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        nearest = edges[:-1] - (i1 - 1) - self.offset[b]
        farthest = edges[1:] - 1 - i0 - self.offset[b]
        return summary(
            (farthest < self.low) | (nearest > self.high),
            (nearest >= self.low) & (farthest <= self.high),
        )

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        offset = self.offset[b]
        return clip(i0 + offset + self.low, i1 + offset + self.high, keys)

    def varies(self) -> Varies:
        return Varies(batch=differ(self.offset), head=False)

    def offsets(self) -> frozenset[PerBatch]:
        return frozenset({self.offset})

    def band(self) -> Diagonals:
        return Diagonals(self.low, self.high, self.offset)

    def code(self, code: Code) -> str:
        position, ends = code.position(self.offset), []
        if self.low != -FAR:
            ends.append(f"kv_idx >= {code.plus(position, str(self.low))}")
        if self.high != FAR:
            ends.append(f"kv_idx <= {code.plus(position, str(self.high))}")
        if len(ends) > 1:
            return " & ".join(f"({end})" for end in ends)
        return ends[0] if ends else Everything().code(code)


def _causal(call: Call) -> Predicate:
    call.count(0)
    return Band(-FAR, 0, call.offset("causal({})"))


def _window(call: Call) -> Predicate:
    call.count(1, 2)
    left = call.whole(0, infinite=True)
    right = call.whole(1, infinite=True) if len(call.args) > 1 else FAR
    sizes = ", ".join(ast.unparse(node) for node in call.nodes[: len(call.args)])
    return Band(-left, right, call.offset(f"window({sizes}, {{}})"))


@dataclass(frozen=True, eq=False)
class KeysBelow(Predicate):
    """``j < stop`` of the batch element: a prefix, or the valid keys of a cache."""

    stop: PerBatch

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return j < self.stop[b]

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return summary(edges[:-1] >= self.stop[b], edges[1:] <= self.stop[b])

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        return clip(0, self.stop[b], keys)

    def varies(self) -> Varies:
        return Varies(batch=differ(self.stop), head=False, row=False)

    def keys_below(self) -> PerBatch:
        return self.stop

    def code(self, code: Code) -> str:
        return f"kv_idx < {code.each('stop', self.stop)}"


def _prefix(call: Call) -> Predicate:
    call.count(1)
    return KeysBelow((call.whole(0),) * call.extent.batch)


@dataclass(frozen=True, eq=False)
class RowsBelow(Predicate):
    """``i < stop``: rows that see everything."""

    stop: int

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return i < self.stop

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        none = np.zeros(len(edges) - 1, bool)
        return summary(none | (i0 >= self.stop), none | (i1 <= self.stop))

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        return clip(0, keys, keys) if i0 < self.stop else ()

    def varies(self) -> Varies:
        return Varies(batch=False, head=False)

    def code(self, code: Code) -> str:
        return f"q_idx < {self.stop}"


def _global_rows(call: Call) -> Predicate:
    call.count(1)
    return RowsBelow(call.whole(0))


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
        return summary(
            (high < first) | (low > last), (first == last) & (low == first) & (high == last)
        )

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        rows, ids = self.query_ids[b][i0:i1], self.key_ids[b]
        if not rows.size or not ids.size:
            return ()
        hit = np.flatnonzero((ids >= rows.min()) & (ids <= rows.max()))
        return clip(int(hit[0]), int(hit[-1]) + 1, keys) if hit.size else ()

    def varies(self) -> Varies:
        alike = all((ids == ids[:1]).all() for ids in (self.query_ids, self.key_ids))
        return Varies(batch=not alike, head=False)

    def segments(self) -> tuple[Array, Array]:
        return self.query_ids, self.key_ids

    def classes(self, queries: int, keys: int) -> Classes:
        each = None if self.varies().batch else 1
        return Classes(self.query_ids[:each], self.key_ids[:each], Everything())

    def code(self, code: Code) -> str:
        queries, keys = code.tensor("ids", self.query_ids), code.tensor("ids", self.key_ids)
        return f"{queries}[b, q_idx] == {keys}[b, kv_idx]"


def _segments(call: Call) -> Predicate:
    extent = call.extent
    lists = [call.integers(array) for array in call.lists()]
    if len(lists) > 2:
        call.fail(f"segments has {len(lists)} lists instead of one, or one of queries and of keys")
    keys = _ids(call, lists[-1], extent.keys, "keys")
    if len(lists) == 2:
        if call.last is not None:
            call.fail(f"segments has ids of queries and of keys, so that {call.last} has no use,")
        return SameSegment(_ids(call, lists[0], extent.queries, "queries"), keys)
    offset = call.offset("segments(…, {})")
    for o in offset:
        if o < 0 or o + extent.queries > extent.keys:
            call.fail(f"segments has no ids for queries at {o}…{o + extent.queries - 1}")
    rows = [keys[b, o : o + extent.queries] for b, o in enumerate(offset)]
    queries = np.stack(rows) if rows else np.zeros((0, extent.queries), np.int64)
    return SameSegment(queries, keys)


def _ids(call: Call, ids: Array, count: int, what: str) -> Array:
    """Return the ids of ``count`` queries or keys in each batch element, ``(B, count)``."""
    batch = call.extent.batch
    if ids.ndim not in (1, 2) or ids.shape[-1] != count:
        call.fail(f"segments has {ids.shape[-1] if ids.ndim else 0} ids for {count} {what}")
    if ids.ndim == 2 and ids.shape[0] not in (1, batch):
        call.fail(f"segments has {ids.shape[0]} rows for a batch of {batch}")
    return np.broadcast_to(ids, (batch, count))


def _each(numbers: PerBatch) -> Array:
    """Return a number for each batch element, ``(B, 1)``, or the one that all have, ``(1, 1)``."""
    return np.array(numbers if differ(numbers) else numbers[:1])[:, None]


@dataclass(frozen=True, eq=False)
class Dilated(Predicate):
    """``j - (i + offset)`` is a multiple of ``step``."""

    step: int
    offset: PerBatch

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray((j - i - self.offset[b]) % self.step == 0)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return np.full(len(edges) - 1, FULL if self.step == 1 else MIXED, np.int8)

    def classes(self, queries: int, keys: int) -> Classes:
        i = _each(self.offset) + np.arange(queries)
        return Classes(i % self.step, np.arange(keys)[None] % self.step, Everything())

    def varies(self) -> Varies:
        return Varies(batch=differ(self.offset), head=False)

    def offsets(self) -> frozenset[PerBatch]:
        return frozenset({self.offset})

    def code(self, code: Code) -> str:
        return f"(kv_idx - ({code.position(self.offset)})) % {self.step} == 0"


def _dilated(call: Call) -> Predicate:
    call.count(1)
    return Dilated(call.whole(0, 1), call.offset(f"dilated({call.args[0]}, {{}})"))


@dataclass(frozen=True, eq=False)
class Blocks(Predicate):
    """Position and key lie in the same block of ``size``; one begins at ``start``."""

    size: int
    offset: PerBatch
    start: PerBatch

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        first = self.start[b]
        return np.asarray((i + self.offset[b] - first) // self.size == (j - first) // self.size)

    def _blocks(self, b: int, i0: int, i1: int) -> tuple[int, int]:
        """Return the first and the last block in which rows i0:i1 stand."""
        shift = self.offset[b] - self.start[b]
        return (i0 + shift) // self.size, (i1 - 1 + shift) // self.size

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        first, last = self._blocks(b, i0, i1)
        start = self.start[b]
        low, high = (edges[:-1] - start) // self.size, (edges[1:] - 1 - start) // self.size
        return summary(
            (high < first) | (low > last), (first == last) & (low == first) & (high == last)
        )

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        if i0 >= i1:
            return ()
        first, last = self._blocks(b, i0, i1)
        start = self.start[b]
        return clip(first * self.size + start, (last + 1) * self.size + start, keys)

    def classes(self, queries: int, keys: int) -> Classes:
        start = _each(self.start)
        i, j = np.arange(queries) + _each(self.offset) - start, np.arange(keys) - start
        return Classes(i // self.size, j // self.size, Everything())

    def varies(self) -> Varies:
        return Varies(batch=differ(self.offset) or differ(self.start), head=False)

    def code(self, code: Code) -> str:
        start = code.each("start", self.start)
        minus = start if start == "0" else f"-{start}"
        query, key = code.plus(code.position(self.offset), minus), code.plus("kv_idx", minus)
        return f"({query}) // {self.size} == ({key}) // {self.size}"

    def offsets(self) -> frozenset[PerBatch]:
        return frozenset({self.offset})


def _blocks(call: Call) -> Predicate:
    call.count(1)
    offset = call.offset(f"blocks({call.args[0]}, {{}})")
    return Blocks(call.whole(0, 1), offset, (0,) * call.extent.batch)


def _chunks(call: Call) -> Predicate:
    """Causal within blocks: ``chunked_causal_mask_function`` of transformers (Llama 4).

    There blocks are counted from the first real token of a sequence that is padded on the left.
    """
    if not call.args:
        call.count(1)
    size, batch = call.whole(0, 1), call.extent.batch
    start = call.integers(call.values(1)) if len(call.args) > 1 else np.zeros(1, np.int64)
    if start.ndim != 1 or len(start) not in (1, batch):
        call.fail(f"chunks has {start.size} starts for a batch of {batch}")
    offset = call.offset(f"chunks({call.args[0]}, {{}})")
    starts = tuple(int(n) for n in np.broadcast_to(start, batch))
    return And(Blocks(size, offset, starts), Band(-FAR, 0, offset))


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

    def varies(self) -> Varies:
        return Varies(batch=False, head=False)


def _random(call: Call) -> Predicate:
    call.count(1, 2)
    p = call.numbers()[0]
    if not 0 <= p <= 1:
        call.fail(f"random needs a probability from 0 to 1, not {p:g},", 0)
    return Random(p, call.whole(1) if len(call.args) > 1 else 0)


BUILDERS: dict[str, Callable[[Call], Predicate]] = {
    "causal": _causal,
    "window": _window,
    "prefix": _prefix,
    "padding": padding,
    "segments": _segments,
    "global_rows": _global_rows,
    "dilated": _dilated,
    "blocks": _blocks,
    "chunks": _chunks,
    "random": _random,
}
