"""What needs whole rows of weights: all rows of short inputs, a seeded sample of long ones.

The largest eigenvalue of the softmax's Jacobian, and how alike the heads are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.attention.shares import Share, share_of
from attncli.measures.statistic import statistic
from attncli.resources import Job, Progress, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 20  # weights of a head that are looked at
FEWEST = 8  # rows, however long they are
PAIR_CELLS = 1 << 26  # weights that all pairs of heads compare
PIECE = 1 << 15  # cells that are worked on at once: they stay in a processor's cache
BLOCK = 1 << 21  # weights of all heads that a job makes: of few rows the keys would be dearer
STEPS = 64  # of an iteration that needs six
TINY = 1e-300  # has a logarithm, and is lost beside any weight


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

    def of_batches(self, at: slice, rows: int) -> Sample:
        """Return what it says of some batch elements with so many rows, all of them looked at."""
        assert self.whole, "nothing says which rows were looked at"
        return Sample(self.spectral[at], self.distances[at], rows, rows, self.seed)


def largest_eigenvalues(p: Array) -> Array:
    """The largest eigenvalue of diag(p) − ppᵀ for each row of ``(n, k)`` probabilities.

    It is the largest root λ of the secular equation Σ p_i²/(p_i − λ) = 1 (Golub 1973), which lies
    between p₂ and min(½, p₁(1 − p₁ + p₂)). There ψ(λ) = Σ' p_i²/(λ − p_i), of the keys other than
    the top one, is (λ − p₁(1 − p₁))/(p₁ − λ), 1 − p₁ being the sum of the others. Each step puts
    r + s/(λ − p₂) with the value and the slope of ψ in its place and solves the quadratic equation
    (Bunch, Nielsen & Sorensen 1978): it lies above ψ, so that every step ends above the root and
    the next one below it, closer by squares. In float32 if the probabilities are, else in float64.
    """
    p = np.array(p, p.dtype if p.dtype == np.float32 else np.float64)
    if not p.shape[1]:
        return np.zeros(len(p))
    rows, top = np.arange(len(p)), p.argmax(1)
    p1 = p[rows, top]
    p[rows, top] = 0
    with np.errstate(all="ignore"):
        others, p2 = p.sum(1), p.max(1)
        gaps = p2[:, None] - p  # how far each is below p₂, where t = λ − p₂ is measured from
        apart = p1 - p2
        t = np.minimum(p.dtype.type(0.5), p1 * (others + p2)) - p2
        within = p2 - p1 * others
        share = np.empty_like(p)
        for _ in range(STEPS):
            np.add(gaps, t[:, None], out=share)
            np.divide(p, share, out=share)
            slope = np.vecdot(share, share)
            r, s = np.vecdot(p, share) - slope * t, slope * t * t
            half = within - r * apart + s
            root = np.sqrt(half * half + 4 * (1 + r) * s * apart)
            after = np.where(half > 0, 2 * s * apart / (half + root), (root - half) / (2 + 2 * r))
            moved = t - after
            t = np.where(moved > 0, after, t)  # NaN and rounding move nothing
            if not np.any(moved > 2 * np.spacing(p2 + t)):
                break
        return np.asarray(p2 + np.where(t > 0, t, 0) + 0 * p1)


def all_distances(p: Array) -> Array:
    """The Jensen–Shannon distance, 0 to 1, of every two heads in each row.

    p ``(H, n, k)`` → ``(H, H, n)``; NaN in rows that hold one. It is the root of
    ½ Σ a ln a + ½ Σ b ln b − Σ m ln m with m = (a + b)/2, in bits.
    """
    heads, n, width = p.shape
    p = p + TINY  # 0 ln 0 is 0
    some = max(1, PIECE // max(1, n * width))
    sums, logs = np.empty((2, min(some, heads), n, width))

    def of_sums(a: Array, b: Array) -> Array:
        """Return Σ s ln s with s = a + b, ``(…, n)``."""
        s = np.add(a, b, out=sums[: len(a)])
        return np.asarray(np.vecdot(s, np.log(s, out=logs[: len(a)])))

    starts = range(0, heads, some)
    own = np.concatenate([of_sums(p[at : at + some], p[at : at + some]) for at in starts])
    nats = np.zeros((heads, heads, n))
    for a in range(1, heads):
        for at in range(0, a, some):
            to = min(at + some, a)
            nats[a, at:to] = (own[at:to] + own[a]) / 4 - of_sums(p[at:to], p[a]) / 2
    return np.asarray(np.sqrt(np.clip((nats + nats.swapaxes(0, 1)) / np.log(2), 0, 1)))


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
    problem: Problem, chosen: Array, *, seed: int = 0, threads: int | None = None,
    progress: Progress | None = None,
) -> Sample:  # fmt: skip
    """Look at whole rows of weights. chosen: bool ``(B, H, Lq)``, the rows that may be sampled."""
    p = problem
    pairs = max(1, p.heads * (p.heads - 1) // 2)
    most = max(FEWEST, min(CELLS, PAIR_CELLS // pairs) // max(1, p.keys))
    spectral = np.full((p.batch, p.heads, p.queries), np.nan)
    total, blocks = 0, []
    rng = np.random.default_rng(seed)
    piece = max(FEWEST, PIECE // max(1, p.keys))
    some = max(1, BLOCK // max(1, p.heads * p.keys * piece)) * piece
    for b in range(p.batch):
        rows = np.flatnonzero(chosen[b].any(0))
        total += len(rows)
        if len(rows) > most:
            rows = np.sort(rng.choice(rows, most, replace=False))
        blocks += [_Block(p, b, rows[at : at + some], piece) for at in range(0, len(rows), some)]
    looked = sum(len(block.rows) for block in blocks)
    tiny = looked * p.heads * p.keys <= 1 << 16
    share = share_of(p)
    if share is None:
        jobs: list[Job] = [partial(block.run, chosen, spectral) for block in blocks]
        run_jobs(jobs, threads, tiny, progress)
    else:
        _run_shared(blocks, share, chosen, spectral)
    summed, count = np.zeros((2, p.batch, p.heads, p.heads))
    for block in blocks:  # in order, so that threads change nothing
        summed[block.b] += block.summed
        count[block.b] += block.count
    distances = np.where(count > 0, summed / np.maximum(count, 1), np.nan)
    return Sample(spectral, distances, looked, total, seed)


def _run_shared(blocks: list[_Block], share: Share, chosen: Array, spectral: Array) -> None:
    """Run the blocks in order: weights are made by all processes, and each looks at some rows."""
    part = share.part(blocks[0].p) if blocks else None
    for block in blocks:
        assert part is not None
        weights = _gathered(block.p, part, block.b, block.rows, share)
        own = np.arange(len(block.rows)) % share.ranks == share.rank
        block.look(block.rows[own], weights[:, own], chosen, spectral)
        found = np.where(own, spectral[block.b][:, block.rows], 0)  # (H, n)
        found, block.summed, block.count = share.summed(found, block.summed, block.count)
        spectral[block.b][:, block.rows] = found


def _gathered(p: Problem, part: Problem, b: int, rows: Array, share: Share) -> Array:
    """Return what ``_probabilities`` does, made by all processes, each of its ``part``."""
    if share.axis == "keys":
        ours = np.stack([stages(part, b, h, rows)["masked"] for h in range(p.heads)])  # (H, n, Lk')
        z = share.joined(ours, 2)
        if p.sink is not None:
            sink = np.broadcast_to(p.sink[:, None, None], (*z.shape[:2], 1))
            z = np.concatenate([z, sink], 2)
        return _softmax_of(z)
    at = b - int(share.piece(p).batch.start)
    ours = np.empty((0, len(rows), p.keys + (p.sink is not None)))
    if 0 <= at < part.batch and part.heads:
        ours = _probabilities(part, at, rows)
    return np.concatenate(share.others.gathered(ours))


class _Block:
    """Some rows of a batch element: the distances of all heads, summed, and of how many rows."""

    def __init__(self, p: Problem, b: int, rows: Array, piece: int) -> None:
        self.p, self.b, self.rows, self.piece = p, b, rows, piece
        self.summed = np.zeros((p.heads, p.heads))
        self.count = np.zeros((p.heads, p.heads), np.int64)

    def run(self, chosen: Array, spectral: Array) -> None:
        weights = _probabilities(self.p, self.b, self.rows)
        self.look(self.rows, weights, chosen, spectral)

    def look(self, rows: Array, weights: Array, chosen: Array, spectral: Array) -> None:
        """Look at rows whose weights are known, ``(H, n, Lk)``."""
        for at in range(0, len(rows), self.piece):
            some = slice(at, at + self.piece)
            self._look(rows[some], weights[:, some], chosen, spectral)

    def _look(self, rows: Array, weights: Array, chosen: Array, spectral: Array) -> None:
        """Look at some of the rows; weights ``(H, n, Lk)``."""
        ours = chosen[self.b][:, rows]
        for h, own in enumerate(ours):
            probabilities = weights[h, own].astype(self.p.dtype, copy=False)
            spectral[self.b, h, rows[own]] = largest_eigenvalues(probabilities)
        apart = all_distances(weights)
        both = ours[:, None] & ours & np.isfinite(apart)
        both[np.diag_indices(self.p.heads)] = False
        self.summed += np.where(both, apart, 0).sum(-1)
        self.count += both.sum(-1)


def _probabilities(p: Problem, b: int, rows: Array) -> Array:
    """Return weights of some rows, ``(H, n, Lk)``, and what a sink takes as one more outcome."""
    found = np.empty((p.heads, len(rows), p.keys + (p.sink is not None)))
    plain = p.mask.trivial and p.softcap is None and p.softmax_dtype is None and p.sink is None
    for h, weights in enumerate(found):
        if plain and p.keys:
            _softmax(p, b, h, rows, weights)
            continue
        weights[:, : p.keys] = stages(p, b, h, rows)["weights"]
        if p.sink is not None:
            weights[:, -1] = np.maximum(1 - weights[:, :-1].sum(1), 0)
    return found


def _softmax(p: Problem, b: int, h: int, rows: Array, out: Array) -> None:
    """Write softmax(scale · q·kᵀ) of rows that see every key, where they are: no copy is made."""
    query, key = (np.asarray(a, np.float64) for a in (p.query[b, h, rows], p.key[b, p.group(h)]))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        np.matmul(p.scale * query, key.T, out=out)
        _softmax_of(out)


def _softmax_of(z: Array) -> Array:
    """Return the softmax of the last dimension, where z is; 0 in rows of nothing but −∞."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        most = z.max(-1, keepdims=True)
        z -= np.where(np.isneginf(most), 0, most)
        np.exp(z, out=z)
        total = z.sum(-1, keepdims=True)
        z /= np.where(total == 0, 1, total)
    return z
