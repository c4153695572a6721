"""Statistics of the output and of the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.rows import Rows
from attncli.measures.statistic import share_of, statistic
from attncli.resources import Job, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]
OfOutput = Callable[[Array], float]

CLEAR = 1e-8  # of the largest σ²: the digits of any that is larger are kept
SMALL = 1 << 15  # numbers of the output that need no threads


# -- the output -------------------------------------------------------------------------------


def of_output(**facts: Any) -> Callable[[OfOutput], OfOutput]:
    """Register a formula of one head's finite outputs ``(n, Dv)``, float64, without padding.

    It must not depend on their unit: the largest is 1, so that squares are numbers.
    """

    def register(formula: OfOutput) -> OfOutput:
        @wraps(formula)
        def each(output: Array, real: Array, threads: int | None) -> Array:
            found = np.full(output.shape[:2], np.nan)

            def look(b: int, h: int) -> None:
                rows = output[b, h][real[b, h]].astype(np.float64)
                found[b, h] = formula(in_units(rows[np.isfinite(rows).all(1)])[0])

            jobs: list[Job] = [partial(look, *at) for at in np.ndindex(found.shape)]
            run_jobs(jobs, threads, output.size <= SMALL, None)
            return found

        del each.__wrapped__  # it takes all heads: the parameters are its own
        statistic("head", **facts)(each)
        return formula

    return register


@statistic("row", heading="‖o‖", over="real")
def output_norm(output: Array) -> Array:
    """‖o_i‖, ``(B, H, Lq)``."""
    found = np.empty(output.shape[:-1])
    for at in np.ndindex(output.shape[:2]):  # a head at a time stays in a processor's cache
        rows, unit = in_units(output[at].astype(np.float64), axis=-1)
        found[at] = np.sqrt(np.vecdot(rows, rows)) * unit[..., 0]
    return found


def in_units(values: Array, axis: int | None = None) -> tuple[Array, Array]:
    """Return values over a power of two near their largest magnitude, and it; 1 if it is none."""
    unit = unit_of(largest(values, axis, keepdims=True))
    return values / unit, unit


def largest(values: Array, axis: int | None = None, keepdims: bool = False) -> Array:
    """Return the largest magnitude, float64: NaN where there is one, 0 of nothing."""
    ends = (end(axis, keepdims=keepdims, initial=0) for end in (values.max, values.min))
    most, least = (np.asarray(end, np.float64) for end in ends)
    return np.asarray(np.maximum(most, -least))


def unit_of(most: Array) -> Array:
    """Return a power of two near these magnitudes; 1 where there is none."""
    unit = np.ldexp(0.5, np.frexp(np.where(np.isfinite(most), most, 0))[1])
    return np.where(most > 0, unit, 1)


@of_output(source="Roy & Vetterli 2007")
def effective_rank(output: Array) -> float:
    """exp H(σ/Σσ) of the singular values σ of the output, ``(n, Dv)``."""
    if not output.size:
        return math.nan
    tall = output if output.shape[0] >= output.shape[1] else output.T
    squares = np.linalg.eigvalsh(tall.T @ tall)
    if squares[0] > CLEAR * squares[-1]:
        values = np.sqrt(squares)
    else:  # squared, the small ones would be lost
        values = np.linalg.svd(np.linalg.qr(tall, mode="r"), compute_uv=False)
    total = values.sum()
    if not total > 0:
        return math.nan
    share = values[values > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


@of_output(source="Dong et al. 2021")
def rank_residual(output: Array) -> float:
    """‖X − 1x̄ᵀ‖/‖X‖ of the output: 0 when all its rows are the same, NaN for fewer than two.

    output ``(n, Dv)``.
    """
    whole = np.linalg.norm(output)
    if len(output) < 2 or not whole > 0:
        return math.nan
    return float(np.linalg.norm(output - output.mean(0)) / whole)


@statistic("head", source="IEEE 754 binary16")
def overflow_room(logit_max: Array, problem: Problem) -> Array:
    """65504/max|q·k|: below 1 float16 cannot hold the products, ``(B, H)``."""
    if not problem.scale:
        return np.full(logit_max.shape, np.nan)
    return np.asarray(65504 * abs(problem.scale) / logit_max)


@statistic("head", source="IEEE 754 binary16", inner=True)
def overflow_room_now(overflow_room: Array, problem: Problem) -> Array:
    """The same of inputs that are float16 themselves; NaN of others, ``(B, H)``."""
    half = problem.result_dtype.name == "float16"
    return overflow_room if half else np.full(overflow_room.shape, np.nan)


# -- the gradients ----------------------------------------------------------------------------


@statistic("row", source="softmax Jacobian", heading="‖dS‖", keep=8, spread=True)
def grad_score_norm(norms: Mapping[str, Array]) -> Array:
    """‖dS_i‖, ``(B, H, Lq)``."""
    return norms["grad_score_norm"]


@statistic("row", source="chain rule", heading="‖dQ‖", keep=7, spread=True)
def grad_query_norm(norms: Mapping[str, Array]) -> Array:
    """‖dQ_i‖, ``(B, H, Lq)``."""
    return norms["grad_query_norm"]


@statistic("key", source="chain rule", heading="‖dK‖", over="keys", spread=True)
def grad_key_norm(norms: Mapping[str, Array]) -> Array:
    """‖dK_j‖, ``(B, G, Lk)``."""
    return norms["grad_key_norm"]


@statistic("key", source="chain rule", heading="‖dV‖", over="keys", spread=True)
def grad_value_norm(norms: Mapping[str, Array]) -> Array:
    """‖dV_j‖, ``(B, G, Lk)``."""
    return norms["grad_value_norm"]


@statistic("head", unit="rows", source="Vaswani et al. 2017", heading="vanishing",
           kind="percent", keep=8)  # fmt: skip
def vanishing_share(grad_score_norm: Array, chosen: Array, floor: Array) -> Array:
    """Share of the rows with ‖dS‖ < 1e-3 of the median row's at scale 1/√D, ``(B, H)``."""
    share = share_of(grad_score_norm < floor[..., None], chosen & np.isfinite(grad_score_norm))
    return np.where(np.isfinite(floor), share, np.nan)


# -- what is not finite -----------------------------------------------------------------------


@statistic("head", unit="rows", kind="count")
def nonfinite_outputs(output: Array, real: Array) -> Array:
    """How many rows have an output that is NaN or infinite, ``(B, H)``."""
    return np.asarray((real & ~np.isfinite(output).all(-1)).sum(-1))


@statistic("head", unit="rows", kind="count")
def nonfinite_scores(scored: Rows, real: Array) -> Array:
    """How many rows have such a score, before softcap and bias, ``(B, H)``."""
    return np.asarray((real & ~np.isfinite(scored.amax)).sum(-1))


@statistic("head", kind="percent", inner=True)
def nonfinite_share(
    nonfinite: Array, real: Array, nonfinite_outputs: Array | None = None,
    nonfinite_scores: Array | None = None,
) -> Array:  # fmt: skip
    """Share of the rows with any of these three, the most frequent, ``(B, H)``."""
    lost = nonfinite
    for others in (nonfinite_outputs, nonfinite_scores):
        lost = lost if others is None else np.maximum(lost, others)
    return np.asarray(lost / np.maximum(real.sum(-1), 1))
