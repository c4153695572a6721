"""The rows of all batch elements as one: what a head does in several texts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from attncli.attention.rows import Rows
from attncli.measures.evidence import Evidence
from attncli.measures.sample import Sample
from attncli.measures.sweep import Sweep

Array = np.ndarray[Any, np.dtype[Any]]

SUMMED = ("tiny", "cells", "rows")
OF_ROWS = ("distance", "near", "repeats", "occurrences")


@dataclass(frozen=True, eq=False)
class Pooled(Evidence):
    """Evidence ``(1, H, B·Lq)``: the rows of the batch elements of ``each`` behind one another.

    So every statistic is that of all rows, by its own formula. Keys are told apart by their
    places, offsets by the positions of their queries.
    """

    each: Evidence | None = None

    @property
    def _each(self) -> Evidence:
        assert self.each is not None
        return self.each

    @cached_property
    def real(self) -> Array:
        return folded(self._each.real)

    @cached_property
    def keys(self) -> Array:
        return folded(self._each.keys)

    @cached_property
    def first(self) -> Array:
        return folded(self._each.first)

    @cached_property
    def sweep(self) -> Sweep:
        one = self._each.sweep
        return Sweep(
            received=one.received.sum(0, keepdims=True),
            diagonals=self._aligned(one.diagonals),
            **{name: getattr(one, name).sum(0, keepdims=True) for name in SUMMED},
            **{name: folded(getattr(one, name)) for name in OF_ROWS},
        )

    def _aligned(self, diagonals: Array) -> Array:
        """Return the sums ``(1, H, …)`` of diagonals at the same offset from the positions."""
        at = self._each.offsets
        whole = np.zeros((1, *diagonals.shape[1:-1], diagonals.shape[-1] + int(np.ptp(at))))
        for own, start in zip(diagonals, (at.max() - at).tolist(), strict=True):
            whole[0, :, start : start + own.shape[-1]] += own
        return whole

    @property
    def offsets(self) -> Array:
        """Of the first diagonal: formulas count from the number of rows, which are B·Lq here."""
        p = self.problem
        return np.array([int(self._each.offsets.max()) - (p.batch - 1) * p.queries])

    @cached_property
    def sample(self) -> Sample:
        one = self._each.sample
        known = ~np.isnan(one.distances)
        total = np.where(known, one.distances, 0).sum(0, keepdims=True)
        count = known.sum(0, keepdims=True)
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return replace(one, spectral=folded(one.spectral), distances=mean)


def pooled(each: Evidence) -> Evidence:
    """Return the evidence on all batch elements, one or more, together, as of one."""
    sums = Rows(**{f.name: folded(getattr(each.sums, f.name)) for f in fields(Rows)})
    return Pooled(
        problem=each.problem, sums=sums,
        lse=None if each.lse is None else folded(each.lse),
        output=None if each.output is None else folded(each.output),
        norms={name: folded(norm) for name, norm in each.norms.items()},
        floor=None if each.floor is None else each.floor.mean(0, keepdims=True),
        words=each.words, seed=each.seed, threads=each.threads, each=each,
    )  # fmt: skip


def folded(array: Array) -> Array:
    """``(B, H, L, …)`` → ``(1, H, B·L, …)``."""
    batch, heads, length, *rest = array.shape
    return array.swapaxes(0, 1).reshape(1, heads, batch * length, *rest)
