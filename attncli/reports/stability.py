"""The stability table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import View
from attncli.measures.statistic import of_head
from attncli.reports.blocks import Table
from attncli.reports.heads import Shown, cells, columns, head_in_words
from attncli.reports.selection import Selection, excerpt

EDGE_HEADS = 16
COLUMNS = (
    Shown("entropy"), Shown("entropy", "p05", "p95", keep=7), Shown("effective_keys"),
    Shown("max_weight"), Shown("max_weight", "p05", "p95", keep=3),
    Shown("saturated_share", sub="of rows"), Shown("logit_max"), Shown("logit_std"),
    Shown("jacobian_trace"), Shown("jacobian_frobenius"),
    Shown("jacobian_spectral_low", to="jacobian_spectral_high", sub="medians"),
    Shown("first_key_mass"),
)  # fmt: skip


def stability_table(
    problem: Problem, found: Mapping[str, Any], view: View, chosen: Selection
) -> Table:
    """Return a row a head: medians and p05–p95 over its rows, or the values of its only row."""
    pairs = list(chosen.pairs)
    at, gap = excerpt(range(len(pairs)), view.full, 3 * EDGE_HEADS, EDGE_HEADS)
    many = int(np.max(found["rows_with_choice"], initial=0)) > 1
    shown = [one for one in COLUMNS if many or not one.high]
    dead, lost = (bool(np.any(found[name])) for name in ("dead_rows", "nonfinite"))
    shown.append(Shown("dead_rows", keep=None if dead else 0))
    shown += [Shown("nonfinite")] if lost else []
    return Table(
        title="Stability",
        columns=columns(shown, plain=not many),
        rows=[cells(shown, of_head(found, *pairs[n])) for n in at],
        labels=[head_in_words(problem, *pairs[n]) for n in at],
        part=f"{len(at)} of {len(pairs)} heads" if gap else "",
        hint="--head, --batch, --full, --format csv" if gap else "",
        row_gap=gap,
        whole=view.full,
    )
