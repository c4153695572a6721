"""Neighbouring cells of a map joined, where it has more than can be shown or kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def joined(values: Any, rows: Sequence[int], columns: Sequence[int], of: np.ufunc) -> Any:
    """Return blocks of ``(r, c)`` that begin at these rows and columns, their cells joined by one.

    ``(len(rows), len(columns))``.
    """
    return of.reduceat(of.reduceat(values, rows, axis=0), columns, axis=1)
