"""Faults of order: grouped heads, heads, batch elements, tensors in each other's place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.support.faults import Case, Generator, ask, case, fault
from tests.support.faults_kernel import Array, Question
from tests.support.faults_masks import causal


def tiled(asked: Question) -> Question:
    """Head h reads group h % G."""
    at = np.arange(asked.query.shape[1]) % asked.key.shape[1]
    return replace(asked, key=asked.key[:, at], value=asked.value[:, at])


def answered(done: Case, output: Array) -> Case:
    return Case(done.asked, {**done.answered, "output": output}, packed=done.packed)


GROUPS = r"tiled|h ?% ?G|group|repeat|kv.heads|interleav"


@fault("GQA tiled instead of repeated", GROUPS)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, heads=4, groups=2))
    return case(right, tiled(right))


@fault("GQA tiled, 8 heads of 4 groups", GROUPS)
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, heads=8, groups=4)
    return case(right, tiled(right))


@fault("GQA read as MQA: all heads read group 0", GROUPS + r"|head")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype, heads=4, groups=2)
    return case(right, replace(right, key=right.key[:, :1], value=right.value[:, :1]))


ORDER = r"transpos|order|layout|permut|swap|blhd|reshap"


@fault("output (B, L, H, D) read as (B, H, L, D)", ORDER)
def _(rng: Generator, dtype: Any) -> Case:
    """A reshape where a transpose should be."""
    done = case(causal(ask(rng, dtype)))
    output = done.answered["output"]
    return answered(done, output.swapaxes(1, 2).reshape(output.shape))


@fault("heads and queries transposed", ORDER)
def _(rng: Generator, dtype: Any) -> Case:
    """As many heads as queries: the shape does not tell."""
    done = case(causal(ask(rng, dtype, heads=16, queries=16)))
    return answered(done, done.answered["output"].swapaxes(1, 2))


@fault("packed heads in channel order", ORDER)
def _(rng: Generator, dtype: Any) -> Case:
    """``(B, L, D·H)`` in place of ``(B, L, H·D)``."""
    done = replace(case(causal(ask(rng, dtype))), packed=True)
    output = done.answered["output"]  # (B, H, L, D)
    flat = output.transpose(0, 2, 3, 1).reshape(*output.shape[:1], output.shape[2], -1)
    heads = flat.reshape(*flat.shape[:2], output.shape[1], -1)
    return answered(done, heads.swapaxes(1, 2))


@fault("heads in reverse order", r"head", ORDER + r"|revers|other head|head \d")
def _(rng: Generator, dtype: Any) -> Case:
    done = case(causal(ask(rng, dtype)))
    return answered(done, done.answered["output"][:, ::-1])


@fault("batch elements swapped", r"batch", ORDER + r"|revers|other batch|batch( element)? \d")
def _(rng: Generator, dtype: Any) -> Case:
    done = case(causal(ask(rng, dtype)))
    return answered(done, done.answered["output"][::-1])


@fault("K and V swapped", r"key|\bk\b", r"value|\bv\b", r"swap|exchang|place")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    return case(right, replace(right, key=right.value, value=right.key))


@fault("Q and K swapped", r"quer|\bq\b", r"key|\bk\b", r"swap|exchang|place|transpos")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return case(right, replace(right, query=right.key, key=right.query))


@fault("values one key late", r"value", r"shift|late|off by|key")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return case(right, replace(right, value=np.roll(right.value, 1, 2)))


@fault("one head wrong: it reads its neighbour's keys", r"head.{0,3} ?2")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    key = right.key.copy()
    key[:, 2] = key[:, 1]
    return case(right, replace(right, key=key))


@fault("one batch element wrong: it reads its neighbour's keys", r"batch( element)? 1")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, batch=3))
    key, value = right.key.copy(), right.value.copy()
    key[1], value[1] = key[0], value[0]
    return case(right, replace(right, key=key, value=value))


@fault("one head of one batch element not written", r"head.{0,3} ?3", r"batch( element)? 1")
def _(rng: Generator, dtype: Any) -> Case:
    done = case(causal(ask(rng, dtype)))
    output = done.answered["output"].copy()
    output[1, 3] = 0
    return answered(done, output)


@fault("every batch element reads the first one's keys and values", r"batch")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype, batch=3))
    return case(right, replace(right, key=right.key[[0, 0, 0]], value=right.value[[0, 0, 0]]))
