"""Writes predicates and biases as Python over ``b, h, q_idx, kv_idx``, torch's FlexAttention's way.

Each writes itself by indices (its method ``code``); one that does not is looked up in a tensor of
its cells, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Coded(Protocol):
    """What can write itself, or says None."""

    def code(self, code: Code) -> str | None: ...


class Code:
    """Writes expressions; ``tensors`` are those that they read, by name.

    ``keep`` and ``add`` return the cells of a predicate, bool, and of a bias, float:
    ``(B or 1, H or 1, Lq, Lk)``.
    """

    def __init__(self, keep: Callable[[Any], Array], add: Callable[[Any], Array]) -> None:
        self.keep, self.add = keep, add
        self.tensors: dict[str, Array] = {}

    def tensor(self, name: str, array: Array) -> str:
        """Return the name under which code finds the array; the same array has one name."""
        for other, known in self.tensors.items():
            if known.dtype == array.dtype and np.array_equal(known, array):
                return other
        unique = name
        while unique in self.tensors:
            unique = f"{name}{len(self.tensors)}"
        self.tensors[unique] = np.ascontiguousarray(array)
        return unique

    def each(self, name: str, numbers: tuple[int, ...]) -> str:
        """Return the number of the batch element, written out where all are alike."""
        if len(set(numbers)) == 1:
            return str(numbers[0])
        return f"{self.tensor(name, np.asarray(numbers, np.int64))}[b]"

    def position(self, offset: tuple[int, ...]) -> str:
        """Return the position of the query among the keys."""
        return self.plus("q_idx", self.each("offset", offset))

    @staticmethod
    def plus(expression: str, number: str) -> str:
        """Return the sum, without adding 0 or a negative number."""
        if number == "0":
            return expression
        return f"{expression} - {number[1:]}" if number[0] == "-" else f"{expression} + {number}"

    def allowed(self, predicate: Coded) -> str:
        """Return what is true where the predicate allows."""
        return predicate.code(self) or self._look_up("keep", self.keep(predicate))

    def bias(self, bias: Coded) -> str:
        """Return what the bias adds."""
        return bias.code(self) or self._look_up("bias", self.add(bias))

    def _look_up(self, name: str, array: Array) -> str:
        indices = zip(array.shape[:3], ("b", "h", "q_idx"), strict=True)
        where = [index if size > 1 else "0" for size, index in indices]
        return f"{self.tensor(name, array)}[{', '.join(where)}, kv_idx]"
