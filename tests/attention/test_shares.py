"""Shares cover a problem: their bounds ascend from its beginning to its end, also of nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.shares import STEP, Share


@pytest.mark.parametrize("axis", ["batch", "heads", "keys"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(2, 4, 7), (1, 6, 3), (0, 2, 4), (2, 0, 4), (5, 1, 0)])
@pytest.mark.parametrize("mask", ["causal", "window(9, 9)"])
def test_bounds_cover_the_axis(
    axis: str, ranks: int, shape: tuple[int, int, int], mask: str
) -> None:
    batch, heads, length = shape
    p = pose(*np.ones((3, batch, heads, length, 4)), mask=masker(mask))
    bounds = Share(axis, 0, ranks).bounds(p).tolist()
    assert len(bounds) == ranks + 1
    assert bounds == sorted(bounds)
    size = {"batch": batch, "heads": heads, "keys": length}[axis]
    assert (bounds[0], bounds[-1]) == (0, size)
    if size >= ranks:
        assert all(a < z for a, z in pairwise(bounds))


def test_ranges_of_keys_see_about_as_many_cells() -> None:
    length = 16 * STEP  # rows are looked at so many at a time
    p = pose(*np.ones((3, 1, 1, length, 1), np.float32), mask=masker("causal"))
    bounds = Share("keys", 0, 4).bounds(p)
    rows = length - np.arange(length)  # that see each key
    cells = np.add.reduceat(rows, bounds[:-1])
    assert cells.min() > 0.85 * cells.max()
