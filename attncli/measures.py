"""What the running sums say about attention: one function a statistic, one row a statistic.

Statistics of rows come from Rows, in O(1) a row and without the weights. Padding and rows with
fewer than two visible keys, which have no choice to make, are left out of every summary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.rows import Rows

Array = np.ndarray[Any, np.dtype[Any]]

SATURATED = 0.99  # a row whose largest weight is above this passes next to no gradient
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


# -- the output and the gradients -------------------------------------------------------------


def effective_rank(output: Array) -> float:
    """exp H(σ/Σσ) of the singular values σ of ``(n, Dv)`` outputs."""
    if not output.size:
        return math.nan
    tall = output if output.shape[0] >= output.shape[1] else output.T
    values = np.linalg.svd(np.linalg.qr(tall, mode="r"), compute_uv=False)
    total = values.sum()
    if not total > 0:
        return math.nan
    share = values[values > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


def rank_residual(output: Array) -> float:
    """‖X − 1x̄ᵀ‖/‖X‖ of ``(n, Dv)`` outputs: 0 when all are the same, NaN for fewer than two."""
    whole = np.linalg.norm(output)
    if len(output) < 2 or not whole > 0:
        return math.nan
    return float(np.linalg.norm(output - output.mean(0)) / whole)


def output_norm(output: Array) -> Array:
    """‖o_i‖ of each row, ``(…)``."""
    return np.asarray(np.sqrt(np.vecdot(output, output)))


def overflow_room(logit_max: Array, scale: float) -> Array:
    """65504/max|q·k|: below 1 float16 cannot hold the products. logit_max ``(B, H)``."""
    with np.errstate(divide="ignore"):
        return (
            np.asarray(65504 * abs(scale) / logit_max)
            if scale
            else np.full(logit_max.shape, np.nan)
        )


def vanishing_share(norms: Array, chosen: Array, floor: Array) -> Array:
    """Share of the chosen rows with ‖dS_i‖ < floor. norms ``(B, H, Lq)``, floor ``(B, H)``."""
    chosen = chosen & np.isfinite(norms)
    count = chosen.sum(-1)
    below = (chosen & (norms < floor[..., None])).sum(-1)
    known = (count > 0) & np.isfinite(floor)
    return np.where(known, below / np.maximum(count, 1), np.nan)


def _norm(name: str) -> Callable[[Mapping[str, Array]], Array]:
    return lambda norms: norms[name]


OTHERS = (
    Measure("effective_rank", "", "exp H(σ/Σσ) of the output", "Roy & Vetterli 2007",
            effective_rank),
    Measure("rank_residual", "", "‖X − 1x̄ᵀ‖/‖X‖ of the output", "Dong et al. 2021", rank_residual),
    Measure("output_norm", "", "‖o_i‖", "", output_norm),
    Measure("overflow_room", "", "65504/max|q·k|", "IEEE 754 binary16", overflow_room),
    Measure("vanishing_share", "", "share of rows with ‖dS‖ < 1e-3 of the median row's at 1/√D",
            "Vaswani et al. 2017", vanishing_share),
    Measure("grad_score_norm", "", "‖dS_i‖", "softmax Jacobian", _norm("grad_score_norm")),
    Measure("grad_query_norm", "", "‖dQ_i‖", "chain rule", _norm("grad_query_norm")),
    Measure("grad_key_norm", "", "‖dK_j‖", "chain rule", _norm("grad_key_norm")),
    Measure("grad_value_norm", "", "‖dV_j‖", "chain rule", _norm("grad_value_norm")),
)  # fmt: skip


def with_cv(values: Array, chosen: Array) -> dict[str, Array]:
    """Return the summary with the coefficient of variation, ``(B, H)`` each."""
    found = summarize(values, chosen)
    chosen = chosen & np.isfinite(values)
    count = np.maximum(chosen.sum(-1), 1)
    away = np.where(chosen, values - found["mean"][..., None], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["cv"] = np.sqrt((away**2).sum(-1) / count) / found["mean"]
    return found
