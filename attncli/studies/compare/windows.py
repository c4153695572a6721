"""Windows of any size: which keys around its own each row has read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention import language
from attncli.attention.masks import Mask
from attncli.attention.problem import Problem
from attncli.studies.compare.mask_suspects import Said
from attncli.studies.compare.theory import Candidate, Theory, Unit

Array = np.ndarray[Any, np.dtype[Any]]

ROWS = 10  # of each head, of which all sizes are tried
LARGEST = 1 << 14  # keys beyond which sizes are not tried
BEST = 2
#: How far a window of size n reaches to the right, and how it is written.
SHAPES = (("window({0}, 0{1})", 0), ("window({0}, {0}{1})", 1))


def window_suspects(
    theory: Theory, candidate: Candidate, units: Sequence[Unit]
) -> Iterator[Theory]:
    """Yield theories with one window in place of all expressions, the likeliest few.

    What a row has read of keys a to b is a difference of running sums: all sizes cost as one.
    """
    p = theory.problem
    taken = {"mask", "cut"} & theory.kinds
    if "output" not in candidate.stages or theory.view or theory.after or taken:
        return
    if not 2 < p.keys <= LARGEST or not theory.by_head(candidate):
        return
    said = Said.of(p.mask)
    bare = replace(theory, problem=replace(p, mask=said.mask((), p.mask.extent)))
    places = _places(p)
    sizes = np.arange(p.keys)
    total = {(c, s): np.zeros(len(sizes)) for c in places for s in range(len(SHAPES))}
    for unit in units:
        rows = np.unique(unit.rows[np.linspace(0, len(unit.rows) - 1, ROWS).astype(int)])
        arrays = bare.block(unit.b, unit.h, rows, None, slice(0, p.keys)).arrays
        value = p.value[unit.b, p.group(unit.h)]
        value = np.where(np.isfinite(value), value, 0).astype(np.float64)
        wanted = candidate.stages["output"][unit.b, unit.h][rows].astype(np.float64)
        for n, row in enumerate(rows.tolist()):
            w = np.nan_to_num(arrays["weights"][n])
            mass = np.concatenate([[0], np.cumsum(w)])
            read = np.concatenate([np.zeros((1, value.shape[1])), np.cumsum(w[:, None] * value, 0)])
            for (corner, shape), errors in total.items():
                own = row + places[corner][unit.b]
                start = np.clip(own - sizes, 0, p.keys)
                stop = np.clip(own + 1 + SHAPES[shape][1] * sizes, 0, p.keys)
                there = mass[stop] - mass[start]  # a sink keeps its share
                rest = there + max(0.0, 1 - mass[-1])
                with np.errstate(all="ignore"):
                    made = (read[stop] - read[start]) / np.where(rest > 0, rest, 1)[:, None]
                    errors += np.nan_to_num(((made - wanted[n]) ** 2).sum(1), nan=np.inf)
    found = sorted(
        (float(errors[n]), corner, shape, int(n))
        for (corner, shape), errors in total.items()
        for n in np.argsort(errors, kind="stable")[:BEST]
        if np.isfinite(errors[n])
    )
    for _, corner, shape, size in found[:BEST]:
        text = SHAPES[shape][0].format(size, f", {corner}" if corner else "")
        whole = (language.masker(text)(p.mask.extent), *said.others)
        mask = Mask(p.mask.extent)
        for part in whole:
            mask = mask & replace(part, extent=p.mask.extent)
        yield replace(
            theory,
            problem=replace(p, mask=mask),
            said={**theory.said, "--mask": text},
            kinds=theory.kinds | {"mask"},
            fitted=True,
        )


def _places(p: Problem) -> dict[str, tuple[int, ...]]:
    """Return where query 0 may stand in each batch element, by corner; '' is the mask's own."""
    e = p.mask.extent
    known = e.past is not None or e.lengths is not None or p.queries == p.keys
    found = {"": e.offsets(None)} if known else {}
    if p.queries != p.keys:
        found |= {corner: e.offsets(corner) for corner in ("top_left", "bottom_right")}
    return found
