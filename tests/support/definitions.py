"""Attention and its gradients by their formulas, dense."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.attention import definition
from attncli.attention.gradients import upstream
from attncli.attention.problem import Problem


def by_formulas(problem: Problem, b: int, h: int) -> dict[str, Any]:
    """Weights, scores and gradients of one head, by their formulas."""
    stage = definition.stages(problem, b, h)
    p, keep = stage["weights"], stage["keep"]
    do = upstream("random:0", problem)[b, h] * problem.real_rows[b][:, None]
    value = problem.value[b, problem.group(h)]
    dp = do @ value.T
    ds = np.zeros(p.shape)
    for i in range(len(p)):
        ds[i] = (np.diag(p[i]) - np.outer(p[i], p[i])) @ dp[i]
    if problem.softcap is not None:
        ds = ds * (1 - np.tanh(stage["scores"] / problem.softcap) ** 2)
    ds = np.where(keep, ds, 0)
    key, query = problem.key[b, problem.group(h)], problem.query[b, h]
    return {
        "p": p, "keep": keep, "scores": stage["scores"], "ds": ds, "output": p @ value,
        "dq": problem.scale * ds @ key, "dk": problem.scale * ds.T @ query, "dv": p.T @ do,
    }  # fmt: skip
