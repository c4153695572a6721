"""What an engine must make, and the arrays that go along."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention import language
from attncli.attention.pose import pose
from attncli.attention.view import View
from attncli.errors import InputError
from attncli.reports.arrays import INCLUDABLE, wanted
from attncli.reports.selection import select
from tests.support.reports import as_json, problem, reported

RNG = np.random.default_rng(7)


def test_weights_are_made_only_when_something_needs_them_whole() -> None:
    small, large = problem(queries=8), problem(heads=2, queries=64)
    base = {"output", "lse", "row_statistics"}
    assert wanted(small, View(), None, False) == base
    assert wanted(small, View(), None, True) == base | {"weights"}
    assert wanted(small, View(), {"output"}, True) == base
    assert wanted(large, View(), None, True) == base  # 8192 cells
    assert wanted(large, View(), {"weights", "masked"}, False) == base | {"weights", "masked"}
    assert wanted(small, View(top=2, heatmap=True), (), False) == base


def test_unknown_names_and_indices_are_refused() -> None:
    with pytest.raises(InputError, match=r"'wieghts'(?s:.)*did you mean 'weights'"):
        wanted(problem(), View(), {"wieghts"}, False)
    with pytest.raises(InputError, match=r"--head 3 does not exist: there are 2 heads"):
        wanted(problem(heads=2), View(head=(3,)), None, False)
    with pytest.raises(InputError, match=r"--rows -1 does not exist"):
        select(problem(), View(rows=(-1,)))
    with pytest.raises(InputError, match=r"--top is 0"):
        select(problem(), View(top=0))


def test_included_arrays_are_the_results_in_the_family_that_came_in() -> None:
    past = RNG.standard_normal((2, 2, 4))
    new = RNG.standard_normal((2, 3, 4))
    asked = pose(new, past_key=past, past_value=past, mask=[language.masker("causal")])
    report = reported(asked, include=[n for n in INCLUDABLE if not n.startswith("grad_")])
    shapes = {name: array.shape for name, array in report.arrays.items()}
    assert shapes["query"] == shapes["key"] == shapes["value"] == shapes["output"] == (2, 3, 4)
    assert shapes["present_key"] == shapes["present_value"] == (2, 5, 4)
    assert shapes["weights"] == shapes["scores"] == (2, 3, 5)
    assert shapes["lse"] == shapes["row_statistics.entropy"] == (2, 3)
    np.testing.assert_array_equal(report.arrays["key"], new)
    np.testing.assert_array_equal(report.arrays["present_key"], np.concatenate([past, new], 1))
    data = as_json(report)
    np.testing.assert_allclose(
        data["row_statistics"]["max_weight"], np.max(data["weights"], axis=-1)
    )
    assert data["masked"][0][0][4] == "-Infinity"
    assert list(reported(asked).arrays) == ["output"]
