"""Columns of head tables: what the registry says, and what a table says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from attncli.measures.policy import Finding, Verdict
from attncli.reports.blocks import Gap
from attncli.reports.heads import EDGE, WHOLE, Shown, cells, columns, reasons, telling

SHOWN = (
    Shown("entropy"), Shown("entropy", "p05", "p95", keep=7), Shown("saturated_share"),
    Shown("dead_rows"), Shown("jacobian_spectral_low", to="jacobian_spectral_high", sub="medians"),
)  # fmt: skip


def test_columns_are_the_registrys() -> None:
    made = [(c.title, c.kind, c.sub, c.keep) for c in columns(SHOWN)]
    assert made == [
        ("entropy", "number", "median", 9), ("", "range", "p05–p95", 7),
        ("saturated", "percent", "rows", 8), ("dead rows", "count", "", 10),
        ("spectral bounds", "range", "medians", 1),
    ]  # fmt: skip
    assert {column.sub for column in columns(SHOWN, plain=True)} == {""}
    titles = [column.title for column in columns(SHOWN, units=True)]
    assert titles == ["entropy (nats)", "", "saturated", "dead rows", "spectral bounds"]
    with pytest.raises(KeyError):
        columns([Shown("entropi")])


def test_cells_are_numbers_ranges_or_empty() -> None:
    nan = float("nan")
    own = {
        "entropy": {"p05": 1.0, "median": 2.0, "p95": nan}, "saturated_share": nan, "dead_rows": 0,
        "jacobian_spectral_low": {"median": 0.1}, "jacobian_spectral_high": {"median": 0.2},
    }  # fmt: skip
    assert cells(SHOWN, own) == [2.0, None, None, 0, (0.1, 0.2)]


@dataclass(frozen=True)
class Head:
    at: int
    verdict: Verdict


def frozen(at: int, sigma: float, level: str = "ok", *more: Finding) -> Head:
    found = Finding("frozen", "hint", sigma, 2.0, "σ is {} × √(2 ln n)", f"{sigma:g}")
    return Head(at, Verdict(level, (*more, found)))


def test_heads_of_the_same_findings_are_told_together() -> None:
    dead = Finding("dead", "watch", 0.2, 0.0, "{} of its rows see no key", "20 %")
    heads = [frozen(0, 2.5), frozen(1, 3, "watch", dead), frozen(2, 2.25), frozen(3, 4)]
    heads += [Head(4, Verdict("ok", ()))]

    def told(limit: int) -> list[str]:
        (text,) = reasons(heads, lambda one: f"1.{one.at}", lambda one: one.verdict.level, limit)
        return list(text.lines)

    alike = "heads 1.0, 1.2, 1.3, each: σ is 2.25–4 × √(2 ln n)"
    assert told(2) == [alike, "head 1.1 watch: 20 % of its rows see no key; σ is 3 × √(2 ln n)"]
    assert told(1) == [alike, "… and 1 more head (--format csv, --json)"]
    assert reasons(heads[-1:], str, str, 9) == []


def test_of_many_heads_the_worst_or_both_ends_are_shown() -> None:
    heads = [Head(n, Verdict("ok" if n % 2 else "watch", ())) for n in range(3 * WHOLE)]

    def told(ill: list[Head], full: bool = False) -> tuple[list[int], str, Gap | None]:
        shown, part, gap = telling(heads, ill, lambda head: -head.at, "the last", full)
        return [head.at for head in shown], part, gap

    assert told([], full=True) == (list(range(len(heads))), "", None)
    shown, part, gap = told([])
    assert shown == [*range(EDGE), *range(len(heads) - EDGE, len(heads))]
    assert gap == Gap(EDGE, len(heads) - 2 * EDGE) and part.endswith("all ok")
    shown, part, gap = told(heads[::2])
    assert shown == list(range(WHOLE, 3 * WHOLE, 2)) and gap is None
    assert part == f"{WHOLE} of {3 * WHOLE} heads, the last"
