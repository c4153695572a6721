"""Problems whose mask falls into blocks when queries and keys are sorted (``attention.classes``).

An engine computes the sorted problem, and results are put back where their queries and keys stood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.attention.classes import Order, ascending, cells, in_order, ranked
from attncli.attention.problem import Problem
from attncli.attention.rows import Rows
from attncli.engines import Attended

if TYPE_CHECKING:
    from attncli.attention.gradients import Gradients

Array = np.ndarray[Any, np.dtype[Any]]

LEAST = 1 << 18  # cells of a head: below, arranging costs more than it saves
ROWS = 64  # of a key head: to move its keys costs about as much as so few rows


@dataclass(frozen=True, eq=False)
class Arrangement:
    """A sorted problem, and the way back from it."""

    problem: Problem
    order: Order

    def moved(self, array: Array, keys: bool = False) -> Array:
        """Return ``(B, …, L, …)`` of queries, or of keys, in the order of the sorted problem."""
        return _taken(array, self.order.keys if keys else self.order.queries)

    def back(self, array: Array, keys: bool = False) -> Array:
        """Return what ``moved`` was given."""
        return _taken(array, self.order.back.keys if keys else self.order.back.queries)

    def attended(self, found: Attended, way: Callable[[Array], Array]) -> Attended:
        """Return results with rows brought there (``moved``) or ``back``; keys are not renamed."""
        rows = found.rows
        if rows is not None:
            rows = Rows(**{f.name: way(getattr(rows, f.name)) for f in fields(Rows)})
        return found._replace(output=way(found.output), lse=way(found.lse), rows=rows)

    def restored(self, found: Attended) -> Attended:
        """Return the results of the problem that was sorted."""
        if found.rows is not None:
            top = found.rows.top_j  # −1: no key
            names = [np.where(top[b] < 0, -1, self.order.of(b)[1][top[b]]) for b in range(len(top))]
            found = found._replace(rows=replace(found.rows, top_j=np.stack(names)))
        return self.attended(found, self.back)

    def gradients(self, found: Gradients) -> Gradients:
        """Return the gradients of the problem that was sorted."""

        def back(array: Array | None, keys: bool = False) -> Array | None:
            return None if array is None else self.back(array, keys)

        return replace(
            found, query=back(found.query), key=back(found.key, keys=True),
            value=back(found.value, keys=True), score_norm=back(found.score_norm),
        )  # fmt: skip


def _taken(array: Array, index: Array) -> Array:
    if len(index) == 1:
        return np.asarray(np.take(array, index[0], 2))
    return np.stack([np.take(one, at, 1) for one, at in zip(array, index, strict=True)])


def large(p: Problem) -> bool:
    """Whether a head is large enough for classes to be looked for."""
    return p.batch * p.heads > 0 and p.queries * p.keys >= LEAST


def arranged(p: Problem) -> Arrangement | None:
    """Return a problem with queries and keys sorted by class, where that is worth its while."""
    if not large(p) or p.queries * (p.heads // p.kv_heads) < ROWS:
        return None
    classes = ranked(p.mask)
    if classes is None or ascending(classes) or 2 * cells(classes) > p.queries * p.keys:
        return None
    mask, order = in_order(p.mask, classes)
    found = Arrangement(replace(p, mask=mask), order)
    query, key, value = (found.moved(a, keys) for a, keys in
                         ((p.query, False), (p.key, True), (p.value, True)))  # fmt: skip
    sorted_ = replace(found.problem, query=query, key=key, value=value)
    return replace(found, problem=sorted_)
