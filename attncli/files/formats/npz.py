"""NumPy's .npz: a zip file of .npy members."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from attncli.errors import FileError, numbered
from attncli.files.formats import READABLE, npy
from attncli.files.formats.entry import Array, Buffer, Entries, Entry, Header, reading

if TYPE_CHECKING:
    import zipfile


def _opened(data: Buffer, path: str | None) -> zipfile.ZipFile:
    import zipfile

    return zipfile.ZipFile(path if path is not None else io.BytesIO(data))


def zip_members(data: Buffer, source: str, path: str | None) -> list[str]:
    """Return the names in a zip file: .npz and PyTorch files are both of that kind."""
    with reading(source, "a truncated or damaged zip file"), _opened(data, path) as archive:
        return archive.namelist()


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the members, each read when it is asked for; .npz has no options."""
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
                return npy.array_in(archive.read(member), label)

        def header() -> Header:
            with reading(label, "a damaged zip member"), archive.open(member) as stream:
                shape, _, dtype, _ = npy.header_at(stream.read(npy.HEAD), label)
            return Header(shape, dtype.name, math.prod(shape) * dtype.itemsize)

        return Entry(load, header)

    entries = {n.removesuffix(".npy"): entry(n) for n in members if n.endswith(".npy")}
    if members and not entries:
        raise FileError(
            f"{source} is a zip file of {numbered(members)}; expected .npy members", READABLE
        )
    return entries, {}


def write(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write a member for each array, uncompressed; ``extra`` has no place in .npz."""
    import zipfile

    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name or 'arr_0'}.npy")
            with archive.open(member, "w", force_zip64=True) as inner:
                npy.write(inner, {name: array}, {})  # type: ignore[arg-type]
