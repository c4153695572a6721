"""Gradients of engines held against the error budget, ``attncli.measures.gradient_budget``."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.attention.gradients import Gradients, float_masks
from attncli.attention.problem import Problem
from attncli.measures.budget import Way
from attncli.measures.gradient_budget import slopes
from tests.support.budget import assert_close

Array = np.ndarray[Any, np.dtype[Any]]

NAMES = ("query", "key", "value", "sink", "biases")


def over_mask(cells: Array, shape: tuple[int, ...]) -> Array:
    """Sum cells ``(B, H, Lq, Lk)`` over what a mask tensor of that shape broadcasts."""
    axes = tuple(axis for axis, n in enumerate(shape) if n == 1)
    return cells.sum(axes, keepdims=True)[..., : shape[-1]]


def assert_gradients_within_budget(
    problem: Problem, grad: Array, found: Gradients, *, reorder: int = 1
) -> None:
    """Hold gradients in the problem's shapes ``(B, H, L, D)`` against the definition."""
    shapes = float_masks(problem)
    cells, own = bool(shapes), problem.result_dtype
    right = slopes(problem, grad, np.longdouble, own=own, cells=cells)
    rng = np.random.default_rng(0)
    orders = [None, *(rng.permutation(problem.keys) for _ in range(reorder))]
    plains = [slopes(problem, grad, problem.dtype, Way(o), cells=cells).arrays for o in orders]
    for name in NAMES[:3]:
        with np.errstate(over="ignore"):
            rounded = [plain[name].astype(own) for plain in plains]
        assert_close(
            f"grad {name}", getattr(found, name), right.arrays[name], rounded, right.bands[name]
        )
    if problem.sink is not None:
        assert found.sink is not None
        sinks = [plain["sink"] for plain in plains]
        assert_close("grad sink", found.sink, right.arrays["sink"], sinks, right.bands["sink"])
    assert len(found.biases) == len(shapes)
    for shape, array in zip(shapes, found.biases, strict=True):
        truth, band = (over_mask(x["biases"], shape) for x in (right.arrays, right.bands))
        others = [over_mask(plain["biases"], shape) for plain in plains]
        assert_close("grad bias", array, truth, others, band)
