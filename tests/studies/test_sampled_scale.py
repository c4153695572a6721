"""Of very many rows another scale is tried on a sample, and what need not be sampled is exact."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.reports.health import inspect_report
from attncli.studies import effects, health
from attncli.studies.effects import Effect
from attncli.studies.health import Examination
from tests.support.reports import printed

LENGTH, LOOKED = 90, 24
MASKS = (None, "causal", "window(20, 4)", "padding(90, 50)", "causal + alibi", "random(0.3, 2)")
HOWS: dict[str, dict[str, Any]] = {
    "plain": {}, "a sink": {"sink": [0.5, -1.0, 2.0, 0.0]}, "a softcap": {"softcap": 3.0},
    "its own scale": {"scale": 0.6},
}  # fmt: skip


def problem_of(mask: str | None, **how: Any) -> Problem:
    rng = np.random.default_rng(3)
    query = rng.normal(size=(2, 4, LENGTH, 6))
    key, value = rng.normal(size=(2, 2, 2, LENGTH, 6))
    return pose(query, key, value, mask=masker(mask) if mask else (), **how)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "CELLS", 0)
    monkeypatch.setattr(effects, "FEWEST", LOOKED)


def both(problem: Problem, **how: Any) -> tuple[Examination, Examination]:
    """Return it examined with a sample, and whole."""
    some = health.examine(problem, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects, "CELLS", 1 << 40)
        return some, health.examine(problem, **how)


def none_of(examined: Examination) -> Effect:
    return next(effect for effect in examined.scale if effect.text == "none")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("mask", MASKS)
def test_sampled_rows_are_those_of_the_whole_run(mask: str | None, how: str) -> None:
    examined, whole = both(problem_of(mask, **HOWS[how]))
    some, every = none_of(examined), none_of(whole)
    assert some.sample is not None and some.sample[0] == LOOKED and every.sample is None
    rows = some.part.rows
    assert rows is not None and len(set(rows.tolist())) == LOOKED
    for name in ("entropy", "max_weight", "first_key_mass", "grad_score_norm"):
        np.testing.assert_allclose(
            some.run.values(name), every.run.values(name)[:, :, rows], rtol=1e-9, atol=1e-12,
            err_msg=name,
        )  # fmt: skip


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("mask", MASKS)
def test_what_the_scale_only_stretches_is_of_all_rows(mask: str | None, how: str) -> None:
    examined, whole = both(problem_of(mask, **HOWS[how]))
    some, every = none_of(examined), none_of(whole)
    for name in ("rows", "rows_with_choice", "dead_rows", "logit_max", "logit_std"):
        ours_of, theirs_of = (np.asarray(one.heads[name]) for one in (some, every))
        np.testing.assert_allclose(ours_of, theirs_of, rtol=1e-9, err_msg=name)
    for pairs in (None, [(1, 2)], [(0, 0), (1, 3)]):
        ours, theirs = some.over(pairs).statistics, every.over(pairs).statistics
        for name in ("logit_std", "score_variance", "logit_max"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-9), name
        # a share of rows: within four standard deviations of a sample of them
        share = theirs["saturated_share"]
        allowed = 4 * np.sqrt(share * (1 - share) / LOOKED) + 1 / LOOKED
        assert abs(ours["saturated_share"] - share) <= allowed


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("how", HOWS)
def test_todays_numbers_do_not_change(how: str) -> None:
    examined, whole = both(problem_of("causal", **HOWS[how]))
    for name, found in whole.found.items():
        for quantile, values in found.items() if isinstance(found, dict) else [("", found)]:
            ours = examined.found[name]
            got = ours[quantile] if isinstance(ours, dict) else ours
            np.testing.assert_array_equal(got, values, f"{name} {quantile}")
    assert [head.verdict for head in examined.heads] == [head.verdict for head in whole.heads]
    today = examined.scale[examined.today]
    assert today.sample is None
    assert today.over().statistics == whole.scale[whole.today].over().statistics


@pytest.mark.usefixtures("few")
def test_some_heads_are_sampled_alike() -> None:
    problem = problem_of("causal + alibi")
    some = none_of(health.examine(problem, changed=[(1, 2)]))
    every = none_of(both(problem)[1])
    assert some.sample == (LOOKED, LENGTH)
    at = some.part.at(1, 2)
    assert np.asarray(some.heads["logit_max"])[at] == pytest.approx(
        np.asarray(every.heads["logit_max"])[1, 2]
    )
    rows = some.part.rows
    entropy = every.run.values("entropy")[1, 2][rows]
    np.testing.assert_allclose(some.run.values("entropy")[at], entropy, rtol=1e-9)


@pytest.mark.usefixtures("few")
def test_padding_is_never_sampled() -> None:
    effect = none_of(health.examine(problem_of("padding(60, 50)")))
    assert effect.part.rows is not None and effect.part.rows.max() < 60
    assert effect.sample == (LOOKED, 60)


@pytest.mark.usefixtures("few")
def test_the_seed_chooses() -> None:
    problem = problem_of("causal")
    first, again, other = (
        np.asarray(none_of(health.examine(problem, seed=n)).part.rows) for n in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.usefixtures("few")
def test_the_report_says_so() -> None:
    examined = health.examine(problem_of("causal"), seed=5)
    report = inspect_report(examined, Labels(), View())
    assert f"scale none from {LOOKED} of {LENGTH} rows (seed 5)" in " ".join(report.notes)
    effects_said = {
        one["scale"]: one for one in json.loads(printed(report, "json"))["scale_effect"]
    }
    assert effects_said["none"]["sample"] == {"rows": LOOKED, "of": LENGTH, "seed": 5}
    assert "sample" not in effects_said["1/√6"]


def test_without_very_many_rows_all_are_looked_at() -> None:
    examined = health.examine(problem_of("causal"))
    assert all(effect.sample is None for effect in examined.scale)
    assert "rows (seed" not in " ".join(inspect_report(examined, Labels(), View()).notes)
