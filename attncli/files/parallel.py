"""Meta's checkpoints in several files, one a rank of tensor parallelism, as one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from attncli.errors import FileError, numbered
from attncli.files.bundle import Bundle, Lazy
from attncli.files.formats.entry import Array, Entry, Header, reading

NAME = re.compile(r"consolidated\.(\d\d)\.pth")
#: Along which dimension a tensor was cut; fairscale's ColumnParallelLinear and RowParallelLinear.
CUT = (
    (re.compile(r"(^|\.)(wq|wk|wv|w1|w3|output)\.weight$"), 0),
    (re.compile(r"(^|\.)(wo|w2)\.weight$"), 1),
)
WHOLE = re.compile(r"norm\.weight$|(^|\.)rope\.freqs$")
EMBEDDING = re.compile(r"(^|\.)tok_embeddings\.weight$")


def shards_of(path: str) -> list[str]:
    """Return all files of a checkpoint of which ``path`` is one, or is the folder; [] of others."""
    folder, name = (path, "") if os.path.isdir(path) else os.path.split(path)
    if name and not NAME.fullmatch(name):
        return []
    with reading(folder or "."):
        found = sorted(other for other in os.listdir(folder or ".") if NAME.fullmatch(other))
    for at, other in enumerate(found):
        if other != f"consolidated.{at:02d}.pth":
            raise FileError(
                f"{folder or '.'} holds {numbered(found)}: consolidated.{at:02d}.pth is missing",
                "a checkpoint in parts needs all of them",
            )
    return [os.path.join(folder, other) for other in found]


def joined(paths: Sequence[str], read: Callable[[str], Any]) -> Bundle:
    """Return the tensors of all ranks put together, as those of the first file's folder.

    Raises FileError where the files do not hold the same tensors, or hold one that is cut in a way
    that is not known.
    """
    parts: list[Bundle] = [read(path) for path in paths]
    first, folder = parts[0], os.path.dirname(paths[0]) or "."
    for path, part in zip(paths, parts, strict=True):
        odd = sorted({*part.tensors} ^ {*first.tensors})
        if odd:
            raise FileError(
                f"'{odd[0]}' is in {paths[0] if odd[0] in first.tensors else path} alone",
                "the files of one checkpoint hold parts of the same tensors",
            )
    entries = {name: _joined(name, parts, folder) for name in first.tensors}
    note = f"put together from {len(paths)} files, one a rank of tensor parallelism"
    return Bundle(folder, first.kind, Lazy(entries), first.options, notes=(*first.notes, note))


def _joined(name: str, parts: Sequence[Bundle], folder: str) -> Entry:
    headers = [part.header(name) for part in parts]
    if WHOLE.search(name):
        return Entry(lambda: parts[0].tensors[name], lambda: headers[0])
    axis = _cut(name, headers[0], parts[0])
    shapes = {h.shape[:axis] + h.shape[axis + 1 :] for h in headers if axis is not None}
    if axis is None or len(shapes) != 1:
        raise FileError(
            f"{folder}: nothing says how '{name}' {headers[0].shape} was cut into {len(parts)} "
            "parts", "merge them into one file, as transformers' convert_llama_weights_to_hf does",
        )  # fmt: skip
    shape = list(headers[0].shape)
    shape[axis] = sum(header.shape[axis] for header in headers)

    def load() -> Array:
        return np.concatenate([part.tensors[name] for part in parts], axis)

    size = sum(header.nbytes for header in headers)
    return Entry(load, lambda: Header(tuple(shape), headers[0].dtype, size))


def _cut(name: str, header: Header, part: Bundle) -> int | None:
    if len(header.shape) != 2:
        return None
    if EMBEDDING.search(name):  # by words in Llama 3, by channels before
        norm = next((n for n in part.tensors if re.search(r"(^|\.)norm\.weight$", n)), None)
        return None if norm is None else int(part.header(norm).shape[0] != header.shape[1])
    return next((axis for pattern, axis in CUT if pattern.search(name)), None)
