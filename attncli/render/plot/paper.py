"""A figure measured in inches from its upper left corner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle

from attncli.render.cells import flow
from attncli.render.plot.text import SMALL, Letters

MARGIN = 0.08  # around everything
LINE = 0.11  # inches, of small text


class Paper(NamedTuple):
    """What is drawn on, and how large it is."""

    figure: Drawing
    width: float
    height: float
    letters: Letters

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes at a place, without anything on them."""
        bottom = self.height - top - height
        at = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes: Axes = self.figure.add_axes(at)
        axes.tick_params(length=1.5, width=0.4, pad=1.5, labelsize=SMALL)
        return axes

    def text(self, left: float, top: float, text: str, points: float = SMALL, **how: Any) -> None:
        """Write a line; ``top`` is where its upper edge stands."""
        how = {"ha": "left", "va": "top", **how}
        x, y = left / self.width, 1 - top / self.height
        self.figure.text(x, y, text, fontsize=points, **how)

    def patch(self, left: float, top: float, size: float, color: Any) -> None:
        """Draw a square of a colour, for a legend."""
        at = left / self.width, 1 - (top + size) / self.height
        self.figure.add_artist(
            Rectangle(
                at, size / self.width, size / self.height, facecolor=color, edgecolor="#888888",
                linewidth=0.4, transform=self.figure.transFigure,
            )
        )  # fmt: skip

    def lines(self, left: float, top: float, lines: Sequence[str]) -> None:
        """Write lines in grey, one under the other."""
        for n, line in enumerate(lines):
            self.text(left, top + n * LINE, line, color="#666666")


def broken(notes: Sequence[str], letters: Letters, room: float) -> list[str]:
    """Return notes as lines of at most ``room`` inches, each said once."""
    signs = int(room / letters.width("n" * 20) * 20)
    return [line for note in dict.fromkeys(notes) for line in flow(letters.shown(note, 400), signs)]
