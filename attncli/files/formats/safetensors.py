"""The safetensors format, read and written without its library, which knows no bfloat16."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from attncli.errors import FileError
from attncli.files.formats.entry import (
    SAFETENSORS,
    Array,
    Buffer,
    Entries,
    Entry,
    Header,
    dtype_named,
    expect_bytes,
    reading,
    view_of,
)
from attncli.files.formats.json import dumps, refuse_twins


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the tensors, mapped, and the metadata.

    Its header must account for every byte. Metadata are strings; one that is JSON is read as such.
    """
    import orjson

    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise FileError(
            f"{source} is truncated: its safetensors header has {start - 8} bytes, "
            f"{len(data) - 8} are there"
        )
    damaged = "a damaged safetensors file"
    with reading(source, damaged):
        described = orjson.loads(data[8:start])
        refuse_twins(data[8:start], described, source)
    if not isinstance(described, dict):
        raise FileError(f"{source} is {damaged}: its header is no object")
    metadata = described.pop("__metadata__", None)
    options = dict(metadata) if isinstance(metadata, dict) else {}
    for name, value in options.items():
        with contextlib.suppress(ValueError, TypeError):
            options[name] = orjson.loads(value)
    entries: dict[str, Entry] = {}
    spans: list[tuple[int, int, str]] = []
    for name, what in described.items():
        match what:
            case {"dtype": str(tag), "shape": list(shape), "data_offsets": [int(a), int(b)]} if (
                all(type(n) is int and n >= 0 for n in shape) and 0 <= a <= b
            ):
                spans.append((a, b, name))
                entries[name] = _entry(
                    data, f"{source}::{name}", tag, tuple(shape), start + a, start + b
                )
            case _:
                raise FileError(f"{source} is {damaged}: '{name}' is described as {what}")
    end = 0
    for a, b, name in sorted(spans):
        if a != end:
            raise FileError(
                f"{source} is {damaged}: '{name}' begins at byte {a}, "
                f"expected {end} (a hole or an overlap)"
            )
        end = b
    expect_bytes(source, end, len(data) - start)
    return entries, options


def _entry(
    data: Buffer, label: str, tag: str, shape: tuple[int, ...], start: int, stop: int
) -> Entry:
    name = SAFETENSORS.get(tag)
    if name:
        size = 1 if name.startswith("float8") else 2 if tag == "BF16" else np.dtype(name).itemsize
        expect_bytes(label, math.prod(shape) * size, stop - start)

    def load() -> Array:
        if not name:
            raise FileError(f"{label} has the dtype {tag}; readable are {', '.join(SAFETENSORS)}")
        return view_of(data, shape, dtype_named(name), start, "C")

    return Entry(load, lambda: Header(shape, name or tag, stop - start))


def write(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write header and data; ``extra`` becomes metadata."""
    tags = {name: tag for tag, name in SAFETENSORS.items()}
    header: dict[str, Any] = {}
    if extra:
        header["__metadata__"] = {
            name: value if isinstance(value, str) else dumps(value).decode()
            for name, value in extra.items()
        }
    end = 0
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)  # keeps alignment
    for name, array in ordered:
        if array.dtype.name not in tags:
            raise FileError(
                f"safetensors cannot hold {array.dtype.name}: '{name}'", "write .npz instead"
            )
        header[name] = {
            "dtype": tags[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = dumps(header)
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        stream.write(array.reshape(-1).view(np.uint8).data)
