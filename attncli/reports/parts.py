"""Pieces that several reports share: selections, labels, excerpts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from attncli.attention.masks import Extent
from attncli.attention.problem import Problem
from attncli.attention.view import View
from attncli.errors import InputError
from attncli.reports.blocks import Gap, Text

Array = np.ndarray[Any, np.dtype[Any]]
Indices = Sequence[int]


@dataclass(frozen=True)
class Selection:
    """The indices a View means; ``(batch, head)`` pairs are ``pairs`` for whole-head tables.

    ``shown`` are the pairs whose matrices are printed: the first unless more were asked for.
    """

    batch: Indices
    head: Indices
    rows: Indices
    keys: Indices
    shown: tuple[tuple[int, int], ...]

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every selected (batch, head)."""
        return product(self.batch, self.head)


def select(problem: Problem, view: View) -> Selection:
    """Return the selected indices; InputError for one that does not exist."""
    sizes = {
        "batch": (problem.batch, "batch elements"),
        "head": (problem.heads, "heads"),
        "rows": (problem.queries, "queries"),
        "keys": (problem.keys, "keys"),
    }
    chosen: dict[str, Indices] = {}
    for name, (size, things) in sizes.items():
        wanted: Indices | None = getattr(view, name)
        for index in wanted or ():
            if not 0 <= index < size:
                raise InputError(
                    f"--{name} {index} does not exist: there are {size} {things}",
                    f"choose from 0 to {size - 1}" if size else None,
                )
        chosen[name] = range(size) if wanted is None else wanted
    if view.top is not None and view.top < 1:
        raise InputError(f"--top is {view.top}", "it must be at least 1")
    first_batch = chosen["batch"] if view.batch is not None else chosen["batch"][:1]
    first_head = chosen["head"] if view.head is not None else chosen["head"][:1]
    return Selection(**chosen, shown=tuple(product(first_batch, first_head)))


def label(names: tuple[tuple[str, ...], ...] | None, b: int, index: int) -> str:
    """Return the token at a position of a batch element, or the position itself."""
    if names:
        own = names[b if len(names) > 1 else 0]
        if index < len(own):
            return own[index]
    return str(index)


def ranges(indices: Indices) -> str:
    """Return [0, 1, 2, 7] as '0–2, 7'."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def where(problem: Problem | Extent, b: int, h: int) -> str:
    """Return ' · batch 0 · head 3', without what there is only one of."""
    batch = f" · batch {b}" if problem.batch > 1 else ""
    return batch + (f" · head {h}" if problem.heads > 1 else "")


def excerpt(indices: Indices, whole: bool, limit: int, edge: int) -> tuple[Array, Gap | None]:
    """Return the indices to show, all or those at both ends, and what is left out between."""
    if whole or len(indices) <= limit:
        return np.asarray(indices, np.int64), None
    ends = [*indices[:edge], *indices[len(indices) - edge :]]
    return np.asarray(ends, np.int64), Gap(edge, len(indices) - 2 * edge)


def sentences(*lines: str, indent: str = "") -> Text:
    """Return lines broken at blanks, so that they fit 80 columns."""
    from textwrap import wrap

    whole = [line.replace(" %", "~%") for line in lines]  # a number stays with its unit
    parts = [part for line in whole for part in wrap(line, 79, subsequent_indent=indent)]
    return Text("", [part.replace("~%", " %") for part in parts])
