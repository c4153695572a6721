"""Statistics of the output: free of its unit, and in the precision that they are said to have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention import definition
from attncli.attention.pose import pose
from attncli.measures.outputs import effective_rank, output_norm, rank_residual, vanishing_share
from attncli.studies.health import examine
from tests.support.problems import DTYPES

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.mark.parametrize("unit", [1e-300, 1e-170, 1.0, 1e160, 1e305])
def test_no_unit_changes_them(unit: float) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 9, 4)) * unit
    norms = np.array([[[np.hypot.reduce(row) for row in head] for head in x[0]]])
    np.testing.assert_allclose(output_norm(x), norms, rtol=1e-12)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("unit", [1.0, "largest"])
@pytest.mark.parametrize("backend", ["numpy", "reference", "torch"])
def test_inspect_does_not_round_the_output_before_it_looks(
    dtype: str, unit: float | str, backend: str
) -> None:
    """Nearly uniform attention: rows of the output differ by less than the inputs' rounding."""
    if backend == "torch":
        pytest.importorskip("torch")
    import ml_dtypes

    largest = float(ml_dtypes.finfo(DTYPES[dtype]).max) / 64
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(1, 1, 30, 8)) for _ in range(3))
    v *= largest if unit == "largest" else 1
    p = pose(*((x * (1 - 0.999 * (x is q))).astype(DTYPES[dtype]) for x in (q, k, v)))
    found = examine(p, backend=backend).found
    wide = pose(p.query, p.key, p.value, dtype="float64")
    stage = definition.stages(wide, 0, 0)
    output = definition.blend(stage["weights"], stage["keep"], np.float64(wide.value[0, 0]))
    output = output / np.abs(output).max()
    residual = np.linalg.norm(output - output.mean(0)) / np.linalg.norm(output)
    assert found["rank_residual"].item() == pytest.approx(residual, rel=1e-9)
    values = np.linalg.svd(output, compute_uv=False)
    share = values / values.sum()
    rank = np.exp(-np.sum(share * np.log(share)))
    assert found["effective_rank"].item() == pytest.approx(rank, rel=1e-9)


def test_outputs_of_nothing() -> None:
    assert np.isnan(_one(effective_rank, np.zeros((0, 4))))
    assert np.isnan(_one(effective_rank, np.zeros((3, 4))))
    assert np.isnan(_one(rank_residual, np.zeros((3, 4))))
    assert _one(effective_rank, np.ones((3, 4))) == pytest.approx(1)
    assert _one(rank_residual, np.full((3, 4), 7.0)) == 0


def _one(formula: Any, output: Array) -> float:
    return float(formula(output))


def test_a_gradient_vanishes_below_the_floor_alone() -> None:
    norms = np.array([[[0.5, 1.0, 0.25, np.nan, 3.0]]])
    chosen = np.array([[[True, True, False, True, True]]])
    share = vanishing_share(norms, chosen, np.array([[1.0]]))
    np.testing.assert_array_equal(share, [[1 / 3]])  # 1.0 is the floor itself, NaN no gradient
    np.testing.assert_array_equal(vanishing_share(norms, chosen, np.array([[np.nan]])), [[np.nan]])
