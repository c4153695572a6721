"""Excerpts show the beginning and the end."""

from __future__ import annotations

from attncli.reports.blocks import Gap
from attncli.reports.labels import ranges
from attncli.reports.selection import excerpt


def test_ranges_and_excerpts() -> None:
    assert ranges([0, 1, 2, 7, 9, 10]) == "0–2, 7, 9–10"
    assert ranges([]) == ""
    shown, gap = excerpt(range(100), False, 12, 5)
    assert shown.tolist() == [0, 1, 2, 3, 4, 95, 96, 97, 98, 99]
    assert gap == Gap(5, 90)
    assert excerpt(range(100), True, 12, 5)[1] is None
    assert excerpt(range(12), False, 12, 5)[1] is None
