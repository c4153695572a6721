"""Some rows of a mask are these rows of the whole: what it keeps, adds, skips and calls padding."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.picked import picked
from attncli.attention.predicates import EMPTY, FULL

ROWS = np.array([0, 3, 4, 17, 18, 40, 63])
EXTENT = Extent(2, 3, 64, 64)


def mask_of(text: str) -> Mask:
    return masker(text)(EXTENT)


MASKS = (
    "causal", "window(5, 2)", "padding(60, 33)", "causal & ~window(9)", "prefix(7) | causal",
    "random(0.3, 4)", "dilated(3)", "causal + alibi", "padding(64, 10) + alibi(0.5)",
)  # fmt: skip


@pytest.mark.parametrize("text", MASKS)
def test_rows_are_those_of_the_whole(text: str) -> None:
    whole, some = mask_of(text), picked(mask_of(text), ROWS)
    assert some.extent.queries == len(ROWS) and some.extent.keys == 64
    np.testing.assert_array_equal(some.dense(), whole.dense()[:, :, ROWS])
    np.testing.assert_array_equal(some.tensor(), whole.tensor()[:, :, ROWS])
    np.testing.assert_array_equal(some.padding(), whole.padding())
    assert some.varies.batch == whole.varies.batch and some.varies.head == whole.varies.head


@pytest.mark.parametrize("text", MASKS)
@pytest.mark.parametrize(("i0", "i1"), [(0, 7), (0, 3), (2, 5), (5, 7), (6, 7), (4, 4)])
def test_tiles_and_spans_never_lie(text: str, i0: int, i1: int) -> None:
    some, edges = picked(mask_of(text), ROWS), np.array([0, 8, 16, 31, 48, 64])
    for b, h in np.ndindex(2, 3):
        keep = some.dense()[b, h, i0:i1]
        inside = np.zeros(64, bool)
        for start, stop in some.spans(b, h, i0, i1):
            inside[start:stop] = True
        assert not keep[:, ~inside].any()
        for state, a, z in zip(some.tiles(b, h, i0, i1, edges), edges[:-1], edges[1:], strict=True):
            assert state != EMPTY or not keep[:, a:z].any()
            assert state != FULL or keep[:, a:z].all()


def test_what_keeps_everything_stays_trivial() -> None:
    assert picked(Mask(EXTENT), ROWS).trivial
