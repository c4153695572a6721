"""What people see: the layout of every block, at 80 and 100 columns, with and without colour."""

from __future__ import annotations

import re

import numpy as np
import pytest
from rich.cells import cell_len

from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.reports.blocks import Column, Gap, Step, Table, Text
from tests.support.reports import page, printed
from tests.support.screen import ESCAPE, matrix, report_of

VIEWS = [
    View(), View(top=3), View(top=18), View(heatmap=True), View(time=True), View(head=(1, 2)),
    View(steps=True, rows=(0,), keys=(0, 1)),
]  # fmt: skip


@pytest.fixture
def fruit() -> tuple[Problem, Labels]:
    asked = pose(
        [[3, 0.5]], [[3, 0.42], [2.9, 0.209], [-0.25, 1.5]], [[10], [5], [2]],
        scale=1.0, scale_source="from file",
    )  # fmt: skip
    return asked, Labels((("fruit",),), (("apple", "banana", "chair"),))


# -- whole pages ------------------------------------------------------------------------------


def test_fruit_at_80_columns(fruit: tuple[Problem, Labels]) -> None:
    assert (
        page(*fruit)
        == """\
1 query × 3 keys, width 2, values of width 1 · scale 1 (from file)
reference float64

Weights     apple   banana   chair
fruit       0.600    0.400   0.000

Output          0
fruit       8.000

Stability  entropy  effective keys  max weight  saturated  max logit  logit std
head 0       0.674           1.961       0.600        0 %      9.210      4.249
+5 columns: --format csv, or a wider terminal
"""
    )


def test_fruit_with_room(fruit: tuple[Problem, Labels]) -> None:
    text = page(*fruit, width=200)
    assert text.startswith(
        "1 query × 3 keys, width 2, values of width 1 · scale 1 (from file) · reference float64\n"
    )
    assert text.splitlines()[-2:] == [
        "Stability   entropy   effective keys   max weight   saturated   max logit   logit std"
        "   Jacobian trace   Frobenius   spectral bounds   first key   dead rows",
        "head 0        0.674            1.961        0.600         0 %       9.210       4.249"
        "            0.480       0.480         0.40–0.48       0.600           0",
    ]


def test_fruit_steps(fruit: tuple[Problem, Labels]) -> None:
    assert (
        page(*fruit, view=View(steps=True))
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
        page(many, view=view, width=100)
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

Stability       entropy             effective keys  max weight  saturated  max logit  logit std
                 median    p05–p95          median      median    of rows
batch 0 head 3    2.489  2.18–2.68           12.05       0.205        0 %      2.710      1.022
batch 1 head 3    2.201  1.99–2.41            9.03       0.265        0 %      4.121      1.010
batch 2 head 3    2.420  2.13–2.61           11.25       0.190        0 %      3.034      0.853
+6 columns: --format csv, or a wider terminal
"""
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 173])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_fits_its_width_without_colour(many: Problem, view: View, width: int) -> None:
    labels = Labels(None, (tuple(f"名前{n}" if n % 2 else "x" * n for n in range(18)),))
    text = page(many, labels, view, width=width)
    assert ESCAPE not in text
    assert max(map(cell_len, text.splitlines())) <= width
    assert not any(line.endswith(" ") for line in text.splitlines())
    assert "\n\n\n" not in text


@pytest.mark.parametrize("view", VIEWS)
def test_colour_adds_shade_and_changes_no_text(many: Problem, view: View) -> None:
    if view.heatmap or view.time:
        pytest.skip("a map in colour has other cells, another run another time")
    plain, colored = (page(many, view=view, color=c) for c in ("never", "always"))
    assert ESCAPE in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


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


def test_a_cut_label_is_not_another_label() -> None:
    kinds = ("0.SelfAttention", "1.EncDecAttention")
    names = [f"decoder.{n}.{kind}.{head}" for n in (0, 1) for kind in kinds for head in (0, 1)]
    found = printed(report_of(matrix([[float(n)] for n in range(8)], names))).splitlines()
    labels = [line.split()[0] for line in found if line.startswith("decoder")]
    assert len({*labels}) == 8
    assert all(label.startswith(name[:11]) for label, name in zip(labels, names, strict=True))
    twice = matrix([[1.0], [2.0]], [2 * "the same long label "] * 2)  # words of a text are
    assert "the same l…ng label" in printed(report_of(twice))


def test_one_huge_column_leaves_the_others_alone() -> None:
    columns = [Column("0"), Column("1")]
    table = Table("Output", columns, [[1e30, 0.25], [-2e30, 1.5]], ["a", "b"], matrix=True)
    text = printed(report_of(table))
    rows = [line.split() for line in text.splitlines() if line.startswith(("a", "b"))]
    assert rows == [["a", "1.00e+30", "0.250"], ["b", "-2.00e+30", "1.500"]]
    alike = Table("Output", columns, [[10.5, 0.25]], ["a"], matrix=True)
    assert "10.50   0.25" in printed(report_of(alike))


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
