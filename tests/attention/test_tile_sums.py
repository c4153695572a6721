"""A tile's sums against those of whole rows: about 0 or about a centre, hidden cells left out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from attncli.attention.rows import Rows
from attncli.attention.tile_sums import TileSums

ROWS, KEYS = 40, 96
Array = np.ndarray[Any, np.dtype[Any]]

#: What the rows' scores are, (R, C): a row may be of another kind than the one below it.
SCORES: dict[str, Callable[[np.random.Generator], Array]] = {
    "about 0": lambda rng: rng.normal(size=(ROWS, KEYS)),
    "far from 0": lambda rng: rng.normal(size=(ROWS, KEYS)) + 300,
    "each about a centre of its own": lambda rng: (
        rng.normal(size=(ROWS, KEYS)) + 50 * rng.normal(size=(ROWS, 1))
    ),
    "all alike in a row": lambda rng: np.repeat(rng.normal(size=(ROWS, 1)), KEYS, 1),
    "of many sizes": lambda rng: (
        rng.normal(size=(ROWS, KEYS)) * np.geomspace(1e-30, 1e18, ROWS)[:, None]
    ),
    "0": lambda rng: np.zeros((ROWS, KEYS)),
}  # fmt: skip


def tiles(s: Array, keep: Array, edges: list[int], ranges: bool) -> dict[str, Array]:
    """Return the sums of rows in tiles between edges; ``ranges``: hidden cells in two halves."""
    sums, shift = TileSums(ROWS), s.max(1).astype(np.float64)
    for a, z in pairwise(edges):
        hidden = ~keep[:, a:z]
        half = (z - a) // 2 if ranges else 0
        parts = [slice(0, half), slice(half, z - a)]
        pieces = [(part, hidden[:, part]) for part in parts if hidden[:, part].any()]
        tile, ones = np.where(hidden, 0, s[:, a:z]).astype(np.float32), np.ones(z - a, np.float32)
        sums.scores(tile, ones, pieces)
        logits = np.where(hidden, -np.inf, s[:, a:z]).astype(np.float32)
        sums.logits(logits, a)
        logits = np.where(hidden, 0, s[:, a:z] - s.max(1)[:, None]).astype(np.float32)
        sums.weights(np.where(hidden, 0, np.exp(logits)), logits, ones, shift)
    return sums.finish(shift, True)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("visible", [1.0, 0.5, 0.03])
@pytest.mark.parametrize("edges", [[0, KEYS], [0, 32, KEYS], [0, 1, 2, 40, 41, KEYS]])
@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # exp of 1e18
def test_tiles_are_whole_rows(scores: str, visible: float, edges: list[int], ranges: bool) -> None:
    rng = np.random.default_rng(8)
    s = SCORES[scores](rng).astype(np.float32)
    keep = rng.random(s.shape) <= visible
    found = tiles(s, keep, edges, ranges)
    whole = Rows.dense(s.astype(np.float64), s.astype(np.float64), keep)
    some = whole.n > 0
    np.testing.assert_array_equal(found["n"], whole.n)
    for name in ("amax", "first", "top_z", "top_j", "m"):
        np.testing.assert_array_equal(found[name], getattr(whole, name), name)
    size = np.abs(s).max(1).astype(np.float64)
    deviation, right = (
        np.sqrt(np.maximum(m2, 0) / np.maximum(whole.n, 1)) for m2 in (found["m2"], whole.m2)
    )
    rounding = 2 * np.finfo(np.float32).eps * size  # of the mean that is taken off
    assert (np.abs(deviation - right) <= 1e-5 * right + rounding)[some].all()
    assert (np.abs(found["mean"] - whole.mean) <= 4 * rounding)[some].all()
