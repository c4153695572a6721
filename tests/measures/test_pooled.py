"""Batch elements together: what they are of one text, and of the same text several times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.measures.pooled import folded, pooled
from attncli.measures.statistic import of_head
from attncli.studies.health import TOLD, examine
from tests.support.problems import problems

COUNTS = ("rows", "rows_with_choice", "dead_rows", "nonfinite", "nonfinite_outputs",
          "nonfinite_scores")  # fmt: skip


def test_rows_are_behind_one_another() -> None:
    array = np.arange(12).reshape(2, 3, 2)
    assert folded(array).tolist() == [[[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]]


@pytest.mark.slow
@given(problems(dtypes=("float64",)))
@settings(max_examples=60, deadline=None)
def test_of_one_batch_element_nothing_changes(problem: object) -> None:
    done = examine(problem, effects=False)  # type: ignore[arg-type]
    each = done.evidence
    together = pooled(each)
    if each.problem.batch != 1:
        found = together.summaries(together.known(TOLD))
        for h in range(each.problem.heads):
            rows = each.values("entropy")[:, h][each.chosen[:, h]]
            got = of_head(found, 0, h)
            assert got["rows_with_choice"] == rows.size
            if np.isfinite(rows).any():
                assert got["entropy"]["mean"] == pytest.approx(rows[np.isfinite(rows)].mean())
        return
    found = together.summaries(together.known(TOLD))
    for h in range(each.problem.heads):
        got, want = of_head(found, 0, h), of_head(done.found, 0, h)
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert got[name] == pytest.approx(value, nan_ok=True), name


@pytest.mark.parametrize("mask", ["causal", "none", "window(2, 1)"])
def test_the_same_text_twice_says_the_same(mask: str) -> None:
    rng = np.random.default_rng(1)
    query, key, value = rng.normal(size=(3, 1, 3, 11, 5))
    masks = [] if mask == "none" else [masker(mask)]
    upstream = rng.normal(size=(1, 3, 11, 5))
    one = pose(query, key, value, mask=masks)
    two = pose(*(np.repeat(x, 2, 0) for x in (query, key, value)), mask=masks)
    tokens = (tuple("abcabcdabca"),)
    alone = examine(one, tokens=tokens, grad_output=upstream, effects=False)
    both = examine(two, tokens=tokens, grad_output=np.repeat(upstream, 2, 0), effects=False)
    together = pooled(both.evidence)
    found = together.summaries(together.known(TOLD))
    assert "induction_mass" in found
    for h in range(3):
        want = of_head(alone.found, 0, h)
        for name, value in of_head(found, 0, h).items():
            if isinstance(value, Mapping):
                ends = ("mean", "min", "max")  # quantiles are interpolated among more rows
                for end in ends:
                    assert value[end] == pytest.approx(want[name][end], nan_ok=True), name
            else:
                times = 2 if name in COUNTS else 1
                assert value == pytest.approx(times * want[name], nan_ok=True), name


def test_what_is_not_known_stays_unknown() -> None:
    rng = np.random.default_rng(1)
    one = pose(*rng.normal(size=(3, 2, 1, 4, 3)))
    each = replace(examine(one, effects=False).evidence, floor=None, output=None)
    together = pooled(each)
    assert together.output is None and together.floor is None
    assert together.summary("logit_max").shape == (1, 1)  # type: ignore[union-attr]
