"""Every statistic equals its definition on dense weights, written down here once more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import attncli
from attncli.attention import definition
from attncli.attention.problem import Problem
from attncli.engines import reference
from attncli.measures import rows as measure_rows
from attncli.measures.evidence import Evidence, told
from attncli.studies import attend
from tests.support.problems import problems


@given(problems(dtypes=("float64",)))
@settings(max_examples=300, deadline=None)
def test_row_statistics_are_their_definitions(problem: Problem) -> None:
    done = reference.attend(problem, {"row_statistics"})
    assert done.rows is not None
    known = Evidence(problem, done.rows.with_sink(problem.sink))
    found = known.row_values(told(measure_rows))
    for b, h in np.ndindex(problem.batch, problem.heads):
        stage = definition.stages(problem, b, h)
        real = np.flatnonzero(~problem.mask.padding()[b])
        key = int(real[0]) if real.size else 0
        for i in range(problem.queries):
            got = {name: values[b, h, i] for name, values in found.items()}
            keep = stage["keep"][i] & (stage["masked"][i] > -np.inf)
            if not keep.any():
                assert all(np.isnan(value) for value in got.values())
                continue
            p = stage["weights"][i][keep]
            largest = p.max()
            if problem.sink is not None:
                p = np.append(p, 1 - p.sum())  # one more outcome
            p = np.maximum(p, 0)
            n = int(stage["keep"][i].sum())
            positive = p[p > 0]
            entropy = -(positive * np.log(positive)).sum()
            jacobian = np.diag(p) - np.outer(p, p)
            assert got["entropy"] == pytest.approx(entropy, abs=1e-9)
            assert got["effective_keys"] == pytest.approx(np.exp(entropy), rel=1e-8)
            if n > 1:
                outcomes = n + (problem.sink is not None)
                largest_entropy = entropy / np.log(outcomes)
                assert got["normalized_entropy"] == pytest.approx(largest_entropy, abs=1e-8)
            assert got["max_weight"] == pytest.approx(largest, abs=1e-12)
            assert got["jacobian_trace"] == pytest.approx(np.trace(jacobian), abs=1e-9)
            # the square root of a difference: its error is the root of the rounding
            norm = np.linalg.norm(jacobian)
            assert got["jacobian_frobenius"] == pytest.approx(norm, abs=3e-8)
            spectral = np.linalg.eigvalsh(jacobian)[-1]
            assert got["jacobian_spectral_low"] <= spectral + 1e-9
            assert got["jacobian_spectral_high"] >= spectral - 1e-9
            first = stage["weights"][i][key] if stage["keep"][i][key] else 0
            assert got["first_key_mass"] == pytest.approx(first, abs=1e-12)


@given(problems(dtypes=("float64",)))
@settings(max_examples=100, deadline=None)
def test_head_statistics_are_pooled_over_visible_cells(problem: Problem) -> None:
    result = attend.solve(problem, backend="reference", want={"row_statistics"})
    found = attncli.statistics(result)
    for b, h in np.ndindex(problem.batch, problem.heads):
        stage = definition.stages(problem, b, h)
        real = problem.real_rows[b]
        keep, scores = stage["keep"][real], stage["scores"][real]
        choice = keep.sum(1) >= 2
        cells = scores[keep]
        if cells.size:
            assert found["logit_max"][b, h] == pytest.approx(np.abs(cells).max())
            scale = max(1.0, np.abs(cells).max())
            assert found["logit_std"][b, h] == pytest.approx(cells.std(), abs=1e-7 * scale)
        else:
            assert np.isnan(found["logit_std"][b, h])
        weights = stage["weights"][real].max(1, initial=0)
        if choice.any():
            share = (weights[choice] > 0.99).mean()
            near = np.abs(weights[choice] - 0.99) < 1e-12
            assert near.any() or found["saturated_share"][b, h] == pytest.approx(share)
        assert found["rows"][b, h] == real.sum()
        assert found["rows_with_choice"][b, h] == choice.sum()


def test_quantiles_leave_out_padding_and_rows_without_a_choice() -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 6, 4))
    result = attncli.attend(
        x, mask="causal & padding(4)", backend="reference", want=("row_statistics",)
    )
    found = attncli.statistics(result)
    rows = result.row_statistics
    assert rows is not None
    assert found["rows"].item() == 4
    assert found["rows_with_choice"].item() == 3
    assert found["entropy"]["mean"].item() == pytest.approx(rows["entropy"][0, 0, 1:4].mean())
    assert found["entropy"]["min"].item() == rows["entropy"][0, 0, 1:4].min()


def test_uniform_and_single_key_attention() -> None:
    flat = attncli.attend(np.zeros((5, 4)), backend="reference", want=("row_statistics",))
    assert flat.row_statistics is not None
    np.testing.assert_allclose(flat.row_statistics["entropy"], np.log(5))
    np.testing.assert_allclose(flat.row_statistics["effective_keys"], 5)
    np.testing.assert_allclose(flat.row_statistics["jacobian_trace"], 0.8)
    one = attncli.attend(np.zeros((1, 4)), backend="reference", want=("row_statistics",))
    assert one.row_statistics is not None
    assert one.row_statistics["entropy"] == 0
    assert np.isnan(attncli.statistics(one)["entropy"]["median"])


def test_numbers_that_overflow_are_counted_and_warned_about() -> None:
    x = np.array([[1e308, 1e308], [1.0, 2.0]])
    result = attncli.attend(x, backend="reference", want=("row_statistics",))
    assert attncli.statistics(result)["nonfinite"].item() == 2
    assert any("overflow" in warning for warning in result.warnings)
    assert np.isnan(attncli.statistics(result)["saturated_share"]).all()


def test_a_float_mask_of_zeros_and_ones_is_warned_about() -> None:
    x = np.ones((3, 2))
    result = attncli.attend(x, attn_mask=np.tril(np.ones((3, 3))), backend="reference")
    assert any("holds only 0 and 1" in warning for warning in result.warnings)


def test_padding_from_cache_lengths_keeps_the_queries() -> None:
    x = np.random.default_rng(0).normal(size=(1, 1, 4, 3))
    cached = attncli.attend(x, kv_lengths=[2], backend="reference", want=("row_statistics",))
    assert attncli.statistics(cached)["rows"].item() == 4


def test_statistics_need_to_be_asked_for() -> None:
    with pytest.raises(attncli.AttnError, match="no row statistics"):
        attncli.statistics(attncli.attend(np.zeros((2, 2)), backend="reference"))
