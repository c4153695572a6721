"""Sequences end to end: which keys a run of queries may see."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.packed import Packed


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([0, 2, 5], [0, 4, 5]),
        ([0, 2, 2, 3], [0, 1, 6, 6]),
        ([0, 0, 3], [0, 2, 4]),
        ([0, 3], [0, 0]),
    ],
)
def test_nothing_is_seen_outside_the_spans(
    queries: list[int], keys: list[int], causal: bool
) -> None:
    mask = Packed(np.array(queries), np.array(keys), causal)
    count = keys[-1]
    for i0 in range(queries[-1] + 1):
        for i1 in range(i0, queries[-1] + 1):
            seen = mask.block(0, 0, i0, i1, 0, count).any(0)
            reach = np.zeros(count, bool)
            for start, stop in mask.spans(0, 0, i0, i1, count):
                reach[start:stop] = True
            assert not (seen & ~reach).any()


def test_the_spans_of_one_sequence_are_its_keys() -> None:
    mask = Packed(np.array([0, 2, 5]), np.array([0, 4, 9]), causal=False)
    assert mask.spans(0, 0, 2, 5, 9) == ((4, 9),)
    assert mask.spans(0, 0, 0, 3, 9) == ((0, 9),)
    assert mask.spans(0, 0, 2, 2, 9) == ()
