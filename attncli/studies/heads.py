"""What each head of a layer does: its statistics, what it looks at, its share, who is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attncli.measures import layer, rows, sweep
from attncli.measures.evidence import told, words_of
from attncli.measures.roles import Role, looks_at
from attncli.measures.sample import Sample
from attncli.measures.statistic import STATISTICS, of_head
from attncli.resources import Progress
from attncli.studies.layer import MultiheadResult

Array = np.ndarray[Any, np.dtype[Any]]

TOLD = (*told(rows, sweep), "head_similarity", "similar_head", *told(layer))


@dataclass(frozen=True, eq=False)
class HeadFacts:
    """``found`` are statistics by name, ``(B, H)``; ``roles`` by (batch, head).

    ``sample.distances`` ``(B, H, H)`` are Jensen–Shannon distances between heads.
    """

    found: Mapping[str, Any]
    roles: Mapping[tuple[int, int], tuple[Role, ...]]
    sample: Sample

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
    query_tokens: Sequence[Sequence[str]] | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> HeadFacts:
    """Look at a result that has row_statistics and lse. tokens label the keys."""
    result = made.attention
    p = result.problem
    # what a position is worth where queries and keys are one sequence
    known = p.mask.positions() is not None and not made.cross
    evidence = replace(
        result.evidence, added=made.added, threads=threads, progress=progress,
        words=words_of(query_tokens, tokens, p.batch) if known else None,
    )  # fmt: skip
    names = evidence.known(TOLD)
    found = evidence.summaries(n for n in names if known or "placed" not in STATISTICS[n].needs)
    roles = {}
    for b, h in np.ndindex(p.batch, p.heads):
        labels = tokens[b if len(tokens) > 1 else 0] if tokens else None
        seen, _ = looks_at(evidence, of_head(found, b, h), b, h, labels, known)
        roles[b, h] = tuple(seen)
    return HeadFacts(found, roles, evidence.sample)
