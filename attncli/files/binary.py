"""Tensors in binary formats: .npy, .npz, safetensors and PyTorch files.

A reader takes the whole file as a buffer (mapped, or the bytes of a pipe) and returns an `Entry`
for each name. Lengths are checked against the buffer first, nothing is executed, and whatever a
library raises on damaged bytes becomes a `FileError`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from attncli.errors import AttnError, FileError, Unavailable
from attncli.files.text import dumps

if TYPE_CHECKING:
    import zipfile

Array = np.ndarray[Any, np.dtype[Any]]
Buffer = bytes | mmap.mmap
Entries = dict[str, "Entry"]

HEAD = 1 << 17  # longer than any .npy header
MANY_NAMES = 20
READABLE = "readable are .npy, .npz, .safetensors, JSON, NDJSON and PyTorch files"
PICKLE_HINT = "a pickle can run code, so it is never loaded; save it as .npz or .safetensors"


@dataclass(frozen=True)
class Header:
    """What is known of a tensor without reading its data."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Entry:
    """How to get at one tensor, and at its header where that is known without the data."""

    load: Callable[[], Array]
    header: Callable[[], Header] | None = None


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
        dtype = _dtype("bfloat16")  # NumPy has no code of its own for it and writes V2
    return shape, fortran, dtype, stream.tell()


def _npy_array(data: Buffer, source: str) -> Array:
    shape, fortran, dtype, start = _npy_header(data[:HEAD], source)
    if dtype.kind == "O":
        raise FileError(f"{source} holds pickled Python objects", PICKLE_HINT)
    if not _is_numeric(dtype):
        raise FileError(f"{source} holds {dtype}; expected numbers")
    _expect_bytes(source, math.prod(shape) * dtype.itemsize, len(data) - start)
    return _view(data, shape, dtype, start, "F" if fortran else "C")


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


SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


def _safetensors_length(data: Buffer) -> int:
    return int.from_bytes(data[:8], "little")


def read_safetensors(data: Buffer, source: str) -> tuple[Entries, dict[str, Any]]:
    """The tensors of a safetensors file, mapped, and its metadata.

    Its header must account for every byte. Metadata are strings; one that is JSON is read as such.
    """
    import orjson

    start = 8 + _safetensors_length(data)
    if start > len(data):
        raise FileError(
            f"{source} is truncated: its safetensors header has {start - 8} bytes, "
            f"{len(data) - 8} are there"
        )
    damaged = "a damaged safetensors file"
    with reading(source, damaged):
        described = orjson.loads(data[8:start])
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
                entries[name] = _safetensors_entry(
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
    _expect_bytes(source, end, len(data) - start)
    return entries, options


def _safetensors_entry(
    data: Buffer, label: str, tag: str, shape: tuple[int, ...], start: int, stop: int
) -> Entry:
    name = SAFETENSORS.get(tag)
    if name:
        size = 1 if name.startswith("float8") else 2 if tag == "BF16" else np.dtype(name).itemsize
        _expect_bytes(label, math.prod(shape) * size, stop - start)

    def load() -> Array:
        if not name:
            raise FileError(f"{label} has the dtype {tag}; readable are {', '.join(SAFETENSORS)}")
        return _view(data, shape, _dtype(name), start, "C")

    return Entry(load, lambda: Header(shape, name or tag, stop - start))


def read_torch(data: Buffer, source: str, path: str | None) -> Entries:
    """The tensors of a PyTorch file, nested names joined by dots; code in it is refused."""
    try:
        import torch
    except ImportError:
        raise Unavailable(
            f"{source} is a PyTorch file, and PyTorch is not installed",
            "pip install 'attncli[torch]', or save it as .safetensors",
        ) from None
    import pickle
    import re
    import warnings

    with reading(source, "no PyTorch file of plain tensors"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = torch.load(
                path if path is not None else io.BytesIO(data),
                map_location="cpu",
                weights_only=True,
                mmap=path is not None,
            )
        except pickle.UnpicklingError as error:  # its own advice is to load the code
            wish = re.search(r"GLOBAL (\S+)", str(error))
            raise FileError(
                f"{source} holds more than plain tensors"
                + (f": it asks for {wish[1].rstrip('.,`')}" if wish else ""),
                "code in a file is never run; save the tensors alone, as .safetensors",
            ) from None
    entries: dict[str, Entry] = {}

    def entry(tensor: Any, label: str) -> Entry:
        def load() -> Array:
            with reading(label, "a tensor that NumPy cannot hold"):
                plain = tensor.detach().cpu().resolve_conj().resolve_neg()
                name = str(plain.dtype).removeprefix("torch.")
                if name == "bfloat16" or name.startswith("float8"):
                    bits = torch.int16 if name == "bfloat16" else torch.uint8
                    array: Array = plain.view(bits).numpy().view(_dtype(name))
                else:
                    array = plain.numpy()
                array.flags.writeable = False
                return array

        return Entry(
            load,
            lambda: Header(
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                tensor.numel() * tensor.element_size(),
            ),
        )

    def collect(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            if name in entries:
                raise FileError(f"{source} holds two tensors named '{name}'")
            entries[name] = entry(value, f"{source}::{name}")
        elif isinstance(value, dict | list | tuple):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in pairs:
                collect(inner, f"{name}.{key}" if name else str(key))

    with reading(source, "no PyTorch file of plain tensors"):
        collect(loaded, "")
    return entries


def write_npy(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write the one array; ``extra`` has no place in .npy."""
    for array in arrays.values():
        if not _is_numeric(array.dtype) or array.dtype.name.startswith("float8"):
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


def write_safetensors(
    stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]
) -> None:
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


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    return np.dtype(name)


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.name in SAFETENSORS.values() or dtype.name == "complex128"


def header_of(array: Array) -> Header:
    """Shape, dtype and size of an array."""
    return Header(array.shape, array.dtype.name, array.nbytes)


def native(array: Array) -> Array:
    """The array in this machine's byte order, rows together."""
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _view(
    data: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any], start: int, order: Any
) -> Array:
    """An array on top of ``data``; copied only where it is not aligned, native and clean."""
    array: Array = np.ndarray(shape, dtype, data, start, order=order)
    if dtype.kind == "b":
        return np.not_equal(array.view(np.uint8), 0)
    if not dtype.isnative:
        return array.astype(dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def _expect_bytes(source: str, expected: int, found: int) -> None:
    if found < expected:
        raise FileError(
            f"{source} is truncated: its header promises {expected} bytes of data, "
            f"{found} are there"
        )
    if found > expected:
        raise FileError(f"{source} holds {found} bytes of data where its header says {expected}")


@contextmanager
def reading(source: str, what: str = "unreadable") -> Iterator[None]:
    """Whatever goes wrong inside, in a library on bytes that nobody vouches for, is the file's."""
    try:
        yield
    except AttnError:
        raise
    except OSError as error:
        raise os_error(error, source, "read") from None
    except MemoryError:
        raise FileError(f"{source} does not fit into memory") from None
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise FileError(f"{source} is {what}: {reason[:200]}") from None


def os_error(error: OSError, path: str, verb: str) -> FileError:
    """What an operating system's error means for the file, and what to do about it."""
    folder, name = os.path.split(path)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if not os.path.isdir(folder or "."):
            return FileError(f"no such folder: {folder}", f"to {verb} {name}, make it or fix it")
        if verb == "write":
            return FileError(f"{path} cannot be written: {folder or 'the folder'} takes no files")
        import difflib

        near = difflib.get_close_matches(name, os.listdir(folder or "."), 1)
        return FileError(
            f"no such file: {path}",
            f"did you mean {os.path.join(folder, near[0])}?" if near else None,
        )
    if isinstance(error, PermissionError):
        return FileError(f"no permission to {verb} {path}")
    if error.errno == errno.ENOSPC:
        return FileError(f"no space left to write {path}", "free some space or write elsewhere")
    return FileError(
        f"{path} cannot be {verb if verb == 'read' else 'written'}: {error.strerror or error}"
    )


def listed(names: Any) -> str:
    """``3 tensors``-like lists for messages: the first names and how many there are."""
    names = list(names)
    shown = ", ".join(names[:MANY_NAMES]) + (", …" if len(names) > MANY_NAMES else "")
    return f"{len(names)} ({shown})" if names else "nothing"
