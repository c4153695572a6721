"""Some batch elements, heads and rows of a problem, as a problem of their own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attncli.attention.picked import picked
from attncli.attention.problem import Family, Problem

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Part:
    """Batch elements and heads of a problem, ascending; ``whole`` when it has no others.

    ``rows`` ``(n,)`` are the queries that are looked at, ascending; None: all.
    """

    batches: tuple[int, ...]
    heads: tuple[int, ...]
    whole: bool
    rows: Array | None = None

    def problem(self, problem: Problem) -> Problem:
        """Return these heads and rows alone, in rank 4 unless they are the whole.

        Where there are other heads, each has keys and values of its own.
        """
        p = problem if self.whole else self._heads(problem)
        if self.rows is None:
            return p
        return replace(
            p, query=p.query[:, :, self.rows], mask=picked(p.mask, self.rows), family=Family(4),
            real=p.real_rows[:, self.rows],
        )  # fmt: skip

    def _heads(self, problem: Problem) -> Problem:
        p, groups = problem, [problem.group(h) for h in self.heads]
        some = np.ix_(self.batches, groups)
        lengths = p.mask.extent.lengths
        extent = replace(
            p.mask.extent, batch=len(self.batches), heads=len(self.heads),
            lengths=lengths and tuple(lengths[b] for b in self.batches),
        )  # fmt: skip
        return replace(
            p, query=self.of(p.query), key=p.key[some], value=p.value[some],
            mask=replace(p.mask, extent=extent), family=Family(4),
            sink=None if p.sink is None else p.sink[list(self.heads)],
            real=None if p.real is None else p.real[list(self.batches)],
        )  # fmt: skip

    def of(self, array: Array) -> Array:
        """Return what ``(B, H, …)`` has of these heads."""
        return array if self.whole else array[np.ix_(self.batches, self.heads)]

    def of_rows(self, array: Array) -> Array:
        """Return what ``(B, H, Lq, …)`` has of these heads and rows."""
        some = self.of(array)
        return some if self.rows is None else some[:, :, self.rows]

    def spread(self, array: Array, batch: int, heads: int) -> Array:
        """Return ``(B, H)`` of all heads from that of these; NaN of the others."""
        whole = np.full((batch, heads), np.nan)
        whole[np.ix_(self.batches, self.heads)] = array
        return whole

    def at(self, b: int, h: int) -> tuple[int, int]:
        """Return where a batch element and a head stand among these."""
        return self.batches.index(b), self.heads.index(h)


def part_of(problem: Problem, pairs: Collection[tuple[int, int]] | None = None) -> Part:
    """Return the smallest part that holds the (batch, head) ``pairs``; None: all.

    It holds all batch elements, or all heads, where the mask is not the same for all.
    """
    p = problem
    every = tuple(range(p.batch)), tuple(range(p.heads))
    if pairs is None:
        return Part(*every, True)
    varies = p.mask.varies
    batches = every[0] if varies.batch else tuple(sorted({b for b, _ in pairs}))
    heads = every[1] if varies.head else tuple(sorted({h for _, h in pairs}))
    return Part(batches, heads, (batches, heads) == every)
