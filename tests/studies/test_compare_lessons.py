"""What a first attention gets wrong is named: the axis of the softmax, its absence, the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attncli

RNG = np.random.default_rng(23)
Array = np.ndarray[Any, np.dtype[Any]]


def softmax(z: Array, axis: int = -1) -> Array:
    e = np.exp(z - z.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


FAULTS: dict[str, tuple[str, str, Callable[[Array, Array], Array]]] = {
    "no softmax": ("there is no softmax", "none", lambda z, keep: z),
    "no softmax, masked": ("there is no softmax", "causal", lambda z, keep: np.where(keep, z, 0)),
    "the other axis": ("runs over the queries", "none", lambda z, keep: softmax(z, 0)),
    "the other axis, masked": (
        "runs over the queries", "causal", lambda z, keep: softmax(np.where(keep, z, -np.inf), 0),
    ),
    "transposed": ("the weights are transposed", "none", lambda z, keep: softmax(z).T),
    "masked last": (
        "the mask is applied after the softmax", "causal", lambda z, keep: softmax(z) * keep,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("stage", ["output", "weights"])
@pytest.mark.parametrize("name", FAULTS)
def test_it_is_named_and_nothing_else_is(name: str, stage: str, dtype: str) -> None:
    words, mask, weights_of = FAULTS[name]
    q, k, v = RNG.normal(size=(3, 7, 5)).astype(dtype)
    weights = weights_of((q @ k.T / np.sqrt(5)).astype(dtype), np.tri(7, dtype=bool))
    given = weights @ v if stage == "output" else weights
    right = attncli.attend(q, k, v, mask=None if mask == "none" else mask)
    said = attncli.compare({stage: given.astype(dtype)}, right)
    assert said.verdict == "located" and len(said.explanations) == 1
    assert words in said.explanations[0].words


def test_symmetric_scores_cannot_tell_an_axis_from_a_transpose() -> None:
    x = RNG.normal(size=(5, 4))
    given = softmax(x @ x.T / 2, 0) @ x
    said = attncli.compare(given, attncli.attend(x))
    assert said.verdict == "ambiguous" and len(said.explanations) == 2


def test_more_queries_than_keys() -> None:
    q, k = RNG.normal(size=(9, 4)), RNG.normal(size=(3, 4))
    given = softmax(q @ k.T / 2, 0) @ k
    (told,) = attncli.compare(given, attncli.attend(q, k)).explanations
    assert "runs over the queries" in told.words
