"""Faults of a tiled kernel: tiles skipped or not written, sums not rescaled, channels, dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.support.faults import Case, Generator, ask, case, fault
from tests.support.faults_kernel import Kernel
from tests.support.faults_layout import answered
from tests.support.faults_masks import causal

KEYS = r"key|tile"


def first_of_last_tile(length: int, tile: int = 64) -> int:
    return (length - 1) // tile * tile


@fault(
    "last partial key tile skipped",
    KEYS,
    r"skipp|miss|ignor|never|not (read|seen|visited)|left out|last",
)
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, queries=96, keys=int(rng.choice([150, 188])))
    return case(right, right.hiding(np.s_[first_of_last_tile(right.shape[3]) :]))


@fault("last key skipped", KEYS, r"last|skipp|miss|ignor|\d")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, queries=96, keys=int(rng.choice([150, 188])))
    return case(right, right.hiding(np.s_[-1:]))


@fault("last key of 2000 skipped", KEYS, r"last|1999")
def _(rng: Generator, dtype: Any) -> Case:
    """A fault as small as they come: a row loses 1/2000 of its weight."""
    right = ask(rng, dtype, batch=1, queries=32, keys=2000, size=1.0)
    return case(right, right.hiding(np.s_[-1:]))


@fault("a key tile skipped in the middle", KEYS, r"64")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, queries=96, keys=200)
    return case(right, right.hiding(np.s_[64:128]))


@fault("a key tile skipped for one tile of queries", KEYS, r"64")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, queries=200))
    return case(right, right.hiding(np.s_[64:128], np.s_[128:192]))


@fault("a key tile seen twice", KEYS, r"64|twice")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, queries=96, keys=200)
    bias = np.zeros(200)
    bias[64:128] = np.log(2)
    return case(right, replace(right, bias=bias))


@fault("padding of the last key tile not masked", KEYS + r"|pad", r"pad|last|zero|more|extra")
def _(rng: Generator, dtype: Any) -> Case:
    """The tile is filled with zeros, and they are seen: logits of 0, values of 0."""
    right = ask(rng, dtype, queries=96, keys=150)
    room = ((0, 0), (0, 0), (0, 42), (0, 0))
    return case(right, replace(right, key=np.pad(right.key, room), value=np.pad(right.value, room)))


ROWS = r"quer|row|tile"


@fault("last partial query tile not written", ROWS, r"zero|not written|never|written|\b(128|192)\b")
def _(rng: Generator, dtype: Any) -> Case:
    done = case(causal(ask(rng, dtype)))
    output = done.answered["output"].copy()
    output[:, :, first_of_last_tile(output.shape[2]) :] = 0
    return answered(done, output)


@fault("a query tile never written", ROWS, r"64")
def _(rng: Generator, dtype: Any) -> Case:
    """What is not written holds what was there before."""
    done = case(causal(ask(rng, dtype)))
    output = done.answered["output"].copy()
    output[:, :, 64:128] = rng.standard_normal(output[:, :, 64:128].shape).astype(dtype)
    return answered(done, output)


RESCALE = r"rescal|running max|online|maximum"


@fault("accumulator not rescaled", RESCALE)
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype), kernel=Kernel(rescale_output=False))


@fault("denominator not rescaled", RESCALE)
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype), kernel=Kernel(rescale_sum=False))


@fault("neither rescaled", RESCALE)
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype), kernel=Kernel(rescale_sum=False, rescale_output=False))


@fault("not divided by the sum", r"divi|normali[sz]|denominator")
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype), kernel=Kernel(divide=False))


@fault("output off by a constant factor", r"factor|times|constant|multipl|0\.5\b|half")
def _(rng: Generator, dtype: Any) -> Case:
    """A descale of V that was forgotten."""
    done = case(causal(ask(rng, dtype)))
    return answered(done, (done.answered["output"].astype(np.float32) / 2).astype(dtype))


CHANNELS = r"channel|width|\bD\b"


@fault("last channels left out of q·k", CHANNELS)
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, width=80)
    query = right.query.copy()
    query[..., 64:] = 0
    return case(right, replace(right, query=query))


@fault("last channels of V not written", CHANNELS, r"64")
def _(rng: Generator, dtype: Any) -> Case:
    done = case(causal(ask(rng, dtype, width=80)))
    output = done.answered["output"].copy()
    output[..., 64:] = 0
    return answered(done, output)


@fault("dropout left on", r"dropout|random")
def _(rng: Generator, dtype: Any) -> Case:
    return case(causal(ask(rng, dtype)), kernel=Kernel(drop=0.1), rng=rng)


@fault("dropout left on, seen in the weights", r"dropout|random", stage="weights")
def _(rng: Generator, dtype: Any) -> Case:
    done = case(causal(ask(rng, dtype)), names=("weights", "output"))
    weights = done.answered["weights"].astype(np.float32)
    weights = (weights * (rng.random(weights.shape) >= 0.1) / 0.9).astype(np.float32)
    output = weights @ done.asked.wide(np.float32)[2]
    return Case(done.asked, {"weights": weights.astype(dtype), "output": output.astype(dtype)})


@fault("noise on one row", r"(row|query)\D{0,12}77|77")
def _(rng: Generator, dtype: Any) -> Case:
    """A race: one row of one head holds another row's sums."""
    done = case(causal(ask(rng, dtype)))
    output = done.answered["output"].copy()
    output[0, 1, 77] = output[0, 1, 78]
    return answered(done, output)
