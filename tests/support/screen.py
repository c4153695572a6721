"""A terminal, and plain reports to draw on it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from attncli.reports.blocks import Column, Report, Table

ESCAPE = "\x1b"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def report_of(*blocks: Any, headline: Sequence[str] = ("fact",), **more: Any) -> Report:
    return Report("test", headline, blocks, dict, **more)


def matrix(values: Any, labels: Sequence[str] | None = None, **more: Any) -> Table:
    values = np.asarray(values)
    return Table(
        title="Weights",
        columns=[Column(str(j), "weight") for j in range(values.shape[1])],
        rows=values.tolist(),
        labels=labels or [str(i) for i in range(values.shape[0])],
        matrix=True,
        things="keys",
        **more,
    )
