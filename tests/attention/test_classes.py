"""A mask with queries and keys sorted by class keeps the same cells, and never lies about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from attncli.attention.cells import Cells
from attncli.attention.classes import ascending, cells, in_order, ranked
from attncli.attention.language import masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import EMPTY, FULL, Classes, Everything

EXTENT = Extent(2, 2, 12, 12)
IDS = "2, 0, 1, 2, 0, 1, 1, 1, 2, 0, 0, 2"
TWO = f"segments(({IDS}), (0, 0, 0, 1, 1, 2, 2, 0, 3, 3, 1, 0))"
MASKS = (
    "dilated(3)", "dilated(4) & causal", f"segments({IDS})", f"segments({IDS}) & dilated(2)",
    f"segments({IDS}) & causal & window(7)", f"segments({IDS}) & padding(12, 5)",
    f"{TWO} & causal", "dilated(3) + alibi(1, 2)",
    "dilated(2) & dilated(3)", f"{TWO} + alibi(1, 2)",
)  # fmt: skip


def mask_of(text: str) -> Mask:
    return masker(text)(EXTENT)


def classes_of(text: str) -> Classes:
    found = ranked(mask_of(text))
    assert found is not None
    return found


@pytest.mark.parametrize("text", MASKS)
def test_sorted_it_keeps_and_adds_the_same(text: str) -> None:
    mask = mask_of(text)
    moved, order = in_order(mask, classes_of(text))
    whole = moved.dense(), moved.tensor()
    for b in range(EXTENT.batch):
        rows, keys = order.of(b)
        there = np.ix_(range(EXTENT.heads), rows, keys)
        np.testing.assert_array_equal(whole[0][b], mask.dense()[b][there])
        np.testing.assert_array_equal(whole[1][b], mask.tensor()[b][there])
        back = order.back.of(b)
        np.testing.assert_array_equal(rows[back[0]], np.arange(12))
        np.testing.assert_array_equal(keys[back[1]], np.arange(12))
        assert keys[0] == 0  # first keys stay first
    for some in (moved.compact(), moved.compact(rows=True)):
        np.testing.assert_array_equal(np.broadcast_to(some.tensor(), whole[1].shape), whole[1])
    again = ranked(moved)
    assert again is not None and ascending(again)
    twice, _ = in_order(moved, again)
    np.testing.assert_array_equal(twice.tensor(), whole[1])


@pytest.mark.parametrize("text", MASKS)
def test_sorted_tiles_blocks_and_spans_never_lie(text: str) -> None:
    moved, _ = in_order(mask_of(text), classes_of(text))
    dense, edges = moved.dense(), np.array([0, 2, 3, 4, 6, 8, 9, 12])
    for b, h in np.ndindex(2, 2):
        for i0, i1 in [(0, 12), (0, 3), (3, 4), (4, 8), (5, 12), (11, 12), (6, 6)]:
            keep = dense[b, h, i0:i1]
            np.testing.assert_array_equal(moved.keep(b, h, i0, i1, 2, 9), keep[:, 2:9])
            inside = np.zeros(12, bool)
            for start, stop in moved.spans(b, h, i0, i1):
                assert start < stop
                inside[start:stop] = True
            assert not keep[:, ~inside].any()
            for at in range(len(edges) - 1):
                [state] = moved.tiles(b, h, i0, i1, edges[at : at + 2])
                a, z = edges[at : at + 2].tolist()
                cut = keep[:, a:z]
                np.testing.assert_array_equal(moved.keep(b, h, i0, i1, a, z), cut)
                assert state != EMPTY or not cut.any()
                assert state != FULL or cut.all()


@pytest.mark.parametrize("text", [m for m in MASKS if "window" not in m and "padding" not in m])
def test_a_row_of_a_class_is_known_exactly(text: str) -> None:
    classes = classes_of(text)
    moved, _ = in_order(mask_of(text), classes)
    keep = moved.dense()
    if isinstance(classes.rest, Everything):
        assert cells(classes) == int(keep[:, 0].sum((1, 2)).max())
    for b, i in np.ndindex(2, 12):
        seen = np.flatnonzero(keep[b, 0, i])
        if not len(seen):
            continue
        span = (int(seen[0]), int(seen[-1]) + 1)
        assert moved.spans(b, 0, i, i + 1) == (span,)
        assert moved.tiles(b, 0, i, i + 1, np.array(span)).tolist() == [FULL]


def test_more_classes_than_16_bits_count_are_sorted() -> None:
    keys = np.array([[70000, 5, 65536, 0, 65535]])
    _, order = in_order(Mask(Extent(1, 1, 1, 5)), Classes(keys[:, :1], keys, Everything()))
    assert order.keys.tolist() == [[3, 1, 4, 2, 0]]


def test_classes_are_counted_as_their_keys_appear_and_those_of_no_key_last() -> None:
    queries, keys = np.array([[7, 5, 9, 3, 1]]), np.array([[5, 9, 5, 3, 3, 9]])
    mask = Mask(Extent(1, 1, 5, 6), Said(Classes(queries, keys, Everything())))
    found = ranked(mask)
    assert found is not None
    assert found.keys.tolist() == [[0, 1, 0, 2, 2, 1]]
    assert found.queries.tolist() == [[3, 0, 1, 2, 3]]
    assert not ascending(found)
    assert cells(found) == 2 + 2 + 2
    assert ascending(Classes(np.array([[0, 0, 1]]), np.array([[0, 1, 1]]), Everything()))


@dataclass(frozen=True, eq=False)
class Said(Everything):
    """Says these classes."""

    said: Classes

    def classes(self, queries: int, keys: int) -> Classes:
        return self.said


def test_a_mask_without_classes_has_none() -> None:
    for text in ("causal", "window(3) & padding(9, 4)", "random(0.5, 1)"):
        assert ranked(mask_of(text)) is None


@pytest.mark.parametrize("shift", [16, 19, 32, 40])
def test_a_tensor_of_blocks_shows_where_its_rows_change(shift: int) -> None:
    """A hint: never a row that is like the one before; of wide blocks, every change."""
    keep = np.zeros((1, 1, 129, 96), bool)
    for start in range(0, 129, shift):
        keep[0, 0, start : start + shift, (start // shift * 24) % 96 :][:, :24] = True
    found = Cells(keep).changes(0, 0)
    assert found.tolist() == list(range(shift, 129, shift))
