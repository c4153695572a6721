"""Colour that means something: shades for weights, weight for headings, or neither."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TextIO

from attncli.render.shades import rgb, text_on

PLAIN = " ░▒▓█"
# viridis in the terminal's 256 colours, darkest first: (background, text on it)
RAMP = (
    (233, 250), (53, 255), (54, 255), (24, 255), (30, 255),
    (36, 16), (71, 16), (113, 16), (148, 16), (220, 16),
)  # fmt: skip
# the same in 16: five shades, since no more of these are told apart by their lightness alone
FEW_RAMP = ((0, 7), (4, 15), (6, 0), (10, 0), (11, 0))
VERDICTS = {"ok": "32", "watch": "33", "critical": "31"}  # green, yellow, red
TRUE, MANY, FEW = 1 << 24, 256, 16  # colours


@dataclass(frozen=True)
class Paint:
    """Adds colour and weight to text, or leaves it alone where there are no ``colors``."""

    colors: int

    def bold(self, text: str) -> str:
        """Headings."""
        return self._styled(text, "1") if text.strip() else text

    def dim(self, text: str) -> str:
        """What explains."""
        return self._styled(text, "2") if text else text

    def verdict(self, text: str) -> str:
        """Green, yellow or red beside the word."""
        code = VERDICTS.get(text.strip())
        return self._styled(text, code) if code else text

    def shade(self, text: str, share: float, least: int = 1) -> str:
        """Return text on the shade of a weight; a shade below the ``least`` of ten is none."""
        step = level(share, len(RAMP))
        return self.cell(text, math.sqrt(share)) if self.colors and step >= least else text

    def cell(self, text: str, place: float) -> str:
        """Return text on the shade of a place 0 … 1 of the scale, readable on it."""
        if self.colors >= TRUE:
            back = rgb(place)
            codes = [_true(text_on(back), 38)] if text.strip() else []
            return self._styled(text, *codes, _true(back, 48))
        under, over = self._ramp(place)
        codes = [self._color(over, 38)] if text.strip() else []
        return self._styled(text, *codes, self._color(under, 48))

    def halves(self, upper: float | None, lower: float | None) -> str:
        """Return one cell in the shades of two places, one over the other; None has no shade."""
        if upper is None or lower is None:
            some, sign = (lower, "▄") if upper is None else (upper, "▀")
            return self._styled(sign, self._shade(some, 38)) if some is not None else " "
        return self._styled("▀", self._shade(upper, 38), self._shade(lower, 48))

    def _shade(self, place: float, layer: int) -> str:
        """Return the code of a shade as foreground (38) or background (48)."""
        if self.colors >= TRUE:
            return _true(rgb(place), layer)
        return self._color(self._ramp(place)[0], layer)

    def _ramp(self, place: float) -> tuple[int, int]:
        ramp = RAMP if self.colors >= MANY else FEW_RAMP
        return ramp[_step(place, len(ramp))]

    def _color(self, color: int, layer: int) -> str:
        if self.colors >= MANY:
            return f"{layer};5;{color}"
        return str(layer - 8 + color if color < 8 else layer + 52 + color - 8)  # 30 …, 90 …

    def _styled(self, text: str, *codes: str) -> str:
        # by hand: rich's Style writes the same bytes and takes 5 ms to load at every start
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self.colors else text


def plain(place: float) -> str:
    """Return the sign that stands for a place of the scale where there are no colours."""
    return PLAIN[_step(place, len(PLAIN))]


def _step(place: float, steps: int) -> int:
    return min(max(int(place * steps + 1e-9), 0), steps - 1)


def _true(color: tuple[int, int, int], layer: int) -> str:
    return f"{layer};2;{color[0]};{color[1]};{color[2]}"


def colors_of(out: TextIO, color: str) -> int:
    """Return how many colours to write: 0, FEW, MANY, TRUE. ``color``: auto, always or never."""
    if color == "auto" and os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR"):
        color = "always"
    if color == "never":
        return 0
    if not out.isatty():
        return MANY if color == "always" else 0
    if color == "auto" and (os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"):
        return 0
    return _colors_of_terminal()


def _colors_of_terminal() -> int:
    """Return FEW where the system's description of the terminal knows no more."""
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return TRUE
    if os.environ.get("COLORTERM") or "256color" in os.environ.get("TERM", ""):
        return MANY
    try:
        import curses
    except ImportError:  # Windows
        return MANY
    try:
        curses.setupterm(fd=1)  # the name is TERM's; nothing is read or written
    except curses.error:  # a name that nobody described is a young terminal's
        return MANY
    return MANY if curses.tigetnum("colors") >= MANY else FEW


def level(share: float, steps: int) -> int:
    """Return the shade 0 … steps - 1 of a share of the largest weight; -1 for NaN.

    The root tells small weights apart: with n steps shade k starts at the share (k / n)².
    """
    if math.isnan(share):
        return -1
    return min(int(math.sqrt(max(share, 0)) * steps), steps - 1)
