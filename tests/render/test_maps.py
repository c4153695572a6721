"""Maps: shades in characters and in colour, pooled where they outgrow the screen."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from attncli.attention.pose import pose
from attncli.attention.view import Labels, View
from attncli.render.paint import RAMP
from attncli.reports.blocks import Heatmap
from tests.support.reports import page, printed
from tests.support.screen import report_of


def heat(values: Any, **more: Any) -> Heatmap:
    values = np.asarray(values, float)
    rows, columns = values.shape
    return Heatmap(
        "Weights", values, range(rows + 1), range(columns + 1), [str(i) for i in range(rows)],
        [str(j) for j in range(columns)], **more,
    )  # fmt: skip


def test_map_in_characters() -> None:
    text = printed(report_of(heat([[1.0, 0.5, 0.2, 0.05, 0.0], [math.nan, 0, 0, 0, 1]])))
    assert text.splitlines()[2:] == [
        "Weights",
        "   0 1 2 3 4",
        "0  ██▓▓▒▒░░",
        "1  ??      ██",
        "░ from 0.040   ▒ from 0.160   ▓ from 0.360   █ from 0.640   largest 1.000",
        "? not a number   √ scale",
    ]


def test_map_larger_than_the_screen_is_pooled_and_says_so() -> None:
    values = np.zeros((40, 200))
    values[17, 123] = 0.5
    text = printed(report_of(heat(values)), width=60, height=10)
    lines = text.splitlines()[2:]
    assert len([line for line in lines if re.match(r"\d+–\d+", line)]) == 10
    assert max(map(len, lines)) <= 60 + 20  # the legend
    (row,) = (line for line in lines if "█" in line and "from" not in line)
    assert row.startswith("16–19")
    room = 60 - len("16–19") - 2
    starts = [200 * k // room for k in range(room)]
    column = row.index("█") - len("16–19  ")
    assert starts[column] <= 123 < starts[column + 1]
    assert "40 × 200 weights: each cell is the largest of up to 4 × 4" in text


def test_map_names_its_keys() -> None:
    names = tuple("abcdef")
    asked = pose(np.eye(6) * 9)
    view = View(heatmap=True, keys=(1, 2, 5))
    text = page(asked, Labels((names,), (names,)), view)
    assert "keys:  1 b  2 c  5 f" in text
    lines = text.splitlines()
    assert [line[3:].rstrip() for line in lines if line.startswith("b ")] == ["██"]
    assert [line[3:].rstrip() for line in lines if line.startswith("f ")] == ["    ██"]


def test_map_in_colour_shares_lines_between_rows_when_high() -> None:
    values = np.linspace(0, 1, 30 * 4).reshape(30, 4)
    low = printed(report_of(heat(values)), color="always", height=40)
    assert "▀" not in low
    assert low.count(f"\x1b[48;5;{RAMP[-1][0]}m") > 4
    high = printed(report_of(heat(values)), color="always", height=15)
    assert high.count("▀") == 15 * 4
    assert "28–29" in high
