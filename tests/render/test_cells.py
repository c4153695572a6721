"""Cells: numbers in one format a column, labels that are safe to print, widths on the screen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rich.cells import cell_len

from attncli.attention.pose import pose
from attncli.attention.view import Labels
from attncli.render.cells import (
    cut,
    cut_apart,
    in_encoding,
    numbers,
    pad,
    texts,
    visible,
    wide,
    wrap,
)
from attncli.reports.blocks import Column
from tests.support.reports import page
from tests.support.screen import ESCAPE


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
    text = page(asked, Labels((names,), (names,)), width=62)
    assert ESCAPE not in text
    weights = text.split("\n\n")[1].splitlines()
    assert weights[0] == "Weights               日本語  \\x1b…ear   ␣the    a|b  xxxx…xxx"
    assert {cell_len(line) for line in weights} == {len("日本語") + cell_len(weights[0]) - 3}


def test_an_encoding_keeps_marks_apart_and_columns_in_line() -> None:
    assert in_encoding("a   ■  ▒  · …", "ascii") == "a   #  +  . ~"
    assert in_encoding("x     −∞", "ascii") == "x   -inf"
    assert in_encoding("1/√2 · ∞", "ascii") == "1/sqrt2 . inf"
    assert in_encoding("× 語 \udc80", "latin-1") == "× ? ?"
    assert in_encoding("語 ×", "utf-8") == "語 ×"
    assert in_encoding("×", "no such encoding") == "x"


def test_a_cut_text_is_not_another_one() -> None:
    long = ["decoder.0.0.SelfAttention", "decoder.0.1.SelfAttention"]
    assert cut_apart(long, 20, 40) == ["decoder.0.0.…lfAttention", "decoder.0.1.…lfAttention"]
    assert cut_apart(long, 20, 20) == 2 * ["decoder.0.…Attention"]  # there is no room
    assert cut_apart([*long, "a"][1:], 20, 40) == ["decoder.0.…Attention", "a"]
    assert cut_apart(2 * long[:1], 20, 40) == 2 * ["decoder.0.…Attention"]
    assert cut_apart([], 20, 40) == []
