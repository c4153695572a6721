"""Random weights for learning."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.errors import InputError
from attncli.models.random import random_weights


def test_random_weights_are_the_same_for_a_seed() -> None:
    first, again, other = (random_weights(s, 8, 2).projections().query for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1 and np.abs(first).max() <= np.sqrt(6 / 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 4), "does not divide into 4 heads"),
        ((0, 8, 0), "at least 1"),
        ((0, 8, 4, 3), "multiple of key/value heads"),
    ],
)
def test_random_weights_that_cannot_be(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_weights(*arguments[:3], kv_heads=arguments[3] if len(arguments) > 3 else None)
