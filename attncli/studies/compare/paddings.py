"""Keys that are padding for the candidate: how many each batch element has read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.studies.compare.mask_suspects import Said, joined
from attncli.studies.compare.theory import Candidate, Theory, Unit, outputs_of

Array = np.ndarray[Any, np.dtype[Any]]

ROWS = 10  # of each head, of which all lengths are tried
SIDES = ("", ", left")  # where padding(…) leaves keys out: behind, before


def padding_suspects(
    theory: Theory, candidate: Candidate, units: Sequence[Unit]
) -> Iterator[Theory]:
    """Yield theories with other lengths in place of those that are said, on either side.

    What a row has read of the first or last n keys is a running sum: all lengths cost as one.
    """
    p = theory.problem
    if {"mask", "cut"} & theory.kinds or p.keys < 2 or not theory.by_head(candidate):
        return
    said = Said.of(p.mask)
    rest = [text for text in said.texts if not text.startswith("padding(")]
    bare = replace(theory, problem=replace(p, mask=said.mask(rest, p.mask.extent)))
    total = np.zeros((len(SIDES), p.batch, p.keys + 1))  # by length
    asked = {unit.b for unit in units}
    for b in sorted(set(range(p.batch)) - asked):
        units = [*units, Unit(b, 0, np.arange(p.queries))]
    for unit in units:
        rows = np.unique(unit.rows[np.linspace(0, len(unit.rows) - 1, ROWS).astype(int)])
        value = p.value[unit.b, p.group(unit.h)]
        value = np.where(np.isfinite(value), value, 0).astype(np.float64)
        for arrays, wanted in outputs_of(bare, candidate, unit._replace(rows=rows)):
            for w, right in zip(np.nan_to_num(arrays["weights"]), wanted, strict=True):
                spare = max(0.0, 1 - w.sum())  # a sink keeps its share
                for side, order in enumerate((slice(None), slice(None, None, -1))):
                    rest_of = np.cumsum(w[order]) + spare
                    read = np.cumsum(w[order, None] * value[order], 0)
                    made = read / np.where(rest_of > 0, rest_of, 1)[:, None]
                    total[side, unit.b, 0] += (right**2).sum()
                    total[side, unit.b, 1:] += ((made - right) ** 2).sum(1)
    if not total.any():
        return
    for side, words in enumerate(SIDES):
        lengths = ", ".join(str(int(n)) for n in total[side].argmin(1))
        texts = [*rest, f"padding({lengths}{words})"]
        mask = said.mask(texts, p.mask.extent)
        yield replace(
            theory,
            problem=replace(p, mask=mask),
            said={**theory.said, "--mask": joined(texts)},
            kinds=theory.kinds | {"mask", "cut"},
            fitted=True,
        )
