"""Faults of a backward pass behind a right forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.support.faults import Case, Generator, ask, case, fault, scaled
from tests.support.faults_kernel import Question, gradients
from tests.support.faults_layout import tiled
from tests.support.faults_masks import NO_MASK, causal, shorter
from tests.support.faults_scores import capped

ANY = "grad_.*"  # weights that are wrong show in each of them


def backward(right: Question, rng: Generator, wrong: Question | None = None, **words: bool) -> Case:
    """A right output, and gradients as told."""
    done = case(right)
    upstream = rng.standard_normal(done.answered["output"].shape).astype(right.dtype)
    found = gradients(wrong or right, upstream, np.float32, **words)
    found = {name: array.astype(right.dtype) for name, array in found.items()}
    return replace(done, answered={**done.answered, **found}, grad_output=upstream)


@fault("backward with the other corner", r"top.left", stage=ANY)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(shorter(rng, dtype), "bottom_right")
    return backward(right, rng, causal(right, "top_left"))


@fault("backward without the mask", NO_MASK, stage=ANY)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return backward(right, rng, replace(right, keep=True))


@fault("backward without the scale factor", r"scale", stage="grad_query")
def _(rng: Generator, dtype: Any) -> Case:
    return backward(causal(ask(rng, dtype)), rng, scaled=False)


@fault("backward with another scale", scaled(1.0, "scale"), stage=ANY)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return backward(right, rng, replace(right, scale=1.0))


@fault("backward without delta", r"delta|row.?sum|D_i|dO", stage="grad_query")
def _(rng: Generator, dtype: Any) -> Case:
    return backward(causal(ask(rng, dtype)), rng, delta=False)


@fault("backward without the softcap's derivative", r"softcap|tanh", stage="grad_query")
def _(rng: Generator, dtype: Any) -> Case:
    return backward(capped(rng, dtype), rng, capped=False)


@fault("dK and dV of one head of the group", r"group|first head|head", stage=ANY)
def _(rng: Generator, dtype: Any) -> Case:
    return backward(causal(ask(rng, dtype, heads=4, groups=2)), rng, summed=False)


@fault("backward with GQA tiled", r"tiled|group|repeat", stage=ANY)
def _(rng: Generator, dtype: Any) -> Case:
    """dK and dV of the tiled heads go where those heads read."""
    right = causal(ask(rng, dtype, heads=4, groups=2))
    done = backward(right, rng)
    assert done.grad_output is not None
    found = gradients(tiled(right), done.grad_output, np.float32)
    for name in ("grad_key", "grad_value"):  # head h belongs to group h % 2
        found[name] = found[name][:, :2] + found[name][:, 2:]
    found = {name: array.astype(dtype) for name, array in found.items()}
    return replace(done, answered={**done.answered, **found})


@fault("dQ and dK exchanged", r"swap|exchang|place|transpos", stage=ANY)
def _(rng: Generator, dtype: Any) -> Case:
    done = backward(causal(ask(rng, dtype)), rng)
    a = done.answered
    return replace(done, answered={**a, "grad_query": a["grad_key"], "grad_key": a["grad_query"]})
