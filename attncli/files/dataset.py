"""The folders of a FlashInfer Trace data set, and the files that its lines name.

Nothing leads out of a data set, and its tensors lie in safetensors files alone.
"""

from __future__ import annotations

import mmap
import os
import re
from types import MappingProxyType
from typing import Any

from attncli.errors import FileError
from attncli.files.bundle import STDIN, Bundle, Lazy
from attncli.files.formats import HEAD, UNREAD, WRITABLE, json
from attncli.files.formats.entry import demand_regular, reading

_LEVELS = 4  # folders from a file of the data set to its root: traces/AUTHOR/OP_TYPE/NAME.jsonl
_LINE = re.compile(r", line \d+$")


def definition(source: str, name: str) -> tuple[str, str, Any]:
    """The root of the data set of a line, ``definitions/OP_TYPE/NAME.json`` there, what it says.

    Raises FileError where the definition is not there, or leads elsewhere.
    """
    if source.startswith(STDIN):
        raise FileError(
            f"{source} is a workload of {name}: its data set cannot be found from there",
            "name its file: ROOT/workloads/OP_TYPE/NAME.jsonl",
        )
    folder = os.path.dirname(os.path.abspath(_LINE.sub("", source)))
    start = folder
    for _ in range(_LEVELS):
        at = os.path.join(folder, "definitions")
        if os.path.isdir(at):
            break
        folder = os.path.dirname(folder)
    else:
        raise FileError(
            f"{source} is a workload, but no folder definitions lies above {start}",
            "keep it in its data set: ROOT/workloads/OP_TYPE/NAME.jsonl beside ROOT/definitions",
        )
    file = f"{name}.json"
    if os.path.basename(file) == file and "\0" not in file:
        with reading(at):
            kinds = sorted(os.listdir(at))
        for kind in kinds:
            path = os.path.join(at, kind, file)
            if os.path.lexists(path):
                with reading(path), open(kept(folder, path), "rb") as stream:
                    return folder, path, json.parse(stream.read(), path)
    raise FileError(
        f"{source}: no definition of {name} in {at}", f"expected {at}/OP_TYPE/{name}.json"
    )


def kept(root: str, path: str) -> str:
    """The path of a regular file below ``root``; FileError where a link leads out of it."""
    demand_regular(path)
    base = os.path.realpath(root)
    if os.path.commonpath([base, os.path.realpath(path)]) != base:
        raise FileError(
            f"{path} is a link that leads out of the data set",
            "put a copy of the file in its place",
        )
    return path


def tensors(root: str, path: str, source: str) -> Bundle:
    """The tensors of a safetensors file that a line names, mapped; FileError for any other file."""
    if os.path.isabs(path) or ".." in path.split("/") or "\0" in path or not path:
        raise FileError(f"{source}: it names the file {path!r}", "expected one inside the data set")
    whole = kept(root, os.path.normpath(os.path.join(root, path)))
    with reading(whole), open(whole, "rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise FileError(f"{whole} is empty")
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    row, head = WRITABLE[".safetensors"], data[:HEAD]
    if not row.tells(head, ()):
        told = next((one.error(whole) for one in UNREAD if head.startswith(one.begins)), None)
        raise told or FileError(f"{whole} is no safetensors file", f"{source} says that it is one")
    entries, options = row.read(data, whole, whole)
    return Bundle(whole, row.name, Lazy(entries), MappingProxyType(dict(options)))


def objects(found: Any, part: str, source: str) -> dict[str, Any]:
    """A member that is an object; those in it are objects too, but for lengths of axes."""
    inner = found.get(part) if isinstance(found, dict) else None
    if not isinstance(inner, dict):
        raise FileError(f"{source} has no '{part}'", f"expected an object named {part}")
    for name, one in inner.items():
        if not isinstance(one, dict) and (part != "axes" or type(one) is not int):
            raise FileError(f"{source}: '{name}' of '{part}' is {one!r}")
    return inner
