"""What colours mean: scales with their ticks, and squares for what is on none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attncli.render.plot.paper import Paper
from attncli.render.plot.shades import HIDDEN, KEPT, ODD, Shades
from attncli.render.plot.text import SMALL, Letters
from attncli.reports.blocks import Grid, Heatmap, Shaded

Key = tuple[str, Any]  # a text and its colour; None stands for the scale
BAR, HIGH = 1.2, 0.07  # inches, of a scale
SQUARE = 0.08


class Legend:
    """The legend of some maps; ``shades`` is the scale that they share, if they do."""

    def __init__(
        self, maps: Sequence[Heatmap | Grid | Shaded], shades: Shades | None, letters: Letters,
        room: float,
    ) -> None:  # fmt: skip
        self.shades, self.letters = shades, letters
        self.lines: list[list[Key]] = []
        used = room
        for key in _keys(maps, shades):
            if used + self._width(key) > room:
                self.lines.append([])
                used = 0.0
            self.lines[-1].append(key)
            used += self._width(key)
        self.height = sum(map(_height, self.lines)) + 0.06 * bool(self.lines)

    def _width(self, key: Key) -> float:
        text, color = key
        return self.letters.width(text) + 0.2 + (BAR if color is None else SQUARE + 0.04)

    def draw(self, paper: Paper, left: float, top: float) -> None:
        """Draw it with its upper left corner there."""
        top += 0.06
        for line in self.lines:
            x = left
            for key in line:
                text, color = key
                if color is None:
                    assert self.shades is not None
                    draw_scale(paper, x, top, BAR, self.shades)
                    paper.text(x + BAR + 0.08, top + HIGH / 2, text, va="center")
                else:
                    paper.patch(x, top, SQUARE, color)
                    paper.text(x + SQUARE + 0.04, top + SQUARE / 2, text, va="center")
                x += self._width(key)
            top += _height(line)


def _keys(maps: Sequence[Heatmap | Grid | Shaded], shades: Shades | None) -> list[Key]:
    """Return the scale, and what is there besides numbers."""
    values = [one.values for one in maps]
    if any(isinstance(one, Grid) for one in maps):
        assert shades is not None
        keys: list[Key] = [("kept", KEPT[1])]
        if any(((one > 0) & (one < 1)).any() for one in values):
            keys.append(("partly", shades.colors(0.5)))
        return [*keys, ("hidden", KEPT[0])] if any((one < 1).any() for one in values) else keys
    keys = [(shades.name, None)] if shades and maps else []
    if any(one.hidden is not None and one.hidden.any() for one in maps):
        keys.append(("hidden by the mask", _share(HIDDEN)))
    odd = [one.values if one.hidden is None else one.values[~one.hidden] for one in maps]
    words = [name for name, test in (("NaN", np.isnan), ("∞", np.isinf))
             if any(test(one).any() for one in odd)]  # fmt: skip
    return [*keys, (" or ".join(words), _share(ODD))] if words else keys


def _height(line: Sequence[Key]) -> float:
    """Return the height of a line: a scale has numbers below."""
    return 0.26 if any(color is None for _, color in line) else 0.15


def _share(color: Sequence[int]) -> tuple[float, ...]:
    return tuple(part / 255 for part in color)


def draw_scale(paper: Paper, left: float, top: float, width: float, shades: Shades) -> None:
    """Draw a scale with as many of its ticks as there is room for."""
    axes = paper.axes(left, top, width, HIGH)
    axes.imshow(shades.gradient(), extent=(0, 1, 0, 1), aspect="auto")
    axes.set_yticks([])
    shown: list[tuple[float, str]] = []
    end = -1.0
    for value, text in shades.ticks:
        half = paper.letters.width(text) / 2 / width
        if (x := shades.at(value)) - half > end:
            shown.append((x, text))
            end = x + half + 0.04
    axes.set_xticks([x for x, _ in shown], [text for _, text in shown], fontsize=SMALL)
