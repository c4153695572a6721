"""Folders of weights, and the index that says which file holds which tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

from attncli.errors import FileError, numbered
from attncli.files.bundle import STDIN, Bundle, Lazy
from attncli.files.formats import UNREAD, WEIGHTS
from attncli.files.formats.entry import Entry, demand_regular, reading

INDEX = ".safetensors.index.json"
#: What files of problems in a folder end in; and what says that a folder is a checkpoint.
CAPTURES = (".safetensors", ".npz", ".json")
CONFIGS = ("config.json", "params.json", "adapter_config.json")
LATER = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")  # parts that the first one brings
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
    whole = [n for n in names if not LATER.search(n)]
    lone = [[n for n in whole if n.endswith(kind)] for kind in (".safetensors", ".gguf")]
    for name in (*WANTED, *(name for some in lone if len(some) == 1 for name in some)):
        if name in names:
            return os.path.join(folder, name)
    holds = (
        f"{folder} is a folder without model.safetensors or its index; it holds {numbered(names)}"
    )
    readable = [
        n for n in names if n.lower().endswith(WEIGHTS) and os.path.isfile(os.path.join(folder, n))
    ]
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
    if bundle.kind == "gguf":
        return _with_parts(bundle, read)
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


def _with_parts(bundle: Bundle, read: Callable[[str], Bundle]) -> Bundle:
    """The tensors of all parts of a GGUF file, ``x-00001-of-00003.gguf``, by its first."""
    count, number = (bundle.options.get(f"split.{name}", 1) for name in ("count", "no"))
    if type(count) is not int or count < 2 or number != 0:
        return bundle
    named = re.fullmatch(r"(.*-)00001(-of-\d{5}\.gguf)", bundle.source)
    if named is None:
        raise FileError(
            f"{bundle.source} is the first of {count} parts of a GGUF file",
            "name it so that the others are found: x-00001-of-00002.gguf",
        )
    entries: dict[str, Entry] = {}
    for part in range(2, count + 1):
        path = f"{named[1]}{part:05d}{named[2]}"
        demand_regular(path)
        tensors = read(path).tensors
        assert isinstance(tensors, Lazy)
        entries |= {name: tensors.entry(name) for name in tensors}
    assert isinstance(bundle.tensors, Lazy)
    return replace(bundle, tensors=bundle.tensors.beside(entries))


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
