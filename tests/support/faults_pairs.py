"""Two faults at once: an explanation names both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.support.faults import (
    NO_SCALE,
    NO_SINK,
    NO_SOFTCAP,
    Case,
    Generator,
    ask,
    case,
    fault,
    scaled,
)
from tests.support.faults_kernel import Kernel
from tests.support.faults_layout import GROUPS, tiled
from tests.support.faults_masks import (
    LENGTHS,
    NO_MASK,
    band,
    cached,
    causal,
    scattered,
    shorter,
    tensor,
    window,
)
from tests.support.faults_scores import sunk, turn, turning


@fault("no scale and the wrong corner", NO_SCALE, r"top.left")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(shorter(rng, dtype, size=1.0), "bottom_right")
    return case(right, replace(causal(right, "top_left"), scale=1.0))


@fault("no scale and no mask", NO_SCALE, NO_MASK)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, size=1.0))
    return case(right, replace(right, scale=1.0, keep=True))


@fault("GQA tiled and the window one too wide", GROUPS, r"window\(25|one too|off by one")
def _(rng: Generator, dtype: Any) -> Case:
    right = window(ask(rng, dtype, heads=4, groups=2))
    return case(right, replace(tiled(right), keep=band(right, 25)))


@fault("no softcap and the mask's polarity inverted", NO_SOFTCAP, r"polarity|ignore")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, size=4.0, softcap=5.0)
    right = tensor(right, scattered(rng, right))
    return case(right, replace(right, softcap=None, keep=~np.asarray(right.keep)))


@fault("no softcap and no scale", NO_SOFTCAP, NO_SCALE)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, softcap=5.0))
    return case(right, replace(right, softcap=None, scale=1.0))


@fault("RoPE interleaved and scale 1/D", r"interleaved", scaled(1 / 48, "1/D", "twice"))
def _(rng: Generator, dtype: Any) -> Case:
    right = turning(rng, dtype, width=48)
    return case(right, replace(turn(right, style="interleaved"), scale=1 / 48))


@fault("RoPE missing and GQA tiled", r"rope|rotat", GROUPS)
def _(rng: Generator, dtype: Any) -> Case:
    right = turning(rng, dtype, heads=4, groups=2)
    return case(right, replace(tiled(right), rope=None))


@fault("no sink and no causal mask", NO_SINK, NO_MASK)
def _(rng: Generator, dtype: Any) -> Case:
    right = sunk(rng, dtype)
    return case(right, replace(right, sink=None, keep=True))


@fault("no scale and softmax1", NO_SCALE, r"--sink 0|softmax1")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, size=1.0))
    return case(right, replace(right, scale=1.0, sink=np.zeros(right.shape[1])))


@fault("kv_lengths ignored and GQA tiled", LENGTHS, GROUPS)
def _(rng: Generator, dtype: Any) -> Case:
    right = cached(rng, dtype, heads=4, groups=2)
    return case(right, replace(tiled(right), keep=True))


@fault("the mask added as 0/1 and scale 1/D", r"added|0/1", scaled(1 / 64, "1/D", "twice"))
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, width=64)
    right = tensor(right, scattered(rng, right))
    return case(right, replace(right, scale=1 / 64, keep=True, bias=np.asarray(right.keep) * 1.0))


@fault("the wrong corner and one head not written", r"top.left", r"head.{0,3} ?1")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(shorter(rng, dtype), "bottom_right")
    done = case(right, causal(right, "top_left"))
    output = done.answered["output"].copy()
    output[:, 1] = 0
    return Case(right, {"output": output})


@fault("no scale and the last key tile skipped", NO_SCALE, r"key|tile")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, queries=96, keys=150, size=0.5)
    return case(right, replace(right.hiding(np.s_[128:]), scale=1.0), kernel=Kernel())
