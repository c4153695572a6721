"""Maps side by side: the same cells, labels once, one scale or a scale each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from attncli.render.plot.legend import Legend, draw_scale
from attncli.render.plot.paper import LINE, MARGIN, Paper, broken
from attncli.render.plot.shades import Shades, of_numbers
from attncli.render.plot.text import NORMAL, POINTS, SMALL, TITLE, Letters, plain
from attncli.render.pooling import joined
from attncli.reports.blocks import Grid, Heatmap, Shaded

Array = np.ndarray[Any, np.dtype[Any]]
Map = Heatmap | Grid | Shaded

PITCH = 5.7  # points from a label to the next
LARGEST = 0.42  # inches: a cell
FLAT = 0.09, 0.15  # the height of one of statistics, at least and at most
NARROWEST, THINNEST = 0.45, 0.14  # a map, its shorter side
HIGHEST, TALLEST = 4.5, 8.2  # a map, all maps of weights
GAP = 0.1  # between maps
HEAD = 0.17  # a band's title
NUMBERS, NUMBERED = 600, 0.12  # cells, and the height of one, where numbers stand in them
PIXELS = 300  # an inch: cells beyond are pooled
MANY = 64  # labels that are never all shown


class Sizes(NamedTuple):
    """How maps are arranged: columns of them, a map's width and height, the whole height."""

    columns: int
    width: float
    height: float
    total: float


class MapBand:
    """Maps of the same cells. ``names`` stand over each; without ``shades`` each has its own.

    ``legend`` are the maps that a legend below is about.
    """

    def __init__(
        self, title: str, names: Sequence[str], maps: Sequence[Map], letters: Letters,
        width: float, shades: Shades | None = None, *, legend: Sequence[Map] = (),
        tallest: float = TALLEST,
    ) -> None:  # fmt: skip
        self.title, self.names, self.maps, self.letters = title, names, maps, letters
        self.shades = shades
        first = maps[0]
        self.rows, self.cells = first.row_edges[-1], first.column_edges[-1]
        self.room, self.tallest = width - 2 * MARGIN, tallest
        self.flat = isinstance(first, Shaded) and first.rows != "query"
        self.left = self._widest(first.row_labels, first) + 0.06 + LINE
        self.head = HEAD * bool(title)
        self.over = 0.14 * bool(names)
        self.under = 0.3 if shades is None else 0.0  # a scale below each
        self.sizes = self._arrange()
        s = self.sizes
        self.row_ticks = self._ticks(
            first.row_labels, _positions(first, "row"), self.rows, s.height
        )
        self.key_ticks = self._ticks(
            first.column_labels, _positions(first, "column"), self.cells, s.width, across=True
        )
        self._shorten()
        self.left = max((letters.width(text) for _, text in self.row_ticks), default=0)
        self.left += 0.06 + LINE
        self.turned = self._turned()
        self.bottom = LINE + 0.05 + (
            max((letters.width(text) for _, text in self.key_ticks), default=0)
            if self.turned else LINE
        )  # fmt: skip
        self.notes = broken(self._notes(), letters, self.room)
        self.legend = Legend(legend, shades, letters, self.room - self.left)
        self.height = s.total + self.bottom + self.legend.height
        self.height += LINE * len(self.notes) + 0.04 * bool(self.notes)
        self.legible = self._legible(s) and (len(maps) == 1 or s.width >= 0.9)
        self.legible &= width > 4 or len(maps) <= 4

    def _shorten(self) -> None:
        """Leave 'head' of 'head 7' to the title where maps are too narrow for both."""
        stems = {name.rpartition(" ")[0] for name in self.names}
        widest = max((self.letters.width(name, NORMAL) for name in self.names), default=0)
        if widest > self.sizes.width and len(stems) == 1 and self.title:
            self.title += f" · {stems.pop()}"
            self.names = [name.rpartition(" ")[2] for name in self.names]

    # -- arranging --

    def _arrange(self) -> Sizes:
        """Return the most columns in which every label can be read, else in which all fit."""
        n = len(self.maps)
        most = max(1, min(n, int((self.room - self.left + GAP) / (NARROWEST + GAP))))
        found = [self._sized(columns) for columns in range(most, 0, -1)]
        low = [one for one in found if one.total <= self.tallest] or found[:1]
        return next((one for one in low if self._legible(one)), self._usual(low))

    def _usual(self, fitting: Sequence[Sizes]) -> Sizes:
        """Return maps that are about an inch wide, or as wide as fits."""
        return next((one for one in fitting if one.width >= 1), fitting[-1])

    def _sized(self, columns: int) -> Sizes:
        columns = -(-len(self.maps) // -(-len(self.maps) // columns))  # none nearly empty
        most = (self.room - self.left - GAP * (columns - 1)) / columns
        wide = min(most / self.cells, LARGEST)
        high = min(wide, HIGHEST / self.rows)
        if self.flat:
            high = min(max(wide, FLAT[0]), FLAT[1], HIGHEST / self.rows)
        else:
            wide = high  # rows and keys may be the same tokens
        width, height = max(wide * self.cells, THINNEST), max(high * self.rows, THINNEST)
        if width < NARROWEST and len(self.maps) > 1:
            width = min(NARROWEST, most)
        lines = -(-len(self.maps) // columns)
        total = self.head + lines * (self.over + height + self.under) + GAP * (lines - 1)
        return Sizes(columns, width, height, total)

    def _legible(self, sizes: Sizes) -> bool:
        sides = ((self.rows, sizes.height), (self.cells, sizes.width))
        if self.flat and len(self.maps) > 1:  # a title that is cut says nothing
            name = max(self.letters.width(name, NORMAL) for name in self.names)
            label = self._widest(self.maps[0].column_labels, self.maps[0])
            upright = label > 0.25 or label + 0.03 <= sizes.width / self.cells
            if name > sizes.width or (self.cells <= MANY and not upright):
                return False
        return all(n > MANY or size * POINTS / n >= PITCH for n, size in sides)

    def _widest(self, labels: Sequence[str], one: Map) -> float:
        """Return the width of the widest label, of some where there are very many."""
        if len(labels) > MANY and not isinstance(one, Shaded):
            return self.letters.width(str(len(labels)))  # positions are shown in their place
        step = max(1, len(labels) // MANY)
        texts = self.letters.labels([labels[i] for i in range(0, len(labels), step)])
        return max(map(self.letters.width, texts), default=0.0)

    def _ticks(
        self, labels: Sequence[str], positions: Sequence[int] | None, count: int, size: float, *,
        across: bool = False,
    ) -> list[tuple[int, str]]:  # fmt: skip
        """Return indices and their labels: all, or at round steps their positions."""
        pitch = size * POINTS / count
        if pitch >= PITCH and count <= MANY:
            every = [*enumerate(self.letters.labels([labels[i] for i in range(count)]))]
            widest = max(self.letters.width(text) for _, text in every) * POINTS
            if not all(text.isdecimal() for _, text in every) or pitch >= (
                widest + 2 if across else 1.1 * PITCH
            ):
                return every  # of numbers, some say where the others are
        need = 2 * PITCH
        if across:
            need = self.letters.width(str(positions[-1] if positions else count)) * POINTS
            need += 4 if size < 1 else 10
        step = next(m * 10**k for k in range(12) for m in (1, 2, 5) if m * 10**k * pitch >= need)
        if positions is None:
            return [(i, self.letters.shown(labels[i])) for i in range(0, count, step)]
        start = -positions[0] % step if isinstance(positions, range) else 0
        found = [(i, str(positions[i])) for i in range(start, count, step)]
        if not across or len(self.maps) == 1:
            return found
        room = size + GAP / 2  # the next map's labels begin there
        return [
            (i, t) for i, t in found if (i + 0.5) / count * size + self.letters.width(t) / 2 < room
        ]

    def _turned(self) -> bool:
        """Whether labels of columns stand upright."""
        pitch = self.sizes.width * (self.key_ticks[1][0] - self.key_ticks[0][0]) / self.cells \
            if len(self.key_ticks) > 1 else self.sizes.width + 0.2  # fmt: skip
        return any(self.letters.width(text) > pitch - 0.03 for _, text in self.key_ticks)

    def _notes(self) -> list[str]:
        found = [note for one in self.maps for note in one.notes]
        first = self.maps[0]
        weights = type(first) is Heatmap
        if weights or (isinstance(first, Shaded) and first.diverging):
            one = _pooled(first, self.sizes)
            down, across = (
                int(np.diff(edges).max()) for edges in (one.row_edges, one.column_edges)
            )
            if down * across > 1:
                found.append(
                    f"each pixel is the largest of {down} × {across} weights"
                    if weights
                    else f"each cell is the furthest from 0 of up to {down} × {across}"
                )
        return found

    # -- drawing --

    def draw(self, paper: Paper, top: float) -> None:
        """Draw them, ``top`` inches below the upper edge."""
        s, n = self.sizes, len(self.maps)
        if self.title:
            title = self.letters.shown(self.title, 90)
            paper.text(MARGIN, top, title, TITLE)
        numbered = self._fits()
        step = self.over + s.height + self.under + GAP
        for at, one in enumerate(self.maps):
            row, column = divmod(at, s.columns)
            left = MARGIN + self.left + column * (s.width + GAP)
            y = top + self.head + row * step + self.over
            axes = paper.axes(left, y, s.width, s.height)
            shades = self.shades or _own_shades(one)
            self._map(axes, one, shades, numbered=numbered)
            lowest = at + s.columns >= n
            self._label(axes, one, rows=column == 0, keys=lowest)
            if self.names:
                name = self.letters.shown(self.names[at], 90)
                if self.letters.width(name, NORMAL) > s.width + GAP / 2:
                    most = max(4, int(s.width / self.letters.width("nnnnn", NORMAL) * 5))
                    name = self.letters.shown(name, most)
                paper.text(left, y - 0.03, name, NORMAL, va="bottom")
            if self.shades is None:
                under = y + s.height + (self.bottom if lowest else 0) + 0.03
                draw_scale(paper, left, under, min(s.width, 2.0), shades)
        y = top + s.total + self.bottom
        self.legend.draw(paper, MARGIN + self.left, y)
        y += self.legend.height
        paper.lines(MARGIN, y + 0.04, self.notes)

    def _map(self, axes: Axes, one: Map, shades: Shades, *, numbered: bool) -> None:
        seen = _pooled(one, self.sizes)
        image = shades.painted(seen.values, seen.hidden)
        axes.imshow(
            image, extent=(0, _span(seen.column_edges), _span(seen.row_edges), 0), aspect="auto",
            interpolation="nearest", gid="map", zorder=2.6,  # above the frame
        )  # fmt: skip
        axes.set_xlim(0, self.cells)
        axes.set_ylim(self.rows, 0)
        if isinstance(one, Grid):
            self._ruled(axes)
        elif numbered:
            self._numbered(axes, one, image)

    def _ruled(self, axes: Axes) -> None:
        """Part the cells of a mask, so that they can be counted."""
        if max(self.rows, self.cells) <= MANY:
            for i in range(1, self.rows):
                axes.axhline(i, color="white", linewidth=0.5, zorder=2.7)
            for j in range(1, self.cells):
                axes.axvline(j, color="white", linewidth=0.5, zorder=2.7)

    def _fits(self) -> bool:
        """Whether there is room for its number in every cell of all maps."""
        s, cells = self.sizes, len(self.maps) * self.rows * self.cells
        if cells > NUMBERS or s.height / self.rows < NUMBERED:
            return False
        texts = [text for one in self.maps for _, text in _numbers(one)]
        return max(map(self.letters.width, texts), default=0) + 0.02 < s.width / self.cells

    def _numbered(self, axes: Axes, one: Map, image: Array) -> None:
        for (i, j), text in _numbers(one):
            light = image[i, j, :3] @ (0.299, 0.587, 0.114) > 130
            axes.text(
                j + 0.5, i + 0.5, text, fontsize=5.5, ha="center", va="center",
                color="#111111" if light else "#ffffff",
            )  # fmt: skip

    def _label(self, axes: Axes, one: Map, *, rows: bool, keys: bool) -> None:
        for axis, ticks, wanted in (
            (axes.yaxis, self.row_ticks, rows), (axes.xaxis, self.key_ticks, keys),
        ):  # fmt: skip
            axis.set_ticks([i + 0.5 for i, _ in ticks] if wanted else [])
            if wanted:
                axis.set_ticklabels([text for _, text in ticks], fontsize=SMALL)
        if keys and self.turned:
            axes.tick_params(axis="x", labelrotation=90)
        down, across = (one.rows, one.columns) if isinstance(one, Shaded) else ("query", "key")
        if rows:
            axes.set_ylabel(down, fontsize=SMALL, labelpad=2, color="#666666")
        if keys:
            axes.set_xlabel(across, fontsize=SMALL, labelpad=1, color="#666666")


def _own_shades(one: Map) -> Shades:
    assert isinstance(one, Shaded)
    return of_numbers(one)


def _numbers(one: Map) -> list[tuple[tuple[int, int], str]]:
    """Return what stands in the cells of a map, those that are seen and are numbers."""
    seen = np.isfinite(one.values) if one.hidden is None else np.isfinite(one.values) & ~one.hidden
    heat = isinstance(one, Heatmap)
    cells = zip(*(axis.tolist() for axis in np.nonzero(seen)), strict=True)
    numbers = ((at, float(one.values[at])) for at in cells)
    return [(at, f"{value:.2f}" if heat else plain(value)) for at, value in numbers]


def _positions(one: Map, side: str) -> Sequence[int] | None:
    """Return where rows or columns stand; None where their labels say all there is."""
    if isinstance(one, Shaded):
        return None
    given: Sequence[int] | None = getattr(one, f"{side}_positions")
    edges = one.row_edges if side == "row" else one.column_edges
    return range(edges[-1]) if given is None else given


def _span(edges: Sequence[int]) -> int:
    """Return where the last block would end if it were as large as the others."""
    sizes = {b - a for a, b in pairwise(edges[:-1])}
    return sizes.pop() * (len(edges) - 1) if len(sizes) == 1 else edges[-1]


def _pooled(one: Map, sizes: Sizes) -> Any:
    """Return a map with at most a block a pixel."""
    starts = (
        range(0, count, max(1, -(-count // max(1, int(size * PIXELS)))))
        for count, size in zip(one.values.shape, (sizes.height, sizes.width), strict=True)
    )
    return joined(one, *starts)
