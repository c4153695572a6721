"""Numbers that were written with a few decimals: right, but for what was not written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli.errors import counted
from attncli.measures.budget import eps
from attncli.studies.compare.judged import Judged
from attncli.studies.compare.reading import be
from attncli.studies.compare.told import enough

Array = np.ndarray[Any, np.dtype[Any]]

FEWEST, MOST = 2, 7  # decimals that are looked for
COARSE = 8  # steps of a type that a decimal is to be wider than: else all its numbers have so few


def decimals(stages: Mapping[str, Array], found: Mapping[str, Judged]) -> list[str]:
    """Say of each stage that failed that it is right to so many decimals; [] unless all are.

    ``stages``: what was given, ``(B, H, L, …)``; ``found`` what came of it.
    """
    said = []
    for name, one in found.items():
        if one.passed:
            continue
        places, error = _places(stages[name]), one.max_error
        if not places or not error < 10.0**-places:
            return []
        half = 0.5 * 10.0**-places
        rounded = error <= half * (1 + 1e-9)
        atol = max(half, enough(error, 2)) if rounded else enough(error, 2)
        but = "" if rounded else ", but for one in the last"
        said.append(
            f"{name} {be(name)} right to {counted(places, 'decimal')}{but}: --atol {atol:g} passes "
            f"{'them' if be(name) == 'are' else 'it'}"
        )
    return said


def _places(array: Array) -> int:
    """Return how many decimals all numbers have, the fewest that hold them; 0 where it is more."""
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        return 0
    step = COARSE * eps(array.dtype) * float(np.abs(wide).max(initial=0))
    for places in range(FEWEST, MOST + 1):
        if 10.0**-places <= step:
            return 0
        if (np.round(wide, places).astype(array.dtype) == array).all():
            return places
    return 0
