"""How long it took, at what rate."""

from __future__ import annotations

import pytest

from attncli.attention.view import View
from tests.support.reports import as_json, printed, problem, reported


def test_time_counts_visible_cells() -> None:
    asked = problem(queries=4, width=3, value_width=2, mask="causal")
    time = as_json(reported(asked, View(time=True)))["time"]
    assert time["gflops"] * 1e9 * time["seconds"] == pytest.approx(2 * 10 * (3 + 2))
    assert time["peak_memory_bytes"] is None or time["peak_memory_bytes"] > 1e6
    assert "GFLOP/s" in printed(reported(asked, View(time=True)))
