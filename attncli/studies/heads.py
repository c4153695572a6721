"""What each head of a layer does: its statistics, what it looks at, its share, who is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.measures import sample as measure_sample
from attncli.measures import sweep
from attncli.measures.roles import Role, looks_at
from attncli.measures.statistic import of_head, summarize
from attncli.resources import Progress, stages
from attncli.studies.attend import statistics
from attncli.studies.layer import MultiheadResult

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class HeadFacts:
    """``found`` are statistics by name, ``(B, H)``; ``roles`` by (batch, head).

    ``sample.distances`` ``(B, H, H)`` are Jensen–Shannon distances between heads.
    """

    found: Mapping[str, Any]
    roles: Mapping[tuple[int, int], tuple[Role, ...]]
    sample: measure_sample.Sample

    def alike(self, batch: Sequence[int]) -> Array:
        """Return 1 − distance ``(H, H)``, the mean over these batch elements; NaN: unknown."""
        some = self.sample.distances[list(batch)]
        known = np.isfinite(some)
        total = np.where(known, some, 0).sum(0)
        with np.errstate(invalid="ignore"):
            near = np.asarray(1 - total / known.sum(0))
        np.fill_diagonal(near, 1)
        return near


def head_facts(
    made: MultiheadResult,
    tokens: Sequence[Sequence[str]] | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> HeadFacts:
    """Look at a result that has row_statistics and lse. tokens label the keys."""
    result = made.attention
    p, rows = result.problem, result.rows
    assert rows is not None
    found = statistics(result)
    real = np.broadcast_to(p.real_rows[:, None], rows.n.shape)
    chosen = real & (rows.n >= 2)
    lse = np.asarray(result.attended.lse, np.float64)
    stage = stages(progress, (1, 1))
    swept = sweep.sweep(p, lse, chosen, threads=threads, progress=next(stage))
    known = p.mask.positions() is not None and not made.cross
    if known:  # what a position is worth where queries and keys are one sequence
        values = sweep.row_values(swept)
        found |= {n: summarize(values[n], chosen) for n in values}
    found |= sweep.head_values(swept)
    sample = measure_sample.sample(p, chosen, progress=next(stage))
    found["head_similarity"] = measure_sample.head_similarity(sample.distances)
    found["similar_head"] = measure_sample.similar_head(sample.distances)
    added = made.added
    found["contribution_norm"] = summarize(added, real)
    total = added.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 0, added / total, np.nan)
    found["output_share"] = summarize(share, real)["mean"]
    roles = {}
    for b, h in np.ndindex(p.batch, p.heads):
        labels = tokens[b if len(tokens) > 1 else 0] if tokens else None
        seen, _ = looks_at(
            of_head(found, b, h), swept.received[b, h].tolist(), int(swept.rows[b, h]),
            int(swept.cells[b, h]), labels, known,
        )  # fmt: skip
        roles[b, h] = tuple(seen)
    return HeadFacts(found, roles, sample)
