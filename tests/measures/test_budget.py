"""The bands of the error budget: in the units of what they bound, wide enough, and no wider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.measures.budget import Way, eps, most, plain, truth, ways
from attncli.measures.gradient_budget import slopes

Array = np.ndarray[Any, np.dtype[Any]]

SINGLE, HALF = np.dtype(np.float32), np.dtype(np.float16)
STAGES = ("scores", "softcapped", "masked", "weights")
GRADIENTS = ("query", "key", "value", "sink", "biases")


def posed(q: float = 1.0, k: float = 1.0, v: float = 1.0, softcap: float | None = None) -> Problem:
    """The same problem, its tensors times these powers of two."""
    rng = np.random.default_rng(5)
    tensors = [rng.normal(size=(1, 2, 9, 8)).astype(np.float32) * by for by in (q, k, v)]
    return pose(*tensors, mask=masker("causal"), softcap=softcap, sink=[0.5, -1.0])


def bands_of(problem: Problem, own: np.dtype[Any]) -> dict[str, Array]:
    return truth(problem, 0, 0, own=own).bands


def gradients_of(problem: Problem, own: np.dtype[Any], do: float = 1.0) -> Any:
    grad = np.random.default_rng(6).normal(size=(1, 2, 9, 8)) * do
    return slopes(problem, grad, np.float64, own=own, cells=True)


@pytest.mark.parametrize("own", [SINGLE, HALF])
def test_bands_are_in_the_units_of_results(own: np.dtype[Any]) -> None:
    one, small = bands_of(posed(), own), bands_of(posed(v=1 / 64), own)
    moved = bands_of(posed(q=8, k=1 / 8), own)
    for name in ("lse", *STAGES):
        np.testing.assert_allclose(small[name], one[name], rtol=1e-6)
        np.testing.assert_allclose(moved[name], one[name], rtol=1e-6)
    floor = 2.0**-24 if own == HALF else 0  # the smallest step of a half has its own unit
    np.testing.assert_allclose(small["output"] - floor, (one["output"] - floor) / 64, rtol=1e-5)
    np.testing.assert_allclose(moved["output"], one["output"], rtol=1e-6)


@pytest.mark.parametrize("own", [SINGLE, HALF])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_bands_are_in_the_units_of_gradients(softcap: float | None, own: np.dtype[Any]) -> None:
    floor = 2.0**-24 if own == HALF else 0.0
    one = gradients_of(posed(softcap=softcap), own).bands
    units = {
        "query": (1 / 64, 1 / 8, 16), "key": (1 / 64, 8, 16), "value": (1, 1, 16),
        "sink": (1 / 64, 1, 16), "biases": (1 / 64, 1, 16),
    }  # fmt: skip
    small = gradients_of(posed(v=1 / 64, softcap=softcap), own).bands
    moved = gradients_of(posed(q=8, k=1 / 8, softcap=softcap), own).bands
    steep = gradients_of(posed(softcap=softcap), own, do=16).bands
    for name, by in units.items():
        for found, unit in zip((small, moved, steep), by, strict=True):
            right = (one[name] - floor) * unit + floor
            np.testing.assert_allclose(found[name], right, 1e-6, 1e-30, err_msg=name)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_bands_hold_what_float32_does_and_little_more(softcap: float | None) -> None:
    problem, step = posed(softcap=softcap), eps(np.float32)
    right = truth(problem, 0, 0, own=SINGLE)
    found = plain(problem, 0, 0, None, Way())
    scores, weights = right.arrays["scores"], right.arrays["weights"]
    for name in ("output", "lse", *STAGES):
        seen = np.isfinite(right.arrays[name])
        error = np.abs(found[name][seen].astype(np.float64) - right.arrays[name][seen])
        assert (error <= right.bands[name][seen]).all(), name
    # a score moves by ε of its terms, the argument of exp by ε of itself, too
    q, k, v = (a[0, 0].astype(np.float64) for a in (problem.query, problem.key, problem.value))
    reach = (np.abs(q) @ np.abs(k).T) * problem.scale
    capped, masked = (np.abs(right.arrays[name]) for name in ("softcapped", "masked"))
    top = np.maximum(right.arrays["masked"].max(-1), 0.5)  # the sink
    seen = weights > 0
    gap = np.abs(np.where(seen, right.arrays["masked"] - top[:, None], 0))
    move = 1 + reach + capped + gap
    mean = (weights * move).sum(-1)
    away = np.abs(v[None] - right.arrays["output"][:, None])  # (n, Lk, Dv)
    blended = ((weights * move)[..., None] * (away + np.abs(v))).sum(1)
    first_order = {
        "scores": reach + np.abs(scores), "softcapped": reach + 2 * capped,
        "masked": np.where(seen, move + masked, 0), "weights": weights * (2 + move + mean[:, None]),
        "lse": 1 + mean + np.abs(right.arrays["lse"]),
        "output": np.fmin(blended, 2 * np.abs(v).max(0) / step) + np.abs(right.arrays["output"]),
    }  # fmt: skip
    for name, moved in first_order.items():
        assert (right.bands[name] >= step * moved * (1 - 1e-5)).all(), name
        assert (right.bands[name] <= 1.5 * step * moved + 1e-30).all(), name


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_bands_of_gradients_hold_what_float32_does_and_little_more(softcap: float | None) -> None:
    problem, step = posed(softcap=softcap), eps(np.float32)
    right = gradients_of(problem, SINGLE)
    grad = np.random.default_rng(6).normal(size=(1, 2, 9, 8))
    found = slopes(problem, grad, np.float32, cells=True)
    # what each is summed of, without its signs
    q, k, v = (np.abs(a).astype(np.float64) for a in (problem.query, problem.key, problem.value))
    weights = np.stack([truth(problem, 0, h).arrays["weights"] for h in range(2)])[None]
    swing = np.abs(grad) @ v.swapaxes(2, 3)
    ds = weights * (swing + (weights * swing).sum(-1, keepdims=True))
    terms = {
        "query": problem.scale * ds @ k, "key": problem.scale * ds.swapaxes(2, 3) @ q,
        "value": weights.swapaxes(2, 3) @ np.abs(grad), "biases": ds,
    }  # fmt: skip
    size = 1 + float((q.max() * k.max() * 8) * problem.scale)
    for name in GRADIENTS:
        error = np.abs(found.arrays[name] - right.arrays[name])
        assert (error <= right.bands[name]).all(), name
        if name in terms:
            assert (right.bands[name] >= step * terms[name] / 2).all(), name
            assert (right.bands[name] <= 8 * step * size * terms[name] + 1e-30).all(), name


def test_plain_implementations_are_three_and_of_halves_six() -> None:
    assert [(w.low, w.tile) for w in ways(posed(), SINGLE)] == [(None, None)] * 3
    assert [w.tile for w in ways(posed(), HALF) if w.low == HALF] == [None, 9, 64]
    assert len(ways(posed(), HALF)) == 6
    assert [w.low for w in ways(posed(), HALF, low=False)] == [None] * 3


@pytest.mark.parametrize("tile", [None, 1, 2, 4, 9, 64])
def test_weights_rounded_in_tiles_move_the_output_by_a_rounding(tile: int | None) -> None:
    problem = posed()
    right = truth(problem, 0, 1, own=SINGLE).arrays
    single = plain(problem, 0, 1, None, Way(low=SINGLE, tile=tile))
    half = plain(problem, 0, 1, None, Way(low=HALF, tile=tile))
    size = np.abs(problem.value).max()
    for name in ("output", "weights"):
        np.testing.assert_allclose(single[name], right[name], atol=1e-6 * size)
        error = np.abs(half[name] - right[name])
        assert 1e-5 < error.max() < 8 * eps(HALF) * size


def test_the_yardstick_is_the_largest_error_of_each_row() -> None:
    right = np.array([[1.0, 2.0, 3.0], [0.0, np.nan, -1.0]])
    one = np.array([[1.5, 2.0, 3.0], [0.0, 5.0, np.inf]])
    two = np.array([[1.0, 2.0, 2.75], [0.0, 1.0, -1.0]])
    assert most(right, [one, two]).tolist() == [[0.5], [0.0]]
    assert most(right, [two]).tolist() == [[0.25], [0.0]]
    assert most(right[:, 0], [one[:, 0], two[:, 0]]).tolist() == [0.5, 0.0]
    assert most(right, []).tolist() == [[0.0], [0.0]]
