"""Maps of any length: the largest weight of each block, by a sweep in tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention import definition
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.engines import load
from attncli.measures import peaks as module
from attncli.measures.peaks import Blocks, peaks
from tests.support.problems import problems


def by_definition(p: Problem, b: int, h: int, rows: Blocks, keys: Blocks) -> tuple[Any, Any]:
    stage = definition.stages(p, b, h, np.arange(rows.start, rows.stop))
    here = slice(keys.start, keys.stop)

    def pooled(cells: Any, how: Any) -> Any:
        cells = how.reduceat(cells[:, here], keys.edges[:-1], axis=1)
        return how.reduceat(cells, rows.edges[:-1], axis=0)

    return pooled(stage["weights"], np.maximum), pooled(stage["keep"], np.logical_or)


@given(problems(dtypes=("float64",)), st.data())
@settings(max_examples=200, deadline=None)
def test_peaks_are_the_largest_of_the_definition(p: Problem, data: Any) -> None:
    rows, keys = (blocks(data, size) for size in (p.queries, p.keys))
    heads = [*np.ndindex(p.batch, p.heads)]
    lse = load("numpy").attend(p, ("lse",)).lse
    tile = data.draw(st.sampled_from([2, 3, 256]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE_ROWS", tile)
        patch.setattr(module, "TILE_KEYS", tile)
        found, seen = peaks(p, lse, heads, rows, keys, threads=2)
    assert found.shape == seen.shape == (len(heads), len(rows), len(keys))
    for n, (b, h) in enumerate(heads):
        if not found.size:
            return
        weights, visible = by_definition(p, b, h, rows, keys)
        np.testing.assert_array_equal(seen[n], visible)
        np.testing.assert_allclose(found[n], weights, rtol=1e-6, atol=1e-7)


def blocks(data: Any, size: int) -> Blocks:
    start = data.draw(st.integers(0, max(size - 1, 0)))
    return Blocks.of(
        start, data.draw(st.integers(min(start + 1, size), size)), data.draw(st.integers(1, 9))
    )


def test_a_row_that_is_lost_is_lost_in_what_it_sees() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 1, 6, 4))
    q[0, 0, 4] = np.nan
    p = pose(q, k, v, mask=masker("causal"))
    lse = load("numpy").attend(p, ("lse",)).lse
    found, seen = peaks(p, lse, [(0, 0)], Blocks(0, 6, 1), Blocks(0, 6, 1))
    assert np.isnan(found[0, 4, :5]).all() and found[0, 4, 5] == 0 and not seen[0, 4, 5]
    assert np.isfinite(found[0, [0, 1, 2, 3, 5]]).all()
