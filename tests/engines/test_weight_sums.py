"""Sums of weights that a backward pass makes by the way, on every build; what may be left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attncli.attention.gradients import upstream
from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.engines import Attended, How, fused, reference
from attncli.engines.fused.backward import backward
from attncli.engines.fused.forward import attend
from attncli.engines.numpy import backward as numpy_backward
from attncli.measures.evidence import Evidence
from tests.support.builds import BUILDS, needs_fused
from tests.support.problems import problems

pytestmark = needs_fused
Array = np.ndarray[Any, np.dtype[Any]]


def normal(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def hold(p: Problem, threads: int = 1) -> None:
    """Hold the sums against those of the definition's weights, and a sweep from them likewise."""
    kept = attend(p, ("row_statistics",), How(threads))
    grad = upstream("random", p)
    found = backward(p, grad, kept, ("sums",), How(threads)).sums
    assert found is not None and kept.rows is not None
    dense = reference.attend(replace(p, dtype=np.dtype(np.float64)), ("weights", "row_statistics"))
    weights, counts = dense.stages["weights"].astype(np.float64), dense.rows
    assert counts is not None
    chosen = p.real_rows[:, None] & (counts.n >= 2) & np.isfinite(kept.lse)
    weights = np.where(chosen[..., None], weights, 0)
    i, j = np.indices((p.queries, p.keys))
    offsets = p.mask.positions()
    # float32 holds a weight of 1 within 2⁻²⁴, and a logit within its own
    size = np.abs(p.query).max(initial=0) * np.abs(p.key).max(initial=0) * p.width * abs(p.scale)
    rel = 1e-5 + 1e-6 * float(size)

    def close(one: Array, other: Array, unit: float = 1.0) -> None:
        np.testing.assert_allclose(one / unit, other / unit, rel, rel)

    close(found.received, weights.sum(2), max(p.queries, 1))
    along = np.zeros_like(found.diagonals)
    np.add.at(along, (..., j - i + p.queries - 1), weights)
    close(found.diagonals, along, max(p.queries, 1))
    if offsets is not None:
        away = np.abs(i + np.array(offsets)[:, None, None, None] - j)
        close(found.distance, (weights * away).sum(-1), max(p.queries + p.keys, 1))
    np.testing.assert_array_equal(found.cells, np.where(chosen, counts.n, 0).sum(-1))
    keep = np.stack([
        np.broadcast_to(p.mask.keep(b, h, 0, p.queries, 0, p.keys), i.shape)
        for b, h in np.ndindex(p.batch, p.heads)
    ]).reshape(weights.shape)  # fmt: skip
    visible = keep & chosen[..., None]
    least, most = ((visible & (weights < 2.0**-24 * f)).sum((2, 3)) for f in (1 - rel, 1 + rel))
    assert ((least <= found.tiny) & (found.tiny <= most)).all()
    told = Evidence(p, kept.rows, kept.lse, weight_sums=found), Evidence(p, kept.rows, kept.lse)
    for name in ("received", "distance", "near", "rows", "cells", "diagonals"):
        one, other = (getattr(evidence.sweep, name) for evidence in told)
        np.testing.assert_allclose(one, other, 1e-3, 1e-4 * max(p.queries, p.keys), err_msg=name)


@pytest.mark.parametrize("name", BUILDS)
@given(problem=problems(("float32",)), threads=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_small_problems(name: str, problem: Problem, threads: int) -> None:
    assume(problem.keys and problem.queries and problem.sink is None)
    assume(np.abs(problem.query).max() * np.abs(problem.key).max() * abs(problem.scale) < 1e3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fused.VARIABLE, name)
        hold(problem, threads)


@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
@pytest.mark.parametrize("lengths", [(1, 300), (130, 130), (257, 260), (90, 33), (400, 700)])
def test_shapes_and_masks(build: str, groups: tuple[int, int], lengths: tuple[int, int]) -> None:
    (h, g), (lq, lk) = groups, lengths
    q, k, v = normal((2, h, lq, 16), (2, g, lk, 16), (2, g, lk, 24))
    for mask in (
        None,
        "causal(bottom_right)",
        "window(70, 9, top_left)",
        "random(0.3, 2)",
        "padding(7, 30)",
    ):
        p = pose(q * np.float32(3), k, v, mask=[masker(mask)] if mask else [])
        hold(p, 2)


def test_a_sink_a_softcap_and_what_is_added(build: str) -> None:
    q, k, v = normal((2, 2, 90, 16), (2, 2, 150, 16), (2, 2, 150, 8))
    added = np.where(normal((90, 150), seed=3)[0] > -1, normal((90, 150), seed=4)[0], -np.inf)
    hold(pose(q, k, v, sink=0.5))
    hold(pose(q, k, v, softcap=2.0, mask=[masker("alibi(top_left)")]))
    hold(pose(q, k, v, mask=[tensor_masker(added)]))


def test_threads_change_nothing(build: str) -> None:
    q, k, v = normal((1, 2, 400, 16), (1, 2, 400, 16), (1, 2, 400, 16))
    p = pose(q, k, v, mask=masker("causal"))
    kept, grad = attend(p, ("row_statistics",)), upstream("random", p)
    first, *others = (backward(p, grad, kept, ("sums",), How(n)).sums for n in (1, 2, 4))
    assert first is not None
    for other in others:
        for name, value in vars(first).items():
            np.testing.assert_array_equal(value, getattr(other, name), name)


def test_nobody_asked_or_nobody_knows(build: str) -> None:
    q, k, v = normal((5, 8), (5, 8), (5, 8))
    p = pose(q, k, v)
    grad = upstream("ones", p)
    assert backward(p, grad, attend(p, ("row_statistics",))).sums is None
    assert backward(p, grad, attend(p, ()), ("sums",)).sums is None


def backward_of(name: str, p: Problem, kept: Attended | None, *want: str) -> Any:
    run = backward if name == "fused" else numpy_backward.backward
    return run(p, upstream("random", p), kept, want)


@pytest.mark.parametrize("name", ["fused", "numpy"])
@pytest.mark.parametrize("mask", [None, "causal(top_left)", "random(0.3, 2)"])
def test_norms_alone_are_the_same(name: str, mask: str | None) -> None:
    q, k, v = normal((1, 4, 300, 16), (1, 2, 310, 16), (1, 2, 310, 16))
    p = pose(q, k, v, mask=[masker(mask)] if mask else [])
    whole = backward_of(name, p, None, "score_norm")
    alone = backward_of(name, p, None, "score_norm", "alone")
    np.testing.assert_array_equal(whole.score_norm, alone.score_norm)
    assert whole.query is not None and alone.query is alone.key is alone.value is None
