"""What changed of a head, between two runs of it or between its weights before and after.

One number, ``change``, sorts the heads. Of runs it is the larger of how far the weights of
attention have moved and how far the output has; of weights alone, of the two circuits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.measures.folding import Parts, parts_of
from attncli.measures.sample import CELLS, FEWEST, PAIR_CELLS, all_distances
from attncli.measures.statistic import Statistic, statistic
from attncli.models.layer import Layer

Array = np.ndarray[Any, np.dtype[Any]]

MOVED = 0.1  # the distance from which another head is looked for that was like this one
LIKE = 0.5  # of its distance to itself: near enough to be called like it

#: What is said of a change between two runs, and between the weights of two checkpoints.
CHANGES: dict[str, Statistic] = {}
WEIGHT_CHANGES: dict[str, Statistic] = {}
between_runs = partial(statistic, table=CHANGES)
between_weights = partial(statistic, table=WEIGHT_CHANGES)


@dataclass(frozen=True, eq=False)
class Moved:
    """How far the weights of attention have moved.

    distances ``(B, H, Lq)``: Jensen–Shannon, NaN where not looked at; ``like`` and ``apart``
    ``(B, H)``: the other head before that this one is like now, −1 for none, and how far from it;
    ``rows`` of ``total`` were looked at.
    """

    distances: Array
    like: Array
    apart: Array
    rows: int
    total: int


# -- two runs ---------------------------------------------------------------------------------


@between_runs("head")
def change(js_mean: Array, output_change: Array) -> Array:
    """The larger of the mean Jensen–Shannon distance and the output's relative change, ``(B, H)``.

    NaN where neither is known.
    """
    return np.fmax(js_mean, output_change)


@between_runs("row", source="Lin 1991", heading="weights", unit="JS")
def js(moved: Moved) -> Array:
    """The Jensen–Shannon distance of a row's weights before and after, 0 to 1, ``(B, H, Lq)``.

    1 where they are numbers in only one of the two, NaN where in none or not looked at.
    """
    return moved.distances


@between_runs("head", heading="output")
def output_change(difference: Array, size: Array) -> Array:
    """‖o_B − o_A‖/‖o_A‖ over the rows that are no padding, from the squares of both norms."""
    return _ratio(np.sqrt(difference), np.sqrt(size))


@between_runs("head", heading="like head", kind="count")
def like_head(moved: Moved) -> Array:
    """The other head before whose weights are at most half as far away, −1 for none, ``(B, H)``."""
    return moved.like


@between_runs("head", source="Lin 1991", heading="JS to it")
def like_distance(moved: Moved) -> Array:
    """The mean Jensen–Shannon distance to that head; NaN for none, ``(B, H)``."""
    return moved.apart


def moved(
    before: Problem, after: Problem, chosen: Array, *, seed: int = 0, alike: bool = True
) -> Moved:
    """Compare whole rows of weights of two problems of one size, a seeded sample of long ones.

    chosen: bool ``(B, H, Lq)``, the rows to compare. What a row leaves to a sink, or a row that
    sees nothing, counts as one more outcome. ``alike``: look for heads that were like others.
    """
    p = before
    most = max(FEWEST, CELLS // max(1, p.keys))
    distances = np.full(chosen.shape, np.nan)
    like, apart = np.full(chosen.shape[:2], -1), np.full(chosen.shape[:2], np.nan)
    rng, looked, total = np.random.default_rng(seed), 0, 0
    for b in range(p.batch):
        rows = np.flatnonzero(chosen[b].any(0))
        total += len(rows)
        if len(rows) > most:
            rows = np.sort(rng.choice(rows, most, replace=False))
        looked += len(rows)
        for h in range(p.heads):
            own = rows[chosen[b, h, rows]]
            distances[b, h, own] = _apart(_outcomes(before, b, h, own), _outcomes(after, b, h, own))
        if alike:
            like[b], apart[b] = _likes(before, after, b, rows, distances[b])
    return Moved(distances, like, apart, looked, total)


def _outcomes(p: Problem, b: int, h: int, rows: Array) -> Array:
    """Return the weights of some rows, and behind them what no key gets, ``(n, Lk + 1)``."""
    weights = stages(p, b, h, rows)["weights"]
    return np.column_stack([weights, np.maximum(1 - weights.sum(1), 0)])


def _apart(before: Array, after: Array) -> Array:
    """Return the distance of each row of two ``(n, k)``."""
    known = [np.isfinite(one).all(1) for one in (before, after)]
    with np.errstate(invalid="ignore"):
        found = all_distances(np.stack([before, after]))[0, 1]
    return np.where(known[0] & known[1], found, np.where(known[0] | known[1], 1, np.nan))


def _likes(
    before: Problem, after: Problem, b: int, rows: Array, distances: Array
) -> tuple[Array, Array]:
    """Return for each head which other one it is like now, and how far from it, ``(H,)`` each.

    Only heads that moved are looked at, on rows that all of them have looked at.
    """
    heads = len(distances)
    like, apart = np.full(heads, -1), np.full(heads, np.nan)
    most = max(FEWEST, PAIR_CELLS // (heads * heads) // max(1, before.keys))
    rows = rows[~np.isnan(distances[:, rows]).any(0)]
    rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
    far = np.flatnonzero(distances[:, rows].mean(1) > MOVED) if len(rows) else rows
    if not far.size or heads < 2:
        return like, apart
    was = [_outcomes(before, b, h, rows) for h in range(heads)]
    for h in far.tolist():
        now = _outcomes(after, b, h, rows)
        found = np.array(
            [_apart(one, now).mean() if g != h else np.inf for g, one in enumerate(was)]
        )
        nearest = int(np.nanargmin(found))
        if found[nearest] <= LIKE * distances[h, rows].mean():
            like[h], apart[h] = nearest, found[nearest]
    return like, apart


def output_squares(before: Array, after: Array, real: Array) -> tuple[Array, Array]:
    """Return Σ(o_B − o_A)² and Σo_A² over rows, in one unit for all batch elements, ``(B, H)``.

    Outputs ``(B, H, Lq, Dv)``; real: bool ``(B, H, Lq)``, the rows that count. A row with a number
    in only one of the two makes the first ∞; rows with none in both are left out, and NaN stands
    where no other is there.
    """
    known = [np.isfinite(one).all(-1) for one in (before, after)]
    both = real & known[0] & known[1]
    a, b = (np.where(both[..., None], one, 0).astype(np.float64) for one in (before, after))
    top = np.maximum(abs(a), abs(b)).max((0, 2, 3), keepdims=True, initial=0)  # squares overflow
    top[top == 0] = 1
    difference, size = (((b / top - a / top) ** 2).sum((2, 3)), ((a / top) ** 2).sum((2, 3)))
    lost = (real & (known[0] != known[1])).any(-1)
    difference = np.where(lost, np.inf, difference)
    none = real.any(-1) & ~both.any(-1) & ~lost
    return np.where(none, np.nan, difference), size


def _ratio(difference: Array, size: Array) -> Array:
    """0 where nothing changed, also of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, np.asarray(difference / size))


# -- two layers' weights ----------------------------------------------------------------------


@between_weights("head", name="change")
def weight_change(qk_change: Array, ov_change: Array) -> Array:
    """The larger of the changes of the QK and the OV circuit, ``(H,)``."""
    return np.fmax(qk_change, ov_change)


@between_weights("head", source="Elhage et al. 2021", heading="QK circuit")
def qk_change(before: Circuit, after: Circuit) -> Array:
    """‖A_B − A_A‖_F/‖A_A‖_F of A = W_Qᵀ W_K·scale, the norm before it and biases within."""
    return _circuit_change(before, after)


@between_weights("head", source="Elhage et al. 2021", heading="OV circuit")
def ov_change(before: Circuit, after: Circuit) -> Array:
    """The same of W_O W_V."""
    return _circuit_change(before, after)


@dataclass(frozen=True, eq=False)
class Circuit:
    """Matrices ``leftᵀ right`` of the heads, from ``(H, D, E)`` each; ``lost``: not finite."""

    left: Array
    right: Array
    lost: Array


def changes_of_weights(before: Layer, after: Layer) -> dict[str, Array]:
    """Return what changed of each head of a layer by name, ``(H,)`` each, as WEIGHT_CHANGES has it.

    Both have the same number of heads, and weights of the same sizes.
    """
    was, now = (_circuits(layer, parts_of(layer)) for layer in (before, after))
    qk, ov = qk_change(was[0], now[0]), ov_change(was[1], now[1])
    return {"change": weight_change(qk, ov), "qk_change": qk, "ov_change": ov}


def _circuits(layer: Layer, parts: Parts) -> tuple[Circuit, Circuit]:
    own = np.arange(layer.heads) // (layer.heads // layer.kv_heads)
    lost, value = parts.lost > 0, parts.value[own]
    # without an output projection a head writes its values
    left = np.broadcast_to(np.eye(value.shape[1]), (len(value), *2 * value.shape[1:2]))
    left = left if parts.output is None else parts.output
    return Circuit(parts.query * layer.scale, parts.key[own], lost), Circuit(left, value, lost)


def _circuit_change(before: Circuit, after: Circuit) -> Array:
    """Return the relative change of each head's circuit; ∞ where only one of them is finite.

    L′ᵀR′ − LᵀR = Lᵀ(R′ − R) + (L′ − L)ᵀR′ is exactly 0 of the same weights, and its norm is that
    of D×D products, since ⟨LᵀR, MᵀS⟩ = Σ (L Mᵀ)∘(R Sᵀ).
    """
    found = np.empty(len(before.lost))
    for h, lost in enumerate(before.lost):
        l0, r0, l1, r1 = (
            np.asarray(part[h], np.float64)
            for one in (before, after) for part in (one.left, one.right)
        )  # fmt: skip
        left, right = l1 - l0, r1 - r0
        terms = _inner(l0, right, l0, right), _inner(left, r1, left, r1)
        square = sum(terms) + 2 * _inner(l0, right, left, r1)
        size = np.sqrt(_inner(l0, r0, l0, r0))
        found[h] = _ratio(np.sqrt(np.maximum(square, 0)), size)
        if lost or after.lost[h]:
            found[h] = np.nan if lost and after.lost[h] else np.inf
    return found


def _inner(left: Array, right: Array, other_left: Array, other_right: Array) -> Any:
    """Return ⟨LᵀR, MᵀS⟩ of ``(D, E)`` factors."""
    return np.vdot(left @ other_left.T, right @ other_right.T)
