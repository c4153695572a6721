"""Tensors of a bundle that are others when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from attncli.files.bundle import Bundle, Lazy
from attncli.files.formats.entry import Array, Entry, Header, header_of

Change = Callable[[Array], Array]
AS_IT_IS: Change = np.asarray  # where making it is what changes it


def changed(bundle: Bundle, changes: Mapping[str, Change], notes: Collection[str]) -> Bundle:
    """Return the bundle with some tensors changed, in shapes that stay, and notes added."""
    some = bundle.tensors if isinstance(bundle.tensors, Lazy) else None
    entries = {
        name: made(
            partial(_of, bundle, name, change), bundle.header(name),
            partial(some.rows, name) if some and change is AS_IT_IS else None,
        )
        for name, change in changes.items()
    }  # fmt: skip
    return with_entries(bundle, entries, notes=notes)


def _of(bundle: Bundle, name: str, change: Change) -> Array:
    return change(bundle.tensors[name])


def made(
    load: Callable[[], Array], like: Header, rows: Callable[[slice], Array] | None = None
) -> Entry:
    """Return an entry of float32, in the shape of ``like``, that is made anew at each use."""
    size = 4 * math.prod(like.shape)
    return Entry(load, lambda: Header(like.shape, "float32", size), kept=False, rows=rows)


def of_array(array: Array) -> Entry:
    """Return the entry of an array that is there."""
    return Entry(lambda: array, lambda: header_of(array))


def with_entries(
    bundle: Bundle,
    entries: Mapping[str, Entry],
    without: Collection[str] = (),
    notes: Collection[str] = (),
) -> Bundle:
    """Return the bundle with these entries in place or besides, and without some."""
    tensors = bundle.tensors
    if not isinstance(tensors, Lazy):
        tensors = Lazy({name: of_array(array) for name, array in tensors.items()})
    kept = [name for name in tensors if name not in without]
    return replace(
        bundle,
        tensors=tensors.only(kept).beside(entries),
        notes=(*bundle.notes, *dict.fromkeys(notes)),
    )
