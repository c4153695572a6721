"""Predicates and biases that nobody asks for: masks as faulty programs apply them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import Bias, Predicate
from attncli.attention.problem import Problem
from attncli.attention.softcap import softcapped

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Transposed(Predicate):
    """Query i sees key j where key i was to be seen by query j; queries are as many as keys."""

    of: Predicate

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        rows, keys = np.broadcast_arrays(i, j)
        return np.asarray(self.of.allows(b, h, keys, rows))


@dataclass(frozen=True, eq=False)
class Added01(Bias):
    """A mask added to the scores as numbers, hiding nothing: ``kept`` where it keeps."""

    mask: Mask
    kept: float = 1.0
    hidden: float = 0.0

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.where(self.mask.predicate.allows(b, h, i, j), self.kept, self.hidden)


@dataclass(frozen=True, eq=False)
class Times(Bias):
    """A bias multiplied."""

    of: Bias
    factor: float

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray(self.of.at(b, h, i, j) * self.factor)


@dataclass(frozen=True, eq=False)
class HiddenAt(Bias):
    """What gives hidden keys the logit ``value`` in place of −∞, whatever their score."""

    problem: Problem
    value: float

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        p = self.problem
        keep = p.mask.predicate.allows(b, h, i, j)
        rows, keys = np.ravel(i), np.ravel(j)
        q = p.query[b, h][rows].astype(np.float64)
        k = p.key[b, p.group(h)][keys].astype(np.float64)
        with np.errstate(all="ignore"):
            logits = softcapped((q @ k.T) * p.scale, p.softcap)  # (n, Lk)
            if p.mask.has_bias:
                logits = logits + sum(bias.at(b, h, i, j) for bias in p.mask.biases)
        return np.where(keep, 0, self.value - logits)
