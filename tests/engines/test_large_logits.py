"""Scores of a thousand and more: which key a row takes is told by all their digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attncli
from attncli.engines.numpy import backward
from attncli.studies.attend import posed
from tests.support.engines import ENGINES, options_of

BIAS = np.random.default_rng(1).normal(size=(70, 70)).astype(np.float32)


def tensors(size: float) -> tuple[np.ndarray, ...]:
    """Two query heads of one key head, whose scores are about ``size``."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, h, 70, 16)).astype(np.float32) for h in (2, 1, 1))
    return q * np.float32(size), k, v


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1e4, 1e6, 1e8])
@pytest.mark.parametrize(
    "options",
    [{}, {"mask": "causal"}, {"attn_mask": BIAS}, {"sink": [3.0, -1.0]}, {"softcap": 1e9}],
    ids=" ".join,
)
def test_gradients_of_the_largest_scores(engine: str, size: float, options: dict[str, Any]) -> None:
    want = ("output", "gradients", "gradient_norms")
    asked: dict[str, Any] = dict(zip(("query", "key", "value"), tensors(size), strict=True))
    asked |= {**options, "want": want, "grad_output": "random:0"}
    truth = attncli.attend(**asked, backend="reference", dtype="float64").gradients
    found = attncli.attend(**asked, **options_of(engine)).gradients
    assert found is not None and truth is not None
    # dP − δ cancels where one key takes all, and dK has it times the query
    for name, unit in (("query", 1.0), ("key", size), ("value", 1.0)):
        got, right = getattr(found, name), getattr(truth, name)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5 * unit)


def test_what_no_score_is_beyond() -> None:
    q, k, v = tensors(1e5)
    scores = np.abs(q @ k.swapaxes(-1, -2)).max() / 4
    bound = backward.reach(posed(q, k, v))
    assert scores <= bound * (1 + 1e-6) and bound < 8 * scores
    assert backward.reach(posed(q, k, v, softcap=30.0)) == 30
    assert backward.reach(posed(q, k, v, scale=0.0)) == 0
    assert backward.reach(posed(q[:, :, :0], k, v, mask="causal(top_left)")) == 0
    q[0, 1, 3, 2] = np.nan  # its row is lost, and says nothing of the others
    assert 0.5 * bound < backward.reach(posed(q, k, v)) <= bound
    q[0, 1, 3, 2] = np.inf
    assert backward.reach(posed(q, k, v)) == np.inf
