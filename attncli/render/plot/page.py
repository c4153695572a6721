"""From pictures to a figure: bands one under the other, as wide as a paper's column or its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

from matplotlib.figure import Figure as Drawing

from attncli.render.plot.curves import CurveBand
from attncli.render.plot.maps import TALLEST, Map, MapBand
from attncli.render.plot.paper import MARGIN, Paper
from attncli.render.plot.shades import Shades, of_kept, of_weights
from attncli.render.plot.text import Letters
from attncli.reports.blocks import Figure, Grid, Heatmap, Picture, Shaded

COLUMN, PAGE = 3.4, 7.0  # inches
TALL = 9.0  # of what stands in a column
BETWEEN = 0.16  # bands
LEAST = 2.0  # of maps with labels of their own
SAMPLED = 64  # labels that tell whether two maps have the same ones


class Band(Protocol):
    """Pictures of one kind, side by side: how high they are, and whether they can be read."""

    height: float
    legible: bool

    def draw(self, paper: Paper, top: float) -> None:
        """Draw them, ``top`` inches below the upper edge."""


def page_of(pictures: Sequence[Picture], letters: Letters) -> Drawing:
    """Return the figure: in a column where all can be read there, else on the page."""
    groups = [list(some) for _, some in groupby(pictures, _kind)]
    for width in (COLUMN, PAGE):
        bands = list(_bands(groups, letters, width))
        height = 2 * MARGIN + sum(band.height for band in bands) + BETWEEN * (len(bands) - 1)
        if all(band.legible for band in bands) and height <= TALL:
            break
    paper = Paper(Drawing(figsize=(width, height)), width, height, letters)
    top = MARGIN
    for band in bands:
        band.draw(paper, top)
        top += band.height + BETWEEN
    return paper.figure


def _kind(one: Picture) -> tuple[Any, ...]:
    """Return what pictures of one band have in common."""
    if isinstance(one, Figure):
        return (Figure,)
    labels = tuple(one.row_labels[:SAMPLED]), tuple(one.column_labels[:SAMPLED])
    same = tuple(one.row_edges), tuple(one.column_edges), labels
    if isinstance(one, Shaded):
        return (Shaded, one.rows, one.columns, one.log, one.diverging, *same)
    return (type(one), _stem(one.title), *same)


def _stem(title: str) -> str:
    """Return 'Weights · batch 0' of 'Weights · batch 0 · head 3'."""
    stem, dot, _ = title.rpartition(" · ")
    return stem if dot else title


def _bands(groups: Sequence[Sequence[Picture]], letters: Letters, width: float) -> Iterator[Band]:
    weights = [one for some in groups for one in some if type(one) is Heatmap]
    shared = of_weights(weights) if weights else None
    kinds = [type(some[0]) for some in groups]
    tall = max(TALLEST / max(kinds.count(Heatmap), 1), LEAST)
    last = max((n for n, some in enumerate(groups) if type(some[0]) is Heatmap), default=-1)
    for n, some in enumerate(groups):
        first = some[0]
        if isinstance(first, Figure):
            yield CurveBand([one for one in some if isinstance(one, Figure)], letters, width)
            continue
        maps = [one for one in some if not isinstance(one, Figure)]
        if isinstance(first, Shaded):
            yield MapBand("", [one.title for one in maps], maps, letters, width, legend=maps)
            continue
        stem = _stem(first.title) if len(maps) > 1 else first.title or "Mask"
        names = [one.title.rpartition(" · ")[2] for one in maps] if len(maps) > 1 else []
        shades: Shades | None = of_kept() if isinstance(first, Grid) else shared
        legend: Sequence[Map] = maps if isinstance(first, Grid) else weights if n == last else ()
        yield MapBand(stem, names, maps, letters, width, shades, legend=legend, tallest=tall)
