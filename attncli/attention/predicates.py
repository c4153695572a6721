"""Which keys a query may see, as index predicates, and what is added to a score, as biases.

A predicate is the one source for what is shown and for what every engine computes. It answers
``allows(b, h, i, j)`` for index arrays, and, so that a sparse mask costs only what it keeps,
``tiles`` (is a whole tile EMPTY, MIXED or FULL?) and ``spans`` (outside which keys is nothing?).
Both may be pessimistic, neither ever lies. ``& | ~`` combine tiles by Kleene's three-valued logic.
It also says what it is, for those who know a shorter way for that. The base classes assume the
worst, so that ``allows``, or a bias's ``at``, is enough to be right everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.code import Code

Array = np.ndarray[Any, np.dtype[Any]]

EMPTY, MIXED, FULL = 0, 1, 2
FAR = 1 << 62  # an open side of a band: farther than any index
Spans = tuple[tuple[int, int], ...]
PerBatch = tuple[int, ...]  # a number for each batch element


class Varies(NamedTuple):
    """By which index cells may differ: the worst unless somebody knows better."""

    batch: bool = True
    head: bool = True
    row: bool = True

    def __or__(self, other: Varies) -> Varies:
        return Varies(*(a or b for a, b in zip(self, other, strict=True)))


ALIKE = Varies(batch=False, head=False, row=False)


class Diagonals(NamedTuple):
    """``low <= j - (i + offset) <= high``, offset by batch element; a side of ±FAR is open."""

    low: int
    high: int
    offset: PerBatch


class Slopes(NamedTuple):
    """A slope for each head, and where query 0 of each batch element stands."""

    slopes: tuple[float, ...]
    offset: PerBatch


class Classes(NamedTuple):
    """A class of each query, ``(B or 1, Lq)``, and key, ``(B or 1, Lk)``, alike for all heads.

    A row sees only keys of its own class, and of those what ``rest`` allows, which is asked about
    no others.
    """

    queries: Array
    keys: Array
    rest: Predicate


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

    def varies(self) -> Varies:
        """Return by which index it may differ."""
        return Varies()

    def offsets(self) -> frozenset[PerBatch]:
        """Return where its parts say that query 0 stands among the keys."""
        return frozenset()

    def conjuncts(self) -> tuple[Predicate, ...]:
        """Return the predicates that must all allow."""
        return (self,)

    def everything(self) -> bool:
        """Whether it is known to allow all cells."""
        return False

    def band(self) -> Diagonals | None:
        """Return the diagonals that it keeps, if that is all it says."""
        return None

    def keys_below(self) -> PerBatch | None:
        """Return how many first keys it keeps, if that is all it says."""
        return None

    def padding(self) -> Array | None:
        """Return which keys are real, bool ``(B, Lk)``, if it says that the others are padding."""
        return None

    def segments(self) -> tuple[Array, Array] | None:
        """Return document ids ``(B, Lq)``, ``(B, Lk)``, if all it says is: the same id."""
        return None

    def classes(self, queries: int, keys: int) -> Classes | None:
        """Return classes of so many queries and keys, if a row sees only keys of its own class."""
        return None

    def view(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array | None:
        """Return what ``block`` does, whole, if no cell must be made for that."""
        return None

    def changes(self, b: int, h: int) -> Array:
        """Return ascending rows at which to begin anew may pay: a hint, which binds nobody."""
        return np.zeros(0, np.int64)

    def code(self, code: Code) -> str | None:
        """Return what is true where it allows, over b, h, q_idx, kv_idx, if it can say so."""
        return None

    def words(self) -> str:
        """Return what to call it where no expression says it."""
        return type(self).__name__.lower()


def summary(empty: Array, full: Array) -> Array:
    """Return FULL or EMPTY where they hold, MIXED elsewhere, int8."""
    return np.where(empty, EMPTY, np.where(full, FULL, MIXED)).astype(np.int8)


def clip(start: int, stop: int, keys: int) -> Spans:
    """Return the keys start:stop that exist as spans."""
    start, stop = max(start, 0), min(stop, keys)
    return ((start, stop),) if start < stop else ()


def diagonals(line: Array, width: int) -> Array:
    """Return rows ``(…, width)`` of which each is the one above moved by one; a view.

    line: what stands where ``j - i`` is least, in the last row, and on to where it is most.
    """
    return np.lib.stride_tricks.sliding_window_view(line, width)[::-1]


def differ(numbers: tuple[float, ...]) -> bool:
    """Whether batch elements or heads, a number for each, are not all alike."""
    return len(set(numbers)) > 1


class Everything(Predicate):
    """Every key."""

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.ones((1, 1), bool)

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return np.full(len(edges) - 1, FULL, np.int8)

    def varies(self) -> Varies:
        return ALIKE

    def everything(self) -> bool:
        return True

    def code(self, code: Code) -> str:
        return "kv_idx >= 0"


@dataclass(frozen=True, eq=False)
class Pair(Predicate):
    """Two predicates joined."""

    left: Predicate
    right: Predicate

    def varies(self) -> Varies:
        return self.left.varies() | self.right.varies()

    def offsets(self) -> frozenset[PerBatch]:
        return self.left.offsets() | self.right.offsets()


class And(Pair):
    """Both allow."""

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

    def classes(self, queries: int, keys: int) -> Classes | None:
        pair = self.left, self.right
        found = [part.classes(queries, keys) for part in pair]
        if not any(found):
            return None
        one = np.zeros((1, queries), np.int64), np.zeros((1, keys), np.int64)
        left, right = (said or Classes(*one, part) for said, part in zip(found, pair, strict=True))
        ids = _numbered(left) * (queries + keys) + _numbered(right)
        rests = [part.rest for part in (left, right) if not part.rest.everything()]
        rest = And(*rests) if len(rests) > 1 else rests[0] if rests else Everything()
        return Classes(ids[:, :queries], ids[:, queries:], rest)

    def conjuncts(self) -> tuple[Predicate, ...]:
        return (*self.left.conjuncts(), *self.right.conjuncts())

    def words(self) -> str:
        return f"({self.left.words()} & {self.right.words()})"

    def code(self, code: Code) -> str:
        return f"({code.allowed(self.left)}) & ({code.allowed(self.right)})"


def _numbered(classes: Classes) -> Array:
    """Return its ids of queries and then keys, ``(B or 1, Lq + Lk)``, counted from 0."""
    ids = np.concatenate([classes.queries, classes.keys], -1)
    return np.unique(ids, return_inverse=True)[1].reshape(ids.shape)


class Or(Pair):
    """At least one allows."""

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

    def words(self) -> str:
        return f"({self.left.words()} | {self.right.words()})"

    def code(self, code: Code) -> str:
        return f"({code.allowed(self.left)}) | ({code.allowed(self.right)})"


@dataclass(frozen=True, eq=False)
class Not(Predicate):
    """Does not allow."""

    inner: Predicate

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.logical_not(self.inner.allows(b, h, i, j))

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return np.logical_not(self.inner.block(b, h, i0, i1, j0, j1))

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        return np.asarray(FULL - self.inner.tiles(b, h, i0, i1, edges)).astype(np.int8)

    def varies(self) -> Varies:
        return self.inner.varies()

    def offsets(self) -> frozenset[PerBatch]:
        return self.inner.offsets()

    def words(self) -> str:
        return f"~{self.inner.words()}"

    def code(self, code: Code) -> str:
        return f"~({code.allowed(self.inner)})"


class Bias:
    """A number added to each score after the softcap."""

    def line(self, b: int, h: int, low: int, high: int) -> Array | None:
        """Return what it adds where ``j - i`` is low … high − 1, if nothing else matters."""
        return None

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        """Return float that broadcasts with the index arrays ``i`` and ``j``."""
        raise TypeError(f"{type(self).__name__} does not say what it adds")

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        """Return float ``(i1 - i0, j1 - j0)``, or what broadcasts to it."""
        line = self.line(b, h, j0 - i1 + 1, j1 - i0) if i0 < i1 and j0 < j1 else None
        if line is not None:
            return diagonals(line, j1 - j0)
        return self.at(b, h, np.arange(i0, i1)[:, None], np.arange(j0, j1)[None, :])

    def varies(self) -> Varies:
        """Return by which index it may differ."""
        return Varies()

    def alibi(self) -> Slopes | None:
        """Return the slope of each head and where query 0 stands, if all it adds is ALiBi's."""
        return None

    def code(self, code: Code) -> str | None:
        """Return the number that it adds, over b, h, q_idx, kv_idx, if it can say so."""
        return None

    def tensor(self) -> Array | None:
        """Return ``(B or 1, H or 1, Lq or 1, Lk' or 1)``, if it adds a tensor's numbers."""
        return None

    def words(self) -> str:
        """Return what to call it."""
        return type(self).__name__.lower()


Part = tuple[Predicate, tuple[Bias, ...]]  # what is kept, and what is added
