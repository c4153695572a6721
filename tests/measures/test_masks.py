"""What a mask keeps, counted in tiles, is what the dense mask says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent
from attncli.measures.masks import difference, kept_blocks, mask_facts
from tests.support.problems import mask_expressions, mask_tensors


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_facts_are_those_of_the_dense_mask(data: st.DataObject) -> None:
    queries, keys = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    extent = Extent(2, 2, queries, keys)
    if data.draw(st.booleans()):
        mask = masker(data.draw(mask_expressions(2, queries, keys)))(extent)
    else:
        mask = tensor_masker(data.draw(mask_tensors(2, 2, queries, keys)))(extent)
    dense, facts = mask.dense(), mask_facts(mask)
    assert facts.kept == dense.sum()
    blind = ~dense.any(-1)
    empty = blind & ~mask.padding_rows()[:, None]
    assert facts.empty_rows == empty.sum()
    assert facts.empty_rows + facts.padding_rows == blind.sum()
    if facts.empty_rows:
        assert facts.first_empty == tuple(np.argwhere(empty)[0])
    assert facts.tiles_empty == (~dense.any((-1, -2))).sum()
    assert facts.tiles_full == dense.all((-1, -2)).sum()
    assert facts.tiles_empty + facts.tiles_full + facts.tiles_mixed == 4
    if queries == keys:
        future = np.triu(np.ones((queries, keys), bool), 1)
        assert facts.future_rows == (dense & future).any(-1).sum()
    other = masker(data.draw(mask_expressions(2, queries, keys)))(extent)
    found = difference(mask, other)
    assert found.only_one == (dense & ~other.dense()).sum()
    assert found.only_other == (other.dense() & ~dense).sum()
    if found.first is not None:
        assert found.first == tuple(np.argwhere(dense != other.dense())[0])


def test_many_tiles() -> None:
    mask = masker("causal & (window(150) | prefix(4))")(Extent(1, 1, 700, 700))
    dense, facts = mask.dense()[0, 0], mask_facts(mask)
    tiles = [
        dense[i : i + 128, j : j + 128] for i in range(0, 700, 128) for j in range(0, 700, 128)
    ]
    assert facts.kept == dense.sum()
    assert facts.tiles_empty == sum(not t.any() for t in tiles)
    assert facts.tiles_full == sum(t.all() for t in tiles)
    assert facts.future_rows == 0


def test_blocks_are_shares_of_the_mask() -> None:
    mask = masker("causal")(Extent(1, 1, 10, 10))
    blocks = kept_blocks(mask, 0, 0, 2, 2)
    dense = mask.dense()[0, 0]
    np.testing.assert_allclose(blocks, [[dense[:5, :5].mean(), 0], [1, dense[5:, 5:].mean()]])
