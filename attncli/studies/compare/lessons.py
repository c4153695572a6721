"""What goes wrong in an attention that somebody writes for the first time: axes, masks, softmax.

Models of faulty programs, as in ``faults``; they need a whole head, so small ones are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.studies.compare.suspects import Suspect

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]

LARGEST = 1 << 14  # cells of a head


def lesson_suspects(p: Problem) -> Iterator[Suspect]:
    """Yield the faults that could show in output or weights."""
    if p.sink is not None or min(p.queries, p.keys) < 2:
        return
    yield Suspect("sum", "there is no softmax: the scores are the weights", after=_scores)
    if not p.mask.has_bias and not p.mask.predicate.everything():
        yield Suspect(
            "sum", "the mask is applied after the softmax: what it leaves no longer sums to 1",
            after=_masked_last,
        )  # fmt: skip
    if p.queries * p.keys > LARGEST:
        return
    yield Suspect("sum", "the softmax runs over the queries, not over the keys", after=_columns)
    if p.queries == p.keys:
        yield Suspect("sum", "the weights are transposed", after=_transposed)


def _output(p: Problem, b: int, h: int, weights: Array) -> Arrays:
    value = p.value[b, p.group(h)].astype(weights.dtype)
    return {"weights": weights, "output": weights @ np.where(np.isfinite(value), value, 0)}


def _scores(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    return _output(p, b, h, np.where(np.isneginf(a["masked"]), 0, a["masked"]))


def _masked_last(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    z = stages(p, b, h, rows)["softcapped"]
    e = np.exp(z - z.max(-1, keepdims=True))
    weights = np.where(np.isneginf(a["masked"]), 0, e / e.sum(-1, keepdims=True))
    return _output(p, b, h, weights.astype(a["weights"].dtype))


def _columns(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    z = stages(p, b, h)["masked"]  # (Lq, Lk)
    top = z.max(0, initial=-np.inf)
    e = np.exp(z - np.where(np.isneginf(top), 0, top))
    total = e.sum(0)
    weights = (e / np.where(total == 0, 1, total))[rows]
    return _output(p, b, h, weights.astype(a["weights"].dtype))


def _transposed(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    weights = stages(p, b, h)["weights"].T[rows]
    return _output(p, b, h, weights.astype(a["weights"].dtype))
