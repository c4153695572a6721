"""What is added to a score after the softcap: the language's biases, and float masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.call import Call
from attncli.attention.cells import Cells
from attncli.attention.code import Code
from attncli.attention.predicates import Bias, PerBatch, Slopes, Varies, differ

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Alibi(Bias):
    """``-slope_h * |i + offset - j|`` (Press et al. 2022). slopes: ``(H,)``."""

    slopes: tuple[float, ...]
    offset: PerBatch

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray(np.abs(i + self.offset[b] - j) * -self.slopes[h])

    def line(self, b: int, h: int, low: int, high: int) -> Array:
        return self.at(b, h, np.zeros(1, np.int64), np.arange(low, high))

    def varies(self) -> Varies:
        return Varies(batch=differ(self.offset), head=differ(self.slopes))

    def alibi(self) -> Slopes:
        return Slopes(self.slopes, self.offset)

    def code(self, code: Code) -> str:
        slopes = code.tensor("slopes", -np.asarray(self.slopes, np.float32))
        return f"{slopes}[h] * abs({code.position(self.offset)} - kv_idx)"


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Return the ``(H,)`` slopes of Press et al. 2022, also for H that is no power of two."""
    if heads < 1:
        return ()
    whole = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (k + 1) / whole) for k in range(whole)]
    slopes += [2.0 ** (-4 * (2 * k + 1) / whole) for k in range(heads - whole)]
    return tuple(slopes)


def _alibi(call: Call) -> Bias:
    heads = call.extent.heads
    slopes = tuple(call.numbers()) or alibi_slopes(heads)
    if len(slopes) == 1:
        slopes *= heads
    if len(slopes) != heads:
        call.fail(f"alibi has {len(slopes)} slopes for {heads} heads")
    return Alibi(slopes, call.offset("alibi({})"))


@dataclass(frozen=True, eq=False)
class Relative(Bias):
    """A bias by distance ``j - (i + offset)``, table ``(H or 1, 2n + 1)``; farther ones clip."""

    table: Array
    offset: PerBatch

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        reach = self.table.shape[1] // 2
        row = self.table[h if self.table.shape[0] > 1 else 0]
        distance = np.clip(j - i - self.offset[b], -reach, reach)
        return np.asarray(row[distance + reach])

    def line(self, b: int, h: int, low: int, high: int) -> Array:
        return self.at(b, h, np.zeros(1, np.int64), np.arange(low, high))

    def varies(self) -> Varies:
        return Varies(batch=differ(self.offset), head=len(self.table) > 1)


def _relative(call: Call) -> Bias:
    call.count(1, 2)
    table = call.load()
    if table.dtype.kind not in "fiu" and table.dtype.name != "bfloat16":
        call.fail(f"relative needs numbers, not {table.dtype},")
    table = np.atleast_2d(np.asarray(table, np.float64))
    if table.ndim != 2 or table.shape[1] % 2 == 0 or table.shape[0] not in (1, call.extent.heads):
        call.fail(
            f"relative has a table of shape {table.shape}, expected (2n + 1) or "
            f"({call.extent.heads}, 2n + 1),"
        )
    return Relative(table, call.offset("relative('…', {})"))


@dataclass(frozen=True, eq=False)
class Added(Bias):
    """A float mask tensor, as Cells; past its last key it adds nothing."""

    cells: Cells

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.cells.pick(b, h, i, j)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return self.cells.cut(b, h, i0, i1, j0, j1)

    def varies(self) -> Varies:
        return self.cells.varies()

    def tensor(self) -> Array:
        return self.cells.tensor


BUILDERS: dict[str, Callable[[Call], Bias]] = {"alibi": _alibi, "relative": _relative}
