"""What a mask becomes in another library's words, and the parts that dialects share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import FAR, Diagonals, Predicate

Array = np.ndarray[Any, np.dtype[Any]]

CAUSAL = (-FAR, 0)


@dataclass(frozen=True)
class Spoken:
    """A mask as a library takes it: ``tensors`` and ``arguments`` by parameter name.

    ``call`` is how to pass them, ``notes`` what to mind; ``code`` is Python that the call names and
    that reads the tensors.
    """

    dialect: str
    call: str
    tensors: Mapping[str, Array] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    code: str = ""


def keep_tensor(mask: Mask) -> Array:
    """Return bool ``(B or 1, H or 1, Lq, Lk)``, True = keep; 1 where all are alike."""
    return mask.compact().dense()


def additive_tensor(mask: Mask, dtype: Any = np.float32, hidden: float = -np.inf) -> Array:
    """Return float ``(B or 1, H or 1, Lq, Lk)``: the biases, and ``hidden`` where masked."""
    if not mask.has_bias:
        return mask.compact().tensor(dtype, hidden)
    tensor = mask.tensor(dtype, hidden)
    return tensor[:1] if (tensor == tensor[:1]).all() else tensor


def reduced(array: Array) -> Array:
    """``(1, 1, Lq, Lk)`` → ``(Lq, Lk)``, others as they are."""
    return array[0, 0] if array.shape[:2] == (1, 1) else array


def split(mask: Mask) -> tuple[Diagonals | None, list[Predicate]]:
    """Return the one band that the bands among the conjuncts amount to, and the others."""
    parts = [part for part in mask.conjuncts() if not part.everything()]
    bands = [band for part in parts if (band := part.band())]
    if not bands or len({band.offset for band in bands}) > 1:
        return None, parts
    low, high = max(b.low for b in bands), min(b.high for b in bands)
    return Diagonals(low, high, bands[0].offset), [part for part in parts if not part.band()]
