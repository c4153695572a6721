"""Gradients of the compiled engine: any problem, on every build that runs here."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import attncli
from attncli.attention.gradients import Gradients, float_masks, upstream
from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.engines import How, fused, reference
from attncli.engines.fused.backward import backward
from attncli.engines.fused.forward import attend
from attncli.errors import Unavailable
from tests.support.builds import BUILDS, needs_fused
from tests.support.gradients_budget import assert_gradients_within_budget
from tests.support.problems import problems

pytestmark = needs_fused
Array = np.ndarray[Any, np.dtype[Any]]
NORM = ("score_norm",)
MANY = int(os.environ.get("ATTNCLI_EXAMPLES", "0"))  # problems on each build


def normal(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def close(p: Problem, grad: Array, right: Gradients | None = None, rel: float = 2e-5) -> None:
    """Hold gradients against the reference: errors in units of the largest of their kind."""
    kept = attend(p, ())
    found = backward(p, grad, kept, NORM, How(2))
    right = right or reference.backward(p, grad, want=NORM)
    for name in ("query", "key", "value", "sink", "score_norm"):
        if (truth := getattr(right, name)) is not None:
            size, said = np.abs(truth).max(initial=1e-30), f"{name} by {fused.build()[0]}"
            np.testing.assert_allclose(getattr(found, name) / size, truth / size, 0, rel, said)


@pytest.mark.parametrize("name", BUILDS)
@given(problem=problems(("float32",)), threads=st.sampled_from([1, 2, 3, 7]))
@settings(max_examples=MANY or 40, deadline=None)
def test_small_problems(name: str, problem: Problem, threads: int) -> None:
    assume(not float_masks(problem))
    grad = upstream("random", problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fused.VARIABLE, name)
        found = backward(problem, grad, None, (), How(threads))
    assert_gradients_within_budget(problem, grad, found)


@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (3, 1)])
@pytest.mark.parametrize("lengths", [(1, 300), (130, 130), (257, 260), (90, 33)])
@pytest.mark.parametrize("widths", [(64, 64), (80, 3), (1, 96)])
def test_shapes(
    monkeypatch: pytest.MonkeyPatch, groups: tuple[int, int], lengths: tuple[int, int],
    widths: tuple[int, int],
) -> None:  # fmt: skip
    (h, g), (lq, lk), (d, dv) = groups, lengths, widths
    q, k, v = normal((2, h, lq, d), (2, g, lk, d), (2, g, lk, dv))
    for mask in ("window(70, 9, top_left)", "random(0.3, 2)", "padding(7, 30)"):
        p = pose(q, k, v, mask=masker(mask), sink=0.5)
        grad = upstream("random", p)
        right = reference.backward(p, grad, want=NORM)
        for name in BUILDS:
            monkeypatch.setenv(fused.VARIABLE, name)
            close(p, grad, right)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_what_is_added_to_scores(build: str, softcap: float | None) -> None:
    q, k, v = normal((2, 2, 90, 16), (2, 2, 150, 16), (2, 2, 150, 8))
    added = np.where(normal((90, 150), seed=3)[0] > -1, normal((90, 150), seed=4)[0], -np.inf)
    for one in (masker("alibi(top_left)"), tensor_masker(added)):
        p = pose(q, k, v, mask=[one], softcap=softcap)
        close(p, upstream("random", p))


@pytest.mark.parametrize("low", [-1e9, -3.4e38])
def test_a_row_of_sentinels_that_swallow_its_scores_is_a_mean(build: str, low: float) -> None:
    q, k, v = normal((1, 1, 20, 8), (1, 1, 30, 8), (1, 1, 30, 8))
    p = pose(q, k, v, mask=tensor_masker(np.full((20, 30), np.float32(low))))
    grad = upstream("random", p)
    every = np.broadcast_to(grad.sum(2, keepdims=True) / 30, v.shape)
    np.testing.assert_allclose(backward(p, grad).value, every, 1e-4, 1e-6)


def test_threads_and_what_attend_returned_change_nothing(build: str) -> None:
    q, k, v = normal((1, 2, 400, 16), (1, 2, 400, 16), (1, 2, 400, 16))
    p = pose(q, k, v, mask=masker("causal"))
    grad = upstream("random", p)
    first = backward(p, grad, attend(p, ("row_statistics",)), NORM, How(1))
    for threads in (2, 3, 4):
        again = backward(p, grad, attend(p, ("row_statistics",)), NORM, How(threads))
        for name in ("query", "key", "value", "score_norm"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name), name)
    other = backward(p, grad)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(first, name), getattr(other, name), atol=1e-5)


def test_halves_and_empty_dimensions(build: str) -> None:
    q, k, v = normal((1, 2, 60, 16), (1, 2, 70, 16), (1, 2, 70, 4))
    p = pose(*(a.astype(np.float16) for a in (q, k, v)))
    close(p, upstream("random", p), rel=1e-4)
    for nothing in (q[:, :, :0], q):
        few = k[:, :, :0] if nothing is q else k
        p = pose(nothing, few, v[:, :, : few.shape[2]], sink=1.0)
        found = backward(p, upstream("ones", p), None, NORM)
        assert not found.query.any() and not found.key.any() and not found.value.any()


def test_masked_means_not_read_is_left_to_others(build: str) -> None:
    q, k, v = normal((5, 8), (5, 8), (5, 8))
    v[4] = np.nan
    with pytest.raises(Unavailable, match=r"take finite numbers(.|\n)*--backend numpy"):
        attncli.attend(q, k, v, mask="causal", backend="fused", want=("gradients",))
    with pytest.raises(Unavailable, match="no gradient of a mask"):
        attncli.attend(
            q, k, k, attn_mask=np.zeros((5, 5), np.float32), backend="fused", want=("grad_bias",)
        )
    got = attncli.attend(q, k, k, backend="fused", want=("gradients", "gradient_norms"))
    want = attncli.attend(q, k, k, backend="numpy", want=("gradients", "gradient_norms"))
    assert got.gradients is not None and want.gradients is not None
    np.testing.assert_allclose(got.gradients.key, want.gradients.key, atol=1e-5)
    for name, norms in want.gradient_norms.items():
        np.testing.assert_allclose(got.gradient_norms[name], norms, atol=1e-5)
