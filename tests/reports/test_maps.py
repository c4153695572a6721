"""Maps: each cell the largest of its block."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.definition import stages
from attncli.attention.view import Labels, View
from attncli.reports.blocks import Heatmap
from attncli.reports.compute import compute_report
from tests.support.reports import answered, problem, reported


def test_heatmap_is_pooled_by_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(queries=10, keys=11)
    weights = stages(asked, 0, 0, np.arange(10))["weights"]
    seen: list[float] = []
    monkeypatch.setattr("attncli.reports.maps.MAP_BLOCKS", 4)
    monkeypatch.setattr("attncli.reports.matrices.CHUNK", 33)  # three rows at a time
    view = View(heatmap=True)
    result = answered(asked, view, None, False)
    report = compute_report(result, Labels(), view, None, progress=seen.append)
    (heat,) = (b for b in report.blocks if isinstance(b, Heatmap))
    assert (list(heat.row_edges), list(heat.column_edges)) == ([0, 3, 6, 9, 10], [0, 3, 6, 9, 11])
    for r, c in np.ndindex(4, 4):
        block = weights[
            heat.row_edges[r] : heat.row_edges[r + 1],
            heat.column_edges[c] : heat.column_edges[c + 1],
        ]
        assert heat.values[r, c] == pytest.approx(block.max())
    assert seen == pytest.approx([0.3, 0.6, 0.9, 1.0])


def test_heatmap_of_a_selection() -> None:
    asked = problem(queries=6)
    view = View(heatmap=True, rows=(1, 4), keys=(0, 2, 5))
    (heat,) = (b for b in reported(asked, view).blocks if isinstance(b, Heatmap))
    weights = stages(asked, 0, 0, np.array([1, 4]))["weights"]
    np.testing.assert_allclose(heat.values, weights[:, [0, 2, 5]])
    assert ([*heat.row_labels], [*heat.column_labels]) == (["1", "4"], ["0", "2", "5"])
