"""``inspect --sweep-dim``: unit-normal tensors of several widths, with and without the scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from attncli.attention.gradients import upstream
from attncli.attention.pose import pose
from attncli.attention.problem import Scale
from attncli.resources import Progress, stages
from attncli.studies.effects import VANISHED, overview
from attncli.studies.runs import median_gradient, run_both_ways

SWEPT = 512  # queries and keys
SWEPT_VALUES = 64  # width of the values, the same for all
SCALES: tuple[Scale, ...] = ("auto", "none")


def sweep_dim(
    widths: Sequence[int], *, seed: int = 0, threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, dict[str, float], dict[str, float]]]:  # fmt: skip
    """Yield (width, scaled, unscaled) statistics of unit-normal Q, K, V and dO.

    SWEPT queries and keys; values are SWEPT_VALUES wide, so that gradients can be compared.
    """
    stage = stages(progress, (width + SWEPT_VALUES for width in widths for _ in SCALES))
    for width in widths:
        rng = np.random.default_rng([seed, width])
        query, key = rng.standard_normal((2, SWEPT, width))
        value = rng.standard_normal((SWEPT, SWEPT_VALUES))
        found = []
        floor = np.zeros((1, 1))
        for scale in SCALES:
            problem = pose(query, key, value, scale=scale)
            run = run_both_ways(
                problem,
                upstream(f"random:{seed}", problem),
                alone=True,
                threads=threads,
                progress=next(stage),
            ).evidence
            if scale == "auto":
                floor = VANISHED * median_gradient(run)
            found.append(overview(replace(run, floor=floor)))
        yield width, found[0], found[1]
