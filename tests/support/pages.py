"""Reports for the page of --report: hostile text in every place that takes any."""

from __future__ import annotations

import numpy as np

from attncli.reports.blocks import (
    Column,
    Curve,
    Figure,
    Heatmap,
    Report,
    Shaded,
    Step,
    Table,
    Text,
    head_key,
)

EVIL = [
    "<script>alert(1)</script>", "</script><b>", "<!--<script>", "\"quotes' &amp;",
    "\u202eright to left\u202c", "עברית שלום", "مرحبا", "😀👩‍👩‍👧", "\x1b[31mred\x1b[0m",
    "x" * 100_000, "\u2028\u2029", "a\nb\tc", "\udc80", "", " ", "<img src=x onerror=alert(1)>",
]  # fmt: skip


def evil_report() -> Report:
    """A report whose every text is hostile, with a NaN among its weights."""
    n = len(EVIL)
    weights = np.random.default_rng(0).random((n, n))
    weights[3, 2] = np.nan
    text = " ".join(one[:40] for one in EVIL)
    head = {
        "batch": 0, "head": 0, "verdict": "watch", "reasons": EVIL,
        "roles": [{"role": EVIL[0], "token": one, "mass": 0.1, "sink": True} for one in EVIL],
        "statistics": {"entropy": {"median": 1.0}, text: 2.0},
    }  # fmt: skip
    table = Table(
        text, [Column(text, "text", text), Column("verdict", "verdict"), Column("x", "weight")],
        [[one, one, 0.5] for one in EVIL], EVIL, part=text, notes=EVIL,
    )  # fmt: skip
    edges = range(n + 1)
    return Report(
        "compute", [text, text], [Text(text, EVIL), table, Step(1, text, text, text, table, EVIL)],
        lambda: {"heads": [head]}, warnings=EVIL, notes=EVIL,
        pictures=lambda: [
            Heatmap(
                text, weights, edges, edges, EVIL, EVIL, notes=EVIL,
                hidden=np.triu(np.ones((n, n), bool), 1), head=head_key(0, 0),
            ),
            Shaded(text, weights, edges, edges, EVIL, EVIL, text, text, text, notes=EVIL),
            Figure(text, text, text, [Curve(text, [0, 1], [1, 2])], ticks=EVIL, notes=EVIL),
        ],
    )  # fmt: skip
