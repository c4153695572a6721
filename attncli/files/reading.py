"""Tensors out of files: formats are told by content and never by name.

A tensor reference is ``PATH``, ``PATH::NAME`` or ``-`` (standard input). Reading yields a
`Bundle`, whose arrays are made when they are asked for; binary formats are memory-mapped, so an
array may be read-only. Nothing in a file is ever executed.

Anything wrong with a file raises `FileError`; a missing optional package raises `Unavailable`.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import replace
from types import MappingProxyType

from attncli.errors import FileError, numbered
from attncli.files.bundle import STDIN, Bundle, Lazy, path_of, unknown_name
from attncli.files.folders import weights_in, with_shards
from attncli.files.formats import HEAD, is_text
from attncli.files.formats.entry import Array, demand_end, demand_regular, reading
from attncli.files.references import split, with_references
from attncli.files.sniffing import read_whole
from attncli.files.stream import Records, read_stdin, read_stream


def read(ref: str) -> Bundle:
    """Read one bundle from ``PATH``, ``PATH::NAME``, ``-`` or ``-::NAME``.

    With a NAME only that tensor remains, or all tensors below ``NAME.`` with their whole names.
    """
    found = read_many(ref)
    if isinstance(found, Bundle):
        return found
    found.close()
    raise FileError(
        f"{_label(split(ref)[0])} holds several JSON documents, one a line; expected one",
        "pick one line, as in: sed -n 1p FILE | attncli …",
    )


def read_many(ref: str, *, lines: bool = False) -> Bundle | Records:
    """Like `read`, but NDJSON comes back as an iterator over its bundles and errors.

    It is NDJSON when a line that is a whole document is followed by anything but blank lines, so
    the first result waits for the second line; from there on each line is handed on as it comes.
    With ``lines`` text is NDJSON from its first line, and nothing waits.
    """
    path, name = split(ref)
    found = _read_path(path, lines)
    if isinstance(found, Bundle):
        found = with_references(with_shards(found, read))
    if name is None:
        return found
    if not isinstance(found, Bundle):
        found.close()
        raise FileError(
            f"{_label(path)} holds several JSON documents: '::{name}' cannot choose from them"
        )
    names = [n for n in found.tensors if n == name]
    names = names or [n for n in found.tensors if n.startswith(name.rstrip(".") + ".")]
    if not names:
        raise unknown_name(found, name)
    tensors = found.tensors
    assert isinstance(tensors, Lazy)
    stem = name.rstrip(".") + "."
    members = {tensor.split(".")[0] for tensor in tensors}  # others are said of all
    near = {  # what is said below the name, or of all that holds it
        option: value
        for option, value in found.options.items()
        if option.startswith(stem)
        or stem.startswith(option.rpartition(".")[0])
        or (found.kind == "torch" and option.split(".")[0] not in members)
    }
    return replace(found, tensors=tensors.only(names), options=MappingProxyType(near))


def read_tensor(ref: str, *, regular: bool = False) -> Array:
    """Read exactly one tensor, of any shape; with ``regular`` from a regular file alone."""
    if regular:
        demand_regular(split(ref)[0])
    bundle = read(ref)
    if len(bundle.tensors) == 1:
        return next(iter(bundle.tensors.values()))
    if not bundle.tensors:
        raise FileError(f"{bundle.source} holds no tensor")
    raise FileError(
        f"{bundle.source} holds {numbered(bundle.tensors)}; expected one tensor",
        f"name it: {path_of(bundle)}::{next(iter(bundle.tensors))}",
    )


def _read_path(path: str, as_lines: bool) -> Bundle | Records:
    if path == "-":
        return read_stdin(as_lines)
    if os.path.isdir(path):
        from attncli.files import sglang

        return sglang.of_folder(path, read) if sglang.is_dump(path) else read(weights_in(path))
    if "consolidated." in path:
        from attncli.files import parallel

        shards = parallel.shards_of(path)
        if len(shards) > 1:
            return parallel.joined(shards, _read_file)
    return _read_file(path, as_lines)


def _read_file(path: str, as_lines: bool = False) -> Bundle | Records:
    """Return the bundle of one file, or the lines of one."""
    with reading(path):
        demand_end(path)
        stream = open(path, "rb")  # noqa: SIM115 (NDJSON keeps a pipe open)
    found: Bundle | Records | None = None
    try:
        with reading(path):
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                found = read_stream(stream, path, stream.close, as_lines)
            elif not status.st_size:
                raise FileError(f"{path} is empty")
            else:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                if is_text(mapped[:HEAD]) or as_lines:
                    found = read_stream(mapped, path, stream.close, as_lines)
                else:
                    found = read_whole(mapped, path, path)
    finally:
        if not isinstance(found, Records):
            stream.close()
    return found


def _label(path: str) -> str:
    return STDIN if path == "-" else path
