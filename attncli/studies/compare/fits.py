"""Numbers that nobody would guess, fitted: a scale, a softcap, a sink for each head, a factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.studies.compare.suspects import number
from attncli.studies.compare.theory import Candidate, Theory, Unit, residual

Array = np.ndarray[Any, np.dtype[Any]]

GRID = np.exp2(np.arange(-6, 6.01, 0.5))
STEPS = 8  # of Gauss and Newton
SHORT = 1.2  # what a number with few digits may leave more than the best one
ENOUGH = 0.5  # a fit that leaves more than this part of what was left is none


def fitted(theory: Theory, candidate: Candidate, units: Sequence[Unit]) -> Iterator[Theory]:
    """Yield the theory with a number fitted to the sample, where that explains much of it."""
    if theory.view or theory.after or not {"output", "weights"} & candidate.stages.keys():
        return
    start = residual(theory, candidate, units)
    if not math.isfinite(start):
        return
    p = theory.problem
    if "scale" not in theory.kinds and p.scale:
        found = _line(theory, candidate, units, p.scale, lambda q, x: replace(q, scale=x), start)
        if found is not None:
            yield _said(theory, replace(p, scale=found), "scale", "--scale", number(found))
    if "softcap" not in theory.kinds:
        first = p.softcap if p.softcap is not None else _largest(theory, units)
        found = _line(theory, candidate, units, first, lambda q, x: replace(q, softcap=x), start)
        if found is not None and found < 1e3 * first:
            yield _said(theory, replace(p, softcap=found), "softcap", "--softcap", number(found))
    if not theory.by_head(candidate):
        return
    if "sink" not in theory.kinds and "output" in candidate.stages:
        yield from _sinks(theory, candidate, units, start)
    if "sum" not in theory.kinds and "output" in candidate.stages:
        yield from _factor(theory, candidate, units, start)


def _said(theory: Theory, problem: Problem, kind: str, flag: str, text: str) -> Theory:
    return replace(
        theory, problem=problem, said={**theory.said, flag: text}, kinds=theory.kinds | {kind},
        fitted=True,
    )  # fmt: skip


def _largest(theory: Theory, units: Sequence[Unit]) -> float:
    b, h, rows = units[0]
    scores = theory.block(b, h, rows[:4], None, slice(0, theory.problem.keys)).arrays["scores"]
    size = np.abs(scores)[np.isfinite(scores)]
    return float(size.max(initial=1.0)) or 1.0


def _line(
    theory: Theory,
    candidate: Candidate,
    units: Sequence[Unit],
    first: float,
    put: Callable[[Problem, float], Problem],
    start: float,
) -> float | None:
    """Return the number, near a multiple of ``first``, that leaves least; None if too much."""

    def left(x: float) -> float:
        return residual(replace(theory, problem=put(theory.problem, x)), candidate, some)

    some = [Unit(u.b, u.h, u.rows[:: max(1, len(u.rows) // 8)]) for u in units[:3]]
    grid = [left(first * float(g)) for g in GRID]
    best = int(np.argmin(grid))
    x = first * float(GRID[best])
    for _ in range(STEPS):
        step = _newton(theory, candidate, some, x, put)
        if step is None:
            return None
        limit = 0.3 * abs(x)
        x += min(max(step, -limit), limit)
        if abs(step) < 1e-13 * abs(x):
            break
    final = residual(replace(theory, problem=put(theory.problem, x)), candidate, units)
    if not (final < ENOUGH * start and x > 0):
        return None
    for digits in range(2, 9):  # somebody typed it, most likely
        short = float(f"{x:.{digits}g}")
        left_over = residual(replace(theory, problem=put(theory.problem, short)), candidate, units)
        if left_over < SHORT * final + 1e-30:
            return short
    return float(x)


def _newton(
    theory: Theory,
    candidate: Candidate,
    units: Sequence[Unit],
    x: float,
    put: Callable[[Problem, float], Problem],
) -> float | None:
    """Return the step of least squares, Σ J·r / Σ J², J by a central difference."""
    name = "output" if "output" in candidate.stages else "weights"
    theory, candidate = next(p for p in theory.parts(candidate) if name in p[1].stages)
    units = theory.units(units)
    up, down = 0.0, 0.0
    dx = 1e-5 * abs(x)
    for b, h, rows in units:
        keys = slice(0, theory.problem.keys)
        here, more, less = (
            replace(theory, problem=put(theory.problem, x + d))
            .block(b, h, rows, None, keys).arrays[name]
            for d in (0.0, dx, -dx)
        )  # fmt: skip
        slope = (more - less) / (2 * dx)
        error = candidate.stages[name][b, h][rows].astype(np.float64) - here
        good = np.isfinite(error) & np.isfinite(slope)
        up += float(np.sum(slope * error, where=good))
        down += float(np.sum(slope * slope, where=good))
    return up / down if down else None


def _rows_as_multiples(
    theory: Theory, candidate: Candidate, unit: Unit
) -> tuple[Array, dict[str, Array]]:
    """Return c of candidate ≈ c·output by row, NaN where there is nothing to tell."""
    b, h, rows = unit
    arrays = theory.block(b, h, rows, None, slice(0, theory.problem.keys)).arrays
    right = arrays["output"]
    wanted = candidate.stages["output"][b, h][rows].astype(np.float64)
    with np.errstate(all="ignore"):
        factor = np.vecdot(wanted, right) / np.vecdot(right, right)
        error = np.linalg.norm(wanted - factor[:, None] * right, axis=1)
        alike = error <= 0.05 * np.linalg.norm(wanted, axis=1)
    return np.where(alike, factor, np.nan), arrays


def _sinks(
    theory: Theory, candidate: Candidate, units: Sequence[Unit], start: float
) -> Iterator[Theory]:
    """A sink shrinks each row: 1/c = 1 + exp(sink − lse), lse without one."""
    p = theory.problem
    bare = replace(theory, problem=replace(p, sink=None))
    logits: dict[int, list[float]] = {}
    for unit in units:
        factor, arrays = _rows_as_multiples(bare, candidate, unit)
        with np.errstate(all="ignore"):
            found = np.log(1 / factor - 1) + arrays["lse"]
        logits.setdefault(unit.h, []).extend(found[np.isfinite(found)].tolist())
    if any(len(numbers) < 2 for numbers in logits.values()) or not logits:
        return
    by_head = {h: float(np.median(numbers)) for h, numbers in logits.items()}
    values = list(by_head.values())
    one = max(values) - min(values) <= 1e-3 * max(1.0, max(map(abs, values)))
    if not one and len(by_head) < p.heads:
        return
    middle = float(np.median(values))
    sink = np.full(p.heads, middle) if one else np.array([by_head[h] for h in range(p.heads)])
    made = _refined(theory, candidate, units, sink, one)
    if residual(made, candidate, units) < ENOUGH * start:
        yield made


def _refined(
    theory: Theory, candidate: Candidate, units: Sequence[Unit], sink: Array, one: bool
) -> Theory:
    """Fit the sinks by least squares, all heads alike or each for itself."""
    p = theory.problem

    def put(values: Array) -> Theory:
        text = ",".join(number(float(x)) for x in (values[:1] if one else values))
        return _said(theory, replace(p, sink=values), "sink", "--sink", text)

    for _ in range(STEPS):
        up, down = np.zeros(p.heads), np.zeros(p.heads)
        for b, h, rows in units:
            keys = slice(0, p.keys)
            arrays = put(sink).block(b, h, rows, None, keys).arrays
            share = np.exp(sink[h] - arrays["lse"])[:, None]
            slope = -arrays["output"] * share  # do/dsink
            error = candidate.stages["output"][b, h][rows].astype(np.float64) - arrays["output"]
            good = np.isfinite(error) & np.isfinite(slope)
            up[h] += np.sum(slope * error, where=good)
            down[h] += np.sum(slope * slope, where=good)
        if one:
            up[:], down[:] = up.sum(), down.sum()
        with np.errstate(all="ignore"):
            step = np.where(down > 0, up / down, 0)
        sink = sink + np.clip(step, -1, 1)
        if np.abs(step).max(initial=0) < 1e-14:
            break
    final = residual(put(sink), candidate, units)
    for digits in range(2, 9):
        short = np.array([float(f"{x:.{digits}g}") for x in sink])
        if residual(put(short), candidate, units) < SHORT * final + 1e-30:
            return put(short)
    return put(sink)


def _times(
    value: float, p: Problem, b: int, h: int, rows: Array, a: Mapping[str, Array]
) -> Mapping[str, Array]:
    return {"output": a["output"] * value}


def _factor(
    theory: Theory, candidate: Candidate, units: Sequence[Unit], start: float
) -> Iterator[Theory]:
    """All rows are the same multiple of what they should be."""
    factors: list[float] = []
    for unit in units:
        factor, _ = _rows_as_multiples(theory, candidate, unit)
        factors += factor[np.isfinite(factor)].tolist()
    if len(factors) < 3 or np.ptp(factors) > 1e-2 * abs(np.median(factors)):
        return
    middle = float(np.median(factors))
    if abs(middle - 1) < 1e-3 or not middle:
        return
    part = round(1 / middle, 3)
    close = [x for x in (middle, round(middle, 3), 1 / part if part else 0) if x]
    for value in dict.fromkeys(close):
        made = replace(
            theory,
            words=(*theory.words, f"the output is multiplied by {value:.6g}"),
            kinds=theory.kinds | {"sum"},
            fitted=True,
            after=(partial(_times, value),),
        )
        if residual(made, candidate, units) < ENOUGH * start:
            yield made
