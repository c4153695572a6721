"""NumPy's .npy: one array, mapped."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np

from attncli.errors import FileError
from attncli.files.formats import PICKLE_HINT
from attncli.files.formats.entry import (
    Array,
    Buffer,
    Entries,
    Entry,
    dtype_named,
    expect_bytes,
    header_of,
    is_numeric,
    reading,
    view_of,
)

HEAD = 1 << 17  # longer than any .npy header


def header_at(head: bytes, source: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, Fortran order, dtype and where the data begins."""
    import warnings

    stream = io.BytesIO(head)
    with reading(source, "a damaged .npy file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise FileError(
                f"{source} is .npy version {version[0]}.{version[1]}; expected 1.0 or 2.0"
            )
        parse = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = parse(stream)
    if any(n < 0 for n in shape):
        raise FileError(f"{source} is a damaged .npy file: its shape is {shape}")
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
        dtype = dtype_named("bfloat16")  # NumPy has no code of its own for it and writes V2
    return shape, fortran, dtype, stream.tell()


def array_in(data: Buffer, source: str) -> Array:
    """Return the array of a whole .npy file, on top of its bytes where they allow it."""
    shape, fortran, dtype, start = header_at(data[:HEAD], source)
    if dtype.kind == "O":
        raise FileError(f"{source} holds pickled Python objects", PICKLE_HINT)
    if not is_numeric(dtype):
        raise FileError(f"{source} holds {dtype}; expected numbers")
    expect_bytes(source, math.prod(shape) * dtype.itemsize, len(data) - start)
    return view_of(data, shape, dtype, start, "F" if fortran else "C")


def words_in(data: Buffer, source: str) -> Any:
    """Return the text, or the nested list of texts, of a whole .npy file of strings."""
    shape, _, dtype, start = header_at(data[:HEAD], source)
    expect_bytes(source, math.prod(shape) * dtype.itemsize, len(data) - start)
    return np.frombuffer(data, dtype, offset=start).reshape(shape).tolist()


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the one array under the name ``""``; .npy has no options."""
    array = array_in(data, source)
    return {"": Entry(lambda: array, lambda: header_of(array))}, {}


def write(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write the one array; ``extra`` has no place in .npy."""
    for array in arrays.values():
        if not is_numeric(array.dtype) or array.dtype.name.startswith("float8"):
            raise FileError(
                f"NumPy's files cannot hold {array.dtype.name}", "write .safetensors instead"
            )
        # to a real file NumPy would write by itself, and not say why that failed
        told = cast(Any, SimpleNamespace(write=stream.write))
        np.lib.format.write_array(told, array, allow_pickle=False)
