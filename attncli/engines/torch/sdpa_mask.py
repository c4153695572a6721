"""Masks in the words of PyTorch's scaled_dot_product_attention, or why it has none for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import FULL, Predicate

Array = np.ndarray[Any, np.dtype[Any]]

MASK_CELLS = 1 << 20  # a mask tensor up to here is cheaper than tiles


@dataclass(frozen=True)
class Said:
    """A mask in SDPA's words: the first ``keys`` only (None: all), causal, or a mask tensor.

    mask: bool, or float to be added, ``(B or 1, H or 1, Lq or 1, keys)``.
    """

    keys: int | None = None
    causal: bool = False
    mask: Array | None = None


def say(mask: Mask, dtype: np.dtype[Any]) -> Said | str:
    """Return how SDPA can be told this mask for inputs of ``dtype``, or why it cannot."""
    extent, keys = mask.extent, mask.extent.keys
    rest = []
    for part in mask.conjuncts():
        stop = part.keys_below()
        if stop is not None and len(set(stop)) == 1:
            keys = min(keys, stop[0])  # the same for all: a slice
        elif not part.everything():
            rest.append(part)
    if keys <= 0:
        return "no key is seen"
    if not mask.biases:
        rest = [part for part in rest if not _open_band(part, mask, keys)]
    cut = keys if keys < extent.keys else None
    if not rest and not mask.biases:
        return Said(cut)
    if len(rest) == 1 and not mask.biases and _is_causal(rest[0], mask):
        return Said(cut, causal=True)
    small = mask.compact(rows=True)
    e = small.extent
    shape = (e.batch, e.heads, e.queries, e.keys)
    if mask.varies.row and np.prod(shape, dtype=float) > MASK_CELLS:
        return f"a mask of {' × '.join(map(str, shape))} cells"
    tensor = small.tensor() if mask.biases else small.dense()
    return _why_not_added(tensor, dtype) or Said(mask=tensor)


def _open_band(part: Predicate, mask: Mask, keys: int) -> bool:
    """Whether the predicate is a band that hides none of the first keys."""
    e, edges = mask.extent, np.array([0, keys])
    return part.band() is not None and all(
        part.tiles(b, 0, 0, e.queries, edges)[0] == FULL for b in range(e.batch)
    )


def _is_causal(part: Predicate, mask: Mask) -> bool:
    """Whether the predicate is SDPA's causal: j ≤ i, counted from the top left."""
    band = part.band()
    return band is not None and all(
        band.high + offset == 0 and band.low + offset <= 1 - mask.extent.queries
        for offset in band.offset
    )


def _why_not_added(bias: Array, dtype: np.dtype[Any]) -> str:
    """Return why SDPA, which adds in the inputs' type, cannot add this bias, or ''."""
    if bias.dtype == bool:
        return ""
    if np.isnan(bias).any() or np.isposinf(bias).any():
        return "a bias that is not finite"
    with np.errstate(over="ignore"):
        kept = bias.astype(dtype)
    exact = np.array_equal(kept.astype(np.float64), bias)
    if (dtype.itemsize == 2 and not exact) or (np.isneginf(kept) != np.isneginf(bias)).any():
        return f"a bias that {dtype} cannot hold"
    return ""
