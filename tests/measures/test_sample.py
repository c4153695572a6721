"""Eigenvalues of sampled rows are those of the matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attncli.measures import sample


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
