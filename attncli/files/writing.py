"""Tensors into files: whole or not at all, in the format that the suffix names."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import numpy as np

from attncli.errors import FileError, numbered
from attncli.files.formats import SEVERAL, WRITABLE
from attncli.files.formats.entry import Array, native, os_error
from attncli.resources import ending


def write(
    path: str,
    arrays: Mapping[str, Array],
    *,
    extra: Mapping[str, Any] = MappingProxyType({}),
    format: str | None = None,
) -> None:
    """Write arrays to ``path``, whole or not at all; its suffix (or ``format``) says how.

    ``.npy`` takes exactly one array. ``extra`` (labels, options) becomes members of JSON and
    metadata of safetensors; ``.npz`` and ``.npy`` hold arrays alone. ``-`` is standard output.
    Raises FileError where the file cannot be written or its format cannot hold the arrays.
    """
    suffix = format or os.path.splitext(path)[1].lower()
    row = WRITABLE.get(suffix)
    if row is None:
        raise FileError(
            f"{path} ends in '{suffix}'" if suffix else f"{path} has no suffix",
            f"the suffix says the format: {', '.join(WRITABLE)}",
        )
    if not row.many and len(arrays) != 1:
        raise FileError(
            f"{suffix} takes exactly one array, but there are {numbered(arrays)}",
            f"use {SEVERAL} for several",
        )
    arrays = {name: native(np.asarray(array)) for name, array in arrays.items()}
    if path != "-":
        with atomic(path) as stream:
            row.write(stream, arrays, extra)
        return
    if sys.stdout is None:
        raise FileError("standard output is closed")
    if row.binary and sys.stdout.isatty():
        raise FileError(
            f"{suffix} is binary and standard output is a terminal",
            "redirect it (> FILE) or write .json",
        )
    with _writing("standard output"):
        sys.stdout.flush()
        row.write(cast(BinaryIO, _Pipe(sys.stdout.buffer)), arrays, extra)
        sys.stdout.buffer.flush()


class _Pipe:
    """A stream that can only be written: NumPy would ask a file where it stands, or a device."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write, self.flush = stream.write, stream.flush


@contextmanager
def atomic(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block succeeds.

    Links are followed; an old file's mode is kept. What is no regular file is written directly.
    """
    import secrets

    if "\0" in path:
        raise FileError(f"{path!r} is no file name: it holds a NUL byte")
    with _writing(path):
        target = os.path.realpath(path)
        old = os.stat(target).st_mode if os.path.exists(target) else None
        if old is not None and stat.S_ISDIR(old):
            raise FileError(f"{path} is a folder", f"name a file: {os.path.join(path, 'out.npz')}")
        if old is not None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "not writable")
        if old is not None and not stat.S_ISREG(old):
            with open(target, "wb") as stream:
                yield cast(BinaryIO, _Pipe(stream))
            return
        temporary = os.path.join(os.path.dirname(target), f".attncli-{secrets.token_hex(8)}.tmp")
        with _never_left(temporary):
            with open(temporary, "xb") as stream:
                yield stream
            if old is not None:
                os.chmod(temporary, stat.S_IMODE(old))
            os.replace(temporary, target)


@contextmanager
def _never_left(temporary: str) -> Iterator[None]:
    """Take a file away, if it is still there, when the block or a signal ends."""

    def take_away() -> None:
        with suppress(OSError):
            os.unlink(temporary)

    try:
        with ending(take_away):
            yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # nobody reads on: not an error of the file
        raise
    except OSError as error:
        raise os_error(error, path, "write") from None
