"""Weights, outputs and strongest keys as tables."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.definition import stages
from attncli.attention.view import Labels, View
from attncli.errors import TooLarge
from attncli.reports.blocks import Gap
from attncli.reports.matrices import stage_of
from tests.support.reports import answered, problem, reported, tables


def test_weights_shown_are_those_of_the_engine() -> None:
    asked = problem(batch=2, heads=4, groups=2, queries=20, mask="causal")
    whole = answered(asked, View(), {"weights"}, False).stages["weights"]
    report = reported(asked, View(batch=(1,), head=(3,)))
    table = tables(report)["Weights · batch 1 · head 3"]
    assert table.row_gap == Gap(5, 10)
    edges = [*range(5), *range(15, 20)]
    np.testing.assert_allclose(np.array(table.rows), whole[1, 3][edges], atol=1e-12)
    assert table.part == "rows 0–4, 15–19 of 20"
    assert table.notes == ("3 of 4 heads not shown",)
    assert table.hint == "--head, --rows, --top, --heatmap, -o"


def test_full_and_chosen_rows_are_not_shortened() -> None:
    asked = problem(queries=30)
    assert len(tables(reported(asked, View(full=True)))["Weights"].rows) == 30
    table = tables(reported(asked, View(rows=tuple(range(20)), keys=(0, 5))))["Weights"]
    assert (len(table.rows), len(table.columns)) == (20, 2)
    assert table.part == "rows 0–19 of 30"
    assert len(tables(reported(asked))["Output"].rows) == 10


def test_the_first_head_is_shown_unless_more_are_asked_for() -> None:
    asked = problem(batch=2, heads=3)
    assert [t for t in tables(reported(asked)) if "Weights" in t] == ["Weights · batch 0 · head 0"]
    chosen = reported(asked, View(head=(0, 2)))
    assert [t for t in tables(chosen) if "Weights" in t] == [
        "Weights · batch 0 · head 0",
        "Weights · batch 0 · head 2",
    ]
    assert [*tables(chosen)["Stability"].labels] == [
        "batch 0 head 0", "batch 0 head 2", "batch 1 head 0", "batch 1 head 2",
    ]  # fmt: skip
    assert [*tables(reported(problem(heads=2)))["Stability"].labels] == ["head 0", "head 1"]


def test_too_many_cells_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncli.reports.matrices.PRINTABLE", 50)
    with pytest.raises(TooLarge, match=r"8 × 8 weights are too many to print(?s:.)*--heatmap"):
        reported(problem(queries=8), View(full=True), machine=False)


def test_excerpts_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(queries=9, mask="causal")
    once = stage_of(asked, 0, 0, range(9), range(9))
    monkeypatch.setattr("attncli.reports.matrices.CHUNK", 20)  # two rows at a time
    np.testing.assert_allclose(stage_of(asked, 0, 0, range(9), range(9)), once, rtol=1e-13)


def test_top_lists_the_strongest_visible_keys() -> None:
    asked = problem(queries=5, mask="causal")
    names = tuple("abcde")
    table = tables(reported(asked, View(top=3), labels=Labels((names,), (names,))))["Top 3 keys"]
    weights = stages(asked, 0, 0, np.arange(5))["weights"]
    assert table.rows[0] == ["a", 1.0, None, None, None, None]  # row 0 sees one key
    for row, best in zip(weights, table.rows, strict=True):
        order = np.argsort(-row)[: min(3, int((row > 0).sum()))]
        assert [x for x in best[::2] if x] == [names[j] for j in order]
        assert [x for x in best[1::2] if x is not None] == pytest.approx(row[order].tolist())
