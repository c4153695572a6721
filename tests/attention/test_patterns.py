"""Patterns: each mask is its row of the table, in whole and in tiles."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.masks import Extent


def predicate(text: str, i: int, j: int, offset: int, length: int) -> bool:
    """The rows of the mask table, written down once more for one cell."""
    p = i + offset
    return {
        "causal": j <= p,
        "window(2, 1)": p - 2 <= j <= p + 1,
        "window(2)": p - 2 <= j,
        "window(inf, 0)": j <= p,
        "window(0, inf)": p <= j,
        "prefix(3)": j < 3,
        "padding(5)": j < length,
        "segments(0, 0, 1, 1, 1, 2)": [0, 0, 1, 1, 1, 2][p] == [0, 0, 1, 1, 1, 2][j],
        "global_rows(2)": i < 2,
        "dilated(3)": (j - p) % 3 == 0,
        "blocks(2)": p // 2 == j // 2,
    }[text]


@pytest.mark.parametrize(
    "text",
    [
        "causal", "window(2, 1)", "window(2)", "window(inf, 0)", "window(0, inf)", "prefix(3)",
        "padding(5)", "segments(0, 0, 1, 1, 1, 2)", "global_rows(2)", "dilated(3)", "blocks(2)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("past", [None, 2])
def test_each_mask_is_its_row_of_the_table(text: str, past: int | None) -> None:
    queries = 6 - (past or 0)
    dense = masker(text)(Extent(1, 1, queries, 6, past=past)).dense()[0, 0]
    for i in range(queries):
        for j in range(6):
            assert dense[i, j] == predicate(text, i, j, past or 0, 5)


def test_random_is_the_same_for_every_tiling_and_near_its_probability() -> None:
    mask = masker("random(0.3, 5)")(Extent(1, 1, 200, 200))
    dense = mask.dense()[0, 0]
    assert (mask.keep(0, 0, 50, 60, 70, 90) == dense[50:60, 70:90]).all()
    assert abs(dense.mean() - 0.3) < 0.02
    assert (masker("random(0.3, 6)")(Extent(1, 1, 200, 200)).dense()[0, 0] != dense).any()


def test_a_band_s_tile_is_its_predicate() -> None:
    band = masker("window(2, 1)")(Extent(1, 1, 6, 6, past=None)).predicate
    dense = band.allows(0, 0, np.arange(6)[:, None], np.arange(6)[None])
    for i0 in range(7):
        for i1 in range(i0, 7):
            for j0 in range(7):
                for j1 in range(j0, 7):
                    block = band.block(0, 0, i0, i1, j0, j1)
                    assert block.shape == (i1 - i0, j1 - j0)
                    assert (block == dense[i0:i1, j0:j1]).all()
