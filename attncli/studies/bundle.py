"""What a problem needs beside its tensors, so that `compute` and `inspect` give the same again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli.attention import language
from attncli.attention.masks import Extent, Mask
from attncli.attention.patterns import KeysBelow
from attncli.attention.problem import Problem
from attncli.errors import MaskError
from attncli.measures.masks import difference

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 1 << 24  # cells of a mask tensor that is made
EDGE = 64  # rows at both ends where a larger bias is compared


def options_of(problem: Problem) -> tuple[dict[str, Any], dict[str, Array], str]:
    """Return options, further arrays, and what is missing in words, if anything.

    A mask that no expression says becomes the array ``attn_mask``, ``(1 or B, 1 or H, Lq, Lk)``,
    unless it is too large.
    """
    p = problem
    options: dict[str, Any] = {"scale": p.scale}
    if p.softcap is not None:
        options["softcap"] = p.softcap
    lengths = p.mask.extent.lengths
    if lengths is not None:
        options["kv_lengths"] = list(lengths)
    arrays = {} if p.sink is None else {"sink": np.array(p.sink)}
    text = _expression(p.mask)
    if text is None:
        e = p.mask.extent
        if e.batch * e.heads * e.queries * e.keys > LARGEST:
            missing = f"the mask ({p.mask.words}) is too large to go along as a tensor"
            return options, arrays, missing
        whole = p.mask.has_bias
        arrays["attn_mask"] = p.mask.tensor(p.dtype) if whole else p.mask.compact().dense()
    elif text:
        options["mask"] = text
    return options, arrays, ""


def flags_of(options: Mapping[str, Any]) -> str:
    """Return the flags of `compute` that say the options, for files that hold none."""
    said = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        quoted = f"'{text}'" if set(text) & set(" ()&|~") else text
        said.append(f"--{name.replace('_', '-')} {quoted}")
    return " ".join(said)


def _expression(mask: Mask) -> str | None:
    """Return the expression that gives this mask where nothing else is known; '' for none."""
    e = mask.extent
    extent = Extent(e.batch, e.heads, e.queries, e.keys, lengths=e.lengths)
    try:
        again = language.masker(mask.text)(extent) if mask.text else Mask(extent)
    except MaskError:
        return None
    if e.lengths is not None:
        again = again & Mask(extent, KeysBelow(e.lengths))
    if difference(mask, again).first is not None or not _same_bias(mask, again):
        return None
    return mask.text


def _same_bias(one: Mask, other: Mask) -> bool:
    if one.has_bias != other.has_bias:
        return False
    e = one.extent
    ends = [(0, e.queries)]
    if e.batch * e.heads * e.queries * e.keys > LARGEST:
        ends = [(0, min(EDGE, e.queries)), (max(0, e.queries - EDGE), e.queries)]
    return not one.has_bias or all(
        np.array_equal(one.bias(b, h, *rows, 0, e.keys), other.bias(b, h, *rows, 0, e.keys))  # type: ignore[arg-type]
        for b in range(e.batch)
        for h in range(e.heads)
        for rows in ends
    )
