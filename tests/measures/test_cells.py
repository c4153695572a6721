"""The weights near a row's own position, computed by themselves, against the dense definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.definition import stages
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.measures import cells

NEAR = cells.NEAR


@pytest.mark.parametrize("offset", [0, 3, -2])
@pytest.mark.parametrize("how", [{}, {"softcap": 2.0}, {"sink": np.array([0.5, -1.0])}])
@pytest.mark.parametrize(
    "mask", [(), ("causal(top_left)",), ("window(1, 2, top_left)", "alibi(top_left)")]
)
def test_near_weights_are_those_of_the_definition(
    mask: tuple[str, ...], how: dict[str, Any], offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "ROWS", 4)  # tiles of rows, the last one partial
    rng = np.random.default_rng(7)
    q, k, v = (rng.normal(size=(1, 2, length, 3)) for length in (11, 9, 9))
    p = pose(q, k, v, mask=[masker(one) for one in mask], **how)
    for h in range(2):
        made = stages(p, 0, h)
        near = cells.near_weights(p, 0, h, made["lse"], 0, p.queries, offset)
        assert near.shape == (11, 2 * NEAR + 1)
        for i in range(11):
            j = i + offset + np.arange(-NEAR, NEAR + 1)
            there = (j >= 0) & (j < 9)
            want = np.where(there, made["weights"][i, np.where(there, j, 0)], 0)
            np.testing.assert_allclose(near[i], want, rtol=1e-12, atol=1e-15)
