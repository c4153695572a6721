"""The error budget accepts what rounding does and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from attncli.attention.problem import Problem
from attncli.studies.attend import Result, attend, solve
from tests.support.budget import assert_close, assert_within_budget
from tests.support.problems import DTYPES, problems

RNG = np.random.default_rng(3)
STAGES = ("scores", "softcapped", "masked", "weights")


@given(problems())
@settings(max_examples=100, deadline=None)
def test_the_reference_is_within_it(problem: Problem) -> None:
    result = solve(problem, backend="reference", want=("output", "lse", *STAGES))
    assert_within_budget(result, ("output", "lse", *STAGES))


@pytest.mark.slow
@given(problems())
@settings(max_examples=2000, deadline=None)
def test_the_numpy_engine_is_within_it(problem: Problem) -> None:
    assert_within_budget(solve(problem, want=("output", "lse", "row_statistics")))


def answer(dtype: str) -> Result:
    q, k, v = (RNG.normal(size=(2, 9, 8)).astype(DTYPES[dtype]) for _ in range(3))
    return attend(q, k, v, mask="causal", want=("output", "lse", "weights"))


def with_output(result: Result, output: np.ndarray) -> Result:
    """The result with another output, ``(B, H, Lq, Dv)``."""
    return replace(result, attended=result.attended._replace(output=output))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_error_of_a_few_roundings_is_found(dtype: str) -> None:
    result = answer(dtype)
    assert_within_budget(result, ("output", "lse", "weights"))
    import ml_dtypes

    step = 64 * float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    wrong = (result.attended.output.astype(np.float64) * (1 + step)).astype(DTYPES[dtype])
    with pytest.raises(AssertionError, match="allowed"):
        assert_within_budget(with_output(result, wrong), ("output",))


def test_a_convention_that_is_wrong_is_found() -> None:
    result = answer("float32")
    problem = replace(result.problem, scale=result.problem.scale * 1.0001)
    with pytest.raises(AssertionError, match="allowed"):
        assert_within_budget(replace(result, problem=problem), ("output",))


def test_a_lower_precision_than_promised_is_found() -> None:
    result = answer("float32")
    coarse = result.attended.output.astype(np.float16).astype(np.float32)
    with pytest.raises(AssertionError, match="allowed"):
        assert_within_budget(with_output(result, coarse), ("output",))


def test_nan_is_never_within_budget() -> None:
    result = answer("float64")
    output = result.attended.output.copy()
    output[0, 0, 0, 0] = np.nan
    with pytest.raises(AssertionError):
        assert_within_budget(with_output(result, output), ("output",))


def test_what_is_infinite_must_be_infinite() -> None:
    right = np.array([np.inf, 1.0], np.longdouble)
    assert_close("x", np.array([np.inf, 1.0]), right, [], 0)
    with pytest.raises(AssertionError):
        assert_close("x", np.array([1e300, 1.0]), right, [], 0)
    with pytest.raises(AssertionError, match="x is"):
        assert_close("x", np.array([1.0]), right, [], 0)
