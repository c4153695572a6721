"""Colour that means something: shades for weights, weight for headings, or neither."""

from __future__ import annotations

import math
from dataclasses import dataclass

PLAIN = " ░▒▓█"
# viridis in the terminal's 256 colours, darkest first: (background, text on it)
RAMP = (
    (233, 250), (53, 255), (54, 255), (24, 255), (30, 255),
    (36, 16), (71, 16), (113, 16), (148, 16), (220, 16),
)  # fmt: skip


@dataclass(frozen=True)
class Paint:
    """Adds colour and weight to text, or leaves it alone."""

    color: bool

    def bold(self, text: str) -> str:
        """Headings."""
        return f"\x1b[1m{text}\x1b[0m" if self.color and text.strip() else text

    def dim(self, text: str) -> str:
        """What explains."""
        return f"\x1b[2m{text}\x1b[0m" if self.color and text else text

    def verdict(self, text: str) -> str:
        """Green, yellow or red beside the word."""
        color = {"ok": 32, "watch": 33, "critical": 31}.get(text.strip())
        return f"\x1b[{color}m{text}\x1b[0m" if self.color and color else text

    def shade(self, text: str, share: float) -> str:
        """Return text on the shade of a weight; a weight near 0 has none."""
        step = level(share, len(RAMP))
        if not self.color or step <= 0:
            return text
        back, front = RAMP[step]
        return f"\x1b[38;5;{front};48;5;{back}m{text}\x1b[0m"


def level(share: float, steps: int) -> int:
    """Return the shade 0 … steps - 1 of a share of the largest weight; -1 for NaN.

    The root tells small weights apart: with n steps shade k starts at the share (k / n)².
    """
    if math.isnan(share):
        return -1
    return min(int(math.sqrt(max(share, 0)) * steps), steps - 1)
