"""Results of engines held against the error budget, ``attncli.measures.budget``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attncli import engines
from attncli.attention.problem import Problem
from attncli.attention.rows import Rows
from attncli.engines import reference
from attncli.measures import budget
from attncli.measures.budget import eps as eps
from attncli.studies.attend import Result

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Answer:
    """Canonical results ``(B, H, Lq, …)`` by name: the stages, ``output`` and ``lse``."""

    arrays: dict[str, Array]
    bands: dict[str, Array]


#: Several results of one problem are judged one after the other.
kept = functools.lru_cache(maxsize=4)


@kept
def truth(problem: Problem) -> Answer:
    """The definition in the widest float there is, with the rounding band of each result."""
    blocks = [budget.truth(problem, b, h, dtype=np.longdouble) for b, h in _heads(problem)]
    return Answer(
        _stacked(problem, [block.arrays for block in blocks]),
        _stacked(problem, [block.bands for block in blocks]),
    )


@kept
def plains(problem: Problem, reorder: int = 2) -> list[dict[str, Array]]:
    """Plain implementations in the problem's own arithmetic: halves, too, are rounded once."""
    return [
        _stacked(problem, [budget.plain(problem, b, h, None, way) for b, h in _heads(problem)])
        for way in budget.ways(problem, problem.result_dtype, reorder=reorder, low=False)
    ]


def _heads(problem: Problem) -> list[tuple[int, int]]:
    return list(np.ndindex(problem.batch, problem.heads))


def _stacked(problem: Problem, parts: list[dict[str, Array]]) -> dict[str, Array]:
    shape = (problem.batch, problem.heads)
    names = parts[0] if parts else ()
    arrays = {name: [part[name] for part in parts] for name in names}
    return {n: np.stack(a).reshape(*shape, *a[0].shape) for n, a in arrays.items()}


def assert_within_budget(
    result: Result, names: tuple[str, ...] = ("output", "lse"), *, reorder: int = 2
) -> None:
    """Hold results of an engine against the truth; the message names the worst cell.

    ``names``: any of output, lse and the stages that the result has. ``reorder`` is how many more
    plain implementations sum the keys in another order.
    """
    problem, family = result.problem, result.problem.family
    right, others = truth(problem), plains(problem, reorder)
    for name in names:
        if name == "output":
            candidate, back = result.output, family.restore
        elif name == "lse":
            candidate, back = result.lse, family.restore_rows
        else:
            candidate, back = result.stages[name], family.restore_rows
        assert_close(
            name, candidate, back(right.arrays[name]), [back(p[name]) for p in others],
            back(right.bands[name]), by_row=True,
        )  # fmt: skip


def assert_close(
    name: str,
    candidate: Array,
    right: Array,
    plains: list[Array],
    band: Any,
    *,
    by_row: bool = False,
) -> None:
    """Assert |candidate − right| ≤ 2·max|plain − right| + band, cell by cell.

    Where the truth, rounded to the candidate's type, is NaN or infinite, so is the candidate.
    The plain error is the largest of all cells, as in flash-attention's tests, or of the row.
    """
    assert candidate.shape == right.shape, f"{name} is {candidate.shape}, expected {right.shape}"
    with np.errstate(all="ignore"):
        rounded = right.astype(candidate.dtype).astype(np.float64)
        wide = candidate.astype(np.float64)
        odd = ~np.isfinite(rounded)
        np.testing.assert_array_equal(wide[odd], rounded[odd], err_msg=name)
        most = budget.most(np.where(odd, 0, right), [np.where(odd, 0, p) for p in plains])
        most = most if by_row else np.max(most, initial=0)
        error = np.where(odd, 0, np.abs(wide - right))
        allowed = 2 * most + band
        excess = np.where(odd, 0, error - allowed)
    assert not np.isnan(error).any(), f"{name} is NaN where it should not be"
    if excess.size and excess.max() > 0:
        worst = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
        room, own = (float(np.broadcast_to(a, error.shape)[worst]) for a in (allowed, most))
        raise AssertionError(
            f"{name}{list(worst)} is {wide[worst]!r}, expected {float(right[worst])!r}: error "
            f"{float(error[worst]):.3g}, allowed {room:.3g} = 2 × {own:.3g} + band"
        )


@kept
def _rows_of(problem: Problem) -> tuple[Rows, Rows, Array, Array]:
    """The truth, the numpy engine's, max_j |scale|·|q|·|k_j| ``(B, H, Lq)`` and the logits."""
    right = reference.attend(problem, {"row_statistics"}).rows
    other = engines.load("numpy").attend(problem, {"row_statistics"}).rows
    assert right is not None and other is not None
    q, k = (np.abs(np.asarray(a, np.float64)) for a in (problem.query, problem.key))
    each = problem.heads // problem.kv_heads
    reach = (q @ k.repeat(each, 1).swapaxes(-1, -2)).max(-1) * abs(problem.scale)
    exact = replace(problem, result_dtype=np.dtype(np.float64))  # a half would lose sentinels
    return right, other, reach, reference.attend(exact, {"masked"}).stages["masked"]


def rows_are_right(problem: Problem, rows: Rows) -> None:
    """Running sums against float64, by the budget: the numpy engine is the other implementation."""
    right_rows, other_rows, reach, logits = _rows_of(problem)
    finite = np.where(np.isfinite(logits), logits, 0)
    step = 4 * eps(problem.dtype) * (1 + reach + np.ptp(finite, axis=-1) + np.abs(finite).max(-1))
    np.testing.assert_array_equal(rows.n, right_rows.n)
    for name in ("m", "e1", "es", "e2", "e3", "mean", "m2", "amax", "first"):
        right = getattr(right_rows, name)
        size = np.where(np.isfinite(right), np.abs(right), 0)
        band = step * (1 + size + (rows.n * (reach + size) if name == "m2" else rows.n))
        assert_close(name, getattr(rows, name), right, [getattr(other_rows, name)], band)
    right, band = right_rows.top_z, step[..., None] * (1 + reach[..., None])
    assert_close("top_z", rows.top_z, right, [other_rows.top_z], band)
    # equal logits may be told apart by rounding: the keys must be worth what the best are worth
    chosen = np.take_along_axis(logits, np.maximum(rows.top_j, 0), -1)
    none = np.isneginf(right)
    np.testing.assert_array_equal(rows.top_j == -1, none)
    worth = np.where(none, 0, np.abs(chosen - np.where(none, 0, right)))
    worst = 2 * np.abs(np.where(none, 0, rows.top_z - np.where(none, 0, right))).max(initial=0)
    assert (worth <= worst + 2 * band).all()
