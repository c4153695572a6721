"""The running sums merge exactly, in any order, and say what the dense definition says."""

from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention.rows import Rows


def assert_same(one: Rows, other: Rows) -> None:
    """Equal up to rounding of sums; counts, maxima and keys exactly."""
    for f in fields(Rows):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if f.name in ("m", "n", "amax", "first", "top_z", "top_j"):
            np.testing.assert_array_equal(a, b, err_msg=f.name)
        else:
            floor = {"m2": one.n * one.amax**2, "rest": 0, "rest2": 0, "rest3": 0}
            scale = np.abs(b) + floor.get(f.name, 1)  # the rest keeps its digits, however small
            assert (np.abs(a - b) <= 2e-12 * scale + np.finfo(float).tiny).all(), f.name


@st.composite
def cells(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw logits, scores and a mask of ``(rows, keys)``; ties, huge logits and dead rows too."""
    rows, keys = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    s = rng.normal(size=(rows, keys)) * draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))
    if draw(st.booleans()):
        s = np.round(s)
    keep = rng.random((rows, keys)) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    return s + rng.normal(size=(rows, 1)), s, keep


@given(cells(), st.data())
@settings(max_examples=300, deadline=None)
def test_merging_in_any_order_is_the_whole(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    z, s, keep = problem
    keys = z.shape[1]
    cuts = data.draw(st.sets(st.integers(1, max(keys - 1, 1)), max_size=4))
    edges = sorted({0, keys} | {c for c in cuts if c < keys})
    parts = [
        Rows.dense(z[:, a:b], s[:, a:b], keep[:, a:b], start=a)
        for a, b in itertools.pairwise(edges)
    ]
    merged = Rows.empty(z.shape[:1])
    for part in data.draw(st.permutations(parts)):
        merged = merged.merge(part) if data.draw(st.booleans()) else part.merge(merged)
    assert_same(merged, Rows.dense(z, s, keep))


@given(cells())
@settings(max_examples=200, deadline=None)
def test_dense_sums_are_their_definitions(
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    z, s, keep = problem
    rows = Rows.dense(z, s, keep)
    for i in range(len(z)):
        seen, scores = z[i][keep[i]], s[i][keep[i]]
        assert rows.n[i] == len(seen)
        if not len(seen):
            assert rows.m[i] == -np.inf
            assert rows.lse[i] == -np.inf
            assert rows.top_j[i].tolist() == [-1, -1]
            continue
        e = np.exp(seen - seen.max())
        assert rows.m[i] == seen.max()
        np.testing.assert_allclose(rows.e1[i], e.sum(), rtol=1e-13)
        np.testing.assert_allclose(rows.es[i], (e * (seen - seen.max())).sum(), atol=1e-12)
        np.testing.assert_allclose(rows.e2[i], (e**2).sum(), rtol=1e-13)
        np.testing.assert_allclose(rows.e3[i], (e**3).sum(), rtol=1e-13)
        np.testing.assert_allclose(rows.mean[i], scores.mean(), atol=1e-9, rtol=1e-12)
        np.testing.assert_allclose(rows.m2[i], scores.var() * len(scores), atol=1e-6, rtol=1e-9)
        assert rows.amax[i] == np.abs(scores).max()
        assert rows.top_z[i].tolist() == sorted([*seen, -np.inf])[::-1][:2]


def test_a_sink_is_one_more_outcome_and_no_key() -> None:
    z = np.array([[[[1.0, 2.0, 0.5]]]])
    rows = Rows.dense(z, z, np.ones_like(z, bool))
    with_sink = rows.with_sink(np.array([1.5]))
    outcomes = np.array([1.0, 2.0, 0.5, 1.5])
    assert with_sink.n.item() == 3
    np.testing.assert_allclose(with_sink.lse.item(), np.log(np.exp(outcomes).sum()))
    np.testing.assert_allclose(with_sink.e2.item(), np.exp(2 * (outcomes - 2)).sum())
    assert with_sink.top_j.tolist() == [[[[1, -1]]]]
    assert rows.with_sink(np.array([-np.inf])).lse == rows.lse
    assert rows.with_sink(None) is rows


def test_a_sink_alone_is_a_row_that_sees_no_key() -> None:
    dead = Rows.empty((1, 1, 2)).with_sink(np.array([0.7]))
    assert dead.n.sum() == 0
    np.testing.assert_allclose(dead.lse, 0.7)


def test_a_constant_added_to_all_logits_moves_only_the_maximum() -> None:
    z = np.random.default_rng(0).normal(size=(3, 8))
    keep = np.ones_like(z, bool)
    rows, moved = Rows.dense(z, z, keep), Rows.dense(z + 100, z, keep)
    np.testing.assert_allclose(moved.lse, rows.lse + 100)
    for name in ("e1", "es", "e2", "e3"):
        np.testing.assert_allclose(getattr(moved, name), getattr(rows, name), rtol=1e-11)
