"""The upstream gradient, in words and as an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attncli
from attncli.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


def test_the_upstream_gradient_can_be_asked_for_in_words() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5))

    def key(spec: Any) -> Array:
        found = attncli.attend(x, want=("gradients",), grad_output=spec).gradients
        assert found is not None
        return np.asarray(found.value)

    np.testing.assert_array_equal(key("ones"), key(np.ones((3, 4, 5))))
    np.testing.assert_array_equal(key("random"), key("random:0"))
    assert (key("random:1") != key("random:2")).any()
    # every key's share of all rows, times one
    np.testing.assert_allclose(key("ones").sum(1), np.full((3, 5), 4.0))


@pytest.mark.parametrize(
    ("spec", "fragments"),
    [
        ("zeros", ["'zeros'", "random:SEED"]),
        ("random:x", ["random:SEED"]),
        (np.ones((4, 3, 2)), ["(4, 3, 2)", "(3, 4, 2)", "another order"]),
        (np.ones((3, 4, 5)), ["(3, 4, 5)", "(3, 4, 2)", "value's width"]),
        (np.ones(()), ["()", "(3, 4, 2)"]),
        (np.ones((3, 4, 2), complex), ["complex"]),
        ([["a"]], ["dtype"]),
    ],
)
def test_a_wrong_upstream_gradient_is_refused_in_words(spec: Any, fragments: list[str]) -> None:
    x = np.ones((3, 4, 5))
    with pytest.raises(InputError) as error:
        attncli.attend(x, x, x[..., :2], want=("gradients",), grad_output=spec)
    for fragment in fragments:
        assert fragment in str(error.value)
