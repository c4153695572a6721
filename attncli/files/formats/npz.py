"""NumPy's .npz: a zip file of .npy members."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from attncli.errors import FileError, numbered
from attncli.files.formats import READABLE, npy
from attncli.files.formats.entry import (
    Array,
    Buffer,
    Entries,
    Entry,
    Header,
    expect_bytes,
    reading,
)
from attncli.files.vocabulary import PLAYED
from attncli.resources import available_memory, readable_bytes

if TYPE_CHECKING:
    import zipfile

    import numpy as np


def _opened(data: Buffer, path: str | None) -> zipfile.ZipFile:
    import zipfile

    return zipfile.ZipFile(path if path is not None else io.BytesIO(data))


def zip_members(data: Buffer, source: str, path: str | None) -> list[str]:
    """Return the names in a zip file: .npz and PyTorch files are both of that kind."""
    with reading(source, "a truncated or damaged zip file"), _opened(data, path) as archive:
        return archive.namelist()


def expect_unpacked(data: Buffer, source: str, path: str | None) -> None:
    """Raise FileError where members would unpack to more than the file: PyTorch packs none."""
    with reading(source, "a truncated or damaged zip file"), _opened(data, path) as archive:
        stated = sum(member.file_size for member in archive.infolist())
    if stated > len(data):
        raise FileError(
            f"{source} is {len(data)} bytes and would unpack to {stated}",
            "PyTorch's files are not compressed: save it again with torch.save",
        )


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the members, each read when it is asked for, and those of words that are known."""
    with reading(source, "a truncated or damaged zip file"):
        archive = _opened(data, path)  # once: opening reads the whole directory
    members = archive.namelist()
    for name, times in Counter(members).items():
        if times > 1:
            raise FileError(f"{source} has two members named '{name}'", "keep one of them")

    def entry(member: str) -> Entry:
        label = f"{source}::{member.removesuffix('.npy')}"

        def load() -> Array:
            with reading(label, "a damaged zip member"):
                _expect_stated(archive, member, label)
                return npy.array_in(archive.read(member), label)

        def header() -> Header:
            with reading(label, "a damaged zip member"):
                shape, dtype, _ = _header(archive, member, label)
            return Header(shape, dtype.name, math.prod(shape) * dtype.itemsize)

        return Entry(load, header)

    entries = {n.removesuffix(".npy"): entry(n) for n in members if n.endswith(".npy")}
    options: dict[str, Any] = {}
    for name in [n for n in entries if n.lower() in PLAYED]:
        label = f"{source}::{name}"
        with reading(label, "a damaged zip member"):
            if _header(archive, f"{name}.npy", label)[1].kind == "U":
                del entries[name]
                _expect_stated(archive, f"{name}.npy", label)
                options[name] = npy.words_in(archive.read(f"{name}.npy"), label)
    if members and not (entries or options):
        raise FileError(
            f"{source} is a zip file of {numbered(members)}; expected .npy members", READABLE
        )
    return entries, options


def _header(
    archive: zipfile.ZipFile, member: str, label: str
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, dtype, and where the data begins, of a member of which no more is unpacked."""
    with archive.open(member) as stream:
        shape, _, dtype, start = npy.header_at(stream.read(npy.HEAD), label)
    return shape, dtype, start


def _expect_stated(archive: zipfile.ZipFile, member: str, label: str) -> None:
    """Raise FileError unless the member's stated size is its header's, and fits into memory."""
    shape, dtype, start = _header(archive, member, label)
    size = archive.getinfo(member).file_size
    if dtype.kind != "O":  # these say no size, and are refused
        expect_bytes(label, math.prod(shape) * dtype.itemsize, size - start)
    room = available_memory()
    if room is not None and size > room:
        raise FileError(
            f"{label} unpacks to {readable_bytes(size)}, and {readable_bytes(room)} are free",
            "save it as .npy or .safetensors, which are mapped and not unpacked",
        )


def write(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write a member for each array, uncompressed; ``extra`` has no place in .npz."""
    import zipfile

    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name or 'arr_0'}.npy")
            with archive.open(member, "w", force_zip64=True) as inner:
                npy.write(inner, {name: array}, {})  # type: ignore[arg-type]
