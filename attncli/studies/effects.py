"""Runs of attention with its gradients, and what a change does to them.

Also the table of ``--sweep-dim``, which is nothing but such runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attncli.attention.gradients import upstream
from attncli.attention.pose import pose
from attncli.attention.problem import Problem, Scale
from attncli.attention.rows import Rows
from attncli.measures import rows as measure_rows
from attncli.measures.outputs import vanishing_share
from attncli.measures.statistic import Found, quantile, summarize, with_cv
from attncli.resources import Progress, stages
from attncli.studies.attend import Result, run

Array = np.ndarray[Any, np.dtype[Any]]

VANISHED = 1e-3  # of the median row's ‖dS‖ at scale 1/√D
WANT = ("output", "lse", "row_statistics", "gradients", "gradient_norms")
SWEPT = 512  # queries and keys of --sweep-dim
SWEPT_VALUES = 64  # width of its values, the same for all
SWEPT_SCALES: tuple[Scale, ...] = ("auto", "none")


@dataclass(frozen=True, eq=False)
class Measured:
    """One run: rows, sink included; chosen: bool, the rows with a choice that are no padding.

    rows, chosen and score_norm (‖dS_i‖) are ``(B, H, Lq)``, output is ``(B, H, Lq, Dv)``, norms are
    those of ``Result.gradient_norms``.
    """

    problem: Problem
    rows: Rows
    chosen: Array
    output: Array
    score_norm: Array
    norms: Mapping[str, Array] = field(default_factory=dict)
    result: Result | None = None


@dataclass(frozen=True, eq=False)
class Effect:
    """What a change does: ``overall`` statistics of all rows of all heads, and those of heads.

    ``moved`` ``(B, H)`` is ‖O′ − O‖/‖O‖ over the rows that both have; ``lost`` how many rows of
    the output became NaN or infinite.
    """

    text: str
    overall: Mapping[str, float]
    heads: Found
    moved: Array
    moved_overall: float
    lost: int


def measure(
    problem: Problem, grad_output: Any, *, backend: str = "numpy", device: str = "auto",
    threads: int | None = None, progress: Progress | None = None,
) -> Measured:  # fmt: skip
    """Run attention and its gradients. grad_output: as ``gradients.upstream`` takes it.

    Padding passes no gradient on.
    """
    p = problem
    done = run(
        p, _real_upstream(p, grad_output), backend=backend, device=device, threads=threads,
        want=WANT, progress=progress,
    )  # fmt: skip
    assert done.rows is not None
    return Measured(
        problem=p,
        rows=done.rows,
        chosen=_chosen(p, done.rows),
        output=done.attended.output,
        score_norm=done.gradient_norms["grad_score_norm"],
        norms=done.gradient_norms,
        result=done,
    )


def measure_half(
    problem: Problem, dtype: str, grad_output: Any, *, threads: int | None = None,
    progress: Progress | None = None,
) -> Measured:  # fmt: skip
    """Run attention with every stage rounded to a half precision."""
    from attncli.engines import How
    from attncli.engines.rounded import rounded

    upward = _real_upstream(problem, grad_output)
    done = rounded(problem, dtype, upward, How(threads, progress=progress))
    return Measured(problem, done.rows, _chosen(problem, done.rows), done.output, done.score_norm)


def _real_upstream(problem: Problem, grad_output: Any) -> Array:
    """Return the gradient of the output, ``(B, H, Lq, Dv)``, 0 for padding."""
    upward = upstream(grad_output, problem)
    real = problem.real_rows[:, None, :, None]
    return upward if real.all() else np.where(real, upward, upward.dtype.type(0))


def _chosen(problem: Problem, rows: Rows) -> Array:
    return np.asarray((rows.n >= 2) & problem.real_rows[:, None])


def medians(measured: Measured) -> Array:
    """Return the median ‖dS_i‖ of each head's chosen rows, ``(B, H)``."""
    return summarize(measured.score_norm, measured.chosen)["median"]


def overview(measured: Measured, floor: Array) -> dict[str, float]:
    """Return the telling statistics over the rows of all heads. floor ``(B, H)``."""
    chosen = measured.chosen
    values = measure_rows.per_row(measured.rows)

    def pooled(array: Array) -> Array:
        some = array[chosen & np.isfinite(array)]
        some.sort()
        return some

    def at(some: Array, share: float) -> float:
        return quantile(some, share) if some.size else math.nan

    entropy, weights = pooled(values["entropy"]), pooled(values["max_weight"])
    norms = pooled(measured.score_norm)
    rows = measured.rows
    flat = Rows(**{
        name: array.reshape(1, 1, -1, *array.shape[3:]) for name, array in vars(rows).items()
    }).astype(np.float64)  # fmt: skip
    seen = (measured.problem.real_rows[:, None] & (rows.n > 0) & np.isfinite(rows.m2)).reshape(
        1, 1, -1
    )
    std = float(measure_rows.pooled_std(flat, seen)[0, 0])
    vanished = chosen & (measured.score_norm < floor[..., None])
    return {
        "logit_std": std,
        "score_variance": std**2,
        "logit_max": float(np.max(rows.amax, where=seen.reshape(rows.amax.shape), initial=0)),
        "saturated_share": float(np.mean(weights > measure_rows.SATURATED))
        if weights.size
        else math.nan,
        "entropy": at(entropy, 0.5),
        "max_weight": at(weights, 0.5),
        "grad_score_p05": at(norms, 0.05),
        "grad_score_median": at(norms, 0.5),
        "grad_score_cv": float(norms.std() / norms.mean())
        if norms.size and norms.mean()
        else math.nan,
        "vanishing_share": vanished.sum() / norms.size if norms.size else math.nan,
    }


def effect(text: str, measured: Measured, before: Measured, floor: Array) -> Effect:
    """Return what a change did to attention that was ``before``."""
    found = measure_rows.per_head(measured.rows, measured.problem.real_rows)
    found["grad_score_norm"] = with_cv(measured.score_norm, measured.chosen)
    found["vanishing_share"] = vanishing_share(measured.score_norm, measured.chosen, floor)
    shape = measured.chosen.shape
    apart, whole, lost = np.zeros(shape[:2]), np.zeros(shape[:2]), 0
    real = measured.problem.real_rows
    for b, h in np.ndindex(shape[:2]):
        old, new = (m.output[b, h][real[b]].astype(np.float64) for m in (before, measured))
        had, has = np.isfinite(old).all(1), np.isfinite(new).all(1)
        both = had & has
        apart[b, h] = np.sum((new[both] - old[both]) ** 2)
        whole[b, h] = np.sum(old[both] ** 2)
        lost += int((had & ~has).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.sqrt(apart / whole)
        overall = np.sqrt(apart.sum() / whole.sum())
    return Effect(text, overview(measured, floor), found, moved, float(overall), lost)


def sweep_dim(
    widths: Sequence[int], *, seed: int = 0, threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, dict[str, float], dict[str, float]]]:  # fmt: skip
    """Yield (width, scaled, unscaled) statistics of unit-normal Q, K, V and dO.

    SWEPT queries and keys; values are SWEPT_VALUES wide, so that gradients can be compared.
    """
    stage = stages(progress, (width + SWEPT_VALUES for width in widths for _ in SWEPT_SCALES))
    for width in widths:
        rng = np.random.default_rng([seed, width])
        query, key = rng.standard_normal((2, SWEPT, width))
        value = rng.standard_normal((SWEPT, SWEPT_VALUES))
        found = []
        floor = np.zeros((1, 1))
        for scale in SWEPT_SCALES:
            m = measure(
                pose(query, key, value, scale=scale),
                f"random:{seed}",
                threads=threads,
                progress=next(stage),
            )
            if scale == "auto":
                floor = VANISHED * medians(m)
            found.append(overview(m, floor))
        yield width, found[0], found[1]
