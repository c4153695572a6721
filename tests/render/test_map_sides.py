"""Maps beside each other, hidden cells, scales, and labels that would break a row."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
import pytest

from attncli.attention.view import Labels, View
from attncli.render.cells import LRM, wide
from attncli.render.maps import gathered
from attncli.reports.blocks import Grid, Heatmap
from tests.support.reports import page, printed, problem
from tests.support.screen import matrix, report_of

COLOR = re.compile(r"\x1b\[[\d;]*m")


def heat(values: Any, title: str = "Weights", **more: Any) -> Heatmap:
    values = np.asarray(values, float)
    rows, columns = values.shape
    return Heatmap(
        title, values, range(rows + 1), range(columns + 1), [str(i) for i in range(rows)],
        [str(j) for j in range(columns)], **more,
    )  # fmt: skip


def drawn(*maps: Heatmap, **more: Any) -> list[str]:
    return printed(report_of(*maps, headline=()), **more).splitlines()


def causal(size: int, top: float = 1.0) -> Heatmap:
    weights = np.tri(size) / np.arange(1, size + 1)[:, None]
    return heat(weights * top, hidden=~np.tri(size, dtype=bool))


def test_heads_stand_side_by_side_under_one_legend() -> None:
    maps = [heat([[1, 0.2], [0.3, 0.5]], f"Weights · batch 1 · head {h}") for h in range(3)]
    assert drawn(*maps) == [
        "Weights · batch 1",
        "   head 0   head 1   head 2",
        "   0 1      0 1      0 1",
        "0  ██▒▒     ██▒▒     ██▒▒",
        "1  ▒▒▓▓     ▒▒▓▓     ▒▒▓▓",
        "░ from 0.040   ▒ from 0.160   ▓ from 0.360   █ from 0.640   largest 1.000",
        "√ scale",
    ]


@pytest.mark.parametrize(("width", "abreast"), [(24, 1), (80, 2), (120, 3), (400, 8)])
def test_as_many_as_the_screen_is_wide(width: int, abreast: int) -> None:
    maps = [heat(np.full((3, 18), 0.5), f"Weights · head {h}") for h in range(8)]
    lines = drawn(*maps, width=width)
    assert max(map(wide, lines)) <= width
    heads = [line.split() for line in lines if line.strip().startswith("head ")]
    assert max(len(words) // 2 for words in heads) == abreast
    assert [w for words in heads for w in words if w.isdecimal()] == [str(h) for h in range(8)]
    assert sum("largest" in line for line in lines) == 1


def test_maps_of_other_rows_or_keys_stand_apart() -> None:
    one, two = heat(np.eye(2)), heat(np.eye(3))
    other = heat(np.eye(2))._replace(column_labels=["a", "b"])
    table = matrix([[0.5]])
    together = [[one, one], [two], [one], [other], [table], [other, other]]
    blocks = [one, one, two, one, other, table, other, other]
    assert [len(some) for some in gathered(blocks)] == [len(some) for some in together]
    assert list(gathered([])) == []


def test_one_scale_is_shared_by_maps_side_by_side() -> None:
    strong, weak = heat([[1.0, 0]], "Weights · head 0"), heat([[0.05, 0]], "Weights · head 1")
    row = next(line for line in drawn(strong, weak) if line.startswith("0  "))
    assert row == "0  ██       ░░"
    row = next(
        line for line in drawn(*(m._replace(scale="row") for m in (strong, weak)))
        if line.startswith("0  ")
    )  # fmt: skip
    assert row == "0  ██       ██"


@pytest.mark.parametrize("colors", ["never", "always"])
def test_what_is_hidden_looks_like_nothing_else(colors: str) -> None:
    hidden = np.array([[False, True, False]])
    lines = drawn(heat([[1.0, 0.0, 0.0]], hidden=hidden), color=colors)
    row = next(line for line in lines if line.startswith("0  "))
    assert COLOR.sub("", row).replace("█", " ").rstrip() == "0    ·"
    assert any("· hidden by the mask" in line for line in lines)
    assert row.count("\x1b[48;5;233m") == (colors == "always")  # the small one has a shade
    assert not any("hidden" in line for line in drawn(heat([[1.0, 0.0]]), color=colors))


def test_two_rows_in_a_line_keep_what_is_hidden_and_what_is_lost() -> None:
    values = np.array([[1.0, 1, 1, 0, 1]] * 20)
    hidden = np.zeros(values.shape, bool)
    hidden[::2, 0], hidden[1::2, 1], hidden[:, 3] = True, True, True
    values[::2, 4] = np.nan
    lines = drawn(heat(values, hidden=hidden), color="always", height=10)
    row = next(line for line in lines if line.startswith("0–1"))
    assert COLOR.sub("", row).split()[1] == "▄▀▀·?"
    cells = re.findall(r"(?:\x1b\[([\d;]*)m)?([▄▀·?])", row)
    assert ["48;" in code for code, _ in cells] == [False, False, True, False, False]
    assert any("? not a number" in line for line in lines)


def test_a_block_is_hidden_where_all_of_it_is_and_keeps_its_peak() -> None:
    values, hidden = np.zeros((64, 64)), np.ones((64, 64), bool)
    values[33, 21], hidden[33, 21] = 0.9, False
    lines = drawn(heat(values, hidden=hidden, scale="matrix"), width=40, height=8)
    rows = [line for line in lines if re.match(r"\d+–", line)]
    assert [line for line in rows if "█" in line] == [rows[4]]
    assert rows[4].count("█") == 1 and set(rows[0].split()[1]) == {"·"}
    assert "64 × 64 weights: each cell is the largest of up to 8 × 2" in " ".join(lines)


def test_a_causal_map_beyond_the_screen_is_scaled_by_row_and_says_so() -> None:
    said = "each line has a scale of its own"
    long = drawn(causal(64), width=60, height=16)
    assert any(said in line for line in long)
    last = next(line for line in long if line.startswith("60–63"))
    assert "█" in last  # weights of 1/64
    told = " ".join(long)
    assert "√ scale, by row" in told and "100 %: a row's largest" in told
    for other in (
        drawn(causal(8), width=60, height=16),  # it fits
        drawn(causal(64)._replace(scale="matrix"), width=60, height=16),
        drawn(heat(np.tri(64), hidden=np.zeros((64, 64), bool)), width=60, height=16),
        drawn(heat(np.tri(64), hidden=np.tri(64, dtype=bool)), width=60, height=16),  # anticausal
    ):
        assert not any(said in line or "by row" in line for line in other)


def test_log_scale_tells_powers_of_ten_apart() -> None:
    values = [[1.0, 0.1, 0.01, 1e-3, 1e-4]]
    lines = drawn(heat(values, scale="log"))
    assert next(line for line in lines if line.startswith("0  ")) == "0  ████▓▓▒▒░░"
    assert any("log scale" in line for line in lines)
    colored = [COLOR.sub("", line) for line in drawn(heat(values, scale="log"), color="always")]
    assert re.search(r"^1e-5 .* 0\.01 .* 1$", "\n".join(colored), re.MULTILINE)


def test_shares_of_a_mask_are_means() -> None:
    values = np.zeros((4, 100))
    values[:, :25] = 1
    grid = Grid(
        "Share kept", values, range(5), range(101), list("abcd"), [str(n) for n in range(100)],
        scale="linear",
    )  # fmt: skip
    lines = drawn(grid, width=13, height=8)  # NARROWEST is wider: 24
    row = next(line for line in lines if line.startswith("a  "))
    assert len(row) == 24 and row[3:8] == "█████" and row.endswith("·")
    assert "4 × 100 cells: each cell is the mean of up to 1 × 5" in " ".join(lines)


HOSTILE = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\nb\r\tc\x08\x00", "שלום עולם", "مرحبا 123",
    "\u202eevil\u2066", "漢字漢字漢字漢字漢字漢字", "👩\u200d👩", "e\u0301" * 40, "x" * 100_000,
    "", "   ", "\udc80", "<script>", "\ufeff",
)  # fmt: skip


@pytest.mark.parametrize("width", [24, 80, 200])
@pytest.mark.parametrize("colors", ["never", "always"])
def test_hostile_labels_stay_in_their_cells(width: int, colors: str) -> None:
    size = len(HOSTILE)
    asked = problem(heads=2, queries=size, mask="causal")
    text = page(
        asked, Labels((HOSTILE,), (HOSTILE,)), View(heatmap=True, head=(0, 1)), width=width,
        color=colors, height=60,
    )  # fmt: skip
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200d\ufeff]",
                         COLOR.sub("", text))  # fmt: skip
    bare = COLOR.sub("", text)
    maps = bare[bare.index("Weights") : bare.index("Stability")].splitlines()
    rows = maps[3 : 3 + size]
    assert max(map(wide, rows)) <= width
    if colors == "never":
        # whatever a label is, the first cell of each row stands under the first of the others
        first = next(line for line in rows if line.startswith("\\x1b"))
        at = wide(first[: first.index("█")])
        for line in rows:
            assert re.match(r"[ ░▒▓█]", _from(line, at)), line


def _from(line: str, cells: int) -> str:
    """Return what stands from a cell of the terminal on."""
    return next(line[n:] for n in range(len(line) + 1) if wide(line[:n]) == cells)


def test_right_to_left_labels_are_fenced() -> None:
    asked = problem(queries=2)
    names = ("שלום", "مرحبا")
    text = page(asked, Labels((names,), (names,)), View(heatmap=True))
    for line in text.splitlines():
        for n, sign in enumerate(line):
            if unicodedata.bidirectional(sign) in ("R", "AL"):
                rest = line[n:].lstrip("".join(names))
                assert rest.startswith(LRM)


def test_names_of_keys_are_there_where_the_axis_has_no_room() -> None:
    names = tuple(f"token{n}" for n in range(12))
    lines = page(
        problem(heads=4, queries=12), Labels((names,), (names,)),
        View(heatmap=True, head=(0, 1, 2, 3)), width=80,
    )  # fmt: skip
    assert "keys:  0 token0  1 token1" in lines
    assert "11 token11" in lines
    assert lines.count("keys:") == 1


@pytest.mark.parametrize("width", [24, 40, 80, 300])
@pytest.mark.parametrize("color", ["never", "always"])
def test_any_map_fits_any_screen(width: int, color: str) -> None:
    rng = np.random.default_rng(width)
    sizes = (0, 1, 2, 18, 40, 130)
    for rows in sizes:
        for columns in sizes:
            values = rng.random((3, rows, columns)) ** 20
            values[rng.random(values.shape) < 0.05] = np.nan
            hidden = np.broadcast_to(~np.tri(rows, columns, dtype=bool), values.shape)
            scale = [None, "row", "matrix", "log", "linear"][int(rng.integers(5))]
            maps = [
                heat(np.where(hidden[h], 0, values[h]), f"Weights · head {h}", hidden=hidden[h],
                     scale=scale)
                for h in range(3)
            ]  # fmt: skip
            lines = drawn(*maps, width=width, height=20, color=color)
            assert max(wide(COLOR.sub("", line)) for line in lines) <= width
            assert not any(COLOR.sub("", line).endswith(" ") for line in lines if color == "never")
