"""What needs whole rows of weights: all rows of short inputs, a seeded sample of long ones.

The largest eigenvalue of the softmax's Jacobian, and how alike the heads are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.measures.statistic import statistic
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 20  # weights of a head that are looked at
FEWEST = 8  # rows, however long they are
PAIR_CELLS = 1 << 26  # weights that all pairs of heads compare
STEPS = 64  # halvings: down to the last bit of a float64


@dataclass(frozen=True)
class Sample:
    """What the sampled rows say.

    spectral ``(B, H, Lq)``: NaN where a row was not sampled; distances ``(B, H, H)``: the mean
    Jensen–Shannon distance of two heads' weights; ``rows`` of ``total`` were looked at, chosen with
    ``seed``.
    """

    spectral: Array
    distances: Array
    rows: int
    total: int
    seed: int

    @property
    def whole(self) -> bool:
        """Whether every row was looked at."""
        return self.rows == self.total


def largest_eigenvalues(p: Array) -> Array:
    """The largest eigenvalue of diag(p) − ppᵀ for each row of ``(n, k)`` probabilities.

    It is the largest root of the secular equation Σ p_i²/(p_i − λ) = 1 (Golub 1973), which lies
    between p₂ and min(½, p₁(1 − p₁ + p₂)): there the sum grows with λ, so that halving finds it.
    The term of p₁ less the 1 is (λ − p₁(1 − p₁))/(p₁ − λ), 1 − p₁ the sum of the others.
    """
    p = np.array(p, np.float64)
    if not p.shape[1]:
        return np.zeros(len(p))
    rows, top = np.arange(len(p)), p.argmax(1)
    p1 = p[rows, top]
    p[rows, top] = 0
    others, low = p.sum(1), p.max(1)
    high = np.maximum(np.minimum(0.5, p1 * (others + low)), low)
    squares = p * p
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            middle = (low + high) / 2
            terms = np.divide(squares, p - middle[:, None])
            sums = np.where(squares > 0, terms, 0).sum(1)
            above = sums + (middle - p1 * others) / (p1 - middle) > 0
            high, low = np.where(above, middle, high), np.where(above, low, middle)
            if np.all(high - low <= np.spacing(high)):
                break
    return np.asarray((low + high) / 2)


def jensen_shannon(p: Array, q: Array, entropy_p: Array, entropy_q: Array) -> Array:
    """The Jensen–Shannon distance, 0 to 1, of each row of two ``(n, k)``; entropies ``(n,)``."""
    nats = np.maximum(entropies((p + q) / 2) - (entropy_p + entropy_q) / 2, 0)
    return np.asarray(np.sqrt(np.minimum(nats / np.log(2), 1)))


def entropies(p: Array) -> Array:
    """−Σ p ln p of each row of ``(n, k)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-np.where(p > 0, p * np.log(p), np.where(p == 0, 0, np.nan)).sum(-1))


@statistic("row", source="Golub 1973", heading="largest eigenvalue", keep=1)
def jacobian_spectral(sample: Sample) -> Array:
    """The largest eigenvalue of diag(p) − ppᵀ, ``(B, H, Lq)``; NaN for rows not looked at."""
    return sample.spectral


@statistic("head", source="Lin 1991", keep=6)
def head_similarity(distances: Array) -> Array:
    """The Jensen–Shannon distance to the most similar other head: 0 is a copy.

    distances ``(B, H, H)`` → ``(B, H)``; NaN: there is no other.
    """
    nearest = _known(distances).min(-1, initial=np.inf)
    return np.where(np.isinf(nearest), np.nan, nearest)


@statistic("head", kind="count")
def similar_head(distances: Array) -> Array:
    """Which head that is, −1 for none, ``(B, H)``."""
    if distances.shape[-1] < 2:
        return np.full(distances.shape[:-1], -1)
    known = _known(distances)
    return np.where(np.isinf(known.min(-1)), -1, known.argmin(-1))


def _known(distances: Array) -> Array:
    own = np.eye(distances.shape[-1], dtype=bool)
    return np.where(own | np.isnan(distances), np.inf, distances)


def sample(
    problem: Problem, chosen: Array, *, seed: int = 0, progress: Progress | None = None
) -> Sample:
    """Look at whole rows of weights. chosen: bool ``(B, H, Lq)``, the rows that may be sampled."""
    p = problem
    pairs = max(1, p.heads * (p.heads - 1) // 2)
    most = max(FEWEST, min(CELLS, PAIR_CELLS // pairs) // max(1, p.keys))
    spectral = np.full((p.batch, p.heads, p.queries), np.nan)
    distances = np.full((p.batch, p.heads, p.heads), np.nan)
    rng, looked, total = np.random.default_rng(seed), 0, 0
    for b in range(p.batch):
        rows = np.flatnonzero(chosen[b].any(0))
        total += len(rows)
        if len(rows) > most:
            rows = np.sort(rng.choice(rows, most, replace=False))
        looked += len(rows)
        if not len(rows):
            continue
        weights = []
        for h in range(p.heads):
            found = _probabilities(p, b, h, rows)
            ours = chosen[b, h, rows]
            spectral[b, h, rows[ours]] = largest_eigenvalues(found[ours])
            weights.append(found)
            if progress:
                progress((b + (h + 1) / p.heads / 2) / p.batch)
        distances[b] = _all_distances(weights, chosen[b][:, rows])
        if progress:
            progress((b + 1) / p.batch)
    return Sample(spectral, distances, looked, total, seed)


def _probabilities(p: Problem, b: int, h: int, rows: Array) -> Array:
    """Return the weights of some rows, ``(n, Lk)``, and what a sink takes as one more outcome."""
    weights = stages(p, b, h, rows)["weights"]
    if p.sink is None:
        return weights
    return np.column_stack([weights, np.maximum(1 - weights.sum(1), 0)])


def _all_distances(weights: list[Array], chosen: Array) -> Array:
    """Return the mean distance of every pair of heads, ``(H, H)``; chosen: ``(H, n)``."""
    found = np.full((len(weights), len(weights)), np.nan)
    own = [entropies(p) for p in weights]
    for a in range(len(weights)):
        for c in range(a):
            both = chosen[a] & chosen[c] & np.isfinite(own[a]) & np.isfinite(own[c])
            if both.any():
                apart = jensen_shannon(
                    weights[a][both], weights[c][both], own[a][both], own[c][both]
                )
                found[a, c] = found[c, a] = apart.mean()
    return found
