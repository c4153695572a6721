"""How matrices are stored: in which order their inputs, outputs and heads lie.

An axis is a letter: ``r`` the rows of torch's Linear, heads one after the other; ``c`` its columns;
``h`` heads and ``d`` a head's channels, where they are axes of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attncli.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

#: Which axes make the rows and which the columns: of an input projection, and of the output's.
_SIDES = {False: ("rhd", "c"), True: ("r", "chd")}
_WORDS = {"r": "out", "c": "in", "h": "heads", "d": "width"}


class Form(NamedTuple):
    """The axes of an input projection's weight and of the output projection's, as in ``hcd``."""

    inputs: str
    output: str

    def axes(self, role: str) -> str:
        """Return the axes of the weight of a role."""
        return self.output if role == "output" else self.inputs

    @property
    def turned(self) -> bool:
        """Whether inputs come before outputs, and heads are no axis: ``(in, out)``."""
        return self.inputs == "cr"

    @property
    def apart(self) -> bool:
        """Whether heads are an axis of their own."""
        return "h" in self.inputs

    def words(self, role: str = "query") -> str:
        """Return what a shape is, as in ``(heads, in, width)``."""
        axes = self.axes(role)
        words = _WORDS | ({"c": "in", "r": "out"} if role == "output" else {})
        return f"({', '.join(words[axis] for axis in axes)})"

    def sizes(self, role: str, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the size of each axis."""
        return dict(zip(self.axes(role), shape, strict=True))

    def rows_columns(self, role: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many rows and columns a stored weight has as torch's Linear, (out, in)."""
        sizes = self.sizes(role, shape)
        rows, columns = _SIDES[role == "output"]
        return tuple(  # type: ignore[return-value]
            int(np.prod([sizes[axis] for axis in side if axis in sizes]))
            for side in (rows, columns)
        )

    def linear(self, role: str, array: Array) -> Array:
        """Return a stored weight as torch's Linear has it, (out, in)."""
        axes = self.axes(role)
        order = [axis for side in _SIDES[role == "output"] for axis in side if axis in axes]
        turned = array.transpose([axes.index(axis) for axis in order])
        return turned.reshape(self.rows_columns(role, array.shape))

    def check(self, name: str, role: str, shape: tuple[int, ...]) -> None:
        """Raise InputError where a tensor has other dimensions than this form."""
        axes = self.axes(role)
        if len(shape) != len(axes):
            many = {2: "two", 3: "three"}[len(axes)]
            raise InputError(
                f"'{name}' is {shape}", f"a projection has {many} dimensions, {self.words(role)}"
            )


LINEAR = Form("rc", "rc")
CONV1D = Form("cr", "cr")  # GPT-2's, and the kernels of Flax's and Keras' Dense
HEADS_FIRST = Form("hcd", "hdr")  # TransformerLens: W_Q (H, E, D), W_O (H, D, E)
EINSUM = Form("chd", "hdr")  # Flax, Keras: query/kernel (E, H, D), out/kernel (H, D, E)
