"""Results as one tidy table."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.definition import stages
from attncli.attention.view import Labels, View
from attncli.errors import InputError
from tests.support.reports import as_json, printed, problem, reported, rows_of


def test_csv_has_a_row_a_head_with_every_quantile_in_full() -> None:
    asked = problem(2, 2, 5)
    rows = rows_of(reported(asked))
    data = as_json(reported(asked))
    assert [(r["batch"], r["head"]) for r in rows] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    for row, head in zip(rows, data["heads"], strict=True):
        for name, found in head["statistics"].items():
            if isinstance(found, dict):
                assert {q: float(row[f"{name}_{q}"]) for q in found} == found
            else:
                assert float(row[name]) == found


def test_csv_of_weights_is_long_and_tidy() -> None:
    names = ("a,b", 'say "hi"', "line\nbreak")
    asked = problem(1, 2, 3, mask="causal")
    report = reported(asked, View(head=(1,)), ("scores", "weights"), Labels((names,), (names,)))
    rows = rows_of(report)
    assert list(rows[0]) == [
        "batch", "head", "query", "key", "query_token", "key_token", "score", "weight",
    ]  # fmt: skip
    assert len(rows) == 9
    assert {r["head"] for r in rows} == {"1"}
    assert [r["key_token"] for r in rows[:3]] == ["a,b", 'say "hi"', "line\nbreak"]
    weights = stages(asked, 0, 1, np.arange(3))["weights"]
    np.testing.assert_allclose([float(r["weight"]) for r in rows], weights.reshape(-1))


def test_csv_of_other_results() -> None:
    asked = problem(queries=3, value_width=2)
    assert len(rows_of(reported(asked, include=("output",)))) == 6
    rows = rows_of(reported(asked, include=("lse", "row_statistics")))
    assert list(rows[0])[:6] == [
        "batch", "head", "query", "query_token", "lse", "entropy",
    ]  # fmt: skip
    top = rows_of(reported(asked, View(top=2)))
    assert len(top) == 6
    assert [r["query"] for r in top] == ["0", "0", "1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("view", "include"),
    [
        (View(), ("weights", "output")),
        (View(), ("lse", "weights")),
        (View(), ("query",)),
        (View(top=2), ("weights",)),
    ],
)
def test_csv_holds_one_table(view: View, include: tuple[str, ...]) -> None:
    report = reported(problem(), view, include)  # everything else still works
    assert printed(report)
    with pytest.raises(InputError, match=rf"cannot hold .*{include[0]}"):
        printed(report, "csv")
