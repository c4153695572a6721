"""Masks in the words of PyTorch's scaled_dot_product_attention, or why it has none for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import (
    FULL,
    Added,
    Alibi,
    Band,
    Cells,
    Everything,
    KeysBelow,
    Relative,
)

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
        if isinstance(part, KeysBelow) and len(set(part.stop)) == 1:
            keys = min(keys, part.stop[0])  # the same for all: a slice
        elif not isinstance(part, Everything):
            rest.append(part)
    if keys <= 0:
        return "no key is seen"
    if not mask.biases:
        edges = np.array([0, keys])
        rest = [
            part
            for part in rest
            if not (
                isinstance(part, Band)
                and all(
                    part.tiles(b, 0, 0, extent.queries, edges)[0] == FULL
                    for b in range(extent.batch)
                )
            )
        ]
    cut = keys if keys < extent.keys else None
    if not rest and not mask.biases:
        return Said(cut)
    if len(rest) == 1 and not mask.biases and _is_causal(rest[0], mask):
        return Said(cut, causal=True)
    by_batch, by_head, by_row = _depends(mask)
    shape = (
        extent.batch if by_batch else 1, extent.heads if by_head else 1,
        extent.queries if by_row else 1, extent.keys,
    )  # fmt: skip
    if by_row and np.prod(shape, dtype=float) > MASK_CELLS:
        return f"a mask of {' × '.join(map(str, shape))} cells"
    tensor = _tensor(mask, shape)
    return _why_not_added(tensor, dtype) or Said(mask=tensor)


def _is_causal(part: Any, mask: Mask) -> bool:
    """Whether the predicate is SDPA's causal: j ≤ i, counted from the top left."""
    return isinstance(part, Band) and all(
        part.high + offset == 0 and part.low + offset <= 1 - mask.extent.queries
        for offset in part.offset
    )


def _depends(mask: Mask) -> tuple[bool, bool, bool]:
    """Return whether the mask differs between batch elements, heads and rows."""
    batches, heads = mask.distinct()
    by_batch, by_head = len(batches) > 1, len(heads) > 1
    by_row = not all(
        isinstance(part, KeysBelow | Everything)
        or (isinstance(part, Cells) and part.tensor.shape[2] == 1)
        for part in mask.conjuncts()
    )
    for bias in mask.biases:
        if isinstance(bias, Added):
            b, h, i, _ = bias.cells.tensor.shape
            by_batch, by_head, by_row = by_batch or b > 1, by_head or h > 1, by_row or i > 1
        else:
            known = isinstance(bias, Alibi | Relative)
            by_batch |= not known or len(set(bias.offset)) > 1  # type: ignore[attr-defined]
            by_head |= not (isinstance(bias, Relative) and len(bias.table) == 1)
            by_row = True
    return by_batch, by_head, by_row


def _tensor(mask: Mask, shape: tuple[int, ...]) -> Array:
    """Return the mask as bool, or as float with −∞ where hidden; of that shape."""
    batch, heads, rows, keys = shape
    keep = np.empty(shape, bool)
    bias = np.zeros(shape) if mask.biases else None
    for b, h in np.ndindex(batch, heads):
        keep[b, h] = mask.keep(b, h, 0, rows, 0, keys)
        if bias is not None:
            bias[b, h] = mask.bias(b, h, 0, rows, 0, keys)
    return keep if bias is None else np.where(keep, bias, -np.inf)


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
