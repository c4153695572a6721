"""Tensors that JSON names: ``"query": "cases.safetensors::tile_63.query"``.

A bundle may come from elsewhere, so it reaches regular files beside itself and below, and no
others. A file that is named so is data alone: what it names in turn is not followed.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from attncli.errors import FileError
from attncli.files.bundle import STDIN, Bundle, Lazy, find, unknown_name
from attncli.files.formats import SUFFIXES
from attncli.files.formats.entry import Array, Entry, Header, demand_regular, reading
from attncli.files.sniffing import read_whole
from attncli.files.vocabulary import PLAYED, ROLES, TENSOR, TEXT, WORDS, role_of

OPEN = 16  # files that stay mapped from one line of NDJSON to the next


def split(ref: str) -> tuple[str, str | None]:
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


def is_reference(name: str, text: str) -> bool:
    """Whether the text under a name stands for a tensor: PATH::NAME, or a path by its suffix.

    Where a mask expression may stand too, text with quotes is one: it quotes the files it names.
    Labels are words, whatever they look like.
    """
    kinds = [ROLES[role].kinds for role in PLAYED.get(_last(name).lower(), ())]
    if not any(TENSOR in some and WORDS not in some for some in kinds):
        return False
    if any(TEXT in some for some in kinds) and set(text) & set("'\""):
        return False
    return "::" in text or text.lower().endswith(SUFFIXES)


def with_references(bundle: Bundle) -> Bundle:
    """The bundle with the tensors that it names; each is opened when it is asked for.

    That raises FileError where the text leads elsewhere, or to no tensor.
    """
    if bundle.kind != "json" or not isinstance(bundle.tensors, Lazy):
        return bundle
    referred = {
        name: text
        for name, text in bundle.options.items()
        if isinstance(text, str) and is_reference(name, text)
    }
    if not referred:
        return bundle
    named = {name: _entry(bundle.source, name, text) for name, text in referred.items()}
    rest = {name: value for name, value in bundle.options.items() if name not in referred}
    return replace(
        bundle,
        tensors=bundle.tensors.beside(named),
        options=MappingProxyType(rest),
        referred=MappingProxyType(referred),
    )


def folder_of(source: str) -> str:
    """The folder of a bundle, of a line of NDJSON too; the current one for standard input."""
    path = source.partition(", line ")[0]
    return "" if path == STDIN else os.path.dirname(path)


def sources_of(bundle: Bundle) -> list[str]:
    """The paths that a bundle is read from: its own, and those that it names."""
    folder = folder_of(bundle.source)
    named = [os.path.join(folder, split(ref)[0]) for ref in bundle.referred.values()]
    return [bundle.source, *named]


def _entry(source: str, member: str, text: str) -> Entry:
    """How to get at the tensor that a member names."""

    def found() -> tuple[Bundle, str]:
        path, name = _path(source, member, text)
        status = os.stat(path)
        bundle = _opened(path, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        if name is not None and name not in bundle.tensors:
            raise unknown_name(bundle, name)
        return bundle, _only(bundle, member) if name is None else name

    def load() -> Array:
        bundle, name = found()
        assert isinstance(bundle.tensors, Lazy)
        return bundle.tensors.entry(name).load()  # kept by the line that asks, not by the file

    def header() -> Header:
        bundle, name = found()
        return bundle.header(name)

    return Entry(load, header)


def _path(source: str, member: str, text: str) -> tuple[str, str | None]:
    """Return the path of the file that a member names, and the name of the tensor there."""
    folder = folder_of(source)
    path, name = split(os.path.join(folder, text))
    given = text[: len(text) - len(name) - 2] if name is not None else text
    inside = not os.path.isabs(text) and ".." not in given.replace("\\", "/").split("/")
    if not inside or given in ("", "-") or "\0" in text:
        raise FileError(
            f"{source}: '{member}' names the file {given!r}",
            "a bundle names files in its own folder or below it; name others yourself: "
            f"--{_last(member).replace('_', '-')} REF",
        )
    demand_regular(path)
    home = os.path.realpath(folder or ".")
    if os.path.commonpath((home, os.path.realpath(path))) != home:
        raise FileError(
            f"{source}: '{member}' names {given!r}, a link that leads elsewhere",
            "copy the file beside the bundle",
        )
    return path, name


@lru_cache(OPEN)
def _opened(path: str, identity: tuple[int, ...]) -> Bundle:
    """Return the tensors of a regular file, which is read anew when it is another one."""
    with reading(path), open(path, "rb") as stream:
        if not identity[-1]:
            raise FileError(f"{path} is empty")
        return read_whole(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), path, path)


def _only(bundle: Bundle, member: str) -> str:
    """Return the name of the tensor in a file of one, or of the one that has the member's role."""
    if len(bundle.tensors) == 1:
        return next(iter(bundle.tensors))
    found = find(bundle, role_of(_last(member), TENSOR) or member)
    if found is None:
        raise unknown_name(bundle, _last(member))
    return found[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
