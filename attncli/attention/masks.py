"""A predicate and biases bound to the size of a problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attncli.attention.predicates import (
    Added,
    And,
    Band,
    Bias,
    Blocks,
    Cells,
    Dilated,
    Everything,
    KeysBelow,
    Not,
    Or,
    Padding,
    Predicate,
    SameSegment,
    Spans,
)
from attncli.errors import MaskError

SENTINEL = -1e4  # at or below this a finite bias was meant to be −∞

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Extent:
    """The size that masks are bound to: ``(batch, heads, queries, keys)`` and where query 0 stands.

    ``past`` is the length of a cache put before the new keys, ``lengths`` the valid keys of each
    batch element in a padded cache.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    past: int | None = None
    lengths: tuple[int, ...] | None = None

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


@dataclass(frozen=True, eq=False)
class Mask:
    """A predicate and biases bound to an extent; ``text`` is how it was written."""

    extent: Extent
    predicate: Predicate = field(default_factory=Everything)
    biases: tuple[Bias, ...] = ()
    text: str = ""

    @property
    def trivial(self) -> bool:
        """Whether it keeps every cell and adds nothing."""
        return isinstance(self.predicate, Everything) and not self.biases

    @property
    def has_bias(self) -> bool:
        """Whether something is added to the scores."""
        return bool(self.biases)

    def __and__(self, other: Mask) -> Mask:
        """Both must allow, biases add."""
        if self.extent != other.extent:
            raise MaskError("two masks of different sizes cannot be joined")
        if isinstance(self.predicate, Everything) or isinstance(other.predicate, Everything):
            keeper = other if isinstance(self.predicate, Everything) else self
            predicate = keeper.predicate
        else:
            predicate = And(self.predicate, other.predicate)
        texts = [f"({m.text})" if "|" in m.text else m.text for m in (self, other) if m.text]
        text = " & ".join(texts) if len(texts) > 1 else self.text or other.text
        return replace(self, predicate=predicate, biases=self.biases + other.biases, text=text)

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The valid length of each batch element, when a padding mask says so."""
        stops = [node.stop for node in self.conjuncts() if isinstance(node, Padding)]
        return tuple(map(min, *stops)) if len(stops) > 1 else stops[0] if stops else None

    def conjuncts(self) -> list[Predicate]:
        """Return the predicates that must all allow."""
        todo, found = [self.predicate], []
        while todo:
            node = todo.pop()
            if isinstance(node, And):
                todo += [node.right, node.left]
            else:
                found.append(node)
        return found

    def _nodes(self) -> Iterator[Predicate]:
        todo = [self.predicate]
        while todo:
            node = todo.pop()
            yield node
            if isinstance(node, And | Or):
                todo += [node.left, node.right]
            elif isinstance(node, Not):
                todo.append(node.inner)

    def offsets(self) -> tuple[int, ...] | None:
        """Return where query 0 stands in each batch element, if the mask's own corners agree."""
        found = {node.offset for node in self._nodes() if isinstance(node, Band | Dilated | Blocks)}
        return found.pop() if len(found) == 1 else None

    def distinct(self) -> tuple[list[int], list[int]]:
        """Return batch elements and heads that stand for all: just 0 where all are alike."""
        by_batch = by_head = False
        for node in self._nodes():
            match node:
                case Band() | Dilated() | Blocks():
                    by_batch |= len(set(node.offset)) > 1
                case KeysBelow():
                    by_batch |= len(set(node.stop)) > 1
                case SameSegment():
                    by_batch |= any(
                        not (ids == ids[:1]).all() for ids in (node.query_ids, node.key_ids)
                    )
                case Cells():
                    by_batch |= node.tensor.shape[0] > 1
                    by_head |= node.tensor.shape[1] > 1
        e = self.extent
        return list(range(e.batch if by_batch else min(e.batch, 1))), list(
            range(e.heads if by_head else min(e.heads, 1))
        )

    def keep(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        """Return bool ``(i1 - i0, j1 - j0)``: True = the query sees the key."""
        block = self.predicate.block(b, h, i0, i1, j0, j1)
        return np.broadcast_to(block, (i1 - i0, j1 - j0))

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

    def zero_one(self) -> bool:
        """Whether a float mask holds 0 and 1 and nothing else: most likely meant as bool."""
        tensors = [bias.cells.tensor for bias in self.biases if isinstance(bias, Added)]
        return any(
            t.size > 1
            and bool(((t == 0) | (t == 1)).all())
            and bool((t == 0).any() & (t == 1).any())
            for t in tensors
        )

    def sentinel(self) -> float | None:
        """Return the lowest finite number of a float mask that was meant as −∞, if any."""
        lowest = [
            float(np.min(t, where=np.isfinite(t), initial=0))
            for t in (bias.cells.tensor for bias in self.biases if isinstance(bias, Added))
        ]
        return min((x for x in lowest if x <= SENTINEL), default=None)

    def dense(self) -> Array:
        """Return bool ``(B, H, Lq, Lk)``, the whole mask."""
        e = self.extent
        return np.stack(
            [
                np.stack([self.keep(b, h, 0, e.queries, 0, e.keys) for h in range(e.heads)])
                for b in range(e.batch)
            ]
        )
