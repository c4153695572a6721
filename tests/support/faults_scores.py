"""Faults of the numbers: scale, softcap, sink, lse, RoPE, precision."""

from __future__ import annotations

import math
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
    option,
    scaled,
)
from tests.support.faults_kernel import Array, Kernel, Question, Turn
from tests.support.faults_masks import causal, decoding

# -- scale


@fault("scale none", NO_SCALE)
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    return case(right, replace(right, scale=1.0))


@fault("scale none, seen in the scores", NO_SCALE, stage="scores")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return case(right, replace(right, scale=1.0), names=("scores", "weights", "output"))


@fault("scale 1/D", scaled(1 / 48, r"1/D\b", "1/48", "twice", "squared"))
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, width=48)
    return case(right, replace(right, scale=1 / 48))


@fault("scale 1/√ of the model's width", scaled(1 / math.sqrt(192), "model", "all heads", "192"))
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, heads=4, width=48)
    return case(right, replace(right, scale=1 / math.sqrt(192)))


@fault("scale applied twice", scaled(0.09, "twice", "squared"))
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, width=48, scale=0.3)
    return case(right, replace(right, scale=0.09))


@fault("scale multiplied instead of divided", scaled(math.sqrt(32), "multipl", r"√32", r"√D"))
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, width=32, size=0.3)
    return case(right, replace(right, scale=math.sqrt(32)))


@fault("given scale ignored", scaled(1 / math.sqrt(64), r"--scale auto", "default", "ignored"))
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, width=64, scale=0.2)
    return case(right, replace(right, scale=None))


@fault(
    "exp2 without log2 e",
    scaled(math.log(2) / math.sqrt(64), r"exp2|log2|base 2|base.two|2\^|2\*\*|ln ?\(?2"),
)
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype, width=64), kernel=Kernel(log2e=False))


# -- softcap


def capped(rng: Generator, dtype: Any, **rest: Any) -> Question:
    """Logits that the cap bends."""
    return causal(ask(rng, dtype, size=4.0, softcap=5.0, **rest))


@fault("softcap missing", NO_SOFTCAP)
def _(rng: Generator, dtype: Any) -> Case:
    right = capped(rng, dtype)
    return case(right, replace(right, softcap=None))


@fault(
    "softcap after the mask", r"softcap.*after|after.*softcap|mask.*before.*softcap|hidden.*softcap"
)
def _(rng: Generator, dtype: Any) -> Case:
    return case(capped(rng, dtype), kernel=Kernel(softcap="after mask"))


@fault(
    "softcap before the scale",
    option("--softcap", 5 / 8, r"softcap.*before.*scale|scale.*after.*softcap|softcap.*unscaled"),
)
def _(rng: Generator, dtype: Any) -> Case:
    return case(capped(rng, dtype, width=64), kernel=Kernel(softcap="before scale"))


@fault("another softcap", option("--softcap", 30.0))
def _(rng: Generator, dtype: Any) -> Case:
    """50 and 30: Gemma 2's two caps."""
    right = causal(ask(rng, dtype, size=30.0, softcap=50.0))
    return case(right, replace(right, softcap=30.0))


@fault("softcap that nobody asked for", option("--softcap", 50.0))
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, size=30.0))
    return case(right, replace(right, softcap=50.0))


# -- sink


def sunk(rng: Generator, dtype: Any) -> Question:
    right = causal(ask(rng, dtype))
    return replace(right, sink=rng.uniform(1, 4, right.shape[1]))


@fault("sink missing", NO_SINK)
def _(rng: Generator, dtype: Any) -> Case:
    right = sunk(rng, dtype)
    return case(right, replace(right, sink=None))


@fault("softmax1 where none was asked", r"--sink 0|softmax1")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return case(right, replace(right, sink=np.zeros(right.shape[1])))


@fault("softmax1 in place of the sinks", r"--sink 0|softmax1")
def _(rng: Generator, dtype: Any) -> Case:
    right = sunk(rng, dtype)
    return case(right, replace(right, sink=np.zeros(right.shape[1])))


@fault("sink scaled like a score", r"sink|denominator")
def _(rng: Generator, dtype: Any) -> Case:
    right = sunk(rng, dtype)
    return case(right, replace(right, sink=np.asarray(right.sink) * right.factor))


@fault("sinks of other heads", r"sink|denominator")
def _(rng: Generator, dtype: Any) -> Case:
    right = sunk(rng, dtype)
    return case(right, replace(right, sink=np.roll(np.asarray(right.sink), 1)))


# -- lse


def lse_is(done: Case, lse: Array) -> Case:
    return Case(done.asked, {**done.answered, "lse": lse.astype(done.answered["lse"].dtype)})


def with_lse(right: Question) -> Case:
    return case(right, names=("output", "lse"))


@fault("lse in base 2", r"base 2|log2|ln ?\(?2|1\.44", stage="lse")
def _(rng: Generator, dtype: Any) -> Case:
    done = with_lse(causal(ask(rng, dtype)))
    return lse_is(done, done.answered["lse"] / math.log(2))


@fault("lse of the unscaled scores", r"lse.*scale|scale.*lse", stage="lse")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    unscaled = Kernel()(replace(right, scale=1.0))
    return lse_is(with_lse(right), unscaled["lse"])


@fault("lse with the scale taken out", r"lse.*scale|scale.*lse", stage="lse")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    done = with_lse(right)
    return lse_is(done, done.answered["lse"] / right.factor)


@fault("lse whose maximum is unscaled", r"lse.*(scale|max)|(scale|max).*lse", stage="lse")
def _(rng: Generator, dtype: Any) -> Case:
    """m + log Σ exp(scale·(q·k − m)): the m of q·k, not of the scores."""
    right = causal(ask(rng, dtype))
    done, (q, k, _) = with_lse(right), right.wide(np.float32)
    top = np.where(right.keep, q @ k.swapaxes(-1, -2), -np.inf).max(-1)
    return lse_is(done, done.answered["lse"] + (1 - right.factor) * top)


@fault("lse without the sink", r"sink", stage="lse")
def _(rng: Generator, dtype: Any) -> Case:
    right = sunk(rng, dtype)
    return lse_is(with_lse(right), Kernel()(replace(right, sink=None))["lse"])


@fault("lse is the sum's log alone", r"lse.*max|max.*lse", stage="lse")
def _(rng: Generator, dtype: Any) -> Case:
    """log Σ exp(z − m) without m."""
    right = causal(ask(rng, dtype))
    done, (q, k, _) = with_lse(right), right.wide(np.float32)
    scores = q @ k.swapaxes(-1, -2) * np.float32(right.factor)
    return lse_is(done, done.answered["lse"] - np.where(right.keep, scores, -np.inf).max(-1))


# -- RoPE


def turning(rng: Generator, dtype: Any, **rest: Any) -> Question:
    right = causal(ask(rng, dtype, **rest))
    return replace(right, rope=Turn(np.arange(right.shape[2]), np.arange(right.shape[3])))


def turn(asked: Question, **words: Any) -> Question:
    assert asked.rope is not None
    return replace(asked, rope=replace(asked.rope, **words))


def turning_cache(rng: Generator, dtype: Any) -> Question:
    right = decoding(rng, dtype)
    at = np.arange(right.shape[3])
    return replace(right, rope=Turn(at[right.past :], at))


@fault("RoPE interleaved for half", r"interleaved")
def _(rng: Generator, dtype: Any) -> Case:
    right = turning(rng, dtype)
    return case(right, turn(right, style="interleaved"))


@fault("RoPE half for interleaved", r"--rope half|half")
def _(rng: Generator, dtype: Any) -> Case:
    right = turn(turning(rng, dtype), style="interleaved")
    return case(right, turn(right, style="half"))


@fault(
    "RoPE missing",
    r"--rope none|(rope|rotat\w+).*(missing|ignored|left out)|(no|without) (rope|rotation)",
)
def _(rng: Generator, dtype: Any) -> Case:
    right = turning(rng, dtype)
    return case(right, replace(right, rope=None))


@fault("RoPE of another theta", r"theta|θ")
def _(rng: Generator, dtype: Any) -> Case:
    right = turning(rng, dtype)
    return case(right, turn(right, theta=500000.0))


@fault("RoPE positions not shifted by the cache", r"position|past|cache")
def _(rng: Generator, dtype: Any) -> Case:
    """Queries and new keys begin at 0 again; the cache holds 0 … too."""
    right = turning_cache(rng, dtype)
    at, past = np.arange(right.shape[3]), right.past
    return case(
        right, turn(right, at_query=at[past:] - past, at_key=np.where(at < past, at, at - past))
    )


@fault("RoPE on queries alone", r"key|rope|rotat|turn")
def _(rng: Generator, dtype: Any) -> Case:
    right = turning(rng, dtype)
    return case(right, turn(right, at_key=np.zeros(right.shape[3])))


@fault("K cache not rotated", r"cache|past", r"rope|rotat|turn")
def _(rng: Generator, dtype: Any) -> Case:
    right = turning_cache(rng, dtype)
    at = np.arange(right.shape[3])
    return case(right, turn(right, at_key=np.where(at < right.past, 0, at)))


@fault("RoPE's scaling ignored", r"scaling|factor")
def _(rng: Generator, dtype: Any) -> Case:
    """Linear, by 4: positions are not divided."""
    right = turn(turning(rng, dtype), factor=4.0)
    return case(right, turn(right, factor=1.0))


@fault("RoPE of all channels instead of the first 16", r"rope.dim|channels|partial")
def _(rng: Generator, dtype: Any) -> Case:
    """Partial rotary, as GPT-NeoX and Phi have it."""
    right = turn(turning(rng, dtype), dim=16)
    return case(right, turn(right, dim=None))


# -- precision

LOW = r"precision|float16|bfloat16|half|rounded|dtype"


@fault("output accumulated in bfloat16", LOW, hidden=("bfloat16",))
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype), kernel=Kernel(tile_k=16, accumulator="bfloat16"))


@fault("output accumulated in float16", LOW, hidden=("float16", "bfloat16"))
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype), kernel=Kernel(tile_k=16, accumulator="float16"))


@fault("softmax in bfloat16", LOW, hidden=("float16", "bfloat16"))
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype), kernel=Kernel(softmax="bfloat16"))


@fault("scores rounded to bfloat16", LOW, hidden=("bfloat16",))  # as eager code in bfloat16
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype, size=8.0), kernel=Kernel(scores="bfloat16"))


@fault("scores overflow float16", r"overflow|nan|inf|float16|65504")
def _(rng: Generator, dtype: Any) -> Case:
    """Raw q·k of standard deviation 30000."""
    right = ask(rng, dtype, width=64)
    by = np.asarray(30000 / 16, np.float32)  # they had 2·√64
    big = (right.query.astype(np.float32) * by).astype(dtype)
    return case(replace(right, query=big, scale=1e-4), kernel=Kernel(scores="float16"))


@fault("maximum not subtracted", r"max|overflow|nan|inf")
def _(rng: Generator, dtype: Any) -> Case:
    return case(ask(rng, dtype, size=40.0), kernel=Kernel(subtract=False))
