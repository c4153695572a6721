"""Predicates, tiles and spans: one source, and summaries that never lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention.biases import alibi_slopes
from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import EMPTY, FULL
from attncli.errors import MaskError
from tests.support.problems import mask_expressions, mask_tensors


def check_summaries(mask: Mask, data: st.DataObject) -> None:
    """Tiles and spans of random tilings agree with the dense mask."""
    extent, dense = mask.extent, mask.dense()
    assert dense.shape == (extent.batch, extent.heads, extent.queries, extent.keys)
    i0 = data.draw(st.integers(0, extent.queries - 1))
    i1 = data.draw(st.integers(i0 + 1, extent.queries))
    cuts = data.draw(st.sets(st.integers(0, extent.keys), min_size=2, max_size=5))
    edges = np.array(sorted(cuts))
    for b in range(extent.batch):
        for h in range(extent.heads):
            rows = dense[b, h, i0:i1]
            fills = mask.tiles(b, h, i0, i1, edges)
            for fill, j0, j1 in zip(fills, edges[:-1], edges[1:], strict=True):
                assert (mask.keep(b, h, i0, i1, j0, j1) == rows[:, j0:j1]).all()
                if fill == EMPTY:
                    assert not rows[:, j0:j1].any()
                if fill == FULL:
                    assert rows[:, j0:j1].all()
            outside = np.ones(extent.keys, bool)
            stop = 0
            for start, end in mask.spans(b, h, i0, i1):
                assert stop <= start < end <= extent.keys
                outside[start:end], stop = False, end
            assert not rows[:, outside].any()


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_tiles_and_spans_of_random_expressions_never_lie(data: st.DataObject) -> None:
    queries, keys = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    extent = Extent(2, 1, queries, keys)
    text = data.draw(mask_expressions(2, queries, keys, depth=3))
    check_summaries(masker(text)(extent), data)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_tiles_and_spans_of_random_tensors_never_lie(data: st.DataObject) -> None:
    queries, keys = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    extent = Extent(2, 2, queries, keys)
    tensor = data.draw(mask_tensors(2, 2, queries, keys))
    mask = tensor_masker(tensor)(extent)
    allowed = tensor if tensor.dtype == bool else tensor != -np.inf
    if allowed.shape[-1] not in (1, keys):
        short = [(0, 0)] * (allowed.ndim - 1) + [(0, keys - allowed.shape[-1])]
        allowed = np.pad(allowed, short)
    assert (mask.dense() == np.broadcast_to(allowed, (2, 2, queries, keys))).all()
    check_summaries(mask, data)


def predicate(text: str, i: int, j: int, offset: int, length: int) -> bool:
    """The rows of the mask table, written down once more for one cell."""
    p = i + offset
    return {
        "causal": j <= p,
        "window(2, 1)": p - 2 <= j <= p + 1,
        "window(2)": p - 2 <= j,
        "window(inf, 0)": j <= p,
        "window(0, inf)": p <= j,
        "prefix(3)": j < 3,
        "padding(5)": j < length,
        "segments(0, 0, 1, 1, 1, 2)": [0, 0, 1, 1, 1, 2][p] == [0, 0, 1, 1, 1, 2][j],
        "global_rows(2)": i < 2,
        "dilated(3)": (j - p) % 3 == 0,
        "blocks(2)": p // 2 == j // 2,
    }[text]


@pytest.mark.parametrize(
    "text",
    [
        "causal", "window(2, 1)", "window(2)", "window(inf, 0)", "window(0, inf)", "prefix(3)",
        "padding(5)", "segments(0, 0, 1, 1, 1, 2)", "global_rows(2)", "dilated(3)", "blocks(2)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("past", [None, 2])
def test_each_mask_is_its_row_of_the_table(text: str, past: int | None) -> None:
    queries = 6 - (past or 0)
    dense = masker(text)(Extent(1, 1, queries, 6, past=past)).dense()[0, 0]
    for i in range(queries):
        for j in range(6):
            assert dense[i, j] == predicate(text, i, j, past or 0, 5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("~causal | causal", "~(causal & ~causal)"),
        ("~(causal & prefix(2))", "~causal | ~prefix(2)"),
        ("causal", "window(inf, 0)"),
        ("window(3, 0)", "causal & window(3)"),
        ("blocks(3)", "segments(0, 0, 0, 1, 1, 1, 2)"),
        ("dilated(1)", "causal | ~causal"),
    ],
)
def test_masks_built_two_ways_agree(one: str, other: str) -> None:
    extent = Extent(1, 1, 7, 7)
    assert (masker(one)(extent).dense() == masker(other)(extent).dense()).all()


def test_corners() -> None:
    wide = Extent(1, 1, 2, 4)
    assert masker("causal(top_left)")(wide).dense()[0, 0].sum(1).tolist() == [1, 2]
    assert masker("causal(bottom_right)")(wide).dense()[0, 0].sum(1).tolist() == [3, 4]
    lengths = Extent(2, 1, 2, 4, lengths=(2, 3))
    assert masker("causal")(lengths).dense()[:, 0].sum(-1).tolist() == [[1, 2], [2, 3]]
    with pytest.raises(MaskError, match=r"ambiguous for 2 queries and 4 keys") as caught:
        masker("window(1, 0)")(wide)
    assert "window(1, 0, top_left)" in str(caught.value)
    assert "window(1, 0, bottom_right)" in str(caught.value)


def test_random_is_the_same_for_every_tiling_and_near_its_probability() -> None:
    mask = masker("random(0.3, 5)")(Extent(1, 1, 200, 200))
    dense = mask.dense()[0, 0]
    assert (mask.keep(0, 0, 50, 60, 70, 90) == dense[50:60, 70:90]).all()
    assert abs(dense.mean() - 0.3) < 0.02
    assert (masker("random(0.3, 6)")(Extent(1, 1, 200, 200)).dense()[0, 0] != dense).any()


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == tuple(2.0**-k for k in range(1, 9))
    assert alibi_slopes(3) == pytest.approx((2**-4, 2**-8, 2**-2))
    mask = masker("alibi(0.5) & causal")(Extent(1, 1, 3, 3))
    bias = mask.bias(0, 0, 0, 3, 0, 3)
    assert bias is not None
    assert bias.tolist() == [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]]


def test_joining_masks_keeps_both_texts_and_adds_biases() -> None:
    extent = Extent(1, 2, 4, 4)
    joined = masker("causal | prefix(1)")(extent) & masker("window(1, 1) + alibi")(extent)
    assert joined.text == "(causal | prefix(1)) & window(1, 1) + alibi"
    assert joined.has_bias
    trivial = Mask(extent)
    assert trivial.trivial
    assert (trivial & masker("causal")(extent)).text == "causal"


def test_a_band_s_tile_is_its_predicate() -> None:
    band = masker("window(2, 1)")(Extent(1, 1, 6, 6, past=None)).predicate
    dense = band.allows(0, 0, np.arange(6)[:, None], np.arange(6)[None])
    for i0 in range(7):
        for i1 in range(i0, 7):
            for j0 in range(7):
                for j1 in range(j0, 7):
                    block = band.block(0, 0, i0, i1, j0, j1)
                    assert block.shape == (i1 - i0, j1 - j0)
                    assert (block == dense[i0:i1, j0:j1]).all()


def test_padding_says_how_long_each_sequence_is() -> None:
    extent = Extent(2, 1, 4, 4)
    assert masker("padding(3, 2) & causal")(extent).lengths == (3, 2)
    assert masker("prefix(3)")(extent).lengths is None
