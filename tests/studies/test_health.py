"""What `inspect` computes: every statistic equals its definition, written down here once more."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attncli.attention import definition
from attncli.attention.gradients import upstream
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.errors import InputError
from attncli.measures import sample, statistic, sweep
from attncli.measures.statistic import of_head
from attncli.studies import health, runs, what_if, widths
from tests.support.problems import problems


def close(got: float, want: float, abs: float = 1e-7, rel: float = 1e-6) -> None:
    assert got == pytest.approx(want, abs=abs, rel=rel, nan_ok=True)


def dense(problem: Problem, b: int, h: int) -> dict[str, Any]:
    """Weights, scores and gradients of one head, by their formulas."""
    stage = definition.stages(problem, b, h)
    p, keep = stage["weights"], stage["keep"]
    do = upstream("random:0", problem)[b, h] * problem.real_rows[b][:, None]
    value = problem.value[b, problem.group(h)]
    dp = do @ value.T
    ds = np.zeros(p.shape)
    for i in range(len(p)):
        ds[i] = (np.diag(p[i]) - np.outer(p[i], p[i])) @ dp[i]
    if problem.softcap is not None:
        ds = ds * (1 - np.tanh(stage["scores"] / problem.softcap) ** 2)
    ds = np.where(keep, ds, 0)
    key, query = problem.key[b, problem.group(h)], problem.query[b, h]
    return {
        "p": p, "keep": keep, "scores": stage["scores"], "ds": ds, "output": p @ value,
        "dq": problem.scale * ds @ key, "dk": problem.scale * ds.T @ query, "dv": p.T @ do,
    }  # fmt: skip


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


@given(problems(dtypes=("float64",)))
@settings(max_examples=150, deadline=None)
def test_statistics_are_their_definitions(problem: Problem) -> None:
    done = health.examine(problem)
    offsets = problem.mask.positions()
    heads = {at: dense(problem, *at) for at in np.ndindex(problem.batch, problem.heads)}
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
                "local_mass": np.abs(away) <= sweep.NEAR,
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
        _check_gradients(problem, one, b, h, found, chosen, dense(at_auto, b, h))


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
    problem: Problem, one: Any, b: int, h: int, found: Any, chosen: Any, auto: Any
) -> None:
    each = problem.heads // problem.kv_heads
    group = range(h // each * each, (h // each + 1) * each)
    size = max(1.0, float(np.abs(problem.query).max() * np.abs(problem.key).max()))
    check(found["grad_score_norm"], np.linalg.norm(one["ds"], axis=1)[chosen], abs=1e-8 * size)
    check(found["grad_query_norm"], np.linalg.norm(one["dq"], axis=1)[chosen], abs=1e-8 * size)
    keys = problem.keys if problem.mask.lengths is None else problem.mask.lengths[b]
    for name, which in (("grad_key_norm", "dk"), ("grad_value_norm", "dv")):
        total = sum(dense(problem, b, other)[which] for other in group)
        check(found[name], np.linalg.norm(total, axis=1)[:keys], abs=1e-7 * size)
    norms = np.linalg.norm(one["ds"], axis=1)[chosen]
    floor = 1e-3 * np.median(np.linalg.norm(auto["ds"], axis=1)[chosen]) if chosen.any() else 0
    if floor > 1e-9 and not (np.abs(norms / floor - 1) < 1e-3).any():
        close(found["vanishing_share"], (norms < floor).mean())


@given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-800, 800)),
    st.floats(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_largest_eigenvalue_of_the_softmax_jacobian(logits: Any, spread: float) -> None:
    z = logits * spread
    p = np.exp(z - z.max())
    p /= p.sum()
    exact = np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[-1]
    found = sample.largest_eigenvalues(p[None])[0]
    assert found == pytest.approx(exact, abs=1e-14)
    first, second = np.sort(np.append(p, 0))[[-1, -2]]
    assert second - 1e-15 <= found <= min(0.5, first * (1 - first + second)) + 1e-15


def test_eigenvalues_of_ties_one_key_and_nan() -> None:
    for n in (1, 2, 3, 50):
        expected = 0 if n == 1 else 1 / n
        assert sample.largest_eigenvalues(np.full((2, n), 1 / n)) == pytest.approx(expected)
    assert sample.largest_eigenvalues(np.eye(4)).tolist() == [0, 0, 0, 0]
    assert np.isnan(sample.largest_eigenvalues(np.full((1, 3), np.nan))).all()


@given(
    hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.floats(0, 1),
)
def test_quantiles_are_numpys(values: Any, share: float) -> None:
    values.sort()
    assert statistic.quantile(values, share) == pytest.approx(
        np.quantile(values, share), rel=1e-14, abs=1e-14
    )
    for known in statistic.QUANTILES.values():
        assert statistic.quantile(values, known) == np.quantile(values, known)


def test_threads_and_long_rows_change_nothing() -> None:
    rng = np.random.default_rng(1)
    problem = pose(*rng.normal(size=(3, 2, 700, 8)), mask=masker("causal & window(300)"))
    one, two = (health.examine(problem, threads=n) for n in (1, 2))
    for name, values in one.row_values.items():
        np.testing.assert_array_equal(values, two.row_values[name])
    p = definition.stages(problem, 0, 1)["weights"]
    distance = (p * np.abs(np.arange(700)[:, None] - np.arange(700))).sum(1)
    np.testing.assert_allclose(one.row_values["mean_distance"][0, 1, 1:], distance[1:], atol=1e-9)


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


def test_positions_of_queries() -> None:
    square, wide = np.ones((4, 2)), np.ones((7, 2))
    assert pose(square).mask.positions() == (0,)
    assert pose(square, wide).mask.positions() is None
    corner = pose(square, wide, mask=masker("causal(bottom_right)"))
    assert corner.mask.positions() == (3,)
    past = pose(square, square, past_key=np.ones((2, 2)), past_value=np.ones((2, 2)))
    assert past.mask.positions() == (2,)
    assert pose(square, wide, kv_lengths=[6]).mask.positions() == (2,)


# -- what if ----------------------------------------------------------------------------------


def problem_of(seed: int = 0, **how: Any) -> Problem:
    rng = np.random.default_rng(seed)
    return pose(*(rng.normal(size=(3, 2, 20, 8)) * 2), mask=masker("causal"), **how)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("scale=none", {"scale": "none"}),
        ("scale=0.1", {"scale": 0.1}),
        ("softcap=3", {"softcap": 3.0}),
        ("sink=0.5", {"sink": 0.5}),
        ("softcap=3, sink=0", {"softcap": 3.0, "sink": 0.0}),
    ],
)
def test_what_if_is_the_changed_problem(text: str, options: dict[str, Any]) -> None:
    before, changed = problem_of(), problem_of(**options)
    done = health.examine(before, what_ifs=[what_if.parse(text)])
    effect, exact = done.what_ifs[0], health.examine(changed)
    for h in range(2):
        got, want = (of_head(f, 0, h) for f in (effect.heads, exact.found))
        for name in ("entropy", "max_weight", "grad_score_norm"):
            assert got[name] == pytest.approx(want[name])
        assert got["saturated_share"] == want["saturated_share"]
        old, new = (dense(p, 0, h)["output"] for p in (before, changed))
        assert effect.moved[0, h] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))


def test_what_if_qk_norm_and_clip() -> None:
    before = problem_of()
    top = np.asarray(health.examine(before).found["logit_max"])
    clipped = what_if.parse("qk_clip=2").apply(before, top)
    after = health.examine(clipped).found["logit_max"]
    np.testing.assert_allclose(after, np.minimum(top, 2))
    unchanged = what_if.parse(f"qk_clip={top.max() + 1}").apply(before, top)
    np.testing.assert_array_equal(unchanged.query, before.query)
    normed = what_if.parse("qk_norm").apply(before, top)
    np.testing.assert_allclose((normed.query**2).mean(-1), 1)
    assert np.max(health.examine(normed).found["logit_max"]) <= math.sqrt(8) + 1e-9


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_what_if_half_precision_rounds_every_stage(name: str) -> None:
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[name]
    problem = problem_of(softcap=5.0)
    done = runs.run_rounded(problem, name, "random:0")
    for h in range(2):
        q, k, v = (getattr(problem, n)[0, h].astype(kind) for n in ("query", "key", "value"))

        def once(x: Any) -> Any:
            return np.asarray(x, np.float32).astype(kind).astype(np.float32)

        s = once(once(q.astype(np.float32) @ k.astype(np.float32).T) * np.float32(8**-0.5))
        z = once(once(np.tanh(once(s / 5))) * 5)
        z = np.where(np.tri(20, dtype=bool), z, -np.inf)
        p = np.exp(z - z.max(1, keepdims=True))
        weights = once(p / p.sum(1, keepdims=True))
        out = once(weights @ v.astype(np.float32))
        step = float(ml_dtypes.finfo(kind).eps)
        np.testing.assert_allclose(done.output[0, h], out, rtol=2 * step, atol=step)
        exact = dense(problem, 0, h)["output"]
        assert np.abs(done.output[0, h] - exact).max() < 40 * step


def test_half_precision_overflow_is_found_and_counted() -> None:
    big = pose(np.full((4, 8), 200.0), np.full((4, 8), 60.0), np.ones((4, 8)))  # q·k = 96000
    effect = health.examine(
        big, what_ifs=[what_if.parse("dtype=float16"), what_if.parse("dtype=bfloat16")]
    ).what_ifs
    assert [e.lost for e in effect] == [4, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scal=none", "did you mean 'scale'"),
        ("frobnicate", "one of scale, softcap"),
        ("softcap", "softcap needs a value"),
        ("softcap=-1", "positive number"),
        ("scale=much", "auto or none"),
        ("qk_norm=3", "takes no value"),
        ("qk_clip=inf", "positive number"),
        ("dtype=float1", "did you mean 'float16'"),
        ("scale=1, scale=2", "twice"),
        ("", "nothing is called"),
    ],
)
def test_what_if_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        what_if.parse(text)
    assert message in str(error.value)


# -- the claim of the article -----------------------------------------------------------------


def test_variance_grows_with_the_width_unless_scaled() -> None:
    swept = list(widths.sweep_dim([8, 64, 512]))
    assert next(iter(widths.sweep_dim([64]))) == swept[1]
    for width, auto, none in swept:
        assert auto["score_variance"] == pytest.approx(1, abs=0.05)
        assert none["score_variance"] == pytest.approx(width, rel=0.05)
        assert none["score_variance"] / auto["score_variance"] == pytest.approx(width)
        assert auto["saturated_share"] == auto["vanishing_share"] == 0
    shares = [none["saturated_share"] for _, _, none in swept]
    assert shares == sorted(shares) and 0.05 < shares[1] < 0.25 and shares[2] > 0.4
    assert swept[2][2]["vanishing_share"] > 0.15
