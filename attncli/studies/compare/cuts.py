"""Keys that were not read: a tile in the middle, a last partial one, a few at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.patterns import KeysBelow
from attncli.attention.predicates import Not, Or
from attncli.attention.problem import Problem
from attncli.studies.compare.mask_suspects import Said, joined
from attncli.studies.compare.theory import Candidate, Theory, Unit

Array = np.ndarray[Any, np.dtype[Any]]

TILES = (256, 128, 64, 32, 16, 8)
ROWS = 12  # rows of which all ranges are tried
BEST = 3


def ranges(keys: int) -> list[tuple[int, int]]:
    """Return the ranges that may be missing: tiles, what is left of them, a few at either end."""
    found: dict[tuple[int, int], None] = {}
    for tile in TILES:
        for start in range(0, keys, tile):
            found[start, min(start + tile, keys)] = None
    for few in range(1, min(33, keys)):
        found[keys - few, keys] = None
        found[0, few] = None
    return [one for one in found if one != (0, keys)]


def cut_suspects(theory: Theory, candidate: Candidate, units: Sequence[Unit]) -> Iterator[Theory]:
    """Yield theories in which a range of keys is not read, the likeliest few.

    o' = (o − Σ_S p v) / (1 − Σ_S p) for the missing keys S; sums over ranges are differences of
    running sums, so that all ranges together cost little more than one.
    """
    if "output" not in candidate.stages or theory.view or theory.after or "cut" in theory.kinds:
        return
    p = theory.problem
    tried = ranges(p.keys)
    if not tried:
        return
    a, b = np.array(tried).T
    total = np.zeros(len(tried))
    for unit in units:
        rows = unit.rows[np.linspace(0, len(unit.rows) - 1, ROWS).astype(int)]
        rows = np.unique(rows)
        arrays = theory.block(unit.b, unit.h, rows, None, slice(0, p.keys)).arrays
        value = p.value[unit.b, p.group(unit.h)]
        value = np.where(np.isfinite(value), value, 0).astype(np.float64)
        wanted = candidate.stages["output"][unit.b, unit.h][rows].astype(np.float64)
        for n in range(len(rows)):
            w = np.nan_to_num(arrays["weights"][n])
            mass = np.concatenate([[0], np.cumsum(w)])
            read = np.concatenate([np.zeros((1, value.shape[1])), np.cumsum(w[:, None] * value, 0)])
            gone, lost = mass[b] - mass[a], read[b] - read[a]  # (R,), (R, Dv)
            with np.errstate(all="ignore"):
                left = (arrays["output"][n] - lost) / (1 - gone)[:, None]
                left = np.where((1 - gone > 1e-12)[:, None], left, 0)
                error = ((left - wanted[n]) ** 2).sum(1)
            total += np.where(np.isfinite(error), error, np.inf)
    best = [int(n) for n in np.argsort(total, kind="stable")[:BEST] if np.isfinite(total[n])]
    for n in best:
        yield cut(theory, *tried[n])


def cut(theory: Theory, start: int, stop: int) -> Theory:
    """Return the theory with the keys start:stop hidden from all rows."""
    p = theory.problem
    text = _hidden(start, stop, p.keys)
    said = Said.of(p.mask)
    inside = Not(KeysBelow((start,) * p.batch)) if start else None
    below = KeysBelow((stop,) * p.batch)
    outside = Not(below) if inside is None else Or(Not(inside), Not(below))
    whole = joined([*said.texts, text])
    return Theory(
        replace(p, mask=p.mask & Mask(p.mask.extent, outside, text=text)),
        {**theory.said, "--mask": whole},
        (*theory.words, _words(start, stop, p)),
        theory.kinds | {"cut", "mask"}, theory.after, theory.view,
    )  # fmt: skip


def _hidden(start: int, stop: int, keys: int) -> str:
    if start == 0:
        return f"~prefix({stop})"
    return f"prefix({start})" if stop == keys else f"prefix({start}) | ~prefix({stop})"


def _words(start: int, stop: int, p: Problem) -> str:
    """Say which keys are missing, and which tile that is."""
    which = f"keys {start} to {stop - 1} are not read" if stop - start > 1 else (
        f"key {start} is not read"
    )  # fmt: skip
    whole = [t for t in TILES if stop - start == t and start % t == 0]
    partial = [t for t in TILES if stop == p.keys and start % t == 0 and stop - start < t]
    if partial:
        sizes = " or ".join(map(str, sorted(partial)[:3]))
        return f"{which}: the last, partial tile of {sizes} keys is skipped"
    if whole:
        return f"{which}: tile {start // whole[0]} of {whole[0]} keys is skipped"
    return which
