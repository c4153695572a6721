"""Reports on attention problems, and what people and programs see of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from attncli.attention import language
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.render import show
from attncli.reports.arrays import wanted
from attncli.reports.blocks import Report, Table
from attncli.reports.compute import compute_report
from attncli.studies.attend import Result, solve


def problem(
    batch: int = 1, heads: int = 1, queries: int = 4, keys: int | None = None, **options: Any
) -> Problem:
    """Random queries, keys and values; the same ones for the same sizes."""
    rng = np.random.default_rng(7)
    keys = queries if keys is None else keys
    groups = options.pop("groups", heads)
    width, value_width = options.pop("width", 3), options.pop("value_width", 2)
    mask = options.pop("mask", None)
    return pose(
        rng.standard_normal((batch, heads, queries, width)),
        rng.standard_normal((batch, groups, keys, width)),
        rng.standard_normal((batch, groups, keys, value_width)),
        mask=[language.masker(mask)] if mask else (),
        **options,
    )


def answered(asked: Problem, view: View, include: Collection[str] | None, machine: bool) -> Result:
    return solve(asked, backend="reference", want=wanted(asked, view, include, machine))


def reported(
    asked: Problem,
    view: View | None = None,
    include: Collection[str] | None = None,
    labels: Labels | None = None,
    machine: bool = True,
) -> Report:
    view = view or View()
    result = answered(asked, view, include, machine)
    return compute_report(result, labels or Labels(), view, include)


def printed(report: Report, format: str = "table", width: int | None = 80, **more: Any) -> str:
    stream = io.StringIO()
    show(report, format, stream=stream, width=width, **more)
    return stream.getvalue()


def page(
    asked: Problem,
    labels: Labels | None = None,
    view: View | None = None,
    format: str = "table",
    width: int = 80,
    **more: Any,
) -> str:
    """What ``attncli compute`` prints of a problem."""
    report = reported(asked, view, labels=labels, machine=format == "json")
    return printed(report, format, width, **more)


def as_json(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(report, "json"), parse_constant=pytest.fail)
    return found


def rows_of(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(printed(report, "csv"))))


def tables(report: Report) -> dict[str, Table]:
    return {block.title: block for block in report.blocks if isinstance(block, Table)}
