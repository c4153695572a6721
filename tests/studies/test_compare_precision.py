"""Which number a program rounds to a half is told by the errors that this makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import attncli

TILE = 16
Low = Callable[[Any], Any]


def online(q: Any, k: Any, v: Any, **low: Low) -> tuple[Any, Any]:
    """Output and lse in tiles of keys, float32; ``low`` rounds z, e, p (e before V) or the sums."""
    z, e, p, total = (low.get(name, lambda x: x) for name in ("z", "e", "p", "sums"))
    scores = z(q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(q.shape[-1])))
    top = np.full((*q.shape[:-1], 1), -np.inf, np.float32)
    below = np.zeros_like(top)
    above = np.zeros((*q.shape[:-1], v.shape[-1]), np.float32)
    for j in range(0, k.shape[-2], TILE):
        part = scores[..., j : j + TILE]
        new = np.maximum(top, part.max(-1, keepdims=True))
        made, shrink = e(np.exp(part - new)), np.exp(top - new)
        below = below * shrink + made.sum(-1, keepdims=True)
        above = total(above * shrink + p(made) @ v[..., j : j + TILE, :])
        top = new
    return above / below, (top + np.log(below))[..., 0]


def bfloat16(x: Any) -> Any:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("z", "each logit is rounded to bfloat16"),
        ("e", "the exp of the scores, in tiles of 16 keys, is rounded to bfloat16"),
        ("p", "the exp that the values are multiplied by, in tiles of 16 keys, is rounded to bfl"),
        ("sums", "the accumulator, in tiles of 16 keys, is rounded to bfloat16"),
    ],
)
@pytest.mark.parametrize("lse", [False, True], ids=["output", "both"])
def test_the_number_that_is_rounded_is_named(what: str, said: str, lse: bool) -> None:
    q, k, v = np.random.default_rng(4).normal(size=(3, 4, 70, 32)).astype(np.float32)
    problem = {"query": q, "key": k, "value": v}
    output, logs = online(q, k, v)
    given = {"output": output, "lse": logs} if lse else {"output": output}
    assert attncli.compare(given, problem).passed
    output, logs = online(q, k, v, **{what: bfloat16})
    given = {"output": output, "lse": logs} if lse else {"output": output}
    found = attncli.compare(given, problem)
    assert f"low precision: {said}" in found.sentence
