"""ONNX's TensorProto (.pb), read without its library: one tensor.

The fields are those of onnx.proto; numbers lie in raw_data, or in the list of their type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attncli.errors import FileError
from attncli.files.formats.entry import (
    Array,
    Buffer,
    Entries,
    Entry,
    dtype_named,
    expect_bytes,
    reading,
)

DIMS, DATA_TYPE, NAME, RAW, EXTERNAL, LOCATION = 1, 2, 8, 9, 13, 14
#: TensorProto.DataType, and the field that holds the numbers where raw_data does not.
DTYPES = {
    1: ("float32", 4), 2: ("uint8", 5), 3: ("int8", 5), 4: ("uint16", 5), 5: ("int16", 5),
    6: ("int32", 5), 7: ("int64", 7), 9: ("bool", 5), 10: ("float16", 5), 11: ("float64", 10),
    12: ("uint32", 11), 13: ("uint64", 11), 16: ("bfloat16", 5),
}  # fmt: skip
FIXED = {4: "<f4", 10: "<f8"}  # lists of these are packed as they are, others as varints
VARINT, WIDE, LENGTH, NARROW = 0, 1, 2, 5  # wire types


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the one tensor under the name ``""``; its own name is not a role."""
    with reading(source, "no ONNX tensor"):
        array = _array(bytes(data), source)
    return {"": Entry(lambda: array)}, {}


def _array(data: bytes, source: str) -> Array:
    dims: list[int] = []
    lists: dict[int, list[bytes | int]] = {}
    for field, value in _fields(data):
        if field == DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
        else:
            lists.setdefault(field, []).append(value)
    kind = lists.get(DATA_TYPE, [0])[-1]
    if not isinstance(kind, int) or kind not in DTYPES:
        raise FileError(f"{source} is an ONNX tensor of data type {kind!r}; expected numbers")
    if lists.get(EXTERNAL) or lists.get(LOCATION, [0])[-1]:
        raise FileError(
            f"{source} is an ONNX tensor whose data lie in another file",
            "save it with its data: onnx.save_tensor",
        )
    name, field = DTYPES[kind]
    dtype = dtype_named(name)
    if RAW in lists:
        raw = lists[RAW][-1]
        assert isinstance(raw, bytes)
        expect_bytes(source, math.prod(dims) * dtype.itemsize, len(raw))
        return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(dims).astype(dtype)
    found = _listed(lists.get(field, []), field)
    if math.prod(dims) != len(found):
        raise FileError(f"{source} holds {len(found)} numbers where its shape is {tuple(dims)}")
    if name in ("float16", "bfloat16"):  # bits, in the list of int32
        return found.astype(np.uint16).view(dtype).reshape(dims)
    return found.astype(dtype).reshape(dims)


def _listed(values: list[bytes | int], field: int) -> Array:
    """Return the numbers of one repeated field ``(n,)``, packed or one by one."""
    if field in FIXED:
        return np.frombuffer(b"".join(v for v in values if isinstance(v, bytes)), FIXED[field])
    numbers: list[int] = []
    for value in values:
        numbers += [value] if isinstance(value, int) else _varints(value)
    signed = [n - (1 << 64) if n >> 63 and field != 11 else n for n in numbers]
    return np.array(signed, np.uint64 if field == 11 else np.int64)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a protobuf message with their values, as they come."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == LENGTH:
            size, at = _varint(data, at)
        elif wire in (WIDE, NARROW):
            size = 8 if wire == WIDE else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"truncated at byte {len(data)}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for place in range(10):
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError(f"a number without an end at byte {at}")


def _varints(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found
