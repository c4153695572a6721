"""Statistics of the output and of the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from attncli.measures.statistic import Measure

Array = np.ndarray[Any, np.dtype[Any]]


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
