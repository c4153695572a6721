"""Where in a head a candidate is off, cell by cell: made anew for the one head that is shown."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attncli.studies.compare import Comparison
from attncli.studies.compare.judged import AXES, Judged, errors
from attncli.studies.compare.theory import Theory, whole

Array = np.ndarray[Any, np.dtype[Any]]

STAGES = ("scores", "weights", "output")  # those of cells that one head alone gives


class Cells(NamedTuple):
    """The largest |error| of each block of rows and columns, ``(r, c)``, and the blocks' edges."""

    values: Array
    row_edges: list[int]
    column_edges: list[int]
    axes: tuple[str, ...]
    batch: int
    head: int


def worst_head(one: Comparison, stage: Judged, most: int) -> Cells | None:
    """Return the errors of the head that holds the worst cell of a stage, ``most`` blocks a side.

    None for a stage without cells, or of more than that head. Judging keeps a number a row: the
    truth of this head is computed once more, some rows at a time.
    """
    if stage.name not in STAGES or stage.whole or not stage.error.size:
        return None
    p, (b, h) = one.problem, (stage.worst["batch"], stage.worst["head"])
    theirs = one.candidate.stages[stage.name][b, h]
    sides = [np.linspace(0, n, min(n, most) + 1).astype(int) for n in theirs.shape]
    values = np.zeros([len(edges) - 1 for edges in sides])
    theory = Theory(p)
    for _, _, rows in (unit for unit in whole(p) if unit[:2] == (b, h)):
        right = theory.block(b, h, rows, None, slice(0, p.keys)).arrays[stage.name]
        part = theirs[rows]
        if stage.name == "scores":  # what no row sees is nobody's business
            keep = p.mask.predicate.allows(b, h, rows[:, None], np.arange(p.keys)[None])
            right, part = np.where(keep, right, 0), np.where(keep, part, 0)
        error, *_ = errors(stage.name, part, right, stage.own)
        block = np.searchsorted(sides[0], rows, "right") - 1
        np.maximum.at(values, block, np.maximum.reduceat(error, sides[1][:-1], axis=1))
    return Cells(values, sides[0].tolist(), sides[1].tolist(), AXES[stage.name], b, h)
