"""Folders of weights, and the index that says which file holds which tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import MappingProxyType

from attncli.errors import FileError, numbered
from attncli.files.bundle import STDIN, Bundle, Lazy
from attncli.files.formats import UNREAD, WEIGHTS
from attncli.files.formats.entry import Entry, demand_regular, reading

INDEX = ".safetensors.index.json"
#: What files of problems in a folder end in; and what says that a folder is a checkpoint.
CAPTURES = (".safetensors", ".npz", ".json")
CONFIGS = ("config.json", "params.json")
#: Where a folder has its weights; an index comes before a single file of the same kind.
WANTED = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "consolidated.00.pth",  # Meta's, with those of other ranks beside it
)


def weights_in(folder: str) -> str:
    """Return the path of the file in a folder that holds its weights, or FileError."""
    with reading(folder):
        names = sorted(os.listdir(folder))
    tensors = [n for n in names if n.endswith(".safetensors")]
    for name in (*WANTED, *(tensors if len(tensors) == 1 else ())):
        if name in names:
            return os.path.join(folder, name)
    holds = (
        f"{folder} is a folder without model.safetensors or its index; it holds {numbered(names)}"
    )
    readable = [n for n in names if n.lower().endswith(WEIGHTS)]
    for row in () if readable else UNREAD:
        some = [n for n in names if n.lower().endswith(row.suffixes)]
        if some:
            raise row.error(f"{holds}; {some[0]}")
    raise FileError(
        holds,
        f"name a file: {os.path.join(folder, readable[0] if readable else 'FILE')}",
    )


def captures_in(folder: str) -> list[str]:
    """Return the paths of the files in a folder that may each hold problems; none of a checkpoint.

    They are in the order of their names, 2 before 10. Shards go with their index.
    """
    with reading(folder):
        names = os.listdir(folder)
    if set(names) & {*WANTED, *CONFIGS}:
        return []
    indices = [name for name in names if name.endswith(INDEX)]
    shards = {shard for name in indices for shard in names if _is_shard(shard, name)}
    found = [name for name in names if name.endswith(CAPTURES) and name not in shards]
    return [os.path.join(folder, name) for name in sorted(found, key=_natural)]


def index_of(path: str) -> str:
    """Return the index of what is too large for the one file ``x.safetensors``."""
    return os.path.splitext(path)[0] + INDEX


def shard_name(index: str, number: int, count: int) -> str:
    """Return what a shard is called: ``x-00002-of-00009.safetensors`` of ``x`` and its index."""
    return f"{index.removesuffix(INDEX)}-{number:05d}-of-{count:05d}.safetensors"


def _is_shard(name: str, index: str) -> bool:
    return bool(re.fullmatch(re.escape(index.removesuffix(INDEX)) + r"-\d+-of-\d+\.\w+", name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names with the numbers in them as numbers."""
    return [(int(n) if n.isascii() and n.isdigit() else 0, n) for n in re.split(r"(\d+)", name)]


def with_shards(bundle: Bundle, read: Callable[[str], Bundle]) -> Bundle:
    """The tensors that a shard index points to, or the bundle itself if it is none."""
    shards, source = bundle.options.get("weight_map"), bundle.source
    if bundle.kind != "json" or not isinstance(shards, dict):
        return bundle
    if source == STDIN:
        raise FileError(
            "standard input is a shard index: its shards cannot be found from there",
            "name the file or its folder instead",
        )
    files: dict[str, Bundle] = {}
    entries: dict[str, Entry] = {}
    for name, file in shards.items():
        if not isinstance(file, str) or file not in files:
            files[file] = read(_beside(source, name, file))
        shard = files[file].tensors
        if not isinstance(shard, Lazy) or name not in shard:
            raise FileError(f"{source} says that '{name}' is in {file}, but it is not there")
        entries[name] = shard.entry(name)
    said = {name: value for shard in files.values() for name, value in shard.options.items()}
    kind = next((b.kind for b in files.values()), "safetensors")
    return Bundle(source, kind, Lazy(entries), MappingProxyType(said))


def _beside(index: str, name: str, file: object) -> str:
    """The path of a shard; FileError unless it is a file of tensors beside its index."""
    if not isinstance(file, str) or os.path.basename(file) != file or file in ("", ".", ".."):
        raise FileError(f"{index} keeps '{name}' in {file!r}; expected a file beside it")
    if file.endswith(".json"):
        raise FileError(f"{index} keeps '{name}' in {file}; expected a file of tensors")
    beside = os.path.join(os.path.dirname(index), file)
    if not os.path.exists(beside):
        raise FileError(
            f"the index names {file}, which is not there", f"{index} needs all its shards"
        )
    demand_regular(beside)  # a link may lead elsewhere: model caches keep their blobs apart
    return beside
