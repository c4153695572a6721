"""Runs of attention with its gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.engines import DEFAULT, ENGINES
from attncli.measures.evidence import Evidence
from attncli.measures.statistic import summarize
from attncli.resources import Progress
from attncli.studies.attend import Result, run

Array = np.ndarray[Any, np.dtype[Any]]

FORWARD = ("output", "lse", "row_statistics")
WANT = (*FORWARD, "gradients", "gradient_norms")


def run_forward(
    problem: Problem, *, backend: str = DEFAULT, device: str = "auto", threads: int | None = None,
    progress: Progress | None = None,
) -> Result:  # fmt: skip
    """Run attention without its gradients, in the arithmetic's precision."""
    result = run(
        replace(problem, result_dtype=problem.dtype), backend=backend, device=device,
        threads=threads, want=FORWARD, progress=progress,
    )  # fmt: skip
    return replace(result, problem=problem)


def run_both_ways(
    problem: Problem, upward: Array, *, alone: bool = False, backend: str = DEFAULT,
    device: str = "auto", threads: int | None = None, progress: Progress | None = None,
) -> Result:  # fmt: skip
    """Run attention and its gradients, for the gradient ``(B, H, Lq, Dv)`` of its output.

    With ``alone`` nothing but ‖dS‖ of them is wanted, and no sweep. Padding passes no gradient on.
    What it finds is in the arithmetic's precision: it is not rounded to the type of the inputs,
    unless by a kernel of a GPU, which is made for that type.
    """
    exact = replace(problem, result_dtype=problem.dtype)
    row = ENGINES.get(backend)
    on_gpu = row is not None and row.gpu and problem.dtype != np.float64
    result = run(
        problem if on_gpu else exact, _of_real(problem, upward), backend=backend, device=device,
        threads=threads, want=WANT, beside=("alone" if alone else "sums",), progress=progress,
    )  # fmt: skip
    return replace(result, problem=problem)


def run_rounded(
    problem: Problem, dtype: str, upward: Array, *, threads: int | None = None,
    progress: Progress | None = None,
) -> Evidence:  # fmt: skip
    """Run both ways with every stage rounded to a half precision; of the gradients only ‖dS‖."""
    from attncli.engines import How
    from attncli.engines.rounded import rounded

    done = rounded(problem, dtype, _of_real(problem, upward), How(threads, progress=progress))
    norms = {"grad_score_norm": done.score_norm}
    return Evidence(problem, done.rows, output=done.output, norms=norms)


def _of_real(problem: Problem, upward: Array) -> Array:
    """Return a gradient of the output, ``(B, H, Lq, Dv)``, with 0 for padding."""
    real = problem.real_rows[:, None, :, None]
    return upward if real.all() else np.where(real, upward, upward.dtype.type(0))


def median_gradient(evidence: Evidence) -> Array:
    """Return the median ‖dS_i‖ of each head's rows with a choice, ``(B, H)``."""
    return np.asarray(summarize(evidence.values("grad_score_norm"), evidence.chosen)["median"])
