"""What `inspect` computes: every statistic equals its definition, written down here once more."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings

from attncli.attention import definition
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.measures import sample
from attncli.measures.cells import NEAR
from attncli.measures.statistic import of_head
from attncli.studies import health
from tests.support.definitions import by_formulas
from tests.support.problems import problems


def close(got: float, want: float, abs: float = 1e-7, rel: float = 1e-6) -> None:
    assert got == pytest.approx(want, abs=abs, rel=rel, nan_ok=True)


def js(p: Any, q: Any) -> float:
    """The Jensen–Shannon distance (base 2) of two distributions, by Kullback and Leibler."""
    m = (p + q) / 2
    total = 0.0
    for one in (p, q):
        some = one > 1e-300
        total += 0.5 * float((one[some] * np.log2(one[some] / m[some])).sum())
    return math.sqrt(max(total, 0))


def quantiles(values: Any) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys(("mean", "p05", "median", "p95", "min", "max"), math.nan)
    p05, median, p95 = np.quantile(values, (0.05, 0.5, 0.95))
    return {
        "mean": np.mean(values), "p05": p05, "median": median, "p95": p95,
        "min": np.min(values), "max": np.max(values),
    }  # fmt: skip


def check(got: Any, values: Any, **how: float) -> None:
    want = quantiles(np.asarray(values))
    for name, number in want.items():
        close(got[name], number, **how)


def real_keys(problem: Problem, heads: Any, b: int) -> Any:
    """Which keys are no padding: as the mask says, or all but those that no row sees and whose own
    row sees nothing; where that is every row, none is padding."""
    said = problem.mask.said_real
    if said is not None:
        return said[b]
    keep = np.stack([heads[b, h]["keep"] for h in range(problem.heads)])
    if problem.queries != problem.keys:
        return np.ones(problem.keys, bool)
    seen = keep.any((0, 1)) | keep.any((0, 2))
    return seen if seen.any() else ~seen


def padded_in_the_middle() -> Problem:
    x = np.random.default_rng(0).normal(size=(3, 1, 2, 4, 1))
    return pose(*x, mask=masker("random(0.1, 0)"))


@pytest.mark.slow
@given(problems(dtypes=("float64",)))
@example(padded_in_the_middle())
@settings(max_examples=150, deadline=None)
def test_statistics_are_their_definitions(problem: Problem) -> None:
    done = health.examine(problem)
    offsets = problem.mask.positions()
    heads = {at: by_formulas(problem, *at) for at in np.ndindex(problem.batch, problem.heads)}
    at_auto = replace(problem, scale=problem.width**-0.5)
    for (b, h), one in heads.items():
        found = of_head(done.found, b, h)
        p, keep = one["p"], one["keep"]
        choice = problem.real_rows[b] & (keep.sum(1) >= 2)
        # a cell whose bias is −∞ is hidden too; a row of such cells sees nothing
        alive = np.isfinite(definition.stages(problem, b, h)["lse"])
        chosen = choice & alive
        i, j = np.arange(problem.queries)[:, None], np.arange(problem.keys)
        for name in ("mean_distance", "diagonal_mass", "previous_mass", "next_mass", "local_mass"):
            if offsets is None:
                assert math.isnan(found[name]["mean"])
                continue
            away = j - i - offsets[b]
            weight = {
                "mean_distance": np.abs(away), "diagonal_mass": away == 0,
                "previous_mass": away == -1, "next_mass": away == 1,
                "local_mass": np.abs(away) <= NEAR,
            }[name]  # fmt: skip
            check(found[name], (p * weight).sum(1)[chosen])
        if chosen.any():
            received = p[chosen].mean(0)
            close(found["sink_mass"], received.max())
            assert received[found["sink_key"]] == pytest.approx(received.max(), abs=1e-9)
            cells = p[chosen][keep[chosen]]
            edge = (np.abs(np.log(np.maximum(cells, 1e-300) / 2.0**-24)) < 1e-6).any()
            assert edge or found["underflow_share"] == pytest.approx((cells < 2.0**-24).mean())
            ratio = [
                one["scores"][i][keep[i]].std() / math.sqrt(2 * math.log(keep[i].sum()))
                for i in np.flatnonzero(chosen)
            ]
            size = max(1.0, np.abs(one["scores"]).max())
            check(found["logit_std_ratio"], ratio, abs=1e-6 * size)
        outcomes = p
        if problem.sink is not None:
            outcomes = np.column_stack([p, np.maximum(1 - p.sum(1), 0)])
        spectral = [
            np.linalg.eigvalsh(np.diag(row) - np.outer(row, row))[-1] for row in outcomes[chosen]
        ]
        check(found["jacobian_spectral"], spectral, abs=1e-9)
        _check_similarity(problem, heads, b, h, found)
        output = one["output"][problem.real_rows[b]]
        check(found["output_norm"], np.linalg.norm(output, axis=1))
        singular = np.linalg.svd(output, compute_uv=False)
        if singular.sum() > 0:
            share = singular[singular > 0] / singular.sum()
            close(found["effective_rank"], math.exp(-(share * np.log(share)).sum()))
        if len(output) > 1 and np.linalg.norm(output) > 0:
            close(
                found["rank_residual"],
                np.linalg.norm(output - output.mean(0)) / np.linalg.norm(output), abs=1e-6,
            )  # fmt: skip
        real = problem.real_rows[b]
        products = np.abs(one["scores"][real][keep[real]] / problem.scale).max(initial=0)
        if products > 0:
            close(found["overflow_room"], 65504 / products)
        _check_gradients(problem, heads, b, h, found, chosen, by_formulas(at_auto, b, h))


def _check_similarity(problem: Problem, heads: Any, b: int, h: int, found: Any) -> None:
    """The mean distance to the nearest of the other heads, over rows that both choose in."""
    distances = {}
    for other in range(problem.heads):
        pairs = [(heads[b, h], other == h), (heads[b, other], False)]
        rows = problem.real_rows[b] & (pairs[0][0]["keep"].sum(1) >= 2)
        rows = rows & (pairs[1][0]["keep"].sum(1) >= 2)
        if other == h or not rows.any():
            continue
        p, q = (pairs[n][0]["p"][rows] for n in (0, 1))
        if problem.sink is not None:
            p, q = (np.column_stack([x, np.maximum(1 - x.sum(1), 0)]) for x in (p, q))
        distances[other] = np.mean([js(a, c) for a, c in zip(p, q, strict=True)])
    if distances:
        nearest = min(distances.values())
        close(found["head_similarity"], nearest, abs=1e-6)
        assert distances[found["similar_head"]] == pytest.approx(nearest, abs=1e-6)
    else:
        assert math.isnan(found["head_similarity"]) and found["similar_head"] == -1


def _check_gradients(
    problem: Problem, heads: Any, b: int, h: int, found: Any, chosen: Any, auto: Any
) -> None:
    one = heads[b, h]
    each = problem.heads // problem.kv_heads
    group = range(h // each * each, (h // each + 1) * each)
    size = max(1.0, float(np.abs(problem.query).max() * np.abs(problem.key).max()))
    check(found["grad_score_norm"], np.linalg.norm(one["ds"], axis=1)[chosen], abs=1e-8 * size)
    check(found["grad_query_norm"], np.linalg.norm(one["dq"], axis=1)[chosen], abs=1e-8 * size)
    real = real_keys(problem, heads, b)
    for name, which in (("grad_key_norm", "dk"), ("grad_value_norm", "dv")):
        total = sum(heads[b, other][which] for other in group)
        check(found[name], np.linalg.norm(total, axis=1)[real], abs=1e-7 * size)
    norms = np.linalg.norm(one["ds"], axis=1)[chosen]
    floor = 1e-3 * np.median(np.linalg.norm(auto["ds"], axis=1)[chosen]) if chosen.any() else 0
    if floor > 1e-9 and not (np.abs(norms / floor - 1) < 1e-3).any():
        close(found["vanishing_share"], (norms < floor).mean())


def test_threads_and_long_rows_change_nothing() -> None:
    rng = np.random.default_rng(1)
    problem = pose(*rng.normal(size=(3, 2, 700, 8)), mask=masker("causal & window(300)"))
    one, two = (health.examine(problem, threads=n) for n in (1, 2))
    for name, values in one.row_values.items():
        np.testing.assert_array_equal(values, two.row_values[name])
    p = definition.stages(problem, 0, 1)["weights"]
    distance = (p * np.abs(np.arange(700)[:, None] - np.arange(700))).sum(1)
    np.testing.assert_allclose(one.row_values["mean_distance"][0, 1, 1:], distance[1:], atol=1e-9)


@pytest.mark.slow
def test_long_inputs_need_no_matrix_and_say_that_they_are_sampled() -> None:
    length = 12000
    rng = np.random.default_rng(0)
    problem = pose(*rng.normal(size=(3, length, 8)).astype(np.float32), mask=masker("window(500)"))
    tracemalloc.start()
    try:
        done = health.examine(problem)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < length * length  # bytes: a quarter of one float32 matrix
    assert not done.sample.whole and 0 < done.sample.rows < length
    again = sample.sample(problem, np.ones((1, 1, length), bool))
    np.testing.assert_array_equal(again.spectral, done.sample.spectral)
    sampled_rows = np.isfinite(done.sample.spectral)
    assert sampled_rows.sum() == done.sample.rows
    rows = done.row_values
    assert (done.sample.spectral >= rows["jacobian_spectral_low"] - 1e-6)[sampled_rows].all()
    assert (done.sample.spectral <= rows["jacobian_spectral_high"] + 1e-6)[sampled_rows].all()


def test_padding_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1, 2, 12, 8))
    short = health.examine(pose(x[:, :, :9]), grad_output="ones")
    padded = health.examine(pose(x, mask=masker("padding(9)")), grad_output="ones")
    for h in range(2):
        one, other = (of_head(e.found, 0, h) for e in (short, padded))
        for name in one:
            if isinstance(one[name], dict):
                for quantile, value in one[name].items():
                    close(other[name][quantile], value)
            else:
                close(other[name], one[name])
