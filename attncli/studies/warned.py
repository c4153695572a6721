"""What a person is warned about: numbers that are not finite, rows without keys, masks that add."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from attncli.attention import definition
from attncli.attention.masks import SENTINEL
from attncli.attention.problem import Problem
from attncli.attention.shares import Share, share_of
from attncli.errors import counted

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 22  # numbers looked at together


def warnings(
    problem: Problem, lse: Array, known_lse: bool, back: ModuleType | None = None
) -> list[str]:
    """Return a line for each thing that is odd. lse: ``(B, H, Lq)``, NaN where not known.

    ``back`` is the module that the gradients come from.
    """
    found = _not_finite(problem, lse)
    dead = np.isneginf(lse) & problem.real_rows[:, None]
    if dead.any():
        found.append(
            f"{int(dead.sum())} of {dead.size} rows see no key; their output is 0 and they are "
            f"left out of the statistics. The first is (batch, head, query) {_first(dead)}"
            if problem.scored
            else f"{int(dead.sum())} of {dead.size} rows are all 0: they see no key and are left "
            f"out of the statistics. The first is (batch, head, query) {_first(dead)}"
        )
    lost = np.isnan(lse) | np.isposinf(lse)
    if not problem.scored and lost.any():
        found.append(
            f"{int(lost.sum())} of {lost.size} rows have weights that are NaN or infinite. The "
            f"first is (batch, head, query) {_first(lost)}"
        )
    elif not found and known_lse and lost.any():
        found.append(
            f"{int(lost.sum())} of {lost.size} rows have scores that are NaN or infinite, though "
            f"query and key are finite: they overflow {problem.dtype.name}, or the mask adds such "
            f"numbers. The first is (batch, head, query) {_first(lost)}"
        )
    return found + of_mask(problem) + of_gradients(problem, back)


def of_gradients(problem: Problem, engine: ModuleType | None) -> list[str]:
    """Return a line where scores are too large for the gradients of an engine (its TRUSTED)."""
    reach = engine.reach(problem) if engine is not None and hasattr(engine, "TRUSTED") else 0.0
    if reach <= getattr(engine, "TRUSTED", 0.0) or reach == np.inf:
        return []
    off = reach * float(np.finfo(np.float64).eps)
    return [
        f"scores may reach {reach:.0e}: in another order of summing they differ by {off:.1g}, and "
        "gradients by numpy are off by as much, or lost (--backend torch sums in one order)"
    ]


def of_mask(problem: Problem) -> list[str]:
    """Return a line for each thing that is odd about float masks."""
    found = []
    if problem.mask.zero_one():
        found.append(
            "the float mask holds only 0 and 1: they are added to the scores and hide nothing. "
            "A mask that hides is bool (True = keep), or float with -inf"
        )
    sentinel = problem.mask.sentinel()
    if sentinel is not None:
        rows = int(leaks(problem).sum())
        where = (
            f"leaks into {rows} of {problem.batch * problem.heads * problem.queries} rows"
            if rows
            else "leaks into no row here"
        )
        found.append(
            f"the float mask holds {sentinel:.4g}, which is finite and not −∞: it is added as it "
            f"is, and {where}; a row of nothing else becomes a mean. Use -inf or a bool mask to "
            "hide keys"
        )
    return found


def _first(rows: Array) -> tuple[int, ...]:
    return tuple(int(x) for x in np.argwhere(rows)[0])


# -- numbers that are not finite --------------------------------------------------------------


class Odd(NamedTuple):
    """How many numbers of a tensor are not finite, where the first is, and in which rows."""

    number: int
    first: tuple[int, int, int, int]
    rows: Array  # bool (B, H or G, L)


def _not_finite(p: Problem, lse: Array) -> list[str]:
    found: list[str] = []
    if (share := share_of(p)) and _all_finite(share, p):
        return found
    for name in ("query", "key", "value"):
        odd = odd_numbers(getattr(p, name))
        if odd is None:
            continue
        sees = odd.rows & ~np.isneginf(lse) if name == "query" else rows_that_see(p, odd.rows)
        n = int(sees.sum())
        one = odd.number == 1
        that = "it" if one else "one"
        seen = f"{n} of {sees.size} rows see {that} and carry it on" if n else f"no row sees {that}"
        found.append(
            f"{name} has {counted(odd.number, 'value')} that {'is' if one else 'are'} NaN or "
            f"infinite, the first at (batch, head, position, channel) {odd.first}; {seen}"
        )
    return found


def _all_finite(share: Share, p: Problem) -> bool:
    """Whether all numbers are finite: each process looks at its own."""
    own = share.part(p)
    odd = [odd_numbers(array) is not None for array in (own.query, own.key, own.value)]
    return not share.summed(np.array([any(odd)], np.int64))[0][0]


def odd_numbers(array: Array) -> Odd | None:
    """Return what is not finite in ``(B, H, L, D)``, a head at a time; None: all is."""
    with np.errstate(all="ignore"):  # a sum is finite only if all its terms are
        if array.size <= CELLS and np.isfinite(array.sum(dtype=np.float64)):
            return None
    count, first, rows = 0, None, np.zeros(array.shape[:3], bool)
    for b, h in np.ndindex(array.shape[:2]):
        step = max(1, CELLS // max(1, array.shape[3]))
        for start in range(0, array.shape[2], step):
            part = array[b, h, start : start + step]
            # or they overflow: then the exact test decides
            with np.errstate(all="ignore"):
                if np.isfinite(part.sum(dtype=np.float64)):
                    continue
            bad = ~np.isfinite(part.astype(np.float32) if part.dtype.itemsize < 4 else part)
            count += int(bad.sum())
            rows[b, h, start : start + step] = bad.any(1)
            if first is None and bad.any():
                i, d = _first(bad)
                first = b, h, start + i, d
    return None if first is None else Odd(count, first, rows)


def rows_that_see(p: Problem, keys: Array) -> Array:
    """Return which rows see any of some keys, bool ``(B, G, Lk)``: ``(B, H, Lq)``."""
    sees = np.zeros((p.batch, p.heads, p.queries), bool)
    for b, h in np.ndindex(p.batch, p.heads):
        j, left = np.flatnonzero(keys[b, p.group(h)]), np.arange(p.queries)
        while j.size and left.size:
            some, j = np.split(j, [max(1, CELLS // left.size)])
            allowed = p.mask.predicate.allows(b, h, left[:, None], some[None])
            does = np.broadcast_to(allowed, (left.size, some.size)).any(1)
            sees[b, h, left[does]] = True
            left = left[~does]
    return sees


# -- sentinels --------------------------------------------------------------------------------


def leaks(p: Problem) -> Array:
    """Return in which rows keys have weight that a float mask was meant to hide: ``(B, H, Lq)``.

    Those that see nothing else, and those with scores large enough to make up for it.
    """
    found = np.zeros((p.batch, p.heads, p.queries), bool)
    whole, room = p.mask.compact(rows=True), _room(p)
    patterns = {
        (b, h): _pattern(p, b, h, whole.extent.queries)
        for b, h in np.ndindex(whole.extent.batch, whole.extent.heads)
    }
    for b, h in np.ndindex(p.batch, p.heads):
        only, gap = patterns[b % whole.extent.batch, h % whole.extent.heads]
        found[b, h] = only
        doubtful = np.flatnonzero(~only & ~(gap > room[b, h]))  # NaN is doubtful
        for i in np.split(doubtful, range(0, len(doubtful), max(1, CELLS // p.keys))[1:]):
            found[b, h, i] = _weighs(p, b, h, i)
    return found


def _pattern(p: Problem, b: int, h: int, rows: int) -> tuple[Array, Array]:
    """Return which rows see nothing but sentinels, ``(rows,)``, and how far at least sentinels
    lie below the best of the others, ∞ where there are none.
    """
    only, gap = np.zeros(rows, bool), np.full(rows, np.inf)
    step = max(1, CELLS // max(1, p.keys))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        low, bias, keep = _low(p, b, h, np.arange(part.start, part.stop))
        some, others = low.any(1), keep & ~low
        only[part] = some & ~others.any(1)
        best = np.where(others, bias, -np.inf).max(1, initial=-np.inf)
        worst = np.where(low, bias, -np.inf).max(1, initial=-np.inf)
        with np.errstate(invalid="ignore"):  # rows without sentinels, or without others
            gap[part] = np.where(some & ~only[part], best - worst, np.inf)
    return only, gap


def _low(p: Problem, b: int, h: int, i: Array) -> tuple[Array, Array, Array]:
    """Return sentinels (bool), what is added, and what is seen (bool), of rows i: ``(n, Lk)``."""
    at = b, h, i[:, None], np.arange(p.keys)[None]
    shape = len(i), p.keys
    with np.errstate(invalid="ignore"):
        bias = np.broadcast_to(sum(one.at(*at) for one in p.mask.biases), shape)
    keep = np.broadcast_to(p.mask.predicate.allows(*at), shape)
    return keep & (bias <= SENTINEL), bias, keep


def _room(p: Problem) -> Array:
    """Return the gap from which on a sentinel's weight is 0 whatever the scores: ``(B, H, Lq)``."""
    least = -float(np.log(np.finfo(p.dtype).smallest_subnormal))
    room = np.empty((p.batch, p.heads, p.queries))
    with np.errstate(over="ignore", invalid="ignore"):
        for b, h in np.ndindex(p.batch, p.heads):
            q, k = (np.asarray(x, np.float64) for x in (p.query[b, h], p.key[b, p.group(h)]))
            reach = np.sqrt(np.vecdot(q, q) * np.vecdot(k, k).max(initial=0)) * abs(p.scale)
            room[b, h] = 2 * (reach if p.softcap is None else np.minimum(reach, p.softcap)) + least
    return room


def _weighs(p: Problem, b: int, h: int, i: Array) -> Array:
    """Return in which rows i ``(n,)`` a sentinel's weight is above 0 in the arithmetic's type."""
    weights = definition.stages(p, b, h, i)["weights"]
    with np.errstate(under="ignore"):
        return np.asarray((_low(p, b, h, i)[0] & (weights.astype(p.dtype) > 0)).any(1))
