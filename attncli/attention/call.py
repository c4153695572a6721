"""One mask of an expression: its arguments, read and checked, and errors that point at them."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from attncli.attention.masks import Extent
from attncli.attention.predicates import FAR
from attncli.attention.words import MASKS
from attncli.errors import MaskError

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 2**53


def _excerpt(text: str, start: int, stop: int) -> tuple[str, int, int]:
    """Return the text around start:stop in at most about 60 characters, and the new places."""
    if len(text) <= 60:
        return text, start, stop
    first, last = max(0, start - 25), min(len(text), start + 30)
    head, tail = "…" if first else "", "…" if last < len(text) else ""
    shift = len(head) - first
    return head + text[first:last] + tail, start + shift, min(stop, last) + shift


def point(text: str, start: int, stop: int, what: str, hint: str) -> NoReturn:
    """Raise MaskError that says what is wrong at characters start:stop of an expression."""
    shown, start, stop = _excerpt(text, start, max(stop, start + 1))
    message = f"{what} in: {shown}"
    # the carets stand under the place: a hint is shown below the message, at the same indent
    indent = " " * (len(message) - len(shown) + start)
    raise MaskError(message, f"{indent}{'^' * (stop - start)} {hint}")


def point_at(text: str, node: ast.expr, what: str, hint: str) -> NoReturn:
    """Raise MaskError that points at a node of the expression."""
    raw = text.encode()  # ast counts bytes
    start = len(raw[: node.col_offset].decode(errors="ignore"))
    stop = len(raw[: node.end_col_offset].decode(errors="ignore"))
    point(text, start, stop, what, hint)


@dataclass(frozen=True)
class Call:
    """One mask of an expression: its literal arguments, the last word, and where it stands.

    ``notes`` grows with what was read in one of two ways.
    """

    name: str
    args: tuple[Any, ...]
    nodes: tuple[ast.expr, ...]
    last: str | None
    usual_corner: str | None  # the only one that the expression names anywhere
    node: ast.expr
    text: str
    extent: Extent
    notes: list[str] = field(default_factory=list)

    def fail(self, what: str, argument: int | None = None) -> NoReturn:
        """Raise MaskError that points at this mask or at one argument."""
        node = self.node if argument is None else self.nodes[argument]
        point_at(self.text, node, what, f"expected {MASKS[self.name].forms}")

    def count(self, low: int, high: int | None = None) -> None:
        """Fail unless the number of arguments lies between low and high."""
        high = low if high is None else high
        if not low <= len(self.args) <= high:
            some = str(low) if low == high else f"{low} to {high}"
            self.fail(f"{self.name} has {len(self.args)} arguments instead of {some}")

    def whole(self, k: int, low: int = 0, *, infinite: bool = False) -> int:
        """Return argument k as an integer of at least ``low``, FAR for inf."""
        value = self.args[k]
        if infinite and value == math.inf:
            return FAR
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{self.name} needs a whole number, not {value!r},", k)
        if infinite and value == -1:
            self.fail(
                f"{self.name} needs at least 0: an open side, -1 in flash-attention and ONNX, "
                "is inf here,",
                k,
            )
        if value < low:
            self.fail(f"{self.name} needs at least {low}, not {value},", k)
        if abs(value) > LARGEST:
            self.fail(f"{self.name} needs at most {LARGEST}, not so large a number,", k)
        return int(value)

    def numbers(self) -> list[float]:
        """Return all arguments as floats."""
        for k, value in enumerate(self.args):
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.fail(f"{self.name} needs numbers, not {value!r},", k)
            if not abs(value) <= 1e300:
                self.fail(f"{self.name} needs finite numbers,", k)
        return [float(value) for value in self.args]

    def lists(self, skip: int = 0) -> list[Array]:
        """Return the lists among the arguments from ``skip`` on, as int64 or as files have them.

        Numbers written out are one list; a tuple is one, and so is a file.
        """
        args = self.args[skip:]
        if not args:
            self.fail(f"{self.name} has no arguments")
        if not any(isinstance(value, str | tuple) for value in args):
            return [np.array([self.whole(k) for k in range(skip, len(self.args))], np.int64)]
        return [self._list(k) for k in range(skip, len(self.args))]

    def values(self, skip: int = 0) -> Array:
        """Return the one list that the arguments from ``skip`` on give, as ``lists`` does."""
        found = self.lists(skip)
        if len(found) != 1:
            self.fail(f"{self.name} has {len(found)} lists instead of 1")
        return found[0]

    def _list(self, k: int) -> Array:
        value = self.args[k]
        if isinstance(value, str):
            return self._read(value)
        if not isinstance(value, tuple):
            self.fail(f"{self.name} has numbers beside lists,", k)
        try:
            array = np.array(value)
        except (ValueError, OverflowError):
            self.fail(f"{self.name} needs lists of one length,", k)
        if array.dtype.kind not in "iu" or (array < 0).any() or (array > LARGEST).any():
            self.fail(f"{self.name} needs whole numbers from 0 to {LARGEST},", k)
        return array.astype(np.int64)

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the lists that tell sizes (``Word.tells``)."""
        word = MASKS[self.name]
        args = self.args[word.skip :]
        if not args or not word.tells:
            return []
        if word.path:
            return [self.load().shape]
        if not any(isinstance(value, str | tuple) for value in args):
            return [(len(args),)]
        return [array.shape for array in self.lists(word.skip)]

    def load(self) -> Array:
        """Return the tensor of the file that the arguments name: a path, or path and name."""
        for k, value in enumerate(self.args):
            if not isinstance(value, str):
                self.fail(f"{self.name} needs a file name in quotes, not {value!r},", k)
        return self._read("::".join(self.args))

    def _read(self, ref: str) -> Array:
        from attncli import files

        return files.read_tensor(ref, regular=ref != "-")

    def integers(self, array: Array) -> Array:
        """Return the array as int64 or fail when it holds something else."""
        if array.dtype.kind == "f" and np.all(array == np.floor(array)):
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            self.fail(f"{self.name} needs whole numbers, not {array.dtype},")
        return array.astype(np.int64)

    def offset(self, form: str) -> tuple[int, ...]:
        """Return the position of query 0 by the corner that is written, or by the extent."""
        try:
            return self.extent.offsets(self.last, form)
        except MaskError:
            if self.usual_corner is None:
                raise
            return self.extent.offsets(self.usual_corner)
