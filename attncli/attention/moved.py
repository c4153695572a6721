"""Some batch elements, heads and keys of a mask, as a mask of their own: nothing is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import (
    Bias,
    Classes,
    Diagonals,
    PerBatch,
    Predicate,
    Slopes,
    Spans,
    Varies,
    clip,
)

Array = np.ndarray[Any, np.dtype[Any]]


class Piece(NamedTuple):
    """Ranges of batch elements, heads and keys of ``whole`` keys."""

    batch: slice
    heads: slice
    keys: slice
    whole: int

    def at(self, b: int, h: int) -> tuple[int, int]:
        """Return the batch element and the head of the whole."""
        return b + int(self.batch.start), h + int(self.heads.start)

    @property
    def first(self) -> int:
        """The first key."""
        return int(self.keys.start)

    def places(self, offset: PerBatch) -> PerBatch:
        """Return where queries stand among these keys that stand at ``offset`` of the whole."""
        return tuple(o - self.first for o in offset[self.batch])


@dataclass(frozen=True, eq=False)
class Moved(Predicate):
    """A predicate at a piece."""

    inner: Predicate
    piece: Piece

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.inner.allows(*self.piece.at(b, h), i, j + self.piece.first)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        first = self.piece.first
        return self.inner.block(*self.piece.at(b, h), i0, i1, j0 + first, j1 + first)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return self.inner.tiles(*self.piece.at(b, h), i0, i1, edges + self.piece.first)

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        first = self.piece.first
        whole = self.inner.spans(*self.piece.at(b, h), i0, i1, self.piece.whole)
        return tuple(span for a, z in whole for span in clip(a - first, z - first, keys))

    def varies(self) -> Varies:
        return self.inner.varies()

    def offsets(self) -> frozenset[PerBatch]:
        return frozenset(self.piece.places(offset) for offset in self.inner.offsets())

    def conjuncts(self) -> tuple[Predicate, ...]:
        return tuple(Moved(part, self.piece) for part in self.inner.conjuncts())

    def everything(self) -> bool:
        return self.inner.everything()

    def band(self) -> Diagonals | None:
        band = self.inner.band()
        return band and band._replace(offset=self.piece.places(band.offset))

    def keys_below(self) -> PerBatch | None:
        stop, (first, last) = self.inner.keys_below(), (self.piece.keys.start, self.piece.keys.stop)
        return stop and tuple(min(max(n, first), last) - first for n in stop[self.piece.batch])

    def padding(self) -> Array | None:
        real = self.inner.padding()
        return None if real is None else real[self.piece.batch, self.piece.keys]

    def segments(self) -> tuple[Array, Array] | None:
        found, batch = self.inner.segments(), self.piece.batch
        return found and (found[0][batch], found[1][batch, self.piece.keys])

    def classes(self, queries: int, keys: int) -> Classes | None:
        found = self.inner.classes(queries, self.piece.whole)
        if found is None:
            return None
        batch = self.piece.batch
        rows, ids = (a if len(a) == 1 else a[batch] for a in (found.queries, found.keys))
        return Classes(rows, ids[:, self.piece.keys], _moved(found.rest, self.piece))

    def view(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array | None:
        first = self.piece.first
        return self.inner.view(*self.piece.at(b, h), i0, i1, j0 + first, j1 + first)

    def changes(self, b: int, h: int) -> Array:
        return self.inner.changes(*self.piece.at(b, h))

    def words(self) -> str:
        return self.inner.words()


@dataclass(frozen=True, eq=False)
class MovedBias(Bias):
    """A bias at a piece."""

    inner: Bias
    piece: Piece

    def line(self, b: int, h: int, low: int, high: int) -> Array | None:
        first = self.piece.first
        return self.inner.line(*self.piece.at(b, h), low + first, high + first)

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.inner.at(*self.piece.at(b, h), i, j + self.piece.first)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        first = self.piece.first
        return self.inner.block(*self.piece.at(b, h), i0, i1, j0 + first, j1 + first)

    def varies(self) -> Varies:
        return self.inner.varies()

    def alibi(self) -> Slopes | None:
        found = self.inner.alibi()
        if found is None:
            return None
        return Slopes(found.slopes[self.piece.heads], self.piece.places(found.offset))

    def tensor(self) -> Array | None:
        found = self.inner.tensor()
        if found is None:
            return None
        ranges = (self.piece.batch, self.piece.heads, slice(None), self.piece.keys)
        some = zip(found.shape, ranges, strict=True)
        return found[tuple(slice(None) if size == 1 else one for size, one in some)]

    def words(self) -> str:
        return self.inner.words()


def _moved(predicate: Predicate, piece: Piece) -> Predicate:
    return predicate if predicate.everything() else Moved(predicate, piece)


def moved(mask: Mask, piece: Piece) -> Mask:
    """Return a mask of a piece: its queries are the same, and stand where they stood.

    Its queries and keys are two sequences, be they as long as each other: which of them are
    padding, the whole mask says.
    """
    places = mask.positions()
    extent = replace(
        mask.extent,
        batch=piece.batch.stop - piece.batch.start, heads=piece.heads.stop - piece.heads.start,
        keys=piece.keys.stop - piece.first, past=None, lengths=None,
        start=None if places is None else piece.places(places), apart=True,
    )  # fmt: skip
    biases = tuple(MovedBias(bias, piece) for bias in mask.biases)
    return Mask(extent, _moved(mask.predicate, piece), biases, mask.text)
