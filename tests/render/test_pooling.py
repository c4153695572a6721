"""Cells joined: one rule for the terminal, pictures and pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent
from attncli.attention.view import Labels, View
from attncli.measures import masks
from attncli.render.pooling import joined
from attncli.reports.blocks import Grid, Heatmap, Shaded
from attncli.reports.mask import mask_report


def shaded(values: Any, **more: Any) -> Shaded:
    rows, columns = values.shape
    return Shaded("", values, range(rows + 1), range(columns + 1), [""] * rows, [""] * columns,
                  **more)  # fmt: skip


def test_around_zero_the_furthest_is_kept_and_what_is_hidden_does_not_count() -> None:
    values = np.array([[1.0, -3.0, 2.0, 9.0], [0.5, 0.0, np.nan, 9.0]])
    hidden = np.array([[False, False, False, True], [False, False, False, True]])
    found = joined(shaded(values, diverging=True, hidden=hidden), [0], [0, 2, 3])
    np.testing.assert_array_equal(found.values, [[-3, np.nan, 0]])
    np.testing.assert_array_equal(found.hidden, [[False, False, True]])
    assert (found.row_edges, found.column_edges) == ([0, 2], [0, 2, 3, 4])


def test_means_are_of_cells_not_of_blocks() -> None:
    values, edges = np.array([[1.0, 0.0], [0.0, 0.5]]), [0, 9, 10]  # blocks of 9 and of 1
    more = (edges, edges, [""] * 10, [""] * 10)
    for one in (Grid("", values, *more), Shaded("", values, *more)):
        assert joined(one, [0], [0]).values == pytest.approx((81 + 0.5) / 100)
    hidden = np.array([[False, True], [True, True]])
    found = joined(Shaded("", values, *more, hidden=hidden), [0], [0, 1])
    np.testing.assert_allclose(found.values, [[1, 0]])


def test_a_picture_shows_of_a_bias_what_the_heatmap_shows() -> None:
    bias = np.zeros((1, 1, 1100, 1030))
    bias[0, 0, 431, 77], bias[0, 0, 431, 76] = -5, 3
    extent = Extent(1, 1, 1100, 1030)
    mask = masker("causal(top_left)")(extent) & tensor_masker(bias, "keep")(extent)
    shown = mask_report(mask, Labels(), View(heatmap=True))
    heat = shown.blocks[0]
    assert isinstance(heat, Heatmap) and heat.hidden is not None and shown.pictures is not None
    _, drawn = shown.pictures()
    assert isinstance(drawn, Shaded)
    np.testing.assert_array_equal(drawn.values, heat.values)
    np.testing.assert_array_equal(drawn.hidden, heat.hidden)  # type: ignore[arg-type]
    assert sorted(set(heat.values.flat)) == [-5, 0]  # 3 lies in the same block


def test_a_bias_that_is_too_large_for_a_picture_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MOST_ADDED", 99)
    mask = masker("alibi(0.5)")(Extent(1, 1, 10, 10))
    made = mask_report(mask, Labels(), View())
    assert made.pictures is not None
    (grid,) = made.pictures()
    assert isinstance(grid, Grid)
    assert list(grid.notes) == ["10 × 10 numbers are too many for a map of what is added"]
