"""Reports for programs: JSON, CSV, Markdown."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.errors import InputError
from attncli.render import show, show_error
from attncli.reports.blocks import Report
from tests.support.reports import page, printed
from tests.support.screen import report_of


def test_json_is_one_line_of_utf8_bytes(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    report = Report("test", [], [], lambda: {"label": "é\n", "x": math.inf})
    for format in ("json", "ndjson"):
        show(report, format)
    out = capfdbinary.readouterr().out
    assert out == b'{"label":"\xc3\xa9\\n","x":"Infinity"}\n' * 2


def test_an_error_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    show_error(InputError("bad", "fix"), json=True, command="compute", line=3)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "schema": "attncli.compute/1", "command": "compute", "line": 3,
        "error": {"code": "bad_input", "message": "bad", "hint": "fix"},
    }  # fmt: skip


def test_csv_of_a_report_without_records() -> None:
    with pytest.raises(InputError, match="no table"):
        printed(report_of(), "csv")


def test_markdown_tables() -> None:
    names = ("a|b", "*bold*")
    asked = pose([[1.0, 0.0], [0.0, 1.0]])
    text = page(asked, Labels((names,), (names,)), format="markdown")
    assert r"| Weights | a\|b | \*bold\* |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [re.split(r"(?<!\\)\|", line) for line in table.splitlines()]
        assert len({len(c) for c in cells}) == 1
        assert set(cells[1][2].strip()) == {"-", ":"}


def test_markdown_shortens_a_wide_matrix(many: Problem) -> None:
    text = page(many, format="markdown")
    assert "| Weights · batch 0 · head 0 | 0 | 1 | 2 | 3 | 4 | 5 | … | 12 |" in text
    assert "rows 0–4, 13–17 of 18; 12 of 18 keys" in text
    assert "```" in page(many, view=View(heatmap=True), format="markdown")
    steps = page(pose(np.eye(2)), view=View(steps=True), format="markdown")
    assert "### 1 scores: q·kᵀ" in steps
