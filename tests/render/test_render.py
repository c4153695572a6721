"""What people see: the layout of every block, at 80 and 100 columns, with and without colour."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from attncli.attention import language
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.errors import FileError, InputError
from attncli.render import progress, show, show_error, show_warnings
from attncli.render.cells import cut, in_encoding, numbers, pad, texts, visible, wide, wrap
from attncli.render.paint import RAMP, Paint, colors_of, level
from attncli.reports.arrays import wanted
from attncli.reports.blocks import Column, Gap, Heatmap, Report, Step, Table, Text
from attncli.reports.compute import compute_report
from attncli.studies.attend import solve

ESCAPE = "\x1b"
GONE = "\r\x1b[1A\x1b[2K"  # up to the bar's line, which is erased


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def compute(
    asked: Problem,
    labels: Labels | None = None,
    view: View | None = None,
    format: str = "table",
    width: int = 80,
    **more: Any,
) -> str:
    view = view or View()
    want = wanted(asked, view, None, format == "json")
    result = solve(asked, backend="reference", want=want)
    return printed(compute_report(result, labels or Labels(), view, None), format, width, **more)


def printed(report: Report, format: str = "table", width: int | None = 80, **more: Any) -> str:
    stream = io.StringIO()
    show(report, format, stream=stream, width=width, **more)
    return stream.getvalue()


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


@pytest.fixture
def fruit() -> tuple[Problem, Labels]:
    asked = pose(
        [[3, 0.5]], [[3, 0.42], [2.9, 0.209], [-0.25, 1.5]], [[10], [5], [2]],
        scale=1.0, scale_source="from file",
    )  # fmt: skip
    return asked, Labels((("fruit",),), (("apple", "banana", "chair"),))


@pytest.fixture
def many() -> Problem:
    rng = np.random.default_rng(3)
    query, key, value = (rng.standard_normal((3, 12, 18, 32)) for _ in range(3))
    return pose(query, key, value, mask=[language.masker("padding(18, 13, 15)")])


# -- whole pages ------------------------------------------------------------------------------


def test_fruit_at_80_columns(fruit: tuple[Problem, Labels]) -> None:
    assert (
        compute(*fruit)
        == """\
1 query × 3 keys, width 2, values of width 1 · scale 1 (from file)
reference float64

Weights     apple   banana   chair
fruit       0.600    0.400   0.000

Output          0
fruit       8.000

Stability  entropy  effective keys  max weight  saturated  max logit  logit std
              nats
head 0       0.674           1.961       0.600        0 %      9.210      4.249
+5 columns: --format csv, or a wider terminal
"""
    )


def test_fruit_with_room(fruit: tuple[Problem, Labels]) -> None:
    text = compute(*fruit, width=200)
    assert text.startswith(
        "1 query × 3 keys, width 2, values of width 1 · scale 1 (from file) · reference float64\n"
    )
    assert text.splitlines()[-3:] == [
        "Stability   entropy   effective keys   max weight   saturated   max logit   logit std"
        "   Jacobian trace   Frobenius   spectral bounds   first key   dead rows",
        "               nats",
        "head 0        0.674            1.961        0.600         0 %       9.210       4.249"
        "            0.480       0.480         0.40–0.48       0.600           0",
    ]


def test_fruit_steps(fruit: tuple[Problem, Labels]) -> None:
    assert (
        compute(*fruit, view=View(steps=True))
        == """\
1 query × 3 keys, width 2, values of width 1 · scale 1 (from file)
reference float64

1  scores      q·kᵀ             how much the query resembles each key
           apple   banana   chair
   fruit   9.210    8.804   0.000
   fruit·apple = 3×3 + 0.5×0.42 = 9.210
   fruit·banana = 3×2.9 + 0.5×0.209 = 8.804
   fruit·chair = 3×(-0.25) + 0.5×1.5 = 0.000

2  scaled      × 1              leaves them as they are (from file)

3  masked      (no mask)        every query sees every key

4  weights     softmax          each row sums to 1
           apple   banana   chair
   fruit   0.600    0.400   0.000
   apple: exp(9.210 − 9.210) = 1.000
   banana: exp(8.804 − 9.210) = 0.667
   chair: exp(0.000 − 9.210) = 0.0001
   sum for fruit: 1.000 + 0.667 + 0.0001 = 1.667
   fruit → apple: 1.000 / 1.667 = 0.600
   fruit → banana: 0.667 / 1.667 = 0.400
   fruit → chair: 0.0001 / 1.667 = 0.000

5  output      weights · V      0.600×10 + 0.400×5 + 0.000×2 = 8.000
"""
    )


def test_many_heads_at_100_columns(many: Problem) -> None:
    view = View(head=(3,), rows=(0, 1, 2, 3))
    assert (
        compute(many, view=view, width=100)
        == """\
3 × 12 heads, 18 queries × 18 keys, width 32 · scale 0.1768 = 1/√32 · mask padding(18, 13, 15)
reference float64

Weights · batch 0 · head 3      0      1      2      3      4  …     13     14     15     16     17
0                           0.021  0.025  0.109  0.037  0.024  …  0.037  0.042  0.048  0.051  0.036
1                           0.051  0.117  0.052  0.028  0.054  …  0.039  0.087  0.015  0.014  0.085
2                           0.100  0.030  0.019  0.016  0.016  …  0.301  0.038  0.093  0.018  0.023
3                           0.069  0.007  0.039  0.079  0.003  …  0.013  0.041  0.015  0.012  0.011
rows 0–3 of 18; 10 of 18 keys; 11 of 12 heads, 2 of 3 batch elements not shown (--head, --batch,
--top, --heatmap, -o)

Output · batch 0 · head 3       0       1      2       3       4  …     28      29      30      31
0                          -0.340  -0.041  0.332   0.254   0.542  …  0.248  -0.442   0.032   0.363
1                          -0.252   0.067  0.226   0.388  -0.194  …  0.641  -0.308  -0.245   0.346
2                          -0.574   0.139  0.056   0.076   0.313  …  0.905  -0.112   0.428   0.115
3                          -0.143   0.520  0.003  -0.110   0.008  …  0.518   0.457  -0.003  -0.329
rows 0–3 of 18; 9 of 32 channels

Stability            entropy             effective keys  max weight  saturated  max logit  logit std
                median, nats    p05–p95          median      median    of rows
batch 0 head 3         2.489  2.18–2.68           12.05       0.205        0 %      2.710      1.022
batch 1 head 3         2.201  1.99–2.41            9.03       0.265        0 %      4.121      1.010
batch 2 head 3         2.420  2.13–2.61           11.25       0.190        0 %      3.034      0.853
+6 columns: --format csv, or a wider terminal
"""
    )


VIEWS = [
    View(), View(top=3), View(top=18), View(heatmap=True), View(time=True), View(head=(1, 2)),
    View(steps=True, rows=(0,), keys=(0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 100, 173])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_fits_its_width_without_colour(many: Problem, view: View, width: int) -> None:
    labels = Labels(None, (tuple(f"名前{n}" if n % 2 else "x" * n for n in range(18)),))
    text = compute(many, labels, view, width=width)
    assert ESCAPE not in text
    assert max(map(cell_len, text.splitlines())) <= width
    assert not any(line.endswith(" ") for line in text.splitlines())
    assert "\n\n\n" not in text


@pytest.mark.parametrize("view", VIEWS)
def test_colour_adds_shade_and_changes_no_text(many: Problem, view: View) -> None:
    if view.heatmap or view.time:
        pytest.skip("a map in colour has other cells, another run another time")
    plain, colored = (compute(many, view=view, color=c) for c in ("never", "always"))
    assert ESCAPE in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


# -- colour, width ----------------------------------------------------------------------------


def shown(stream: io.StringIO, **more: Any) -> str:
    show(report_of(matrix([[0.9, 0.1]])), stream=stream, **more)
    return stream.getvalue()


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert ESCAPE not in shown(io.StringIO())
    assert ESCAPE in shown(io.StringIO(), color="always")
    assert ESCAPE in shown(Terminal())
    assert ESCAPE not in shown(Terminal(), color="never")
    monkeypatch.setenv("TERM", "dumb")
    assert ESCAPE not in shown(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert ESCAPE not in shown(Terminal())
    assert ESCAPE in shown(Terminal(), color="always")


def test_width_is_100_without_a_terminal_and_follows_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    report = report_of(matrix(np.full((1, 90), 1 / 3)))

    def longest() -> int:
        return max(map(len, printed(report, width=None).splitlines()))

    assert 90 < longest() <= 100
    monkeypatch.setenv("COLUMNS", "60")
    assert 50 < longest() <= 60
    monkeypatch.setenv("COLUMNS", "nonsense")
    assert 90 < longest() <= 100


def test_shades_are_ordered() -> None:
    cube = (0, 95, 135, 175, 215, 255)

    def luminance(color: int) -> float:  # of the terminal's 256 colours
        n = color - 16
        r, g, b = (
            ((8 + 10 * (color - 232)),) * 3
            if color >= 232
            else (cube[n // 36], cube[n // 6 % 6], cube[n % 6])
        )
        linear = [(c / 255) ** 2.2 for c in (r, g, b)]
        return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])

    shades = [luminance(back) for back, _ in RAMP]
    assert shades == sorted(shades)
    for back, front in RAMP[1:]:  # WCAG's contrast, large enough to read numbers on it
        light, dark = sorted((luminance(back), luminance(front)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 3.5
    assert [level(s, 5) for s in (0, 0.04, 0.2, 0.5, 1, math.nan)] == [0, 1, 2, 3, 4, -1]


@pytest.mark.parametrize(
    ("environment", "colors"),
    [
        ({"TERM": "xterm-256color"}, 256),
        ({"TERM": "linux", "COLORTERM": "truecolor"}, 256),
        ({"TERM": "dumb"}, 0),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, 0),
    ],
)
def test_colours_are_those_the_terminal_has(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], colors: int
) -> None:
    for name in ("TERM", "COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert colors_of(Terminal(), "auto") == colors
    assert colors_of(Terminal(), "never") == 0
    assert (colors_of(io.StringIO(), "auto"), colors_of(io.StringIO(), "always")) == (0, 256)


def test_few_colours_are_believed_where_the_system_describes_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curses = pytest.importorskip("curses")

    def unknown(fd: int) -> None:
        raise curses.error("could not find terminal")

    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.setenv("TERM", "linux")
    monkeypatch.setattr(curses, "setupterm", lambda fd: None)
    monkeypatch.setattr(curses, "tigetnum", {"colors": 8}.get)
    assert colors_of(Terminal(), "always") == 16
    monkeypatch.setattr(curses, "setupterm", unknown)
    assert colors_of(Terminal(), "always") == 256


def test_sixteen_colours_shade_as_many_cells_as_256() -> None:
    few, many = Paint(16), Paint(256)
    for share in (0, 0.02, 0.3, 1):
        assert ESCAPE not in few.shade("x", 0)
        assert (few.shade("x", share) == "x") == (many.shade("x", share) == "x")
    assert few.shade("0.9", 0.9) == "\x1b[30;103m0.9\x1b[0m"
    assert few.halves(1, 0) == "\x1b[93;40m▀\x1b[0m"
    assert few.blank(2, 9) == "\x1b[103m  \x1b[0m"


# -- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.612, 0.0004], ["0.6120", "0.0004"]),
        ([9.21, 0.673], ["9.210", "0.673"]),
        ([12.5, 0.25], ["12.50", "0.25"]),
        ([1234.5, 3.0], ["1234", "3"]),
        ([0.0, 0.5, -0.0], ["0.000", "0.500", "0.000"]),
        ([-1.0, 1.0], ["-1.000", "1.000"]),
        ([1.0, 1e-7], ["1.00e+00", "1.00e-07"]),
        ([0.0, 1e-300, 1e300], ["0", "1.00e-300", "1.00e+300"]),
        ([3e-12, 2e-12], ["3.00e-12", "2.00e-12"]),
        ([7.63e-6], ["0.00000763"]),
        ([12_345_678.0], ["1.23e+07"]),
        ([math.nan, math.inf, -math.inf, 0.5], ["NaN", "∞", "−∞", "0.500"]),
        ([math.nan], ["NaN"]),
        ([], []),
    ],
)
def test_numbers_of_a_column_have_one_format(values: list[float], expected: list[str]) -> None:
    assert numbers(values) == expected


def test_small_numbers_of_a_matrix_become_zero_and_never_minus_zero() -> None:
    assert numbers([0.6, -4e-5, 1e-17], spare=True) == ["0.600", "0.000", "0.000"]
    assert numbers([2e-9, 0.0], spare=True) == ["2.00e-09", "0"]


def test_kinds_of_cells() -> None:
    assert texts(Column("", "percent"), [0.0, 0.001, 0.12, 0.999, 1.0]) == [
        "0 %", "<1 %", "12 %", ">99 %", "100 %",
    ]  # fmt: skip
    assert texts(Column("", "count"), [0, 591360]) == ["0", "591,360"]
    assert texts(Column("", "range"), [(0.523, 2.1), None]) == ["0.52–2.10", "–"]
    assert texts(Column("", "number"), [None, 1.5]) == ["–", "1.500"]
    assert texts(Column("", "text"), ["a\nb", None]) == ["a\\nb", ""]


# -- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\0", "a\\nb\\tc\\x00"),
        (" the", "␣the"),
        ("  ", "␣␣"),
        ("", ""),
        ("\u202eevil", "\\u202eevil"),  # turns the reading direction
        ("\udc80", "\\udc80"),
        ("Ġthe ▁日本", "Ġthe ▁日本"),
    ],
)
def test_control_characters_are_shown_and_never_sent(text: str, expected: str) -> None:
    assert visible(text) == expected
    visible(text).encode()


def test_widths_are_cells() -> None:
    assert [wide(t) for t in ("abc", "日本", "…–×", "é", "e\u0301")] == [3, 4, 3, 1, 1]
    assert pad("日本", 6) == "  日本"
    assert pad("日本", 6, left=True) == "日本  "
    assert cut("understanding", 8) == "unde…ing"
    assert cut("short", 8) == "short"
    assert cut("日本語日本語", 8) == "日本…語"
    assert [cut("abc", n) for n in (2, 1, 0)] == ["a…", "…", ""]
    assert wrap(["a", "bb", "ccc"], " · ", 7) == ["a · bb", "ccc"]


def test_wide_and_hostile_labels_keep_the_columns_in_line() -> None:
    names = ("日本語", "\x1b[2Jclear", " the", "a|b", "x" * 40)
    asked = pose(np.eye(5))
    text = compute(asked, Labels((names,), (names,)), width=62)
    assert ESCAPE not in text
    weights = text.split("\n\n")[1].splitlines()
    assert weights[0] == "Weights               日本語  \\x1b…ear   ␣the    a|b  xxxx…xxx"
    assert {cell_len(line) for line in weights} == {len("日本語") + cell_len(weights[0]) - 3}


# -- tables -----------------------------------------------------------------------------------


def test_a_wide_matrix_loses_its_middle() -> None:
    text = printed(report_of(matrix(np.full((1, 30), 0.5))), width=40)
    assert text.splitlines()[2:] == [
        "Weights      0      1  …     28     29",
        "0        0.500  0.500  …  0.500  0.500",
        "4 of 30 keys",
    ]
    text = printed(report_of(matrix(np.full((1, 30), 0.5), whole=True)), width=40)
    assert "…" not in text
    assert len(text.splitlines()[2]) > 200


def test_what_was_left_out_before_is_counted() -> None:
    table = matrix(
        np.full((4, 4), 0.25), ["0", "1", "98", "99"], part="rows 0–1, 98–99 of 100",
        row_gap=Gap(2, 96), column_gap=Gap(2, 1000), notes=("1 of 2 heads not shown",),
        hint="--head",
    )  # fmt: skip
    assert printed(report_of(table)).splitlines()[2:] == [
        "Weights      0      1  …      2      3",
        "0        0.250  0.250  …  0.250  0.250",
        "1        0.250  0.250  …  0.250  0.250",
        "…",
        "98       0.250  0.250  …  0.250  0.250",
        "99       0.250  0.250  …  0.250  0.250",
        "rows 0–1, 98–99 of 100; 4 of 1004 keys; 1 of 2 heads not shown (--head)",
    ]


def test_the_least_telling_columns_go_first_with_what_continues_them() -> None:
    columns = [
        Column("entropy", sub="median", keep=9),
        Column("weight", sub="median", keep=3),
        Column("", "range", "p05–p95", keep=5),
        Column("saturated", "percent", keep=8),
    ]
    table = Table("Stability", columns, [[1.41, 0.5, (0.1, 0.9), 0.02]], ["head 0"])
    assert printed(report_of(table), width=60).splitlines()[2:] == [
        "Stability   entropy   weight               saturated",
        "             median   median     p05–p95",
        "head 0        1.410    0.500   0.10–0.90         2 %",
    ]
    assert printed(report_of(table), width=46).splitlines()[2:] == [
        "Stability   entropy   saturated",
        "             median",
        "head 0        1.410         2 %",
        "+2 columns: --format csv, or a wider terminal",
    ]


def test_short_label_columns_stand_in_line_and_long_ones_do_not_push() -> None:
    narrow = matrix([[1.0]], ["a"])
    long = matrix([[1.0]], ["a label of 16 ce"])
    stability = Table("Stability", [Column("x")], [[1.0]], ["head 0"])
    lines = printed(report_of(narrow, stability, long)).splitlines()
    assert lines[3].index("1.000") == lines[6].index("1.000") == 12
    assert lines[9].index("1.000") == 19


def test_a_heading_is_all_that_is_bold() -> None:
    text = printed(report_of(matrix([[0.0]]), Text("Notes", ["plain"])), color="always")
    assert re.findall(r"\x1b\[1m(.*?)\x1b", text) == ["Weights", "Notes"]


def test_facts_and_lines_of_a_report_are_safe() -> None:
    report = report_of(
        Text("", ["\x1b[2J"]), Step(1, "a", "\x1b[0m", "\x07", None, ["\x1b"]),
        headline=["mask \x1b[31m"], notes=["\x1b"],
    )  # fmt: skip
    assert ESCAPE not in printed(report)
    assert "\x07" not in printed(report)


# -- maps -------------------------------------------------------------------------------------


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
    text = compute(asked, Labels((names,), (names,)), view)
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


# -- Markdown ---------------------------------------------------------------------------------


def test_markdown_tables() -> None:
    names = ("a|b", "*bold*")
    asked = pose([[1.0, 0.0], [0.0, 1.0]])
    text = compute(asked, Labels((names,), (names,)), format="markdown")
    assert r"| Weights | a\|b | \*bold\* |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [re.split(r"(?<!\\)\|", line) for line in table.splitlines()]
        assert len({len(c) for c in cells}) == 1
        assert set(cells[1][2].strip()) == {"-", ":"}


def test_markdown_shortens_a_wide_matrix(many: Problem) -> None:
    text = compute(many, format="markdown")
    assert "| Weights · batch 0 · head 0 | 0 | 1 | 2 | 3 | 4 | 5 | … | 12 |" in text
    assert "rows 0–4, 13–17 of 18; 12 of 18 keys" in text
    assert "```" in compute(many, view=View(heatmap=True), format="markdown")
    steps = compute(pose(np.eye(2)), view=View(steps=True), format="markdown")
    assert "### 1 scores: q·kᵀ" in steps


# -- programs, errors, warnings ---------------------------------------------------------------


def test_json_is_one_line_of_utf8_bytes(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    report = Report("test", [], [], lambda: {"label": "é\n", "x": math.inf})
    for format in ("json", "ndjson"):
        show(report, format)
    out = capfdbinary.readouterr().out
    assert out == b'{"label":"\xc3\xa9\\n","x":"Infinity"}\n' * 2


def test_csv_of_a_report_without_records() -> None:
    with pytest.raises(InputError, match="no table"):
        printed(report_of(), "csv")


def test_an_encoding_that_has_no_such_character() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    show(report_of(headline=["width 2 × 3"]), stream=stream)
    assert raw.getvalue() == b"width 2 x 3\n"


def test_an_encoding_keeps_marks_apart_and_columns_in_line() -> None:
    assert in_encoding("a   ■  ▒  · …", "ascii") == "a   #  +  . ~"
    assert in_encoding("x     −∞", "ascii") == "x   -inf"
    assert in_encoding("1/√2 · ∞", "ascii") == "1/sqrt2 . inf"
    assert in_encoding("× 語 \udc80", "latin-1") == "× ? ?"
    assert in_encoding("語 ×", "utf-8") == "語 ×"
    assert in_encoding("×", "no such encoding") == "x"


def test_standard_output_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(FileError, match="standard output is closed"):
        show(report_of())


def test_an_error_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(InputError("bad\x1b thing", "do this\n  or that"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: bad\\x1b thing\n       do this\n         or that\n"
    show_error(InputError("no hint"))
    assert capsys.readouterr().err == "error: no hint\n"


def test_an_error_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    show_error(InputError("bad", "fix"), json=True, command="compute", line=3)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "schema": "attncli.compute/1", "command": "compute", "line": 3,
        "error": {"code": "bad_input", "message": "bad", "hint": "fix"},
    }  # fmt: skip


def test_warnings_are_one_line_each_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings(["one", "two\nlines"])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: one\nwarning: two\\nlines\n")


# -- progress ---------------------------------------------------------------------------------


def test_progress_is_silent_without_a_terminal() -> None:
    stream = io.StringIO()
    with progress(stream=stream, delay=0) as tell:
        tell(0.5)
    assert stream.getvalue() == ""


def test_progress_is_silent_while_work_is_short() -> None:
    stream = Terminal()
    with progress(stream=stream, delay=60) as tell:
        for n in range(100):
            tell(n / 100)
    assert stream.getvalue() == ""


def test_progress_draws_a_bar_and_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress("attention", stream=stream, delay=0) as tell:
        tell(0.25)
        time.sleep(0.15)
        tell(2.0)
    text = stream.getvalue()
    assert "attention" in text
    assert " 25 %" in text
    assert "100 %" in text
    assert text.endswith(GONE)
    tell(0.5)  # a thread that comes late draws nothing
    assert stream.getvalue() == text
    assert "\x1b[?25l" not in text  # the cursor stays, whatever becomes of the process


def test_progress_goes_away_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def work() -> None:
        with progress(stream=stream, delay=0) as tell:
            tell(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert stream.getvalue().endswith(GONE)


def test_progress_is_silent_on_a_terminal_that_cannot_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress(stream=stream, delay=0) as tell:
        tell(0.5)
    assert stream.getvalue() == ""


def test_one_huge_column_leaves_the_others_alone() -> None:
    columns = [Column("0"), Column("1")]
    table = Table("Output", columns, [[1e30, 0.25], [-2e30, 1.5]], ["a", "b"], matrix=True)
    text = printed(report_of(table))
    rows = [line.split() for line in text.splitlines() if line.startswith(("a", "b"))]
    assert rows == [["a", "1.00e+30", "0.250"], ["b", "-2.00e+30", "1.500"]]
    alike = Table("Output", columns, [[10.5, 0.25]], ["a"], matrix=True)
    assert "10.50   0.25" in printed(report_of(alike))
