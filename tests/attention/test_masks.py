"""Predicates, tiles and spans: one source, and summaries that never lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.pose import pose
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


@pytest.mark.slow
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


def test_joining_masks_keeps_both_texts_and_adds_biases() -> None:
    extent = Extent(1, 2, 4, 4)
    joined = masker("causal | prefix(1)")(extent) & masker("window(1, 1) + alibi")(extent)
    assert joined.text == "(causal | prefix(1)) & window(1, 1) + alibi"
    assert joined.has_bias
    trivial = Mask(extent)
    assert trivial.trivial
    assert (trivial & masker("causal")(extent)).text == "causal"


def test_padding_says_how_long_each_sequence_is() -> None:
    extent = Extent(2, 1, 4, 4)
    assert masker("padding(3, 2) & causal")(extent).lengths == (3, 2)
    assert masker("prefix(3)")(extent).lengths is None


def test_positions_of_queries() -> None:
    square, wide = np.ones((4, 2)), np.ones((7, 2))
    assert pose(square).mask.positions() == (0,)
    assert pose(square, wide).mask.positions() is None
    corner = pose(square, wide, mask=masker("causal(bottom_right)"))
    assert corner.mask.positions() == (3,)
    past = pose(square, square, past_key=np.ones((2, 2)), past_value=np.ones((2, 2)))
    assert past.mask.positions() == (2,)
    assert pose(square, wide, kv_lengths=[6]).mask.positions() == (2,)


@pytest.mark.parametrize(
    ("text", "varies"),
    [
        ("padding(4, 4)", (False, False, False)), ("padding(4, 2)", (True, False, False)),
        ("alibi(0.5, 0.25)", (False, True, True)), ("causal", (False, False, True)),
        ("padding(4, 2) & window(1) + alibi(1)", (True, False, True)),
    ],
)  # fmt: skip
def test_compact_broadcasts_to_the_whole_mask(text: str, varies: tuple[bool, ...]) -> None:
    mask = masker(text)(Extent(2, 2, 4, 4))
    for rows in (False, True):
        small = mask.compact(rows=rows).tensor()
        np.testing.assert_array_equal(np.broadcast_to(small, (2, 2, 4, 4)), mask.tensor())
        most = [size for size, own in zip((2, 2, 4), varies, strict=True)]
        alike = (1, 1, 1 if rows else 4)
        for size, whole, one, own in zip(small.shape, most, alike, varies, strict=False):
            assert size == whole if own else size in (one, whole)


@pytest.mark.parametrize("text", ["window({})", "causal | prefix({})", "padding({}, 1)"])
def test_places_are_whole_numbers_that_a_float_can_hold(text: str) -> None:
    extent = Extent(2, 1, 4, 4)
    most = masker(text.format(2**53))(extent) if "window" in text else None
    assert most is None or most.dense().all()
    with pytest.raises(MaskError, match="9007199254740992"):
        masker(text.format(2**53 + 1))(extent)


def test_placed_says_where_query_0_stands() -> None:
    wide = Mask(Extent(2, 1, 2, 5))
    assert wide.positions() is None
    for start in range(4):
        assert wide.placed(start).positions() == (start, start)
    with pytest.raises(MaskError, match="the last place that query 0 can have is 3"):
        wide.placed(4)
    for extent in (Extent(2, 1, 2, 5, past=3), Extent(2, 1, 2, 5, lengths=(5, 5))):
        assert Mask(extent).placed(3).positions() == (3, 3)
        with pytest.raises(MaskError, match="stands at key 3, not at 2: the cache"):
            Mask(extent).placed(2)
    corner = masker("causal(bottom_right)")(wide.extent)
    assert corner.placed(3).positions() == (3, 3)
    with pytest.raises(MaskError, match="causal"):
        corner.placed(0)


@pytest.mark.parametrize(
    ("numbers", "sentinel"),
    [
        ([0, -np.inf], None), ([0, -1e4, -np.inf], -1e4), ([0, -9999.0], None), ([-3e38, 0], -3e38),
        ([-1e4, -1e9, 2], -1e9), ([-np.inf, -np.inf], None), ([np.inf, -1e5], -1e5),
        ([np.nan, -1e5], -1e5),
    ],
)  # fmt: skip
def test_a_sentinel_is_the_lowest_finite_number_far_below_0(
    numbers: list[float], sentinel: float | None
) -> None:
    tensor = np.array([numbers])
    mask = tensor_masker(tensor)(Extent(1, 1, 1, len(numbers)))
    assert mask.sentinel() == sentinel
    assert not mask.zero_one()
    assert masker("causal")(Extent(1, 1, 3, 3)).sentinel() is None
