"""Faults that no option says: what goes wrong between the scores and what is written.

Each is a model of a faulty program, computed and held against the candidate like any other theory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.studies.compare.lessons import lesson_suspects
from attncli.studies.compare.suspects import Suspect
from attncli.studies.compare.theory import After, View

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]

LOWEST = float(np.finfo(np.float32).min)
TILES = (16, 32, 64, 128, 256)


def fault_suspects(problem: Problem, stages: frozenset[str]) -> Iterator[Suspect]:
    """Yield faults that could show in these stages of a candidate."""
    if "lse" in stages:
        yield from _lses(problem)
    if {"output", "weights"} & stages:
        yield from _sums(problem)
        yield from lesson_suspects(problem)
        yield from _leaks(problem)
        yield from _dead(problem)
    if {"output", "weights", "lse"} & stages:
        yield from _lost(problem)
        yield from _rescales(problem, stages)
    yield from _layouts(problem, stages)


# -- lse --------------------------------------------------------------------------------------


def _lses(p: Problem) -> Iterator[Suspect]:
    yield Suspect("lse", "the lse is in base 2", after=_lse(_base_2))
    scale = p.scale or 1.0
    if scale != 1:
        yield Suspect(
            "lse", "the lse is that of unscaled scores", after=_lse(partial(_sum_of, 1 / scale))
        )
        yield Suspect(
            "lse", "the lse is divided by the scale", after=_lse(lambda p, a: a["lse"] / scale)
        )
        yield Suspect(
            "lse", "the scale is left out of the maximum in the lse",
            after=_lse(lambda p, a: _top(a) / scale + np.log(_total(a))),
        )  # fmt: skip
    yield Suspect(
        "lse", "the lse is log Σ exp(z − max), without the maximum",
        after=_lse(lambda p, a: np.log(_total(a))),
    )  # fmt: skip
    yield Suspect("lse", "the lse is the largest logit alone", after=_lse(lambda p, a: _top(a)))
    yield Suspect("lse", "the lse is Σ exp z, without its logarithm",
                  after=_lse(lambda p, a: np.exp(a["lse"])))  # fmt: skip
    yield Suspect("lse", "the lse has the other sign", after=_lse(lambda p, a: -a["lse"]))
    if p.sink is not None:
        yield Suspect("lse", "the lse leaves out the sink", after=_lse(partial(_sum_of, 1.0)))
    if p.mask.has_bias or not p.mask.predicate.everything():
        for value, words in (
            (0.0, "0"), (np.inf, "+∞"), (np.nan, "NaN"), (-1e4, "−10000"), (-1e9, "−1e9"),
            (-1e30, "−1e30"), (LOWEST, "finite"),
        ):  # fmt: skip
            yield Suspect(
                "dead lse", f"the lse of rows that see nothing is {words}, not −∞",
                after=_lse(partial(_dead_lse, value)),
            )  # fmt: skip


def _lse(formula: Any) -> After:
    return lambda p, b, h, rows, a: {"lse": formula(p, a)}


def _base_2(p: Problem, a: Arrays) -> Array:
    return a["lse"] / math.log(2)


def _dead_lse(value: float, p: Problem, a: Arrays) -> Array:
    return np.where(np.isneginf(a["lse"]), value, a["lse"])


def _top(a: Arrays) -> Array:
    return np.asarray(a["masked"].max(-1, initial=-np.inf))


def _shifted(a: Arrays) -> Array:
    """exp(z − max z), ``(n, Lk)``; 0 in rows that see nothing."""
    top = _top(a)
    return np.asarray(np.exp(a["masked"] - np.where(np.isneginf(top), 0, top)[:, None]))


def _total(a: Arrays) -> Array:
    return np.asarray(_shifted(a).sum(-1))


def _sum_of(factor: float, p: Problem, a: Arrays) -> Array:
    """The lse of logits times ``factor``, without a sink."""
    z = a["masked"] * factor
    top = z.max(-1, initial=-np.inf)
    return np.asarray(top + np.log(np.exp(z - np.where(np.isneginf(top), 0, top)[:, None]).sum(-1)))


# -- from weights to the output ---------------------------------------------------------------


def _values(p: Problem, b: int, h: int, dtype: Any) -> Array:
    value = p.value[b, p.group(h)].astype(dtype)
    return np.where(np.isfinite(value), value, 0)


def _sums(p: Problem) -> Iterator[Suspect]:
    yield Suspect("sum", "the output is not divided by the sum of the weights", after=_undivided)
    yield Suspect(
        "sum", "the output is Σ exp(z)·v: neither the maximum nor the sum is taken out",
        after=lambda p, b, h, rows, a: {"output": a["output"] * np.exp(a["lse"])[:, None]},
    )  # fmt: skip
    yield Suspect(
        "sum", "the output is divided by the sum of the weights twice",
        after=lambda p, b, h, rows, a: {"output": a["output"] / _sum_or_one(a)},
    )  # fmt: skip
    yield Suspect(
        "sum", "the output is the mean over keys, divided by their number once more",
        after=lambda p, b, h, rows, a: {"output": a["output"] / max(p.keys, 1)},
    )  # fmt: skip
    yield Suspect(
        "sum", "the maximum is not taken out before exp, which overflows", after=_overflowing
    )


def _leaks(p: Problem) -> Iterator[Suspect]:
    """What is hidden is read all the same, and its NaN or infinity reaches the output."""
    if not np.isfinite(p.value).all():
        yield Suspect("leak", "hidden values are read: 0·NaN is NaN, 0·∞ too", after=_values_leak)
    if not np.isfinite(p.key).all():
        yield Suspect(
            "leak", "hidden keys are read: NaN + −∞ is NaN, which reaches the whole row",
            after=_keys_leak,
        )  # fmt: skip


def _values_leak(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    return {"output": a["weights"] @ p.value[b, p.group(h)].astype(a["weights"].dtype)}


def _keys_leak(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    lost = np.asarray(~np.isfinite(a["scores"]).all(1))[:, None]
    return {
        "output": np.where(lost, np.nan, a["output"]),
        "weights": np.where(lost, np.nan, a["weights"]),
        "lse": np.where(lost[:, 0], np.nan, a["lse"]),
    }


def _sum_or_one(a: Arrays) -> Array:
    total = _total(a)
    return np.where(total == 0, 1, total)[:, None]


def _undivided(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    total = _sum_or_one(a)
    return {"output": a["output"] * total, "weights": a["weights"] * total}


def _overflowing(p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    """exp z in float32, as it is."""
    with np.errstate(all="ignore"):
        e = np.exp(a["masked"].astype(np.float32)).astype(a["masked"].dtype)
        total = e.sum(-1, keepdims=True)
        if p.sink is not None:
            total = total + np.exp(p.sink[h])
        weights = e / np.where(total == 0, 1, total)
        return {"output": weights @ _values(p, b, h, e.dtype), "weights": weights}


def _dead(p: Problem) -> Iterator[Suspect]:
    if p.mask.predicate.everything() and not p.mask.has_bias:
        return
    for words, row in (
        ("NaN", lambda v: np.full(v.shape[1], np.nan)),
        ("the mean of all values", lambda v: v.mean(0)),
        ("the last value", lambda v: v[-1]), ("the first value", lambda v: v[0]),
        ("the sum of all values", lambda v: v.sum(0)),
    ):  # fmt: skip
        yield Suspect(
            "dead", f"rows that see nothing are {words}, not 0", after=partial(_dead_rows, row)
        )


def _lost(p: Problem) -> Iterator[Suspect]:
    """The online softmax whose running maximum is −∞ after the first tile."""
    if p.mask.predicate.everything() and not p.mask.has_bias:
        return
    for tile in TILES:
        if tile < p.keys:
            yield Suspect(
                "dead", "rows that see no key of the first tile are NaN: exp(−∞ − −∞)",
                after=partial(_lost_rows, tile), pair=False, also=("lost",),
            )  # fmt: skip


def _lost_rows(tile: int, p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    sunk = p.sink is not None and bool(np.isfinite(p.sink[h]))
    seen = np.asarray(np.isfinite(a["masked"][:, :tile]).any(1)) | sunk
    return {
        "output": np.where(seen[:, None], a["output"], np.nan),
        "weights": np.where(seen[:, None], a["weights"], np.nan),
        "lse": np.where(seen, a["lse"], np.nan),
    }


def _dead_rows(row: Any, p: Problem, b: int, h: int, rows: Array, a: Arrays) -> Arrays:
    dead = np.isneginf(a["masked"].max(-1, initial=-np.inf))
    if not dead.any() or not p.keys:
        return {}
    value = row(_values(p, b, h, a["output"].dtype))
    weight = np.nan if np.isnan(value).all() else 1 / p.keys
    return {
        "output": np.where(dead[:, None], value, a["output"]),
        "weights": np.where(dead[:, None], weight, a["weights"]),
    }


def _rescales(p: Problem, stages: frozenset[str]) -> Iterator[Suspect]:
    """The online softmax: what was summed so far is to be rescaled when the maximum grows.

    The lse is made of the denominator, or by itself.
    """
    sums = ["denominator"]
    if {"output", "weights"} & stages:
        sums += ["accumulator", "accumulator and denominator"]
    for tile in TILES if p.value_width or "lse" in stages else ():
        if tile < p.keys:
            for what in sums:
                for lse in (False, True) if "lse" in stages and "denominator" in what else (False,):
                    yield Suspect(
                        "sum",
                        f"missing rescale: the {what} is not multiplied by exp(m_old − m_new) when "
                        f"a tile of {tile} keys has a new maximum",
                        after=partial(_unscaled, tile, what, lse), pair=False,
                    )  # fmt: skip


def _unscaled(
    tile: int, what: str, lse: bool, p: Problem, b: int, h: int, rows: Array, a: Arrays
) -> Arrays:
    z = a["masked"]
    top = _top(a)
    last = np.where(np.isneginf(top), 0, top)[:, None]
    e = np.exp(z - last)  # right
    so_far = np.full(len(z), -np.inf)
    wrong = np.empty_like(z)
    for j in range(0, z.shape[1], tile):
        part = z[:, j : j + tile]
        so_far = np.maximum(so_far, part.max(-1, initial=-np.inf))
        wrong[:, j : j + tile] = np.exp(part - np.where(np.isneginf(so_far), 0, so_far)[:, None])
    sink = 0.0 if p.sink is None else np.exp(p.sink[h] - last)
    above = wrong if "accumulator" in what else e
    below = (wrong if "denominator" in what else e).sum(-1, keepdims=True) + sink
    weights = above / np.where(below == 0, 1, below)
    made = {"output": weights @ _values(p, b, h, z.dtype), "weights": weights}
    return made | ({"lse": top + np.log(below[:, 0])} if lse else {})


# -- how the result lies ----------------------------------------------------------------------


def _layouts(p: Problem, stages: frozenset[str]) -> Iterator[Suspect]:
    """All stages lie otherwise, or where there are several, one alone."""
    views: dict[str, View] = {}
    if p.heads > 1:
        views["heads and rows are transposed: (B, L, H, D) lies where (B, H, L, D) is expected"] = (
            _as_blhd
        )
        if p.heads != p.queries:
            words = (
                "heads and rows are transposed: (B, H, L, D) lies where (B, L, H, D) is expected"
            )
            views[words] = _as_bhld
        views[
            "heads and channels are transposed: (B, L, D, H) lies where (B, L, H, D) is expected"
        ] = _as_bldh
    if p.queries > 1:
        views["rows are in reverse order"] = lambda name, a: a[:, :, ::-1]
        views["rows are one too late"] = _shifted_rows(1)
        views["rows are one too early"] = _shifted_rows(-1)
    if p.queries == p.value_width > 1:
        views["rows and channels are transposed"] = lambda name, a: (
            a.swapaxes(2, 3) if name == "output" else None
        )
    for words, view in views.items():
        yield Suspect("layout", words, view=view, pair=False)
        for stage in sorted(stages) if len(stages) > 1 else ():
            yield Suspect(
                "layout", f"{words} (the {stage} alone)", view=_of(stage, view), pair=False
            )


def _of(stage: str, view: View) -> View:
    """Return the view of one stage; the others lie right."""
    return lambda name, array: view(name, array) if name == stage else array


def _as_blhd(name: str, array: Array) -> Array:
    b, h, length, *rest = array.shape
    return array.reshape(b, length, h, *rest).swapaxes(1, 2)


def _as_bhld(name: str, array: Array) -> Array:
    b, h, length, *rest = array.shape
    return array.swapaxes(1, 2).reshape(b, h, length, *rest)


def _as_bldh(name: str, array: Array) -> Array | None:
    if array.ndim < 4:
        return None
    b, h, length, width = array.shape
    return array.swapaxes(1, 2).reshape(b, length, width, h).transpose(0, 3, 1, 2)


def _shifted_rows(by: int) -> View:
    return lambda name, array: np.roll(array, -by, 2)
