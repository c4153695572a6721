"""The error budget: how far from the truth a result may be. Nothing in here is tuned.

The error against the truth may be at most twice the error that plain, independent implementations
make in the same row at the result's own precision, plus a rounding band: what one rounding of each
score, weight and result can do to this very cell (its condition, to first order). The rule is that
of the tests of flash-attention and attention-gym, by rows.

Below, ``n`` are some query rows of one head. Names are those of results: the stages, ``output``
``(n, Dv)`` and ``lse`` ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.softcap import softcapped

Array = np.ndarray[Any, np.dtype[Any]]

MATRICES = ("scores", "softcapped", "masked", "weights")
TAME = 1e15  # float32 ends at 3e38
TILE = 64  # keys that the tiled plain implementation takes at a time


class Block(NamedTuple):
    """Results by name, and the rounding band of each cell."""

    arrays: dict[str, Array]
    bands: dict[str, Array]


class Way(NamedTuple):
    """How a plain implementation goes about it.

    ``order`` permutes the keys before they are summed, ``channels`` those of query and key.
    ``low`` is a half type: as PyTorch without a fused kernel, scores and weights are rounded to it;
    with ``tile`` as a fused kernel, weights alone, before they are divided by their sum, and by the
    largest score of so many keys.
    """

    order: Array | None = None
    channels: Array | None = None
    low: np.dtype[Any] | None = None
    tile: int | None = None


def eps(dtype: Any) -> float:
    """The spacing of ``dtype`` at 1, bfloat16 included."""
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return float(finfo(np.dtype(dtype)).eps)


def as_own(problem: Problem, own: np.dtype[Any]) -> Problem:
    """Return the problem as an implementation that computes in ``own`` is given it.

    Halves are computed in float32.
    """
    arithmetic = np.dtype(np.float64 if own.itemsize > 4 else np.float32)
    if problem.result_dtype == own and problem.dtype == arithmetic:
        return problem
    with np.errstate(over="ignore"):
        q, k, v = (a.astype(own, copy=False) for a in (problem.query, problem.key, problem.value))
    return replace(problem, query=q, key=k, value=v, dtype=arithmetic, result_dtype=own)


def ways(problem: Problem, own: np.dtype[Any], *, reorder: int = 2, low: bool = True) -> list[Way]:
    """Return the plain implementations whose error is the yardstick, the same ones every time.

    ``low`` False: those of halves, too, keep scores and weights in float32.
    """
    rng = np.random.default_rng(0)
    sizes = (problem.keys, problem.width)
    orders = [[rng.permutation(n) for n in sizes] for _ in range(reorder)]
    found = [Way(), *(Way(order, channels) for order, channels in orders)]
    if low and own.itemsize == 2:
        found += [Way(low=own), Way(low=own, tile=problem.keys), Way(low=own, tile=TILE)]
    return found


def truth(
    problem: Problem,
    b: int,
    h: int,
    rows: Array | None = None,
    *,
    own: np.dtype[Any] | None = None,
    dtype: Any = np.float64,
    keys: slice | None = None,
    bands: bool = True,
    matrices: bool = True,
) -> Block:
    """Return the definition in a wide ``dtype``, and the bands for results in ``own``.

    ``keys`` leaves out keys that none of the rows sees. Without ``matrices`` the stages
    ``(n, Lk)`` have no bands.
    """
    own = problem.result_dtype if own is None else own
    return _computed(problem, b, h, rows, dtype, Way(), own if bands else None, keys, matrices)


def plain(
    problem: Problem, b: int, h: int, rows: Array | None, way: Way, keys: slice | None = None
) -> dict[str, Array]:
    """Return what a plain implementation gives, each result rounded once. See ``as_own``."""
    found = _computed(problem, b, h, rows, problem.dtype, way, None, keys).arrays
    with np.errstate(over="ignore"):
        return {
            name: array if name == "lse" else array.astype(problem.result_dtype)
            for name, array in found.items()
        }


def most(right: Array, plains: Sequence[Array]) -> Array:
    """Return the largest error of plain implementations in each row, ``(…, n)`` or ``(…, n, 1)``.

    right: ``(…, n, c)``, or ``(…, n)`` where a row has one number. Cells that are not finite in
    either are left out.
    """
    found = np.zeros((*right.shape[:-1], 1) if right.ndim > 1 else right.shape)
    with np.errstate(all="ignore"):
        for array in plains:
            error = np.abs(array.astype(right.dtype) - right)
            error = np.where(np.isfinite(error), error, 0).astype(np.float64)
            found = np.maximum(found, error.max(-1, keepdims=True, initial=0)
                               if right.ndim > 1 else error)  # fmt: skip
    return found


def _computed(
    problem: Problem,
    b: int,
    h: int,
    rows: Array | None,
    dtype: Any,
    way: Way,
    own: np.dtype[Any] | None,
    seen: slice | None,
    matrices: bool = False,
) -> Block:
    """Compute in ``dtype``; the bands for results in ``own``, none where that is None."""
    p, group = problem, problem.group(h)
    rows = np.arange(p.queries) if rows is None else rows
    keys = np.arange(p.keys)[seen or slice(None)]
    taken: Array | slice = seen or slice(None)
    if way.order is not None:
        first, stop, _ = (seen or slice(None)).indices(p.keys)
        taken = keys = way.order[(way.order >= first) & (way.order < stop)]
    unit = np.dtype(dtype).type
    q = p.query[b, h][rows].astype(dtype, copy=False)  # (n, D)
    k = p.key[b, group][taken].astype(dtype, copy=False)  # (Lk, D)
    v = p.value[b, group][taken].astype(dtype, copy=False)  # (Lk, Dv)
    if way.channels is not None:
        q, k = q[:, way.channels], k[:, way.channels]
    i, j = rows[:, None], keys[None, :]
    keep = np.broadcast_to(p.mask.predicate.allows(b, h, i, j), (len(rows), len(keys)))
    bias = sum((one.at(b, h, i, j) for one in p.mask.biases), np.zeros((), dtype))
    sink = unit(-np.inf if p.sink is None else p.sink[h])
    softmax = p.softmax_dtype if own is None else None  # the truth is not rounded
    with np.errstate(all="ignore"):
        scores = q @ k.T  # (n, Lk)
        if way.low is not None and way.tile is None:
            scores = scores.astype(way.low).astype(dtype)
        scores = scores * unit(p.scale)
        if way.low is not None and way.tile is None:
            scores = scores.astype(way.low).astype(dtype)
        capped = softcapped(scores, p.softcap)
        masked = np.where(keep, capped + np.asarray(bias).astype(dtype), unit(-np.inf))
        z = masked if softmax is None else masked.astype(softmax).astype(dtype)
        top = np.maximum(z.max(-1, initial=-np.inf), sink)
        shift = np.where(np.isneginf(top), unit(0), top)
        e = np.exp(z - shift[:, None])
        total = e.sum(-1) + np.exp(sink - shift)
        lse = shift + np.log(total)
        some = np.where(total == 0, unit(1), total)[:, None]
        weights = e / some
        if way.low is not None and way.tile is not None:
            output = _blend(_by_tiles(z, shift, way.tile, way.low) / some, keep, v)
            weights = weights.astype(way.low).astype(dtype)
        else:
            if way.low or softmax:
                weights = weights.astype(way.low or softmax).astype(dtype)
            output = _blend(weights, keep, v)
        arrays = {
            "scores": scores, "softcapped": capped, "masked": masked, "weights": weights,
            "output": output, "lse": lse,
        }  # fmt: skip
        bands = {}
        if own is not None:
            parts = (q, k, v, np.broadcast_to(np.asarray(bias), keep.shape), keep, shift)
            bands = _bands(p, arrays, parts, own, matrices)
    if way.order is not None:
        back = np.argsort(keys)
        arrays |= {name: arrays[name][:, back] for name in MATRICES}
    return Block(arrays, bands)


def _blend(weights: Array, keep: Array, value: Array) -> Array:
    """Σ_j p_ij v_j over the visible keys alone, ``(n, Dv)``: a masked value is not read."""
    if np.isfinite(value).all():
        return np.asarray(weights @ value)
    terms = np.where(keep[:, :, None], weights[:, :, None] * value[None], 0)  # (n, Lk, Dv)
    return np.asarray(terms.sum(1))


def _by_tiles(z: Array, shift: Array, tile: int, low: np.dtype[Any]) -> Array:
    """Return exp(z − shift) as a fused kernel has it: rounded by the largest score so far."""
    made = np.empty_like(z)
    so_far = np.full(len(z), -np.inf, z.dtype)
    for j in range(0, z.shape[1], max(tile, 1)):
        part = z[:, j : j + tile]
        so_far = np.maximum(so_far, part.max(-1, initial=-np.inf))
        base = np.where(np.isneginf(so_far), 0, so_far)
        e = np.exp(part - base[:, None]).astype(low).astype(z.dtype)
        made[:, j : j + tile] = e * np.exp(base - shift)[:, None]
    return made


def _bands(
    problem: Problem,
    arrays: dict[str, Array],
    parts: tuple[Array, ...],
    own: np.dtype[Any],
    matrices: bool,
) -> dict[str, Array]:
    """Return the rounding bands: first-order conditions; those of the stages if asked for.

    A score moves by its reach Σ|q||k|, exp's argument by its own size too. Roundings of weights
    and scores to a half type are many and independent: their squares add.
    """
    p = problem
    scores, capped, masked, weights, output, lse = arrays.values()
    q, k, v, bias, keep, shift = parts
    arithmetic = as_own(p, own).dtype if p.result_dtype != own else p.dtype
    inputs_too = own.itemsize < p.result_dtype.itemsize  # rounded before anything else
    step = eps(arithmetic if p.softmax_dtype is None else p.softmax_dtype)
    last = eps(own)
    reads = np.where(np.isfinite(v), v, 0)
    if own.itemsize <= 4 and scores.dtype == np.float64 and _tame(q, k, reads):
        q, k, reads, scores, capped, masked, weights, bias = (  # a band needs no digits
            a.astype(np.float32) for a in (q, k, reads, scores, capped, masked, weights, bias)
        )
    reach = (np.abs(q) @ np.abs(k).T) * abs(p.scale)
    move = 1 + reach * (2 if inputs_too else 1) + np.abs(bias) + np.abs(capped)
    move += np.abs(masked - shift[:, None].astype(masked.dtype))
    move = np.where(keep, move, 0)
    read = keep & (weights > 0)  # a mask of the most negative floats moves by infinity, times 0
    pull = np.where(read, weights * move, 0)
    mean_move = pull.sum(-1)
    flat = step * (_distance(pull, mean_move, reads, output) + pull @ np.abs(reads))
    flat = np.fmin(flat, 2 * np.abs(reads).max(0, initial=0))  # two means are no further apart
    bands = {
        "output": flat + last * np.abs(output),
        "lse": step * (1 + mean_move + np.where(np.isfinite(lse), np.abs(lse), 0)),
    }
    if matrices:
        bands |= {
            "scores": step * reach * (2 if inputs_too else 1) + last * np.abs(scores),
            "softcapped": step * (reach + np.abs(capped)) + last * np.abs(capped),
            "masked": np.where(keep, step * move + last * np.abs(masked), 0),
            "weights": np.where(
                read, np.fmin(weights * (step * (1 + move + mean_move[:, None]) + last), 1), 0
            ),
        }
    spun = p.rope is not None and p.result_dtype.itemsize == 2  # rounded once they were turned
    spread = 2 * p.scale**2 * ((q * q) @ (k * k).T) if inputs_too or spun else 0.0
    if own.itemsize == 2:
        noise = (2 if inputs_too else 1) + 2 * np.where(keep, scores, 0) ** 2 + spread
        square = np.where(keep, weights * weights * noise, 0)
        if matrices:
            bands["weights"] += last * np.sqrt(square)
        bands["output"] += last * np.sqrt(
            square @ (reads * reads) + square.sum(-1)[:, None] * output**2
        )
    if spun:
        turned = eps(p.result_dtype) * np.sqrt(spread)
        for name in ("scores", "softcapped", "masked") if matrices else ():
            bands[name] += turned
        if matrices:
            bands["weights"] += weights * turned
        bands["lse"] += np.sqrt(np.where(keep, weights * turned, 0) ** 2).sum(-1)
    floor = _floor(arithmetic, own)
    return {name: band + floor for name, band in bands.items()}


def _tame(*arrays: Array) -> bool:
    """Whether squares of these stay far inside float32."""
    return all(float(np.abs(a).max(initial=0)) < TAME for a in arrays)


def _distance(pull: Array, total: Array, v: Array, output: Array) -> Array:
    """Return a bound of Σ_j pull_ij |v_j − o_i|, ``(n, Dv)``, by the Cauchy–Schwarz inequality."""
    square = pull @ (v * v) - 2 * output * (pull @ v) + output**2 * total[:, None]
    return np.asarray(np.sqrt(np.maximum(square, 0) * total[:, None]))


def _floor(arithmetic: np.dtype[Any], own: np.dtype[Any]) -> float:
    """Return the smallest step near zero."""
    if own.name == "float16":
        return 2.0**-24
    return float(np.finfo(np.float32 if arithmetic.itemsize == 4 else np.float64).tiny)
