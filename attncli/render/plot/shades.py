"""Numbers as colours: one scale for maps that are compared, and what stands at its ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, PowerNorm
from matplotlib.ticker import MaxNLocator

from attncli.render.plot.text import plain, plains, power
from attncli.render.shades import NAME
from attncli.reports.blocks import Heatmap, Shaded

Array = np.ndarray[Any, np.dtype[Any]]

HIDDEN = (226, 226, 226, 255)  # no colour map has a grey
ODD = (231, 41, 138, 255)  # NaN and ∞: seen at once
WEIGHTS, NUMBERS, AROUND = NAME, "cividis", "RdBu_r"  # told apart by the colour-blind, too
KEPT = ("#e2e2e2", "#2f5d8a")
DECADES = 12  # of a logarithmic scale
LONG, FAINT, WEIGHTS_DECADES = 128, 0.005, 4  # cells across; a share of the largest
TICKS = (0, 0.05, 0.2, 0.5, 1)  # of a scale of roots, as shares of its end


@dataclass(frozen=True)
class Shades:
    """A scale: ``name`` says what it is of; ticks are where and what."""

    name: str
    norm: Normalize
    colors: Any
    ticks: Sequence[tuple[float, str]]

    def painted(self, values: Array, hidden: Array | None) -> Array:
        """Return uint8 ``(r, c, 4)``; what is hidden, and what is no number, in its own colour."""
        known = np.isfinite(values)
        lowest = np.asarray(self.norm.vmin, values.dtype)
        shares = np.asarray(self.norm(np.where(known, values, lowest)))
        rgba: Array = self.colors(np.clip(shares, 0, 1), bytes=True)
        rgba[~known] = ODD
        if hidden is not None:
            rgba[hidden] = HIDDEN
        return rgba

    def gradient(self) -> Array:
        """Return the scale as a row of colours, ``(1, 256, 4)``."""
        return np.asarray(self.colors(np.linspace(0, 1, 256)[None], bytes=True))

    def at(self, value: float) -> float:
        """Return where a number stands on the scale, 0 to 1."""
        return float(self.norm(value))


def of_weights(maps: Sequence[Heatmap]) -> Shades:
    """Return a scale of square roots, on which small weights differ, from 0 to the largest.

    Logarithmic where a few weights of long maps would leave all others dark.
    """
    top = _round_up(max(_largest(one.values) for one in maps))
    usual = float(np.median([_usual(one) for one in maps]))
    if max(maps[0].values.shape) >= LONG and usual < FAINT * top:
        low = top * 10.0**-WEIGHTS_DECADES
        norm = LogNorm(low, top, clip=True)
        return Shades("weight, log scale", norm, colormaps[WEIGHTS], decades(low, top, 5))
    ticks = [(share * top, plain(share * top)) for share in TICKS]
    return Shades("weight, √ scale", PowerNorm(0.5, 0, top), colormaps[WEIGHTS], ticks)


def of_kept() -> Shades:
    """Return the scale of masks: the share of each block that is kept."""
    colors = LinearSegmentedColormap.from_list("kept", KEPT)
    return Shades("kept", Normalize(0, 1), colors, ())


def of_numbers(one: Shaded) -> Shades:
    """Return the scale of a map of its own: linear, logarithmic or around 0."""
    known = one.values[np.isfinite(one.values)].astype(np.float64)
    if one.diverging:
        top = float(np.abs(known).max(initial=0)) or 1.0
        ticks = [(x, plain(x)) for x in (-top, 0.0, top)]
        return Shades(one.name, Normalize(-top, top), colormaps[AROUND], ticks)
    above = known[known > 0]
    if one.log and len(above):
        top = float(above.max())
        low = max(float(above.min()), top * 10.0**-DECADES)
        low = low if low < top else top / 10
        return Shades(f"{one.name}, log", LogNorm(low, top, clip=True), colormaps[NUMBERS],
                      decades(low, top))  # fmt: skip
    low, top = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if low == top:
        low, top = min(low, 0.0), max(top, 1.0)  # as `render.shades.Scale`
    steps = [float(x) for x in MaxNLocator(4).tick_values(low, top) if low <= x <= top]
    steps = [0.0 if abs(x) < 1e-12 * (top - low) else x for x in steps]
    ticks = list(zip(steps, plains(steps), strict=True))
    return Shades(one.name, Normalize(low, top), colormaps[NUMBERS], ticks)


def decades(low: float, top: float, most: int = 4) -> list[tuple[float, str]]:
    """Return powers of ten between two numbers, else both of them."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(top) + 1e-9)
    if last - first < 1:
        return [(low, plain(low)), (top, plain(top))]
    step = -(-(last - first + 1) // most)
    return [(10.0**n, power(n)) for n in range(first, last + 1, step)]


def _usual(one: Heatmap) -> float:
    """Return the median of the cells that are not hidden; 0 without any."""
    seen = np.isfinite(one.values) if one.hidden is None else np.isfinite(one.values) & ~one.hidden
    return float(np.median(one.values[seen])) if seen.any() else 0.0


def _largest(values: Array) -> float:
    known = np.isfinite(values)
    return float(np.max(values, where=known, initial=0))


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, …"""
    if value <= 0:
        return 1.0
    ten = 10.0 ** math.floor(math.log10(value))
    return min(next(m * ten for m in (1, 2, 5, 10) if value <= m * ten * (1 + 1e-6)), 1.0)
