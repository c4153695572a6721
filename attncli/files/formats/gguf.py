"""GGUF, llama.cpp's format: keys and values, then tensors, many of them in blocks of few bits.

Header and plain numbers are read here, after ggml's docs/gguf.md; blocks are dequantised by
``gguf.quants`` of the package gguf, a tensor at a time, when the tensor is asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from attncli.errors import FileError, Unavailable
from attncli.files.formats.entry import (
    Array,
    Buffer,
    Entries,
    Entry,
    Header,
    dtype_named,
    reading,
    view_of,
)

VERSIONS = (2, 3)
DIMENSIONS = 4  # ggml's most
KEPT = 4096  # numbers of an array of the header that are kept: lists by layer, no vocabulary
ALIGNMENT = 32
STRING, ARRAY = 8, 9
#: The types of values in the header: how struct has them.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Kind(NamedTuple):
    """A type of tensors: numbers and bytes of a block. Plain ones have NumPy's name."""

    name: str
    numbers: int = 1
    size: int = 0
    dtype: str = ""


#: ggml_type of ggml.h. What is not here is refused by its number.
KINDS: Mapping[int, Kind] = {
    0: Kind("F32", 1, 4, "float32"), 1: Kind("F16", 1, 2, "float16"),
    30: Kind("BF16", 1, 2, "bfloat16"), 28: Kind("F64", 1, 8, "float64"),
    24: Kind("I8", 1, 1, "int8"), 25: Kind("I16", 1, 2, "int16"),
    26: Kind("I32", 1, 4, "int32"), 27: Kind("I64", 1, 8, "int64"),
    2: Kind("Q4_0", 32, 18), 3: Kind("Q4_1", 32, 20), 6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24), 8: Kind("Q8_0", 32, 34), 10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110), 12: Kind("Q4_K", 256, 144), 13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210), 16: Kind("IQ2_XXS", 256, 66), 17: Kind("IQ2_XS", 256, 74),
    18: Kind("IQ3_XXS", 256, 98), 19: Kind("IQ1_S", 256, 50), 20: Kind("IQ4_NL", 32, 18),
    21: Kind("IQ3_S", 256, 110), 22: Kind("IQ2_S", 256, 82), 23: Kind("IQ4_XS", 256, 136),
    29: Kind("IQ1_M", 256, 56), 34: Kind("TQ1_0", 256, 54), 35: Kind("TQ2_0", 256, 66),
    39: Kind("MXFP4", 32, 17),
}  # fmt: skip
QUANTISED = frozenset(kind.name for kind in KINDS.values() if not kind.dtype)
INSTALL = "pip install 'attncli[gguf]'"


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the tensors, shapes as NumPy has them, and the keys of the header.

    Long arrays, such as the vocabulary, are left out of the keys. Raises FileError for a damaged
    file and for a type of tensors that is not known; Unavailable, when a tensor in blocks is asked
    for, where the package gguf is not there.
    """
    cursor = _Cursor(data, source)
    version, count, keys = cursor.numbers("IQQ", at=4)
    if version not in VERSIONS:
        raise FileError(
            f"{source} is GGUF of version {version}; readable are 2 and 3, little-endian",
            "convert it anew with llama.cpp",
        )
    options: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text()
        value = cursor.value(*cursor.numbers("I"))
        if value is not None:
            options[key] = value
    found = [_described(cursor, source) for _ in range(count)]
    step = options.get("general.alignment", ALIGNMENT)
    if type(step) is not int or step < 1:
        raise FileError(f"{source}: its general.alignment is {step!r}", "expected a whole number")
    start = cursor.at + -cursor.at % step
    entries: Entries = {}
    for name, shape, kind, offset in found:
        label = f"{source}::{name}"
        if name in entries:
            raise FileError(f"{source} holds two tensors named '{name}'")
        size = _size(label, shape, kind)
        if start + offset + size > len(data):
            raise FileError(
                f"{source} is truncated: '{name}' ends at byte {start + offset + size}, "
                f"{len(data)} are there"
            )
        entries[name] = _entry(data, label, shape, kind, start + offset, size)
    return entries, options


def _described(cursor: _Cursor, source: str) -> tuple[str, tuple[int, ...], Kind, int]:
    """Return name, shape, type and place of the next tensor; ggml's fastest dimension is first."""
    name = cursor.text()
    (dims,) = cursor.numbers("I")
    if dims > DIMENSIONS:
        raise FileError(f"{source} is a damaged GGUF file: '{name}' has {dims} dimensions")
    shape = tuple(reversed(cursor.numbers(f"{dims}Q")))
    kind, offset = cursor.numbers("IQ")
    if kind not in KINDS:
        known = ", ".join(row.name for row in KINDS.values())
        raise FileError(
            f"{source}::{name} is of GGUF's tensor type {kind}, which is not known",
            f"known are {known}",
        )
    return name, shape, KINDS[kind], offset


def _size(label: str, shape: tuple[int, ...], kind: Kind) -> int:
    if (shape or (1,))[-1] % kind.numbers:
        raise FileError(
            f"{label} is {shape} of {kind.name}, whose blocks have {kind.numbers} numbers in a row",
            "the file is damaged",
        )
    return math.prod(shape) // kind.numbers * kind.size


def _entry(
    data: Buffer, label: str, shape: tuple[int, ...], kind: Kind, start: int, size: int
) -> Entry:
    header = Header(shape, kind.dtype or kind.name, size)
    if kind.dtype:
        dtype = dtype_named(kind.dtype)
        return Entry(lambda: view_of(data, shape, dtype, start, "C"), lambda: header)

    def rows(some: slice) -> Array:
        each = (*shape[:-1], shape[-1] // kind.numbers * kind.size)
        return _dequantised(view_of(data, each, np.dtype(np.uint8), start, "C")[some], kind, label)

    return Entry(lambda: rows(slice(None)), lambda: header, kept=False, rows=rows)


def _dequantised(rows: Array, kind: Kind, label: str) -> Array:
    """Return the float32 numbers of rows of blocks, ``(…, bytes)``, by the package gguf."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise Unavailable(
            f"{label} is {kind.name}, and the package gguf, which dequantises it, is not installed",
            INSTALL,
        ) from None
    with reading(label, f"a {kind.name} tensor that the package gguf cannot dequantise"):
        found: Array = quants.dequantize(rows, GGMLQuantizationType[kind.name])
    return found


class _Cursor:
    """Reads a header from its beginning to its end; no length in it is trusted."""

    def __init__(self, data: Buffer, source: str) -> None:
        self.data, self.source, self.at = data, source, 0

    def numbers(self, form: str, at: int | None = None) -> tuple[Any, ...]:
        """Return the next numbers, as struct has them."""
        start = self.at if at is None else at
        self.at = self._room(start, struct.calcsize("<" + form))
        return struct.unpack_from("<" + form, self.data, start)

    def text(self) -> str:
        (length,) = self.numbers("Q")
        start, self.at = self.at, self._room(self.at, length)
        return bytes(self.data[start : self.at]).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return a value, None of an array that is long or of words."""
        if kind == STRING:
            return self.text()
        if kind in VALUES:
            (found,) = self.numbers(VALUES[kind])
            # as short as float32 is written: 1e-06
            return float(str(np.float32(found))) if VALUES[kind] == "f" else found
        if kind != ARRAY:
            raise FileError(f"{self.source} is a damaged GGUF file: a value of type {kind}")
        inner, count = self.numbers("IQ")
        if inner == STRING:
            for _ in range(count):
                (length,) = self.numbers("Q")
                self.at = self._room(self.at, length)
            return None
        if inner not in VALUES:
            raise FileError(f"{self.source} is a damaged GGUF file: an array of type {inner}")
        if count > KEPT:
            self.at = self._room(self.at, count * struct.calcsize("<" + VALUES[inner]))
            return None
        return list(self.numbers(f"{count}{VALUES[inner]}"))

    def _room(self, start: int, length: int) -> int:
        if start + length > len(self.data):
            raise FileError(
                f"{self.source} is truncated: its GGUF header goes on after byte {len(self.data)}"
            )
        return start + length
