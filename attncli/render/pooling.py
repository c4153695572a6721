"""Neighbouring cells of a map joined, where it has more than can be shown or kept.

One rule for the terminal, pictures and pages: weights keep their largest, numbers around 0 and on a
log scale the one furthest from 0; a mask and other numbers are means, weighted by how many cells a
block holds. What is hidden does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attncli.reports.blocks import Grid, Heatmap, Shaded

if TYPE_CHECKING:
    import numpy as np

Map = Heatmap | Grid | Shaded


def joined(one: Map, rows: Sequence[int], columns: Sequence[int]) -> Any:
    """Return the map in larger blocks, which begin at these of its own rows and columns.

    ``(len(rows), len(columns))``; a block of which all is hidden is hidden, and 0.
    """
    import numpy as np

    values, hidden = one.values, one.hidden
    counts = len(rows), len(columns)
    if values.shape == counts:
        return one
    if is_mean(one):
        cells = np.outer(np.diff(one.row_edges), np.diff(one.column_edges))
        if hidden is not None:
            cells = np.where(hidden, 0, cells)
            values = np.where(hidden, 0, values)
        total = _reduced(values * cells, rows, columns, np.add)
        values = total / np.maximum(_reduced(cells, rows, columns, np.add), 1)
    else:
        if hidden is not None:
            values = np.where(hidden, 0, values)
        high, low = (_reduced(values, rows, columns, of) for of in (np.maximum, np.minimum))
        values = np.where(-low > high, low, high)  # NaN stays
    if hidden is not None:
        hidden = _reduced(hidden, rows, columns, np.logical_and)
    row_edges, column_edges = (
        [*(edges[start] for start in starts), edges[-1]]
        for edges, starts in ((one.row_edges, rows), (one.column_edges, columns))
    )
    return one._replace(
        values=values, hidden=hidden, row_edges=row_edges, column_edges=column_edges
    )


def is_mean(one: Map) -> bool:
    """Whether a block of the map is the mean of its cells."""
    return isinstance(one, Grid) or (isinstance(one, Shaded) and not (one.log or one.diverging))


def _reduced(values: Any, rows: Sequence[int], columns: Sequence[int], of: np.ufunc) -> Any:
    return of.reduceat(of.reduceat(values, rows, axis=0), columns, axis=1)
