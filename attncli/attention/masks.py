"""A predicate and biases bound to the size of a problem."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import or_
from typing import Any

import numpy as np

from attncli.attention.predicates import (
    ALIKE,
    And,
    Bias,
    Everything,
    PerBatch,
    Predicate,
    Spans,
    Varies,
)
from attncli.errors import MaskError

SENTINEL = -1e4  # at or below this a finite bias was meant to be −∞

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Extent:
    """The size that masks are bound to: ``(batch, heads, queries, keys)`` and where query 0 stands.

    ``past`` is the length of a cache put before the new keys, ``lengths`` the valid keys of each
    batch element in a padded cache. ``start`` is where somebody said that query 0 stands, of a mask
    that does not depend on it (``Mask.placed``). ``apart``: queries and keys are two sequences, be
    they as long as each other (cross-attention).
    """

    batch: int
    heads: int
    queries: int
    keys: int
    past: int | None = None
    lengths: tuple[int, ...] | None = None
    start: PerBatch | None = None
    apart: bool = False

    def offsets(self, corner: str | None, form: str = "causal({})") -> tuple[int, ...]:
        """Position of query 0 among the keys, for each batch element.

        ``form`` is how the mask is written with a corner. Raises MaskError when queries and keys
        differ in number and nothing says which corner.
        """
        if corner == "top_left":
            offset = 0
        elif corner == "bottom_right":
            offset = self.keys - self.queries
        elif corner is not None:
            raise MaskError(f"unknown corner '{corner}'", "write top_left or bottom_right")
        elif self.past is not None:
            offset = self.past
        elif self.lengths is not None:
            return tuple(n - self.queries for n in self.lengths)
        elif self.queries == self.keys:
            offset = 0
        else:
            raise MaskError(
                f"{form.split('(')[0]} is ambiguous for {self.queries} queries and "
                f"{self.keys} keys: which key does query 0 stand at?",
                f"write {form.format('top_left')} when query 0 stands at key 0, "
                f"{form.format('bottom_right')} when the last query stands at the last key",
            )
        return (offset,) * self.batch


def lengths_of(real: Array) -> PerBatch | None:
    """Return how many first keys are real, ``(B,)`` from bool ``(B, Lk)``; None if others are."""
    count = real.sum(-1)
    right = (real == (np.arange(real.shape[-1]) < count[:, None])).all()
    return tuple(int(n) for n in count) if right else None


@dataclass(frozen=True, eq=False)
class Mask:
    """A predicate and biases bound to an extent; ``text`` is how it was written.

    ``notes`` say what was read in one of two ways; ``joined`` are the masks that it was made of;
    ``source`` is the name of the tensor that it came as, if it was no expression.
    """

    extent: Extent
    predicate: Predicate = field(default_factory=Everything)
    biases: tuple[Bias, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()
    joined: tuple[Mask, ...] = ()
    source: str = ""

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The masks of which all must allow and whose biases add; none where it is trivial."""
        return self.joined or (() if self.trivial else (self,))

    @property
    def trivial(self) -> bool:
        """Whether it keeps every cell and adds nothing."""
        return self.predicate.everything() and not self.biases

    @property
    def has_bias(self) -> bool:
        """Whether something is added to the scores."""
        return bool(self.biases)

    @property
    def words(self) -> str:
        """Its text, or what to call it where it was not written."""
        named = [self.predicate.words(), *(bias.words() for bias in self.biases)]
        return self.text or " + ".join(named)

    def __and__(self, other: Mask) -> Mask:
        """Both must allow, biases add."""
        if self.extent != other.extent:
            raise MaskError("two masks of different sizes cannot be joined")
        kept = [m.predicate for m in (self, other) if not m.predicate.everything()]
        predicate = reduce(And, kept) if kept else self.predicate
        texts = [f"({m.text})" if "|" in m.text else m.text for m in (self, other) if m.text]
        text = " & ".join(texts) if len(texts) > 1 else self.text or other.text
        return Mask(
            self.extent, predicate, self.biases + other.biases, text, self.notes + other.notes,
            self.parts + other.parts,
        )  # fmt: skip

    def conjuncts(self) -> tuple[Predicate, ...]:
        """Return the predicates that must all allow."""
        return self.predicate.conjuncts()

    @cached_property
    def said_real(self) -> Array | None:
        """Which keys are no padding, bool ``(B, Lk)``, as the mask says itself, or None."""
        said = [real for part in self.conjuncts() if (real := part.padding()) is not None]
        return np.logical_and.reduce(said) if said else None

    @property
    def lengths(self) -> PerBatch | None:
        """The length of each batch element, when it says that all that follows is padding."""
        return None if self.said_real is None else lengths_of(self.said_real)

    def padding(self) -> Array:
        """Return which keys are padding, bool ``(B, Lk)``.

        Those that it says; failing that, on whichever side they lie, keys that no row sees and
        whose own row, the query at that position, sees nothing.
        """
        return self._padding

    def padding_rows(self) -> Array:
        """Return which queries are padding, bool ``(B, Lq)``: those whose own key is."""
        e = self.extent
        own = self._own()
        if own is None:
            return np.zeros((e.batch, e.queries), bool)
        return self._padding[:, own : own + e.queries]

    def _own(self) -> int | None:
        """Return the key of query 0, where queries and keys are known to be one sequence."""
        e = self.extent
        if e.apart:
            return None
        if e.past is not None:
            return e.past if e.past + e.queries == e.keys else None
        return 0 if e.lengths is None and e.queries == e.keys else None

    @cached_property
    def _padding(self) -> Array:
        e = self.extent
        if self.said_real is not None:
            return ~self.said_real
        found = np.zeros((e.batch, e.keys), bool)
        own = self._own()
        if own is None or not e.queries or not e.heads:
            return found
        batches, heads = self.distinct()
        for b in batches:
            rows = reduce(np.intersect1d, (self._blind(b, h, own) for h in heads))
            if 0 < len(rows) < e.queries:  # where every row is blind, none is padding
                found[b, rows + own] = True
        return found if len(batches) == e.batch else np.repeat(found[:1], e.batch, 0)

    def _blind(self, b: int, h: int, own: int) -> Array:
        """Return the rows that see nothing and whose own key no row sees."""
        e, step = self.extent, 512
        i = np.arange(e.queries)[:, None]
        diagonal = np.broadcast_to(self.predicate.allows(b, h, i, i + own), (e.queries, 1))
        rows = np.flatnonzero(~diagonal[:, 0])
        seen = np.zeros(e.keys, bool)
        for i0 in range(0, e.queries if len(rows) else 0, step):
            i1 = min(i0 + step, e.queries)
            block = self.keep(b, h, i0, i1, 0, e.keys)
            seen |= block.any(0)
            here = rows[(rows >= i0) & (rows < i1)]
            rows = np.setdiff1d(rows, here[block[here - i0].any(1)])
            rows = rows[~seen[rows + own]]
            if not len(rows):
                break
        return rows

    def offsets(self) -> PerBatch | None:
        """Return where query 0 stands in each batch element, if the mask's own corners agree."""
        found = self.predicate.offsets()
        return next(iter(found)) if len(found) == 1 else None

    def positions(self) -> PerBatch | None:
        """Return the position of query 0 among the keys of each batch element, where it is known.

        The mask's own corners come first, then a cache, then a square, whose queries are its keys,
        then the lengths of a padded cache.
        """
        e, offsets = self.extent, self.offsets()
        if offsets is not None:
            return offsets
        if e.start is not None:
            return e.start
        if e.past is None and e.queries == e.keys and not e.apart:
            return (0,) * e.batch
        return None if e.past is None and e.lengths is None else e.offsets(None)

    def placed(self, start: int) -> Mask:
        """Return it with query 0 at key ``start``.

        Raises MaskError where the mask or a cache say another place, or a query stood at no key.
        """
        e, known = self.extent, self.offsets()
        if known is None and (e.past is not None or e.lengths is not None):
            known = e.offsets(None)
        if known is not None and set(known) != {start}:
            raise MaskError(
                f"query 0 stands at key {known[0]}, not at {start}: {self.text or 'the cache'} "
                "says so", "leave the place out, or give the mask another corner",
            )  # fmt: skip
        if start + e.queries > e.keys:
            raise MaskError(
                f"{e.queries} queries from key {start} on end past the {e.keys} keys",
                f"the last place that query 0 can have is {max(e.keys - e.queries, 0)}",
            )
        return replace(self, extent=replace(e, start=(start,) * e.batch))

    @cached_property
    def keep_varies(self) -> Varies:
        """By which index ``keep`` may differ."""
        return self.predicate.varies()

    @cached_property
    def bias_varies(self) -> Varies:
        """By which index ``bias`` may differ."""
        return reduce(or_, (bias.varies() for bias in self.biases), ALIKE)

    @property
    def varies(self) -> Varies:
        """By which index ``keep`` or ``bias`` may differ."""
        return self.keep_varies | self.bias_varies

    def distinct(self) -> tuple[list[int], list[int]]:
        """Return batch elements and heads whose ``keep`` stands for all: just 0 where alike."""
        e, varies = self.extent, self.keep_varies
        batches = e.batch if varies.batch else min(e.batch, 1)
        heads = e.heads if varies.head else min(e.heads, 1)
        return list(range(batches)), list(range(heads))

    def compact(self, *, rows: bool = False) -> Mask:
        """Return it for the first batch element, head and with ``rows`` query where all are alike.

        What it keeps and adds broadcasts to the whole mask.
        """
        e, varies = self.extent, self.varies
        extent = replace(
            e,
            batch=e.batch if varies.batch else min(e.batch, 1),
            heads=e.heads if varies.head else min(e.heads, 1),
            queries=e.queries if varies.row or not rows else min(e.queries, 1),
        )
        return replace(self, extent=extent)

    @cached_property
    def _last_kept(self) -> dict[tuple[int, ...], Array]:
        """The block that ``keep`` returned last: the next head, or batch element, may ask again."""
        return {}

    def keep(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        """Return bool ``(i1 - i0, j1 - j0)``: True = the query sees the key."""
        varies = self.keep_varies
        at = b if varies.batch else 0, h if varies.head else 0, i0, i1, j0, j1
        block = self._last_kept.get(at)
        if block is None:
            block = np.broadcast_to(self.predicate.block(*at), (i1 - i0, j1 - j0))
            self._last_kept.clear()
            self._last_kept[at] = block
        return block

    def bias(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array | None:
        """Return the sum of the biases, float ``(i1 - i0, j1 - j0)``, or None without any."""
        if not self.biases:
            return None
        total = sum(bias.block(b, h, i0, i1, j0, j1) for bias in self.biases)
        return np.broadcast_to(np.asarray(total), (i1 - i0, j1 - j0))

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        """Return int8 EMPTY, MIXED, FULL for rows i0:i1 and each pair of successive key edges."""
        return self.predicate.tiles(b, h, i0, i1, np.asarray(edges))

    def spans(self, b: int, h: int, i0: int, i1: int) -> Spans:
        """Return ascending, disjoint key ranges outside which rows i0:i1 see nothing."""
        return self.predicate.spans(b, h, i0, i1, self.extent.keys)

    def tensors(self) -> list[Array]:
        """Return the float mask tensors among the biases, as in ``Bias.tensor``."""
        return [tensor for bias in self.biases if (tensor := bias.tensor()) is not None]

    def zero_one(self) -> bool:
        """Whether a float mask holds 0 and 1 and nothing else: most likely meant as bool."""
        return any(
            t.size > 1
            and bool(((t == 0) | (t == 1)).all())
            and bool((t == 0).any() & (t == 1).any())
            for t in self.tensors()
        )

    def sentinel(self) -> float | None:
        """Return the lowest finite number of a float mask that was meant as −∞, if any."""
        lowest = [float(np.min(t, where=np.isfinite(t), initial=0)) for t in self.tensors()]
        return min((x for x in lowest if x <= SENTINEL), default=None)

    def dense(self) -> Array:
        """Return bool ``(B, H, Lq, Lk)``, the whole mask: True = keep."""
        e = self.extent
        keep = np.empty((e.batch, e.heads, e.queries, e.keys), bool)
        for b, h in np.ndindex(keep.shape[:2]):
            keep[b, h] = self.keep(b, h, 0, e.queries, 0, e.keys)
        return keep

    def tensor(self, dtype: Any = np.float64, hidden: float = -np.inf) -> Array:
        """Return float ``(B, H, Lq, Lk)``, the whole mask: its biases, ``hidden`` where masked."""
        e = self.extent
        added = np.zeros((e.batch, e.heads, e.queries, e.keys), dtype)
        for b, h in np.ndindex(added.shape[:2]):
            where = (b, h, 0, e.queries, 0, e.keys)
            bias = self.bias(*where)
            if bias is not None:
                added[b, h] = bias
            added[b, h][~self.keep(*where)] = hidden
        return added
