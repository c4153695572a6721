"""Rows that see only keys of their own class: brought together, the mask is blocks on a diagonal.

``dilated(8)`` sees an eighth of all cells, and not one whole tile of them; with queries and keys
sorted by their residue it is eight blocks that are seen whole. Sorting is stable, and the class of
key 0 comes first: within a row keys stay in order, so that ties fall as before, and key 0 is first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import Bias, Classes, Everything, Predicate, Spans, Varies

Array = np.ndarray[Any, np.dtype[Any]]


def ranked(mask: Mask) -> Classes | None:
    """Return the classes of a mask, counted as they appear among its keys; those of none last."""
    found = mask.predicate.classes(mask.extent.queries, mask.extent.keys)
    if found is None:
        return None
    batch = max(len(found.queries), len(found.keys))
    pairs = zip(*(np.broadcast_to(a, (batch, a.shape[-1])) for a in found[:2]), strict=True)
    ranks = [_ranks(queries, keys) for queries, keys in pairs]
    if not ranks:
        return None
    queries, keys = (np.stack(each) for each in zip(*ranks, strict=True))
    return Classes(queries, keys, found.rest)


def _ranks(queries: Array, keys: Array) -> tuple[Array, Array]:
    ids, first, place = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.append(np.argsort(np.argsort(first)), len(ids))
    at = np.searchsorted(ids, queries)
    known = np.append(ids, 0)[at] == queries
    return rank[np.where(known & (at < len(ids)), at, len(ids))], rank[place]


def ascending(classes: Classes) -> bool:
    """Whether queries and keys of a class lie side by side, in the same order of classes."""
    return all(bool((np.diff(ids, axis=-1) >= 0).all()) for ids in classes[:2])


def cells(classes: Classes) -> int:
    """Return how many cells lie within classes, in the batch element that has most."""
    counts = []
    for queries, keys in zip(classes.queries, classes.keys, strict=True):
        size = int(max(queries.max(initial=0), keys.max(initial=0))) + 1
        counts.append(int(np.bincount(queries, minlength=size) @ np.bincount(keys, minlength=size)))
    return max(counts, default=0)


@dataclass(frozen=True, eq=False)
class Order:
    """Which query and key stand at each place, ``(B or 1, Lq)`` and ``(B or 1, Lk)``."""

    queries: Array
    keys: Array

    @cached_property
    def back(self) -> Order:
        """At which place each query and key stands now."""
        return Order(_inverse(self.queries), _inverse(self.keys))

    def of(self, b: int) -> tuple[Array, Array]:
        """Return the queries and keys of a batch element."""
        at = b if len(self.keys) > 1 else 0
        return self.queries[at], self.keys[at]


def _stable(ids: Array) -> Array:
    """Return which of ids, counted from 0, stand where in their order; 16 bits sort in O(n)."""
    few = ids.size == 0 or ids.max() < 1 << 16
    return np.argsort(ids.astype(np.uint16) if few else ids, axis=-1, kind="stable")


def _inverse(order: Array) -> Array:
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.broadcast_to(np.arange(order.shape[-1]), order.shape), -1)
    return places


def in_order(mask: Mask, classes: Classes) -> tuple[Mask, Order]:
    """Return the mask of queries and keys sorted by class, and where these came from."""
    order = Order(*(_stable(ids) for ids in classes[:2]))
    queries, keys = (
        np.take_along_axis(ids, places, -1)
        for ids, places in zip(classes[:2], (order.queries, order.keys), strict=True)
    )
    moved = Moved(order, Classes(queries, keys, classes.rest))
    biases = tuple(MovedBias(order, bias) for bias in mask.biases)
    return replace(mask, predicate=moved, biases=biases, joined=()), order


@dataclass(frozen=True, eq=False)
class Moved(Predicate):
    """Queries and keys of the same of these classes, as ``rest`` allows those that stood there."""

    order: Order
    sorted: Classes

    def _classes(self, b: int) -> tuple[Array, Array]:
        at = b if len(self.sorted.keys) > 1 else 0
        return self.sorted.queries[at], self.sorted.keys[at]

    def _one(self, b: int, i0: int, i1: int, j0: int, j1: int) -> bool:
        """Whether these cells lie within one class."""
        queries, keys = self._classes(b)
        ends = (*queries[[i0, i1 - 1]], *keys[[j0, j1 - 1]]) if i0 < i1 and j0 < j1 else ()
        return len(set(ends)) == 1

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        (queries, keys), (rows, columns) = self._classes(b), self.order.of(b)
        same = queries[i] == keys[j]
        return np.asarray(same) & self.sorted.rest.allows(b, h, rows[i], columns[j])

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        if not self._one(b, i0, i1, j0, j1):
            return super().block(b, h, i0, i1, j0, j1)
        rows, columns = self.order.of(b)
        return self.sorted.rest.allows(b, h, rows[i0:i1, None], columns[None, j0:j1])

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        if len(edges) < 2 or not self._one(b, i0, i1, int(edges[0]), int(edges[-1])):
            return super().tiles(b, h, i0, i1, edges)
        # what holds from the first to the last of some rows and keys, holds for these
        rows, columns = self.order.of(b)
        wider = np.append(columns[edges[:-1]], columns[edges[-1] - 1] + 1)
        return self.sorted.rest.tiles(b, h, int(rows[i0]), int(rows[i1 - 1]) + 1, wider)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        if i0 >= i1:
            return ()
        (of_rows, of_keys), (rows, columns) = self._classes(b), self.order.of(b)
        start, stop = np.searchsorted(of_keys, [of_rows[i0], of_rows[i1 - 1] + 1]).tolist()
        if of_rows[i0] != of_rows[i1 - 1]:
            return ((start, stop),) if start < stop else ()
        wide = self.sorted.rest.spans(b, h, int(rows[i0]), int(rows[i1 - 1]) + 1, keys)
        ends = start + np.searchsorted(columns[start:stop], np.array(wide).reshape(-1, 2))
        return tuple((a, z) for a, z in ends.tolist() if a < z)

    def varies(self) -> Varies:
        rest = self.sorted.rest.varies()
        return Varies(rest.batch or len(self.sorted.keys) > 1, rest.head)

    def classes(self, queries: int, keys: int) -> Classes:
        free = self.sorted.rest.everything()
        return self.sorted._replace(rest=Everything() if free else self)


@dataclass(frozen=True, eq=False)
class MovedBias(Bias):
    """What is added to those that stood there."""

    order: Order
    inner: Bias

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        rows, columns = self.order.of(b)
        return self.inner.at(b, h, rows[i], columns[j])

    def varies(self) -> Varies:
        inner = self.inner.varies()
        return Varies(inner.batch or len(self.order.keys) > 1, inner.head)
