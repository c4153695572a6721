"""Mask tensors: bool and float ones of any rank that broadcasts, and those that mean padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention.biases import Added
from attncli.attention.cells import Cells
from attncli.attention.masks import Extent, Mask
from attncli.attention.padding import Padding, padding_text
from attncli.attention.predicates import Bias, Everything, Not, Part
from attncli.attention.problem import Masker
from attncli.attention.words import POLARITIES
from attncli.errors import MaskError

Array = np.ndarray[Any, np.dtype[Any]]

PADDING = "key_padding_mask"


def tensor_masker(
    tensor: Any, polarity: str = "keep", name: str = "attn_mask", text: str | None = None
) -> Masker:
    """Return the function that binds a mask tensor to an Extent.

    tensor: ``(Lk)``, ``(Lq, Lk)``, ``(H, Lq, Lk)``, torch's ``(B·H, Lq, Lk)`` or
    ``(B, H, Lq, Lk)``; dimensions of 1 broadcast, a last one shorter than Lk masks the rest.
    bool (or 0/1 integers): True = keep, or with ``polarity="ignore"`` True = hide. float: added to
    the scores. ``text`` is how the mask would be written as an expression, if it can be.
    Raises MaskError for anything else.
    """
    if polarity not in POLARITIES:
        raise MaskError(f"unknown mask polarity '{polarity}'", "it must be keep or ignore")
    array = mask_values(np.asanyarray(tensor), polarity, name)
    text = text or f"{name} {array.shape} {array.dtype}"

    def bind(extent: Extent) -> Mask:
        notes: list[str] = []
        predicate, biases = cells(array, extent, name, notes)
        return Mask(extent, predicate, biases, text=text, notes=tuple(notes), source=name)

    return bind


def padding_masker(tensor: Any, polarity: str = "keep", name: str = PADDING) -> Masker:
    """Return the function that binds a key padding mask to an Extent.

    tensor: ``(B, Lk)``, or ``(Lk)`` for a batch of one. bool, or 0 and 1 of any dtype: True = a
    real key, or with ``polarity="ignore"`` True = padding. Other floats are added to the scores,
    and −∞ is padding. Raises MaskError for anything else.
    """
    array = _zero_one(np.asanyarray(tensor))
    kind = polarity if array.dtype.kind in "biu" else "keep"  # polarity speaks of bool masks
    values = mask_values(array, kind, name)
    real = values if values.dtype == bool else values != -np.inf

    def bind(extent: Extent) -> Mask:
        shape = (extent.batch, extent.keys)
        if values.shape != (shape if values.ndim == 2 else shape[1:]) or (
            values.ndim == 1 and extent.batch != 1
        ):
            raise MaskError(f"{name} is {values.shape}", f"expected (batch, keys), {shape}")
        rows = values.reshape(shape)
        biases: tuple[Bias, ...] = ()
        if values.dtype != bool and np.any(rows, where=real.reshape(shape)):
            biases = (Added(Cells(rows[:, None, None])),)
        said = None if biases else padding_text(real.reshape(shape))
        words = said or f"{name} {values.shape} {values.dtype}"
        return Mask(extent, Padding(real.reshape(shape)), biases, words, source=name)

    return bind


def attention_masker(tensor: Any, polarity: str, name: str, text: str | None = None) -> Masker:
    """Return the function that binds what transformers calls attention_mask.

    ``(B, Lk)`` is key padding, as ``padding_masker`` has it, and where the batch is as large as
    the queries are many a note says so; all else is a mask tensor.
    """
    array = np.asanyarray(tensor)

    def bind(extent: Extent) -> Mask:
        shape = (extent.batch, extent.keys)
        if array.shape != shape and not (array.shape == shape[1:] and extent.batch == 1):
            return tensor_masker(array, polarity, name, text)(extent)
        mask = padding_masker(array, polarity, name)(extent)
        if array.ndim == 2 and extent.batch == extent.queries > 1:
            note = (
                f"{name} {array.shape} is read as key padding, (batch, keys), not as (queries, "
                f"keys): that would be (1, 1, {extent.queries}, {extent.keys})"
            )
            mask = replace(mask, notes=(*mask.notes, note))
        return mask

    return bind


def _zero_one(array: Array) -> Array:
    """Return 0 and 1 written as floats as bool: none would add 1 to some scores and 0 to others."""
    if array.dtype.kind in "biu" or not array.size:
        return array
    plain = (array == 0) | (array == 1)
    return array != 0 if plain.all() and (array == 1).any() else array


def mask_values(array: Array, polarity: str, name: str) -> Array:
    """Return a mask tensor as bool, True = keep, or as float; MaskError for anything else."""
    if array.dtype.kind in "iu":
        wrong = (array != 0) & (array != 1)
        if wrong.any():
            where = tuple(int(x) for x in np.argwhere(wrong)[0])
            raise MaskError(
                f"{name} is {array.dtype} and holds {array[where]} at {where}",
                "an integer mask must be 0 and 1; a mask that is added to the scores must be float",
            )
        array = array.astype(bool)
    if array.dtype == bool:
        return ~array if polarity == "ignore" else array
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise MaskError(f"{name} has dtype {array.dtype}", "expected bool (True = keep) or float")
    if polarity == "ignore":
        raise MaskError(
            f"the mask polarity is ignore, but {name} is {array.dtype}",
            "polarity speaks of bool masks; a float mask is added to the scores as it is",
        )
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def cells(array: Array, extent: Extent, name: str, notes: list[str]) -> Part:
    """Return what a tensor keeps and adds; what it was taken for in one of two ways: a note."""
    full = (extent.batch, extent.heads, extent.queries, extent.keys)
    if not 1 <= array.ndim <= 4:
        raise MaskError(
            f"{name} has {array.ndim} dimensions, {array.shape}",
            "expected (Lk), (Lq, Lk), (H, Lq, Lk), (B·H, Lq, Lk) or (B, H, Lq, Lk)",
        )
    shape = (1,) * (4 - array.ndim) + array.shape
    if array.ndim == 3 and extent.batch > 1:
        first = len(array)
        if first == extent.batch * extent.heads:
            shape = (extent.batch, extent.heads, *array.shape[1:])  # as in torch's layer
        elif first == extent.batch == extent.heads:
            notes.append(
                f"{name} {array.shape} is read as (heads, queries, keys); one for each batch "
                f"element would be ({first}, 1, {array.shape[1]}, {array.shape[2]})"
            )
    fits = [have in (1, want) for have, want in zip(shape[:3], full[:3], strict=True)]
    if not all(fits) or shape[3] > max(full[3], 1):
        hint = f"expected what broadcasts to (batch, heads, queries, keys) {full}"
        raise MaskError(
            f"{name} {array.shape} does not broadcast", hint + _guess(array.shape, extent)
        )
    kept = Cells(array.reshape(shape))
    if shape[3] == 0 and extent.keys:
        return Not(Everything()), ()
    if array.dtype == bool:
        return kept, ()
    return kept, (Added(kept),)


def _guess(shape: tuple[int, ...], extent: Extent) -> str:
    """Return what a tensor that does not broadcast looks like, or ''."""
    b, keys, queries = extent.batch, extent.keys, extent.queries
    if shape == (b, keys):
        return (
            f"; key padding is ({b}, 1, 1, {keys}), or this very tensor as --key-padding-mask "
            "or under the name key_padding_mask"
        )
    if len(shape) == 3 and shape[0] == b:
        return f"; one mask a batch element is ({b}, 1, Lq, Lk)"
    if len(shape) >= 2 and shape[-2:] == (keys, queries) != (queries, keys):
        return "; it looks transposed"
    return ""
