"""Pieces of masks: every answer is that of the whole mask, there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.moved import Piece, moved
from attncli.attention.predicates import EMPTY, FULL
from tests.support.problems import mask_expressions, mask_tensors

quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def pieces(draw: st.DrawFn) -> tuple[Mask, Piece]:
    """Draw a mask and a piece of it."""
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    extent = Extent(batch, heads, queries, keys)
    mask = masker(draw(mask_expressions(batch, queries, keys)))(extent)
    if draw(st.booleans()):
        mask = mask & tensor_masker(draw(mask_tensors(batch, heads, queries, keys)))(extent)
    if draw(st.integers(0, 3)) == 0:
        mask = mask & masker("alibi(top_left)")(extent)

    def some(size: int) -> slice:
        start = draw(st.integers(0, size - 1))
        return slice(start, draw(st.integers(start + 1, size)))

    return mask, Piece(some(batch), some(heads), some(keys), keys)


@given(drawn=pieces())
@quick
def test_a_piece_keeps_and_adds_what_the_whole_does(drawn: tuple[Mask, Piece]) -> None:
    whole, piece = drawn
    part = moved(whole, piece)
    at = piece.batch, piece.heads, slice(None), piece.keys
    np.testing.assert_array_equal(part.dense(), whole.dense()[at])
    np.testing.assert_array_equal(part.tensor(), whole.tensor()[at])
    e = part.extent
    for b, h in np.ndindex(e.batch, e.heads):
        keep = part.dense()[b, h]
        seen = np.zeros(e.keys, bool)
        for start, stop in part.spans(b, h, 0, e.queries):
            assert 0 <= start < stop <= e.keys
            seen[start:stop] = True
        assert not keep[:, ~seen].any()
        edges = np.array(sorted({0, e.keys // 2, e.keys}))
        for a, z, state in zip(edges, edges[1:], part.tiles(b, h, 0, e.queries, edges),
                               strict=False):  # fmt: skip
            assert state != EMPTY or not keep[:, a:z].any()
            assert state != FULL or keep[:, a:z].all()
        view = part.predicate.view(b, h, 0, e.queries, 0, e.keys)
        assert view is None or np.array_equal(view, keep)
        for bias in part.biases:
            line = bias.line(b, h, 1 - e.queries, e.keys)
            block = np.broadcast_to(bias.block(b, h, 0, e.queries, 0, e.keys), keep.shape)
            at_ = bias.at(b, h, np.arange(e.queries)[:, None], np.arange(e.keys)[None])
            np.testing.assert_array_equal(np.broadcast_to(at_, keep.shape), block)
            if line is not None:
                j_i = np.arange(e.keys)[None] - np.arange(e.queries)[:, None] + e.queries - 1
                np.testing.assert_array_equal(line[j_i], block)


@given(drawn=pieces())
@quick
def test_what_a_piece_says_of_itself_is_true(drawn: tuple[Mask, Piece]) -> None:
    whole, piece = drawn
    part = moved(whole, piece)
    e = part.extent
    i, j = np.arange(e.queries)[:, None], np.arange(e.keys)[None]
    for one in part.conjuncts():
        for b, h in np.ndindex(e.batch, e.heads):
            shape = (e.queries, e.keys)
            keep = np.broadcast_to(one.allows(b, h, i, j), shape)
            said: list[Any] = []
            if band := one.band():
                distance = j - i - band.offset[b]
                said.append((distance >= band.low) & (distance <= band.high))
            if stop := one.keys_below():
                said.append(np.broadcast_to(j < stop[b], shape))
            if segments := one.segments():
                said.append(segments[0][b][:, None] == segments[1][b][None])
            if classes := one.classes(e.queries, e.keys):
                rows, ids = (a[b if len(a) > 1 else 0] for a in classes[:2])
                rest = np.broadcast_to(classes.rest.allows(b, h, i, j), shape)
                said.append((rows[:, None] == ids[None]) & rest)
            real = one.padding()
            if real is not None:
                said.append(np.broadcast_to(real[b][None], shape))
            for found in said:
                np.testing.assert_array_equal(found, keep)
    places = whole.positions()
    if places is not None:
        assert part.positions() == tuple(o - piece.first for o in places[piece.batch])


@pytest.mark.parametrize("text", ["causal", "window(2, 1)", "dilated(2)", "padding(3, 5)"])
def test_a_square_piece_is_not_taken_for_self_attention(text: str) -> None:
    whole = masker(text)(Extent(2, 1, 4, 8, past=4))
    part = moved(whole, Piece(slice(0, 2), slice(0, 1), slice(2, 6), 8))
    assert part.extent.queries == part.extent.keys
    assert part.positions() == (2, 2)
    assert not part.padding_rows().any()
