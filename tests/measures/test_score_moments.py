"""Moments of scores about a centre: neither tiny nor large scores lose their digits."""

from __future__ import annotations

import numpy as np
import pytest

import attncli
from attncli.attention import definition
from attncli.attention.pose import pose


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e4, 1e24])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("mask", [None, "causal", "random(0.4, 3)"])
@pytest.mark.parametrize("backend", ["reference", "numpy", "torch"])
@pytest.mark.parametrize("length", [33, 300])
def test_every_size(
    size: float, offset: float, mask: str | None, backend: str, length: int
) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    rng = np.random.default_rng(length)
    query = (rng.random((length, 8)) * size).astype(np.float32)
    key = (rng.normal(size=(length, 8)) + offset).astype(np.float32)
    got = attncli.attend(query, key, mask=mask, backend=backend, want=("row_statistics",))
    p = pose(query, key, dtype="float64")
    scores = definition.stages(p, 0, 0)["scores"]
    keep = got.problem.mask.dense()[0, 0]
    right = np.array(
        [s[k].std() if k.sum() > 1 else np.nan for s, k in zip(scores, keep, strict=True)]
    )
    n = np.maximum(keep.sum(1), 2)
    assert got.row_statistics is not None
    found = got.row_statistics["logit_std_ratio"] * np.sqrt(2 * np.log(n))
    # scores of float32 are right up to an ulp of their terms
    rounding = 4 * np.finfo(np.float32).eps * np.abs(scores).max()
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=rounding)
    whole = attncli.statistics(got)["logit_std"].item()
    assert whole == pytest.approx(scores[keep].std(), rel=1e-4)
