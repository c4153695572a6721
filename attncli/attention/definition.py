"""The specification: attention written down as its definition, one head, dense, in float64.

Nothing here is fast, and no fast engine reads it: every engine is judged by it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.softcap import softcapped

Array = np.ndarray[Any, np.dtype[Any]]


def stages(
    problem: Problem, b: int, h: int, rows: Array | None = None, keys: Array | None = None
) -> dict[str, Array]:
    """Return the stages of one head for some query rows (all by default), each ``(n, Lk)``.

    ``keys`` leaves out keys that none of the rows sees: they would change nothing.

    ``scores``, ``softcapped``, ``masked``, ``weights`` in float64, ``keep`` in bool: the taps of
    ONNX's Attention (qk_matmul_output_mode 0 to 3); and ``lse`` ``(n,)``, log Σ exp of the masked
    scores and the sink. A row that sees no key has zero weights.
    """
    rows = np.arange(problem.queries) if rows is None else rows
    i, j = rows[:, None], (np.arange(problem.keys) if keys is None else keys)[None, :]
    q = np.asarray(problem.query[b, h][rows], np.float64)
    key = problem.key[b, problem.group(h)]
    k = np.asarray(key if keys is None else key[keys], np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = problem.scale * (q @ k.T)  # (n, Lk)
        capped = softcapped(scores, problem.softcap)
        keep = np.broadcast_to(problem.mask.predicate.allows(b, h, i, j), scores.shape)
        masked = capped
        for bias in problem.mask.biases:
            masked = masked + bias.at(b, h, i, j)
        masked = np.where(keep, masked, -np.inf)
        weights, lse = _softmax(masked, problem, h)
    return {
        "scores": scores, "softcapped": capped, "masked": masked, "weights": weights,
        "keep": keep, "lse": lse,
    }  # fmt: skip


def _softmax(masked: Array, problem: Problem, h: int) -> tuple[Array, Array]:
    """Return weights ``(n, Lk)`` and lse ``(n,)`` with the sink in the denominator."""
    if problem.softmax_dtype is not None:
        masked = masked.astype(problem.softmax_dtype).astype(np.float64)
    sink = -np.inf if problem.sink is None else problem.sink[h]
    top = np.maximum(masked.max(-1, initial=-np.inf), sink)
    shift = np.where(np.isneginf(top), 0, top)
    e = np.exp(masked - shift[:, None])  # (n, Lk)
    total = e.sum(-1) + np.exp(sink - shift)
    weights = e / np.where(total == 0, 1, total)[:, None]
    if problem.softmax_dtype is not None:
        weights = weights.astype(problem.softmax_dtype).astype(np.float64)
    return weights, shift + np.log(total)


def blend(weights: Array, keep: Array, value: Array) -> Array:
    """Σ_j p_ij v_j over the visible keys only: ``(n, Dv)``. A masked value is not read."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(value).all():
            return np.asarray(weights @ value)
        terms = np.where(keep[:, :, None], weights[:, :, None] * value[None], 0)  # (n, Lk, Dv)
        return np.asarray(terms.sum(1))


class Back(NamedTuple):
    """Gradients of Σ output∘dO of one head; those of the scores before softcap and after mask."""

    query: Array  # (Lq, D)
    key: Array  # (Lk, D)
    value: Array  # (Lk, Dv)
    scores: Array  # (Lq, Lk), scaled
    masked: Array  # (Lq, Lk): a bias's too
    sink: float


def backward(problem: Problem, b: int, h: int, grad_output: Array) -> Back:
    """Return the gradients of one head (formulas: ``gradients``). grad_output dO: ``(Lq, Dv)``.

    The softmax's dtype is left out: rounding has no derivative.
    """
    p, g = replace(problem, softmax_dtype=None), problem.group(h)
    stage = stages(p, b, h)
    keep, weights = stage["keep"], np.where(stage["keep"], stage["weights"], 0)  # (Lq, Lk)
    arrays = p.query[b, h], p.key[b, g], p.value[b, g], grad_output
    q, k, v, do = (np.asarray(array, np.float64) for array in arrays)
    with np.errstate(invalid="ignore", over="ignore"):
        dp = np.where(keep, do @ v.T, 0)  # (Lq, Lk)
        delta = (weights * dp).sum(1)  # (Lq,)
        dz = ds = np.where(keep, weights * (dp - delta[:, None]), 0)
        if p.softcap is not None:
            ds = np.where(keep, dz * (1 - (stage["softcapped"] / p.softcap) ** 2), 0)
        sink = -np.inf if p.sink is None else p.sink[h]
        return Back(
            query=p.scale * blend(ds, keep, k),
            key=p.scale * blend(ds.T, keep.T, q),
            value=blend(weights.T, keep.T, do),
            scores=ds,
            masked=dz,
            sink=-np.sum(np.exp(sink - stage["lse"]) * delta) if np.isfinite(sink) else 0.0,
        )
