"""What limits the keys of a layer: its own mask and biases, mask tensors, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention import language
from attncli.attention.biases import Added, Alibi, Relative, alibi_slopes
from attncli.attention.cells import Cells
from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import Everything
from attncli.attention.problem import Masker
from attncli.attention.tensors import padding_masker, tensor_masker
from attncli.errors import InputError, MaskError
from attncli.models.layer import Layer, PositionBias

Array = np.ndarray[Any, np.dtype[Any]]


def maskers(
    layer: Layer, cross: bool, mask: Any, attn_mask: Any, padding: Any, polarity: str
) -> list[Masker]:  # fmt: skip
    """Return what limits the keys: the layer's own rule or the mask given, tensors, biases."""
    if polarity not in ("keep", "ignore"):
        raise MaskError(f"unknown mask polarity '{polarity}'", "it must be keep or ignore")
    if mask is None:
        mask = _own(layer, padding, polarity) if not cross else ()
    masks = [mask] if isinstance(mask, str | Mask) or callable(mask) else list(mask)
    found = [language.masker(m) for m in masks if m not in ("", "none")]
    if not cross and layer.alibi is not None:
        slopes = layer.alibi
        usual = slopes == alibi_slopes(layer.heads)
        said = "alibi" if usual else f"alibi({', '.join(map(repr, slopes))})"
        found.append(
            lambda extent: Mask(
                extent, Everything(), (Alibi(slopes, extent.offsets(None)),), text=said
            )
        )
    if not cross and layer.relative is not None:
        found.append(_relative(layer, layer.relative))
    if attn_mask is not None:
        kind = polarity if np.asanyarray(attn_mask).dtype.kind in "biu" else "keep"  # of bool masks
        found.append(tensor_masker(attn_mask, kind))
    if padding is not None:
        found.append(padding_masker(padding, polarity))
    return found


def _own(layer: Layer, padding: Any, polarity: str) -> str:
    """Return the layer's mask; chunks begin at the first real token, as transformers counts."""
    if not layer.chunk or padding is None or np.asanyarray(padding).dtype.kind not in "biu":
        return layer.mask
    real = np.atleast_2d(np.asanyarray(padding)).astype(bool) ^ (polarity == "ignore")
    starts = np.where(real.any(-1), real.argmax(-1), 0).tolist()
    return f"chunks({layer.chunk}, {starts})" if any(starts) else layer.mask


def beyond(maskers: Sequence[Masker], added: int) -> Masker:
    """Return a masker of all masks whose last ``added`` keys, which they do not know, are seen."""

    def bind(extent: Extent) -> Mask:
        inner = replace(extent, keys=extent.keys - added)
        mask = Mask(inner)
        for masker in maskers:
            mask = mask & masker(inner)
        if mask.trivial:
            return Mask(extent, text=mask.text, notes=mask.notes)
        pad = ((0, 0), (0, 0), (0, 0), (0, added))
        small = mask.compact()
        keeps = Cells(np.pad(small.dense(), pad, constant_values=True))
        biases = (Added(Cells(np.pad(small.tensor(hidden=0), pad))),) if mask.has_bias else ()
        return Mask(extent, keeps, biases, mask.text, mask.notes)

    return bind


def _relative(layer: Layer, relative: PositionBias) -> Masker:
    table = layer.tensor(relative.tensor).T  # (H, buckets or cells)
    if relative.kind == "buckets":
        reach = relative.distance
        at = buckets(np.arange(-reach, reach + 1), table.shape[1], reach, relative.bidirectional)
        by_distance = np.ascontiguousarray(table[:, at])  # (H, 2·reach + 1)
        return lambda extent: Mask(
            extent, Everything(), (Relative(by_distance, extent.offsets(None)),),
            text="relative buckets",
        )  # fmt: skip
    index = grid_offsets(relative.window, table.shape[1])

    def bind(extent: Extent) -> Mask:
        if (extent.queries, extent.keys) != index.shape:
            height, width = relative.window
            raise InputError(
                f"{layer.label} has a position bias for {index.shape[0]} positions, an image of "
                f"{height} × {width} patches, but x has {extent.queries}",
                "give the hidden states of one window (Swin), or of an image of that size (BEiT)",
            )
        cells = Cells(table[None, :, index])  # (1, H, L, L)
        return Mask(extent, Everything(), (Added(cells),), text="relative grid")

    return bind


def buckets(distance: Array, count: int, longest: int, bidirectional: bool) -> Array:
    """Return T5's bucket of each distance j − i (Raffel et al. 2020).

    One a distance up to half of them, then logarithmic: in float32, as its authors and
    transformers compute it, which decides at powers of two.
    """
    found = np.zeros(distance.shape, np.int64)
    if bidirectional:
        count //= 2
        found += np.where(distance > 0, count, 0)
        far = np.abs(distance)
    else:
        far = np.maximum(-distance, 0)
    exact = count // 2
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(longest / exact)) * np.float32(count - exact)
    large = np.minimum(exact + steps.astype(np.int64), count - 1)
    return found + np.where(far < exact, far, large)


def grid_offsets(window: tuple[int, int], cells: int) -> Array:
    """Return the table row of each pair of patches ``(L, L)``; BEiT's has [CLS] first."""
    height, width = window
    rows, columns = (a.reshape(-1) for a in np.indices(window))
    dr = rows[:, None] - rows[None, :] + height - 1
    dc = columns[:, None] - columns[None, :] + width - 1
    index = dr * (2 * width - 1) + dc
    if cells == (2 * height - 1) * (2 * width - 1):
        return np.asarray(index)
    index = np.pad(index, ((1, 0), (1, 0)))
    index[0, :], index[:, 0], index[0, 0] = cells - 3, cells - 2, cells - 1
    return np.asarray(index)
