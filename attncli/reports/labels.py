"""What rows, keys and heads are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attncli.attention.masks import Extent
from attncli.attention.problem import Problem

Tokens = tuple[tuple[str, ...], ...] | None  # of each batch element, or one for all

EMPTY = "∅"  # a token without letters


def label(names: Tokens, b: int, index: int) -> str:
    """Return ``token`` for eyes: what is empty is shown as EMPTY."""
    return token(names, b, index) or EMPTY


def token(names: Tokens, b: int, index: int) -> str:
    """Return the token at a position of a batch element, or the position itself."""
    if names:
        own = names[b if len(names) > 1 else 0]
        if index < len(own):
            return own[index]
    return str(index)


class Names(Sequence[str]):
    """The labels of a selection, made when they are looked at: there may be very many."""

    def __init__(self, names: Tokens, b: int, indices: Sequence[int]) -> None:
        self._names, self._b, self._indices = names, b, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [label(self._names, self._b, i) for i in self._indices[at]]
        return label(self._names, self._b, self._indices[at])


def ranges(indices: Sequence[int]) -> str:
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
