"""What the running sums say about attention: one function a statistic, one row a statistic.

Statistics of rows come from Rows, in O(1) a row and without the weights. Padding and rows with
fewer than two visible keys, which have no choice to make, are left out of every summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli.attention.rows import Rows
from attncli.measures.statistic import Measure, summarize

Array = np.ndarray[Any, np.dtype[Any]]

SATURATED = 0.99  # a row whose largest weight is above this passes next to no gradient


def _log_e1(rows: Rows) -> Array:
    return np.log(np.where(rows.e1 > 0, rows.e1, np.nan))


def entropy(rows: Rows) -> Array:
    """−Σ p ln p = ln e1 − es/e1, in nats; at least 0."""
    h = _log_e1(rows) - rows.es / np.where(rows.e1 > 0, rows.e1, np.nan)
    return np.where(np.isnan(h), np.nan, np.maximum(h, 0))


def normalized_entropy(rows: Rows) -> Array:
    """Entropy over its largest value, ln n; a sink is one more outcome."""
    outcomes = rows.n + rows.others
    return np.where(rows.n > 1, entropy(rows) / np.log(np.maximum(outcomes, 2)), np.nan)


def effective_keys(rows: Rows) -> Array:
    """exp(entropy): how many keys the row really uses."""
    return np.exp(entropy(rows))


def _weight(rows: Rows, z: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(rows.e1 > 0, np.exp(z - rows.m) / rows.e1, np.nan)


def max_weight(rows: Rows) -> Array:
    """The largest weight of a key (a sink is none)."""
    z = np.where(rows.top_j >= 0, rows.top_z, -np.inf).max(-1)
    return _weight(rows, z)


def _power_sums(rows: Rows) -> tuple[Array, Array]:
    e1 = np.where(rows.e1 > 0, rows.e1, np.nan)
    return rows.e2 / e1**2, rows.e3 / e1**3


def jacobian_trace(rows: Rows) -> Array:
    """1 − Σp²: the sum of the eigenvalues of diag(p) − ppᵀ."""
    return np.asarray(np.maximum(1 - _power_sums(rows)[0], 0))


def jacobian_frobenius(rows: Rows) -> Array:
    """√(Σp² − 2Σp³ + (Σp²)²) of diag(p) − ppᵀ."""
    p2, p3 = _power_sums(rows)
    return np.asarray(np.sqrt(np.maximum(p2 - 2 * p3 + p2**2, 0)))


def _two_largest(rows: Rows) -> tuple[Array, Array]:
    return _weight(rows, rows.top_z[..., 0]), _weight(rows, rows.top_z[..., 1])


def jacobian_spectral_low(rows: Rows) -> Array:
    """Lower bound p₂ of the largest eigenvalue of diag(p) − ppᵀ (eigenvalues interlace with p)."""
    return _two_largest(rows)[1]


def jacobian_spectral_high(rows: Rows) -> Array:
    """Upper bound min(½, p₁(1 − p₁ + p₂)) of the largest eigenvalue of diag(p) − ppᵀ."""
    p1, p2 = _two_largest(rows)
    return np.asarray(np.minimum(0.5, p1 * (1 - p1 + p2)))


def first_key_mass(rows: Rows) -> Array:
    """Weight of key 0."""
    return _weight(rows, rows.first)


def logit_std_ratio(rows: Rows) -> Array:
    """σ/√(2 ln n) of the row's visible scores; above 1 a few of n random ones take all."""
    n = np.maximum(rows.n, 2)
    spread = np.sqrt(np.maximum(rows.m2, 0) / n)
    return np.where(rows.n > 1, spread / np.sqrt(2 * np.log(n)), np.nan)


MEASURES = (
    Measure("entropy", "nats", "0: one key only; ln n: all alike", "Zhai et al. 2023", entropy),
    Measure("normalized_entropy", "", "entropy / ln n", "Zhai et al. 2023", normalized_entropy),
    Measure("effective_keys", "keys", "exp(entropy)", "perplexity", effective_keys),
    Measure("max_weight", "", "the largest weight", "", max_weight),
    Measure("jacobian_trace", "", "1 − Σp²", "softmax Jacobian", jacobian_trace),
    Measure("jacobian_frobenius", "", "‖diag(p) − ppᵀ‖", "softmax Jacobian", jacobian_frobenius),
    Measure("jacobian_spectral_low", "", "lower bound", "interlacing", jacobian_spectral_low),
    Measure("jacobian_spectral_high", "", "upper bound", "Gershgorin", jacobian_spectral_high),
    Measure("first_key_mass", "", "weight of key 0", "Xiao et al. 2024", first_key_mass),
    Measure("logit_std_ratio", "", "σ/√(2 ln n) of its scores", "Derrida 1981", logit_std_ratio),
)


def per_row(rows: Rows) -> dict[str, Array]:
    """Return every row statistic by name, each ``(B, H, Lq)``; NaN for a row that sees no key."""
    rows = rows.astype(np.float64)
    dead = rows.n == 0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return {m.name: np.where(dead, np.nan, m.formula(rows)) for m in MEASURES}


def per_head(rows: Rows, real_rows: Array | None = None) -> dict[str, Mapping[str, Array] | Array]:
    """Return every statistic of a head: quantiles over its rows, or one number, as ``(B, H)``.

    rows: sink included. real_rows: bool ``(B, Lq)``, False for padding.
    """
    rows = rows.astype(np.float64)
    real = np.ones(rows.m.shape, bool)
    if real_rows is not None:
        real = np.broadcast_to(real_rows[:, None], rows.m.shape)
    choice = real & (rows.n >= 2)
    values = per_row(rows)
    result: dict[str, Mapping[str, Array] | Array] = {
        name: summarize(value, choice) for name, value in values.items()
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        count = choice.sum(-1)
        told = choice & np.isfinite(values["max_weight"])
        saturated = (told & (values["max_weight"] > SATURATED)).sum(-1)
        whole = told.sum(-1)
        result["saturated_share"] = np.where(whole > 0, saturated / np.maximum(whole, 1), np.nan)
        seen = real & (rows.n > 0)
        largest = np.where(seen, rows.amax, 0).max(-1, initial=0)
        result["logit_max"] = np.where(seen.any(-1), largest, np.nan)
        result["logit_std"] = pooled_std(rows, real & (rows.n > 0))
    result["rows"] = real.sum(-1)
    result["rows_with_choice"] = count
    result["dead_rows"] = (real & ~np.isfinite(rows.m) & ~(rows.m > 0) & ~np.isnan(rows.m)).sum(-1)
    result["nonfinite"] = (real & (np.isnan(rows.m) | np.isposinf(rows.m))).sum(-1)
    return result


def pooled_std(rows: Rows, chosen: Array) -> Array:
    """Standard deviation of the visible scores of a head, ``(B, H)``, pooled over its rows."""
    n = np.where(chosen, rows.n, 0).astype(np.float64)
    total = n.sum(-1)
    whole = np.maximum(total, 1)
    mean = (n * np.where(chosen, rows.mean, 0)).sum(-1) / whole
    with np.errstate(over="ignore", invalid="ignore"):
        between = n * np.where(chosen, rows.mean - mean[..., None], 0) ** 2
        within = np.where(chosen, rows.m2, 0)
        return np.where(total > 0, np.sqrt((between + within).sum(-1) / whole), np.nan)
