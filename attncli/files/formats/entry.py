"""What every format of tensor files shares: entries, headers, errors.

A reader takes the whole file as a buffer (mapped, or the bytes of a pipe) and returns an `Entry`
for each name, and the file's options. Lengths are checked against the buffer first, nothing is
executed, and whatever a library raises on damaged bytes becomes a `FileError`.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from attncli.errors import AttnError, FileError, closest

Array = np.ndarray[Any, np.dtype[Any]]
Buffer = bytes | mmap.mmap
Entries = dict[str, "Entry"]

SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


class Header(NamedTuple):
    """What is known of a tensor without reading its data."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Entry(NamedTuple):
    """How to get at one tensor, and at its header where that is known without the data.

    ``kept``: a bundle holds the array once it is made; not where that is a copy of what is mapped.
    ``rows`` makes some rows alone, where that is less work.
    """

    load: Callable[[], Array]
    header: Callable[[], Header] | None = None
    kept: bool = True
    rows: Callable[[slice], Array] | None = None


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of that name, those of ml_dtypes included."""
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    return np.dtype(name)


def is_numeric(dtype: np.dtype[Any]) -> bool:
    """Whether tensors of this dtype are read."""
    return dtype.name in SAFETENSORS.values() or dtype.name == "complex128"


def header_of(array: Array) -> Header:
    """Shape, dtype and size of an array."""
    return Header(array.shape, array.dtype.name, array.nbytes)


def native(array: Array) -> Array:
    """The array in this machine's byte order, rows together."""
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def view_of(
    data: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any], start: int, order: Any
) -> Array:
    """An array on top of ``data``; copied only where it is not aligned, native and clean."""
    try:
        array: Array = np.ndarray(shape, dtype, data, start, order=order)
    except ValueError as error:  # sides that no array has, though others of them are 0
        raise FileError(f"a tensor of shape {shape} cannot be: {error}") from None
    if dtype.kind == "b":
        return np.not_equal(array.view(np.uint8), 0)
    if not dtype.isnative:
        return array.astype(dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def expect_bytes(source: str, expected: int, found: int) -> None:
    """Raise FileError unless as many bytes of data are there as a header promises."""
    if found < expected:
        raise FileError(
            f"{source} is truncated: its header promises {expected} bytes of data, "
            f"{found} are there"
        )
    if found > expected:
        raise FileError(f"{source} holds {found} bytes of data where its header says {expected}")


def demand_regular(path: str) -> None:
    """Raise FileError where something is there that is no regular file, without opening it."""
    with reading(path):
        mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise FileError(
            f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}", "expected a regular file"
        )


def demand_end(path: str) -> None:
    """Raise FileError for what is neither a regular file nor a named pipe, as <(command) is one."""
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        demand_regular(path)


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
    if verb == "read" and path.lstrip()[:1] in ("{", "["):
        shown = path if len(path) <= 30 else f"{path[:29]}…"
        return FileError(
            f"no such file: {shown}",
            "what is no file is piped in: echo '{\"query\": [[1, 0]]}' | attncli compute -",
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if verb == "read" and not os.path.isdir(folder or ".") and os.path.isfile(name):
            return FileError(f"no such folder: {folder}", f"did you mean {name}?")
        if not os.path.isdir(folder or "."):
            return FileError(f"no such folder: {folder}", f"to {verb} {name}, make it or fix it")
        if verb == "write":
            return FileError(f"{path} cannot be written: {folder or 'the folder'} takes no files")
        near: list[str] = []
        with suppress(OSError):  # a folder whose names nobody may see
            near = closest(name, os.listdir(folder or "."))
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
