"""What the running sums say about attention: one function a statistic.

They come from Rows, in O(1) a row and without the weights. Padding and rows with fewer than two
visible keys, which have no choice to make, are left out of every summary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from attncli.attention.rows import Rows
from attncli.measures.statistic import share_of, statistic

Array = np.ndarray[Any, np.dtype[Any]]
OfRows = TypeVar("OfRows", bound=Callable[..., Array])

SATURATED = 0.99  # a row whose largest weight is above this passes next to no gradient


def of_rows(**facts: Any) -> Callable[[OfRows], OfRows]:
    """Register a formula of rows, ``(B, H, Lq)``, as one that is NaN where a row sees no key."""

    def register(formula: OfRows) -> OfRows:
        @wraps(formula)
        def seen(rows: Rows, *others: Array) -> Array:
            return np.where(rows.n == 0, np.nan, formula(rows, *others))

        statistic("row", **facts)(seen)
        return formula

    return register


def _e1(rows: Rows) -> Array:
    return np.where(rows.e1 > 0, rows.e1, np.nan)


@of_rows(unit="nats", source="Zhai et al. 2023", keep=9)
def entropy(rows: Rows) -> Array:
    """−Σ p ln p, in nats: 0 where one key has all the weight, ln n where n share it alike.

    Computed as ln(1 + rest) − es/(1 + rest): no term is negative.
    """
    return np.log1p(rows.rest) - rows.es / _e1(rows)


@of_rows(source="Zhai et al. 2023")
def normalized_entropy(rows: Rows, entropy: Array) -> Array:
    """Entropy over its largest value, ln n; a sink is one more outcome."""
    outcomes = rows.n + rows.others
    return np.where(rows.n > 1, entropy / np.log(np.maximum(outcomes, 2)), np.nan)


@statistic("row", unit="keys", source="perplexity", keep=6)
def effective_keys(entropy: Array) -> Array:
    """exp(entropy): how many keys the row really uses."""
    return np.exp(entropy)


def _weight(rows: Rows, z: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(rows.e1 > 0, np.exp(z - rows.m) / rows.e1, np.nan)


@of_rows(keep=8)
def max_weight(rows: Rows) -> Array:
    """The largest weight of a key (a sink is none)."""
    z = np.where(rows.top_j >= 0, rows.top_z, -np.inf).max(-1)
    return _weight(rows, z)


def _apart(rows: Rows) -> tuple[Array, Array, Array, Array]:
    """p₁, 1 − p₁ and, of all weights but p₁, Σp² and Σp³."""
    e1 = _e1(rows)
    return 1 / e1, rows.rest / e1, rows.rest2 / e1**2, rows.rest3 / e1**3


@of_rows(source="softmax Jacobian", heading="Jacobian trace", keep=3)
def jacobian_trace(rows: Rows) -> Array:
    """1 − Σp² = (1 − p₁)(1 + p₁) − Σ'p²: the sum of the eigenvalues of diag(p) − ppᵀ."""
    p1, others, p2, _ = _apart(rows)
    return np.asarray(others * (1 + p1) - p2)


@of_rows(source="softmax Jacobian", heading="Frobenius", keep=2)
def jacobian_frobenius(rows: Rows) -> Array:
    """√(Σp² − 2Σp³ + (Σp²)²) of diag(p) − ppᵀ, p₁ set apart: nothing large is subtracted."""
    p1, others, p2, p3 = _apart(rows)
    squared = (p1 * others) ** 2 + p2 * (1 + 2 * p1**2) - 2 * p3 + p2**2
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


@of_rows(source="interlacing", heading="spectral bounds", keep=1)
def jacobian_spectral_low(rows: Rows) -> Array:
    """Lower bound p₂ of the largest eigenvalue of diag(p) − ppᵀ (eigenvalues interlace with p)."""
    return _weight(rows, rows.top_z[..., 1])


@of_rows(source="Gershgorin", heading="spectral bounds", keep=1)
def jacobian_spectral_high(rows: Rows) -> Array:
    """Upper bound min(½, p₁(1 − p₁ + p₂)) of the largest eigenvalue of diag(p) − ppᵀ."""
    p1, others, _, _ = _apart(rows)
    return np.asarray(np.minimum(0.5, p1 * (others + _weight(rows, rows.top_z[..., 1]))))


@of_rows(source="Xiao et al. 2024", heading="first key", keep=2)
def first_key_mass(rows: Rows, first: Array) -> Array:
    """Weight of key 0, or of the first that is no padding."""
    return _weight(rows, first)


@of_rows(source="Derrida 1981")
def logit_std_ratio(scored: Rows) -> Array:
    """σ/√(2 ln n) of the row's visible scores; above 1 a few of n random ones take all."""
    n = np.maximum(scored.n, 2)
    spread = np.sqrt(np.maximum(scored.m2, 0) / n)
    return np.where(scored.n > 1, spread / np.sqrt(2 * np.log(n)), np.nan)


@statistic("head", unit="rows", heading="saturated", kind="percent", keep=8)
def saturated_share(max_weight: Array, chosen: Array) -> Array:
    """Share of the rows with max weight > 0.99, ``(B, H)``."""
    return share_of(max_weight > SATURATED, chosen & np.isfinite(max_weight))


@statistic("head", source="Kimi K2 2025", heading="max logit", keep=8)
def logit_max(scored: Rows, real: Array) -> Array:
    """The largest magnitude of a visible score (scaled, before softcap and bias), ``(B, H)``."""
    seen = real & (scored.n > 0)
    largest = np.where(seen, scored.amax, 0).max(-1, initial=0)
    return np.where(seen.any(-1), largest, np.nan)


@statistic("head", keep=4)
def logit_std(scored: Rows, real: Array) -> Array:
    """Standard deviation of the visible scores, ``(B, H)``."""
    return pooled_std(scored, real & (scored.n > 0))


@statistic("head", inner=True, keep=9)
def score_variance(logit_std: Array) -> Array:
    """The variance of the visible scores, which grows with the width unless they are scaled."""
    return np.asarray(logit_std**2)


@statistic("head", name="rows", unit="rows", kind="count")
def row_count(real: Array) -> Array:
    """How many rows are no padding, ``(B, H)``."""
    return np.asarray(real.sum(-1))


@statistic("head", unit="rows", kind="count")
def rows_with_choice(chosen: Array) -> Array:
    """How many of them see at least two keys, ``(B, H)``."""
    return np.asarray(chosen.sum(-1))


@statistic("head", unit="rows", kind="count", keep=10)
def dead_rows(rows: Rows, real: Array) -> Array:
    """How many see no key, ``(B, H)``."""
    return np.asarray((real & ~np.isfinite(rows.m) & ~(rows.m > 0) & ~np.isnan(rows.m)).sum(-1))


@statistic("head", unit="rows", heading="not finite", kind="count", keep=10)
def nonfinite(rows: Rows, real: Array) -> Array:
    """How many have scores that are NaN or infinite, ``(B, H)``."""
    return np.asarray((real & (np.isnan(rows.m) | np.isposinf(rows.m))).sum(-1))


@statistic("head", inner=True, kind="percent")
def dead_share(dead_rows: Array, real: Array) -> Array:
    """Share of the rows that see no key, ``(B, H)``."""
    return np.asarray(dead_rows / np.maximum(real.sum(-1), 1))


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
