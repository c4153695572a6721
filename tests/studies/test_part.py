"""Some heads of a problem, and the effects of changes on these alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.measures.statistic import of_head
from attncli.studies import health, what_if
from attncli.studies.attend import solve
from attncli.studies.part import part_of

MASKS = ("causal", "window(3, 1)", "padding(9, 6)", "causal + alibi", "causal & random(0.8, 3)")


def problem_of(mask: str, **how: Any) -> Problem:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 4, 9, 6)) * 3
    key, value = rng.normal(size=(2, 2, 2, 9, 6))
    return pose(query, key, value, mask=masker(mask), **how)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("how", [{}, {"sink": [0.1, 0.2, 0.3, 4.0]}, {"softcap": 2.0}])
def test_a_part_is_these_heads_of_the_whole(mask: str, how: dict[str, Any]) -> None:
    problem = problem_of(mask, **how)
    part = part_of(problem, [(1, 3), (1, 1)])
    varies = problem.mask.varies
    assert part.batches == ((0, 1) if varies.batch else (1,))
    assert part.heads == ((0, 1, 2, 3) if varies.head else (1, 3))
    few = part.problem(problem)
    whole, some = (solve(p).attended.output for p in (problem, few))
    for b, h in ((1, 1), (1, 3)):
        np.testing.assert_allclose(some[part.at(b, h)], whole[b, h], atol=1e-12)
    assert part_of(problem).whole and part_of(problem, [*np.ndindex(2, 4)]).whole


@pytest.mark.parametrize("mask", MASKS)
def test_effects_are_those_of_the_heads_asked_for(mask: str) -> None:
    problem = problem_of(mask, scale=0.7)
    changes = [what_if.parse(t) for t in ("qk_clip=2", "sink=0", "dtype=bfloat16", "scale=none")]
    pairs = [(1, 1), (1, 3)]
    whole = health.examine(problem, what_ifs=changes)
    some = health.examine(problem, what_ifs=changes, changed=pairs)
    assert some.scale[some.today].text == "0.7"
    for one, other in zip(
        (*whole.scale, *whole.what_ifs), (*some.scale, *some.what_ifs), strict=True
    ):
        assert other.over(pairs).text == one.text
        assert other.over(pairs).statistics == pytest.approx(one.over(pairs).statistics)
        assert other.over(pairs).moved == pytest.approx(one.over(pairs).moved, abs=1e-12)
        for pair in pairs:
            got, want = (of_head(e.heads, *e.part.at(*pair)) for e in (other, one))
            assert got["vanishing_share"] == want["vanishing_share"]
            assert got["entropy"] == pytest.approx(want["entropy"])
    for b, h in pairs:
        head = 4 * b + h
        assert some.heads[head].verdict == whole.heads[head].verdict


def test_one_head_is_its_own_overview() -> None:
    problem = problem_of("causal")
    (effect, _) = health.examine(problem).scale
    for b, h in np.ndindex(2, 4):
        own = of_head(effect.heads, b, h)
        found = effect.over([(b, h)]).statistics
        assert found["entropy"] == pytest.approx(own["entropy"]["median"])
        assert found["logit_max"] == pytest.approx(own["logit_max"])
        assert found["logit_std"] == pytest.approx(own["logit_std"])
        assert found["vanishing_share"] == pytest.approx(own["vanishing_share"])
