"""What a tensor looks like that nobody has named."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

WEIGHTS_NOTE = (
    "its rows are ≥ 0 and sum to 1: these look like attention weights, not like queries; the "
    "queries and keys they were made from say more"
)
CLOSE = 4e-3  # of a sum to 1: half a unit in the last place of bfloat16
LARGEST = 1 << 22  # numbers that are looked at


def looks_like_weights(array: Array) -> bool:
    """Whether ``(…, L, L)`` holds rows of a softmax; of a large one the first matrices tell."""
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 2:
        return False
    size = array.shape[-1] ** 2
    if not array.size or array.dtype.kind == "c" or array.dtype.kind in "bU":
        return False
    first = array.reshape(-1, *array.shape[-2:])[: max(1, LARGEST // size)]
    rows = np.asarray(first[:, : max(1, LARGEST // array.shape[-1])], np.float64)
    sums = rows.sum(-1)
    return bool((rows >= 0).all() and np.allclose(sums, 1, rtol=0, atol=CLOSE))
