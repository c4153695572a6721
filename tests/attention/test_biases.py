"""Biases by distance."""

from __future__ import annotations

import pytest

from attncli.attention.biases import alibi_slopes
from attncli.attention.language import masker
from attncli.attention.masks import Extent


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == tuple(2.0**-k for k in range(1, 9))
    assert alibi_slopes(3) == pytest.approx((2**-4, 2**-8, 2**-2))
    mask = masker("alibi(0.5) & causal")(Extent(1, 1, 3, 3))
    bias = mask.bias(0, 0, 0, 3, 0, 3)
    assert bias is not None
    assert bias.tolist() == [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]]
