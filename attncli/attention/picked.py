"""Some query rows of a mask: row i of what is left is row ``rows[i]`` of the whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import Bias, Predicate, Spans, Varies

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Picked(Predicate):
    """A predicate at ascending ``rows``; ``real`` ``(B, Lk)``: keys that are no padding there."""

    inner: Predicate
    rows: Array
    real: Array

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.inner.allows(b, h, self.rows[i], j)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        if i0 >= i1:
            return super().tiles(b, h, i0, i1, edges)
        # what holds for all rows from the first to the last holds for these
        return self.inner.tiles(b, h, int(self.rows[i0]), int(self.rows[i1 - 1]) + 1, edges)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        if i0 >= i1:
            return ()
        return self.inner.spans(b, h, int(self.rows[i0]), int(self.rows[i1 - 1]) + 1, keys)

    def varies(self) -> Varies:
        return self.inner.varies()

    def padding(self) -> Array:
        return self.real

    def words(self) -> str:
        return f"{len(self.rows)} rows of {self.inner.words()}"


@dataclass(frozen=True, eq=False)
class PickedBias(Bias):
    """A bias at ``rows``."""

    inner: Bias
    rows: Array

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.inner.at(b, h, self.rows[i], j)

    def varies(self) -> Varies:
        return self.inner.varies()


def picked(mask: Mask, rows: Array) -> Mask:
    """Return ascending ``rows`` ``(n,)`` of a mask. Its padding stays what it was."""
    predicate = mask.predicate
    if not predicate.everything():
        predicate = Picked(predicate, rows, ~mask.padding())
    return Mask(
        replace(mask.extent, queries=len(rows)), predicate,
        tuple(PickedBias(bias, rows) for bias in mask.biases),
    )  # fmt: skip
