"""Keys that were not read, or twice: a tile in the middle, a last partial one, a few at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.patterns import KeysBelow
from attncli.attention.predicates import And, Not, Or, Predicate
from attncli.attention.problem import Problem
from attncli.studies.compare.cells import Added01
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
    if not theory.by_head(candidate):
        return
    p = theory.problem
    tried = ranges(p.keys)
    if not tried:
        return
    a, b = np.array(tried).T
    total = np.zeros((2, len(tried)))  # left out, counted twice
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
            for which, sign in enumerate((-1, 1)):
                rest = 1 + sign * gone
                with np.errstate(all="ignore"):
                    made = (arrays["output"][n] + sign * lost) / rest[:, None]
                    made = np.where((rest > 1e-12)[:, None], made, 0)
                    error = ((made - wanted[n]) ** 2).sum(1)
                total[which] += np.where(np.isfinite(error), error, np.inf)
    for which, make in enumerate((cut, doubled)):
        for n in np.argsort(total[which], kind="stable")[:BEST].tolist():
            if np.isfinite(total[which, n]):
                yield make(theory, *tried[n])


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
        theory.kinds | {"cut", "mask"}, theory.fitted, theory.after, theory.view,
    )  # fmt: skip


def doubled(theory: Theory, start: int, stop: int) -> Theory:
    """Return the theory with the keys start:stop counted twice: log 2 is added to their logits."""
    p = theory.problem
    which = KeysBelow((stop,) * p.batch)
    inside: Predicate = And(which, Not(KeysBelow((start,) * p.batch))) if start else which
    twice = Added01(Mask(p.mask.extent, inside), math.log(2), 0.0)
    return replace(
        theory,
        problem=replace(p, mask=replace(p.mask, biases=(*p.mask.biases, twice), joined=())),
        words=(*theory.words, _words(start, stop, p, "read twice")),
        kinds=theory.kinds | {"cut"},
    )


def _hidden(start: int, stop: int, keys: int) -> str:
    if start == 0:
        return f"~prefix({stop})"
    return f"prefix({start})" if stop == keys else f"prefix({start}) | ~prefix({stop})"


def _words(start: int, stop: int, p: Problem, what: str = "not read") -> str:
    """Say which keys are missing, and which tile that is."""
    many = stop - start > 1
    which = f"keys {start} to {stop - 1} are {what}" if many else f"key {start} is {what}"
    done = "skipped" if what == "not read" else "counted twice"
    whole = [t for t in TILES if stop - start == t and start % t == 0]
    partial = [t for t in TILES if stop == p.keys and start % t == 0 and stop - start < t]
    if partial:
        sizes = " or ".join(map(str, sorted(partial)[:3]))
        return f"{which}: the last, partial tile of {sizes} keys is {done}"
    if whole:
        return f"{which}: tile {start // whole[0]} of {whole[0]} keys is {done}"
    return which
