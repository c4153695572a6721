"""Several sequences laid end to end in one, as flash-attention's varlen calls have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.predicates import Classes, Everything, Predicate, Spans, Varies, clip

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Packed(Predicate):
    """Query and key lie in the same sequence; ``causal``: each with its last query at its last key.

    starts: ``(S + 1,)`` of the queries and of the keys, from 0 to their number. Sequence s has
    queries starts[s] … starts[s + 1] − 1, as in cu_seqlens_q and cu_seqlens_k.
    """

    query_starts: Array
    key_starts: Array
    causal: bool

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        one = np.searchsorted(self.query_starts, i, "right")
        other = np.searchsorted(self.key_starts, j, "right")
        same = np.asarray(one == other)
        if not self.causal:
            return same
        # counted from the ends of the sequence
        return same & (j - self.key_starts[other] <= i - self.query_starts[one])

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        if i0 >= i1:
            return ()
        first, last = np.searchsorted(self.query_starts, [i0, i1 - 1], "right")
        return clip(int(self.key_starts[first - 1]), int(self.key_starts[last]), keys)

    def classes(self, queries: int, keys: int) -> Classes:
        i = np.searchsorted(self.query_starts, np.arange(queries), "right")
        j = np.searchsorted(self.key_starts, np.arange(keys), "right")
        return Classes(i[None], j[None], self if self.causal else Everything())

    def varies(self) -> Varies:
        return Varies(batch=False, head=False)

    def words(self) -> str:
        return f"{len(self.query_starts) - 1} sequences{', causal each' if self.causal else ''}"


@dataclass(frozen=True, eq=False)
class RowsOf(Predicate):
    """``i < stop`` of the batch element: rows that are no padding."""

    stop: tuple[int, ...]

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray((i < self.stop[b]) | (j < 0))

    def words(self) -> str:
        return f"queries below {', '.join(map(str, self.stop))}"
