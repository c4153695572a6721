"""--plot's files by their structure: text is text, a shade means a number, nothing is lost."""

from __future__ import annotations

import base64
import io
import math
import re
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from attncli.attention.view import Labels, View
from attncli.errors import InputError, Unavailable
from attncli.render.plot import made
from attncli.reports.blocks import Curve, Figure, Grid, Heatmap, Picture, Shaded
from tests.support.reports import problem, reported
from tests.support.screen import report_of

pytest.importorskip("matplotlib")

HOSTILE = (
    "</text><script>", "$x_1$ \\frac", "_under", "a&b\"'", "שלום", "🙂", "\x1b[31mred", "a\tb\nc",
    " lead", "\u202erlo", "漢字", "%s{}", "", "x" * 100_000,
)  # fmt: skip


def plotted(pictures: Sequence[Picture], suffix: str = ".svg") -> bytes:
    return made(report_of()._replace(pictures=lambda: pictures), suffix)


def texts(svg: bytes) -> list[str]:
    """The text of an SVG file, piece by piece."""
    root = ElementTree.fromstring(svg)
    found = root.iter("{http://www.w3.org/2000/svg}text")
    return ["".join(one.itertext()) for one in found]


def images(svg: bytes) -> list[Any]:
    """The images of an SVG file, ``(r, c, 4)`` uint8 each."""
    from matplotlib.image import imread

    coded = re.findall(rb'"data:image/png;base64,([^"]*)"', svg)
    return [np.rint(imread(io.BytesIO(base64.b64decode(one))) * 255) for one in coded]


def heat(values: Any, title: str = "Weights", **more: Any) -> Heatmap:
    values = np.asarray(values, float)
    rows, columns = values.shape
    names = [str(n) for n in range(max(values.shape))]
    labels = {"row_labels": names[:rows], "column_labels": names[:columns], **more}
    return Heatmap(title, values, range(rows + 1), range(columns + 1), **labels)


def shaded(values: Any, **more: Any) -> Shaded:
    values = np.asarray(values, float)
    rows, columns = values.shape
    names = [f"n{n}" for n in range(max(values.shape))]
    return Shaded(
        "thing", values, range(rows + 1), range(columns + 1), names[:rows], names[:columns],
        "thing", "head", "layer", **more,
    )  # fmt: skip


# -- text -------------------------------------------------------------------------------------


def test_tokens_are_text_on_both_sides() -> None:
    names = ["the", "cat", "sat"]
    found = texts(plotted([heat(np.eye(3), row_labels=names, column_labels=names)]))
    assert [found.count(name) for name in names] == [2, 2, 2]
    assert "Weights" in found and "weight, √ scale" in found and "query" in found


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_hostile_text_is_drawn_and_not_obeyed(
    suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    n = len(HOSTILE)
    one = heat(np.full((n, n), 1 / n), row_labels=HOSTILE, column_labels=HOSTILE)
    line = Figure(
        "$\\frac{", "_x", "%", [Curve(f"_{text[:30]}", (0, 1), (1, 2)) for text in HOSTILE]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made_of = plotted([one._replace(title="</svg>$"), line], suffix)
    assert capfd.readouterr() == ("", "")
    if suffix != ".svg":
        return
    found = texts(made_of)
    assert b"<script" not in made_of
    for text in ("</text><script>", "$x_1$ \\frac", "_under", "a&b\"'", "שלום", "🙂", "漢字"):
        assert found.count(text) == 2, text
    assert {"\\x1b[31mred", "a\\tb\\nc", "␣lead", "\\u202erlo", "</svg>$"} <= {*found}
    assert max(map(len, found)) < 100


def test_signs_that_no_font_has_are_spelled_out() -> None:
    from attncli.render.plot.text import Letters

    private = "\U000f1234"
    assert Letters(written=True).shown("a" + private) == "a\\U000f1234"
    assert Letters().shown("Ω√…") == "Ω√…"
    assert Letters().shown("\u0e01" * 2) in ("\u0e01" * 2, "\\u0e01\\u0e01")


def test_pdf_holds_its_text_and_its_font() -> None:
    data = plotted([heat(np.eye(2), row_labels=["cat", "dog"])], ".pdf")
    assert data.startswith(b"%PDF-") and b"CreationDate" not in data
    assert b"/FontFile2" in data and b"/ToUnicode" in data
    streams = re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL)
    drawn = b"".join(zlib.decompressobj().decompress(one) for one in streams if one[:1] == b"x")
    letters = b"".join(re.findall(rb"\(((?:[^()\\]|\\.)*)\)", drawn)).replace(b"\0", b"")
    assert b"cat" in letters and b"dog" in letters and b"Weights" in letters


def test_png_is_as_wide_as_a_column_or_a_page() -> None:
    from matplotlib.image import imread

    def width(pictures: Sequence[Picture]) -> int:
        return int(imread(io.BytesIO(plotted(pictures, ".png"))).shape[1])

    assert width([heat(np.eye(3))]) == 1020
    heads = [heat(np.eye(18), f"Weights · head {h}") for h in range(12)]
    assert width(heads) == 2100
    assert plotted(heads, ".png").startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_report_makes_the_same_bytes(suffix: str) -> None:
    pictures = [heat(np.eye(3)), Figure("y", "x", "y", [Curve("c", (0, 1), (1, 2))])]
    assert plotted(pictures, suffix) == plotted(pictures, suffix)


# -- shades -----------------------------------------------------------------------------------


def test_hidden_cells_and_nan_look_like_no_weight() -> None:
    from attncli.render.plot.shades import HIDDEN, ODD, of_weights

    values = np.array([[1.0, 0.0], [np.nan, 0.0]])
    hidden = np.array([[False, True], [False, False]])
    painted = of_weights([heat(values)]).painted(values, hidden)
    assert tuple(painted[0, 1]) == HIDDEN and tuple(painted[1, 0]) == ODD
    every = of_weights([heat(values)]).gradient()[0]
    for odd in (HIDDEN, ODD):
        assert np.abs(every.astype(int) - odd).sum(-1).min() > 60
    found = texts(svg := plotted([heat(values, hidden=hidden)]))
    assert "hidden by the mask" in found and "NaN" in found
    drawn = {tuple(color) for color in images(svg)[0].reshape(-1, 4).astype(int)}
    assert {HIDDEN, ODD} <= drawn and len(drawn) == 4


def test_what_is_hidden_is_not_said_to_be_nan() -> None:
    hidden = np.array([[True, False]])
    found = texts(plotted([shaded([[np.nan, 1.0]], hidden=hidden)]))
    assert "hidden by the mask" in found and "NaN" not in found
    assert "NaN or ∞" in texts(plotted([shaded([[np.nan, np.inf, 1.0]])]))


def test_no_legend_for_what_is_not_there() -> None:
    found = texts(plotted([heat(np.eye(2))]))
    assert "hidden by the mask" not in found and "NaN" not in found


def test_all_heads_share_one_scale() -> None:
    heads = [heat(np.eye(3) * w, f"Weights · head {n}") for n, w in enumerate((0.25, 1.0))]
    svg = plotted(heads)
    assert texts(svg).count("weight, √ scale") == 1
    assert [name for name in texts(svg) if name.startswith("head")] == ["head 0", "head 1"]
    faint, strong = images(svg)[:2]
    assert not np.array_equal(faint, strong)


def test_a_scale_of_roots_tells_small_weights_apart() -> None:
    from attncli.render.plot.shades import of_weights

    scale = of_weights([heat([[1.0, 0.0]])])
    assert scale.at(0.25) == pytest.approx(0.5) and scale.ticks[-1] == (1.0, "1")
    small = of_weights([heat([[0.013, 0.0]])])
    assert small.ticks[-1][0] == pytest.approx(0.02)


def test_a_few_weights_of_long_maps_do_not_leave_the_others_dark() -> None:
    values = np.full((200, 200), 1e-3)
    values[0, 0] = 1
    found = texts(plotted([heat(values)]))
    assert "weight, log scale" in found and {"10⁻⁴", "10⁻²", "10⁰"} <= {*found}
    hidden = np.ones((200, 200), bool)
    hidden[:, 0] = False
    values[:, 0] = 0.5  # what is hidden says nothing of what is usual
    assert "weight, √ scale" in texts(plotted([heat(values, hidden=hidden)]))


def test_numbers_stand_in_all_cells_or_in_none() -> None:
    few = [shaded([[0.25, 0.5]]), shaded([[1.5, 0.75]])]
    assert {"0.25", "0.5", "1.5", "0.75"} <= {*texts(plotted(few))}
    long = shaded(np.full((2, 8), 1.23e-7))
    assert "1.23e−7" not in texts(plotted([long, shaded(np.full((2, 8), 4))]))
    assert "0.40" not in texts(plotted([heat(np.full((30, 30), 0.4))]))


def test_pooled_maps_keep_their_peaks_and_say_so() -> None:
    values = np.zeros((4096, 4096), np.float32)
    values[1234, 3210] = 1
    one = heat(values)
    svg = plotted([one])
    said = [text for text in texts(svg) if "largest of" in text]
    assert said == ["each pixel is the largest of 5 × 5 weights"]
    top = images(svg)[0].reshape(-1, 4)
    assert (top[:, 0] > 200).any()  # the yellow of 1


def test_very_many_tokens_have_few_labels() -> None:
    class Names(Sequence[str]):
        looked = 0

        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, at: Any) -> Any:
            if isinstance(at, slice):
                return [self[i] for i in range(*at.indices(len(self)))]
            Names.looked += 1
            return f"t{at}"

    edges = [*range(0, 100_000, 250), 100_000]
    values = np.random.default_rng(0).random((len(edges) - 1, len(edges) - 1))
    found = texts(plotted([Heatmap("Weights", values, edges, edges, Names(), Names())]))
    assert 10 < len(found) < 60 and "100000" not in found and "0" in found
    assert Names.looked < 1000


def test_logarithmic_and_diverging_scales() -> None:
    from attncli.render.plot.shades import of_numbers

    log = of_numbers(shaded([[1e-6, 1.0, 0.0]], log=True))
    assert log.at(1e-3) == pytest.approx(0.5) and log.at(0.0) == 0.0
    assert [text for _, text in log.ticks] == ["10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"]
    around = of_numbers(shaded([[-3.0, 1.0]], diverging=True))
    assert around.at(0.0) == 0.5 and around.ticks[0] == (-3.0, "−3")
    for empty in ([[np.nan, np.inf]], [[2.0, 2.0]], [[0.0, 0.0]]):
        assert plotted([shaded(empty, log=True), shaded(empty), shaded(empty, diverging=True)])


def test_a_mask_says_kept_hidden_and_partly() -> None:
    values = np.array([[1.0, 0.0], [1.0, 0.5]])
    names = ["a", "b"]
    found = texts(plotted([Grid("", values, (0, 1, 2), (0, 1, 2), names, names)]))
    assert {"Mask", "kept", "hidden", "partly"} <= {*found}


# -- curves -----------------------------------------------------------------------------------


def test_curves_share_a_legend_and_log_ticks_are_powers() -> None:
    curves = [
        Curve("scaled", (8, 64, 512), (1, 1, 1)),
        Curve("not scaled", (8, 64, 512), (1e-1, 1e-4, 1e-8), dashed=True),
        Curve("", (8, 64, 512), (1, 0, math.nan)),
    ]
    figures = [Figure(name, "d", name, curves, log_x=True, log_y=True) for name in "ab"]
    found = texts(plotted(figures))
    assert [found.count(name) for name in ("scaled", "not scaled", "each head")] == [1, 1, 1]
    assert {"8", "64", "512", "10⁻⁸"} <= {*found}
    assert not any("$" in text for text in found)


def test_curves_of_nothing_and_of_one_point_are_drawn() -> None:
    nothing = Curve("c", (1.0,), (math.nan,))
    for curve in (nothing, Curve("c", (3.0,), (0.0,)), Curve("c", (0, 1, 2), (0, 0, 0))):
        for log in (False, True):
            assert plotted([Figure("y", "x", "y", [curve], log_y=log)])
    assert plotted([Figure("y", "x", "y", [nothing], log_x=True)])


# -- refusals ---------------------------------------------------------------------------------


def test_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        plotted([])
    with pytest.raises(InputError, match="nothing to draw"):
        made(report_of(), ".svg")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Unavailable, match="not installed") as caught:
        plotted([heat(np.eye(2))])
    assert caught.value.exit_code == 3
    assert "attncli[plot]" in str(caught.value.hint) and "--heatmap" in str(caught.value.hint)


def test_the_settings_of_others_are_neither_used_nor_changed() -> None:
    import matplotlib as mpl

    plain = plotted([heat(np.eye(2))])
    with mpl.rc_context({"font.size": 40, "axes.facecolor": "red", "text.usetex": True}):
        assert plotted([heat(np.eye(2))]) == plain
        assert mpl.rcParams["font.size"] == 40


def test_a_real_report(tmp_path: Path) -> None:
    tokens = (("<BOS>", "I", "like", "you"),)
    asked = problem(heads=3, mask="causal")
    found = texts(made(reported(asked, View(), labels=Labels(tokens, tokens)), ".svg"))
    assert found.count("<BOS>") >= 2 and {"head 0", "head 1", "head 2"} <= {*found}
    assert "entropy (nats)" in found and "hidden by the mask" in found


def test_ticks_of_a_narrow_range_are_told_apart_and_stand_at_even_steps() -> None:
    curve = Curve("head 0", (0.0, 1.0, 2.0, 3.0), (1.36672, 1.37145, 1.37199, 1.36984))
    said = texts(plotted([Figure("entropy", "query", "nats", [curve])]))
    told = [float(text) for text in said if re.fullmatch(r"1\.\d+", text)]
    assert len(told) >= 3
    steps = np.diff(sorted(told))
    assert np.allclose(steps, steps[0], rtol=0.05) and steps[0] > 0
