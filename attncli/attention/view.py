"""Labels of queries and keys, and what part of a result is to be looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


class Labels(NamedTuple):
    """Token labels, one tuple a batch element (or a single one for all); None: indices."""

    query: tuple[tuple[str, ...], ...] | None = None
    key: tuple[tuple[str, ...], ...] | None = None


class View(NamedTuple):
    """What part to show and how. A selection is a tuple of indices, None means all."""

    batch: tuple[int, ...] | None = None
    head: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    keys: tuple[int, ...] | None = None
    top: int | None = None
    heatmap: bool = False
    steps: bool = False
    full: bool = False
    time: bool = False
    scale_by: str | None = None  # of a heatmap: see Heatmap.scale
