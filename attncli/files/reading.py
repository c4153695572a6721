"""Tensors out of files: formats are told by content and never by name.

A tensor reference is ``PATH``, ``PATH::NAME`` or ``-`` (standard input). Reading yields a
`Bundle`, whose arrays are made when they are asked for; binary formats are memory-mapped, so an
array may be read-only. Nothing in a file is ever executed.

Anything wrong with a file raises `FileError`; a missing optional package raises `Unavailable`.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from types import MappingProxyType
from typing import Any, BinaryIO

from attncli.errors import AttnError, FileError
from attncli.files.bundle import STDIN, Bundle, Lazy, path_of, unknown_name
from attncli.files.formats import json, npy, safetensors, torch
from attncli.files.formats.entry import (
    PICKLE_HINT,
    READABLE,
    Buffer,
    Entry,
    listed,
    reading,
)
from attncli.files.formats.npy import Array

# -- reading ----------------------------------------------------------------------------------


def read(ref: str) -> Bundle:
    """Read one bundle from ``PATH``, ``PATH::NAME``, ``-`` or ``-::NAME``.

    With a NAME only that tensor remains, or all tensors below ``NAME.`` with their whole names.
    """
    found = read_many(ref)
    if isinstance(found, Bundle):
        return found
    found.close()
    raise FileError(
        f"{_label(_split(ref)[0])} holds several JSON documents, one a line; expected one",
        "pick one line, as in: sed -n 1p FILE | attncli …",
    )


def read_many(ref: str, *, lines: bool = False) -> Bundle | Records:
    """Like `read`, but NDJSON comes back as an iterator over its bundles and errors.

    It is NDJSON when a line that is a whole document is followed by anything but blank lines, so
    the first result waits for the second line; from there on each line is handed on as it comes.
    With ``lines`` text is NDJSON from its first line, and nothing waits.
    """
    path, name = _split(ref)
    found = _read_stdin(lines) if path == "-" else _read_path(path, lines)
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
    return replace(found, tensors=tensors.only(names))


def read_tensor(ref: str) -> Array:
    """Read exactly one tensor, of any shape."""
    bundle = read(ref)
    if len(bundle.tensors) == 1:
        return next(iter(bundle.tensors.values()))
    if not bundle.tensors:
        raise FileError(f"{bundle.source} holds no tensor")
    raise FileError(
        f"{bundle.source} holds {listed(bundle.tensors)}; expected one tensor",
        f"name it: {path_of(bundle)}::{next(iter(bundle.tensors))}",
    )


class Records(Iterator["Bundle | AttnError"]):
    """One bundle a line of NDJSON, or the error that stands in its place; blank lines skipped.

    ``line`` is the number of the last line read, from 1.
    """

    line = 0

    def __init__(self, lines: Iterator[bytes], source: str, close: Callable[[], None]) -> None:
        self._lines = enumerate(lines, 1)
        self._source = source
        self.close = close

    def __next__(self) -> Bundle | AttnError:
        while True:
            with reading(self._source):
                number, line = next(self._lines, (0, b""))
            if not line:
                self.close()
                raise StopIteration
            if not line.isspace():
                self.line = number
                try:
                    return _json_bundle(line, f"{self._source}, line {number}")
                except AttnError as error:
                    return error


def read_lines(stream: BinaryIO, source: str = STDIN) -> Records:
    """Read NDJSON: a bundle a line as it arrives; a bad line yields its error."""
    return Records(iter(stream.readline, b""), source, lambda: None)


_stdin_bundles: weakref.WeakKeyDictionary[BinaryIO, Bundle] = weakref.WeakKeyDictionary()


def _read_stdin(as_lines: bool = False) -> Bundle | Records:
    if sys.stdin is None:
        raise FileError("standard input is closed")
    stream: BinaryIO = sys.stdin.buffer
    if stream not in _stdin_bundles:
        with reading(STDIN):
            found = _read_stream(stream, STDIN, lambda: None, as_lines)
        if not isinstance(found, Bundle):
            return found
        _stdin_bundles[stream] = found  # so that -::query and -::key can both be asked for
    return _stdin_bundles[stream]


def _read_path(path: str, as_lines: bool = False) -> Bundle | Records:
    with reading(path):
        if os.path.isdir(path):
            return _read_folder(path)
        stream = open(path, "rb")  # noqa: SIM115 (NDJSON keeps a pipe open)
    found: Bundle | Records | None = None
    try:
        with reading(path):
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                found = _read_stream(stream, path, stream.close, as_lines)
            elif not status.st_size:
                raise FileError(f"{path} is empty")
            else:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                if _is_text(mapped[:64]) or as_lines:
                    found = _read_stream(mapped, path, stream.close, as_lines)
                else:
                    found = _read_binary(mapped, path, path)
    finally:
        if not isinstance(found, Records):
            stream.close()
    return found


def _read_stream(
    stream: BinaryIO | mmap.mmap, source: str, close: Callable[[], None], as_lines: bool
) -> Bundle | Records:
    lines: list[bytes] = []

    def next_line() -> bytes:
        while line := stream.readline():
            lines.append(line)
            if not line.isspace():
                return line
        return b""

    first = next_line()
    if not first:
        raise FileError(f"{source} is empty{' (only blanks)' if lines else ''}")
    if not _is_text(first[:64]) and not (as_lines and _is_line(first)):
        return _read_binary(b"".join(lines) + stream.read(), source, None)
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    if as_lines:
        return Records(chain(lines, iter(stream.readline, b"")), source, close)
    if first[-64:].rstrip()[-1:] not in b"[{,:":  # else the document goes on
        try:
            only: Bundle | None = _json_bundle(lines[-1], source)
        except AttnError:
            only = None
        second = next_line()
        if only and not second:
            return _with_shards(only, source)
        if only or second[:1] == b"{":
            return Records(chain(lines, iter(stream.readline, b"")), source, close)
    return _with_shards(_json_bundle(b"".join(lines) + stream.read(), source), source)


def _is_text(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return b"\0" not in head and (not start or start[:1] in b"{[")


def _is_line(line: bytes) -> bool:
    """Whether this is a line of text, if perhaps not of JSON."""
    try:
        return b"\0" not in line.decode().encode()
    except UnicodeDecodeError:
        return False


def _read_binary(data: Buffer, source: str, path: str | None) -> Bundle:
    """Read what is no JSON; ``path`` is None when there is no file behind the bytes."""
    head = data[:64]
    if head.startswith(b"\x93NUMPY"):
        return Bundle(source, "npy", Lazy(npy.read_npy(data, source)))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        members = npy.zip_members(data, source, path)
        if any(n == "data.pkl" or n.endswith("/data.pkl") for n in members):
            return Bundle(source, "torch", Lazy(torch.read_torch(data, source, path)))
        return Bundle(source, "npz", Lazy(npy.read_npz(data, source, path)))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < SAFETENSORS_LIMIT:
        entries, options = safetensors.read_safetensors(data, source)
        return Bundle(source, "safetensors", Lazy(entries), MappingProxyType(options))
    if head.startswith(TORCH_LEGACY):
        return Bundle(source, "torch", Lazy(torch.read_torch(data, source, None)))
    if re.match(rb"""\s*(["\d-]|null|true|false|NaN|Infinity)""", head):
        try:
            value = json.parse(bytes(data[:LITERAL]), source)
        except FileError:
            pass
        else:
            raise FileError(
                f"{source} is JSON, but {json.described(value)}", "expected an array or an object"
            )
    for magic, what, hint in KNOWN:
        if head.startswith(magic):
            raise FileError(f"{source} is {what}, which attncli does not read", hint)
    raise FileError(
        f"{source} is in no known format: it begins with {bytes(head[:12])!r}", READABLE
    )


LITERAL = 1 << 16  # bytes in which a lone number or string of JSON ends
SAFETENSORS_LIMIT = 1 << 40  # of the header; a longer one means that it is something else
TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_UTF16_HINT = "expected UTF-8: iconv -f UTF-16 -t UTF-8 FILE"
KNOWN: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed", "unpack it first: gunzip FILE"),
    (b"BZh", "bzip2-compressed", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ", "xz-compressed", "unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first: unzstd FILE"),
    ((b"\xff\xfe", b"\xfe\xff", b"{\0", b"[\0", b"\0{", b"\0["), "UTF-16 text", _UTF16_HINT),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a Python pickle", PICKLE_HINT),
    (b"GGUF", "a GGUF file", READABLE),
    (b"\x89HDF", "an HDF5 file", READABLE),
    (b"PAR1", "a Parquet file", READABLE),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "fetch it: git lfs pull"),
)


SUFFIXES = (".safetensors", ".npz", ".npy", ".bin", ".pt", ".pth")
#: Weights by their suffixes that a folder may hold besides those that are looked for.
UNREAD: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((".pkl", ".pickle"), "a Python pickle, which attncli does not read", PICKLE_HINT),
    ((".gguf",), "a GGUF file, which attncli does not read", READABLE),
)


def _read_folder(path: str) -> Bundle:
    names = sorted(os.listdir(path))
    tensors = [n for n in names if n.endswith(".safetensors")]
    wanted = (
        "model.safetensors.index.json",
        "model.safetensors",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
    )
    for name in (*wanted, *(tensors if len(tensors) == 1 else ())):
        if name in names:
            return read(os.path.join(path, name))
    holds = f"{path} is a folder without model.safetensors or its index; it holds {listed(names)}"
    readable = [n for n in names if n.lower().endswith(SUFFIXES)]
    for suffixes, what, hint in () if readable else UNREAD:
        some = [n for n in names if n.lower().endswith(suffixes)]
        if some:
            raise FileError(f"{holds}; {some[0]} is {what}", hint)
    raise FileError(
        holds,
        f"name a file: {os.path.join(path, readable[0] if readable else 'FILE')}",
    )


def _with_shards(bundle: Bundle, source: str) -> Bundle:
    """The tensors that a shard index points to, or the bundle itself if it is none."""
    shards = bundle.options.get("weight_map")
    if not isinstance(shards, dict):
        return bundle
    if source == STDIN:
        raise FileError(
            "standard input is a shard index: its shards cannot be found from there",
            "name the file or its folder instead",
        )
    files: dict[str, Bundle] = {}
    entries: dict[str, Entry] = {}
    for name, file in shards.items():
        if not isinstance(file, str) or os.path.basename(file) != file or file in ("", ".", ".."):
            raise FileError(f"{source} keeps '{name}' in {file!r}; expected a file beside it")
        if file.endswith(".json"):
            raise FileError(f"{source} keeps '{name}' in {file}; expected a file of tensors")
        if file not in files:
            beside = os.path.join(os.path.dirname(source), file)
            if not os.path.exists(beside):
                raise FileError(
                    f"the index names {file}, which is not there", f"{source} needs all its shards"
                )
            files[file] = read(beside)
        shard = files[file].tensors
        if not isinstance(shard, Lazy) or name not in shard:
            raise FileError(f"{source} says that '{name}' is in {file}, but it is not there")
        entries[name] = shard.entry(name)
    return Bundle(source, next((b.kind for b in files.values()), "safetensors"), Lazy(entries))


def _json_bundle(data: bytes, source: str) -> Bundle:
    value = json.parse(data, source)
    if isinstance(value, list):
        return Bundle(source, "json", Lazy({"": _json_entry(value, source, "")}))
    if not isinstance(value, dict):
        raise FileError(f"{source} is {json.described(value)}; expected an array or an object")
    ours = str(value.get("schema")).startswith("attncli.")  # its empty lists are no tensors
    tensors = {
        name: member
        for name, member in value.items()
        if json.is_tensor(member) and not (ours and member == [])
    }
    return Bundle(
        source,
        "json",
        Lazy({name: _json_entry(member, source, name) for name, member in tensors.items()}),
        MappingProxyType({name: member for name, member in value.items() if name not in tensors}),
    )


def _json_entry(value: list[Any], source: str, name: str) -> Entry:
    return Entry(lambda: json.to_array(value, source, name))


def _split(ref: str) -> tuple[str, str | None]:
    """Path and name; the last '::' parts them whose left side exists."""
    if "::" not in ref or os.path.exists(ref):
        return ref, None
    cut = len(ref)
    while (cut := ref.rfind("::", 0, cut)) > 0:
        path, name = ref[:cut], ref[cut + 2 :]
        if path == "-" or os.path.exists(path):
            break
    else:
        path, _, name = ref.rpartition("::")
    if not path or not name:
        raise FileError(
            f"'{ref}' lacks the {'name after' if path else 'path before'} '::'",
            "a tensor is named as PATH or PATH::NAME",
        )
    return path, name


def _label(path: str) -> str:
    return STDIN if path == "-" else path
