"""Colour: where it is wanted, how much of it there is, and what shades mean."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

from attncli.render import show
from attncli.render.paint import RAMP, Paint, colors_of, level
from tests.support.screen import ESCAPE, Terminal, matrix, report_of


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
        ({"TERM": "linux", "COLORTERM": "truecolor"}, 1 << 24),
        ({"TERM": "xterm", "COLORTERM": "yes"}, 256),
        ({"TERM": "dumb"}, 0),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, 0),
        ({"TERM": "xterm-256color", "NO_COLOR": "1", "FORCE_COLOR": "1"}, 0),
    ],
)
def test_colours_are_those_the_terminal_has(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], colors: int
) -> None:
    for name in ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert colors_of(Terminal(), "auto") == colors
    assert colors_of(Terminal(), "never") == 0
    assert (colors_of(io.StringIO(), "auto"), colors_of(io.StringIO(), "always")) == (0, 256)


def test_colour_can_be_forced_into_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for value, colors in (("1", 256), ("", 0)):
        monkeypatch.setenv("FORCE_COLOR", value)
        assert colors_of(io.StringIO(), "auto") == colors
        assert colors_of(io.StringIO(), "never") == 0
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
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
    assert few.cell("  ", 1) == "\x1b[103m  \x1b[0m"
