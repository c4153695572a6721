"""The error budget: how far from the truth a result may be. Nothing in here is tuned.

The error against the truth may be at most twice the error that independent, plain implementations
make at the result's own precision, plus a rounding band: what one rounding of each score, weight
and result can do to this very row (its condition, to first order).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attncli import engines
from attncli.attention.problem import Problem
from attncli.attention.rows import Rows
from attncli.engines import reference
from attncli.studies.attend import Result

Array = np.ndarray[Any, np.dtype[Any]]

STAGES = ("scores", "softcapped", "masked", "weights", "output")


@dataclass(frozen=True)
class Answer:
    """Canonical results ``(B, H, Lq, …)`` by name: the stages, ``output`` and ``lse``."""

    arrays: dict[str, Array]
    bands: dict[str, Array]


def eps(dtype: Any) -> float:
    """The spacing of ``dtype`` at 1, bfloat16 included."""
    import ml_dtypes

    return float(ml_dtypes.finfo(np.dtype(dtype)).eps)


def truth(problem: Problem) -> Answer:
    """The definition in the widest float there is, with the rounding band of each result."""
    arrays: dict[str, list[Array]] = {}
    bands: dict[str, list[Array]] = {}
    for b, h in np.ndindex(problem.batch, problem.heads):
        found, band = _head(problem, b, h, np.longdouble, None)
        for name in found:
            arrays.setdefault(name, []).append(found[name])
            bands.setdefault(name, []).append(band[name])
    shape = (problem.batch, problem.heads)

    def stacked(parts: dict[str, list[Array]]) -> dict[str, Array]:
        return {n: np.stack(a).reshape(*shape, *a[0].shape) for n, a in parts.items()}

    return Answer(stacked(arrays), stacked(bands))


def plain(problem: Problem, order: Array | None = None) -> dict[str, Array]:
    """A plain implementation in the problem's own arithmetic, each result rounded once.

    ``order`` permutes the keys before they are summed: the error of reordering alone.
    """
    arrays: dict[str, list[Array]] = {}
    for b, h in np.ndindex(problem.batch, problem.heads):
        found, _ = _head(problem, b, h, problem.dtype, order)
        for name, array in found.items():
            with np.errstate(over="ignore"):
                kept = array if name == "lse" else array.astype(problem.result_dtype)
            arrays.setdefault(name, []).append(kept)
    shape = (problem.batch, problem.heads)
    return {n: np.stack(a).reshape(*shape, *a[0].shape) for n, a in arrays.items()}


def _head(
    problem: Problem, b: int, h: int, dtype: Any, order: Array | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    keys, group = problem.keys, problem.group(h)
    order = np.arange(keys) if order is None else order
    back = np.argsort(order)
    q = problem.query[b, h].astype(dtype)  # (Lq, D)
    k = problem.key[b, group].astype(dtype)[order]  # (Lk, D)
    v = problem.value[b, group].astype(dtype)[order]  # (Lk, Dv)
    keep = problem.mask.keep(b, h, 0, problem.queries, 0, keys)[:, order]
    bias = problem.mask.bias(b, h, 0, problem.queries, 0, keys)
    bias = np.zeros(keep.shape, dtype) if bias is None else bias.astype(dtype)[:, order]
    scale = np.dtype(dtype).type(problem.scale)
    sink = -np.inf if problem.sink is None else problem.sink[h]
    rounded = problem.softmax_dtype
    with np.errstate(all="ignore"):
        scores = np.einsum("id,jd->ij", q, k) * scale
        reach = np.einsum("id,jd->ij", np.abs(q), np.abs(k)) * abs(scale)
        capped = scores
        if problem.softcap is not None:
            cap = np.dtype(dtype).type(problem.softcap)
            capped = cap * np.tanh(scores / cap)
        masked = np.where(keep, capped + bias, -np.inf).astype(dtype)
        z = masked
        if rounded is not None and dtype is not np.longdouble:
            z = z.astype(rounded).astype(dtype)
        top = np.maximum(z.max(-1, initial=-np.inf), np.dtype(dtype).type(sink))
        shift = np.where(np.isneginf(top), 0, top)
        e = np.exp(z - shift[:, None])
        total = e.sum(-1) + np.exp(np.dtype(dtype).type(sink) - shift)
        lse = shift + np.log(total)
        weights = e / np.where(total == 0, 1, total)[:, None]
        if rounded is not None and dtype is not np.longdouble:
            weights = weights.astype(rounded).astype(dtype)
        terms = np.where(keep[:, :, None], weights[:, :, None] * v[None], 0)  # (Lq, Lk, Dv)
        output = terms.sum(1)

        # First-order condition: a score moves by its reach, exp's argument by its own size.
        step = eps(problem.dtype if rounded is None else rounded)
        last = eps(problem.result_dtype)
        move = np.where(keep, 1 + reach + np.abs(bias) + np.abs(capped), 0)
        move += np.where(keep, np.abs(z - shift[:, None]), 0)
        mean_move = (weights * move).sum(-1)
        spread = np.where(keep[:, :, None], np.abs(v[None] - output[:, None]), 0)
        bands = {
            "scores": step * reach + last * np.abs(scores),
            "softcapped": step * (reach + np.abs(capped)) + last * np.abs(capped),
            "masked": np.where(keep, step * move + last * np.abs(masked), 0),
            "weights": weights * (step * (1 + move + mean_move[:, None]) + last),
            "output": step * np.einsum("ij,ijd->id", weights * move, spread + np.abs(v[None]))
            + last * np.abs(output),
            "lse": step * (1 + mean_move + np.where(np.isfinite(lse), np.abs(lse), 0)),
        }
    arrays = {
        "scores": scores[:, back], "softcapped": capped[:, back], "masked": masked[:, back],
        "weights": weights[:, back], "output": output, "lse": lse,
    }  # fmt: skip
    tiny = float(np.finfo(np.float32 if problem.dtype.itemsize == 4 else np.float64).tiny)
    half = problem.result_dtype.itemsize == 2
    floor = 2.0**-24 if half and problem.result_dtype.name == "float16" else tiny
    for name in ("scores", "softcapped", "masked", "weights"):
        bands[name] = bands[name][:, back]
    return arrays, {name: band + floor for name, band in bands.items()}


def assert_within_budget(
    result: Result, names: tuple[str, ...] = ("output", "lse"), *, reorder: int = 2
) -> None:
    """Hold results of an engine against the truth; the message names the worst cell.

    ``names``: any of output, lse and the stages that the result has. ``reorder`` is how many more
    plain implementations sum the keys in another order.
    """
    problem, family = result.problem, result.problem.family
    right = truth(problem)
    rng = np.random.default_rng(0)
    plains = [plain(problem)]
    plains += [plain(problem, rng.permutation(problem.keys)) for _ in range(reorder)]
    for name in names:
        if name == "output":
            candidate, back = result.output, family.restore
        elif name == "lse":
            candidate, back = result.lse, family.restore_rows
        else:
            candidate, back = result.stages[name], family.restore_rows
        assert_close(
            name, candidate, back(right.arrays[name]), [back(p[name]) for p in plains],
            back(right.bands[name]),
        )  # fmt: skip


def assert_close(name: str, candidate: Array, right: Array, plains: list[Array], band: Any) -> None:
    """Assert |candidate − right| ≤ 2·max|plain − right| + band, cell by cell.

    Where the truth, rounded to the candidate's type, is NaN or infinite, so is the candidate.
    The plain error is the largest of all cells, as in flash-attention's tests.
    """
    assert candidate.shape == right.shape, f"{name} is {candidate.shape}, expected {right.shape}"
    with np.errstate(all="ignore"):
        rounded = right.astype(candidate.dtype).astype(np.float64)
        wide = candidate.astype(np.float64)
        odd = ~np.isfinite(rounded)
        np.testing.assert_array_equal(wide[odd], rounded[odd], err_msg=name)
        own = [np.abs(p.astype(np.longdouble) - right)[~odd] for p in plains]
        most = max((e[np.isfinite(e)].max(initial=0) for e in own), default=0)
        error = np.where(odd, 0, np.abs(wide - right))
        allowed = 2 * most + band
        excess = np.where(odd, 0, error - allowed)
    assert not np.isnan(error).any(), f"{name} is NaN where it should not be"
    if excess.size and excess.max() > 0:
        worst = tuple(int(i) for i in np.unravel_index(int(excess.argmax()), excess.shape))
        room = float(np.broadcast_to(allowed, error.shape)[worst])
        raise AssertionError(
            f"{name}{list(worst)} is {wide[worst]!r}, expected {float(right[worst])!r}: error "
            f"{float(error[worst]):.3g}, allowed {room:.3g} = 2 × {float(most):.3g} + band"
        )


def rows_are_right(problem: Problem, rows: Rows) -> None:
    """Running sums against float64, by the budget: the numpy engine is the other implementation."""
    truth = reference.attend(problem, {"row_statistics"})
    other = engines.load("numpy").attend(problem, {"row_statistics"})
    assert truth.rows is not None
    assert other.rows is not None
    q, k = (np.abs(np.asarray(a, np.float64)) for a in (problem.query, problem.key))
    each = problem.heads // problem.kv_heads
    reach = (q @ k.repeat(each, 1).swapaxes(-1, -2)).max(-1) * abs(problem.scale)  # (B, H, Lq)
    masked = reference.attend(problem, {"masked"}).stages["masked"].astype(np.float64)
    finite = np.where(np.isfinite(masked), masked, 0)
    step = 4 * eps(problem.dtype) * (1 + reach + np.ptp(finite, axis=-1) + np.abs(finite).max(-1))
    np.testing.assert_array_equal(rows.n, truth.rows.n)
    for name in ("m", "e1", "es", "e2", "e3", "mean", "m2", "amax", "first"):
        right = getattr(truth.rows, name)
        size = np.where(np.isfinite(right), np.abs(right), 0)
        band = step * (1 + size + (rows.n * (reach + size) if name == "m2" else rows.n))
        assert_close(name, getattr(rows, name), right, [getattr(other.rows, name)], band)
    right, band = truth.rows.top_z, step[..., None] * (1 + reach[..., None])
    assert_close("top_z", rows.top_z, right, [other.rows.top_z], band)
    # equal logits may be told apart by rounding: the keys must be worth what the best are worth
    exact = replace(problem, result_dtype=np.dtype(np.float64))
    logits = reference.attend(exact, {"masked"}).stages["masked"]
    chosen = np.take_along_axis(logits, np.maximum(rows.top_j, 0), -1)
    none = np.isneginf(right)
    np.testing.assert_array_equal(rows.top_j == -1, none)
    worth = np.where(none, 0, np.abs(chosen - np.where(none, 0, right)))
    worst = 2 * np.abs(np.where(none, 0, rows.top_z - np.where(none, 0, right))).max(initial=0)
    assert (worth <= worst + 2 * band).all()
