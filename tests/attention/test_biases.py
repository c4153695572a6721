"""Biases by distance."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.biases import Relative, alibi_slopes
from attncli.attention.language import masker
from attncli.attention.masks import Extent


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == tuple(2.0**-k for k in range(1, 9))
    assert alibi_slopes(3) == pytest.approx((2**-4, 2**-8, 2**-2))
    mask = masker("alibi(0.5) & causal")(Extent(1, 1, 3, 3))
    bias = mask.bias(0, 0, 0, 3, 0, 3)
    assert bias is not None
    assert bias.tolist() == [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("offset", [(1, 1), (0, 2)])
def test_relative_is_the_table_at_the_distance_farther_ones_clip(
    heads: int, offset: tuple[int, int]
) -> None:
    table = np.arange(heads * 5.0).reshape(heads, 5)
    bias = Relative(table, offset)
    for b, h, i, j in np.ndindex(2, 2, 4, 6):
        distance = min(max(j - (i + offset[b]), -2), 2)
        own = table[h if heads == 2 else 0, 2 + distance]
        assert bias.block(b, h, i, i + 1, j, j + 1) == own
        assert bias.line(b, h, j - i, j - i + 1) == own  # at the distance j - i
    varies = bias.varies()
    assert (varies.batch, varies.head) == (offset == (0, 2), heads == 2)
