"""NumPy's formats: .npy and .npz."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from attncli.errors import FileError
from attncli.files.formats.entry import (
    PICKLE_HINT,
    READABLE,
    Buffer,
    Entries,
    Entry,
    Header,
    dtype_named,
    expect_bytes,
    header_of,
    is_numeric,
    listed,
    reading,
    view_of,
)

if TYPE_CHECKING:
    import zipfile


Array = np.ndarray[Any, np.dtype[Any]]

HEAD = 1 << 17  # longer than any .npy header


def _npy_header(head: bytes, source: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and where the data begins."""
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


def _npy_array(data: Buffer, source: str) -> Array:
    shape, fortran, dtype, start = _npy_header(data[:HEAD], source)
    if dtype.kind == "O":
        raise FileError(f"{source} holds pickled Python objects", PICKLE_HINT)
    if not is_numeric(dtype):
        raise FileError(f"{source} holds {dtype}; expected numbers")
    expect_bytes(source, math.prod(shape) * dtype.itemsize, len(data) - start)
    return view_of(data, shape, dtype, start, "F" if fortran else "C")


def read_npy(data: Buffer, source: str) -> Entries:
    """The one array of a .npy file, mapped, under the name ``""``."""
    array = _npy_array(data, source)
    return {"": Entry(lambda: array, lambda: header_of(array))}


def _opened(data: Buffer, path: str | None) -> zipfile.ZipFile:
    import zipfile

    return zipfile.ZipFile(path if path is not None else io.BytesIO(data))


def zip_members(data: Buffer, source: str, path: str | None) -> list[str]:
    """The names in a zip file: .npz and PyTorch files are both of that kind."""
    with reading(source, "a truncated or damaged zip file"), _opened(data, path) as archive:
        return archive.namelist()


def read_npz(data: Buffer, source: str, path: str | None) -> Entries:
    """The members of a .npz file, each read when it is asked for."""
    with reading(source, "a truncated or damaged zip file"):
        archive = _opened(data, path)  # once: opening reads the whole directory
    members = archive.namelist()
    for name in members if len(set(members)) < len(members) else ():
        if members.count(name) > 1:
            raise FileError(f"{source} has two members named '{name}'", "keep one of them")

    def entry(member: str) -> Entry:
        label = f"{source}::{member.removesuffix('.npy')}"

        def load() -> Array:
            with reading(label, "a damaged zip member"):
                return _npy_array(archive.read(member), label)

        def header() -> Header:
            with reading(label, "a damaged zip member"), archive.open(member) as stream:
                shape, _, dtype, _ = _npy_header(stream.read(HEAD), label)
            return Header(shape, dtype.name, math.prod(shape) * dtype.itemsize)

        return Entry(load, header)

    entries = {n.removesuffix(".npy"): entry(n) for n in members if n.endswith(".npy")}
    if members and not entries:
        raise FileError(
            f"{source} is a zip file of {listed(members)}; expected .npy members", READABLE
        )
    return entries


def write_npy(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write the one array; ``extra`` has no place in .npy."""
    for array in arrays.values():
        if not is_numeric(array.dtype) or array.dtype.name.startswith("float8"):
            raise FileError(
                f"NumPy's files cannot hold {array.dtype.name}", "write .safetensors instead"
            )
        np.lib.format.write_array(stream, array, allow_pickle=False)


def write_npz(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write a member for each array, uncompressed; ``extra`` has no place in .npz."""
    import zipfile

    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name or 'arr_0'}.npy")
            with archive.open(member, "w", force_zip64=True) as inner:
                write_npy(inner, {name: array}, {})  # type: ignore[arg-type]
