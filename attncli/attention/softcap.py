"""The softcap of attention scores, cap·tanh(s/cap): no score passes ±cap (Gemma 2, 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def softcapped(s: Array, cap: float | None, out: Array | None = None) -> Array:
    """Return cap·tanh(s/cap) in the dtype and shape of s; s itself without a cap.

    ``out`` may be s.
    """
    if cap is None:
        return s
    unit = s.dtype.type(cap)
    out = np.asarray(np.divide(s, unit, out=out))
    np.tanh(out, out=out)
    np.multiply(out, unit, out=out)
    return out


def softcap_with_slope(t: Array, cap: float, slope: Array) -> None:
    """Turn t = s/cap into cap·tanh(t), and write its derivative by s, 1 − tanh²(t), into slope."""
    np.tanh(t, out=t)
    np.multiply(t, t, out=slope)
    np.subtract(1, slope, out=slope)
    np.multiply(t, t.dtype.type(cap), out=t)
