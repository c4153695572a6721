"""Curves side by side, with one legend for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, Formatter, FuncFormatter, MaxNLocator, NullLocator

from attncli.render.plot.paper import LINE, MARGIN, Paper, broken
from attncli.render.plot.shades import decades
from attncli.render.plot.text import NORMAL, SMALL, Letters, plain, plains
from attncli.reports.blocks import Curve, Figure

#: Okabe and Ito 2008: told apart by the colour-blind, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FAINT = "#bbbbbb"
GUTTER, BETWEEN = 0.4, 0.12  # inches: numbers beside the axes, axes
HIGH, OVER, UNDER = 1.15, 0.17, 0.32  # the axes, their title, what stands below
MARKED = 24  # points of a curve that are shown each
ACROSS = {False: 2, True: 4}  # figures side by side, in a column and on a page


class Told(Formatter):
    """Numbers at ticks, no two of them alike."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return plain(round(x, 12))

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        return plains([round(float(x), 12) for x in values])


class CurveBand:
    """Figures in rows; curves of one name have one colour in all of them."""

    def __init__(self, figures: Sequence[Figure], letters: Letters, width: float) -> None:
        self.figures, self.letters = figures, letters
        self.room = width - 2 * MARGIN
        most = min(len(figures), ACROSS[width > 4])
        self.lines = -(-len(figures) // most)
        self.columns = -(-len(figures) // self.lines)
        self.width = min((self.room - BETWEEN * (self.columns - 1)) / self.columns, 3.3)
        names = dict.fromkeys(c.name for one in figures for c in one.curves if c.name)
        self.colors = {name: COLORS[n % len(COLORS)] for n, name in enumerate(names)}
        self.dashed = {c.name: c.dashed for one in figures for c in one.curves}
        self.keys = self._key_rows() if len(names) > 1 or self._faint else []
        self.notes = broken([n for one in figures for n in one.notes], letters, self.room)
        self.height = self.lines * (OVER + HIGH + UNDER) + 0.08 * (self.lines - 1)
        self.height += 0.14 * len(self.keys) + LINE * len(self.notes)
        self.legible = len(figures) <= 4

    @property
    def _faint(self) -> bool:
        return any(not curve.name for one in self.figures for curve in one.curves)

    def _key_rows(self) -> list[list[str]]:
        """Return the names of the legend, line by line; '' stands for the thin ones."""
        rows: list[list[str]] = [[]]
        used = 0.0
        for name in [*self.colors, *[""] * self._faint]:
            wide = self._key_width(name)
            if rows[-1] and used + wide > self.room:
                rows.append([])
                used = 0.0
            rows[-1].append(name)
            used += wide
        return rows

    def _called(self, name: str) -> str:
        return self.letters.shown(name, 40) if name else "each head"

    def _key_width(self, name: str) -> float:
        return self.letters.width(self._called(name)) + 0.42

    def draw(self, paper: Paper, top: float) -> None:
        """Draw them, ``top`` inches below the upper edge."""
        step = OVER + HIGH + UNDER + 0.08
        for n, one in enumerate(self.figures):
            row, column = divmod(n, self.columns)
            left = MARGIN + column * (self.width + BETWEEN)
            y = top + row * step
            signs = int(self.width / self.letters.width("n" * 10, NORMAL) * 10)
            paper.text(left, y, self.letters.shown(one.title, signs), NORMAL)
            wide = self.width - GUTTER - 0.06
            axes = paper.axes(left + GUTTER, y + OVER, wide, HIGH)
            self._draw(axes, one, wide)
        y = top + self.lines * step - 0.08
        for names in self.keys:
            left = MARGIN
            for name in names:
                self._key(paper, left, y + 0.02, name)
                left += self._key_width(name)
            y += 0.14
        paper.lines(MARGIN, y, self.notes)

    def _key(self, paper: Paper, left: float, top: float, name: str) -> None:
        y = 1 - (top + 0.045) / paper.height
        paper.figure.add_artist(
            Line2D(
                [left / paper.width, (left + 0.22) / paper.width], [y, y], linewidth=1,
                color=self.colors.get(name, FAINT), linestyle="--" if self.dashed[name] else "-",
                transform=paper.figure.transFigure,
            )
        )  # fmt: skip
        paper.text(left + 0.27, top + 0.045, self._called(name), va="center")

    def _draw(self, axes: Axes, one: Figure, wide: float) -> None:
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.4)
        axes.set_axisbelow(True)
        for curve in one.curves:
            self._curve(axes, curve)
        self._across(axes, one, wide)
        self._upward(axes, one)
        axes.set_xlabel(self.letters.shown(one.x, 40), fontsize=SMALL, labelpad=1, color="#666666")

    def _curve(self, axes: Axes, curve: Curve) -> None:
        marked = bool(curve.name) and len(curve.x) <= MARKED
        axes.plot(
            list(curve.x), list(curve.y), color=self.colors.get(curve.name, FAINT),
            linewidth=0.9 if curve.name else 0.4, linestyle="--" if curve.dashed else "-",
            marker="o" if marked else None, markersize=2.2, zorder=3 if curve.name else 2,
            solid_capstyle="round", clip_on=not marked,
        )  # fmt: skip

    def _across(self, axes: Axes, one: Figure, wide: float) -> None:
        """Set the scale of x and its ticks, as many as there is room for."""
        if one.ticks is not None:
            axes.set_xlim(-0.35, len(one.ticks) - 0.65)
            texts = [self.letters.shown(text, 18) for text in one.ticks]
            axes.set_xticks(range(len(texts)), texts, fontsize=SMALL)
            return
        if not one.log_x:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
            every = [x for curve in one.curves for x in curve.x]
            low, high = min(every), max(every)
            pad = 0.02 * (high - low or 1)
            axes.set_xlim(low - pad, high + pad)  # where y is NaN, too
            return
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        found = sorted({x for curve in one.curves for x in curve.x})
        low, high = np.log(found[0]), np.log(found[-1])
        if low == high:
            axes.set_xlim(found[0] / 2, found[0] * 2)
        shown: list[float] = []
        end = -1.0
        for x in found:
            at = (np.log(x) - low) / (high - low or 1) * wide
            half = self.letters.width(f"{x:g}") / 2
            if at - half > end:
                shown.append(x)
                end = at + half + 0.04
        axes.set_xticks(shown, [f"{x:g}" for x in shown], fontsize=SMALL)

    def _upward(self, axes: Axes, one: Figure) -> None:
        """Set the scale of y: logarithmic where asked for and there is a number above 0."""
        every = np.array([y for curve in one.curves for y in curve.y], float)
        above = every[np.isfinite(every) & (every > 0)]
        if not (one.log_y and len(above)):
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(Told())
            return
        low, top = float(above.min()), float(above.max())
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, top * 1.5)
        ticks = decades(low / 1.5, top * 1.5)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(FixedLocator([y for y, _ in ticks]))
        axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize=SMALL)
