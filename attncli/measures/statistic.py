"""What a statistic is, and how those of rows are summed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}


@dataclass(frozen=True)
class Measure:
    """One statistic: what it is called, its unit, how it reads, where it comes from, its function.

    Those of ``MEASURES`` take Rows (sink included) to ``(B, H, Lq)``; those of ``OTHERS``
    what they say; ``second_sweep`` and ``sampled`` have tables of their own.
    """

    name: str
    unit: str
    text: str
    source: str
    formula: Callable[..., Any]


def summarize(values: Array, chosen: Array) -> dict[str, Array]:
    """Return mean, quantiles, min and max over the chosen rows, each ``(B, H)``.

    values and chosen ``(B, H, Lq)``. NaN where no row is chosen; rows whose value is not finite
    are left out (they are counted as ``nonfinite``).
    """
    chosen = chosen & np.isfinite(values)
    shape = values.shape[:2]
    names = ("mean", *QUANTILES, "min", "max")
    summary = {name: np.full(shape, np.nan) for name in names}
    for b, h in np.ndindex(shape):
        some = values[b, h][chosen[b, h]]
        if some.size:
            summary["mean"][b, h] = some.mean()
            summary["min"][b, h], summary["max"][b, h] = some.min(), some.max()
            some.sort()
            for name, share in QUANTILES.items():
                summary[name][b, h] = quantile(some, share)
    return summary


def quantile(ordered: Array, share: float) -> float:
    """Return a quantile of ``(n,)`` ascending numbers, interpolated as np.quantile does.

    Which would import numpy.ma, 15 ms at the start of the program.
    """
    at = (len(ordered) - 1) * share
    low = min(int(at), len(ordered) - 1)
    a, b, t = float(ordered[low]), float(ordered[min(low + 1, len(ordered) - 1)]), at - low
    return a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)


def with_cv(values: Array, chosen: Array) -> dict[str, Array]:
    """Return the summary with the coefficient of variation, ``(B, H)`` each."""
    found = summarize(values, chosen)
    chosen = chosen & np.isfinite(values)
    count = np.maximum(chosen.sum(-1), 1)
    away = np.where(chosen, values - found["mean"][..., None], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["cv"] = np.sqrt((away**2).sum(-1) / count) / found["mean"]
    return found


Found = dict[str, Mapping[str, Array] | Array]


def of_head(found: Mapping[str, Any], b: int, h: int) -> dict[str, Any]:
    """Return the statistics of one head by name: quantiles, or one number."""
    return {
        name: {q: v[b, h].item() for q, v in values.items()}
        if isinstance(values, Mapping)
        else values[b, h].item()
        for name, values in found.items()
    }
