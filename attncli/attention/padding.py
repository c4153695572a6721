"""Padding: which keys are real, and with them which queries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from attncli.attention.call import Call
from attncli.attention.code import Code
from attncli.attention.masks import lengths_of
from attncli.attention.predicates import PerBatch, Predicate, Spans, Varies, clip, summary

SHORT = 64  # keys of all batch elements that an expression lists one by one

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Padding(Predicate):
    """Keys that are real; the others are padding, as queries too. real: bool ``(B, Lk)``."""

    real: Array

    @cached_property
    def _before(self) -> Array:
        """How many real keys come before each, ``(B, Lk + 1)``."""
        return np.pad(self.real.cumsum(-1), ((0, 0), (1, 0)))

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray(self.real[b][j])

    def tiles(self, b: int, h: int, i0: int, i1: int, edges: Array) -> Array:
        count = np.diff(self._before[b][edges])
        return summary(count == 0, count == np.diff(edges))

    def spans(self, b: int, h: int, i0: int, i1: int, keys: int) -> Spans:
        hit = np.flatnonzero(self.real[b])
        return clip(int(hit[0]), int(hit[-1]) + 1, keys) if hit.size else ()

    def varies(self) -> Varies:
        return Varies(batch=not (self.real == self.real[:1]).all(), head=False, row=False)

    def keys_below(self) -> PerBatch | None:
        return lengths_of(self.real)

    def padding(self) -> Array:
        return self.real

    def code(self, code: Code) -> str:
        lengths = self.keys_below()
        if lengths is not None:
            return f"kv_idx < {code.each('lengths', lengths)}"
        return f"{code.tensor('real', self.real)}[b, kv_idx]"


def padding_text(real: Array) -> str | None:
    """Return the expression for keys of which ``(B, Lk)`` are real, if there is one."""
    for side, seen in (("", real), (", left", real[:, ::-1])):
        lengths = lengths_of(seen)
        if lengths is not None:
            return f"padding({', '.join(map(str, lengths))}{side})"
    return f"padding({real.astype(int).tolist()})" if real.size <= SHORT else None


def padding(call: Call) -> Predicate:
    """Build ``padding(n, …)``, ``padding(n, …, left)`` or ``padding('file')``."""
    extent = call.extent
    array = call.values()
    if array.ndim == 2:
        return Padding(_real(call, array))
    lengths = call.integers(array)
    if lengths.ndim != 1 or len(lengths) not in (1, extent.batch):
        call.fail(f"padding has {lengths.size} lengths for a batch of {extent.batch}")
    wrong = (lengths < 0) | (lengths > extent.keys)
    if wrong.any():
        call.fail(f"padding has a length of {lengths[wrong][0]}, outside 0…{extent.keys},")
    real = np.arange(extent.keys) < np.broadcast_to(lengths, extent.batch)[:, None]
    return Padding(real[:, ::-1] if call.last == "left" else real)


def _real(call: Call, array: Array) -> Array:
    """Return which keys are real, bool ``(B, Lk)``, where a file says it of each."""
    extent = call.extent
    if call.last is not None:
        call.fail(f"padding with {call.last} needs lengths, not a tensor {array.shape},")
    if array.shape not in ((1, extent.keys), (extent.batch, extent.keys)):
        call.fail(f"padding is {array.shape}, not (batch, keys) {extent.batch, extent.keys},")
    if not ((array == 0) | (array == 1)).all():
        call.fail("padding of (batch, keys) needs 0 and 1, or bool: True = real,")
    return np.broadcast_to(array != 0, (extent.batch, extent.keys))
